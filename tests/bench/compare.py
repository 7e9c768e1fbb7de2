"""digitserve beside a good ``grpc.aio`` service, on one core each in turn, under the same load from other cores.

    python -m tests.bench.compare --models models --seconds 5 --rounds 3

In every round each server is started, warmed up, loaded and ended, so what else the machine does falls on all of them
alike: the ratio of the medians counts, not the figures. h2load counts HTTP answers and knows no grpc-status, so every
run is checked against the server's own counts; a run that does not agree ends the benchmark.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench.load import Load, require_h2load, write_body
from tests.bench.servers import ROOT, Aio, AioWindow, BenchError, Digitserve, Empty, Server

from digitserve import client
from digitserve.bundle import Golden, find, read
from digitserve.settings import Settings
from digitserve.v1 import digits_pb2 as pb

SERVERS: tuple[type[Server], ...] = (Digitserve, Aio, AioWindow)
CONFIDENCE_TOLERANCE = 1e-4
"""Two batch sizes may sum in another order."""


@dataclass(frozen=True)
class Run:
    """One server under load once.

    Attributes:
        server: its name.
        streams: requests in flight on each connection.
        rate: requests answered a second.
        batch_size: mean number of images in a batch; 0 where no network runs.
        cpu_share: CPU seconds of all its processes a second.
        cpu_us: CPU microseconds of all its processes a request; what others do on the core hardly moves it.
    """

    server: str
    streams: int
    rate: float
    batch_size: float
    cpu_share: float
    cpu_us: float


def measure(server: Server, load: Load, seconds: float) -> Run:
    """Warm up, load, and check the counts of a server that is ready.

    Raises:
        BenchError: the server counts another number of answers than h2load.
    """
    # A run of its own instead of h2load's --warm-up-time, whose requests the server would count and h2load would not.
    load.run(server.grpc_port, min(1.0, seconds))
    counts, cpu_s, start = server.quiet_counts(), server.cpu_s(), time.monotonic()
    seen = load.run(server.grpc_port, seconds)
    elapsed_s, cpu_s = time.monotonic() - start, server.cpu_s() - cpu_s
    counted = server.quiet_counts().since(counts)
    if counted.failed or not 0 <= counted.ok - seen.requests <= load.in_flight:
        raise BenchError(
            f"{server.name}: h2load saw {seen.requests} answers, the server counted {counted.ok} OK and "
            f"{counted.failed} failed; expected {seen.requests} to {seen.requests + load.in_flight} OK and none failed"
        )
    return Run(
        server.name, load.streams, seen.rate, counted.images / max(1, counted.batches), cpu_s / elapsed_s,
        cpu_s * 1e6 / counted.ok,
    )  # fmt: skip


def ask(server: Server, golden: Golden) -> pb.ClassifyResponse:
    """Classify the golden images, to be compared from server to server."""
    request = pb.ClassifyRequest(pixels=golden.images.tobytes())
    with client.connect(f"127.0.0.1:{server.grpc_port}") as channel:
        return client.classify(channel, request, timeout_s=10)


def check_same(name: str, got: pb.ClassifyResponse, expected: pb.ClassifyResponse) -> None:
    """Check that two servers answer alike.

    Raises:
        BenchError: they do not.
    """
    same = (got.model_name, got.model_version, len(got.predictions)) == (
        expected.model_name, expected.model_version, len(expected.predictions),
    ) and all(
        (one.label, one.verdict) == (other.label, other.verdict)
        and abs(one.confidence - other.confidence) <= CONFIDENCE_TOLERANCE
        for one, other in zip(got.predictions, expected.predictions, strict=False)
    )  # fmt: skip
    if not same:
        raise BenchError(f"{name} gave another answer: {got}, expected {expected}")


def measure_network(models: Path, cores: str, seconds: float) -> float:
    """Return the floor B, taken on the server's cores."""
    command = [
        "taskset", "-c", cores, sys.executable, "-m", "tests.bench.floors", "network",
        "--models", str(models.resolve()), "--seconds", str(seconds),
    ]  # fmt: skip
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


class Comparison:
    """All runs of one invocation."""

    def __init__(self, options: argparse.Namespace, body: Path, golden: Golden) -> None:
        """Prepare; ``body`` is a file with one framed request."""
        self._options = options
        self._golden = golden
        self._loads = [
            Load(options.load_cores, num_cores(options.load_cores), options.connections, streams, body)
            for streams in options.streams
        ]
        self._first_answer: pb.ClassifyResponse | None = None
        self.runs: list[Run] = []
        self.network_rates: list[float] = []

    def run(self) -> None:
        """Take the rounds, interleaved."""
        options = self._options
        kinds: list[type[Server]] = [
            *(kind for kind in SERVERS if kind.name in options.servers),
            *([Empty] if options.floors else []),
        ]
        for number in range(options.rounds):
            for kind in kinds:
                say(f"round {number + 1} of {options.rounds}: {kind.name}")
                with kind(options.models, options.cores) as server:
                    self._check(server)
                    self.runs += [measure(server, load, options.seconds) for load in self._loads]
            if options.floors:
                say(f"round {number + 1} of {options.rounds}: B: network alone")
                self.network_rates.append(measure_network(options.models, options.cores, options.seconds))

    def _check(self, server: Server) -> None:
        if not isinstance(server, Empty):
            answer = ask(server, self._golden)
            self._first_answer = self._first_answer or answer
            check_same(server.name, answer, self._first_answer)

    def rates(self, server: str, streams: int) -> list[float]:
        """Return a server's requests a second, round by round."""
        return [run.rate for run in self.runs if (run.server, run.streams) == (server, streams)]

    def report(self) -> dict[str, Any]:
        """Return everything as a value for JSON."""
        loads = {}
        for load in self._loads:
            medians = {kind.name: median(self.rates(kind.name, load.streams)) for kind in SERVERS
                       if self.rates(kind.name, load.streams)}  # fmt: skip
            ours = medians.get(Digitserve.name)
            entry: dict[str, Any] = {"medians": medians}
            if ours:
                entry["ratios"] = {name: ours / rate for name, rate in medians.items() if name != Digitserve.name}
            if ours and self.network_rates:
                empty, network = median(self.rates(Empty.name, load.streams)), median(self.network_rates)
                entry["floors"] = {"E": empty, "B": network, "share": ours * (1 / empty + 1 / network)}
            loads[str(load.streams)] = entry
        return {
            "settings": {
                **vars(self._options), "models": str(self._options.models),
                "machine": f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}",
            },
            "runs": [asdict(run) for run in self.runs],
            "network_rates": self.network_rates,
            "streams": loads,
        }  # fmt: skip


def table(report: dict[str, Any], runs: list[Run]) -> str:
    """Write the report for people, as Markdown."""
    settings = report["settings"]
    lines = [
        (
            f"Single 28x28 images, {settings['connections']} connections, server on core {settings['cores']}, "
        f"h2load on {settings['load_cores']}, {settings['rounds']} rounds of {settings['seconds']:g} s; "
        f"{settings['machine']}.\n"
        ),
        "| streams | server | requests/s by round | median | digitserve is | images a batch | CPU | CPU us a request |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for streams, entry in report["streams"].items():
        for name in dict.fromkeys(run.server for run in runs):
            own = [run for run in runs if (run.server, str(run.streams)) == (name, streams)]
            ratio = entry.get("ratios", {}).get(name)
            rounds = " ".join(f"{run.rate:.0f}" for run in own)
            lines.append(
                f"| {streams} | {name} | {rounds} | {median(run.rate for run in own):.0f} "
                f"| {f'{ratio:.2f} x' if ratio else ''} | {median(run.batch_size for run in own):.1f} "
                f"| {median(run.cpu_share for run in own):.0%} | {median(run.cpu_us for run in own):.0f} |"
            )
    for streams, entry in report["streams"].items():
        if "floors" in entry:
            floors = entry["floors"]
            lines.append(
                f"\n{streams} streams: E {floors['E']:.0f} empty RPCs/s, B {floors['B']:.0f} images/s, "
                f"digitserve is {floors['share']:.0%} of 1/(1/E + 1/B)"
            )
    return "\n".join(lines)


def num_cores(cores: str) -> int:
    """Count the cores of a list such as ``0,2-3``."""
    spans = [span.partition("-") for span in cores.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in spans)


def say(text: str) -> None:
    """Tell whoever waits how far it is."""
    sys.stderr.write(text + "\n")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    names = [kind.name for kind in SERVERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"), help="directory that holds the bundles")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measured run (default 5)")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved (default 3)")
    parser.add_argument("--connections", type=int, default=64, help="default 64")
    parser.add_argument("--streams", type=int, nargs="+", default=[1], help="in flight a connection (default 1)")
    parser.add_argument("--cores", default="0", help="for the server (default 0)")
    parser.add_argument("--load-cores", default="1-3", help="for h2load (default 1-3)")
    parser.add_argument("--servers", nargs="+", choices=names, default=names, help="default all")
    parser.add_argument("--floors", action="store_true", help="also measure E and B, and the share of 1/(1/E + 1/B)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run as a command; 1 when the benchmark cannot be trusted."""
    options = parse(arguments)
    # So that the servers are ended on the way out.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(143))
    try:
        require_h2load()
        golden = read(find(options.models, Settings().model, None)).golden
        with tempfile.TemporaryDirectory() as folder:
            message = pb.ClassifyRequest(pixels=golden.images[0].tobytes()).SerializeToString()
            comparison = Comparison(options, write_body(message, Path(folder) / "body"), golden)
            comparison.run()
    except BenchError as error:
        say(f"compare: {error}")
        return 1
    report = comparison.report()
    sys.stdout.write((json.dumps(report, indent=2) if options.json else table(report, comparison.runs)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

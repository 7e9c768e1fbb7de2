"""digitserve beside its floors and beside a good ``grpc.aio`` service, on stated cores, under the same load from others.

    python -m benchmarks.compare --models models --seconds 5 --rounds 3 --write docs/benchmarks.md

In every round each server is started, warmed up, loaded and ended, so what else the machine does falls on all of them
alike: ratios within a round count, not figures. Every run is checked against the server's own count of answers; a run that
does not agree ends the benchmark. The load is ``digitserve bench``, checked once against h2load.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from benchmarks import bundles, targets
from benchmarks import load as loads
from benchmarks.load import Load, add_cores, cores_of, require_programs
from benchmarks.servers import ROOT, Aio, AioWindow, BenchError, Digitserve, Empty, EmptyInBulk, Server
from digitserve.client import CHANNEL_OPTIONS, Client
from digitserve.errors import DigitserveError
from digitserve.inference.bundle import Bundle
from digitserve.v1 import digits_pb2 as pb
from digitserve.v1 import digits_pb2_grpc

LOADS = {
    "single": Load("single"),
    "stream": Load("stream", method="stream", in_flight=4),
    "large": Load("large", connections=16, in_flight=2, images=64),
    "framed": Load("framed", side=64),
    "idle": Load("idle", connections=1),
}
SERVERS: dict[type[Server], tuple[str, ...]] = {
    Digitserve: ("single", "stream", "large", "framed", "idle"),
    Aio: ("single",),
    AioWindow: ("single",),
    Empty: ("single", "stream", "framed", "idle"),
    EmptyInBulk: ("single", "stream"),
}
"""Which loads each server gets: the floor answers every message alike, and the peer has one method."""

BESIDE = {
    "beside": Load("beside", connections=2, images=1024),
    "beside framed": Load("beside framed", connections=2, images=1024, side=64),
}
"""Large requests, beside which one client sends single images."""

HEALTH_PAUSE_S = 0.05
CONFIDENCE_TOLERANCE = 1e-4
"""Two batch sizes may sum in another order."""


class Comparison:
    """All rounds of one invocation.

    Attributes:
        rounds: the figures of each, see ``targets.Figures``.
        h2load_ratio: rate that the load saw to that of h2load, in the first round.
    """

    def __init__(self, options: argparse.Namespace, bundle: Bundle) -> None:
        """Prepare."""
        self._options = options
        self._bundle = bundle
        self._expected: pb.ClassifyResponse | None = None
        self.rounds: list[dict[str, float]] = []
        self.h2load_ratio: float | None = None

    def run(self) -> None:
        """Take the rounds."""
        for number in range(1, self._options.rounds + 1):
            self.rounds.append({})
            self._floors(number)
            for kind, names in SERVERS.items():
                if kind.name in self._options.servers:
                    self._serve(number, kind, kind.name, self._options.cores, names)
            for workers in self._options.scale:
                cores = ",".join(map(str, cores_of(self._options.cores + "," + self._options.load_cores)[:workers]))
                self._serve(number, Digitserve, f"digitserve {workers}", cores, ("large",))

    def _floors(self, number: int) -> None:
        for name, arguments in {
            "image_s": ("network", "--batch-size", "64", "--models", str(self._options.models.resolve())),
            "single_s": ("network", "--batch-size", "1", "--models", str(self._options.models.resolve())),
            "framing_s": ("framing", "--side", "64"),
        }.items():
            say(f"round {number}: {name}")
            self.rounds[-1][name] = measure_floor(self._options.cores, self._options.seconds, *arguments)
        self.rounds[-1]["image_s"] /= 64

    def _serve(self, number: int, kind: type[Server], name: str, cores: str, load_names: tuple[str, ...]) -> None:
        started = time.monotonic()
        with kind(self._options.models, cores) as server:
            ready_s = time.monotonic() - started
            self._check_answers(server)
            for load_name in load_names:
                say(f"round {number}: {name}, {load_name}")
                self._measure(server, f"{name}/{load_name}", LOADS[load_name])
            if isinstance(server, Digitserve) and name == Digitserve.name:
                self.rounds[-1] |= {"ready_s": ready_s, "worker_bytes": server.worker_bytes()}
                for load_name, load in BESIDE.items():
                    say(f"round {number}: {name}, {load_name}")
                    self._measure_beside(server, load_name, load)
                if self.h2load_ratio is None:
                    seen = self.rounds[-1]["digitserve/single/rate"]
                    other = loads.run_h2load(
                        LOADS["single"], self._options.load_cores, server.grpc_port, self._options.seconds
                    )
                    self.h2load_ratio = seen / other

    def _measure(self, server: Server, name: str, load: Load) -> None:
        options = self._options
        before, cpu_s = server.num_ok(), server.cpu_s()
        seen = loads.run(load, options.load_cores, server.grpc_port, server.metrics_url(), options.seconds)
        counted, cpu_s = (server.num_ok() - before) / load.images, server.cpu_s() - cpu_s
        # The load's own count begins when its warm-up has ended, the server's when it began.
        if not seen.num_ok <= counted:
            raise BenchError(f"{name}: the load saw {seen.num_ok} answers, the server counted {counted:.0f}")
        if seen.was_the_limit:
            say(f"{name}: the load generator had no CPU to spare; give it more cores with --load-cores")
        self.rounds[-1] |= {
            f"{name}/rate": seen.rate, f"{name}/p50_s": seen.p50_s, f"{name}/p99_s": seen.p99_s,
            f"{name}/cpu_us": cpu_s * 1e6 / counted,
        }  # fmt: skip

    def _measure_beside(self, server: Digitserve, name: str, load: Load) -> None:
        options = self._options
        spent_s, batches = server.batch_s()
        with watching_health(server) as slowest:
            heavy = loads.start(load, options.load_cores, server.grpc_port, server.metrics_url(), options.seconds + 1)
            seen = loads.run(LOADS["idle"], options.load_cores, server.grpc_port, server.metrics_url(), options.seconds)
            loads.finish(heavy, options.seconds + 1)
        after_s, after = server.batch_s()
        self.rounds[-1] |= {f"{name}/p99_s": seen.p99_s, f"{name}/batch_s": (after_s - spent_s) / (after - batches)}
        self.rounds[-1]["health_s"] = max(self.rounds[-1].get("health_s", 0.0), *slowest)

    def _check_answers(self, server: Server) -> None:
        if isinstance(server, Empty):
            return
        request = pb.ClassifyRequest(pixels=self._bundle.golden.images.tobytes())
        # Not by Client: the grpc.aio service has no GetModel.
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}", CHANNEL_OPTIONS) as channel:
            answer = digits_pb2_grpc.DigitServiceStub(channel).Classify(request, timeout=10)
        self._expected = self._expected or answer
        check_same(server.name, answer, self._expected)


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


@contextmanager
def watching_health(server: Server) -> Iterator[list[float]]:
    """Ask for the health all the while; yields the seconds that each answer took.

    Raises:
        BenchError: one was not SERVING, or did not come within a second.
    """
    taken_s, faults, stop = [0.0], [], threading.Event()

    def ask() -> None:
        with Client(f"127.0.0.1:{server.grpc_port}", num_connections=1, timeout_s=1.0) as client:
            while not stop.wait(HEALTH_PAUSE_S):
                started = time.monotonic()
                try:
                    status = client.health("")
                except DigitserveError as error:
                    status = str(error)
                taken_s.append(time.monotonic() - started)
                faults.extend([status] * (status != "SERVING"))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield taken_s
    finally:
        stop.set()
        thread.join()
    if faults:
        raise BenchError(f"{server.name}: health said {faults[0]} under load")


def measure_floor(cores: str, seconds: float, *arguments: str) -> float:
    """Return the seconds that a floor takes, measured on the first of these cores."""
    command = ["taskset", "-c", str(cores_of(cores)[0]), sys.executable, "-m", "benchmarks.floors", *arguments]
    command += ["--seconds", str(min(seconds, 3.0))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


def document(options: argparse.Namespace, comparison: Comparison, bundle: Bundle) -> str:
    """Write everything that was measured, as Markdown."""
    manifest = bundle.manifest
    multiply_adds = float(manifest.training.get("multiply_adds", "inf"))
    promised = targets.targets(multiply_adds, options.scale)
    cpu = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?"
    )
    left_out = "" if options.scale else " More than one worker needs more cores than this machine has (`--scale`)."
    parts = [
        "# Benchmarks",
        "Written by `make bench`; ratios within a round count, figures move with the hour.",
        (f"Model {manifest.name}/{manifest.version}, {multiply_adds:,.0f} multiply-adds. {cpu}, {os.cpu_count()} cores, Linux "
        f"{platform.release()}, Python {platform.python_version()}. Server on core {options.cores}, load on {options.load_cores}; {options.rounds} rounds of "
        f"{options.seconds:g} s a run, 64 connections unless the name says otherwise.{left_out}"),
        "## Targets", targets.table(promised, comparison.rounds),
        "## Figures", targets.rates(comparison.rounds),
    ]  # fmt: skip
    if comparison.h2load_ratio is not None:
        parts.append(
            f"The load saw {comparison.h2load_ratio:.2f} times the requests/s that h2load saw of the same server."
        )
    parts.append(
        "`single`: one 28x28 image a request. `stream`: the same on streams, 4 in flight on each. `large`: 64 images a request, 16 connections with 2 in flight. `framed`: one 64x64 image "
        "a request. `idle`: one client, one request at a time. E is the server `empty` under the same load: the raw completion queue answering without looking. `empty, in bulk` is the same under the scheduling policy that "
        "workers set for themselves, by which it gains more than they do."
    )
    return "\n\n".join(parts) + "\n"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


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
    add_cores(parser)
    parser.add_argument("--servers", nargs="+", choices=names, default=names, help="default all")
    parser.add_argument(
        "--scale", type=int, nargs="*", default=list(range(2, len(os.sched_getaffinity(0)) // 2 + 1)),
        help="numbers of workers to compare with one (default: 2 to half the cores)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the figures of each round as JSON instead")
    parser.add_argument("--write", type=Path, help="also write the document here")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run as a command; 1 when the benchmark cannot be trusted."""
    options = parse(arguments)
    # So that the servers are ended on the way out.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(143))
    try:
        require_programs()
        bundle = bundles.served(options.models)
        comparison = Comparison(options, bundle)
        comparison.run()
    except BenchError as error:
        say(f"compare: {error}")
        return 1
    text = document(options, comparison, bundle)
    if options.write:
        options.write.write_text(text)
    sys.stdout.write(json.dumps(comparison.rounds, indent=2) + "\n" if options.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

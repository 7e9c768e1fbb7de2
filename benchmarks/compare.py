"""Benchmarks of digitserve on given cores, under load from other cores.

    python -m benchmarks.compare --models models --seconds 3 --rounds 3 --write docs/benchmarks.md
    python -m benchmarks.compare --against COMMIT --loads single idle

The first form compares digitserve with lower bounds, with the first release, with good services on ``grpc.aio`` and, if its
environment exists, on mosec (``python -m benchmarks.mosec`` creates it): each with the float32 and the int8 network, see
``matrix``. The second form compares digitserve with another commit (``against``). All servers of a round take turns at each
load, so that other activity of the machine affects all of them: only ratios within a round are reliable. In each run the
server's own counter must agree with the load generator, otherwise the benchmark fails. The load generators are ``replay`` for
single images, which is checked once against h2load, and ``digitserve bench`` for all others. Goodput under overload is measured
by ``overload``.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks import accuracy, bundles, installation, overload, ratios, releases, runs, targets
from benchmarks import load as loads
from benchmarks.against import ROUNDS as AGAINST_ROUNDS
from benchmarks.against import AgainstCommit
from benchmarks.installation import ROOT, BenchError, Installation
from benchmarks.load import LOADS, Load, add_cores, parse_cores, require_programs
from benchmarks.matrix import FLOOR_OF, SERVERS, TRANSPORTS
from benchmarks.peers import FIRST_RELEASE, MOSEC_PYTHON, Empty, FirstRelease, Mosec
from benchmarks.releases import Network
from benchmarks.runs import print_progress
from benchmarks.servers import Digitserve, Native, NativeTls, Server
from digitserve.inference.bundle import Bundle, read_bundle

ROUNDS = 3

BESIDE = {
    "beside": Load(connections=2, images=1024),
    "beside framed": Load(connections=2, images=1024, side=64),
}
"""Loads of large requests, while another client sends single images."""

FLOOR_S = 3.0
"""Longest measurement of a floor."""

HEALTH_INTERVAL_S = 0.05
HEALTH_TIMEOUT_S = 30.0
"""An answer after more than a second misses its target, but it is one: on a busy machine the measurement goes on."""


class Comparison:
    """All rounds of one invocation: digitserve, its floors, its peers and the first release.

    Attributes:
        rounds: the figures of each round, see ``targets.Figures``.
        overloads: goodput under overload, measured once after all rounds.
        h2load_ratio: ratio of the load generator's rate to that of h2load, in the first round.
    """

    def __init__(self, options: argparse.Namespace, bundle: Bundle) -> None:
        """Prepare."""
        self._options = options
        self._bundle = bundle
        self._expected: dict[tuple[str, str], runs.Answer] = {}
        self._networks = bundles.networks(options.models)
        self._kinds = [kind for kind in SERVERS if kind.name in options.servers and self._is_available(kind)]
        self._installed: Installation | None = None
        self.rounds: list[dict[str, float]] = []
        self.overloads: list[overload.Cell] = []
        self.h2load_ratio: float | None = None

    def run(self) -> None:
        """Run all rounds."""
        require_programs("openssl")
        if any(issubclass(kind, FirstRelease) for kind in self._kinds):
            self._installed = installation.install(FIRST_RELEASE, self._options.cache)
            self._installed.verify()
        for number in range(1, self._options.rounds + 1):
            self.rounds.append({})
            self._measure_floors(number)
            self._measure_servers(number)
            for workers in self._options.scale:
                all_cores = parse_cores(self._options.cores + "," + self._options.load_cores)
                cores = ",".join(map(str, all_cores[:workers]))
                with Native(self._options.models, cores) as server:
                    self._measure(number, server, f"{workers} workers", "large")
        if self._options.overload_seconds:
            options = self._options
            self.overloads = overload.measure(
                options.models, options.cores, options.load_cores, options.overload_seconds
            )

    def document(self) -> str:
        """Return the result as Markdown."""
        options, manifest = self._options, self._bundle.manifest
        multiply_adds = float(manifest.training.get("multiply_adds", "inf"))
        left_out = "" if options.scale else " More than one worker needs more cores than this machine has (`--scale`)."
        setup = runs.describe_setup(self._bundle, options.cores, options.load_cores, options.rounds, options.seconds)
        parts = [
            "# Benchmarks",
            "Written by `make bench`. Only ratios within a round are reliable; absolute figures change with the load of the machine.",
            f"{setup} The network has {multiply_adds:,.0f} multiply-adds.{left_out}",
            "## Targets",
            f"{targets.DEFINITIONS} {targets.floors(self.rounds)}",
            targets.table(targets.targets(multiply_adds, options.scale), self.rounds),
            "## First release and this release",
            (
                f"The first release is commit {FIRST_RELEASE[:10]}, version 0.1.0; its networks are in benchmarks/models. Accuracy: "
                "share of right labels, as `python -m benchmarks.accuracy` recorded it; empty if it did not. Core: [handwriting of "
                "other people](models.md#handwriting-of-other-people), framed by this code."
            ),
            releases.networks(self._describe_networks(), self.rounds),
            releases.services(self.rounds),
            *([overload.describe(self.overloads)] if self.overloads else []),
            *self._describe_transports(),
            "## Figures: median of all rounds",
            targets.rates(self.rounds),
        ]
        if self.h2load_ratio is not None:
            parts.append(
                f"The load generator measured {self.h2load_ratio:.2f} times the rate that h2load measured on the same server."
            )
        parts.append(
            f"{loads.DESCRIPTION} The servers `empty` answer without reading the request. grpc.aio, uvloop and a batching thread "
            "have the same networks, checks and answers; `window`: it waits up to 6 ms for larger batches. mosec has them too, "
            "over HTTP/1; it is measured by h2load, with a connection per request in flight, and only if "
            "`python -m benchmarks.mosec` has installed it. `first network`: this code with the networks of the first release."
        )
        return "\n\n".join(parts) + "\n"

    def _measure_floors(self, number: int) -> None:
        figures, paths = self.rounds[-1], list(map(str, self._networks.values()))
        print_progress(f"round {number}: networks and framing alone")
        times_s = self._measure_floor("network", *paths, "--batch-size", "64")
        figures |= {name: batch_s / 64 for name, batch_s in zip(self._networks, times_s, strict=True)}
        (figures["single_s"],) = self._measure_floor("network", str(self._networks["image_s"]), "--batch-size", "1")
        (figures["framing_s"],) = self._measure_floor("framing", "--side", "64")

    def _measure_floor(self, *arguments: str) -> list[float]:
        """Return the seconds of floors, measured on the first core of the servers."""
        core = str(parse_cores(self._options.cores)[0])
        command = ["taskset", "-c", core, sys.executable, "-m", "benchmarks.floors", *arguments]
        command += ["--seconds", str(min(self._options.seconds, FLOOR_S))]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
        seconds: list[float] = json.loads(done.stdout)
        return seconds

    def _measure_servers(self, number: int) -> None:
        """Start all servers, and measure them in turn at each load: in every second round, the last one first."""
        with ExitStack() as running:
            servers = self._start_servers(number, running)
            for load_name in self._options.loads:
                for server in servers if number % 2 else reversed(servers):
                    if load_name in SERVERS[type(server)]:
                        self._measure(number, server, server.name, load_name)
            for server in servers:
                self.rounds[-1][f"{server.name}/memory"] = server.memory_bytes()
                if type(server) is Native:
                    self._measure_others(number, server)

    def _start_servers(self, number: int, running: ExitStack) -> list[Server]:
        servers: dict[type[Server], Server] = {}
        for kind in self._kinds if number % 2 else reversed(self._kinds):
            installed = self._installed if issubclass(kind, FirstRelease) else None
            start_s = time.monotonic()
            server = running.enter_context(kind(self._options.models, self._options.cores, installed))
            self.rounds[-1][f"{kind.name}/ready_s"] = time.monotonic() - start_s
            self._check_answers(server)
            servers[kind] = server
        for floor, kind in FLOOR_OF.items():
            if {floor, kind} <= servers.keys():
                runs.check_same_scheduling(servers[floor], servers[kind])
        return [servers[kind] for kind in self._kinds]

    def _is_available(self, kind: type[Server]) -> bool:
        is_installed = not issubclass(kind, Mosec) or MOSEC_PYTHON.exists()
        return is_installed and (not kind.int8 or "int8_image_s" in self._networks)

    def _describe_networks(self) -> list[Network]:
        recorded = accuracy.read()
        manifests = {figure: read_bundle(folder).manifest for figure, folder in self._networks.items()}
        return [Network(manifest, figure, recorded.get(manifest.sha256)) for figure, manifest in manifests.items()]

    def _measure(self, number: int, server: Server, name: str, load_name: str) -> None:
        print_progress(f"round {number}: {name}, {load_name}")
        measured = runs.measure(server, load_name, self._options.load_cores, self._options.seconds)
        self.rounds[-1] |= {f"{name}/{load_name}/{metric}": value for metric, value in measured.items()}

    def _measure_others(self, number: int, server: Native) -> None:
        options, figures = self._options, self.rounds[-1]
        for load_name, load in BESIDE.items():
            print_progress(f"round {number}: {server.name}, {load_name}")
            self._measure_beside(server, load_name, load)
        if self.h2load_ratio is None and (rate := figures.get(f"{server.name}/single/rate")):
            other = loads.run_h2load(LOADS["single"], options.load_cores, server.grpc_port, options.seconds)
            self.h2load_ratio = rate / other

    def _describe_transports(self) -> list[str]:
        pairs = [pair for pair in TRANSPORTS if set(pair) <= {name.split("/")[0] for name in self.rounds[0]}]
        shared = {
            pair: [name for name in LOADS if all(f"{server}/{name}/rate" in self.rounds[0] for server in pair)]
            for pair in pairs
        }
        return [
            f"## {this}/{that}, per round: median (minimum to maximum)\n\n{ratios.table(self.rounds, names, this, that)}"
            for (this, that), names in shared.items()
        ]

    def _measure_beside(self, server: Digitserve, name: str, load: Load) -> None:
        options, figures = self._options, self.rounds[-1]
        spent_s, batches = server.batch_s()
        with checking_health(server) as answer_times_s:
            heavy = loads.start(load, options.load_cores, server.grpc_port, server.metrics_url(), options.seconds + 1)
            report = loads.run(
                LOADS["idle"], options.load_cores, server.grpc_port, server.metrics_url(), options.seconds
            )
            loads.finish(heavy, options.seconds + 1)
        after_s, after = server.batch_s()
        figures |= {f"{name}/p99_s": report.p99_s, f"{name}/batch_s": (after_s - spent_s) / (after - batches)}
        figures["health_s"] = max(figures.get("health_s", 0.0), *answer_times_s)

    def _check_answers(self, server: Server) -> None:
        # The first release frames images in another way.
        if isinstance(server, Empty | Mosec | NativeTls | FirstRelease):
            return
        answer = runs.classify_golden(server, self._bundle)
        network = answer.model_name, answer.model_version
        runs.check_same_answers(server.name, answer, self._expected.setdefault(network, answer))


@contextmanager
def checking_health(server: Server) -> Iterator[list[float]]:
    """Call the health service repeatedly; yield a list of the seconds that each answer took.

    Raises:
        BenchError: an answer was not SERVING, or there was none in ``HEALTH_TIMEOUT_S``.
    """
    answer_times_s, faults, stop = [0.0], [], threading.Event()

    def check() -> None:
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while not stop.wait(HEALTH_INTERVAL_S):
                start_s = time.monotonic()
                try:
                    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
                    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
                except grpc.RpcError as error:
                    status = str(error)
                answer_times_s.append(time.monotonic() - start_s)
                faults.extend([status] * (status != "SERVING"))

    thread = threading.Thread(target=check)
    thread.start()
    try:
        yield answer_times_s
    finally:
        stop.set()
        thread.join()
    if faults:
        raise BenchError(f"{server.name}: health check under load: got {faults[0]}, expected SERVING")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    names = [kind.name for kind in SERVERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the bundles")
    parser.add_argument("--seconds", type=float, default=3.0, help="per measured run (default 3)")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}; with --against {AGAINST_ROUNDS}")
    add_cores(parser)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS), help="default all")
    parser.add_argument("--against", metavar="COMMIT", help="compare with this commit instead of floors and peer")
    parser.add_argument(
        "--cache", type=Path, default=installation.CACHE, help="folder for environments of commits (default .bench)"
    )
    parser.add_argument("--servers", nargs="+", choices=names, default=names, help="default all")
    parser.add_argument(
        "--scale", type=int, nargs="*", default=list(range(2, len(os.sched_getaffinity(0)) // 2 + 1)),
        help="numbers of workers to compare with one (default: 2 to half the cores)",
    )  # fmt: skip
    parser.add_argument(
        "--overload-seconds", type=float, default=3.0, help="per load of the table of overload; 0 omits it (default 3)"
    )
    parser.add_argument("--json", action="store_true", help="print the figures of each round as JSON instead")
    parser.add_argument("--write", type=Path, help="also write the document to this file")
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = AGAINST_ROUNDS if options.against else ROUNDS
    if options.rounds < 1:
        parser.error("--rounds: expected at least 1")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Run as a command; return 1 when the benchmark cannot run or cannot be trusted."""
    options = parse(arguments)
    # SIGTERM unwinds the stack, so that the servers are stopped.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: sys.exit(143))
    try:
        require_programs("taskset", "h2load")
        bundle = bundles.served(options.models)
        comparison = AgainstCommit(options, bundle) if options.against else Comparison(options, bundle)
        comparison.run()
    except BenchError as error:
        print_progress(f"compare: {error}")
        return 1
    text = comparison.document()
    if options.write:
        options.write.write_text(text)
    sys.stdout.write(json.dumps(comparison.rounds, indent=2) + "\n" if options.json else text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

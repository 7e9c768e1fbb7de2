"""Benchmarks of digitserve on given cores, under load from other cores.

    python -m benchmarks.compare --models models --seconds 5 --rounds 3 --write docs/benchmarks.md
    python -m benchmarks.compare --against COMMIT --loads single idle

The first form compares both transports of digitserve with their floors, with a good ``grpc.aio`` service and, if its
environment exists, with mosec (``python -m benchmarks.mosec`` creates it). The second form compares digitserve with another
commit (``against``). All servers of a round take turns at each load, so that other activity of the machine affects all of
them: only ratios within a round are reliable. In each run the server's own counter must agree with the load generator,
otherwise the benchmark fails. The load generators are ``replay`` for single images, which is checked once against h2load, and
``digitserve bench`` for all others. Goodput under overload is measured by ``overload``.
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

from benchmarks import bundles, installation, overload, ratios, runs, targets
from benchmarks import load as loads
from benchmarks.against import ROUNDS as AGAINST_ROUNDS
from benchmarks.against import AgainstCommit
from benchmarks.installation import ROOT, BenchError
from benchmarks.load import LOADS, Load, add_cores, parse_cores, require_programs
from benchmarks.runs import print_progress
from benchmarks.servers import (
    INT8_MODEL,
    MOSEC_PYTHON,
    Aio,
    AioWindow,
    Digitserve,
    Empty,
    EmptyGrpcio,
    EmptyNative,
    EmptyNativeTls,
    Grpcio,
    GrpcioInt8,
    Mosec,
    Native,
    NativeInt8,
    NativeTls,
    Server,
)  # fmt: skip
from digitserve.inference.bundle import Bundle

ROUNDS = 3

_SINGLE = ("single", "single, grpcio", "single, grpc-go")
_H2LOAD = ("h2load", "h2load, one")

SERVERS: dict[type[Server], tuple[str, ...]] = {
    Native: tuple(LOADS),
    NativeTls: _H2LOAD,
    Grpcio: tuple(name for name in LOADS if name not in _H2LOAD),
    NativeInt8: (*_SINGLE, "stream", "large"),
    GrpcioInt8: (*_SINGLE, "stream", "large"),
    EmptyNative: (*_SINGLE, "single, one", "stream", "framed", "idle", *_H2LOAD),
    EmptyNativeTls: _H2LOAD,
    EmptyGrpcio: (*_SINGLE, "single, one", "stream", "framed", "idle"),
    Aio: ("single",),
    AioWindow: ("single",),
    Mosec: ("single",),
}
"""The loads of each server: the floors give the same answer to every message, and the peers have one method."""

TRANSPORTS = (
    (Native.name, Grpcio.name),
    (NativeInt8.name, GrpcioInt8.name),
    (NativeTls.name, Native.name),
    (EmptyNative.name, EmptyGrpcio.name),
    (EmptyNativeTls.name, EmptyNative.name),
)
"""Pairs of servers whose ratios are reported."""

BESIDE = {
    "beside": Load(connections=2, images=1024),
    "beside framed": Load(connections=2, images=1024, side=64),
}
"""Loads of large requests, while another client sends single images."""

HEALTH_INTERVAL_S = 0.05
HEALTH_TIMEOUT_S = 1.0


class Comparison:
    """All rounds of one invocation: digitserve, its floors and its peer.

    Attributes:
        rounds: the figures of each round, see ``targets.Figures``.
        overloads: goodput under overload, measured once after all rounds.
        h2load_ratio: ratio of the load generator's rate to that of h2load, in the first round.
    """

    def __init__(self, options: argparse.Namespace, bundle: Bundle) -> None:
        """Prepare."""
        self._options = options
        self._bundle = bundle
        self._expected: dict[str, runs.Answer] = {}
        self.rounds: list[dict[str, float]] = []
        self.overloads: list[overload.Cell] = []
        self.h2load_ratio: float | None = None

    def run(self) -> None:
        """Run all rounds."""
        require_programs("openssl")
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
            targets.table(targets.targets(multiply_adds, options.scale), self.rounds),
            *([overload.describe(self.overloads)] if self.overloads else []),
            *self._describe_transports(),
            "## Figures: median of all rounds",
            targets.rates(self.rounds),
            targets.floors(self.rounds),
        ]
        if self.h2load_ratio is not None:
            parts.append(
                f"The load generator measured {self.h2load_ratio:.2f} times the rate that h2load measured on the same server."
            )
        parts.append(
            f"{loads.DESCRIPTION} The servers `empty` answer without reading the request. E is the rate of `empty native` under "
            "the same load. mosec serves the same network, checks and answers over HTTP/1; it is measured by h2load, on 256 "
            "connections, and only if `python -m benchmarks.mosec` has installed it."
        )
        return "\n\n".join(parts) + "\n"

    def _measure_floors(self, number: int) -> None:
        models = str(self._options.models.resolve())
        for name, arguments in {
            "image_s": ("network", "--batch-size", "64", "--models", models),
            "single_s": ("network", "--batch-size", "1", "--models", models),
            "framing_s": ("framing", "--side", "64"),
        }.items():
            print_progress(f"round {number}: {name}")
            self.rounds[-1][name] = measure_floor(self._options.cores, self._options.seconds, *arguments)
        self.rounds[-1]["image_s"] /= 64

    def _measure_servers(self, number: int) -> None:
        """Start all servers, and measure them in turn at each load: in every second round, the last one first."""
        options = self._options
        with ExitStack() as running:
            servers = []
            for kind in SERVERS:
                if kind.name in options.servers and self._is_available(kind):
                    start_s = time.monotonic()
                    servers.append(running.enter_context(kind(options.models, options.cores)))
                    self.rounds[-1][f"{kind.name}/ready_s"] = time.monotonic() - start_s
                    self._check_answers(servers[-1])
            for load_name in options.loads:
                for server in servers if number % 2 else reversed(servers):
                    if load_name in SERVERS[type(server)]:
                        self._measure(number, server, server.name, load_name)
            for server in servers:
                if type(server) is Native:
                    self._measure_others(number, server)

    def _is_available(self, kind: type[Server]) -> bool:
        if kind is Mosec:
            return MOSEC_PYTHON.exists()
        int8 = kind in {NativeInt8, GrpcioInt8}
        return not int8 or (self._bundle.manifest.name != INT8_MODEL and (self._options.models / INT8_MODEL).exists())

    def _measure(self, number: int, server: Server, name: str, load_name: str) -> None:
        print_progress(f"round {number}: {name}, {load_name}")
        measured = runs.measure(server, load_name, self._options.load_cores, self._options.seconds)
        self.rounds[-1] |= {f"{name}/{load_name}/{metric}": value for metric, value in measured.items()}

    def _measure_others(self, number: int, server: Native) -> None:
        options, figures = self._options, self.rounds[-1]
        figures["worker_bytes"] = server.worker_bytes()
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
        if isinstance(server, Empty | Mosec | NativeTls):
            return
        answer = runs.classify_golden(server, self._bundle)
        runs.check_same_answers(server.name, answer, self._expected.setdefault(answer.model_name, answer))


@contextmanager
def checking_health(server: Server) -> Iterator[list[float]]:
    """Call the health service repeatedly; yield a list of the seconds that each answer took.

    Raises:
        BenchError: an answer was not SERVING, or took more than a second.
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


def measure_floor(cores: str, seconds: float, *arguments: str) -> float:
    """Return the seconds that a floor takes, measured on the first of these cores."""
    command = ["taskset", "-c", str(parse_cores(cores)[0]), sys.executable, "-m", "benchmarks.floors", *arguments]
    command += ["--seconds", str(min(seconds, 3.0))]
    return float(subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    names = [kind.name for kind in SERVERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the bundles")
    parser.add_argument("--seconds", type=float, default=5.0, help="per measured run (default 5)")
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

"""The load: ``digitserve bench`` on cores of its own, and once h2load, to check the one against the other."""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.servers import ROOT, BenchError
from digitserve.bench.plan import Plan, Size
from digitserve.bench.traffic import bodies
from digitserve.protocol.names import CLASSIFY

DEBIAN_PACKAGE = "nghttp2-client"
WARM_UP_S = 1.0


@dataclass(frozen=True)
class Load:
    """What is sent to a server.

    Attributes:
        name: for tables.
        method: ``unary`` or ``stream``.
        connections: open at once.
        in_flight: requests under way on each.
        images: a request.
        side: height and width of each image, in pixels.
    """

    name: str
    method: str = "unary"
    connections: int = 64
    in_flight: int = 1
    images: int = 1
    side: int = 28

    def command(self, cores: str, port: int, metrics: str, seconds: float) -> list[str]:
        """Return the command that loads a server on a port of 127.0.0.1."""
        processes = min(len(cores_of(cores)), self.connections)
        return [
            "taskset", "-c", cores, str(Path(sys.executable).parent / "digitserve"), "bench",
            "--address", f"127.0.0.1:{port}", "--metrics", metrics, "--processes", str(processes),
            "--connections", str(self.connections), "--in-flight", str(self.in_flight), "--images", str(self.images),
            "--sizes", f"{self.side}x{self.side}", "--method", self.method,
            "--duration-s", str(seconds), "--warm-up-s", str(WARM_UP_S), "--json",
        ]  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What the load saw of a run.

    Attributes:
        rate: requests answered with OK a second.
        p50_s: median latency.
        p99_s: of 99 % of the requests.
        num_ok: requests answered with OK, warm-up included.
        was_the_limit: whether the load generator had no CPU to spare.
    """

    rate: float
    p50_s: float
    p99_s: float
    num_ok: int
    was_the_limit: bool


def run(load: Load, cores: str, port: int, metrics: str, seconds: float) -> Seen:
    """Load a server.

    Raises:
        BenchError: something else than OK came back, or nothing.
    """
    return finish(start(load, cores, port, metrics, seconds), seconds)


def start(load: Load, cores: str, port: int, metrics: str, seconds: float) -> "subprocess.Popen[str]":
    """Begin to load a server."""
    command = load.command(cores, port, metrics, seconds)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def finish(process: "subprocess.Popen[str]", seconds: float) -> Seen:
    """Wait for the end of a load; see ``run``."""
    out, errors = process.communicate(timeout=seconds + 60)
    if process.returncode:
        raise BenchError(f"the load ended with {process.returncode}: {errors}{out}")
    return _read(json.loads(out))


def _read(report: dict[str, Any]) -> Seen:
    if set(report["codes"]) != {"OK"} or report["wrong"] or report["failed_connections"] or report["unanswered"]:
        raise BenchError(f"the load saw failures: {report['codes']}, {report['messages']}, {report['wrong']} wrong")
    latency = report["latency_s"]
    return Seen(
        report["requests_per_s"], latency["p50"], latency["p99"], report["codes"]["OK"],
        report["load_generator"]["was_the_limit"],
    )  # fmt: skip


def run_h2load(load: Load, cores: str, port: int, seconds: float) -> float:
    """Send the same with h2load, and return its requests a second. It counts HTTP answers and knows no grpc-status.

    Raises:
        BenchError: a connection or a request failed on the level of HTTP.
    """
    plan = Plan("", images=load.images, sizes=(Size(load.side, load.side),), method=load.method)
    with tempfile.NamedTemporaryFile() as body:
        body.write(next(bodies(plan, 0)).framed)
        body.flush()
        command = [
            "taskset", "-c", cores, "h2load", f"-c{load.connections}", f"-m{load.in_flight}",
            f"-t{min(len(cores_of(cores)), load.connections)}", f"-D{seconds * 1e3:.0f}ms", f"--warm-up-time={WARM_UP_S * 1e3:.0f}ms",
            "-d", body.name, "-H", "content-type: application/grpc", "-H", "te: trailers",
            f"http://127.0.0.1:{port}{CLASSIFY.path}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 30)
    rate = re.search(r"^finished in .*?, ([\d.]+) req/s", done.stdout, re.MULTILINE)
    if done.returncode or rate is None or not re.search(r"\b0 failed, 0 errored, 0 timeout", done.stdout):
        raise BenchError(f"h2load saw failures, or nothing:\n{done.stdout}{done.stderr}")
    return float(rate[1])


def cores_of(cores: str) -> list[int]:
    """Read a list of cores such as ``0,2-3``."""
    spans = [span.partition("-") for span in cores.split(",")]
    return [core for first, _, last in spans for core in range(int(first), int(last or first) + 1)]


def add_cores(parser: argparse.ArgumentParser) -> None:
    """Add the flags that say which cores the server and the load have."""
    first, *others = sorted(os.sched_getaffinity(0))
    spare = ",".join(map(str, others or [first]))
    parser.add_argument("--cores", default=str(first), help="for the server (default: the first)")
    parser.add_argument("--load-cores", default=spare, help="for the load (default: all others)")


def require_programs() -> None:
    """Check that the programs are there.

    Raises:
        BenchError: says what to install.
    """
    if shutil.which("h2load") is None:
        raise BenchError(f"h2load is not installed; Debian has it in the package {DEBIAN_PACKAGE}")
    if shutil.which("taskset") is None:
        raise BenchError("taskset is not installed; Debian has it in the package util-linux")

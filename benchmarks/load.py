"""Load for a server: ``digitserve bench`` on separate cores, and h2load to check it."""

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

from benchmarks.installation import ROOT, BenchError
from digitserve.bench import wire
from digitserve.bench.plan import Plan, Size
from digitserve.bench.traffic import requests
from digitserve.protocol.names import CLASSIFY

DEBIAN_PACKAGES = {"h2load": "nghttp2-client", "openssl": "openssl", "taskset": "util-linux"}
WARM_UP_S = 1.0
"""Longest load before the measurement; a shorter measurement, as in tests, has a warm-up of its own length."""

H2LOAD_STOP_S = 30.0
"""Longest wait for the end of h2load: on a busy machine it may wait for connections that it never opened."""


@dataclass(frozen=True)
class Load:
    """A load for a server.

    Attributes:
        method: ``unary`` or ``stream``.
        connections: number of open connections.
        in_flight: concurrent requests per connection.
        images: images per request.
        side: height and width of each image in pixels.
        style: kind of client whose header blocks ``replay`` sends; None for ``digitserve bench``, which checks answers.
        by_h2load: whether h2load sends it instead, over TLS if the server demands it.
    """

    method: str = "unary"
    connections: int = 64
    in_flight: int = 1
    images: int = 1
    side: int = 28
    style: str | None = None
    by_h2load: bool = False

    def command(self, cores: str, port: int, metrics: str, seconds: float) -> list[str]:
        """Return the command that loads a server on a port of 127.0.0.1."""
        if self.style is not None:
            return [
                "taskset", "-c", cores, sys.executable, "-m", "benchmarks.replay", "--port", str(port),
                "--style", self.style, "--method", self.method, "--connections", str(self.connections),
                "--in-flight", str(self.in_flight), "--seconds", str(seconds),
            ]  # fmt: skip
        processes = min(len(parse_cores(cores)), self.connections)
        return [
            "taskset", "-c", cores, str(Path(sys.executable).parent / "digitserve"), "bench",
            "--address", f"127.0.0.1:{port}", "--metrics", metrics, "--processes", str(processes),
            "--connections", str(self.connections), "--in-flight", str(self.in_flight), "--images", str(self.images),
            "--sizes", f"{self.side}x{self.side}", "--method", self.method,
            "--duration-s", str(seconds), "--warm-up-s", str(warm_up_s(seconds)), "--json",
        ]  # fmt: skip


LOADS = {
    "single": Load(in_flight=4, style="plain"),
    "single, grpcio": Load(in_flight=4, style="grpcio"),
    "single, grpc-go": Load(in_flight=4, style="grpc-go"),
    "single, one": Load(style="plain"),
    "stream": Load(method="stream", in_flight=4, style="plain"),
    "large": Load(connections=16, in_flight=2, images=64),
    "framed": Load(side=64),
    "idle": Load(connections=1),
    "h2load": Load(in_flight=4, by_h2load=True),
    "h2load, one": Load(by_h2load=True),
}

DESCRIPTION = (
    "`single`: one 28x28 image per request, unary, 4 requests in flight, all with the same headers. `single, grpcio`: the "
    "same with a new deadline and a new metadata field in each call, encoded as gRPC core does. `single, grpc-go`: with a "
    "new deadline and two new metadata fields, Huffman-coded as grpc-go does. `single, one`: one request in flight. "
    "`stream`: single images on streams, 4 requests in flight on each. "
    "`large`: 64 images per request, 16 connections with 2 requests in flight. `framed`: one 64x64 image per request. "
    "`idle`: one client with one request at a time. `h2load`: as `single`, sent by h2load; `h2load, one`: with one request "
    "in flight. All others: 64 connections."
)


@dataclass(frozen=True)
class LoadReport:
    """What the load generator measured.

    Attributes:
        rate: requests/s answered with OK.
        p50_s: median latency.
        p99_s: 99th percentile of the latency.
        num_sent: requests sent, warm-up included; all were answered with OK.
        was_the_limit: whether the load generator had no CPU time to spare.
    """

    rate: float
    p50_s: float
    p99_s: float
    num_sent: int
    was_the_limit: bool


def run(load: Load, cores: str, port: int, metrics: str, seconds: float) -> LoadReport:
    """Load a server and wait for the report.

    Raises:
        BenchError: a request was not answered with OK, or there were no requests.
    """
    return finish(start(load, cores, port, metrics, seconds), seconds)


def start(load: Load, cores: str, port: int, metrics: str, seconds: float) -> "subprocess.Popen[str]":
    """Start to load a server."""
    command = load.command(cores, port, metrics, seconds)
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def finish(process: "subprocess.Popen[str]", seconds: float) -> LoadReport:
    """Wait for the report of a load; see ``run``."""
    out, errors = process.communicate(timeout=seconds + 60)
    if process.returncode:
        raise BenchError(f"the load generator ended with exit code {process.returncode}: {errors}{out}")
    return _read(json.loads(out))


def _read(report: dict[str, Any]) -> LoadReport:
    # ``replay`` fails instead of reporting failures.
    if "codes" in report and (
        set(report["codes"]) != {"OK"} or report["wrong"] or report["failed_connections"] or report["unanswered"]
    ):
        raise BenchError(
            f"the load generator reported failures: codes {report['codes']}, messages {report['messages']}, "
            f"{report['wrong']} wrong answers, {report['failed_connections']} failed connections, "
            f"{report['unanswered']} unanswered"
        )
    latency = report["latency_s"]
    return LoadReport(
        report["requests_per_s"], latency["p50"], latency["p99"], report["sent"],
        report["load_generator"]["was_the_limit"],
    )  # fmt: skip


def run_h2load(
    load: Load, cores: str, port: int, seconds: float, *, http1: bool = False, scheme: str = "http"
) -> float:
    """Send the same requests with h2load, and return its requests/s. It does not check grpc-status.

    Over HTTP/1.1 the bodies are the messages without the prefix of gRPC, and each request in flight has its own connection.

    Raises:
        BenchError: a connection or a request failed in HTTP.
    """
    plan = Plan("", images=load.images, sizes=(Size(load.side, load.side),), method=load.method)
    with tempfile.NamedTemporaryFile() as body:
        body.write(next(requests(plan, 0)).body[wire.PREFIX_BYTES if http1 else 0 :])
        body.flush()
        connections, in_flight = load.connections, load.in_flight
        if http1:
            connections, in_flight = connections * in_flight, 1
        command = [
            "taskset", "-c", cores, "h2load", *["--h1"] * http1, f"-c{connections}", f"-m{in_flight}",
            f"-t{min(len(parse_cores(cores)), load.connections)}", f"-D{seconds * 1e3:.0f}ms",
            f"--warm-up-time={warm_up_s(seconds) * 1e3:.0f}ms",
            "-d", body.name, "-H", "content-type: application/grpc", "-H", "te: trailers",
            f"{scheme}://127.0.0.1:{port}{'/inference' if http1 else CLASSIFY.path}",
        ]  # fmt: skip
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + H2LOAD_STOP_S)
        except subprocess.TimeoutExpired:
            raise BenchError(f"h2load did not end {H2LOAD_STOP_S:.0f} s after its time; is the machine busy?") from None
    rate = re.search(r"^finished in .*?, ([\d.]+) req/s", done.stdout, re.MULTILINE)
    if done.returncode or rate is None or not re.search(r"\b0 failed, 0 errored, 0 timeout", done.stdout):
        raise BenchError(f"h2load reported failures or no answers:\n{done.stdout}{done.stderr}")
    return float(rate[1])


def warm_up_s(seconds: float) -> float:
    """Return the seconds of load before a measurement of this length."""
    return min(WARM_UP_S, seconds)


def parse_cores(cores: str) -> list[int]:
    """Parse a list of cores such as ``0,2-3``."""
    spans = [span.partition("-") for span in cores.split(",")]
    return [core for first, _, last in spans for core in range(int(first), int(last or first) + 1)]


def add_cores(parser: argparse.ArgumentParser) -> None:
    """Add the flags for the cores of the server and of the load generator."""
    first, *others = sorted(os.sched_getaffinity(0))
    spare = ",".join(map(str, others or [first]))
    parser.add_argument("--cores", default=str(first), help="cores of the server (default: the first)")
    parser.add_argument("--load-cores", default=spare, help="cores of the load generator (default: all others)")


def require_programs(*names: str) -> None:
    """Check that programs are installed.

    Raises:
        BenchError: one is not; the message names the Debian package that has it.
    """
    for name in names:
        if shutil.which(name) is None:
            raise BenchError(f"{name} is not installed; on Debian, install the package {DEBIAN_PACKAGES[name]}")

"""The load: h2load on cores of its own, single images as gRPC requests, and what it says of a run."""

import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.bench.servers import BenchError

from digitserve.rpc import CLASSIFY

DEBIAN_PACKAGE = "nghttp2-client"


@dataclass(frozen=True)
class Load:
    """How to load a server.

    Attributes:
        cores: for h2load, as ``taskset -c`` takes them.
        threads: of h2load.
        connections: open at once.
        streams: requests in flight on each.
        body: file with one request, framed for gRPC.
    """

    cores: str
    threads: int
    connections: int
    streams: int
    body: Path

    @property
    def in_flight(self) -> int:
        """Requests that are under way at any time, and at the end of a run."""
        return self.connections * self.streams

    def run(self, port: int, seconds: float) -> "Seen":
        """Load the server on a port of 127.0.0.1.

        Raises:
            BenchError: a connection or a request failed on the level of HTTP.
        """
        command = [
            "taskset", "-c", self.cores,
            "h2load", f"-c{self.connections}", f"-m{self.streams}", f"-t{self.threads}", f"-D{seconds * 1e3:.0f}ms", "-d", str(self.body), "-H", "content-type: application/grpc", "-H", "te: trailers",
            f"http://127.0.0.1:{port}{CLASSIFY}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=seconds + 30)
        if done.returncode:
            raise BenchError(f"h2load ended with {done.returncode}: {done.stderr}")
        return read_report(done.stdout)


@dataclass(frozen=True)
class Seen:
    """What h2load counted: HTTP, which knows no grpc-status.

    Attributes:
        requests: answered with HTTP 200.
        rate: the same a second.
    """

    requests: int
    rate: float


def read_report(text: str) -> Seen:
    """Read h2load's report.

    Raises:
        BenchError: something failed, or nothing was answered.
    """
    rate = re.search(r"^finished in .*?, ([\d.]+) req/s", text, re.MULTILINE)
    counts = {kind: int(count) for count, kind in re.findall(r"(\d+) (failed|errored|timeout|2xx)", text)}
    if rate is None or not counts.get("2xx") or any(counts[kind] for kind in ("failed", "errored", "timeout")):
        raise BenchError(f"h2load saw failures, or nothing:\n{text}")
    return Seen(counts["2xx"], float(rate[1]))


def write_body(message: bytes, path: Path) -> Path:
    """Write a message as gRPC frames it: one byte for 'not compressed', its length in four, big endian."""
    path.write_bytes(struct.pack(">BI", 0, len(message)) + message)
    return path


def require_h2load() -> None:
    """Check that the programs are there.

    Raises:
        BenchError: says what to install.
    """
    if shutil.which("h2load") is None:
        raise BenchError(f"h2load is not installed; Debian has it in the package {DEBIAN_PACKAGE}")
    if shutil.which("taskset") is None:
        raise BenchError("taskset is not installed; Debian has it in the package util-linux")

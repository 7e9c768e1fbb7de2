"""Latency of probes, metrics and drawings on the HTTP port, under the load of open pages and of gRPC clients.

    python -m benchmarks.http_rate --models models

A simulated page does what an open page does: on one connection it sends drawings, ``--rate`` per second, half of the pages as PNG
files and half as raw pixels; on another one it reads /metrics and /readyz, every ``POLL_S`` each. Pages start at random times. Probes of /livez,
/readyz and /metrics use a new connection each, as those of platforms do. gRPC clients are ``digitserve bench``: a closed loop on 64
connections. Clients and load share the machine with the service, so on few cores the latency includes the time in which a client
waits for a CPU; the row "timer of the client" says how late a timer of the client fires.
"""

import argparse
import asyncio
import contextlib
import io
import itertools
import json
import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PROBES = ("/livez", "/readyz", "/metrics")
PROBE_S = 0.1
"""Interval of the probes of each path; Kubernetes probes every 10 s, Prometheus every 15 s or more."""

POLL_S = 2.0
"""Interval at which a page reads /metrics and /readyz."""

DRAWING_SIDE = 280
"""Side of the canvas of a page in pixels."""

CLASSIFY = "/v1/classify"
FILE = f"{CLASSIFY}?top_k=10&explain=true"
RAW = f"{FILE}&width={DRAWING_SIDE}&height={DRAWING_SIDE}&ink=dark_on_light"
NUM_DRAWINGS = 10
"""Of each page; it sends them in turn."""

TIMER, TIMER_S = "timer of the client", 0.01

WARM_UP_S = 4.0
"""Time in which pages and gRPC clients connect, and decoders start, before anything is measured."""

MAX_P99_S = 0.05
"""Target for probes and metrics, including those that the pages read."""

FAILED = 0
"""In place of a status: the connection was closed."""


@dataclass
class Samples:
    """Latencies in seconds, and statuses that are not 200, by row of the table."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, row: str, seconds: float, status: int = HTTPStatus.OK) -> None:
        """Add an answer."""
        self.latencies[row].append(seconds)
        if status != HTTPStatus.OK:
            self.failures[row][status] += 1

    def p99_s(self, row: str) -> float:
        """Return the 99th percentile of a row."""
        return float(np.percentile(self.latencies[row], 99))


class Connection:
    """A connection to the HTTP port, opened with the next request if it is closed."""

    def __init__(self, address: tuple[str, int], samples: Samples) -> None:
        self._address = address
        self._samples = samples
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, row: str, method: str, path: str, body: bytes = b"") -> None:
        """Send a request, read the answer, and add it to a row."""
        started, status = time.perf_counter(), FAILED
        try:
            status = await self._answered(
                f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n", body
            )
        except (ConnectionError, asyncio.IncompleteReadError):
            self.close()
        self._samples.add(row, time.perf_counter() - started, status)

    async def _answered(self, head: str, body: bytes) -> int:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(head.encode() + body)
        answer = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        return int(answer[9:12])

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def drawing(seed: int, *, is_file: bool) -> bytes:
    """Return a stroke with a few corners, dark on light: a PNG file, or raw pixels."""
    chooser = random.Random(seed)
    image = Image.new("L", (DRAWING_SIDE, DRAWING_SIDE), 255)
    points = [(chooser.randint(60, 220), chooser.randint(60, 220)) for _ in range(5)]
    ImageDraw.Draw(image).line(points, fill=0, width=20, joint="curve")
    if not is_file:
        return image.tobytes()
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


async def periodically(act: Callable[[], Awaitable[None]], interval_s: float, ends: float) -> None:
    """Act until a time, first at a random one: again after the interval, or when the last action has ended if that takes longer."""
    due = time.perf_counter() + random.random() * interval_s
    while due < ends:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        await act()
        due = max(due + interval_s, time.perf_counter())


async def page(address: tuple[str, int], seed: int, rate: float, ends: float, samples: Samples) -> None:
    """Simulate an open page until a time."""
    is_file = seed % 2 == 0
    drawings = itertools.cycle(drawing(NUM_DRAWINGS * seed + number, is_file=is_file) for number in range(NUM_DRAWINGS))
    draws, polls = Connection(address, samples), Connection(address, samples)

    async def draw() -> None:
        await draws.request(
            "drawing, PNG" if is_file else "drawing, raw", "POST", FILE if is_file else RAW, next(drawings)
        )

    async def poll() -> None:
        for path in ("/metrics", "/readyz"):
            await polls.request(f"{path}, page", "GET", path)

    await asyncio.gather(periodically(draw, 1 / rate, ends), periodically(poll, POLL_S, ends))
    draws.close()
    polls.close()


async def probe(address: tuple[str, int], path: str, ends: float, samples: Samples) -> None:
    """Probe a path until a time, on a new connection each."""

    async def once() -> None:
        connection = Connection(address, samples)
        await connection.request(f"{path}, probe", "GET", path)
        connection.close()

    await periodically(once, PROBE_S, ends)


async def time_timer(ends: float, samples: Samples) -> None:
    """Measure until a time how late a timer of this process fires."""
    while (started := time.perf_counter()) < ends:
        await asyncio.sleep(TIMER_S)
        samples.add(TIMER, time.perf_counter() - started - TIMER_S)


async def measure(address: tuple[str, int], num_pages: int, rate: float, seconds: float) -> Samples:
    """Draw, poll and probe for some seconds."""
    samples, ends = Samples(), time.perf_counter() + seconds
    work: list[Awaitable[None]] = [page(address, seed, rate, ends, samples) for seed in range(num_pages)]
    work += [probe(address, path, ends, samples) for path in PROBES]
    await asyncio.gather(*work, time_timer(ends, samples))
    return samples


def rows(load: str, samples: Samples, seconds: float) -> list[str]:
    """Return the rows of a table."""
    lines = []
    for row, latencies in sorted(samples.latencies.items()):
        times_ms = [*np.percentile(1e3 * np.asarray(latencies), [50, 99, 99.9]), 1e3 * max(latencies)]
        counted = sorted(samples.failures[row].items())
        failures = ", ".join(f"{count} x {status or 'closed'}" for status, count in counted) or "0"
        lines.append(
            table_row(load, row, f"{len(latencies) / seconds:.0f}", *(f"{one:.1f}" for one in times_ms), failures)
        )
    return lines


def table_row(*cells: str) -> str:
    """Return a row of a table."""
    return f"| {' | '.join(cells)} |"


class GrpcLoad:
    """``digitserve bench`` beside a measurement: it starts before and ends after."""

    def __init__(self, grpc: str, http: tuple[str, int], seconds: float) -> None:
        command = [sys.executable, "-m", "digitserve", "bench", "--json", "--address", grpc]
        command += ["--duration-s", str(seconds), "--metrics", f"http://{http[0]}:{http[1]}/metrics"]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def row(self, load: str) -> str:
        """Wait for the end, and return the row of the table."""
        report = json.loads(self._process.communicate()[0])
        latencies = report["latency_s"]
        times_ms = [f"{1e3 * latencies[name]:.1f}" for name in ("p50", "p99", "p99.9", "max")]
        failures = sum(report["codes"].values()) - report["codes"].get("OK", 0) + report["unanswered"]
        return table_row(load, "gRPC Classify", f"{report['requests_per_s']:.0f}", *times_ms, str(failures))


@contextlib.contextmanager
def run_service(models: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    """Run the service; yield the address of its gRPC port, and that of its HTTP port."""
    command = [
        sys.executable,
        "-m",
        "digitserve",
        "serve",
        "--models",
        str(models),
        "--grpc-port",
        "0",
        "--http-port",
        "0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as service:
        try:
            banner = ""
            for line in service.stdout or ():
                banner += line
                if line.strip().startswith("try"):
                    break
            grpc, http = re.search(r"gRPC +(\S+)", banner), re.search(r"HTTP +http://([^:]+):(\d+)", banner)
            if grpc is None or http is None:
                sys.exit(f"the service did not start: {banner}")
            yield grpc[1], (http[1], int(http[2]))
        finally:
            service.terminate()


def main() -> None:
    """Run as a command; exit code 1 if a probe failed, or if the 99th percentile of a path exceeds ``MAX_P99_S``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the models")
    parser.add_argument("--pages", type=int, default=50, help="simulated pages (default: 50)")
    parser.add_argument("--rate", type=float, default=2.0, help="drawings per second of each page (default: 2)")
    parser.add_argument("--seconds", type=float, default=60.0, help="time of each measurement (default: 60)")
    options = parser.parse_args()
    met = True
    with run_service(options.models) as (grpc, http):
        print(table_row("load", "what", "per s", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "failures"))
        print(f"|{'---|' * 8}")
        for load in ("pages", "pages and gRPC"):
            clients = GrpcLoad(grpc, http, options.seconds + 2 * WARM_UP_S) if load != "pages" else None
            asyncio.run(measure(http, options.pages, options.rate, WARM_UP_S))
            samples = asyncio.run(measure(http, options.pages, options.rate, options.seconds))
            print(
                "\n".join([*rows(load, samples, options.seconds), *([clients.row(load)] if clients else [])]),
                flush=True,
            )
            probed = [row for row in samples.latencies if row.startswith(PROBES)]
            met = met and all(samples.p99_s(row) <= MAX_P99_S and not samples.failures[row] for row in probed)
    sys.exit(not met)


if __name__ == "__main__":
    main()

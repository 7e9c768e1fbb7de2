"""Latency of probes, metrics and drawings on the HTTP port, while pages draw and gRPC clients use all of the service.

    python -m benchmarks.http_rate --models models

Simulated pages send drawings as PNG files on connections that stay open, each ``--rate`` per second at a time of its own. Probes of
/livez, /readyz and /metrics use a new connection each, as those of platforms do. The table has a row for each, without and with the
load of ``digitserve bench``. Clients and load share the machine with the service, so on few cores the latency includes their CPU time.
"""

import argparse
import asyncio
import io
import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

PROBES = ("/livez", "/readyz", "/metrics")
PROBE_S = 0.1
"""Interval of the probes of each path; Kubernetes probes every 10 s, Prometheus every 15 s or more."""

DRAWING_SIDE = 280
"""Side of the canvas of a page in pixels."""

DRAWING = "/v1/classify?top_k=10&explain=true"
MAX_P99_S = 0.05
"""Promised for probes and metrics."""

READY_S = 60.0


@dataclass
class Samples:
    """Latencies in seconds, and answers by status, of each path."""

    latencies: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def add(self, path: str, seconds: float, status: int) -> None:
        """Add an answer."""
        self.latencies[path].append(seconds)
        self.statuses[path][status] += 1


class Connection:
    """A connection to the HTTP port."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: bytes = b"") -> int:
        """Send a request, read the answer, and return its status."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(f"{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        await reader.readexactly(int(length[1]) if length else 0)
        return int(head[9:12])

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


def drawing(seed: int) -> bytes:
    """Return a PNG file of a stroke with a few corners, dark on light."""
    chooser = random.Random(seed)
    image = Image.new("L", (DRAWING_SIDE, DRAWING_SIDE), 255)
    points = [(chooser.randint(60, 220), chooser.randint(60, 220)) for _ in range(5)]
    ImageDraw.Draw(image).line(points, fill=0, width=20, joint="curve")
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


async def draw(address: tuple[str, int], seed: int, rate: float, ends: float, samples: Samples) -> None:
    """Send drawings until a time; the next one at its time, or when the last one is answered."""
    connection, files = Connection(*address), [drawing(10 * seed + number) for number in range(10)]
    due = time.perf_counter() + random.random() / rate
    while due < ends:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        started = time.perf_counter()
        try:
            status = await connection.request("POST", DRAWING, files[len(samples.latencies[DRAWING]) % len(files)])
        except (ConnectionError, asyncio.IncompleteReadError):
            connection.close()
            status = 0
        samples.add(DRAWING, time.perf_counter() - started, status)
        due = max(due + 1 / rate, time.perf_counter())
    connection.close()


async def probe(address: tuple[str, int], path: str, ends: float, samples: Samples) -> None:
    """Probe a path until a time, on a new connection each."""
    while (started := time.perf_counter()) < ends:
        connection = Connection(*address)
        try:
            status = await connection.request("GET", path)
        except (ConnectionError, asyncio.IncompleteReadError):
            status = 0
        finally:
            connection.close()
        samples.add(path, time.perf_counter() - started, status)
        await asyncio.sleep(max(0.0, started + PROBE_S - time.perf_counter()))


async def measure(address: tuple[str, int], num_pages: int, rate: float, seconds: float) -> Samples:
    """Draw and probe for some seconds."""
    samples, ends = Samples(), time.perf_counter() + seconds
    work: list[Awaitable[None]] = [draw(address, seed, rate, ends, samples) for seed in range(num_pages)]
    await asyncio.gather(*work, *(probe(address, path, ends, samples) for path in PROBES))
    return samples


def rows(name: str, samples: Samples) -> list[str]:
    """Return the rows of a table."""
    lines = []
    for path in (*PROBES, DRAWING):
        latencies = 1e3 * np.asarray(samples.latencies[path])
        p50, p99 = np.percentile(latencies, [50, 99])
        statuses = ", ".join(
            f"{count} x {status or 'closed'}" for status, count in sorted(samples.statuses[path].items())
        )
        lines.append(
            f"| {path.partition('?')[0]} | {name} | {p50:.1f} | {p99:.1f} | {latencies.max():.1f} | {statuses} |"
        )
    return lines


def with_service(models: Path, use: Callable[[str, tuple[str, int]], None]) -> None:
    """Run the service, and call ``use`` with the addresses of its ports."""
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
            use(grpc[1], (http[1], int(http[2])))
        finally:
            service.terminate()


def main() -> None:
    """Run as a command; exit code 1 if the 99th percentile of a probe exceeds ``MAX_P99_S``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the models")
    parser.add_argument("--pages", type=int, default=50, help="simulated pages (default: 50)")
    parser.add_argument("--rate", type=float, default=2.0, help="drawings per second of each page (default: 2)")
    parser.add_argument("--seconds", type=float, default=20.0, help="time of each measurement (default: 20)")
    options = parser.parse_args()
    worst_s = 0.0

    def use(grpc: str, http: tuple[str, int]) -> None:
        nonlocal worst_s
        print("| path | load | p50 ms | p99 ms | max ms | answers |\n|---|---|---|---|---|---|")
        asyncio.run(measure(http, options.pages, options.rate, 2.0))  # starts the decoder
        for name in ("pages", "pages and gRPC"):
            load = None
            if name != "pages":
                bench = [
                    sys.executable,
                    "-m",
                    "digitserve",
                    "bench",
                    "--address",
                    grpc,
                    "--duration-s",
                    str(options.seconds + 6),
                ]
                bench += ["--metrics", f"http://{http[0]}:{http[1]}/metrics"]
                load = subprocess.Popen(bench, stdout=subprocess.DEVNULL)
                time.sleep(4.0)
            samples = asyncio.run(measure(http, options.pages, options.rate, options.seconds))
            if load is not None:
                load.wait()
            print("\n".join(rows(name, samples)))
            worst_s = max(worst_s, *(float(np.percentile(samples.latencies[path], 99)) for path in PROBES))

    with_service(options.models, use)
    sys.exit(worst_s > MAX_P99_S)


if __name__ == "__main__":
    main()

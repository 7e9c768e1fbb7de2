"""Memory, descriptors, threads and counters of one worker over a million requests, many of them cut off or invalid.

    python -m benchmarks.soak --requests 1000000

Two loads run together: ``digitserve bench`` with mixed sizes, some framed, and ``faulty_clients``, whose requests are cancelled,
expired, malformed, too large or cut off by a disconnect. After a tenth of the requests the loads pause, because some memory is
allocated only once, and ``worker_probe`` reports what the worker has allocated; after all requests it does so again. Both times
the worker is idle, so the difference is a leak. After the loads have stopped, descriptors, threads and counters must be as
before. Resident memory grows by some per cent in a million requests, by fragmentation; its limit is wider.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from benchmarks.installation import BenchError, Installation
from benchmarks.load import add_cores
from benchmarks.servers import Digitserve, Grpcio, Native, WorkerState

SIZES = "28x28:8,64x64:1,100x60:1"
POLL_S = 2.0
WARM_UP_FRACTION = 0.1
MAX_GROWTH = 0.05
"""Of resident memory. 3 million requests: 94 MB after 0.2 million, 98 after 1 million, 99 from 1.2 million to the end."""

MAX_NEW_BLOCKS, MAX_NEW_BYTES = 3_000, 300_000
"""Most allocations that remain of nine tenths of the requests: one object per 300 of a million, or a byte per 3. Runs with
1,000,000, 200,000 and 60,000 requests had 57, 372 and 300 blocks, and 0, 62 and 88 KB."""

PROBE = Path(__file__).parent / "worker_probe"
SETTLED_S = 30.0
"""Longest wait for the worker to be idle after the loads have stopped."""

TRANSPORTS: dict[str, type[Digitserve]] = {"native": Native, "grpcio": Grpcio}


class Allocated(NamedTuple):
    """What a worker has allocated.

    Attributes:
        num_blocks: of Python's allocator, one for each object of up to 512 bytes.
        num_bytes: of the C library, for all else.
    """

    num_blocks: int
    num_bytes: int


@dataclass
class Findings:
    """The observations of a run.

    Attributes:
        started: requests that the worker has started.
        by_code: how they ended.
        warm: the worker after the first tenth of the requests.
        loaded: at the end of the load.
        idle: before the load.
        settled: after it.
        allocated: after the first tenth of the requests, and at the end; the worker is idle.
    """

    started: int
    by_code: dict[str, int]
    warm: WorkerState
    loaded: WorkerState
    idle: WorkerState
    settled: WorkerState
    allocated: tuple[Allocated, Allocated]

    def remaining(self) -> Allocated:
        """Return what was allocated after the first tenth of the requests and is not free at the end."""
        (first_blocks, first_bytes), (last_blocks, last_bytes) = self.allocated
        return Allocated(last_blocks - first_blocks, last_bytes - first_bytes)

    def faults(self) -> list[str]:
        """Return a description of each violated condition."""
        faults = []
        growth = self.loaded.memory_bytes / self.warm.memory_bytes - 1
        if growth > MAX_GROWTH:
            faults.append(f"memory grew by {growth:.1%}, at most {MAX_GROWTH:.0%} is expected")
        num_blocks, num_bytes = self.remaining()
        if num_blocks > MAX_NEW_BLOCKS:
            faults.append(f"{num_blocks} allocations remain, at most {MAX_NEW_BLOCKS} are expected")
        if num_bytes > MAX_NEW_BYTES:
            faults.append(f"{num_bytes} allocated bytes remain, at most {MAX_NEW_BYTES} are expected")
        for what in ("num_descriptors", "num_threads"):
            before, after = getattr(self.idle, what), getattr(self.settled, what)
            if after != before:
                faults.append(f"{what}: {before} before the load and {after} after it")
        handled = sum(self.by_code.values())
        if handled != self.started:
            faults.append(f"{self.started} requests were started and {handled} counted as handled")
        return faults


@contextlib.contextmanager
def running(*commands: list[str]) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Run load generators until the end of the ``with`` block."""
    with contextlib.ExitStack() as stack:
        processes = []
        for command in commands:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.enter_context(process)
            stack.callback(process.terminate)
            processes.append(process)
        yield processes


def soak(server: Digitserve, probe: Path, load_cores: str, num_requests: int) -> Findings:
    """Load a server until it has started this many requests, and observe its worker.

    Args:
        server: with ``worker_probe``.
        probe: folder of the probe.
        load_cores: for the load generators.
        num_requests: requests to start.

    Raises:
        BenchError: a load generator ended, or the worker was replaced.
    """
    idle = server.worker_state()
    _load(server, load_cores, int(WARM_UP_FRACTION * num_requests))
    _settle(server, idle)
    warm, first = server.worker_state(), ask(probe)
    loaded = _load(server, load_cores, num_requests)
    _settle(server, idle)
    if server.total("digitserve_worker_restarts_total"):
        raise BenchError("the worker was replaced")
    return Findings(
        server.total("grpc_server_started_total"), server.totals("grpc_server_handled_total", "grpc_code"),
        warm, loaded, idle, server.worker_state(), (first, ask(probe)),
    )  # fmt: skip


def _load(server: Digitserve, load_cores: str, num_requests: int) -> WorkerState:
    """Run both loads until the server has started this many requests; return the state of its worker then."""
    pinned = ["taskset", "-c", load_cores]
    steady = [
        *pinned, str(Path(sys.executable).parent / "digitserve"), "bench", "--address", f"127.0.0.1:{server.grpc_port}",
        "--metrics", server.metrics_url(), "--sizes", SIZES, "--images", "2", "--processes", "1", "--duration-s", "86400",
    ]  # fmt: skip
    faulty = [*pinned, sys.executable, "-m", "benchmarks.faulty_clients", "--port", str(server.grpc_port)]
    with running(steady, faulty) as processes:
        while (started := server.total("grpc_server_started_total")) < num_requests:
            if any(process.poll() is not None for process in processes):
                raise BenchError(f"a load generator ended after {started} requests")
            memory_bytes = server.worker_state().memory_bytes
            sys.stderr.write(f"\r{started:,} of {num_requests:,} requests, {memory_bytes / 1e6:.1f} MB ")
            time.sleep(POLL_S)
        loaded = server.worker_state()
    sys.stderr.write("\n")
    return loaded


def _settle(server: Digitserve, idle: WorkerState) -> None:
    """Wait until the worker has closed all connections."""
    ends = time.monotonic() + SETTLED_S
    while server.worker_state().num_descriptors != idle.num_descriptors and time.monotonic() < ends:
        time.sleep(POLL_S)
    time.sleep(POLL_S)  # for requests that have just ended


def ask(probe: Path) -> Allocated:
    """Return what the worker has allocated."""
    (probe / "ask").write_text("")
    answer = probe / "answer"
    ends = time.monotonic() + SETTLED_S
    while not answer.exists():
        if time.monotonic() > ends:
            raise BenchError("the worker does not report what it has allocated")
        time.sleep(0.01)
    allocated = Allocated(*json.loads(answer.read_text()))
    answer.unlink()
    return allocated


def main() -> int:
    """Run as a command; return 1 if a condition is violated."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the bundles")
    parser.add_argument("--requests", type=int, default=1_000_000, help="number of requests (default 1000000)")
    parser.add_argument("--transport", choices=TRANSPORTS, default="native", help="of the service (default native)")
    add_cores(parser)
    options = parser.parse_args()
    with TemporaryDirectory() as folder:
        probe = Path(folder)
        os.mkfifo(probe / "ask")
        python_path = os.pathsep.join(filter(None, (str(PROBE), os.environ.get("PYTHONPATH"))))
        probed = Installation(environment={**os.environ, "PYTHONPATH": python_path, "DIGITSERVE_PROBE": folder})
        with TRANSPORTS[options.transport](options.models, options.cores, probed) as server:
            findings = soak(server, probe, options.load_cores, options.requests)
    codes = ", ".join(f"{code} {count:,}" for code, count in sorted(findings.by_code.items()) if count)
    sys.stdout.write(f"{findings.started:,} requests: {codes}\n")
    for what in ("idle", "warm", "loaded", "settled"):
        state: WorkerState = getattr(findings, what)
        sys.stdout.write(
            f"{what:8} {state.memory_bytes / 1e6:6.1f} MB, {state.num_descriptors} descriptors, {state.num_threads} threads\n"
        )
    num_blocks, num_bytes = findings.remaining()
    sys.stdout.write(
        f"remaining after the first tenth of the requests: {num_blocks} blocks, {num_bytes / 1e3:.0f} KB\n"
    )
    faults = findings.faults()
    sys.stdout.write("".join(f"{fault}\n" for fault in faults) or "all as it must be\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

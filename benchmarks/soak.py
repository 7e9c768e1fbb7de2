"""Memory, descriptors, threads and counters of one worker over a million requests, many of them cut off or invalid.

    python -m benchmarks.soak --requests 1000000

Two loads run together: ``digitserve bench`` with mixed sizes, some framed, and ``faulty_clients``, whose requests are cancelled,
expired, malformed, too large or cut off by a disconnect. The growth of memory is measured after the first tenth of the requests,
because some memory is allocated only once. After the loads have stopped, descriptors, threads and counters must be as before.
"""

import argparse
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.installation import BenchError
from benchmarks.load import add_cores
from benchmarks.servers import Digitserve, Grpcio, Native, WorkerState

SIZES = "28x28:8,64x64:1,100x60:1"
POLL_S = 2.0
WARM_UP_FRACTION = 0.1
MAX_GROWTH = 0.05
SETTLED_S = 30.0
"""Longest wait for the worker to be idle after the loads have stopped."""

TRANSPORTS: dict[str, type[Digitserve]] = {"native": Native, "grpcio": Grpcio}


@dataclass
class Findings:
    """The observations of a run.

    Attributes:
        started: requests that the worker has started.
        by_code: how they ended.
        warm: the worker after the first tenth of the requests, under load.
        loaded: at the end of the load.
        idle: before the load.
        settled: after it.
    """

    started: int
    by_code: dict[str, int]
    warm: WorkerState
    loaded: WorkerState
    idle: WorkerState
    settled: WorkerState

    def faults(self) -> list[str]:
        """Return a description of each violated condition."""
        faults = []
        growth = self.loaded.memory_bytes / self.warm.memory_bytes - 1
        if growth > MAX_GROWTH:
            faults.append(f"memory grew by {growth:.1%}, at most {MAX_GROWTH:.0%} is expected")
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


def soak(server: Digitserve, load_cores: str, num_requests: int) -> Findings:
    """Load a server until it has started this many requests, and observe its worker.

    Raises:
        BenchError: a load generator ended, or the worker was replaced.
    """
    pinned = ["taskset", "-c", load_cores]
    steady = [
        *pinned, str(Path(sys.executable).parent / "digitserve"), "bench", "--address", f"127.0.0.1:{server.grpc_port}",
        "--metrics", server.metrics_url(), "--sizes", SIZES, "--images", "2", "--processes", "1", "--duration-s", "86400",
    ]  # fmt: skip
    faulty = [*pinned, sys.executable, "-m", "benchmarks.faulty_clients", "--port", str(server.grpc_port)]
    idle, warm = server.worker_state(), None
    with running(steady, faulty) as processes:
        while (started := server.total("grpc_server_started_total")) < num_requests:
            if any(process.poll() is not None for process in processes):
                raise BenchError(f"a load generator ended after {started} requests")
            if warm is None and started >= WARM_UP_FRACTION * num_requests:
                warm = server.worker_state()
            sys.stderr.write(
                f"\r{started:,} of {num_requests:,} requests, {server.worker_state().memory_bytes / 1e6:.1f} MB "
            )
            time.sleep(POLL_S)
        loaded = server.worker_state()
    sys.stderr.write("\n")
    ends = time.monotonic() + SETTLED_S
    while server.worker_state().num_descriptors != idle.num_descriptors and time.monotonic() < ends:
        time.sleep(POLL_S)
    if server.total("digitserve_worker_restarts_total"):
        raise BenchError("the worker was replaced")
    return Findings(
        server.total("grpc_server_started_total"), server.totals("grpc_server_handled_total", "grpc_code"),
        warm or loaded, loaded, idle, server.worker_state(),
    )  # fmt: skip


def main() -> int:
    """Run as a command; return 1 if a condition is violated."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the bundles")
    parser.add_argument("--requests", type=int, default=1_000_000, help="number of requests (default 1000000)")
    parser.add_argument("--transport", choices=TRANSPORTS, default="native", help="of the service (default native)")
    add_cores(parser)
    options = parser.parse_args()
    with TRANSPORTS[options.transport](options.models, options.cores) as server:
        findings = soak(server, options.load_cores, options.requests)
    codes = ", ".join(f"{code} {count:,}" for code, count in sorted(findings.by_code.items()) if count)
    sys.stdout.write(f"{findings.started:,} requests: {codes}\n")
    for what in ("idle", "warm", "loaded", "settled"):
        state: WorkerState = getattr(findings, what)
        sys.stdout.write(
            f"{what:8} {state.memory_bytes / 1e6:6.1f} MB, {state.num_descriptors} descriptors, {state.num_threads} threads\n"
        )
    faults = findings.faults()
    sys.stdout.write("".join(f"{fault}\n" for fault in faults) or "all as it must be\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

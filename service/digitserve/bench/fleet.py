"""Runs a plan: starts the processes, gives them one start, adds up what they count, reads the service's metrics.

Called by ``command``; one asyncio loop on the main thread. Processes are started by exec.
"""

import asyncio
import json
import math
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from digitserve.bench import metrics_page
from digitserve.bench.counts import Counts
from digitserve.bench.load import Unreachable
from digitserve.bench.metrics_page import NotAvailable, Service
from digitserve.bench.plan import Plan
from digitserve.errors import DigitserveError

LEAD_S = 0.05
"""From saying when to start until the start: time for the line to reach every process."""

PATIENCE_S = 30.0
"""For a process to start and to end, beside the time that it was given to connect and to measure."""

_LINE_BYTES = 1 << 22


class LoadFailed(DigitserveError):
    """A process of the load generator ended by itself, its error on standard error, or says nothing any more."""


@dataclass
class Measured:
    """What a run has given.

    Attributes:
        plan: that was run.
        counts: added up over processes.
        measured_s: how long requests were measured; less than planned when it was stopped.
        busy: for each process, the share of a CPU that it used in that time.
        cpu_s: CPU seconds of all processes in that time.
        service: the service's own counters over that time, or why there are none.
        stopped: somebody stopped the run before its end.
    """

    plan: Plan
    counts: Counts = field(default_factory=Counts)
    measured_s: float = 0.0
    busy: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    service: Service | NotAvailable = field(default_factory=lambda: NotAvailable("not read"))
    stopped: bool = False


class Fleet:
    """The processes of one run. Lives as long as the run."""

    def __init__(self, plan: Plan, metrics_url: str, progress: Callable[[Measured, float], None]) -> None:
        """Prepare a run.

        Args:
            plan: what to run.
            metrics_url: the service's /metrics page.
            progress: told what was measured so far and the seconds left, whenever there is news.
        """
        self._plan = plan
        self._metrics_url = metrics_url
        self._progress = progress
        self._measured = Measured(plan)
        self._processes: list[asyncio.subprocess.Process] = []
        self._begins_s = self._ends_s = math.inf
        self._stop = asyncio.Event()

    async def run(self) -> Measured:
        """Run the plan.

        Raises:
            Unreachable: a process could not connect.
            LoadFailed: a process ended by itself, or hangs.
        """
        try:
            self._processes = await asyncio.gather(*(self._start(index) for index in range(self._plan.processes)))
            async with _within(self._plan.timeout_s + PATIENCE_S):
                await asyncio.gather(*(self._connected(process) for process in self._processes))
            await self._measure()
        finally:
            for process in self._processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        return self._measured

    def stop(self) -> None:
        """End the measuring now, and report what was measured."""
        self._stop.set()

    async def _start(self, index: int) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "digitserve.bench.process", str(index),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=_LINE_BYTES,
        )  # fmt: skip

    async def _connected(self, process: asyncio.subprocess.Process) -> None:
        await _tell(process, self._plan.to_json())
        message = await _hear(process)
        if message["event"] == "unreachable":
            raise Unreachable(message["message"])

    async def _measure(self) -> None:
        starts_s = time.monotonic() + LEAD_S
        self._begins_s = starts_s + self._plan.warm_up_s
        self._ends_s = self._begins_s + self._plan.duration_s
        for process in self._processes:
            await _tell(process, repr(starts_s))
        stopper = asyncio.create_task(self._stop_when_told())
        reader = asyncio.create_task(self._read_service())
        limit_s = self._ends_s - time.monotonic() + 2 * self._plan.timeout_s + PATIENCE_S
        try:
            async with _within(limit_s):
                await asyncio.gather(*(self._follow(process) for process in self._processes))
            self._measured.service = await reader
        finally:
            stopper.cancel()
            reader.cancel()

    async def _follow(self, process: asyncio.subprocess.Process) -> None:
        while (message := await _hear(process))["event"] != "done":
            self._measured.counts.add(Counts.from_json(message["counts"]))
            self._measured.measured_s = min(max(0.0, time.monotonic() - self._begins_s), self._plan.duration_s)
            self._progress(self._measured, self._ends_s - time.monotonic())
        self._measured.measured_s = measured_s = message["measured_s"]
        self._measured.busy.append(message["cpu_s"] / measured_s if measured_s else 0.0)
        self._measured.cpu_s += message["cpu_s"]
        await process.wait()

    async def _stop_when_told(self) -> None:
        await self._stop.wait()
        self._measured.stopped = True
        for process in self._processes:
            if process.returncode is None:
                await _tell(process, "stop")

    async def _read_service(self) -> Service | NotAvailable:
        try:
            await self._until(self._begins_s)
            before = await asyncio.to_thread(metrics_page.read, self._metrics_url)
            await self._until(self._ends_s)
            after = await asyncio.to_thread(metrics_page.read, self._metrics_url)
            return after.since(before)
        except NotAvailable as error:
            return error

    async def _until(self, time_s: float) -> None:
        """Wait for a time, or until the run is stopped."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), max(0.0, time_s - time.monotonic()))


@asynccontextmanager
async def _within(limit_s: float) -> AsyncIterator[None]:
    """Bound the wait for processes.

    Raises:
        LoadFailed: the time is over.
    """
    try:
        async with asyncio.timeout(limit_s):
            yield
    except TimeoutError:
        raise LoadFailed(f"a process of the load generator hangs: it was not done within {limit_s:.0f} s") from None


async def _tell(process: asyncio.subprocess.Process, line: str) -> None:
    assert process.stdin is not None, "started with a pipe"
    # Where it has ended, that is seen by whoever listens to it.
    with suppress(ConnectionError):
        process.stdin.write(line.encode() + b"\n")
        await process.stdin.drain()


async def _hear(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None, "started with a pipe"
    line = await process.stdout.readline()
    if not line:
        raise LoadFailed(f"a process of the load generator ended with {await process.wait()}")
    message: dict[str, Any] = json.loads(line)
    return message

"""Runs a plan: starts the processes, gives them a common start time, adds up their counts, reads the service's metrics.

Called by ``command``, in one asyncio event loop on the main thread.
"""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from digitserve.bench import metrics_page
from digitserve.bench.counts import Counts
from digitserve.bench.load import HandshakeFailed, Unreachable
from digitserve.bench.metrics_page import ServiceCounters
from digitserve.bench.plan import Plan
from digitserve.child_process import AsyncChild, ChannelClosed
from digitserve.errors import CredentialsError, DigitserveError
from digitserve.scrape import NotAvailable

LEAD_S = 0.05
"""From sending the start time until the start: enough for the message to reach every process."""

PATIENCE_S = 30.0
"""Longest wait for a message of a process; while it starts and connects, in addition to the plan's timeout."""


class LoadFailed(DigitserveError):
    """A load generator process exited unexpectedly (its error is on standard error), or it hangs."""


@dataclass
class Measurement:
    """The result of a run.

    Attributes:
        plan: the plan that was run.
        counts: the sum over all processes.
        measured_s: length of the measured time; shorter than planned when the run was stopped.
        busy: for each process, the fraction of a CPU that it used in the measured time.
        cpu_s: CPU seconds of all processes in the measured time.
        service: the service's own counters over the measured time, or why they are not available.
        stopped: whether the run was stopped before its end.
    """

    plan: Plan
    counts: Counts = field(default_factory=Counts)
    measured_s: float = 0.0
    busy: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    service: ServiceCounters | NotAvailable = field(default_factory=lambda: NotAvailable("not read"))
    stopped: bool = False


class Coordinator:
    """Owns the load generator processes of one run, and lives as long as the run."""

    def __init__(
        self,
        plan: Plan,
        metrics_url: str,
        on_progress: Callable[[Measurement, float], None],
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Prepare a run.

        Args:
            plan: the plan to run.
            metrics_url: the service's /metrics page.
            on_progress: called after each report of a process with the measurement so far and the remaining seconds.
            patience_s: see ``PATIENCE_S``.
        """
        self._plan = plan
        self._metrics_url = metrics_url
        self._on_progress = on_progress
        self._patience_s = patience_s
        self._measurement = Measurement(plan)
        self._children: list[AsyncChild] = []
        self._start_s = self._end_s = math.inf
        self._stop = asyncio.Event()

    async def run(self) -> Measurement:
        """Run the plan.

        Raises:
            Unreachable: a process could not connect; HandshakeFailed: because of TLS.
            CredentialsError: a process could not use a file of the credentials.
            LoadFailed: a process exited unexpectedly, or hangs.
        """
        try:
            await asyncio.gather(*(self._start_child(index) for index in range(self._plan.processes)))
            if await self._connect():
                await self._measure()
        finally:
            for child in self._children:
                child.kill()
                await child.wait()
                child.close()
        return self._measurement

    def stop(self) -> None:
        """End the measured time now and report what was measured."""
        self._stop.set()

    async def _start_child(self, index: int) -> None:
        child = await AsyncChild.start("digitserve.bench.process")
        self._children.append(child)
        await child.send({"index": index, "plan": self._plan.to_json()})

    async def _connect(self) -> bool:
        """Wait until all processes are connected; return false if the run is stopped before."""
        connected = asyncio.gather(*(self._wait_until_connected(child) for child in self._children))
        stopper = asyncio.create_task(self._stop.wait())
        stopper.add_done_callback(lambda _: connected.cancel())
        try:
            await connected
        except asyncio.CancelledError:
            if not self._stop.is_set():
                raise
            self._measurement.stopped = True
            return False
        finally:
            stopper.cancel()
        return True

    async def _wait_until_connected(self, child: AsyncChild) -> None:
        message = await self._receive(child, self._plan.timeout_s + self._patience_s)
        if message["event"] == "unreachable":
            raise Unreachable(message["message"])
        if message["event"] == "denied":
            raise HandshakeFailed(message["message"])
        if message["event"] == "unusable":
            raise CredentialsError(message["argument"], message["reason"])

    async def _measure(self) -> None:
        start_s = time.monotonic() + LEAD_S
        self._start_s = start_s + self._plan.warm_up_s
        self._end_s = self._start_s + self._plan.duration_s
        for child in self._children:
            await child.send(start_s)
        for child in self._children:
            # Its "running": from now on it may be stopped.
            await self._receive(child, self._patience_s)
        stopper = asyncio.create_task(self._send_stop())
        reader = asyncio.create_task(self._read_service())
        try:
            await asyncio.gather(*(self._follow(child) for child in self._children))
            self._measurement.service = await reader
        finally:
            stopper.cancel()
            reader.cancel()

    async def _follow(self, child: AsyncChild) -> None:
        """Add up the reports of a process, which sends several per second until it is done."""
        measurement = self._measurement
        while (message := await self._receive(child, self._patience_s))["event"] != "done":
            measurement.counts.add(Counts.from_json(message["counts"]))
            measurement.measured_s = min(max(0.0, time.monotonic() - self._start_s), self._plan.duration_s)
            self._on_progress(measurement, self._end_s - time.monotonic())
        measurement.measured_s = measured_s = message["measured_s"]
        measurement.busy.append(message["cpu_s"] / measured_s if measured_s else 0.0)
        measurement.cpu_s += message["cpu_s"]

    async def _send_stop(self) -> None:
        await self._stop.wait()
        self._measurement.stopped = True
        for child in self._children:
            await child.send("stop")

    async def _read_service(self) -> ServiceCounters | NotAvailable:
        try:
            await self._wait_until(self._start_s)
            before = await asyncio.to_thread(metrics_page.read, self._metrics_url, self._plan.credentials)
            await self._wait_until(self._end_s)
            after = await asyncio.to_thread(metrics_page.read, self._metrics_url, self._plan.credentials)
            return after.since(before)
        except NotAvailable as error:
            return error

    async def _wait_until(self, time_s: float) -> None:
        """Wait for a time, or until the run is stopped."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), max(0.0, time_s - time.monotonic()))

    async def _receive(self, child: AsyncChild, timeout_s: float) -> dict[str, Any]:
        """Wait for a message of a process.

        Raises:
            LoadFailed: the process has ended, or nothing came in time.
        """
        try:
            async with asyncio.timeout(timeout_s):
                message: dict[str, Any] = await child.receive()
        except TimeoutError:
            raise LoadFailed(f"a load generator process hangs: it sent no message for {timeout_s:g} s") from None
        except ChannelClosed:
            raise LoadFailed(
                f"a load generator process ended with exit code {await child.wait()}; its error is above"
            ) from None
        return message

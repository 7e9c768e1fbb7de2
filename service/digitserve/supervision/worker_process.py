"""One worker process, from its start to its end.

    WorkerSlot ──run, drain, kill──▶ WorkerProcess ──AsyncChild──▶ worker process
         ▲                                │
         └───────── WorkerEvents ─────────┘

Used by ``slots``, on the supervisor's event loop.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from digitserve.access import LastValid
from digitserve.child_process import AsyncChild, ChannelClosed
from digitserve.inference.sealed_bundle import SealedBundle
from digitserve.log import get_logger
from digitserve.passed_sockets import Passing, Secret
from digitserve.settings import Settings
from digitserve.supervision.restart_policy import START_LIMIT_S, HeartbeatMonitor
from digitserve.supervision.worker_output import WorkerOutput
from digitserve.telemetry.block import Block
from digitserve.telemetry.collector import ServiceCollector

WORKER_MODULE = "digitserve.worker"

HEARTBEAT_CHECK_S = 0.1
"""Seconds between two checks of a worker's heartbeat."""

# Set before the worker imports anything.
_WORKER_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "GRPC_VERBOSITY": "ERROR",
}

LAME_DUCK = "lame duck"
"""Message to a worker before ``DRAIN``."""

DRAIN, HAND_OVER = "drain", "hand over"
"""Last messages to a worker, see ``digitserve.worker``. Without one, the end of the channel means that the supervisor has died."""

_log = get_logger("digitserve.supervision.worker_process")


@dataclass(frozen=True)
class WorkerPlan:
    """What all workers of a slot have in common.

    Attributes:
        number: of the slot, for log lines.
        settings: resolved; sent to each worker.
        num_threads: onnxruntime threads of each worker.
        listener: listening socket that each worker inherits and that the slot does not close. None if workers bind the port.
        shadow: second version that each worker compares with, or None.
        collector: makes the shared memory for a worker's metrics and keeps its counts after the worker's end.
        last_valid: returns certificate and tokens for a worker that starts while their files are not valid.
        connector: connects the HTTP API to the workers of the slot; None without it.
    """

    number: int
    settings: Settings
    num_threads: int
    listener: socket.socket | None
    shadow: SealedBundle | None
    collector: ServiceCollector
    last_valid: Callable[[], LastValid] = LastValid
    connector: Passing | Secret | None = None


class WorkerEvents(Protocol):
    """Receiver of the events of a worker, on the supervisor's event loop."""

    def worker_started(self, worker: "WorkerProcess") -> None:
        """The process runs, and has been sent all that it needs to become ready."""

    def worker_ready(self, worker: "WorkerProcess") -> None:
        """The worker accepts requests."""

    def worker_draining(self, worker: "WorkerProcess") -> None:
        """The worker stops to accept connections, by itself or because of a message."""

    def worker_unanswered(self, worker: "WorkerProcess", num_requests: int) -> None:
        """The worker drained, and did not answer this number of requests within the grace period."""


class WorkerProcess:
    """A worker process of a slot, which creates it.

    Attributes:
        task: starts the process, monitors it until it ends, and returns its exit code; or it fails with OSError or MemoryError if
            the system has no process, descriptor or memory left, or with another exception if the worker was killed because it
            sent an invalid message.
        bundle: that it serves.
        pid: process id; 0 before the process runs.
        provider: its onnxruntime execution provider; empty before it is ready.
        refusal: why it did not start, or was killed; None if unknown.
        draining: whether it stops, by itself or because of a message.
        killed: whether ``kill`` was called.
        served_s: seconds for which it was ready, once it has ended.
    """

    def __init__(self, plan: WorkerPlan, bundle: SealedBundle, events: WorkerEvents) -> None:
        """Start."""
        self.bundle = bundle
        self.pid = 0
        self.provider = ""
        self.refusal: str | None = None
        self.draining = False
        self.killed = False
        self.served_s = 0.0
        self._plan = plan
        self._events = events
        self._child: AsyncChild | None = None
        self._last_message: str | None = None
        self._ready = asyncio.Event()
        self._ready_since = 0.0
        self.task = asyncio.create_task(self._run())

    @property
    def was_ready(self) -> bool:
        """Whether it has accepted requests."""
        return self._ready.is_set()

    @property
    def is_ready(self) -> bool:
        """Whether it accepts requests."""
        return self._ready.is_set() and not self.draining and not self.task.done()

    async def wait_until_ready(self) -> None:
        """Wait until the worker accepts requests, or has ended."""
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait([ready, self.task], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()

    def lame_duck(self) -> None:
        """Start the lame duck time, which lasts at least until ``drain``. A worker that is not ready ends."""
        if self.is_ready and self._child is not None:
            self._child.send_soon(LAME_DUCK)
        else:
            self.drain(DRAIN)

    def drain(self, message: str) -> None:
        """Ask the worker to end: DRAIN or HAND_OVER. Only the first call has an effect."""
        self._last_message = self._last_message or message
        if self._child is not None:
            self._child.send_last(self._last_message)

    def kill(self) -> None:
        """End the worker immediately."""
        self.killed = True
        if self._child is not None:
            self._child.kill()

    async def _run(self) -> int:
        plan = self._plan
        block = plan.collector.new_block(self.bundle.manifest.labels)
        try:
            start: dict[str, Any] = {
                "settings": plan.settings.to_dict(),
                "bundle_fd": self.bundle.fd,
                "block_fd": block.fd,
                "num_threads": plan.num_threads,
                "last_valid": plan.last_valid().to_dict(),
            }
            if plan.listener is not None:
                start["listener_fd"] = plan.listener.fileno()
            if plan.shadow is not None:
                start["shadow_fd"] = plan.shadow.fd
            if isinstance(plan.connector, Passing):
                start["inside_fd"] = plan.connector.listener.fileno()
            elif plan.connector is not None:
                start["inside_token"] = plan.connector.token
            fds = [value for name, value in start.items() if name.endswith("_fd")]
            with WorkerOutput(plan.number) as output:
                start |= {"log_fd": output.log_fd, "number": plan.number}
                child = await AsyncChild.start(
                    WORKER_MODULE, environment=_WORKER_ENVIRONMENT, pass_fds=[*fds, output.log_fd], output=output.fd
                )
                output.started()
                async with child:
                    self._child, self.pid = child, child.pid
                    await child.send(start)
                    self._events.worker_started(self)
                    return await self._supervise(child, block)
        finally:
            self._child = None
            self.served_s = time.monotonic() - self._ready_since if self.was_ready else 0.0
            plan.collector.retire(block)

    async def _supervise(self, child: AsyncChild, block: Block) -> int:
        """Handle the worker's messages, monitor it, and return its exit code."""
        # It may have been stopped while the process was being started.
        if self.killed:
            child.kill()
        elif self._last_message is not None:
            child.send_last(self._last_message)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive(child))
            watch = tasks.create_task(self._kill_when_hung(child, block))
            exit_code = await child.wait()
            watch.cancel()
        return exit_code

    async def _receive(self, child: AsyncChild) -> None:
        """Handle the worker's messages until it closes the channel.

        Raises:
            ValueError: the worker sent a message other than its four.
        """
        while True:
            try:
                message: Any = await child.receive()
            except ChannelClosed:
                return
            match message:
                case {"event": "ready", "provider": str(provider)}:
                    self._ready_since = time.monotonic()
                    self.provider = provider
                    self._ready.set()
                    self._events.worker_ready(self)
                case {"event": "draining"}:
                    self.draining = True
                    self._events.worker_draining(self)
                case {"event": "refused", "message": str(reason)}:
                    self.refusal = reason
                case {"event": "unanswered", "num_requests": int(num_requests)}:
                    _log.error("grace period ended", worker=self._plan.number, num_unanswered=num_requests)
                    self._events.worker_unanswered(self, num_requests)
                case _:
                    raise ValueError(f"unexpected message from worker {self._plan.number}: {message!r}")

    async def _kill_when_hung(self, child: AsyncChild, block: Block) -> None:
        """Kill a worker that does not become ready in time, or whose heartbeat stops."""
        number = self._plan.number
        try:
            # Not wait_for: in Python 3.11 it ignores a cancellation that arrives together with the event.
            async with asyncio.timeout(START_LIMIT_S):
                await self._ready.wait()
        except TimeoutError:
            self.refusal = f"a worker did not become ready within {START_LIMIT_S:g} s"
            _log.error("worker did not become ready, killing it", worker=number, limit_s=START_LIMIT_S)
            child.kill()
            return
        stall_s = self._plan.settings.stall_s
        monitor = HeartbeatMonitor(stall_s, time.monotonic())
        while not monitor.is_stalled:
            await asyncio.sleep(HEARTBEAT_CHECK_S)
            monitor.observe(block.heartbeat, time.monotonic())
        _log.error("worker's heartbeat stopped, killing it", worker=number, stall_s=stall_s)
        child.kill()

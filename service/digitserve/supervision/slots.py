"""Slots: each keeps one worker running and reports what happens to it.

    Supervisor ──run, drain, kill──▶ WorkerSlot ──AsyncChild──▶ worker process
         ▲                               │
         └───────── SlotEvents ──────────┘

The supervisor makes and runs the slots; everything here runs on its event loop. A slot writes only its own state.
``InlineSlot`` runs the worker on a thread instead (``--workers 0``).
"""

import asyncio
import contextlib
import socket
import time
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from digitserve.child_process import AsyncChild, ChannelClosed
from digitserve.errors import StartupError
from digitserve.inference.bundle import parse_bundle
from digitserve.inference.bundle_files import BundleFiles
from digitserve.settings import Settings
from digitserve.supervision.restart_policy import START_LIMIT_S, HeartbeatMonitor, RestartBackoff
from digitserve.telemetry.block import Block
from digitserve.telemetry.collector import ServiceCollector

if TYPE_CHECKING:
    from digitserve.worker import Worker

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

_log = structlog.get_logger("digitserve.supervision.slots")


class SlotEvents(Protocol):
    """Receiver of a slot's events. A slot calls it on the supervisor's event loop."""

    def worker_ready(self, provider: str) -> None:
        """A worker accepts requests; ``provider`` is its onnxruntime execution provider."""

    def worker_draining(self) -> None:
        """A worker stops to accept connections, by itself or because of ``drain``; it answers the open calls and ends."""

    def worker_restarting(self) -> None:
        """A worker ended unexpectedly and another one starts after the backoff."""

    def drain_failed(self) -> None:
        """A worker failed while it drained, so some requests may not have been answered."""


class WorkerSlot:
    """Keeps one worker process running, from ``run`` until ``drain`` or ``kill``.

    Attributes:
        first_ready: set once a worker of this slot has been ready.
        refusal: why a worker did not start; ``None`` again once a worker is ready.
    """

    def __init__(
        self,
        number: int,
        settings: Settings,
        bundle_fd: int,
        num_threads: int,
        listener: socket.socket | None,
        collector: ServiceCollector,
        events: SlotEvents,
    ) -> None:
        """Prepare; nothing is started.

        Args:
            number: of this slot, for log lines.
            settings: resolved; sent to each worker.
            bundle_fd: sealed files of the bundle, which each worker inherits; the slot does not close it.
            num_threads: onnxruntime threads of each worker.
            listener: listening socket that each worker inherits; the slot does not close it. None if workers bind the port.
            collector: makes the shared memory for a worker's metrics and keeps its counts after the worker's end.
            events: receives this slot's events.
        """
        self._number = number
        self._settings = settings
        self._bundle_fd = bundle_fd
        self._num_threads = num_threads
        self._listener = listener
        self._collector = collector
        self._events = events
        self._backoff = RestartBackoff()
        self._stop = asyncio.Event()
        self._killed = False
        self._child: AsyncChild | None = None
        self._ready = asyncio.Event()
        self._ready_since = 0.0
        self._draining = False
        self.refusal: str | None = None
        self.first_ready = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether the worker accepts requests."""
        return self._ready.is_set() and not self._draining

    async def run(self) -> None:
        """Keep a worker running until ``drain`` or ``kill``.

        Raises:
            StartupError: the slot's first worker did not become ready. Later workers are retried: the cause may go away.
        """
        while not self._stop.is_set():
            served_s, exit_code = await self._run_worker()
            if self._stop.is_set():
                return
            self._events.worker_restarting()
            # A worker that somebody has asked to drain has not failed, and connections may wait for the next one.
            drained = self._draining and exit_code == 0
            delay_s = 0.0 if drained else self._backoff.next_delay_s(served_s)
            _log.warning(
                "worker ended, starting another", worker=self._number, served_s=round(served_s, 1), delay_s=delay_s
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay_s)
                return

    def drain(self) -> None:
        """Ask the worker to answer its pending requests and to end; start no other."""
        self._stop.set()
        if self._child is not None:
            self._child.send_eof()

    def kill(self) -> None:
        """End the worker immediately; start no other."""
        self._stop.set()
        self._killed = True
        if self._child is not None:
            self._child.kill()

    async def _run_worker(self) -> tuple[float, int]:
        """Run one worker from start to end.

        Returns:
            The seconds for which it was ready, and its exit code.
        """
        self._draining = False
        block = self._collector.new_block()
        try:
            start: dict[str, Any] = {
                "settings": self._settings.to_dict(),
                "bundle_fd": self._bundle_fd,
                "block_fd": block.fd,
                "num_threads": self._num_threads,
            }
            fds = [self._bundle_fd, block.fd]
            if self._listener is not None:
                start["listener_fd"] = self._listener.fileno()
                fds.append(self._listener.fileno())
            child = await AsyncChild.start(WORKER_MODULE, environment=_WORKER_ENVIRONMENT, pass_fds=fds)
            async with child:
                self._child = child
                await child.send(start)
                exit_code = await self._supervise(child, block)
        finally:
            self._child = None
            served_s = time.monotonic() - self._ready_since if self._ready.is_set() else 0.0
            self._ready.clear()
            self._collector.retire(block)
        self._report_end(child.process.pid, exit_code)
        return served_s, exit_code

    async def _supervise(self, child: AsyncChild, block: Block) -> int:
        """Handle the worker's messages, monitor it, and return its exit code."""
        # The slot may have been stopped while the process was being started.
        if self._killed:
            child.kill()
        elif self._stop.is_set():
            child.send_eof()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive(child))
            watch = tasks.create_task(self._kill_when_hung(child, block))
            exit_code = await child.process.wait()
            watch.cancel()
        return exit_code

    async def _receive(self, child: AsyncChild) -> None:
        """Handle the worker's messages until it closes the channel.

        Raises:
            ValueError: the worker sent a message other than its three.
        """
        while True:
            try:
                message: Any = await child.receive()
            except ChannelClosed:
                return
            match message:
                case {"event": "ready", "provider": str(provider)}:
                    self._ready_since = time.monotonic()
                    self._ready.set()
                    self.refusal = None
                    self.first_ready.set()
                    self._events.worker_ready(provider)
                case {"event": "draining"}:
                    self._draining = True
                    self._events.worker_draining()
                case {"event": "refused", "message": str(reason)}:
                    self.refusal = reason
                case _:
                    raise ValueError(f"unexpected message from worker {self._number}: {message!r}")

    async def _kill_when_hung(self, child: AsyncChild, block: Block) -> None:
        """Kill a worker that does not become ready in time, or whose heartbeat stops."""
        try:
            await asyncio.wait_for(self._ready.wait(), START_LIMIT_S)
        except TimeoutError:
            self.refusal = f"a worker did not become ready within {START_LIMIT_S:g} s"
            _log.error("worker did not become ready, killing it", worker=self._number, limit_s=START_LIMIT_S)
            child.kill()
            return
        stall_s = self._settings.stall_s
        monitor = HeartbeatMonitor(stall_s, time.monotonic())
        while not monitor.is_stalled:
            await asyncio.sleep(HEARTBEAT_CHECK_S)
            monitor.observe(block.heartbeat, time.monotonic())
        _log.error("worker's heartbeat stopped, killing it", worker=self._number, stall_s=stall_s)
        child.kill()

    def _report_end(self, pid: int, exit_code: int) -> None:
        """Log and report a worker's end, unless ``drain`` or ``kill`` caused it.

        Raises:
            StartupError: no worker of this slot has been ready yet.
        """
        if self._stop.is_set():
            if exit_code and not self._killed:
                _log.error("worker failed while it drained", worker=self._number, pid=pid, exit_code=exit_code)
                self._events.drain_failed()
            return
        if not self.first_ready.is_set():
            raise StartupError(
                self.refusal or f"a worker ended with exit code {exit_code} before it was ready; see its output above"
            )
        if exit_code or not self._draining:
            _log.error(
                "worker ended unexpectedly", worker=self._number, pid=pid, exit_code=exit_code, refusal=self.refusal
            )


class InlineSlot:
    """Runs the only worker of ``--workers 0`` on a thread of this process, for debuggers. It is never restarted.

    Attributes:
        first_ready: set once the worker has been ready.
        refusal: always ``None``: ``run`` raises instead.
    """

    def __init__(
        self,
        settings: Settings,
        bundle_fd: int,
        num_threads: int,
        listener: socket.socket | None,
        collector: ServiceCollector,
        events: SlotEvents,
    ) -> None:
        """Prepare; nothing is started. The arguments are those of ``WorkerSlot``."""
        self._settings = settings
        self._bundle_fd = bundle_fd
        self._num_threads = num_threads
        self._listener = listener
        self._collector = collector
        self._events = events
        self._draining = False
        self._worker: Worker | None = None
        self.is_ready = False
        self.refusal: str | None = None
        self.first_ready = asyncio.Event()

    async def run(self) -> None:
        """Run the worker until ``drain``.

        Raises:
            StartupError: the worker did not start.
        """
        # Imported here, because it loads onnxruntime into the supervisor's process.
        from digitserve.worker import Worker  # noqa: PLC0415 - loads onnxruntime

        settings = self._settings
        block = self._collector.new_block()
        # As in a process, the worker has a copy of its own: it closes it later than the supervisor.
        listener = self._listener and self._listener.dup()
        try:
            bundle = parse_bundle(BundleFiles.unseal(self._bundle_fd))
            worker = await asyncio.to_thread(Worker, settings, bundle, block, self._num_threads, listener)
            self._worker = worker
            worker.listen()
            if self._draining:
                worker.drain()
            self.is_ready = True
            self.first_ready.set()
            self._events.worker_ready(worker.provider)
            await asyncio.to_thread(worker.run)
        finally:
            if listener is not None:
                listener.close()
            self.is_ready = False
            self._collector.retire(block)

    def drain(self) -> None:
        """Ask the worker to answer its pending requests and to end."""
        self._draining = True
        if self._worker is not None:
            self._worker.drain()

    def kill(self) -> None:
        """Drain: a thread cannot be ended from outside."""
        self.drain()

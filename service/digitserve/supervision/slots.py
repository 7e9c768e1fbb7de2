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
from digitserve.supervision.worker_output import WorkerOutput
from digitserve.telemetry.block import Block
from digitserve.telemetry.collector import ServiceCollector

if TYPE_CHECKING:
    from digitserve.worker import Worker

WORKER_MODULE = "digitserve.worker"

START_RETRY_S = 1.0
"""Delay if the system has no process, memory or file descriptor for a worker. It is short, because a retry costs little."""

HEARTBEAT_CHECK_S = 0.1
"""Seconds between two checks of a worker's heartbeat."""

# Set before the worker imports anything.
_WORKER_ENVIRONMENT = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "ORT_DISABLE_TELEMETRY": "1",
    "GRPC_VERBOSITY": "ERROR",
}

DRAIN = "drain"
"""Last message to a worker. Without it, the end of the channel means that the supervisor has died."""

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

    def requests_unanswered(self, num_requests: int) -> None:
        """A worker drained after ``drain``, and did not answer this number of requests within the grace period."""


class WorkerSlot:
    """Keeps one worker process running, from ``run`` until ``drain`` or ``kill``.

    Attributes:
        was_ready: whether a worker of this slot has been ready.
        refusal: why no worker runs or starts; ``None`` again once a worker is ready.
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
        self.was_ready = False

    @property
    def is_ready(self) -> bool:
        """Whether the worker accepts requests."""
        return self._ready.is_set() and not self._draining

    async def run(self) -> None:
        """Keep a worker running until ``drain`` or ``kill``.

        Later workers are started again after any failure: its cause may be temporary, and the other slots continue to serve.

        Raises:
            StartupError: the slot's first worker did not become ready.
            Exception: a fault of this program during the start of the slot's first worker.
        """
        while not self._stop.is_set():
            try:
                delay_s = await self._run_worker()
            except (OSError, MemoryError) as error:
                delay_s = self._retry_s(f"cannot start a worker: {str(error) or type(error).__name__}", error)
            except Exception as error:
                if not self.was_ready:
                    raise
                _log.exception("a worker was ended because of an internal fault", worker=self._number)
                delay_s = self._retry_s("a worker was ended because of an internal fault; see the log", error)
            if self._stop.is_set():
                return
            self._events.worker_restarting()
            _log.warning("starting another worker", worker=self._number, delay_s=delay_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay_s)
                return

    def drain(self) -> None:
        """Ask the worker to answer its pending requests and to end; start no other."""
        self._stop.set()
        if self._child is not None:
            self._child.send_last(DRAIN)

    def kill(self) -> None:
        """End the worker immediately; start no other."""
        self._stop.set()
        self._killed = True
        if self._child is not None:
            self._child.kill()

    async def _run_worker(self) -> float:
        """Run one worker from start to end; return the seconds to wait before the next one starts.

        Raises:
            StartupError: no worker of this slot has been ready yet.
            OSError: the system has no process or file descriptor left.
            MemoryError: it has no memory left.
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
            with WorkerOutput(self._number) as output:
                start |= {"log_fd": output.log_fd, "number": self._number}
                child = await AsyncChild.start(
                    WORKER_MODULE, environment=_WORKER_ENVIRONMENT, pass_fds=[*fds, output.log_fd], output=output.fd
                )
                output.started()
                async with child:
                    self._child = child
                    await child.send(start)
                    exit_code = await self._supervise(child, block)
        finally:
            self._child = None
            served_s = time.monotonic() - self._ready_since if self._ready.is_set() else 0.0
            self._ready.clear()
            self._collector.retire(block)
        self._report_end(child.pid, exit_code, served_s)
        # A worker that drained has not failed, and connections may wait for the next one.
        if self._stop.is_set() or (self._draining and exit_code == 0):
            return 0.0
        delay_s = self._backoff.next_delay_s(served_s)
        if delay_s and self.refusal is None:
            self.refusal = f"a worker ended with exit code {exit_code}; the next one starts after {delay_s:g} s"
        return delay_s

    def _retry_s(self, refusal: str, error: Exception) -> float:
        """Note why a worker could not be run; return the seconds to wait before the next one starts.

        Raises:
            StartupError: no worker of this slot has been ready yet.
        """
        if self._stop.is_set():
            self._events.drain_failed()
        elif not self.was_ready:
            raise StartupError(refusal) from error
        self.refusal = refusal
        _log.error("worker could not be run", worker=self._number, refusal=refusal)
        return START_RETRY_S

    async def _supervise(self, child: AsyncChild, block: Block) -> int:
        """Handle the worker's messages, monitor it, and return its exit code."""
        # The slot may have been stopped while the process was being started.
        if self._killed:
            child.kill()
        elif self._stop.is_set():
            child.send_last(DRAIN)
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
                    self._ready.set()
                    self.refusal = None
                    self.was_ready = True
                    self._events.worker_ready(provider)
                case {"event": "draining"}:
                    self._draining = True
                    self._events.worker_draining()
                case {"event": "refused", "message": str(reason)}:
                    self.refusal = reason
                case {"event": "unanswered", "num_requests": int(num_requests)}:
                    _log.error("grace period ended", worker=self._number, num_unanswered=num_requests)
                    if self._stop.is_set():
                        self._events.requests_unanswered(num_requests)
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

    def _report_end(self, pid: int, exit_code: int, served_s: float) -> None:
        """Log and report a worker's end, unless ``drain`` or ``kill`` caused it.

        Raises:
            StartupError: no worker of this slot has been ready yet.
        """
        if self._stop.is_set():
            if exit_code and not self._killed:
                _log.error("worker failed while it drained", worker=self._number, worker_pid=pid, exit_code=exit_code)
                self._events.drain_failed()
            return
        if not self.was_ready:
            raise StartupError(
                self.refusal or f"a worker ended with exit code {exit_code} before it was ready; see its output above"
            )
        if exit_code or not self._draining:
            _log.error(
                "worker ended unexpectedly", worker=self._number, worker_pid=pid, exit_code=exit_code,
                served_s=round(served_s, 1), refusal=self.refusal,
            )  # fmt: skip


class InlineSlot:
    """Runs the only worker of ``--workers 0`` on a thread of this process, for debuggers. It is never restarted.

    Attributes:
        was_ready: whether the worker has been ready.
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
        self.was_ready = False

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
            self.is_ready = self.was_ready = True
            self._events.worker_ready(worker.provider)
            if num_requests := await asyncio.to_thread(worker.run):
                self._events.requests_unanswered(num_requests)
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

"""Slots: each keeps one worker running, replaces it by one that serves another bundle, and reports what happens to it.

    Supervisor ──run, lame_duck, drain, kill──▶ WorkerSlot ──run, lame_duck, drain, kill──▶ WorkerProcess, and for a moment its successor
    Reloader ──replace──────────────▶    │
    Supervisor ◀────── SlotEvents ───────┘

The supervisor makes and runs the slots; everything here runs on its event loop. A slot writes only its own state.
``InlineSlot`` runs the worker on a thread instead (``--workers 0``).
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from digitserve.errors import StartupError
from digitserve.inference.bundle import parse_bundle
from digitserve.inference.bundle_files import BundleFiles
from digitserve.inference.sealed_bundle import SealedBundle
from digitserve.log import get_logger
from digitserve.passed_sockets import PassedListener, Passing
from digitserve.supervision.restart_policy import RestartBackoff
from digitserve.supervision.worker_process import DRAIN, HAND_OVER, WorkerPlan, WorkerProcess

if TYPE_CHECKING:
    from digitserve.worker import Worker

START_RETRY_S = 1.0
"""Delay if the system has no process, memory or file descriptor for a worker. It is short, because a retry costs little."""

GIVEN_UP = "given up"
"""Result of ``replace`` if another version was activated meanwhile, or the service stops."""

_log = get_logger("digitserve.supervision.slots")


class SlotEvents(Protocol):
    """Receiver of a slot's events. A slot calls it on the supervisor's event loop."""

    def worker_started(self) -> None:
        """A worker process runs, and needs nothing from the supervisor until it is ready."""

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

    During ``replace`` there are two: the successor starts and serves beside the present worker before that one drains.

    Attributes:
        bundle: that this slot's next worker serves.
        was_started: whether a worker process of this slot has run.
        was_ready: whether a worker of this slot has been ready.
        refusal: why no worker runs or starts; ``None`` again once a worker is ready.
    """

    def __init__(self, plan: WorkerPlan, bundle: SealedBundle, events: SlotEvents) -> None:
        """Prepare; nothing is started.

        Args:
            plan: for all workers of this slot.
            bundle: to serve.
            events: receives this slot's events.
        """
        self.bundle = bundle
        self.refusal: str | None = None
        self.was_started = self.was_ready = False
        self._plan = plan
        self._events = events
        self._backoff = RestartBackoff()
        self._stopping = False
        self._killed = False
        self._wake = asyncio.Event()
        # All that have not ended: the current one, its successor, and one that drains after a replacement.
        self._workers: set[WorkerProcess] = set()
        self._current: WorkerProcess | None = None
        self._successor: WorkerProcess | None = None

    @property
    def is_ready(self) -> bool:
        """Whether a worker accepts requests."""
        return any(worker.is_ready for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        """Process ids of its workers."""
        return [worker.pid for worker in self._workers if worker.pid]

    @property
    def token(self) -> str:
        """The token of calls on ``connect``; empty if they need none."""
        return "" if self._plan.connector is None else self._plan.connector.token

    @property
    def accepts(self) -> bool:
        """Whether a worker accepts calls of the HTTP API, also in the lame duck time of a drain."""
        return self._callee() is not None

    def connect(self) -> socket.socket:
        """Return a connection for the HTTP API to a worker.

        Raises:
            OSError: there is none, or it cannot accept another connection now.
        """
        worker = self._callee()
        if worker is None or self._plan.connector is None:
            raise OSError("no worker accepts connections of the HTTP API")
        return self._plan.connector.connect(worker.pid)

    def _callee(self) -> WorkerProcess | None:
        # The successor of a worker is the one that stays.
        workers = [worker for worker in (self._successor, self._current) if worker is not None and worker.was_ready]
        running = [worker for worker in workers if not worker.task.done()]
        return next((worker for worker in running if worker.is_ready), running[0] if running else None)

    async def run(self) -> None:
        """Keep a worker running until ``drain`` or ``kill``.

        Later workers are started again after any failure: its cause may be temporary, and the other slots continue to serve.

        Raises:
            StartupError: the slot's first worker did not become ready.
            Exception: a fault of this program during the start of the slot's first worker.
        """
        while not self._stopping:
            worker = self._current = self._current or self._start(self.bundle)
            await self._wait(lambda: worker.task.done() or self._current is not worker)  # noqa: B023 - awaited here
            if self._current is not worker:
                continue
            self._current = None
            delay_s = self._delay_s(worker)
            if self._stopping:
                break
            self._events.worker_restarting()
            _log.warning("starting another worker", worker=self._plan.number, delay_s=delay_s)
            await self._wait(lambda: self._stopping or self._current is not None, delay_s)
        await asyncio.gather(*(worker.task for worker in self._workers), return_exceptions=True)

    async def replace(self, bundle: SealedBundle, prove_s: float) -> str | None:
        """Start a worker for another bundle, and drain the present one once the new one has served for ``prove_s``.

        Args:
            bundle: to serve from now on.
            prove_s: seconds for which the new worker serves beside the present one before that one drains.

        Returns:
            Why the new worker failed or was given up; the present one then continues. None if it has replaced that one, which
            has ended.
        """
        if self._stopping:
            return GIVEN_UP
        successor = self._successor = self._start(bundle)
        await successor.wait_until_ready()
        if successor.is_ready:
            await asyncio.wait([successor.task], timeout=prove_s)
        given_up = self._stopping or self._successor is not successor
        self._successor = None
        if given_up or not successor.is_ready:
            successor.drain(HAND_OVER)
            await asyncio.wait([successor.task])
            return GIVEN_UP if given_up else _failure(successor)
        present, self._current, self.bundle = self._current, successor, bundle
        self.refusal, self._backoff = None, RestartBackoff()
        self._wake.set()
        if present is not None:
            present.drain(HAND_OVER)
            await asyncio.wait([present.task])
        return None

    def give_up_replacement(self) -> None:
        """Keep the present worker if its successor has not replaced it yet."""
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.drain(HAND_OVER)

    def lame_duck(self) -> None:
        """Start the lame duck time of the workers, which lasts at least until ``drain``; start no other."""
        self._stop()
        for worker in self._workers:
            worker.lame_duck()

    def drain(self) -> None:
        """Ask the workers to answer their pending requests and to end; start no other."""
        self._stop()
        for worker in self._workers:
            worker.drain(DRAIN)

    def kill(self) -> None:
        """End the workers immediately; start no other."""
        self._stop()
        self._killed = True
        for worker in self._workers:
            worker.kill()

    # Events of the workers.

    def worker_started(self, _worker: WorkerProcess) -> None:
        """A worker process runs."""
        self.was_started = True
        self._events.worker_started()

    def worker_ready(self, worker: WorkerProcess) -> None:
        """A worker accepts requests."""
        self.was_ready = True
        if worker is self._current:
            self.refusal = None
        self._events.worker_ready(worker.provider)

    def worker_draining(self, _worker: WorkerProcess) -> None:
        """A worker stops to accept connections."""
        self._events.worker_draining()

    def worker_unanswered(self, _worker: WorkerProcess, num_requests: int) -> None:
        """A worker did not answer all requests within the grace period."""
        if self._stopping:
            self._events.requests_unanswered(num_requests)

    def _stop(self) -> None:
        self._stopping = True
        self._wake.set()

    async def _wait(self, condition: Callable[[], bool], timeout_s: float | None = None) -> None:
        """Wait until a condition is true; it is checked after each change of the state. Only ``run`` calls it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._wake.clear()
                    await self._wake.wait()

    def _start(self, bundle: SealedBundle) -> WorkerProcess:
        """Start a worker that runs until it ends or the slot stops."""
        worker = WorkerProcess(self._plan, bundle, self)
        self._workers.add(worker)

        def ended(task: "asyncio.Task[int]") -> None:
            self._workers.discard(worker)
            self._wake.set()
            if worker is not self._current and not task.cancelled():
                self._report_end_of_other(worker)

        worker.task.add_done_callback(ended)
        return worker

    def _report_end_of_other(self, worker: WorkerProcess) -> None:
        """Log and report the failure of a worker that drained after a replacement, or that served on trial."""
        failed = worker.task.exception() is not None or worker.task.result() != 0
        if failed and worker.was_ready and not self._killed:
            _log.error("worker failed during a replacement", worker=self._plan.number, worker_pid=worker.pid,
                       reason=_failure(worker))  # fmt: skip
            if self._stopping:
                self._events.drain_failed()

    def _delay_s(self, worker: WorkerProcess) -> float:
        """Report the end of the slot's worker; return the seconds to wait before the next one starts.

        Raises:
            StartupError: no worker of this slot has been ready yet.
            Exception: a fault of this program, and no worker of this slot has been ready yet.
        """
        if (error := worker.task.exception()) is not None:
            return self._delay_after_error_s(error)
        exit_code = worker.task.result()
        self.refusal = worker.refusal
        self._report_end(worker, exit_code)
        # A worker that drained has not failed, and connections may wait for the next one.
        if self._stopping or (worker.draining and exit_code == 0):
            return 0.0
        delay_s = self._backoff.next_delay_s(worker.served_s)
        if delay_s and self.refusal is None:
            self.refusal = f"a worker ended with exit code {exit_code}; the next one starts after {delay_s:g} s"
        return delay_s

    def _delay_after_error_s(self, error: BaseException) -> float:
        if _is_shortage(error):
            refusal = _cannot_start(error)
        elif not self.was_ready:
            raise error
        else:
            _log.error("a worker was ended because of an internal fault", worker=self._plan.number, exc_info=error)
            refusal = "a worker was ended because of an internal fault; see the log"
        if self._stopping:
            self._events.drain_failed()
        elif not self.was_ready:
            raise StartupError(refusal) from error
        self.refusal = refusal
        _log.error("worker could not be run", worker=self._plan.number, refusal=refusal)
        return START_RETRY_S

    def _report_end(self, worker: WorkerProcess, exit_code: int) -> None:
        """Log and report a worker's end, unless ``drain`` or ``kill`` caused it.

        Raises:
            StartupError: no worker of this slot has been ready yet.
        """
        number = self._plan.number
        if self._stopping:
            if exit_code and not self._killed:
                _log.error("worker failed while it drained", worker=number, worker_pid=worker.pid, exit_code=exit_code)
                self._events.drain_failed()
            return
        if not self.was_ready:
            raise StartupError(_failure(worker))
        if exit_code or not worker.draining:
            _log.error(
                "worker ended unexpectedly", worker=number, worker_pid=worker.pid, exit_code=exit_code,
                served_s=round(worker.served_s, 1), refusal=self.refusal,
            )  # fmt: skip


def _failure(worker: WorkerProcess) -> str:
    """Return why a worker that has ended failed."""
    if (error := worker.task.exception()) is not None:
        return (
            _cannot_start(error)
            if _is_shortage(error)
            else f"a worker was ended because of an internal fault: {error!r}"
        )
    exit_code = worker.task.result()
    return worker.refusal or (
        f"a worker ended with exit code {exit_code} {worker.served_s:.1f} s after it was ready"
        if worker.was_ready
        else f"a worker ended with exit code {exit_code} before it was ready; see its output above"
    )


def _is_shortage(error: BaseException) -> bool:
    return isinstance(error, OSError | MemoryError)


def _cannot_start(error: BaseException) -> str:
    return f"cannot start a worker: {str(error) or type(error).__name__}"


class InlineSlot:
    """Runs the only worker of ``--workers 0`` on a thread of this process, for debuggers. It is never restarted.

    Attributes:
        bundle: that the worker serves.
        was_started: always true: there is no process.
        was_ready: whether the worker has been ready.
        refusal: always ``None``: ``run`` raises instead.
        token: see ``WorkerSlot``.
        pids: always empty: the worker is a thread of this process.
    """

    pids = ()
    was_started = True

    def __init__(self, plan: WorkerPlan, bundle: SealedBundle, events: SlotEvents) -> None:
        """Prepare; nothing is started. The arguments are those of ``WorkerSlot``."""
        self.bundle = bundle
        self._plan = plan
        self._events = events
        self._draining = False
        self.token = "" if plan.connector is None else plan.connector.token
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

        plan = self._plan
        block = plan.collector.new_block(self.bundle.manifest.labels)
        # As in a process, the worker has a copy of its own: it closes it later than the supervisor.
        listener = plan.listener and plan.listener.dup()
        inside: PassedListener | str | None = None
        if plan.connector is not None:
            inside = plan.connector.listener.dup() if isinstance(plan.connector, Passing) else plan.connector.token
        try:
            bundle = parse_bundle(BundleFiles.unseal(self.bundle.fd))
            shadow = None if plan.shadow is None else parse_bundle(BundleFiles.unseal(plan.shadow.fd))
            worker = await asyncio.to_thread(
                Worker, plan.settings, bundle, block, plan.num_threads, listener, plan.last_valid(), shadow,
                inside,
            )  # fmt: skip
            self._worker = worker
            worker.listen()
            if self._draining:
                worker.drain()
            self.is_ready = self.was_ready = True
            self._events.worker_ready(worker.provider)
            if num_requests := await asyncio.to_thread(worker.run):
                self._events.requests_unanswered(num_requests)
        finally:
            for copy in (listener, inside):
                if isinstance(copy, socket.socket):
                    copy.close()
            self.is_ready = False
            plan.collector.retire(block)

    @property
    def accepts(self) -> bool:
        """Whether the worker accepts calls of the HTTP API; see ``WorkerSlot``."""
        return self.is_ready

    def connect(self) -> socket.socket:
        """Return a connection for the HTTP API to the worker; see ``WorkerSlot``."""
        if self._plan.connector is None or not self.is_ready:
            raise OSError("no worker accepts connections of the HTTP API")
        return self._plan.connector.connect(os.getpid())

    async def replace(self, _bundle: SealedBundle, _prove_s: float) -> str | None:
        """Return why the worker is not replaced."""
        return "with --workers 0 the only worker is not replaced; restart the service"

    def give_up_replacement(self) -> None:
        """Do nothing: there is no replacement."""

    def lame_duck(self) -> None:
        """Start the lame duck time of the worker, which lasts at least until ``drain``. A worker that is not ready ends."""
        if self._worker is None:
            self._draining = True
        else:
            self._worker.lame_duck()

    def drain(self) -> None:
        """Ask the worker to answer its pending requests and to end."""
        self._draining = True
        if self._worker is not None:
            self._worker.drain()

    def kill(self) -> None:
        """Drain: a thread cannot be ended from outside."""
        self.drain()

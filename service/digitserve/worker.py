"""A worker process: composition root and event loop.

    starting ──verified, warmed up, listening──▶ ready ──drain()──▶ lame duck ──▶ answering ──▶ stopped
                                                health SERVING     NOT_SERVING   GOAWAY, no new calls

One thread receives requests, forms batches, runs them and sends the answers. The supervisor starts the process as
``python -P -m digitserve.worker`` and exchanges messages with it on a ``Channel``:

    supervisor ──{"settings", "last_valid", "number", "bundle_fd", "block_fd", "num_threads", "listener_fd", "inside_fd", "inside_token", "shadow_fd", "log_fd"}──▶ worker
    supervisor ◀── {"event": "ready", "provider": ..., "inside": ...} or {"event": "refused", "message": ...} ── worker
    supervisor ◀── {"event": "draining"} ── worker
    supervisor ──"lame duck"──▶ worker, if the service shuts down
    supervisor ──"drain" or "hand over"──▶ worker
    supervisor ◀── {"event": "unanswered", "num_requests": ...} ── worker, if the grace period was too short

With "lame duck", the lame duck time starts, and it lasts at least until "drain": the supervisor then still makes calls for requests that
its HTTP API has accepted. With "hand over", another worker already accepts connections on the same socket: there is no lame duck time, and health stays
SERVING. If the channel closes without either message, the supervisor has died: the worker then closes its listening socket immediately, so
that the next service can use the port, and answers the admitted requests within ``ORPHAN_GRACE_S``.

With ``--workers 0`` the same ``Worker`` runs on a thread of the supervisor process.
"""

import contextlib
import faulthandler
import gc
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping

if __name__ == "__main__":
    # Until the event loop runs: a collection of what is being imported frees nothing, and takes 10 ms of the start (measured).
    gc.disable()

from typing import TYPE_CHECKING

from digitserve import log
from digitserve.access import NOTHING_VALID, LastValid
from digitserve.batching.batcher import Batcher
from digitserve.batching.pipeline import Pipeline
from digitserve.batching.readings import Readings
from digitserve.batching.shadow import Shadow
from digitserve.batching.stepwise import StepReader
from digitserve.child_process import Channel, ChannelClosed
from digitserve.errors import StartupError
from digitserve.inference.bundle import Bundle, Manifest, parse_bundle
from digitserve.inference.bundle_files import BundleFiles
from digitserve.inference.session import Session
from digitserve.log import get_logger
from digitserve.passed_sockets import PassedListener
from digitserve.protocol.names import Method
from digitserve.protocol.read_encoder import ReadEncoder
from digitserve.reading.reader import DIGIT_LABELS, Reader
from digitserve.settings import Settings
from digitserve.telemetry.block import Block
from digitserve.telemetry.recorder import Recorder
from digitserve.telemetry.request_log import RequestLog
from digitserve.transport.handlers import Server, StreamHandler, UnaryHandler
from digitserve.transport.methods import Methods

if TYPE_CHECKING:
    from digitserve.batching.pending import PendingRequest

IDLE_POLL_S = 0.1
"""Longest wait for an event: the delay until ``drain`` is noticed, and the interval of heartbeats while idle."""

SHADOW_IDLE_S = 0.002
"""The worker counts as idle for the shadow version if nothing arrives for this time after an answer: longer than clients of the
same machine need for their next request."""

MAX_BATCH_S = 0.05
"""Longest estimated batch: the longest time that a small request waits for a batch of large ones."""

MAX_RUN_S = 0.003
"""Time after the first batch of an iteration in which further batches may start while there is a backlog. Each system call then
carries more calls: with 64 connections, they take 15 % of the time of int8 otherwise. Requests have waited longer by then."""

MAX_DRAIN_ITERATIONS = 16
"""Most iterations that take calls out of core before the listener closes."""

LINGER_S = 1.0
"""After GOAWAY, seconds for clients to close. Idle clients close immediately; health watchers and open streams may not."""

ORPHAN_GRACE_S = 2.0
"""The grace period of a worker whose supervisor has died. It is short, because no supervisor would end a worker that hangs."""

FRAMING_UNIT_S = 4e-10
"""First estimate of seconds per unit of framing: 105 us for a small image, as on grainy paper. Batches correct it."""

MAX_PENDING_REQUESTS = 8
"""Most memory held by waiting requests, in requests of the maximal size."""

IMAGES_PER_READING = 64
"""There may be 1/64 as many unanswered readings as pending images: a field of a form has about as many candidates."""

GC_THRESHOLD = 20_000
"""Allocations between two garbage collections: more than a full batch holds, because traversing that would free nothing."""

EXIT_REFUSED = 3
EXIT_CRASHED = 70
EXIT_ORPHANED = 71

_log = get_logger("digitserve.worker")


def new_reader(manifest: Manifest) -> StepReader | None:
    """Return what reads images with a model; None if its labels are not the ten digits."""
    if manifest.labels != DIGIT_LABELS:
        return None
    return Reader(manifest.labels, manifest.ood_threshold)


class Worker:
    """Serves one bundle on one port. ``run`` belongs to one thread; ``drain`` may be called from any.

    Attributes:
        provider: onnxruntime's name of the execution provider in use.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - one for each thing that the supervisor has decided
        self,
        settings: Settings,
        bundle: Bundle,
        block: Block,
        num_threads: int,
        listener: socket.socket | None,
        last_valid: LastValid = NOTHING_VALID,
        shadow: Bundle | None = None,
        inside: socket.socket | str | None = None,
        new_reader: Callable[[Manifest], StepReader | None] = new_reader,
    ) -> None:
        """Verify the bundle, warm up, and build the server; no connection is accepted yet.

        Args:
            settings: with port, device and version decided.
            bundle: read and checked.
            block: memory for the metrics.
            num_threads: threads of onnxruntime.
            listener: listens on the address; the worker closes it when it drains. None with gRPC core, which binds it.
            last_valid: certificate and tokens to start with if their files are not valid now.
            shadow: second version to compare with, if any.
            inside: accepts connections of the supervisor, without TLS and tokens; the worker closes it when it drains. With
                gRPC core a secret instead, which calls of the supervisor must have as their token. None: there are none.
            new_reader: returns what reads images with a model, None if its labels do not allow it.

        Raises:
            StartupError: a bundle or the execution provider failed a check.
        """
        self._settings = settings
        served = bundle.served_as(settings.served_name)
        model = f"{served.manifest.name}/{served.manifest.version}"
        requests = RequestLog(settings.log_requests_per_s, settings.log_slow_s or math.inf, model)
        self._recorder = Recorder(block, bundle.manifest.labels, requests)
        session = Session(bundle, device=settings.device, num_threads=num_threads)
        self.provider = session.provider
        self._shadow = self._new_shadow(shadow, bundle.manifest, num_threads)
        self._batcher: Batcher[PendingRequest] = Batcher(
            max_batch_size=settings.batch_limit,
            max_pending_images=settings.max_pending_images,
            max_pending_bytes=MAX_PENDING_REQUESTS * settings.max_request_bytes,
            max_batch_s=MAX_BATCH_S,
            image_s=session.warm_up(settings.batch_limit),
            work_s=FRAMING_UNIT_S,
        )
        self._pipeline = Pipeline(self._batcher, session, served, self._recorder, shadow=self._shadow)
        self._readings = self._new_readings(served.manifest, new_reader(served.manifest))
        self._methods = Methods(settings, served, session.provider, self._pipeline, self._readings, self._recorder)
        self._server = _new_server(
            settings,
            self._recorder,
            unary=self._methods.unary,
            streams=self._methods.streams,
            listener=listener,
            last_valid=last_valid,
            inside=inside,
        )
        self._drain = threading.Event()
        self._is_held = False
        self._handed_over = threading.Event()
        self._orphaned = threading.Event()
        self._orphan_deadline = math.inf
        self._stopped = False

    @property
    def stream_images_in_flight(self) -> list[int]:
        """Number of images in flight on each open stream; may be read from any thread."""
        return self._methods.stream_images_in_flight

    def listen(self) -> int:
        """Report SERVING, and accept connections.

        Returns:
            The port.

        Raises:
            StartupError: the address cannot be bound.
        """
        self._methods.health.set_serving()
        return self._server.listen()

    def lame_duck(self) -> None:
        """Start to drain, but accept requests at least until ``drain``, within the grace period."""
        self._is_held = True
        self._drain.set()

    def drain(self) -> None:
        """Stop accepting requests, answer those that were accepted, and end ``run``."""
        self._is_held = False
        self._drain.set()

    def terminate(self) -> None:
        """Drain, but not earlier than the supervisor wants: a service manager may send SIGTERM to all processes."""
        self._drain.set()

    def hand_over(self) -> None:
        """Drain without a lame duck time and with health SERVING: another worker already accepts connections on the socket.

        A client that watches health would otherwise fail calls, although the service continues.
        """
        self._handed_over.set()
        self._drain.set()

    def abandon(self) -> None:
        """Drain because the supervisor has died: without a lame duck time, and within ``ORPHAN_GRACE_S``."""
        self._orphan_deadline = time.monotonic() + ORPHAN_GRACE_S
        self._orphaned.set()
        self._drain.set()

    def run(self, on_drain: Callable[[], object] = lambda: None) -> int:
        """Run the event loop until the worker has drained.

        Args:
            on_drain: called once when the worker starts to drain; connections are accepted until the lame duck time ends.

        Returns:
            The number of admitted requests that were not answered within the grace period.
        """
        # The objects that exist now live as long as the process: the garbage collector can ignore them. Without a collection
        # before it: 13 ms for the few hundred objects that are garbage (measured).
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        gc.enable()
        while not self._drain.is_set():
            self._run_once()
        deadline = time.monotonic() + self._settings.grace_s
        lame_duck_ends = min(deadline, time.monotonic() + self._settings.lame_duck_s)
        if self._handed_over.is_set():
            lame_duck_ends = 0.0
        else:
            self._methods.health.set_not_serving()
        on_drain()
        while not self._orphaned.is_set() and time.monotonic() < (deadline if self._is_held else lame_duck_ends):
            self._run_once()
        return self._shut_down(deadline)

    def _shut_down(self, deadline: float) -> int:
        """Send GOAWAY, answer the accepted requests until ``deadline``, and stop the server; return the number unanswered."""
        # At shutdown core fails the calls that it has not handed over, so take them first. Bounded, because more may come.
        for _ in range(MAX_DRAIN_ITERATIONS):
            if self._orphaned.is_set() or not self._run_once():
                break
        self._server.begin_shutdown()
        self._methods.drain()
        linger_ends = time.monotonic() + LINGER_S
        while (
            not self._stopped
            and time.monotonic() < min(deadline, self._orphan_deadline)
            and (self._has_unanswered() or time.monotonic() < linger_ends)
        ):
            self._run_once()
        num_unanswered = self._methods.num_unsent_answers() + self._readings.close() + self._pipeline.close()
        self._server.cancel_all()
        while not self._stopped:
            self._run_once()
        self._server.close()
        self._recorder.requests.report()
        return num_unanswered

    def _run_once(self) -> bool:
        """Handle the events that have arrived, then run one batch; return whether there was any of them."""
        # Reading the CPU time takes under a microsecond.
        self._recorder.heartbeat(time.monotonic(), time.process_time())
        shadow = self._shadow
        shadow_waits = shadow is not None and shadow.waits
        timeout_s = SHADOW_IDLE_S if shadow_waits else IDLE_POLL_S
        handled = self._server.poll(0.0 if self._batcher.has_pending() or self._readings.can_advance() else timeout_s)
        self._stopped = handled is None
        if shadow is not None and shadow_waits:
            # The server has sent the answers of its batch.
            shadow.run(busy=bool(handled) or self._batcher.has_pending())
        ran = self._pipeline.run_batch()
        if self._batcher.has_backlog():
            ends = time.monotonic() + MAX_RUN_S
            while self._batcher.has_backlog() and time.monotonic() < ends:
                self._pipeline.run_batch()
        if self._readings.can_advance():
            self._readings.advance(busy=self._pipeline.answered)
            self._pipeline.begin_iteration()
        self._methods.flush()
        return ran or bool(handled)

    def _new_shadow(self, bundle: Bundle | None, served: Manifest, num_threads: int) -> Shadow | None:
        """Verify the second version and warm up. None if there is none, or if it has been activated meanwhile."""
        if bundle is None or bundle.manifest == served:
            return None
        settings = self._settings
        try:
            session = Session(bundle, device=settings.device, num_threads=num_threads)
            session.warm_up(settings.batch_limit)
        except StartupError as error:
            raise StartupError(f"--shadow: {error}") from error
        return Shadow(session, bundle.manifest, served, settings.shadow_share, self._recorder)

    def _new_readings(self, served: Manifest, reader: StepReader | None) -> Readings:
        settings = self._settings
        return Readings(
            self._batcher,
            reader,
            ReadEncoder(served.name, str(served.version), served.labels),
            self._recorder,
            max_readings=max(1, settings.max_pending_images // IMAGES_PER_READING),
            max_bytes=MAX_PENDING_REQUESTS * settings.max_request_bytes // 2,
        )

    def _has_unanswered(self) -> bool:
        return (
            self._batcher.has_pending()
            or self._readings.can_advance()
            or self._methods.has_unsent_answers()
            or self._server.has_unanswered()
        )


def _new_server(
    settings: Settings,
    recorder: Recorder,
    unary: Mapping[Method, UnaryHandler],
    streams: Mapping[Method, StreamHandler],
    listener: socket.socket | None,
    last_valid: LastValid,
    inside: socket.socket | str | None,
) -> Server:
    # Only the chosen transport is imported: gRPC core costs memory, threads and time to start.
    if settings.transport == "grpcio":
        from digitserve.transport.grpcio.server import GrpcServer  # noqa: PLC0415

        return GrpcServer(settings, recorder, unary, streams, last_valid, inside if isinstance(inside, str) else None)
    from digitserve.transport.native.server import NativeServer  # noqa: PLC0415

    if listener is None:
        raise ValueError("got no listening socket: the native transport does not bind the address")
    return NativeServer(
        settings, recorder, unary, streams, listener, last_valid, inside if isinstance(inside, socket.socket) else None
    )


def use_batch_scheduling() -> None:
    """Set the scheduling policy SCHED_BATCH for this thread and those that it starts.

    Threads with this policy do not preempt others when they wake up. With the transport ``grpcio``, threads of gRPC core read the
    sockets: they then run when this thread pauses, and do not interrupt a batch at each arrival. After an interruption the
    CPU caches are cold, which costs much more than reading (docs/decisions.md). The native transport has no such threads.
    """
    # A sandbox may forbid it; the worker is slower then, and otherwise the same.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main() -> int:
    """Run as a child of the supervisor; return the exit code."""
    use_batch_scheduling()
    channel = Channel.to_parent()
    try:
        start = channel.receive()
    except ChannelClosed:
        return EXIT_ORPHANED
    settings = Settings.from_dict(start["settings"])
    log.configure(settings.log_format, start.get("log_fd", log.STDERR), pid=os.getpid(), worker=start.get("number"))
    # A crash of a library then shows where in Python it happened.
    faulthandler.enable()
    follower = _SupervisorFollower(channel)
    threading.Thread(target=follower.run, daemon=True).start()
    try:
        bundle = parse_bundle(BundleFiles.unseal(start["bundle_fd"]))
        block = Block(bundle.manifest.labels, start["block_fd"])
        listener = socket.socket(fileno=start["listener_fd"]) if "listener_fd" in start else None
        last_valid = LastValid.from_dict(start.get("last_valid", {}))
        shadow = parse_bundle(BundleFiles.unseal(start["shadow_fd"])) if "shadow_fd" in start else None
        inside = PassedListener(fileno=start["inside_fd"]) if "inside_fd" in start else start.get("inside_token")
        worker = Worker(settings, bundle, block, start["num_threads"], listener, last_valid, shadow, inside)
        follower.worker = worker
        worker.listen()
    except StartupError as error:
        channel.send({"event": "refused", "message": str(error)})
        return EXIT_REFUSED
    signal.signal(signal.SIGTERM, lambda _signal, _frame: worker.terminate())
    channel.send({"event": "ready", "provider": worker.provider})
    try:
        num_unanswered = worker.run(lambda: channel.send({"event": "draining"}))
    except Exception:
        # Without its loop the process would look alive and answer nothing.
        _log.exception("the event loop crashed")
        os._exit(EXIT_CRASHED)
    if num_unanswered:
        channel.send({"event": "unanswered", "num_requests": num_unanswered})
    return 0


class _SupervisorFollower:
    """Drains the worker when the supervisor sends a message or has died. Runs on a thread of its own until the process ends.

    Attributes:
        worker: None until it is built; before, the process ends at once, because it has admitted nothing.
    """

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.worker: Worker | None = None

    def run(self) -> None:
        """Receive until the channel is closed."""
        message = None
        with contextlib.suppress(ChannelClosed):
            while True:
                message = self._channel.receive()
                if message == "lame duck" and self.worker is not None:
                    self.worker.lame_duck()
        if self.worker is None:
            os._exit(EXIT_ORPHANED if message is None else 0)
        if message == "hand over":
            self.worker.hand_over()
            return
        if message == "drain":
            self.worker.drain()
            return
        _log.warning("the supervisor has ended, draining")
        self.worker.abandon()
        time.sleep(ORPHAN_GRACE_S + 2 * LINGER_S)
        os._exit(EXIT_ORPHANED)


if __name__ == "__main__":
    sys.exit(main())

"""A worker: one thread that takes requests, forms batches, runs them and replies, until it is told to drain.

    starting ──verified, warmed, listening──▶ ready ──drain()──▶ lame duck ──▶ answering ──▶ stopped
                                               health SERVING     NOT_SERVING   GOAWAY, no new calls

The supervisor starts it by exec as ``python -m digitserve.worker``, with its settings on standard input, and hears from
it on standard output. When its standard input closes, the supervisor is gone, and the worker drains. ``--workers 0``
runs the same object on a thread of the one process.
"""

import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from digitserve import log
from digitserve.batching.batcher import Batcher
from digitserve.batching.pipeline import Classifier
from digitserve.errors import StartupError
from digitserve.inference.bundle import Bundle, find_bundle, read_bundle
from digitserve.inference.session import Session
from digitserve.protocol.codec import Limits
from digitserve.settings import Settings, endpoint
from digitserve.telemetry.block import SERVICE, Block, Tally
from digitserve.transport.classify import CLASSIFY, ClassifyTaker
from digitserve.transport.classify_stream import CLASSIFY_STREAM, ClassifyStreamTaker
from digitserve.transport.grpcio.completion_queue import OPTIONS, Server
from digitserve.transport.grpcio.ordinary import ModelServicer, OrdinaryPath

IDLE_TURN_S = 0.1
"""Longest wait for an event: how late a request to drain is noticed, and how often an idle heart beats."""

MAX_EVENTS_A_TURN = 1024
"""Events handled before the next batch, so that a flood of refusals cannot keep admitted requests waiting."""

MAX_BATCH_S = 0.05
"""Longest estimated batch: what a small request waits for at most when a large one is running."""

BACKLOG_TURNS = 16
"""Turns spent on taking calls out of core before the listener closes."""

LINGER_S = 1.0
"""After GOAWAY, seconds for clients to close: idle ones do so at once, health watchers and silent callers never."""

FRAMING_UNIT_S = 4e-10
"""First estimate for a unit of framing: 105 us for a small image, as on grainy paper; every batch that frames mends it."""

PENDING_REQUESTS_BYTES = 8
"""Most memory held by waiting requests, in requests of the largest size."""

NEVER_MS = (1 << 31) - 1
"""Core's word for a connection age without end."""

YOUNG_OBJECTS = 20_000
"""Allocations between two rounds of the collector: more than a full batch holds at once, which would only be walked over."""

POOL_THREADS = 32
"""For the ordinary path; made when needed. Each open reflection stream holds one."""

UNARY_POOL_THREADS = 4
"""For its unary calls, which never wait."""

EXIT_REFUSED = 3
EXIT_CRASHED = 70

_log = structlog.get_logger("digitserve.worker")


class Worker:
    """Serves one bundle on one port. ``run`` belongs to one thread; ``drain`` may be called from any."""

    def __init__(self, settings: Settings, bundle: Bundle, block: Block, num_threads: int) -> None:
        """Verify the bundle, warm up, and build the server; nothing listens yet.

        Args:
            settings: with the port and version that were settled on.
            bundle: read and checked.
            block: where to count.
            num_threads: onnxruntime's.

        Raises:
            StartupError: the bundle or the execution provider failed a check.
        """
        self._settings = settings
        self._tally = Tally(block, bundle.manifest.labels)
        self._session = Session(bundle, device=settings.device, num_threads=num_threads)
        limits = Limits(
            model_version=str(bundle.manifest.version),
            max_side=settings.max_side,
            max_images=settings.max_pending_images,
            max_request_bytes=settings.max_request_bytes,
        )
        self._batcher = Batcher(
            max_batch_size=settings.batch_limit,
            max_pending_images=settings.max_pending_images,
            max_pending_bytes=PENDING_REQUESTS_BYTES * settings.max_request_bytes,
            max_batch_s=MAX_BATCH_S,
            image_s=self._session.warm_up(settings.batch_limit),
            work_s=FRAMING_UNIT_S,
        )
        self._classifier = Classifier(self._batcher, self._session, bundle, self._tally)
        self._calls = ClassifyTaker(self._classifier, limits, self._tally)
        self._streams = ClassifyStreamTaker(self._classifier, limits, settings.batch_limit, self._tally)
        self._health = health.HealthServicer()
        self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._server = self._build(ModelServicer(bundle, self._session, limits, settings.batch_limit))
        self._drain = threading.Event()
        self._stopped = False
        self.provider = self._session.provider

    def listen(self) -> int:
        """Bind, say SERVING, and take connections.

        Returns:
            The port.

        Raises:
            StartupError: the address cannot be bound.
        """
        address = endpoint(self._settings.host, self._settings.grpc_port)
        try:
            port = self._grpc.add_insecure_port(address)
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {address}: {error}") from None
        self._set_health(health_pb2.HealthCheckResponse.SERVING)
        self._server.start()
        return port

    def drain(self) -> None:
        """Ask the loop to stop taking requests, answer what it has, and end."""
        self._drain.set()

    def run(self) -> None:
        """Turn the loop until the worker has drained."""
        # What exists now lives for ever: the collector need not look at it again.
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS)
        while not self._drain.is_set():
            self._turn()
        ends = time.monotonic() + self._settings.grace_s
        lame_duck_ends = min(ends, time.monotonic() + self._settings.lame_duck_s)
        # Not on this thread: it would wait for watchers to be told, and only this thread's turns can tell them.
        self._pool.submit(self._health.enter_graceful_shutdown)
        while time.monotonic() < lame_duck_ends:
            self._turn()
        self._finish(ends)

    def _finish(self, ends: float) -> None:
        """Send clients elsewhere, answer what was taken, and stop."""
        # Core fails the calls that it still holds when it shuts down, so take them first; bounded, for more keep coming.
        for _ in range(BACKLOG_TURNS):
            if not self._turn():
                break
        self._server.begin_shutdown()
        self._streams.drain()
        lingers = time.monotonic() + LINGER_S
        while not self._stopped and time.monotonic() < ends and (self._owes() or time.monotonic() < lingers):
            self._turn()
        self._classifier.give_up()
        self._server.cancel_all()
        while not self._stopped:
            self._turn()
        self._pool.shutdown(wait=False)
        self._unary_pool.shutdown(wait=False)

    def _turn(self) -> bool:
        """Handle what has arrived, then run one batch; return whether anything was there."""
        handled = self._poll(0.0 if self._batcher.waits() else IDLE_TURN_S)
        num_events = 1
        while handled and num_events < MAX_EVENTS_A_TURN:
            handled = self._server.poll(0.0)
            num_events += 1
        self._stopped = handled is None
        ran = self._classifier.run_batch()
        self._streams.flush()
        return ran or num_events > 1

    def _owes(self) -> bool:
        """Whether something admitted is not answered yet."""
        return self._batcher.waits() or self._streams.owes()

    def _poll(self, timeout_s: float) -> bool | None:
        self._tally.heartbeat[0] = time.monotonic()
        # Under a microsecond, and at most a batch is run between two turns.
        self._tally.cpu_s[0] = time.process_time()
        return self._server.poll(timeout_s)

    def _build(self, model: ModelServicer) -> Server:
        # Protobuf adds a few bytes to the pixels; a request of exactly the limit must pass.
        options = (
            *OPTIONS,
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", self._settings.max_request_bytes),
            # No grace is set, which core takes as without end: calls and streams that are open at that age are not cut.
            ("grpc.max_connection_age_ms", round(self._settings.max_connection_age_s * 1e3) or NEVER_MS),
        )
        self._pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="ordinary")
        self._unary_pool = ThreadPoolExecutor(UNARY_POOL_THREADS, thread_name_prefix="ordinary_unary")
        self._grpc = grpc.server(
            self._pool,
            interceptors=[OrdinaryPath(self._tally, self._unary_pool)],
            options=options,
        )
        self._grpc.add_registered_method_handlers(SERVICE, model.handlers())
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection([SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME], self._grpc)
        server = Server(self._grpc)
        server.take(CLASSIFY, self._calls)
        server.take_stream(CLASSIFY_STREAM, self._streams)
        return server

    def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus) -> None:
        for service in ("", SERVICE):
            self._health.set(service, status)


def read_in_bulk() -> None:
    """Let core's threads, which read the sockets, wait for this one's pauses, in place of interrupting it at each arrival.

    Threads of this policy do not preempt others when they wake. Those that core starts later inherit it. An interrupted
    batch is slower by far more than reading takes: the caches are no longer its own (docs/decisions.md).
    """
    # A sandbox may forbid it; the worker does the same, only slower.
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main() -> int:
    """Run as the supervisor's child: ``python -m digitserve.worker BLOCK_FD NUM_THREADS``."""
    read_in_bulk()
    block_fd, num_threads = map(int, sys.argv[1:3])
    settings = Settings.from_json(sys.stdin.readline())
    log.configure(settings.log_format, pid=os.getpid())
    # Ctrl-C reaches the whole terminal's group; the supervisor decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        bundle = read_bundle(find_bundle(settings.models, settings.model, settings.model_version))
        worker = Worker(settings, bundle, Block(bundle.manifest.labels, block_fd), num_threads)
        worker.listen()
    except StartupError as error:
        _say(event="refused", message=str(error))
        return EXIT_REFUSED
    signal.signal(signal.SIGTERM, lambda _signal, _frame: worker.drain())
    threading.Thread(target=_watch_parent, args=(worker.drain,), daemon=True).start()
    _say(event="ready", provider=worker.provider)
    try:
        worker.run()
    except Exception:
        # The one boundary: a loop that died must not leave a process that only looks alive.
        _log.exception("the loop crashed")
        sys.stderr.flush()
        os._exit(EXIT_CRASHED)
    return 0


def _say(**message: object) -> None:
    print(json.dumps(message), flush=True)  # noqa: T201 - standard output is the line to the supervisor


def _watch_parent(drain: Callable[[], None]) -> None:
    """Drain when told to, or when the supervisor's end of the pipe closes."""
    sys.stdin.readline()
    drain()


if __name__ == "__main__":
    sys.exit(main())

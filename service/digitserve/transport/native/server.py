"""The native gRPC server of a worker.

    NativeServer ──poll──▶ Loop ──▶ Connection ──▶ handlers of all methods        :worker's thread

Built and owned by the worker, whose thread calls every method. Every RPC runs on that thread. The listening socket is a copy
of one that the supervisor keeps, so that connections which arrive while the worker is replaced wait for the next one.
"""

import functools
import socket
import time
from collections.abc import Callable, Mapping

from digitserve.access import NOTHING_VALID, LastValid, Tokens
from digitserve.certificate import new_context, watched_certificate
from digitserve.file_watch import FileWatch
from digitserve.protocol.names import Method
from digitserve.settings import Settings
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.handlers import StreamHandler, UnaryHandler
from digitserve.transport.native.connection import Connection
from digitserve.transport.native.connection import Method as Route
from digitserve.transport.native.guard import Guard, GuardedConnection
from digitserve.transport.native.limits import Limits, ReceiveBudget, WorkerLimits
from digitserve.transport.native.loop import Loop
from digitserve.transport.native.shares import StreamShare
from digitserve.transport.respond import UnknownMethodHandler


class NativeServer:
    """The server of one worker; owned by it, and polled by its thread."""

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder,
        unary: Mapping[Method, UnaryHandler],
        streams: Mapping[Method, StreamHandler],
        listener: socket.socket,
        last_valid: LastValid = NOTHING_VALID,
        inside: socket.socket | None = None,
    ) -> None:
        """Build the server; nothing is accepted before ``listen``.

        Args:
            settings: of the service.
            recorder: of the worker.
            unary: handlers of unary RPCs.
            streams: handlers of streaming RPCs.
            listener: listens on the address; the server closes it when it shuts down.
            last_valid: certificate and tokens to start with if their files are not valid now.
            inside: accepts connections of the supervisor, which has checked the callers; the server closes it.

        Raises:
            SettingsError: two settings contradict each other, or a file of the certificate or of tokens cannot be used.
        """
        self._listener, self._inside = listener, inside
        routes = {method.path.encode(): Route(unary=handler) for method, handler in unary.items()}
        routes |= {method.path.encode(): Route(stream=handler) for method, handler in streams.items()}
        unknown = UnknownMethodHandler(recorder)
        limits, worker_limits = Limits.of(settings), WorkerLimits.of(settings)
        budget = ReceiveBudget(worker_limits.max_receive_bytes, limits.message_s)
        budget.streams = self._stream_share = StreamShare(settings.max_pending_images)

        tokens = Tokens.of(settings, last_valid.digests)
        kind = Connection if tokens is None else functools.partial(GuardedConnection, Guard(tokens, recorder))

        def new_connection(now: float, on_output: Callable[[], None]) -> Connection:
            return kind(routes, unknown, limits, budget, recorder, now, on_output)

        def new_inside_connection(now: float, on_output: Callable[[], None]) -> Connection:
            return Connection(routes, unknown, limits, budget, recorder, now, on_output)

        self._new_inside_connection = new_inside_connection

        certificate = watched_certificate(settings, lambda files: new_context(files, settings), last_valid.key_files)
        context = None if certificate is None else lambda: certificate.value
        self._loop = Loop(new_connection, worker_limits, recorder, context)
        self._watch = FileWatch([certificate, tokens])
        self._stopping = False

    def listen(self) -> int:
        """Accept connections; see ``Server``."""
        port: int = self._listener.getsockname()[1]
        self._loop.listen(self._listener)
        if self._inside is not None:
            self._loop.listen_inside(self._inside, self._new_inside_connection)
        self._watch.start()
        return port

    def poll(self, timeout_s: float) -> bool | None:
        """Send what waits, and handle what has arrived; see ``Server``."""
        self._stream_share.update(self._loop.num_connections)
        arrived = self._loop.poll(timeout_s)
        self._stream_share.adjust(time.monotonic(), self._loop.read_s, was_cut=self._loop.was_cut)
        return None if self._stopping and not self._loop.num_connections else arrived

    def begin_shutdown(self) -> None:
        """Stop listening and announce the end of all connections; see ``Server``."""
        self._stopping = True
        self._loop.stop_listening()
        self._loop.drain()

    def has_unanswered(self) -> bool:
        """Return whether calls are open, answers are not sent, or a client does not know yet that its connection ends."""
        return self._loop.has_unanswered()

    def cancel_all(self) -> None:
        """End every call that is still open."""
        self._loop.close_all()

    def close(self) -> None:
        """Close all sockets."""
        self._watch.stop()
        self._loop.close()

"""The native gRPC server of a worker.

    NativeServer ──poll──▶ Loop ──▶ Connection ──▶ handlers of all methods        :worker's thread

Built and owned by the worker, whose thread calls every method. Every RPC runs on that thread. The listening socket is a copy
of one that the supervisor keeps, so that connections which arrive while the worker is replaced wait for the next one.
"""

import math
import socket
from collections.abc import Callable, Mapping

from digitserve.protocol.names import Method
from digitserve.settings import Settings
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.certificate import server_context
from digitserve.transport.handlers import StreamHandler, UnaryHandler
from digitserve.transport.native.connection import Connection
from digitserve.transport.native.connection import Method as Route
from digitserve.transport.native.limits import Limits, ReceiveBudget
from digitserve.transport.native.loop import Loop
from digitserve.transport.native.shares import StreamShare
from digitserve.transport.respond import UnknownMethodHandler

MAX_CONNECTIONS = 4_096
"""Connections of one worker; for more, the most silent are closed."""

MAX_TLS_CONNECTIONS = 2_048
"""The same with TLS: each takes up to 30 KiB for it."""

RECEIVE_BUDGET_MESSAGES = 6
"""Unfinished messages of all connections together, in messages of the maximal size."""

MIN_RECEIVE_BUDGET_BYTES = 1 << 24
"""The same in bytes, if the maximal size is small: a quarter is room for the first windows of 64 clients."""


class NativeServer:
    """The server of one worker; owned by it, and polled by its thread."""

    def __init__(
        self,
        settings: Settings,
        recorder: Recorder,
        unary: Mapping[Method, UnaryHandler],
        streams: Mapping[Method, StreamHandler],
        listener: socket.socket,
    ) -> None:
        """Build the server; nothing is accepted before ``listen``.

        Args:
            settings: of the service.
            recorder: of the worker.
            unary: handlers of unary RPCs.
            streams: handlers of streaming RPCs.
            listener: listens on the address; the server closes it when it shuts down.

        Raises:
            SettingsError: the certificate or its key cannot be used.
        """
        self._listener = listener
        routes = {method.path.encode(): Route(unary=handler) for method, handler in unary.items()}
        routes |= {method.path.encode(): Route(stream=handler) for method, handler in streams.items()}
        unknown = UnknownMethodHandler(recorder)
        limits = Limits(max_message_bytes=settings.max_request_bytes)
        budget = ReceiveBudget(max(RECEIVE_BUDGET_MESSAGES * settings.max_request_bytes, MIN_RECEIVE_BUDGET_BYTES))
        budget.streams = self._stream_share = StreamShare(settings.max_pending_images)

        def new_connection(now: float, on_output: Callable[[], None]) -> Connection:
            return Connection(routes, unknown, limits, budget, now, on_output)

        context = server_context(settings)
        max_connections = MAX_CONNECTIONS if context is None else MAX_TLS_CONNECTIONS
        self._loop = Loop(new_connection, max_connections, settings.max_connection_age_s or math.inf, context)
        self._stopping = False

    def listen(self) -> int:
        """Accept connections; see ``Server``."""
        port: int = self._listener.getsockname()[1]
        self._loop.listen(self._listener)
        return port

    def poll(self, timeout_s: float) -> bool | None:
        """Send what waits, and handle what has arrived; see ``Server``."""
        self._stream_share.update(self._loop.num_connections)
        arrived = self._loop.poll(timeout_s)
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
        self._loop.close()

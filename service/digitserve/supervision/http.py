"""The HTTP port: endpoints for operators and platforms, the page and the HTTP API (``web``). Runs on the supervisor's event loop.

uvicorn and Starlette serve them. uvicorn has no time limit for requests, and beyond its limit of connections it refuses new
ones, including probes of the platform. ``_BoundedConnection`` adds a time limit, and closes those that have waited longest
instead, so that idle and slow clients do not block others. ``http_access`` adds TLS and decides who may use what.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, Protocol, cast

import h11
import uvicorn
from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from digitserve.supervision.http_access import HttpAccess
from digitserve.supervision.http_log import AsgiApp
from digitserve.supervision.http_tls import PIECE_BYTES, TlsTransport
from digitserve.telemetry import exposition
from digitserve.telemetry.supervisor_metrics import metric
from digitserve.web.api import API_PREFIX, REQUEST_S
from digitserve.web.page_files import page_routes

RESPONSE_S = 10.0
"""A connection on which no response was completed for this time is closed: the client sends or reads too slowly."""

UNREAD_S = 1.0
"""Time in which the client can read an answer before the rest of its request has been sent: then the connection is closed. If it
were closed at once, the client could lose the answer."""

MAX_HEADER_BYTES = 16_384

READ_BYTES = 1 << 14
"""Most bytes that an iteration of the event loop reads from a connection without TLS. In the 256 KiB that asyncio reads by default, a
client could send 43,000 chunks of a byte, or a query of 80,000 parameters: all others would wait for 2.7 s (measured)."""

NUM_SMALL_CHUNKS, SMALL_CHUNK_BYTES = 128, 64
"""A body in more chunks than this has to have as many bytes in each on average: the parser needs up to 60 us for a chunk (measured)."""

MAX_ACCEPTS = 64
"""Most connections accepted at once, and at most a quarter of the limit: the excess is closed two iterations later."""

BACKLOG = 4_096
"""Connections that the kernel queues until they are accepted. Beyond it clients try again only after a second, probes too."""

IS_VERIFIED = "is_verified"
"""Name in the state of a request: whether the client has a valid certificate."""

UNAUTHORIZED = "expected the header 'Authorization: Bearer TOKEN' with a valid token, or a client certificate\n"

Endpoint = Callable[[Request], Awaitable[Response]]


class ServiceStatus(Protocol):
    """The part of the supervisor that the endpoints read."""

    @property
    def ready(self) -> bool:
        """Whether at least one worker accepts requests and the service is not about to stop."""

    def status_line(self) -> str:
        """Return the state of the service as one line of text."""


def credentials(request: Request) -> tuple[str, bool]:
    """Return the credentials of a client: the header field ``authorization``, and whether it has a valid certificate."""
    sent = request.headers.getlist("authorization")
    return sent[0] if len(sent) == 1 else "", getattr(request.state, IS_VERIFIED, False)


def make_app(
    status: ServiceStatus, registry: CollectorRegistry, access: HttpAccess, routes: Iterable[Route] = ()
) -> Starlette:
    """Build the application.

    Args:
        status: read for ``/readyz``.
        registry: the metrics of ``/metrics``.
        access: decides who may read more than the state of the service.
        routes: of the HTTP API, which check their clients themselves.
    """

    def protected(endpoint: Endpoint) -> Endpoint:
        """Return an endpoint that answers 401 to clients that may not read it."""

        async def check(request: Request) -> Response:
            authorization, is_verified = credentials(request)
            if access.admits(authorization, is_verified=is_verified):
                return await endpoint(request)
            return PlainTextResponse(UNAUTHORIZED, status_code=401, headers={"www-authenticate": "Bearer"})

        return check

    # Coroutines, although they never wait: Starlette runs plain functions on other threads, and the state that these
    # read is written on this one.
    async def livez(_request: Request) -> Response:
        return PlainTextResponse("alive\n")

    async def readyz(_request: Request) -> Response:
        return PlainTextResponse(status.status_line() + "\n", status_code=200 if status.ready else 503)

    async def metrics(request: Request) -> Response:
        content_type = exposition.choose(request.headers.get("accept", ""))
        return Response(exposition.encode(registry.collect(), content_type), media_type=content_type)

    app = Starlette(
        routes=[
            Route("/livez", livez),
            Route("/readyz", readyz),
            Route("/metrics", protected(metrics)),
            *routes,
            *page_routes(),
        ]
    )
    app.router.redirect_slashes = False  # a redirect would contain the header field host, which the client chooses
    return app


class HttpConnections:
    """The open connections of the HTTP port; owned by the server.

    Attributes:
        max_connections: beyond it, the connection that has waited longest for a response is closed.
        waiting: all of them, in the order of their last response.
        num_closed: how many the server has closed, by reason: ``too_many``, ``timeout``, or ``unread`` if a request was answered
            before its end.
    """

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        self.waiting: dict[_BoundedConnection, None] = {}
        self.num_closed = {"too_many": 0, "timeout": 0, "unread": 0}

    def close(self, connection: "_BoundedConnection", reason: str) -> None:
        """Close a connection."""
        self.waiting.pop(connection, None)
        self.num_closed[reason] += 1
        connection.transport.abort()

    def metrics(self) -> Iterable[Metric]:
        """Yield the metrics of the connections."""
        yield metric("digitserve_http_connections", len(self.waiting))
        yield metric(
            "digitserve_http_connections_closed", {(reason,): number for reason, number in self.num_closed.items()}
        )


class _Parser(h11.Connection):
    """The HTTP/1.1 of a connection, which also rejects bodies in very many small chunks; owned by the connection."""

    _num_chunks = _num_bytes = 0

    def next_event(self) -> Any:
        """Return the next part of what the client has sent; see h11.

        Raises:
            h11.RemoteProtocolError: the connection has to be closed.
        """
        event = super().next_event()
        if isinstance(event, h11.Data):
            self._num_chunks += event.chunk_end
            self._num_bytes += len(event.data)
            if self._num_chunks > max(NUM_SMALL_CHUNKS, self._num_bytes // SMALL_CHUNK_BYTES):
                raise h11.RemoteProtocolError("too many small chunks")
        elif isinstance(event, h11.Request):
            self._num_chunks = self._num_bytes = 0
        return event


class _BoundedConnection(H11Protocol, asyncio.BufferedProtocol):
    """A connection of the HTTP port, closed unless a response is completed every ``RESPONSE_S``; owned by uvicorn.

    Attributes:
        closes: whether it is closed after the response that is complete.
    """

    def __init__(self, *arguments: Any, connections: HttpConnections, buffer: bytearray, **options: Any) -> None:
        """Prepare.

        Args:
            arguments: of uvicorn.
            connections: all that are open.
            buffer: as that of ``TlsTransport``, for a connection without TLS.
            options: of uvicorn.
        """
        super().__init__(*arguments, **options)
        self.conn = _Parser(h11.SERVER, MAX_HEADER_BYTES)
        self._connections = connections
        self._buffer = buffer
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._drops = False
        self.closes = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's
        """Start to wait for a request."""
        super().connection_made(transport)
        if transport.get_extra_info("peercert"):
            self.app_state = {**self.app_state, IS_VERIFIED: True}
        self.wait(transport)

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - the interface of asyncio
        """Return where to put what the client has sent."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Handle what the client has sent, without TLS."""
        self.data_received(bytes(memoryview(self._buffer)[:nbytes]))

    def handle_events(self) -> None:
        """Handle what the client has sent. A request to the HTTP API has its own limits of time: bodies may be large."""
        before = self.cycle
        super().handle_events()
        if self.cycle is None or self.cycle is before:
            return
        self.cycle.transport = cast("asyncio.Transport", _CloseAfterResponse(self))
        if self.scope["path"].startswith(API_PREFIX):
            self.wait(self.transport, REQUEST_S)

    def data_received(self, data: bytes) -> None:
        """Handle what the client has sent; drop it if the connection is closed anyway."""
        if not self._drops:
            super().data_received(data)

    def wait(self, transport: asyncio.Transport, limit_s: float | None = None) -> None:
        """Start to wait for a request, or the TLS handshake; close the connection that has waited longest if there are too many.

        Args:
            transport: aborted then, or if the wait is too long.
            limit_s: longest wait in seconds; ``RESPONSE_S`` by default.
        """
        self.stop_waiting()
        self.transport = transport
        connections = self._connections
        connections.waiting[self] = None
        self._timer = self.loop.call_later(
            RESPONSE_S if limit_s is None else limit_s, connections.close, self, "timeout"
        )
        while len(connections.waiting) > connections.max_connections:
            oldest = next(iter(connections.waiting))
            oldest.stop_waiting()
            connections.close(oldest, "too_many")

    def stop_waiting(self) -> None:
        """Stop waiting: the connection is closed, or has sent something."""
        self._connections.waiting.pop(self, None)
        for timer in (self._timer, self._unread):
            if timer is not None:
                timer.cancel()

    def send_400_response(self, msg: str) -> None:
        """Answer malformed input, or only close the connection if an answer was sent, which may belong to this request."""
        if self.cycle is None:
            super().send_400_response(msg)
        else:
            self.transport.close()

    def on_response_complete(self) -> None:
        """Start to wait for the next request."""
        self.wait(self.transport)
        self.cycle.body.clear()  # of a request whose handler does not read it
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.conn.their_state is h11.SEND_BODY:
            self._drops = self.closes
            self._unread = self.loop.call_later(UNREAD_S, self._close_unread)
        elif self.closes:
            self.transport.close()

    def _close_unread(self) -> None:
        """Close the connection if the client still sends the request that was answered."""
        if self._drops or (self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE):
            self.stop_waiting()
            self._connections.close(self, "unread")

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting: the connection is closed."""
        self.stop_waiting()
        super().connection_lost(exc)


class _CloseAfterResponse:
    """The transport of a response: the connection itself decides when it is closed, because the request may not be read yet."""

    def __init__(self, connection: _BoundedConnection) -> None:
        self._connection = connection

    def write(self, data: bytes) -> None:
        self._connection.transport.write(data)

    def is_closing(self) -> bool:
        return self._connection.transport.is_closing()

    def close(self) -> None:
        if self._connection.cycle.response_complete:
            self._connection.closes = True
        else:
            self._connection.transport.close()


class HttpServer(uvicorn.Server):
    """uvicorn on the supervisor's event loop; the supervisor handles the signals.

    Attributes:
        connections: that are open.
    """

    def __init__(self, app: AsgiApp, access: HttpAccess, max_connections: int) -> None:
        """Prepare.

        Args:
            app: answers requests.
            access: has the TLS configuration of the port; its files are watched while the server runs.
            max_connections: most open connections; up to twice as many file descriptors are used.
        """
        self._access = access
        self.connections = HttpConnections(max_connections)
        piece, buffer = bytearray(PIECE_BYTES), bytearray(READ_BYTES)

        def connection(**options: Any) -> asyncio.BaseProtocol:
            bounded = _BoundedConnection(connections=self.connections, buffer=buffer, **options)
            return bounded if access.context is None else TlsTransport(bounded, access.context, piece)

        super().__init__(
            uvicorn.Config(
                app, http=cast("type[asyncio.Protocol]", connection), ws="none", log_config=None, access_log=False,
                lifespan="off", server_header=False, timeout_graceful_shutdown=1, backlog=max(1, min(MAX_ACCEPTS, max_connections // 4)),
            )
        )  # fmt: skip

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections."""
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers, unlike uvicorn's own."""
        yield

    async def run_on(self, listener: socket.socket) -> None:
        """Serve until ``should_exit`` is set.

        Args:
            listener: a listening socket. The server closes it.
        """
        self._access.watch.start()
        try:
            await self.serve(sockets=[listener])
        finally:
            self._access.watch.stop()

"""gRPC calls to the workers, on Unix sockets.

    api ──▶ WorkerCalls ──chooses a slot──▶ WorkerConnection ──HTTP/2──▶ worker

Owned by the HTTP server, and used on the supervisor's event loop. The HTTP/2 code is that of the load generator: it needs less CPU
time than grpcio's client and no threads, and takes a socket that is already connected.
"""

import asyncio
import base64
import binascii
import random
import socket
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, cast

from google.protobuf.message import DecodeError
from google.rpc import status_pb2

from digitserve.bench import frames, wire
from digitserve.bench.http2 import Connection, Event
from digitserve.protocol.names import Code, Method
from digitserve.protocol.status import Status
from digitserve.web.answers import Failure

NUM_ATTEMPTS = 3
"""Workers that are tried in turn if connections are lost: one may end while another one is replaced."""

MAX_CONNECTIONS = 32
"""Connections to a worker. A busy worker reads the same amount from each connection, so calls that share a connection wait longer than
those of gRPC clients. With one connection, drawings of 50 pages waited for 1.4 s under full load."""

LATE_S = 0.1
"""Time after the deadline in which the error of the worker can still arrive."""

_AUTHORITY, _USER_AGENT = "digitserve", "digitserve-http"
_TIMEOUT = b"grpc-timeout"
_LOST, _LOST_RESETS = {Code.UNAVAILABLE, Code.CANCELLED}, {frames.REFUSED_STREAM, frames.CANCEL}
"""How a worker that drains ends calls that it has not accepted. gRPC core cancels them."""

_MAX_HEADER_BYTES = 126
"""Longest name and value whose length ``_literal`` encodes in one byte; longer header fields are left out."""

Headers = Iterable[tuple[bytes, bytes]]

_NO_WORKER = Status(Code.UNAVAILABLE, "no worker is ready; retry later")
_LATE = Status(Code.DEADLINE_EXCEEDED, "no answer before the deadline")


class Slot(Protocol):
    """A slot of the supervisor: it has a worker most of the time."""

    @property
    def accepts(self) -> bool:
        """Whether a worker accepts calls."""

    @property
    def token(self) -> str:
        """The token of calls; empty if they need none."""

    def connect(self) -> socket.socket:
        """Return a new connection to the worker.

        Raises:
            OSError: that is not possible now.
        """


class ConnectionLost(Exception):
    """The worker has not answered: it does not know the call, or has ended."""


class Trailers(NamedTuple):
    """The end of a call.

    Attributes:
        status: code and message.
        details: serialized ``google.rpc.Status``; empty without one.
    """

    status: wire.Status
    details: bytes


class _Call:
    """A call in flight: what has arrived, and the future that gets all of it."""

    __slots__ = ("answer", "received")

    def __init__(self, answer: "asyncio.Future[bytes]") -> None:
        self.answer = answer
        self.received: list[bytes] = []


class WorkerConnection(asyncio.Protocol):
    """A connection for the calls of one method. Owned by ``WorkerCalls`` until it is closed.

    Attributes:
        open: false once it takes no more calls.
        num_calls: that use it; its owner counts.
    """

    def __init__(self, method: Method, token: str) -> None:
        """Prepare.

        Args:
            method: of all calls.
            token: of all calls; empty if they need none.
        """
        headers = wire.request_headers(
            method.path, _AUTHORITY, _USER_AGENT, None, authorization=f"Bearer {token}" if token else ""
        )
        self._connection = Connection(headers, _read_trailers)
        self.num_calls = 0
        self._calls: dict[int, _Call] = {}
        self._changed = asyncio.Event()
        self._transport: asyncio.Transport
        self._lost = False

    @property
    def open(self) -> bool:
        """Whether calls can be made."""
        return not (self._lost or self._connection.going_away)

    async def call(self, message: bytes, timeout_s: float, headers: Headers) -> bytes:
        """Make a call.

        Args:
            message: the request, serialized.
            timeout_s: time for the answer.
            headers: more header fields.

        Returns:
            The serialized response.

        Raises:
            Failure: the worker answered with an error.
            ConnectionLost: it did not answer; another one may.
            TimeoutError: the deadline has passed.
        """
        async with asyncio.timeout(timeout_s + LATE_S):
            while not self._connection.can_open():
                if not self.open:
                    raise ConnectionLost
                self._changed.clear()
                await self._changed.wait()
            fields = [(_TIMEOUT, wire.timeout(timeout_s).encode()), *headers]
            encoded = b"".join(_literal(name, value) for name, value in fields)
            stream_id = self._connection.open(wire.prefix(message), end_stream=False, more_headers=encoded)
            self._connection.send(stream_id, message, end_stream=True)
            call = self._calls[stream_id] = _Call(asyncio.get_running_loop().create_future())
            self._flush()
            try:
                return await call.answer
            finally:
                del self._calls[stream_id]
                if self._connection.is_open(stream_id) and not self._lost:
                    self._connection.cancel(stream_id)
                    self._flush()

    def close(self) -> None:
        """Close the connection."""
        self._transport.abort()

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the preface."""
        self._transport = cast("asyncio.Transport", transport)
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Handle what the worker has sent."""
        try:
            events = self._connection.receive(data)
        except frames.ProtocolError:
            self._transport.abort()
            return
        for event in events:
            self._handle(event)
        self._changed.set()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - the interface of asyncio
        """End the open calls."""
        self._lost = True
        self._changed.set()
        for call in self._calls.values():
            _fail(call, ConnectionLost())

    def _handle(self, event: Event) -> None:
        kind, stream_id, value, ended = event
        call = self._calls.get(stream_id)
        if call is None:
            return
        if kind == frames.DATA:
            call.received.append(value)
        elif kind == frames.RST_STREAM:
            _fail(call, ConnectionLost() if value in _LOST_RESETS else _reset(value))
        elif kind == frames.HEADERS and ended:
            self._end(call, value)

    def _end(self, call: _Call, trailers: Trailers) -> None:
        received = b"".join(call.received)
        if trailers.status.code in _LOST:
            _fail(call, ConnectionLost())
        elif trailers.status.code is not Code.OK:
            _fail(call, Failure(_status(trailers)))
        elif not wire.is_one_message(received):
            _fail(call, ConnectionLost())
        elif not call.answer.done():
            call.answer.set_result(received[wire.PREFIX_BYTES :])

    def _flush(self) -> None:
        if output := self._connection.take_output():
            self._transport.write(output)


class WorkerCalls:
    """Calls to all workers; owned by the HTTP server.

    Attributes:
        slots: of the service.
    """

    def __init__(self, slots: Sequence[Slot]) -> None:
        """Connect at the first call.

        Args:
            slots: of the service.
        """
        self.slots = slots
        self._num_open = [0] * len(slots)
        self._connections: dict[tuple[int, Method], list[WorkerConnection]] = {}
        self._connecting = asyncio.Lock()

    async def call(self, method: Method, message: bytes, timeout_s: float, headers: Headers = ()) -> bytes:
        """Make a call to the worker with the fewest open calls of the HTTP API; first to others if connections are lost.

        Args:
            method: unary.
            message: the request, serialized.
            timeout_s: time for the answer.
            headers: more header fields.

        Returns:
            The serialized response.

        Raises:
            Failure: of the worker, or because none has answered.
        """
        loop = asyncio.get_running_loop()
        ends = loop.time() + timeout_s
        tried: set[int] = set()
        for _ in range(NUM_ATTEMPTS):
            accepting = [number for number, slot in enumerate(self.slots) if slot.accepts]
            if not accepting:
                break
            number = min(accepting, key=lambda one: (one in tried, self._num_open[one], random.random()))  # noqa: S311 - no secret
            tried.add(number)
            self._num_open[number] += 1
            try:
                connection = await self._connect(number, method)
                try:
                    return await connection.call(message, max(0.0, ends - loop.time()), headers)
                finally:
                    connection.num_calls -= 1
            except (ConnectionLost, OSError) as error:
                if isinstance(error, TimeoutError):
                    raise Failure.of(_LATE) from None
            finally:
                self._num_open[number] -= 1
        raise Failure.of(_NO_WORKER)

    def close(self) -> None:
        """Close the connections."""
        for connections in self._connections.values():
            for connection in connections:
                connection.close()

    async def _connect(self, number: int, method: Method) -> WorkerConnection:
        """Return the connection to a slot that has the fewest calls, a new one if all have some; count the call there.

        Raises:
            OSError: there is none.
        """
        async with self._connecting:
            connections = [one for one in self._connections.get((number, method), ()) if one.open]
            connection = min(connections, key=lambda one: one.num_calls, default=None)
            if connection is None or (connection.num_calls and len(connections) < MAX_CONNECTIONS):
                slot = self.slots[number]
                connection = unused = WorkerConnection(method, slot.token)
                await asyncio.get_running_loop().create_unix_connection(lambda: unused, sock=slot.connect())
                connections.append(connection)
            self._connections[number, method] = connections
            connection.num_calls += 1
        return connection


def _fail(call: _Call, error: Exception) -> None:
    if not call.answer.done():
        call.answer.set_exception(error)


def _literal(name: bytes, value: bytes) -> bytes:
    """Encode a header field without the HPACK table (RFC 7541, section 6.2.2)."""
    if max(len(name), len(value)) > _MAX_HEADER_BYTES:
        return b""
    return bytes((0, len(name))) + name + bytes((len(value),)) + value


def _read_trailers(headers: Iterable[Any]) -> Trailers:
    found = list(headers)
    encoded = dict(found).get("grpc-status-details-bin", "")
    try:
        details = base64.b64decode(encoded + "=" * (-len(encoded) % 4))
    except binascii.Error:
        details = b""
    return Trailers(wire.read_status(found), details)


def _status(trailers: Trailers) -> status_pb2.Status:
    if trailers.details:
        try:
            return status_pb2.Status.FromString(trailers.details)
        except DecodeError:
            """Only the code and the message are known then."""
    return status_pb2.Status(code=trailers.status.code, message=trailers.status.message)


def _reset(error_code: int) -> Failure:
    code, message = wire.reset_status(error_code)
    return Failure.of(Status(code, message))

"""Connection drivers: each keeps one connection to the service open, sends requests on it and records their results.

    load ──send_request──▶ ConnectionDriver ──▶ http2.Connection ──▶ socket
    socket readable ──▶ ConnectionDriver ──▶ Recorder, and release_slot ──▶ load

Owned by ``load``, on its process's only thread. A driver has one slot per request that it may have in flight. It returns
the slot to ``load`` (``release_slot``) when the request ends, whatever its status. A connection that breaks, or that the
service asks to close, is replaced by a new one.
"""

import errno
import select
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from digitserve.bench import frames, http2, wire
from digitserve.bench.counts import Recorder
from digitserve.bench.tls import HandshakePending, TlsSocket
from digitserve.bench.traffic import EncodedRequest
from digitserve.bench.wire import Status
from digitserve.credentials import explain_handshake
from digitserve.protocol.names import Code
from digitserve.v1 import digits_pb2 as pb

SocketAddress: TypeAlias = tuple[socket.AddressFamily, tuple[str, int]]

RETRY_S = 0.1
"""Wait after a connection failed before the next attempt."""

RECEIVE_BYTES = 1 << 16

CHECK_EVERY = 64
"""One of this many answers is decoded and checked, starting with the first."""

LOST = Status(Code.UNAVAILABLE, "the connection was lost")
MALFORMED = Status(Code.INTERNAL, "the answer is not exactly one message followed by trailers")


@dataclass(frozen=True)
class Context:
    """What all connection drivers of a process share.

    Attributes:
        addresses: the addresses of the service, repeated without end: each connection takes the next one. So connections are
            spread over all of them, and one that fails is opened again to another address.
        headers: of every request.
        requests: an endless random mix of requests.
        recorder: records results.
        epoll: notifies ``load`` of ready sockets.
        clock: the monotonic clock, in seconds.
        deadline_s: deadline per request, or None.
        tls: TLS configuration and host name of the server; None for clear text.
    """

    addresses: Iterator[SocketAddress]
    headers: Sequence[tuple[str, str]]
    requests: Iterator[EncodedRequest]
    recorder: Recorder
    epoll: select.epoll
    clock: Callable[[], float]
    deadline_s: float | None = None
    tls: tuple[ssl.SSLContext, str] | None = None


class ConnectionDriver(ABC):
    """Drives one connection; subclasses in ``unary`` and ``streaming`` map requests to HTTP/2 streams.

    Attributes:
        num_parked_slots: slots for which no request could be sent; they are returned as soon as one can be sent.
        retry_s: when to connect again; valid while there is no connection.
        failure: why the last connection failed, as text.
        refusal: why the TLS handshake failed, and what to do; "" if it has not.
    """

    def __init__(self, context: Context, release_slot: Callable[["ConnectionDriver"], None]) -> None:
        self.num_parked_slots = 0
        self.retry_s = 0.0
        self.failure = self.refusal = ""
        self._context = context
        self._recorder = context.recorder
        self._release_slot = release_slot
        self._socket: socket.socket | TlsSocket | None = None
        self._connection = http2.Connection(context.headers, wire.read_status)
        self._unsent = b""
        self._waits_for_write = False
        self._closing = False
        self._num_answers = 0

    # Called by load.

    @property
    def connected(self) -> bool:
        """Whether there is a connection, or one is being opened."""
        return self._socket is not None

    @property
    def ready(self) -> bool:
        """Whether the service's HTTP/2 settings have arrived."""
        return self._connection.ready

    def fileno(self) -> int:
        """Return the socket's file descriptor; -1 without a socket."""
        return -1 if self._socket is None else self._socket.fileno()

    def connect(self) -> None:
        """Start to connect."""
        self._connection = http2.Connection(self._context.headers, wire.read_status)
        self._unsent = b""
        family, address = next(self._context.addresses)
        plain = socket.socket(family, socket.SOCK_STREAM)
        plain.setblocking(False)  # noqa: FBT003 - positional only
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = plain if self._context.tls is None else TlsSocket(plain, *self._context.tls)
        self._waits_for_write = True
        self._context.epoll.register(self._socket, select.EPOLLIN | select.EPOLLOUT)
        error = self._socket.connect_ex(address)
        if error not in {0, errno.EINPROGRESS}:
            self._on_connection_lost(OSError(error, errno.errorcode[error]))

    def on_event(self, mask: int) -> None:
        """Read from the socket if it is readable. ``load`` calls ``flush`` later, after it has sent more requests."""
        if mask & ~select.EPOLLOUT:
            self._read()

    def flush(self) -> None:
        """Write pending output until the socket would block."""
        if self._socket is None:
            return
        # While the connection is being opened, send raises BlockingIOError.
        out = self._unsent + self._connection.take_output()
        handshaking = False
        if out:
            try:
                out = out[self._socket.send(out) :]
            except HandshakePending:
                handshaking = True
            except BlockingIOError:
                pass
            except OSError as error:
                self._on_connection_lost(error)
                return
        self._unsent = out
        waits_for_write = bool(out) and not handshaking
        if waits_for_write != self._waits_for_write:
            self._waits_for_write = waits_for_write
            self._context.epoll.modify(self._socket, select.EPOLLIN | (select.EPOLLOUT if waits_for_write else 0))

    @abstractmethod
    def prepare_to_send(self) -> bool:
        """Open a stream if the method needs one; return whether a request can be sent now."""

    @abstractmethod
    def send_request(self, intended_s: float) -> None:
        """Send a request, after ``prepare_to_send``; its latency counts from its intended time."""

    @property
    @abstractmethod
    def num_in_flight(self) -> int:
        """Number of requests sent and not yet ended."""

    @abstractmethod
    def intended_in_flight(self) -> list[float]:
        """Return the intended times of the requests in flight."""

    @abstractmethod
    def expire(self, now_s: float) -> None:
        """End requests whose deadline has passed."""

    def finish(self) -> None:
        """Announce that no more requests follow."""
        self._closing = True

    @property
    def finished(self) -> bool:
        """Whether no request is in flight and no stream is open."""
        return not self.num_in_flight

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._context.epoll.unregister(self._socket)
            self._socket.close()
            self._socket = None

    # Internal.

    def _read(self) -> None:
        if self._socket is None:
            return
        try:
            received = self._socket.recv(RECEIVE_BYTES)
            if not received:
                raise ConnectionResetError(errno.ECONNRESET, "closed by the service")
            now_s = self._context.clock()
            self._handle(self._connection.receive(received), now_s)
        except BlockingIOError:
            return
        except (OSError, frames.ProtocolError) as error:
            self._on_connection_lost(error)
            return
        if self._connection.ready:
            self._after_read()

    def _after_read(self) -> None:
        if self._connection.going_away and self.finished:
            # The service sent GOAWAY, and everything in flight has been answered.
            self._recorder.counts.going_away += 1
            self.close()
            self.retry_s = 0.0
        elif self.num_parked_slots and self.prepare_to_send():
            self.num_parked_slots -= 1
            self._return_slots()

    def _on_connection_lost(self, error: Exception) -> None:
        # After GOAWAY, with nothing in flight, a service may simply close the connection.
        expected = self._connection.going_away and self.finished
        if not self._connection.ready and self._context.tls is not None:
            self.refusal = explain_handshake(str(error))
        self.close()
        self.failure = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        self._recorder.counts.going_away += expected
        self._recorder.counts.failed_connections += not expected
        self.retry_s = self._context.clock() + RETRY_S
        self._connection = http2.Connection(self._context.headers, wire.read_status)
        self._end_all(LOST)

    @abstractmethod
    def _handle(self, events: list[http2.Event], now_s: float) -> None:
        """Handle events from the service."""

    @abstractmethod
    def _end_all(self, status: Status) -> None:
        """End all requests in flight with this status."""

    def _end_request(self, intended_s: float, status: Status, now_s: float) -> None:
        self._recorder.request_ended(intended_s, status, now_s)
        self._return_slots()

    def _return_slots(self) -> None:
        # The reason for this request's end may also unblock the parked slots.
        for _ in range(1 + self.num_parked_slots):
            self._release_slot(self)
        self.num_parked_slots = 0

    def _count_answer(self) -> bool:
        """Count an answer; return whether it is one to check."""
        self._num_answers += 1
        return self._num_answers % CHECK_EVERY == 1

    def _check(self, response: pb.ClassifyResponse, num_images: int) -> None:
        self._recorder.counts.checked += 1
        self._recorder.counts.wrong += len(response.predictions) != num_images

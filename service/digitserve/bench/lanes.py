"""Lanes: each keeps one connection to the service, sends requests on it, and counts how they end.

    load ──issue──▶ Lane ──▶ http2.Connection ──▶ socket        socket readable ──▶ Lane ──▶ Tally, release ──▶ load

Owned by ``load``, on its process's one thread. A lane has as many slots as it may have requests in flight; a slot is
given back to ``load`` (``release``) when its request ends, however it ends. A connection that breaks, or that the
service asks to leave, is made anew.
"""

import errno
import select
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from digitserve.bench import frames, http2, wire
from digitserve.bench.counts import Tally
from digitserve.bench.traffic import Body
from digitserve.bench.wire import Status
from digitserve.v1 import digits_pb2 as pb

RETRY_S = 0.1
"""After a connection failed, the wait before the next try."""

RECEIVE_BYTES = 1 << 16

CHECK_EVERY = 64
"""One answer in so many is decoded and looked at, the first included."""

LOST = Status(wire.UNAVAILABLE, "the connection was lost")
NO_MESSAGE = Status(wire.INTERNAL, "the answer is not one whole message with trailers after it")


@dataclass(frozen=True)
class Context:
    """What all lanes of a process share.

    Attributes:
        family: of the sockets.
        address: where they connect.
        headers: of every request.
        bodies: requests, drawn from a seeded mix.
        tally: where the lanes count.
        epoll: tells ``load`` which lane's socket is ready.
        clock: the monotonic clock, in seconds.
        deadline_s: of each request, or None.
    """

    family: socket.AddressFamily
    address: Any
    headers: Sequence[tuple[str, str]]
    bodies: Iterator[Body]
    tally: Tally
    epoll: select.epoll
    clock: Callable[[], float]
    deadline_s: float | None = None


class Lane(ABC):
    """One connection, kept open; how requests travel on it: ``unary``, ``streaming``.

    Attributes:
        parked: slots that came up while no request could be sent; they are given back when one can.
        retry_s: when to connect next; meant while there is no connection.
        failure: why the last connection failed, for people.
    """

    def __init__(self, context: Context, release: Callable[["Lane"], None]) -> None:
        self.parked = 0
        self.retry_s = 0.0
        self.failure = ""
        self._context = context
        self._tally = context.tally
        self._release = release
        self._socket: socket.socket | None = None
        self._connection = http2.Connection(context.headers, wire.read_status)
        self._unsent = b""
        self._watches_writes = False
        self._closing = False
        self._num_answers = 0

    # What load calls.

    @property
    def connected(self) -> bool:
        """Whether there is a connection, or one is being made."""
        return self._socket is not None

    @property
    def ready(self) -> bool:
        """Whether the service has greeted on the connection."""
        return self._connection.ready

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 without one."""
        return -1 if self._socket is None else self._socket.fileno()

    def connect(self) -> None:
        """Begin to connect."""
        self._connection = http2.Connection(self._context.headers, wire.read_status)
        self._unsent = b""
        self._socket = socket.socket(self._context.family, socket.SOCK_STREAM)
        self._socket.setblocking(False)  # noqa: FBT003 - it takes no keyword
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watches_writes = True
        self._context.epoll.register(self._socket, select.EPOLLIN | select.EPOLLOUT)
        error = self._socket.connect_ex(self._context.address)
        if error not in {0, errno.EINPROGRESS}:
            self._lose(OSError(error, errno.errorcode[error]))

    def on_event(self, mask: int) -> None:
        """Read, as far as the socket has something; ``flush`` comes after, when load has issued more."""
        if mask & ~select.EPOLLOUT:
            self._read()

    def flush(self) -> None:
        """Write what waits, as far as the socket takes it."""
        if self._socket is None:
            return
        # A connection being made takes nothing; the socket says so.
        out = self._unsent + self._connection.take_output()
        if out:
            try:
                out = out[self._socket.send(out) :]
            except BlockingIOError:
                pass
            except OSError as error:
                self._lose(error)
                return
        self._unsent = out
        if bool(out) != self._watches_writes:
            self._watches_writes = bool(out)
            self._context.epoll.modify(self._socket, select.EPOLLIN | (select.EPOLLOUT if out else 0))

    @abstractmethod
    def can_issue(self) -> bool:
        """Tell whether a request can be sent now."""

    @abstractmethod
    def issue(self, intended_s: float) -> None:
        """Send a request; what it counts from is its intended time."""

    @property
    @abstractmethod
    def num_in_flight(self) -> int:
        """Requests sent and not ended."""

    @abstractmethod
    def intended_in_flight(self) -> list[float]:
        """Return the intended times of the requests in flight."""

    @abstractmethod
    def expire(self, now_s: float) -> None:
        """End requests whose deadline has passed."""

    def finish(self) -> None:
        """Say that no request follows; the lane does not connect any more."""
        self._closing = True

    @property
    def finished(self) -> bool:
        """Whether nothing is under way on the connection."""
        return not self.num_in_flight

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._context.epoll.unregister(self._socket)
            self._socket.close()
            self._socket = None

    # Inside.

    def _read(self) -> None:
        if self._socket is None:
            return
        try:
            received = self._socket.recv(RECEIVE_BYTES)
            if not received:
                raise ConnectionResetError(errno.ECONNRESET, "closed by the service")
            now_s = self._context.clock()
            self._take(self._connection.receive(received), now_s)
        except BlockingIOError:
            return
        except (OSError, frames.ProtocolError) as error:
            self._lose(error)
            return
        if self._connection.ready:
            self._after_read()

    def _after_read(self) -> None:
        if self._connection.going_away and self.finished:
            # Left as asked; what was in flight has been answered.
            self._tally.counts.going_away += 1
            self.close()
            self.retry_s = 0.0
        elif self.parked and self.can_issue():
            self.parked -= 1
            self._give_slot_back()

    def _lose(self, error: Exception) -> None:
        # A service that said GOAWAY and has nothing in flight with us just closes.
        left = self._connection.going_away and self.finished
        self.close()
        self.failure = (error.strerror or str(error)) if isinstance(error, OSError) else str(error)
        self._tally.counts.going_away += left
        self._tally.counts.failed_connections += not left
        self.retry_s = self._context.clock() + RETRY_S
        self._connection = http2.Connection(self._context.headers, wire.read_status)
        self._end_all(LOST)

    @abstractmethod
    def _take(self, events: list[http2.Event], now_s: float) -> None:
        """Act on what the service has said."""

    @abstractmethod
    def _end_all(self, status: Status) -> None:
        """Count all requests in flight as ended."""

    def _ended(self, intended_s: float, status: Status, now_s: float) -> None:
        self._tally.ended(intended_s, status, now_s)
        self._give_slot_back()

    def _give_slot_back(self) -> None:
        # Whatever let this one end may let those that were parked go on.
        for _ in range(1 + self.parked):
            self._release(self)
        self.parked = 0

    def _is_due_for_a_look(self) -> bool:
        self._num_answers += 1
        return self._num_answers % CHECK_EVERY == 1

    def _look_at(self, response: pb.ClassifyResponse, num_images: int) -> None:
        self._tally.counts.checked += 1
        self._tally.counts.wrong += len(response.predictions) != num_images

"""A socket and its HTTP/2 connection: passes bytes between them, selects the events to wait for, and closes both.

    Loop ──receive, send──▶ Peer ◀──bytes──▶ Connection
                             │
                           wire: the socket itself, or TLS over it

``acceptor`` creates a peer for each accepted socket; ``loop`` calls it on the worker's one thread.
"""

import contextlib
import functools
import math
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable

from digitserve.telemetry.block import CloseReason
from digitserve.transport.native.connection import Connection
from digitserve.transport.native.frames import ErrorCode
from digitserve.transport.native.limits import Counts, WorkerLimits
from digitserve.transport.native.tls import TlsWire

LINGER_S = 1.0
"""Time for the client to close a connection after its last output: if the server closes first, that output could be lost."""

NewConnection = Callable[[float, Callable[[], None]], Connection]
"""Creates a connection from the monotonic time in seconds and ``on_output``."""

READABLE, WRITABLE = select.EPOLLIN, select.EPOLLOUT


class Peers:
    """The open peers of a loop, and those that it must handle in its next iteration; owned by the loop.

    Attributes:
        limits: of the worker.
        counts: of connections.
        closes_at: monotonic time in seconds to which progress keeps a socket open at most; infinite before ``Loop.close_all``.
        epoll: reports events of their sockets.
        by_descriptor: all that are open.
        with_output: those whose connections have something to send.
        delivered: whether a handler may have got messages since this was last set to false, other than by reading.
        starved: those with messages that wait for the worker's budget, oldest first.
        unread: those whose sockets have input, in the order in which they are read.
        handshakes: the same for those whose TLS handshake is not complete.
    """

    __slots__ = (
        "by_descriptor", "closes_at", "counts", "delivered", "epoll", "handshakes", "limits", "starved", "unread",
        "with_output",
    )  # fmt: skip

    def __init__(self, limits: WorkerLimits, counts: Counts) -> None:
        self.limits = limits
        self.counts = counts
        self.closes_at = math.inf
        self.epoll = select.epoll()
        self.by_descriptor: dict[int, Peer] = {}
        self.with_output: list[Peer] = []
        self.delivered = False
        self.starved: dict[Peer, None] = {}
        self.unread: deque[Peer] = deque()
        self.handshakes: deque[Peer] = deque()


class Peer:
    """A socket and its connection; owned by the loop until the socket is closed.

    Attributes:
        wire: the socket, or TLS over it; non-blocking.
        tls: the same if it is TLS, otherwise None.
        connection: its protocol; only while ``open``.
        open: false once the socket is closed. Compare peers, not descriptors: the numbers of closed ones are reused.
        unsent: output that the socket has not taken yet.
        active: monotonic time in seconds at which the client last sent something, or read output that had to wait.
        interest: events that epoll reports.
        queue: the queue in which it waits to be read.
        queued: whether it is in that queue.
        arrived: Unix time in seconds after which unread bytes may have arrived.
        drains_at: monotonic time in seconds at which its connection is too old.
        ends_at: monotonic time in seconds at which the socket is closed, unless it makes progress before.
        lingering: all output is sent and this side is shut down; what the client still sends is discarded.
    """

    __slots__ = (
        "_peers", "active", "arrived", "connection", "drains_at", "ends_at", "interest", "lingering", "open", "queue",
        "queued", "tls", "unsent", "wire",
    )  # fmt: skip

    def __init__(
        self,
        accepted: socket.socket,
        tls: TlsWire | None,
        peers: Peers,
        new_connection: NewConnection,
        now: float,
        drains_at: float,
    ) -> None:
        """Watch an accepted socket, and create its connection.

        Args:
            accepted: non-blocking.
            tls: over that socket, if any.
            peers: those of the loop.
            new_connection: creates the connection.
            now: monotonic time in seconds.
            drains_at: see above.

        Raises:
            OSError: the socket cannot be added to epoll.
        """
        peers.epoll.register(accepted.fileno(), READABLE)
        peers.by_descriptor[accepted.fileno()] = self
        self._peers = peers
        self.wire = tls or accepted
        self.tls = tls
        self.open = True
        self.unsent: bytearray | None = None
        self.active = now
        self.interest = READABLE
        self.queue = peers.unread if tls is None else peers.handshakes
        self.queued = False
        self.arrived = 0.0
        self.drains_at = drains_at
        self.ends_at = math.inf
        self.lingering = False
        self.connection = new_connection(now, functools.partial(peers.with_output.append, self))
        peers.counts.connection_accepted()

    def receive(self, num_bytes: int, now: float) -> bool:
        """Read at most ``num_bytes``, and pass them to the connection.

        Returns:
            Whether to read more in the same iteration: there is more, and calls of the connection were rejected lately. A client
            that sends more than the worker can answer would otherwise be read too slowly, and its calls would be too late when
            they are read.
        """
        try:
            received = self.wire.recv(num_bytes)
        except BlockingIOError:
            if self.tls is None or not self.tls.has_more:
                self.arrived = 0.0
            return False
        except OSError as error:
            self.drop(CloseReason.TLS if isinstance(error, ssl.SSLError) else None)
            return False
        if not received:
            self.drop()
            return False
        self.active = now
        connection = self.connection
        if not self.lingering:
            connection.receive(received, now, self.arrived)
            if connection.waiting:
                self._peers.starved[self] = None
        # If there are more bytes than one read takes, the time of arrival also applies to the rest.
        all_read = len(received) < num_bytes and (self.tls is None or not self.tls.has_more)
        if all_read:
            self.arrived = 0.0
        if not connection.wants_read():
            self.update_interest()
            return False
        return not all_read and bool(connection.num_rejected or connection.answered)

    def send(self) -> None:
        """Send as much as the socket takes."""
        connection = self.connection
        output = self.unsent or connection.take_output()
        try:
            num_bytes = self.wire.send(output) if output else 0
        except BlockingIOError:
            num_bytes = 0
        except OSError:
            self.drop()
            return
        if num_bytes < len(output):
            if num_bytes or self.unsent is None:
                self.active = time.monotonic()
                self.ends_at = min(self.active + self._peers.limits.stall_s, self._peers.closes_at)
            if self.unsent is None:
                self.unsent = bytearray(memoryview(output)[num_bytes:])
            else:
                del self.unsent[:num_bytes]
            self._peers.delivered |= connection.on_sent(num_bytes)
        else:
            if self.unsent is not None:
                self.unsent, self.ends_at = None, math.inf
            self._peers.delivered |= connection.on_sent(num_bytes)
            if connection.has_output():
                self._peers.with_output.append(self)
            elif connection.closing:
                self.shut_down()
        # Usually the socket has taken all output, and epoll reports only input before and after.
        if self.unsent is not None or self.interest != READABLE:
            self.update_interest()

    def send_more(self) -> None:
        """Send new output of the connection, after what the socket has not taken yet."""
        if not self.open:
            return
        if self.unsent is None:
            self.send()
        else:
            # Joined, because many small pieces take several times their size.
            self.unsent += self.connection.take_output()

    def update_interest(self) -> None:
        """Make epoll report the events that the connection needs in its state."""
        reads = self.lingering or self.connection.wants_read()
        interest = (READABLE if reads else 0) | (WRITABLE if self.unsent is not None else 0)
        if interest != self.interest:
            self.interest = interest
            self._peers.epoll.modify(self.wire.fileno(), interest)

    def shut_down(self) -> None:
        """Shut down the sending side; then wait until the client closes the connection."""
        if not self.lingering:
            self.lingering, self.ends_at = True, time.monotonic() + LINGER_S
            with contextlib.suppress(OSError):
                self.wire.shutdown(socket.SHUT_WR)

    def check(self, now: float, wall: float) -> None:
        """Apply time limits.

        Args:
            now: monotonic time in seconds.
            wall: Unix time in seconds.
        """
        connection = self.connection
        if now >= self.ends_at:
            self.drop(connection.close_reason or CloseReason.TIMEOUT)
        elif not self.lingering:
            connection.check(now, wall)
            if connection.waiting:
                self._peers.starved.setdefault(self)
            if now >= self.drains_at:
                connection.drain(now, CloseReason.AGE)
                if now >= self.drains_at + self._peers.limits.age_grace_s:
                    connection.close(ErrorCode.NO_ERROR, "the connection is too old", CloseReason.AGE)
            if connection.closing and not connection.has_output() and self.unsent is None:
                self.shut_down()
                self.update_interest()

    def close(self, text: str, reason: CloseReason) -> None:
        """Close the connection now, after GOAWAY if the socket takes it immediately."""
        self.connection.close(ErrorCode.NO_ERROR, text, reason)
        if self.unsent is None:
            self.send()
        if self.open:
            self.drop()

    def drop(self, reason: CloseReason | None = None) -> None:
        """Close the socket, and drop the calls of the connection.

        Args:
            reason: None if the connection has a ``close_reason``, or the client has closed the socket.
        """
        self.open = False
        descriptor = self.wire.fileno()
        del self._peers.by_descriptor[descriptor]
        # Explicitly, because closing does not remove it from epoll while a forked process has a copy.
        self._peers.epoll.unregister(descriptor)
        self.wire.close()
        connection = self.connection
        del self.connection  # breaks a reference cycle: it refers to the peer
        connection.drop()
        self._peers.counts.connection_closed(reason or connection.close_reason or CloseReason.CLIENT)

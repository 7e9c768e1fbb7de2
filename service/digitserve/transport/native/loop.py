"""The event loop around connections: the only module of the native transport that touches sockets and clocks.

    sockets ──recv──▶ Loop ──receive──▶ Connection ──▶ handlers
    sockets ◀──send── Loop ◀──take_output── Connection

Owned by ``server.NativeServer``; used on the worker's one thread. A turn reads from the sockets that have something, in
rotation and for a limited time, so that a flood cannot delay the batch that follows.
"""

import contextlib
import functools
import select
import socket
import time
from collections import deque
from collections.abc import Callable

import structlog

from digitserve.transport.native.connection import Connection
from digitserve.transport.native.frames import ErrorCode

READ_BYTES = 1 << 18
"""Most bytes that one turn reads from a connection."""

MAX_READ_S = 0.005
"""Longest time that one turn reads; the connections that are left come first in the next turn."""

CHECK_S = 0.05
"""Interval of the check of time limits."""

MAX_ACCEPTS = 64
"""Most connections that one turn accepts."""

LINGER_S = 1.0
"""After the last output of a connection, time for the client to close it: closing earlier could destroy that output."""

ACCEPT_PAUSE_S = 0.5
"""Pause in accepting when the process has no file descriptors left."""

_READ, _WRITE, _ERRORS = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR | select.EPOLLHUP

NewConnection = Callable[[float, Callable[[], None]], Connection]
"""Creates a connection from the monotonic time in seconds and ``on_output``."""

_log = structlog.get_logger("digitserve.transport.native.loop")


class Peer:
    """A socket and its connection; owned by the loop until the socket is closed.

    Attributes:
        socket: non-blocking.
        connection: its protocol.
        unsent: output that the socket has not taken yet.
        interest: events that epoll reports.
        arrived: Unix time in seconds after which unread bytes may have arrived.
        accepted: monotonic time in seconds.
        lingers_until: monotonic time in seconds of the close, once the output is sent and shut down.
    """

    __slots__ = ("accepted", "arrived", "connection", "interest", "lingers_until", "socket", "unsent")

    def __init__(self, accepted_socket: socket.socket, now: float) -> None:
        self.socket = accepted_socket
        self.connection: Connection
        self.unsent: memoryview | None = None
        self.interest = _READ
        self.arrived = 0.0
        self.accepted = now
        self.lingers_until: float | None = None


class Loop:
    """Accepts, reads, writes and closes the connections of one worker."""

    def __init__(self, new_connection: NewConnection, max_connections: int, max_age_s: float) -> None:
        """Start without a listening socket.

        Args:
            new_connection: creates a connection.
            max_connections: more are closed as soon as they are accepted.
            max_age_s: age from which a connection drains; infinite for no limit.
        """
        self._new_connection = new_connection
        self._max_connections = max_connections
        self._max_age_s = max_age_s
        self._epoll = select.epoll()
        self._listener: socket.socket | None = None
        self._peers: dict[int, Peer] = {}
        # Peers, not descriptors: the number of a closed one is used again at once.
        self._with_output: list[Peer] = []
        self._backlog: deque[Peer] = deque()
        self._polled = time.time()
        self._check_at = 0.0
        self._accept_at = 0.0

    @property
    def num_connections(self) -> int:
        """Open connections."""
        return len(self._peers)

    def listen(self, listener: socket.socket) -> None:
        """Accept connections of a listening socket, which the loop owns from now on."""
        listener.setblocking(False)  # noqa: FBT003 - the interface of sockets
        self._listener = listener
        self._epoll.register(listener.fileno(), _READ)

    def stop_listening(self) -> None:
        """Accept what has already connected, then close the listening socket."""
        if self._listener is not None:
            self._accept(time.monotonic())
            self._epoll.unregister(self._listener.fileno())
            self._listener.close()
            self._listener = None

    def poll(self, timeout_s: float) -> bool:
        """Send what is waiting, then read what has arrived, and hand it to the connections.

        Args:
            timeout_s: longest wait if nothing has arrived.

        Returns:
            Whether anything arrived.
        """
        self._send_all()
        events = self._epoll.poll(0 if self._backlog else timeout_s)
        now, polled_before, self._polled = time.monotonic(), self._polled, time.time()
        # What is found without waiting may have arrived any time since the last poll.
        arrived = self._polled if timeout_s and not self._backlog else polled_before
        ready, self._backlog = self._backlog, deque()
        for descriptor, event in events:
            peer = self._peers.get(descriptor)
            if peer is None:
                self._accept(now)
                continue
            if event & _WRITE:
                self._send(peer)
            if event & (_READ | _ERRORS):
                peer.arrived = peer.arrived or arrived
                ready.append(peer)
        ends = now + MAX_READ_S
        while ready:
            self._read(ready.popleft(), now)
            if time.monotonic() > ends:
                break
        self._backlog = ready
        if now >= self._check_at:
            self._check(now)
        return bool(events)

    def drain(self) -> None:
        """Announce to all clients that their connections end."""
        now = time.monotonic()
        for peer in list(self._peers.values()):
            peer.connection.drain(now)

    def close_all(self) -> None:
        """End all connections and their calls."""
        for peer in list(self._peers.values()):
            peer.connection.close(ErrorCode.NO_ERROR, "the server has stopped")
        self._send_all()

    def close(self) -> None:
        """Close all sockets."""
        for peer in list(self._peers.values()):
            self._drop(peer)
        self.stop_listening()
        self._epoll.close()

    def _accept(self, now: float) -> None:
        listener = self._listener
        if listener is None or now < self._accept_at:
            return
        for _ in range(MAX_ACCEPTS):
            try:
                accepted, _address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError as error:
                # No descriptor or no memory is left. The listener would be reported again and again.
                _log.warning("cannot accept connections", error=str(error), retry_s=ACCEPT_PAUSE_S)
                self._accept_at = now + ACCEPT_PAUSE_S
                self._epoll.modify(listener.fileno(), 0)
                return
            if len(self._peers) >= self._max_connections:
                accepted.close()
                continue
            accepted.setblocking(False)  # noqa: FBT003 - the interface of sockets
            with contextlib.suppress(OSError):  # a Unix socket has no such option
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = Peer(accepted, now)
            self._peers[accepted.fileno()] = peer
            self._epoll.register(accepted.fileno(), _READ)
            peer.connection = self._new_connection(now, functools.partial(self._has_output, peer))

    def _has_output(self, peer: Peer) -> None:
        # Looked up at each call: the list is replaced while it is sent.
        self._with_output.append(peer)

    def _read(self, peer: Peer, now: float) -> None:
        descriptor = peer.socket.fileno()
        if descriptor < 0:
            return  # closed in this turn
        try:
            received = peer.socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            peer.arrived = 0.0
            return
        except OSError:
            received = b""
        if not received:
            self._drop(peer)
            return
        if peer.lingers_until is None:
            peer.connection.receive(received, now, peer.arrived)
        # Of more bytes than one read takes, the rest has waited as long.
        if len(received) < READ_BYTES:
            peer.arrived = 0.0
        self._update_interest(peer)

    def _send_all(self) -> None:
        while self._with_output:
            peers, self._with_output = self._with_output, []
            for peer in peers:
                if peer.unsent is None and peer.socket.fileno() >= 0:
                    self._send(peer)

    def _send(self, peer: Peer) -> None:
        """Send as much as the socket takes."""
        connection = peer.connection
        output = peer.unsent if peer.unsent is not None else memoryview(connection.take_output())
        try:
            num_bytes = peer.socket.send(output) if output else 0
        except (BlockingIOError, InterruptedError):
            num_bytes = 0
        except OSError:
            self._drop(peer)
            return
        peer.unsent = output[num_bytes:] if num_bytes < len(output) else None
        connection.on_sent(num_bytes)
        if peer.unsent is None and connection.has_output():
            self._with_output.append(peer)
        elif peer.unsent is None and connection.closing and peer.lingers_until is None:
            self._shut_down(peer)
        self._update_interest(peer)

    def _update_interest(self, peer: Peer) -> None:
        reads = peer.lingers_until is not None or peer.connection.wants_read()
        interest = (_READ if reads else 0) | (_WRITE if peer.unsent is not None else 0)
        if interest != peer.interest and peer.socket.fileno() >= 0:
            peer.interest = interest
            self._epoll.modify(peer.socket.fileno(), interest)

    def _shut_down(self, peer: Peer) -> None:
        peer.lingers_until = time.monotonic() + LINGER_S
        with contextlib.suppress(OSError):
            peer.socket.shutdown(socket.SHUT_WR)

    def _drop(self, peer: Peer) -> None:
        """Close a socket, and drop the calls of its connection."""
        self._peers.pop(peer.socket.fileno(), None)
        peer.socket.close()  # this removes it from epoll too
        peer.connection.drop()

    def _check(self, now: float) -> None:
        """Apply time limits to all connections."""
        self._check_at = now + CHECK_S
        if self._listener is not None and 0 < self._accept_at <= now:
            self._accept_at = 0.0
            self._epoll.modify(self._listener.fileno(), _READ)
        for peer in list(self._peers.values()):
            if peer.lingers_until is not None:
                if now >= peer.lingers_until:
                    self._drop(peer)
                continue
            peer.connection.check(now, self._polled)
            if now - peer.accepted > self._max_age_s:
                peer.connection.drain(now)
            if peer.connection.closing and not peer.connection.has_output() and peer.unsent is None:
                self._shut_down(peer)
                self._update_interest(peer)

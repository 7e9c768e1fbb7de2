"""The event loop around connections: the only module of the native transport that touches sockets and clocks.

    sockets ──recv──▶ Loop ──receive──▶ Connection ──▶ handlers
    sockets ◀──send── Loop ◀──take_output── Connection

Owned by ``server.NativeServer``; used on the worker's one thread. An iteration reads from the sockets that have something, in
rotation and for a limited time, so that a flood cannot delay the batch that follows.
"""

import contextlib
import errno
import functools
import heapq
import math
import random
import select
import socket
import time
from collections import deque
from collections.abc import Callable

import structlog

from digitserve.transport.native.connection import Connection
from digitserve.transport.native.frames import ErrorCode

READ_BYTES = 1 << 16
"""Most bytes that one iteration reads from a connection: about 1 000 small calls, which take 5 ms or more. Also, ``malloc``
maps larger buffers newly for each read."""

MAX_READ_S = 0.005
"""Longest time that one iteration reads; the connections that are left come first in the next one."""

CHECK_S = 0.1
"""Interval of the check of time limits."""

MAX_ACCEPTS = 64
"""Most connections that one iteration accepts."""

LINGER_S = 1.0
"""After the last output of a connection, time for the client to close it: closing earlier could destroy that output."""

STALL_S = 60.0
"""Longest time that a socket may take no output: then the client has stopped, or the network has lost it."""

SILENCE_S = 5.0
"""A drain does not wait longer for a connection that neither sends nor takes anything: as long as for the answer to its PING."""

MAX_HELD_BYTES = 1 << 26
"""What all connections together hold, without messages in reception; beyond it, those with the most are closed. See
``Output.num_held_bytes``."""

ACCEPT_PAUSE_S = 0.5
"""Pause in accepting when the process has no file descriptors or no memory left, although no connection is open."""

CLOSED_FRACTION = 1 / 64
"""Part of the connections that are closed together when there are too many: finding the most silent takes 1 ms of 4 096."""

AGE_JITTER = 0.1
"""Connections drain at up to this fraction before or after their maximal age, or many could reconnect at the same time."""

KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 120, 30, 4
"""TCP keepalive: a client that vanished without closing its connection is noticed within four minutes."""

WAITED_S = 0.0005
"""A poll that took longer has waited: then what it reports has just arrived. One without a wait takes microseconds."""

_READ, _WRITE, _ERRORS = select.EPOLLIN, select.EPOLLOUT, select.EPOLLERR | select.EPOLLHUP
_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
)

NewConnection = Callable[[float, Callable[[], None]], Connection]
"""Creates a connection from the monotonic time in seconds and ``on_output``."""

_log = structlog.get_logger("digitserve.transport.native.loop")


class Peer:
    """A socket and its connection; owned by the loop until the socket is closed.

    Attributes:
        socket: non-blocking.
        connection: its protocol; only while ``open``.
        open: false once the socket is closed. Compare peers, never descriptors: their numbers are used again at once.
        unsent: output that the socket has not taken yet.
        active: monotonic time in seconds at which it last sent something, or took output that had to wait.
        interest: events that epoll reports.
        queued: whether it waits to be read.
        arrived: Unix time in seconds after which unread bytes may have arrived.
        drains_at: monotonic time in seconds at which its connection is too old.
        ends_at: monotonic time in seconds at which the socket is closed, unless it makes progress before.
        lingering: all output is sent and this side is shut down; what the client still sends is discarded.
    """

    __slots__ = (
        "active", "arrived", "connection", "drains_at", "ends_at", "interest", "lingering", "open", "queued", "socket",
        "unsent",
    )  # fmt: skip

    def __init__(self, accepted: socket.socket, now: float, drains_at: float) -> None:
        self.socket = accepted
        self.connection: Connection
        self.open = True
        self.unsent: bytearray | None = None
        self.active = now
        self.interest = _READ
        self.queued = False
        self.arrived = 0.0
        self.drains_at = drains_at
        self.ends_at = math.inf
        self.lingering = False


class Loop:
    """Accepts, reads, writes and closes the connections of one worker."""

    def __init__(self, new_connection: NewConnection, max_connections: int, max_age_s: float) -> None:
        """Start without a listening socket.

        Args:
            new_connection: creates a connection.
            max_connections: for more, those whose clients have been silent longest are closed.
            max_age_s: age from which a connection drains; infinite for no limit.
        """
        self._new_connection = new_connection
        self._max_connections = max_connections
        self._max_age_s = max_age_s
        self._epoll = select.epoll()
        self._listener: socket.socket | None = None
        self._listens_on = -1
        self._peers: dict[int, Peer] = {}
        self._with_output: list[Peer] = []
        self._unread: deque[Peer] = deque()
        self._starved: dict[Peer, None] = {}  # with messages that wait for the worker's budget, oldest first
        self._polled = time.time()
        self._check_at = 0.0
        self._accept_at = 0.0
        self._warn_at = 0.0

    @property
    def num_connections(self) -> int:
        """Open connections."""
        return len(self._peers)

    def has_unanswered(self) -> bool:
        """Return whether a connection has open calls, or anything to send, or may still get calls.

        Those whose client has been silent for ``SILENCE_S`` do not count.
        """
        silent = time.monotonic() - SILENCE_S
        return any(not peer.lingering and peer.active > silent for peer in self._peers.values())

    def listen(self, listener: socket.socket) -> None:
        """Accept connections of a listening socket, which the loop owns from now on."""
        listener.setblocking(False)  # noqa: FBT003 - the interface of sockets
        for level, option, value in _SOCKET_OPTIONS:
            with contextlib.suppress(OSError):  # a Unix socket has no such options
                listener.setsockopt(level, option, value)  # accepted sockets inherit them
        self._listener = listener
        self._listens_on = listener.fileno()
        self._epoll.register(self._listens_on, _READ)

    def stop_listening(self) -> None:
        """Accept what has already connected, then close the listening socket."""
        if self._listener is not None:
            now = time.monotonic()
            while self._accept(now):
                pass
            self._epoll.unregister(self._listens_on)
            self._listener.close()
            self._listener, self._listens_on = None, -1

    def poll(self, timeout_s: float) -> bool:
        """Send what is waiting, then read what has arrived, and hand it to the connections.

        Args:
            timeout_s: longest wait if nothing has arrived.

        Returns:
            Whether anything arrived.
        """
        if self._starved:
            self._continue_starved()
        self._send_all()
        unread = self._unread
        before = time.time()
        events = self._epoll.poll(0 if unread else timeout_s)
        now, wall = time.monotonic(), time.time()
        # Without a wait, it may have arrived any time since the last poll.
        arrived = wall if wall - before > WAITED_S else self._polled
        self._polled = wall
        accepts = False
        peers = self._peers
        for descriptor, event in events:
            if descriptor == self._listens_on:
                accepts = True
                continue
            peer = peers[descriptor]
            if event & _WRITE:
                self._send(peer)
            if event & (_READ | _ERRORS) and not peer.queued:
                peer.queued = True
                peer.arrived = peer.arrived or arrived
                unread.append(peer)
        ends = now + MAX_READ_S
        while unread:
            self._read(unread.popleft(), now)
            if time.monotonic() > ends:
                break
        if accepts:
            self._accept(now)
        if now >= self._check_at:
            self._check(now)
        return bool(events)

    def drain(self) -> None:
        """Announce to all clients that their connections end."""
        now = time.monotonic()
        for peer in self._peers.values():
            peer.connection.drain(now)

    def close_all(self) -> None:
        """End all connections and their calls: each is closed as soon as its client closes it, or after ``LINGER_S``."""
        ends_at = time.monotonic() + LINGER_S
        for peer in self._peers.values():
            peer.connection.close(ErrorCode.NO_ERROR, "the server has stopped")
        self._send_all()
        for peer in self._peers.values():
            peer.ends_at = min(peer.ends_at, ends_at)

    def close(self) -> None:
        """Close all sockets."""
        self.stop_listening()
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._epoll.close()

    def _accept(self, now: float) -> bool:
        """Accept some connections; return whether there may be more."""
        listener = self._listener
        if listener is None or now < self._accept_at:
            return False
        for attempt in range(MAX_ACCEPTS):
            try:
                accepted, _address = listener.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # of the connection, not of the listener: see accept(2)
                # Only the first time a connection certainly waits: a descriptor is needed even to find that out.
                if attempt or self._make_room(now):
                    return True
                # The listener would be reported again and again.
                _log.warning("cannot accept connections", error=str(error), retry_s=ACCEPT_PAUSE_S)
                self._accept_at = now + ACCEPT_PAUSE_S
                self._epoll.modify(self._listens_on, 0)
                return False
            if len(self._peers) >= self._max_connections:
                self._make_room(now)
            self._add(accepted, now)
        return True

    def _make_room(self, now: float) -> bool:
        """Close the connections whose clients have been silent longest, so that those that do nothing keep nobody out.

        Returns:
            Whether there were any.
        """
        peers = self._peers
        num_closed = math.ceil(len(peers) * CLOSED_FRACTION)
        for peer in heapq.nsmallest(num_closed, peers.values(), key=lambda peer: peer.active):
            peer.connection.close(ErrorCode.NO_ERROR, "too many connections")
            if peer.unsent is None:
                self._send(peer)
            if peer.open:
                self._drop(peer)
        if now >= self._warn_at:
            self._warn_at = now + ACCEPT_PAUSE_S
            _log.warning("closed silent connections to accept others", num_connections=len(peers))
        return num_closed > 0

    def _add(self, accepted: socket.socket, now: float) -> None:
        accepted.setblocking(False)  # noqa: FBT003 - the interface of sockets
        jitter = random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)  # noqa: S311 - not a secret
        peer = Peer(accepted, now, now + self._max_age_s * jitter)
        try:
            self._epoll.register(accepted.fileno(), _READ)
        except OSError as error:  # the limits of epoll itself
            _log.warning("cannot watch a connection", error=str(error))
            accepted.close()
            return
        self._peers[accepted.fileno()] = peer
        peer.connection = self._new_connection(now, functools.partial(self._has_output, peer))

    def _has_output(self, peer: Peer) -> None:
        # Looked up at each call: the list is replaced while it is sent.
        self._with_output.append(peer)

    def _read(self, peer: Peer, now: float) -> None:
        peer.queued = False
        if not peer.open:
            return
        try:
            received = peer.socket.recv(READ_BYTES)
        except BlockingIOError:
            peer.arrived = 0.0
            return
        except OSError:
            received = b""
        if not received:
            self._drop(peer)
            return
        peer.active = now
        connection = peer.connection
        if not peer.lingering:
            connection.receive(received, now, peer.arrived)
            if connection.waiting:
                self._starved[peer] = None
        # Of more bytes than one read takes, the rest has waited as long.
        if len(received) < READ_BYTES:
            peer.arrived = 0.0
        if not connection.wants_read():
            self._update_interest(peer)

    def _continue_starved(self) -> None:
        """Let messages that wait for the worker's budget continue, where it has room again."""
        for peer in list(self._starved):
            if peer.open:
                peer.connection.on_room()
            if not (peer.open and peer.connection.waiting):
                del self._starved[peer]

    def _send_all(self) -> None:
        while self._with_output:
            peers, self._with_output = self._with_output, []
            for peer in peers:
                if not peer.open:
                    continue
                if peer.unsent is None:
                    self._send(peer)
                else:
                    # Joined, because many small pieces take several times their size.
                    peer.unsent += peer.connection.take_output()

    def _send(self, peer: Peer) -> None:
        """Send as much as the socket takes."""
        connection = peer.connection
        output = peer.unsent or connection.take_output()
        try:
            num_bytes = peer.socket.send(output) if output else 0
        except BlockingIOError:
            num_bytes = 0
        except OSError:
            self._drop(peer)
            return
        if num_bytes < len(output):
            if num_bytes or peer.unsent is None:
                peer.active = time.monotonic()
                peer.ends_at = peer.active + STALL_S
            if peer.unsent is None:
                peer.unsent = bytearray(memoryview(output)[num_bytes:])
            else:
                del peer.unsent[:num_bytes]
            connection.on_sent(num_bytes)
        else:
            if peer.unsent is not None:
                peer.unsent, peer.ends_at = None, math.inf
            connection.on_sent(num_bytes)
            if connection.has_output():
                self._with_output.append(peer)
            elif connection.closing:
                self._shut_down(peer)
        # In the common case the socket has taken everything, and nothing else than input is awaited before and after.
        if peer.unsent is not None or peer.interest != _READ:
            self._update_interest(peer)

    def _update_interest(self, peer: Peer) -> None:
        reads = peer.lingering or peer.connection.wants_read()
        interest = (_READ if reads else 0) | (_WRITE if peer.unsent is not None else 0)
        if interest != peer.interest:
            peer.interest = interest
            self._epoll.modify(peer.socket.fileno(), interest)

    def _shut_down(self, peer: Peer) -> None:
        """Send the end of the connection; then wait for the client's."""
        if not peer.lingering:
            peer.lingering, peer.ends_at = True, time.monotonic() + LINGER_S
            with contextlib.suppress(OSError):
                peer.socket.shutdown(socket.SHUT_WR)

    def _drop(self, peer: Peer) -> None:
        """Close a socket, and drop the calls of its connection."""
        peer.open = False
        descriptor = peer.socket.fileno()
        del self._peers[descriptor]
        # Closing removes it from epoll only if no process that is being forked holds a copy.
        self._epoll.unregister(descriptor)
        peer.socket.close()
        connection = peer.connection
        del peer.connection  # it refers to the peer: a reference cycle otherwise
        connection.drop()

    def _check(self, now: float) -> None:
        """Apply time limits to all connections, and the limit of what they hold together."""
        self._check_at = now + CHECK_S
        if self._listener is not None and 0 < self._accept_at <= now:
            self._accept_at = 0.0
            self._epoll.modify(self._listens_on, _READ)
        num_held_bytes = 0
        for peer in list(self._peers.values()):
            connection = peer.connection
            if now >= peer.ends_at:
                self._drop(peer)
                continue
            if peer.lingering:
                continue
            connection.check(now, self._polled)
            if connection.waiting:
                self._starved.setdefault(peer)
            if now >= peer.drains_at:
                connection.drain(now)
            if connection.closing and not connection.has_output() and peer.unsent is None:
                self._shut_down(peer)
                self._update_interest(peer)
            num_held_bytes += connection.num_held_bytes
        if num_held_bytes > MAX_HELD_BYTES:
            self._reduce_held(num_held_bytes - MAX_HELD_BYTES)

    def _reduce_held(self, num_bytes: int) -> None:
        """Free memory that only saves time; then drop the connections that hold most, until that is ``num_bytes`` less."""
        peers = [peer for peer in self._peers.values() if not peer.lingering]
        num_bytes -= sum(peer.connection.trim() for peer in peers)
        num_dropped = 0
        for peer in sorted(peers, key=lambda peer: peer.connection.num_held_bytes, reverse=True):
            if num_bytes <= 0:
                break
            num_bytes -= peer.connection.num_held_bytes
            self._drop(peer)
            num_dropped += 1
        if num_dropped:
            _log.warning("closed the connections that took most memory", num_connections=num_dropped)

"""The event loop around connections; with ``peer``, all of the native transport that touches sockets and clocks.

    sockets ──recv──▶ Peer ──receive──▶ Connection ──▶ handlers
    sockets ◀──send── Peer ◀──take_output── Connection

Owned by ``server.NativeServer``; used on the worker's one thread. An iteration reads from the sockets that have something, in
rotation and for a limited time, so that a flood cannot delay the batch that follows.
"""

import contextlib
import errno
import heapq
import math
import random
import socket
import time
from collections import deque
from collections.abc import Iterable

import structlog

from digitserve.transport.native.frames import ErrorCode
from digitserve.transport.native.peer import LINGER_S, READABLE, WRITABLE, NewConnection, Peer, Peers

READ_BYTES = 1 << 16
"""Most bytes that one iteration reads from a connection: about 1 000 small calls, which take 5 ms or more. Also, ``malloc``
maps larger buffers newly for each read."""

MAX_READ_S = 0.005
"""Longest time that one iteration reads; the connections that are left come first in the next one."""

CHECK_S = 0.1
"""Interval of the check of time limits."""

MAX_ACCEPTS = 64
"""Most connections that one iteration accepts."""

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

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
)

_log = structlog.get_logger("digitserve.transport.native.loop")


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
        self._listener: socket.socket | None = None
        self._listens_on = -1
        self._peers = Peers()
        self._unread: deque[Peer] = deque()
        self._polled = time.time()
        self._check_at = 0.0
        self._accept_at = 0.0
        self._warn_at = 0.0

    @property
    def num_connections(self) -> int:
        """Open connections."""
        return len(self._peers.by_descriptor)

    def has_unanswered(self) -> bool:
        """Return whether a connection has open calls, or anything to send, or may still get calls.

        Those whose client has been silent for ``SILENCE_S`` do not count.
        """
        silent = time.monotonic() - SILENCE_S
        return any(not peer.lingering and peer.active > silent for peer in self._peers.by_descriptor.values())

    def listen(self, listener: socket.socket) -> None:
        """Accept connections of a listening socket, which the loop owns from now on."""
        listener.setblocking(False)  # noqa: FBT003 - the interface of sockets
        for level, option, value in _SOCKET_OPTIONS:
            with contextlib.suppress(OSError):  # a Unix socket has no such options
                listener.setsockopt(level, option, value)  # accepted sockets inherit them
        self._listener = listener
        self._listens_on = listener.fileno()
        self._peers.epoll.register(self._listens_on, READABLE)

    def stop_listening(self) -> None:
        """Accept what has already connected, then close the listening socket."""
        if self._listener is not None:
            now = time.monotonic()
            while self._accept(now):
                pass
            self._peers.epoll.unregister(self._listens_on)
            self._listener.close()
            self._listener, self._listens_on = None, -1

    def poll(self, timeout_s: float) -> bool:
        """Send what is waiting, then read what has arrived, and hand it to the connections.

        Args:
            timeout_s: longest wait if nothing has arrived.

        Returns:
            Whether anything arrived.
        """
        if self._peers.starved:
            self._continue_starved()
        self._send_all()
        unread = self._unread
        before = time.time()
        events = self._peers.epoll.poll(0 if unread else timeout_s)
        now, wall = time.monotonic(), time.time()
        # Without a wait, it may have arrived any time since the last poll.
        arrived = wall if wall - before > WAITED_S else self._polled
        self._polled = wall
        accepts = self._queue(events, arrived)
        ends = now + MAX_READ_S
        while unread:
            peer = unread.popleft()
            peer.queued = False
            if peer.open:
                peer.receive(READ_BYTES, now)
            if time.monotonic() > ends:
                break
        if accepts:
            self._accept(now)
        if now >= self._check_at:
            self._check(now)
        return bool(events)

    def _queue(self, events: Iterable[tuple[int, int]], arrived: float) -> bool:
        """Send on sockets that take output again, and queue those to read; return whether a connection waits."""
        accepts = False
        peers, unread = self._peers.by_descriptor, self._unread
        for descriptor, event in events:
            if descriptor == self._listens_on:
                accepts = True
                continue
            peer = peers[descriptor]
            if event & WRITABLE:
                peer.send()
            if event & ~WRITABLE and not peer.queued:  # an error is found by reading
                peer.queued = True
                peer.arrived = peer.arrived or arrived
                unread.append(peer)
        return accepts

    def drain(self) -> None:
        """Announce to all clients that their connections end."""
        now = time.monotonic()
        for peer in self._peers.by_descriptor.values():
            peer.connection.drain(now)

    def close_all(self) -> None:
        """End all connections and their calls: each is closed as soon as its client closes it, or after ``LINGER_S``."""
        ends_at = time.monotonic() + LINGER_S
        peers = self._peers.by_descriptor
        for peer in peers.values():
            peer.connection.close(ErrorCode.NO_ERROR, "the server has stopped")
        self._send_all()
        for peer in peers.values():
            peer.ends_at = min(peer.ends_at, ends_at)

    def close(self) -> None:
        """Close all sockets."""
        self.stop_listening()
        for peer in list(self._peers.by_descriptor.values()):
            peer.drop()
        self._peers.epoll.close()

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
                self._peers.epoll.modify(self._listens_on, 0)
                return False
            if self.num_connections >= self._max_connections:
                self._make_room(now)
            self._add(accepted, now)
        return True

    def _make_room(self, now: float) -> bool:
        """Close the connections whose clients have been silent longest, so that those that do nothing keep nobody out.

        Returns:
            Whether there were any.
        """
        peers = self._peers.by_descriptor
        num_closed = math.ceil(len(peers) * CLOSED_FRACTION)
        for peer in heapq.nsmallest(num_closed, peers.values(), key=lambda peer: peer.active):
            peer.close("too many connections")
        if now >= self._warn_at:
            self._warn_at = now + ACCEPT_PAUSE_S
            _log.warning("closed silent connections to accept others", num_connections=len(peers))
        return num_closed > 0

    def _add(self, accepted: socket.socket, now: float) -> None:
        accepted.setblocking(False)  # noqa: FBT003 - the interface of sockets
        jitter = random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)  # noqa: S311 - not a secret
        try:
            Peer(accepted, self._peers, self._new_connection, now, now + self._max_age_s * jitter)
        except OSError as error:  # the limits of epoll itself
            _log.warning("cannot watch a connection", error=str(error))
            accepted.close()

    def _continue_starved(self) -> None:
        """Let messages that wait for the worker's budget continue, where it has room again."""
        starved = self._peers.starved
        for peer in list(starved):
            num_waiting = len(peer.connection.waiting) if peer.open else 0
            if num_waiting:
                peer.connection.on_room()
            if not (peer.open and peer.connection.waiting):
                del starved[peer]
            elif len(peer.connection.waiting) < num_waiting:
                starved[peer] = starved.pop(peer)  # next it is the turn of other connections

    def _send_all(self) -> None:
        with_output = self._peers.with_output
        while with_output:
            peers = with_output.copy()
            with_output.clear()
            for peer in peers:
                peer.send_more()

    def _check(self, now: float) -> None:
        """Apply time limits to all connections, and the limit of what they hold together."""
        self._check_at = now + CHECK_S
        if self._listener is not None and 0 < self._accept_at <= now:
            self._accept_at = 0.0
            self._peers.epoll.modify(self._listens_on, READABLE)
        num_held_bytes = 0
        for peer in list(self._peers.by_descriptor.values()):
            peer.check(now, self._polled)
            if peer.open and not peer.lingering:
                num_held_bytes += peer.connection.num_held_bytes
        if num_held_bytes > MAX_HELD_BYTES:
            self._reduce_held(num_held_bytes - MAX_HELD_BYTES)

    def _reduce_held(self, num_bytes: int) -> None:
        """Free memory that only saves time; then drop the connections that hold most, until that is ``num_bytes`` less."""
        peers = [peer for peer in self._peers.by_descriptor.values() if not peer.lingering]
        num_bytes -= sum(peer.connection.trim() for peer in peers)
        num_dropped = 0
        for peer in sorted(peers, key=lambda peer: peer.connection.num_held_bytes, reverse=True):
            if num_bytes <= 0:
                break
            num_bytes -= peer.connection.num_held_bytes
            peer.drop()
            num_dropped += 1
        if num_dropped:
            _log.warning("closed the connections that took most memory", num_connections=num_dropped)

"""The event loop of a worker. Only this module, ``acceptor``, ``peer`` and ``tls`` use sockets and clocks.

    sockets ──recv──▶ Peer ──receive──▶ Connection ──▶ handlers
    sockets ◀──send── Peer ◀──take_output── Connection

Owned by ``server.NativeServer``; used on the worker's one thread. An iteration reads from the sockets that have something, in
rotation and for a limited time, so that a flood cannot delay the batch that follows.
"""

import socket
import ssl
import time
from collections.abc import Callable, Iterable

from digitserve.log import get_logger
from digitserve.telemetry.block import CloseReason
from digitserve.transport.native.acceptor import Acceptor
from digitserve.transport.native.frames import ErrorCode
from digitserve.transport.native.limits import Counts, WorkerLimits
from digitserve.transport.native.peer import LINGER_S, WRITABLE, NewConnection, Peer, Peers

READ_BYTES = 1 << 16
"""Most bytes that one iteration reads from a connection: about 1 000 small calls, which take 5 ms or more. Also, ``malloc``
maps larger buffers newly for each read."""

SHORT_READ_BYTES = 1 << 13
"""The same if more than ``MANY_UNREAD`` connections are waiting to be read."""

MANY_UNREAD = 8
"""A read of ``READ_BYTES`` can take all of ``MAX_READ_S``, so the last of this many connections waits for 40 ms and 8 batches."""

MAX_READ_S = 0.005
"""Longest time that one iteration reads; the next one starts with the connections that were not read."""

MAX_OVERLOAD_READ_S = 0.008
"""The same while calls are rejected: then more batches follow (``worker.MAX_RUN_S``), and rejected calls must be read in time."""

MAX_HANDSHAKES_S = 0.002
"""Longest time that one iteration spends on handshakes, after the reads; each takes 0.15 to 0.6 ms (measured: P-256, RSA 2048)."""

CHECK_S, MAX_CHECK_S = 0.1, 0.001
"""Interval of the check of time limits, and the longest time that one iteration spends on it: 4 000 idle connections take 2 ms,
and as many open streams as connections may hold take 3 ms more (measured)."""

STARVED_POLL_S = 0.005
"""Longest wait while messages wait for the worker's budgets: no event reports that there is time for decompression again."""

SILENCE_S = 5.0
"""A drain does not wait longer for a connection that neither sends nor takes anything: as long as for the answer to its PING."""

WAITED_S = 0.0005
"""A poll that took longer has waited: then what it reports has just arrived. One without a wait takes microseconds."""

_log = get_logger("digitserve.transport.native.loop")


class Loop:
    """Accepts, reads, writes and closes the connections of one worker.

    Attributes:
        was_cut: whether the last iteration ended before everything was read.
        read_s: seconds of reading in the last iteration.
    """

    def __init__(
        self,
        new_connection: NewConnection,
        limits: WorkerLimits,
        counts: Counts,
        context: Callable[[], ssl.SSLContext] | None = None,
    ) -> None:
        """Start without a listening socket.

        Args:
            new_connection: creates a connection.
            limits: of the worker.
            counts: of connections.
            context: returns the newest configuration of TLS; None for clear text.
        """
        self._limits = limits
        self._peers = Peers(limits, counts)
        self._acceptor = Acceptor(self._peers, new_connection, context)
        self._acceptors = [self._acceptor]
        self.was_cut = False
        self.read_s = 0.0
        self._polled = time.time()
        self._check_at = 0.0
        self._unchecked: list[Peer] = []
        self._num_held_bytes = 0  # by those that are checked

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
        self._acceptor.listen(listener)

    def listen_inside(self, listener: socket.socket, new_connection: NewConnection) -> None:
        """Also accept connections of this service itself: without TLS, and with other ``new_connection``; see ``listen``."""
        acceptor = Acceptor(self._peers, new_connection, None)
        acceptor.listen(listener)
        self._acceptors.append(acceptor)

    def stop_listening(self) -> None:
        """Accept what has already connected, then close the listening sockets."""
        for acceptor in self._acceptors:
            acceptor.stop(time.monotonic())

    def poll(self, timeout_s: float) -> bool:
        """Send what is waiting, then read what has arrived, and hand it to the connections.

        Args:
            timeout_s: longest wait if nothing has arrived, and no handler has got a message before.

        Returns:
            Whether anything arrived.
        """
        peers = self._peers
        peers.delivered = False
        if peers.starved:
            self._continue_starved()
            timeout_s = min(timeout_s, STARVED_POLL_S)
        self._send_all()
        unread, handshakes = peers.unread, peers.handshakes
        before = time.time()
        events = peers.epoll.poll(0 if unread or handshakes or self._unchecked or peers.delivered else timeout_s)
        now, wall = time.monotonic(), time.time()
        # Without a wait, it may have arrived any time since the last poll.
        arrived = wall if wall - before > WAITED_S else self._polled
        self._polled = wall
        accepts = self._queue(events, arrived)
        # With many connections, shorter reads reduce the time until each is read.
        num_bytes = READ_BYTES if len(unread) <= MANY_UNREAD else SHORT_READ_BYTES
        self._read(num_bytes, now)
        self.was_cut = bool(unread)
        self.read_s = time.monotonic() - now
        if handshakes:
            self._shake_hands(now)
        if accepts:
            for acceptor in self._acceptors:
                acceptor.accept(now)
        if self._unchecked or now >= self._check_at:
            self._check(now)
        return bool(events)

    def _queue(self, events: Iterable[tuple[int, int]], arrived: float) -> bool:
        """Send on writable sockets, and queue readable ones; return whether a connection waits to be accepted."""
        accepts = False
        peers = self._peers.by_descriptor
        for descriptor, event in events:
            peer = peers.get(descriptor)
            if peer is None:
                accepts = True
                continue
            if event & WRITABLE:
                peer.send()
            if event & ~WRITABLE and not peer.queued:  # reading reports an error
                peer.queued = True
                peer.arrived = peer.arrived or arrived
                peer.queue.append(peer)
        return accepts

    def _read(self, num_bytes: int, now: float) -> None:
        """Read once from each socket that has something, in turn, for at most ``MAX_READ_S``."""
        unread = self._peers.unread
        num_peers = len(unread)
        ends = now + MAX_READ_S
        again: list[Peer] = []
        while unread:
            peer = unread.popleft()
            peer.queued = False
            if peer.open and peer.receive(num_bytes, now):
                again.append(peer)
            if time.monotonic() > ends:
                break
        if again:
            self._read_again(again, num_peers, now)

    def _read_again(self, peers: list[Peer], num_peers: int, now: float) -> None:
        """Read more from those whose calls are rejected, in turn.

        Their part of ``MAX_OVERLOAD_READ_S`` is that of all ``num_peers`` that had something to read: so a client that sends too
        much takes no time from others, and if all do, they are rejected in time.
        """
        unread = self._peers.unread
        for peer in peers:
            peer.queued = True
        unread += peers
        part_s = MAX_OVERLOAD_READ_S * len(peers) / num_peers
        ends = min(now + MAX_OVERLOAD_READ_S, time.monotonic() + part_s)
        while unread and time.monotonic() < ends:
            peer = unread.popleft()
            peer.queued = False
            if peer.open and peer.receive(READ_BYTES, now):
                peer.queued = True
                unread.append(peer)

    def _shake_hands(self, now: float) -> None:
        """Continue some handshakes of TLS, at least one."""
        handshakes = self._peers.handshakes
        ends = time.monotonic() + MAX_HANDSHAKES_S
        while handshakes:
            peer = handshakes.popleft()
            peer.queued = False
            if peer.open:
                peer.receive(READ_BYTES, now)
            if peer.tls is None or peer.tls.established:
                peer.queue = self._peers.unread
            if time.monotonic() > ends:
                break

    def drain(self) -> None:
        """Announce to all clients that their connections end."""
        now = time.monotonic()
        for peer in self._peers.by_descriptor.values():
            peer.connection.drain(now)

    def close_all(self) -> None:
        """End all connections and their calls: each is closed as soon as its client closes it, or after ``LINGER_S``.

        A client that takes the output slowly gets no more time than that, and once more after all of it.
        """
        ends_at = self._peers.closes_at = time.monotonic() + LINGER_S
        peers = self._peers.by_descriptor
        for peer in peers.values():
            peer.connection.close(ErrorCode.NO_ERROR, "the server has stopped", CloseReason.DRAIN)
        self._send_all()
        for peer in peers.values():
            peer.ends_at = min(peer.ends_at, ends_at)

    def close(self) -> None:
        """Close all sockets."""
        self.stop_listening()
        for peer in list(self._peers.by_descriptor.values()):
            peer.drop(peer.connection.close_reason or CloseReason.DRAIN)
        self._peers.epoll.close()

    def _continue_starved(self) -> None:
        """Let messages that wait for the worker's budget continue, where it has room again."""
        starved = self._peers.starved
        for peer in list(starved):
            continued = peer.open and peer.connection.on_room()
            if continued:
                self._peers.delivered = True
            if not (peer.open and peer.connection.waiting):
                del starved[peer]
            elif continued:
                starved[peer] = starved.pop(peer)  # next, other connections get room

    def _send_all(self) -> None:
        with_output = self._peers.with_output
        while with_output:
            peers = with_output.copy()
            with_output.clear()
            for peer in peers:
                peer.send_more()

    def _check(self, now: float) -> None:
        """Apply time limits to some connections; once all are checked, apply the limit on their memory."""
        if not self._unchecked:
            self._check_at = now + CHECK_S
            for acceptor in self._acceptors:
                acceptor.check(now)
            self._unchecked = list(self._peers.by_descriptor.values())
            self._num_held_bytes = 0
        ends = time.monotonic() + MAX_CHECK_S
        while self._unchecked:
            peer = self._unchecked.pop()
            if peer.open:
                peer.check(now, self._polled)
            if peer.open and not peer.lingering:
                self._num_held_bytes += peer.connection.num_held_bytes
            if time.monotonic() > ends:
                return
        if self._num_held_bytes > self._limits.max_held_bytes:
            self._reduce_held(self._num_held_bytes - self._limits.max_held_bytes)

    def _reduce_held(self, num_bytes: int) -> None:
        """Free memory that only saves time; then drop the connections that hold most, until that is ``num_bytes`` less."""
        peers = [peer for peer in self._peers.by_descriptor.values() if not peer.lingering]
        num_bytes -= sum(peer.connection.trim() for peer in peers)
        num_dropped = 0
        for peer in sorted(peers, key=lambda peer: peer.connection.num_held_bytes, reverse=True):
            if num_bytes <= 0:
                break
            num_bytes -= peer.connection.num_held_bytes
            peer.drop(CloseReason.MEMORY)
            num_dropped += 1
        if num_dropped:
            _log.warning("closed the connections that took most memory", num_connections=num_dropped)

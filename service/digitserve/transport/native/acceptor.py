"""A listening socket of a worker, and its limit of connections.

    listening socket ──accept──▶ Acceptor ──▶ Peer

Owned by ``loop``, which calls it on the worker's one thread.
"""

import contextlib
import errno
import heapq
import math
import random
import socket
import ssl
from collections.abc import Callable
from typing import Any

from digitserve.log import get_logger
from digitserve.telemetry.block import CloseReason
from digitserve.transport.native.peer import READABLE, NewConnection, Peer, Peers
from digitserve.transport.native.tls import TlsWire

MAX_ACCEPTS = 64
"""Most connections that one iteration accepts."""

ACCEPT_PAUSE_S = 0.5
"""Pause in accepting if no file descriptor or memory is left and no connection is open that could be closed."""

CLOSED_FRACTION = 1 / 64
"""Share of the connections that are closed together when there are too many: the search takes 1 ms for 4 096 connections."""

AGE_JITTER = 0.1
"""Largest difference from the maximum age, as a fraction: otherwise many clients could reconnect at the same time."""

KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 120, 30, 4
"""TCP keepalive: a client that vanished without closing its connection is noticed within four minutes."""

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_SOCKET_OPTIONS = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES),
)

_log = get_logger("digitserve.transport.native.acceptor")


class Acceptor:
    """Accepts the connections of a loop.

    Attributes:
        descriptor: of the listening socket; -1 without one.
    """

    def __init__(
        self, peers: Peers, new_connection: NewConnection, context: Callable[[], ssl.SSLContext] | None
    ) -> None:
        """Start without a listening socket.

        Args:
            peers: gets the accepted connections.
            new_connection: creates a connection.
            context: returns the newest configuration of TLS; None for clear text.
        """
        self._peers = peers
        self._new_connection = new_connection
        self._context = context
        self._listener: socket.socket | None = None
        self.descriptor = -1
        self._accept_at = 0.0
        self._warn_at = 0.0

    def listen(self, listener: socket.socket) -> None:
        """Accept connections of a listening socket, and take ownership of it."""
        listener.setblocking(False)  # noqa: FBT003 - the interface of sockets
        for level, option, value in _SOCKET_OPTIONS:
            with contextlib.suppress(OSError):  # a Unix socket has no such options
                listener.setsockopt(level, option, value)  # accepted sockets inherit them
        self._listener = listener
        self.descriptor = listener.fileno()
        self._peers.epoll.register(self.descriptor, READABLE)

    def stop(self, now: float) -> None:
        """Accept what has already connected, then close the listening socket."""
        if self._listener is not None:
            while self.accept(now):
                pass
            self._peers.epoll.unregister(self.descriptor)
            self._listener.close()
            self._listener, self.descriptor = None, -1

    def check(self, now: float) -> None:
        """Accept again after a pause."""
        if self._listener is not None and 0 < self._accept_at <= now:
            self._accept_at = 0.0
            self._peers.epoll.modify(self.descriptor, READABLE)

    def accept(self, now: float) -> bool:
        """Accept some connections; return whether there may be more."""
        listener = self._listener
        if listener is None or now < self._accept_at:
            return False
        for attempt in range(MAX_ACCEPTS):
            try:
                accepted, address = listener.accept()
            except BlockingIOError:
                return False
            except OSError as error:
                if error.errno not in _EXHAUSTED:
                    continue  # an error of the connection, not of the listener: see accept(2)
                # Without a free descriptor, accept fails even if no connection waits. On the first attempt one waits.
                if attempt or self._make_room(now):
                    return True
                # Without this, epoll would report the listener continuously.
                _log.warning("cannot accept connections", error=str(error), retry_s=ACCEPT_PAUSE_S)
                self._accept_at = now + ACCEPT_PAUSE_S
                self._peers.epoll.modify(self.descriptor, 0)
                return False
            if len(self._peers.by_descriptor) >= self._peers.limits.max_connections:
                self._make_room(now)
            self._add(accepted, address, now)
        return True

    def _make_room(self, now: float) -> bool:
        """Close the connections whose clients have been silent longest, so that idle clients do not block others.

        Returns:
            Whether any connection was closed.
        """
        peers = self._peers.by_descriptor
        num_closed = math.ceil(len(peers) * CLOSED_FRACTION)
        for peer in heapq.nsmallest(num_closed, peers.values(), key=lambda peer: peer.active):
            peer.close("too many connections", CloseReason.TOO_MANY)
        if now >= self._warn_at:
            self._warn_at = now + ACCEPT_PAUSE_S
            _log.warning("closed silent connections to accept others", num_connections=len(peers))
        return num_closed > 0

    def _add(self, accepted: socket.socket, address: Any, now: float) -> None:
        accepted.setblocking(False)  # noqa: FBT003 - the interface of sockets
        jitter = random.uniform(1 - AGE_JITTER, 1 + AGE_JITTER)  # noqa: S311 - not a secret
        tls = None if self._context is None else TlsWire(accepted, self._context())
        try:
            peer = Peer(
                accepted, tls, self._peers, self._new_connection, now, now + self._peers.limits.max_age_s * jitter
            )
            peer.connection.peer = address
        except OSError as error:  # the limits of epoll itself
            _log.warning("cannot watch a connection", error=str(error))
            accepted.close()

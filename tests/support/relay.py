"""A TCP relay in front of a service that can lose its connections as a network does: silently."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Relay:
    """Forwards connections to an address, until ``lose_connections``.

    Attributes:
        address: host:port of the relay.
        num_closed_by_client: connections that the client has closed.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener_name = self._listener.getsockname()
        self.address = f"127.0.0.1:{self._listener_name[1]}"
        self._sockets: list[socket.socket] = []
        self._lost: set[socket.socket] = set()
        self.num_closed_by_client = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_connections(self) -> None:
        """Drop from now on whatever existing connections carry, in both directions, without closing them."""
        self._lost.update(self._sockets)

    def close(self) -> None:
        """Refuse new connections, and close all others."""
        for one in (self._listener, *self._sockets):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                ours, _ = self._listener.accept()
                theirs = socket.create_connection(self._target)
                self._sockets += [ours, theirs]
                for source, sink in ((ours, theirs), (theirs, ours)):
                    threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        from_client = source.getsockname() == self._listener_name
        with suppress(OSError):
            while received := source.recv(1 << 16):
                if source not in self._lost:
                    sink.sendall(received)
        self.num_closed_by_client += from_client
        if source not in self._lost:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_WR)


@contextmanager
def relay_to(target: str) -> Iterator[Relay]:
    """Run a relay until the end of the ``with`` statement."""
    relay = Relay(target)
    try:
        yield relay
    finally:
        relay.close()

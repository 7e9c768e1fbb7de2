"""Connections from the supervisor to its workers without an address: nobody else can connect.

    supervisor: Passing.connect ──one end of a new socket pair──▶ PassedListener.accept :worker
                      └── the other end

A listening Unix socket would need a path, which a read-only container may not have, or an abstract name, to which every
process of the network namespace can connect. The listener here is one end of a socket pair without a name: the worker inherits
it, and the kernel lets only the supervisor, which has the other end, pass connections to it.

gRPC core cannot accept such connections. With it, a worker listens on an abstract name, and rejects calls without a secret that
only it and the supervisor know: ``Secret``.
"""

import contextlib
import errno
import hashlib
import secrets
import socket
import struct
from typing import Any

_PASSED = b"\0"
"""The message that carries a connection: the kernel passes no descriptor without one."""

_CREDENTIALS = struct.Struct("iII")
"""Process, user and group that listen: SO_PEERCRED of unix(7)."""

PEER = "HTTP API"
"""The address of these connections in log lines."""


class PassedListener(socket.socket):
    """Accepts passed connections, in place of a listening socket. A worker has a copy, as of its listening socket."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a connection, and what log lines show as its address.

        Raises:
            BlockingIOError: there is none.
            OSError: it was lost, because this process has no descriptor left. The other end is closed then.
        """
        _, descriptors, _, _ = socket.recv_fds(self, len(_PASSED), 1)
        if not descriptors:
            raise OSError(errno.ECONNABORTED, "got no descriptor")
        return socket.socket(fileno=descriptors[0]), PEER


class Passing:
    """Passes connections to the workers of a slot; owned by the supervisor.

    Attributes:
        listener: for the workers, one after another. Connections that no worker has accepted wait for the next one.
        token: calls need none.
    """

    token = ""

    def __init__(self) -> None:
        """Create the pair, of datagrams: a stream would keep the worker busy with its end of file if the supervisor dies."""
        sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        sender.setblocking(False)  # noqa: FBT003 - the interface of sockets
        self._sender = sender
        self.listener = PassedListener(fileno=receiver.detach())

    def connect(self, pid: int) -> socket.socket:  # noqa: ARG002 - as ``Secret``
        """Return a new connection to a worker, which accepts it when it polls.

        Args:
            pid: of any worker: all accept the same connections.

        Raises:
            OSError: as many connections wait as the kernel allows (``net.unix.max_dgram_qlen``), or no descriptor is left.
        """
        with contextlib.ExitStack() as on_failure:
            ours, theirs = socket.socketpair()
            on_failure.callback(ours.close)
            with theirs:
                socket.send_fds(self._sender, [_PASSED], [theirs.fileno()])
            on_failure.pop_all()
        return ours

    def drain(self) -> None:
        """Leave the last copy of the listener to the workers: once they have closed it, ``connect`` fails."""
        self.listener.close()

    def close(self) -> None:
        """Close the supervisor's copies. Connections that were passed continue."""
        self._sender.close()
        self.listener.close()


class Secret:
    """Connects to workers of gRPC core, and authenticates the supervisor; one per slot, owned by the supervisor.

    Attributes:
        token: of the calls.
    """

    def __init__(self) -> None:
        self.token = secrets.token_hex(32)

    def connect(self, pid: int) -> socket.socket:
        """Return a connection to a worker.

        Args:
            pid: of the worker.

        Raises:
            OSError: it does not listen, another process does, or no descriptor is left.
        """
        with contextlib.ExitStack() as on_failure:
            connection = socket.socket(socket.AF_UNIX)
            on_failure.callback(connection.close)
            connection.connect("\0" + abstract_name(self.token, pid))
            # Everyone can see the name while the worker runs, and take it when it has ended: such a process would get the token.
            listening, _, _ = _CREDENTIALS.unpack(
                connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
            if listening != pid:
                raise OSError(errno.ECONNREFUSED, f"process {listening} listens in place of worker {pid}")
            on_failure.pop_all()
        return connection

    def drain(self) -> None:
        """Do nothing: it holds nothing."""

    close = drain


def abstract_name(token: str, pid: int) -> str:
    """Return the abstract name on which a worker of gRPC core listens. It does not reveal the token.

    Args:
        token: of its slot.
        pid: its process id: two workers of a slot run while one replaces the other.
    """
    return f"digitserve-{hashlib.sha256(f'{pid} {token}'.encode()).hexdigest()}"

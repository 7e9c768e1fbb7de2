"""TLS for a connection driver: a non-blocking socket that encrypts, and behaves as a plain one otherwise.

Created by ``driver`` for each connection, on its process's only thread. The first ``send`` and ``recv`` do the handshake.
"""

import socket
import ssl
from typing import Any

RECORD_BYTES = 1 << 14
"""Most content of one record of TLS (RFC 8446, section 5.1)."""


class HandshakePending(BlockingIOError):
    """Nothing can be sent before bytes of the server have been received."""


class TlsSocket:
    """One connection. Owned by its driver, which closes it."""

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, host: str) -> None:
        """Take a non-blocking socket that is not connected yet.

        Args:
            plain: the socket; it must not be used any more.
            context: TLS configuration of a client.
            host: name or address of the server, which its certificate must contain.
        """
        self._socket = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._socket.fileno()

    def connect_ex(self, address: Any) -> int:
        """Start to connect; return 0 or an error number."""
        return self._socket.connect_ex(address)

    def send(self, content: bytes) -> int:
        """Send content; return how many bytes of it.

        Raises:
            HandshakePending: wait until the socket is readable, then call ``recv``.
            BlockingIOError: wait until the socket is writable.
            OSError: the connection was lost, or the handshake failed.
        """
        num_sent = 0
        view = memoryview(content)
        try:
            while num_sent < len(view):
                num_sent += self._socket.send(view[num_sent : num_sent + RECORD_BYTES])
        except ssl.SSLWantReadError:
            raise HandshakePending from None
        except ssl.SSLWantWriteError:
            if not num_sent:
                raise BlockingIOError from None
        return num_sent

    def recv(self, num_bytes: int) -> bytes:
        """Return the content of one record: the next ones stay in the socket, which then is still readable.

        Args:
            num_bytes: at least ``RECORD_BYTES``.

        Raises:
            BlockingIOError: there is no complete record.
            OSError: the connection was lost, or the handshake failed.
        """
        try:
            return self._socket.recv(num_bytes)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise BlockingIOError from None

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

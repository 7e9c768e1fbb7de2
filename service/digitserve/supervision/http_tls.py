"""TLS of the HTTP port: between the transport of asyncio and a connection of uvicorn.

    socket transport ──ciphertext──▶ TlsTransport ──content──▶ connection of uvicorn
                     ◀──ciphertext──     │        ◀──content──
                                      OpenSSL, on two memory buffers

asyncio's own TLS takes 300 KiB for each connection, silent ones included (measured), and creates a connection only after its
handshake, so those in handshakes would not count. Runs on the supervisor's event loop.
"""

import asyncio
import contextlib
import ssl
from typing import Any, Protocol, cast

PIECE_BYTES, READ_BYTES = 1 << 12, 1 << 14
"""Most bytes that are written at once to OpenSSL's memory buffers, which never shrink, and read from OpenSSL: a record. An
iteration of the event loop also reads no more than a piece from a connection: records without or with little content take
170 ns per byte (measured), so the 256 KiB that asyncio reads by default would delay all others by 45 ms."""


class Connection(Protocol):
    """What is above TLS: a protocol of asyncio that also limits the time of the handshake."""

    def wait(self, transport: asyncio.Transport) -> None:
        """Start to wait for the end of the handshake, or a request."""

    def stop_waiting(self) -> None:
        """Stop waiting: the connection is closed."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """The handshake is complete."""

    def data_received(self, data: bytes) -> None:
        """Content has arrived."""

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, after ``connection_made``."""

    def pause_writing(self) -> None:
        """The client reads too slowly."""

    def resume_writing(self) -> None:
        """The client has read again."""


class TlsTransport(asyncio.Transport, asyncio.BufferedProtocol):
    """A TLS session: the protocol of a socket, and the transport of a connection. Owned by the transport of the socket."""

    def __init__(self, connection: Connection, context: ssl.SSLContext, buffer: bytearray) -> None:
        """Wait for a client.

        Args:
            connection: gets the content.
            context: configuration of TLS.
            buffer: of ``PIECE_BYTES``; all connections of an event loop may share it, because each read is handled immediately.
        """
        super().__init__()
        self._connection = connection
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._buffer = buffer
        self._established = False
        self._socket: asyncio.Transport

    # Called by the transport of the socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the handshake."""
        self._socket = cast("asyncio.Transport", transport)
        self._connection.wait(self._socket)

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002 - the interface of asyncio
        """Return where to put what the client has sent."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Decrypt what the client has sent; close the connection if that is not TLS."""
        try:
            self._incoming.write(memoryview(self._buffer)[:nbytes])
            self._decrypt()
            self._flush()
        except ssl.SSLError:
            self._flush()  # an alert
            self._socket.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Report the end of the connection."""
        if self._established:
            self._connection.connection_lost(exc)
        else:
            self._connection.stop_waiting()

    def pause_writing(self) -> None:
        """Pass on that the client reads too slowly."""
        if self._established:
            self._connection.pause_writing()

    def resume_writing(self) -> None:
        """Pass on that the client has read again."""
        if self._established:
            self._connection.resume_writing()

    # Called by the connection.

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send content."""
        if self.is_closing():
            return
        for start in range(0, len(data), PIECE_BYTES):
            self._session.write(data[start : start + PIECE_BYTES])
            self._flush()

    def close(self) -> None:
        """Send close_notify, and close the connection once everything is sent."""
        if not self.is_closing():
            with contextlib.suppress(ssl.SSLError):  # the close_notify of the client is not awaited
                self._session.unwrap()
            self._flush()
            self._socket.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._socket.abort()

    def is_closing(self) -> bool:
        """Return whether the connection is closed, or will be when everything is sent."""
        return self._socket.is_closing()

    def pause_reading(self) -> None:
        """Read no more from the socket."""
        self._socket.pause_reading()

    def resume_reading(self) -> None:
        """Read from the socket again."""
        self._socket.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return the certificate of the client (``peercert``), which is verified, or facts about TLS and the socket."""
        if name == "peercert":
            return self._session.getpeercert()
        if name == "sslcontext":
            return self._session.context
        return self._socket.get_extra_info(name, default)

    def _decrypt(self) -> None:
        """Continue the handshake, then pass on the content of all records that are complete."""
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self._established:
                self._session.do_handshake()
                self._established = True
                self._connection.connection_made(self)
            while not self.is_closing():
                content = self._session.read(READ_BYTES)
                if not content:
                    self.close()
                    return
                self._connection.data_received(content)

    def _flush(self) -> None:
        """Send output of OpenSSL."""
        if self._outgoing.pending and not self.is_closing():
            self._socket.write(self._outgoing.read())

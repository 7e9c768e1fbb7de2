"""TLS over the socket of a connection, with the interface of a socket that does not block.

    Peer ──recv, send, shutdown──▶ TlsWire ──ciphertext──▶ socket
                                      │
                                   OpenSSL, on two memory buffers

``loop`` creates it for each accepted socket if the service has a certificate; used on the worker's one thread. The handshake
runs within ``recv``. OpenSSL never holds complete records after ``recv``: epoll would not report them.
"""

import contextlib
import socket
import ssl

PIECE_BYTES, SEND_BYTES = 1 << 12, 1 << 13
"""Most bytes that are written at once to OpenSSL's memory buffers for input and output, which never shrink. So a connection
takes 17 to 31 KiB; with 64 KiB at once it would take 104 KiB (measured)."""

MAX_EMPTY_BYTES = 20_000
"""Most ciphertext without content: more than a record, which has at most 16 645 bytes, or the client's part of a handshake.
Otherwise a client could send key updates without end, which have 27 bytes each and cost more CPU time than a frame."""


class TlsWire:
    """A socket and its TLS session; owned by a peer.

    Attributes:
        established: whether the handshake is complete, and HTTP/2 was agreed.
        has_more: whether the socket may have more than the last ``recv`` took.
    """

    __slots__ = (
        "_early", "_encrypted", "_finished", "_incoming", "_num_empty", "_num_encrypted", "_outgoing", "_session", "_socket",
        "established", "has_more",
    )  # fmt: skip

    def __init__(self, accepted: socket.socket, context: ssl.SSLContext) -> None:
        """Wait for the client to begin a handshake.

        Args:
            accepted: non-blocking; owned by the wire.
            context: with the certificate.
        """
        self._socket = accepted
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._session = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._early = b""  # output from before the end of the handshake: SETTINGS, and GOAWAY if it ends early
        self._encrypted = b""  # not taken by the socket yet
        self._num_encrypted = 0  # bytes of output in it
        self._num_empty = 0  # bytes of ciphertext since the last content
        self._finished = False
        self.established = self.has_more = False

    def fileno(self) -> int:
        """Return the descriptor of the socket."""
        return self._socket.fileno()

    def recv(self, num_bytes: int, /) -> bytes:
        """Return what the client has sent, at most ``num_bytes`` of ciphertext; nothing at the end of the connection.

        Raises:
            BlockingIOError: no content has arrived.
            OSError: TLS or the socket has failed; an alert was sent if TLS has one.
        """
        ciphertext = self._socket.recv(num_bytes)
        self.has_more = len(ciphertext) == num_bytes
        if not ciphertext or self._finished:
            return ciphertext
        was_established = self.established
        try:
            received = self._decrypt(ciphertext)
        except ssl.SSLError:
            self._flush()
            raise
        if self._outgoing.pending:
            self._flush()
            # OpenSSL answers a key update with the next output, so output here means another handshake, which is refused.
            if was_established:
                raise ssl.SSLError("the client began another handshake")
        if received == b"":
            raise BlockingIOError
        return received or b""

    def send(self, output: bytes | bytearray, /) -> int:
        """Send output, and return how many bytes of it the socket has taken.

        The next call must start with the rest of this output, because some of it is already encrypted.

        Raises:
            OSError: TLS or the socket has failed.
        """
        if not self.established:
            self._early += output
            return len(output)
        num_taken = 0
        while True:
            if not self._encrypted:
                if num_taken == len(output):
                    return num_taken
                self._num_encrypted = self._session.write(output[num_taken : num_taken + SEND_BYTES])
                self._encrypted = self._outgoing.read()
            try:
                num_sent = self._socket.send(self._encrypted)
            except BlockingIOError:
                return num_taken
            if num_sent < len(self._encrypted):
                self._encrypted = self._encrypted[num_sent:]
                return num_taken
            self._encrypted = b""
            num_taken += self._num_encrypted

    def shutdown(self, how: int, /) -> None:
        """Send close_notify, and shut the socket down; later input of the client is not decrypted.

        Raises:
            OSError: TLS or the socket has failed.
        """
        self._finished = True
        if self.established:
            self._close_session()
        self._socket.shutdown(how)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _decrypt(self, ciphertext: bytes) -> bytes | None:
        """Return the content of all records that are complete; None after close_notify."""
        incoming, session = self._incoming, self._session
        pieces = (
            (ciphertext,)
            if len(ciphertext) <= PIECE_BYTES
            else [ciphertext[start : start + PIECE_BYTES] for start in range(0, len(ciphertext), PIECE_BYTES)]
        )
        received = []
        for piece in pieces:
            self._num_empty += incoming.write(piece)
            try:
                if not self.established:
                    self._shake_hands()
                while incoming.pending:
                    content = session.read(self._num_empty)  # at least what a record has
                    if not content:
                        return None
                    received.append(content)
                    self._num_empty = incoming.pending
            except ssl.SSLWantReadError:
                if self._num_empty > MAX_EMPTY_BYTES:
                    raise ssl.SSLError("got too many bytes without content") from None
        return b"".join(received)

    def _shake_hands(self) -> None:
        """Continue the handshake; after its end, encrypt the output that has waited for it."""
        session = self._session
        session.do_handshake()
        if session.selected_alpn_protocol() != "h2":
            self._close_session()  # OpenSSL has an alert for it, which Python cannot send
            raise ssl.SSLError("the client does not offer HTTP/2 by ALPN")
        self.established = True
        if self._early:
            session.write(self._early)
            self._early = b""

    def _close_session(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):  # the client's close_notify is not awaited
            self._session.unwrap()
        self._flush()

    def _flush(self) -> None:
        """Send output of OpenSSL itself: a part of a handshake, or an alert.

        Raises:
            ConnectionAbortedError: the socket does not take it immediately, although a new socket has room for a handshake.
        """
        output = self._outgoing.read()
        try:
            # Not within a record that is only partly sent: the client could read neither.
            num_sent = 0 if self._encrypted else self._socket.send(output)
        except BlockingIOError:
            num_sent = 0
        if num_sent < len(output):
            raise ConnectionAbortedError("the client does not take the answer to its handshake")

"""TLS below a connection, against OpenSSL's client: both sides in memory."""

import re
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digitserve.errors import SettingsError
from digitserve.settings import Settings
from digitserve.transport.native.tls import MAX_EMPTY_BYTES, SEND_BYTES, TlsWire
from support.certificates import TlsClient, make_certificate, server_context

V12, V13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


class MemorySocket:
    """Stands in for the accepted socket.

    Attributes:
        unread: what the client has sent.
        sent: what the server has sent.
        room: bytes that it still takes.
        ended: whether the client has ended its direction.
        is_shut_down: whether the server has.
    """

    def __init__(self) -> None:
        self.unread = self.sent = b""
        self.room = 1 << 30
        self.ended = self.is_shut_down = False

    def recv(self, num_bytes: int) -> bytes:
        if not self.unread and not self.ended:
            raise BlockingIOError
        received, self.unread = self.unread[:num_bytes], self.unread[num_bytes:]
        return received

    def send(self, output: bytes) -> int:
        if not self.room:
            raise BlockingIOError
        part = output[: self.room]
        self.sent += part
        self.room -= len(part)
        return len(part)

    def shutdown(self, how: int) -> None:
        self.is_shut_down = True


class Pair:
    """The server's end of a connection, and a client."""

    def __init__(self, context: ssl.SSLContext, **options: Any) -> None:
        self.socket = MemorySocket()
        self.wire = TlsWire(self.socket, context)  # type: ignore[arg-type]
        self.client = TlsClient(**options)

    def receive(self, ciphertext: bytes, num_bytes: int = 1 << 16) -> bytes:
        """Let ciphertext arrive, and read all of it."""
        self.socket.unread += ciphertext
        content = b""
        while self.socket.unread:
            try:
                received = self.wire.recv(num_bytes)
            except BlockingIOError:
                continue
            content += received
            if not received:
                break
        return content

    def give(self) -> bytes:
        """Pass the output of the server to the client; return its content."""
        sent, self.socket.sent = self.socket.sent, b""
        return self.client.give(sent)

    def shake_hands(self) -> "Pair":
        while not self.wire.established:
            assert self.receive(self.client.take()) == b""
            self.give()
        return self


NewPair = Callable[..., Pair]


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    made = make_certificate(tmp_path_factory.mktemp("tls"))
    context = server_context(Settings(**made.settings()))  # type: ignore[arg-type]
    assert context is not None
    return context


@pytest.fixture
def new_pair(context: ssl.SSLContext) -> NewPair:
    return lambda **options: Pair(context, **options)


@pytest.mark.parametrize("version", [V12, V13])
def test_content_goes_both_ways(new_pair: NewPair, version: ssl.TLSVersion) -> None:
    """After a handshake of TLS 1.2 or 1.3 content of any length arrives; early output follows the handshake."""
    pair = new_pair(maximum_version=version)
    assert pair.wire.send(b"early") == 5
    pair.receive(pair.client.take())
    pair.give()
    assert pair.receive(pair.client.take()) == b""
    assert pair.give() == b"early"
    for length in (1, 4096, 16_384, 100_000):
        assert pair.receive(pair.client.take(bytes(length))) == bytes(length)
        output = bytes(range(256)) * (length // 256 + 1)
        assert pair.wire.send(output) == len(output)
        assert pair.give() == output


def test_a_request_that_follows_the_handshake_at_once(new_pair: NewPair) -> None:
    """TLS 1.3 clients send content with the end of the handshake: the same ``recv`` returns it."""
    pair = new_pair()
    pair.receive(pair.client.take())
    pair.give()
    assert pair.receive(pair.client.take(b"request")) == b"request"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from([V12, V13]), st.integers(1, 6000), st.integers(1, 6000),
    st.lists(st.binary(min_size=1, max_size=5000), max_size=8), st.booleans(),
)  # fmt: skip
def test_every_split_gives_the_same(
    new_pair: NewPair, version: ssl.TLSVersion, num_read: int, num_room: int, contents: list[bytes], closes: bool
) -> None:
    """However the socket divides what arrives and what it takes, content is complete and in order in both directions, and
    nothing complete stays within OpenSSL.
    """
    pair = new_pair(maximum_version=version)
    pair.shake_hands()
    ciphertext = b"".join(pair.client.take(content) for content in contents)
    if closes:
        ciphertext += pair.client.close()
    received = b""
    for start in range(0, len(ciphertext), num_read):
        received += pair.receive(ciphertext[start : start + num_read])
    assert received == b"".join(contents) or (closes and b"".join(contents).startswith(received))
    if closes:
        return
    output, got = bytearray(b"".join(contents)), b""
    while output:
        pair.socket.room = num_room
        num_taken = pair.wire.send(output)
        del output[:num_taken]
        got += pair.give()
    assert got == b"".join(contents)


def test_what_the_socket_does_not_take_is_not_encrypted(new_pair: NewPair) -> None:
    """While the socket is blocked, the waiting ciphertext is limited, and more output may be appended."""
    pair = new_pair()
    pair.shake_hands()
    pair.socket.room = 0
    output = bytearray(bytes(1 << 20))
    assert pair.wire.send(output) == 0
    assert len(pair.wire._encrypted) < SEND_BYTES * 1.1
    output += b"more"
    pair.socket.room = SEND_BYTES
    assert pair.wire.send(output) == 0
    pair.socket.room = 1 << 30
    assert pair.wire.send(output) == len(output)
    assert pair.give() == output


def test_more_may_be_left_in_the_socket(new_pair: NewPair) -> None:
    """``has_more`` tells whether a read took all that it could: then the time of arrival of the rest is unknown."""
    pair = new_pair()
    pair.shake_hands()
    pair.socket.unread = pair.client.take(bytes(3000))
    with pytest.raises(BlockingIOError):
        pair.wire.recv(1000)
    assert pair.wire.has_more
    assert pair.receive(b"") == bytes(3000)
    assert not pair.wire.has_more


@pytest.mark.parametrize("version", [V12, V13])
@pytest.mark.parametrize("alpn", [("http/1.1",), ()])
def test_a_client_without_http2_is_closed(new_pair: NewPair, version: ssl.TLSVersion, alpn: tuple[str, ...]) -> None:
    """A client that does not offer h2 gets close_notify, and none of its bytes is returned."""
    pair = new_pair(alpn=alpn, maximum_version=version)
    pair.receive(pair.client.take())
    pair.give()
    with pytest.raises(ssl.SSLError, match="ALPN"):
        pair.receive(pair.client.take())
    pair.give()
    assert pair.client.session.read(100) == b""
    assert not pair.wire.established


def alert(record: bytes) -> int:
    """Return the description of an alert in clear text (RFC 8446, section 6)."""
    kind, _version, length, level, description = struct.unpack(">BHHBB", record)
    assert (kind, length, level) == (21, 2, 2)
    return description


PROTOCOL_VERSION, HANDSHAKE_FAILURE = 70, 40


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"maximum_version": ssl.TLSVersion.TLSv1_1, "ciphers": "ALL:@SECLEVEL=0"}, PROTOCOL_VERSION),
        ({"maximum_version": V12, "ciphers": "AES128-GCM-SHA256:AES256-SHA"}, HANDSHAKE_FAILURE),
        ({"maximum_version": V12, "ciphers": "ECDHE+AES128+SHA1:ECDHE+SHA256"}, HANDSHAKE_FAILURE),
    ],
)
@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_weak_clients_get_an_alert(new_pair: NewPair, options: dict[str, Any], expected: int) -> None:
    """TLS 1.1, key exchange without forward secrecy, and CBC suites are refused during the first message."""
    pair = new_pair(minimum_version=ssl.TLSVersion.TLSv1, **options)
    with pytest.raises(ssl.SSLError):
        pair.receive(pair.client.take())
    assert alert(pair.socket.sent) == expected


@pytest.mark.parametrize(
    "garbage",
    [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\x16\x03\x01" + b"\xff" * 50],
)
def test_other_protocols_fail_at_once(new_pair: NewPair, garbage: bytes) -> None:
    """Clear text and garbage end the connection with the first bytes that cannot be TLS."""
    pair = new_pair()
    with pytest.raises(OSError, match="SSL"):
        pair.receive(garbage)


def test_close_notify_ends_the_connection(new_pair: NewPair) -> None:
    """After close_notify nothing more is returned, whatever follows it."""
    pair = new_pair()
    pair.shake_hands()
    request, end = pair.client.take(b"last"), pair.client.close()
    assert pair.receive(request) == b"last"
    pair.socket.unread = end + request
    assert pair.wire.recv(1 << 16) == b""


def test_the_end_of_the_socket_is_the_end(new_pair: NewPair) -> None:
    """A connection that ends without close_notify, within a record or during the handshake, just ends."""
    for pair in (new_pair().shake_hands(), new_pair()):
        pair.socket.unread, pair.socket.ended = pair.client.take(b"half")[:9] if pair.wire.established else b"", True
        if pair.wire.established:
            with pytest.raises(BlockingIOError):
                pair.wire.recv(1 << 16)
        assert pair.wire.recv(1 << 16) == b""


@pytest.mark.parametrize("version", [V12, V13])
def test_shutdown_sends_close_notify(new_pair: NewPair, version: ssl.TLSVersion) -> None:
    """The client gets close_notify after the output; what it still sends is read but not decrypted."""
    pair = new_pair(maximum_version=version)
    pair.shake_hands()
    pair.wire.send(b"goaway")
    pair.wire.shutdown(1)
    assert pair.socket.is_shut_down
    assert pair.give() == b"goaway"
    assert pair.client.session.read(100) == b""
    late = pair.client.take(b"late")
    assert pair.receive(late) == late


def test_shutdown_during_the_handshake(new_pair: NewPair) -> None:
    """A connection that ends before its handshake just ends; its output is discarded."""
    pair = new_pair()
    pair.wire.send(b"goaway")
    pair.wire.shutdown(1)
    assert pair.socket.is_shut_down and pair.socket.sent == b""


def test_a_damaged_record_ends_the_connection(new_pair: NewPair) -> None:
    """A record that was modified in transit is never returned; the client gets an alert."""
    pair = new_pair()
    pair.shake_hands()
    record = bytearray(pair.client.take(b"request"))
    record[-1] ^= 1
    with pytest.raises(ssl.SSLError):
        pair.receive(bytes(record))
    with pytest.raises(ssl.SSLError, match="(?i)alert"):
        pair.give()


def test_handshakes_are_bounded_in_bytes(new_pair: NewPair) -> None:
    """Too many bytes without content end the connection, also in a handshake that does not end."""
    pair = new_pair()
    header = b"\x16\x03\x03" + struct.pack(">H", 16_000) + b"\x01" + (1 << 17).to_bytes(3, "big")
    with pytest.raises(ssl.SSLError, match="without content"):
        pair.receive(header + bytes(15_996) + header[:5] + bytes(MAX_EMPTY_BYTES - 16_000))


def test_a_client_that_takes_no_handshake_is_closed(new_pair: NewPair) -> None:
    """Nothing waits for a client whose socket has no room for the server's part of the handshake."""
    pair = new_pair()
    pair.socket.room = 100
    with pytest.raises(ConnectionAbortedError):
        pair.receive(pair.client.take())


def test_no_session_is_kept(context: ssl.SSLContext, new_pair: NewPair) -> None:
    """A server that has seen many clients holds nothing of them, and TLS 1.3 clients get no tickets."""
    for _ in range(20):
        new_pair(maximum_version=V12).shake_hands()
    pair = new_pair().shake_hands()
    assert pair.give() == b"" and not pair.client.session.session.has_ticket
    assert context.session_stats()["number"] == 0


def test_settings_without_a_certificate_are_clear_text() -> None:
    """Without both files there is no TLS."""
    assert server_context(Settings()) is None


def test_certificate_errors(tmp_path: Path) -> None:
    """Files that are missing, of another kind or pair, or encrypted are refused; the message has the flag and the reason."""
    one, two, three = (make_certificate(tmp_path / name) for name in ("one", "two", "three"))
    make_certificate(tmp_path / "three", "-passout", "pass:secret")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    missing = tmp_path / "missing"
    for certificate, key, expected in [
        (one.certificate, None, "--tls-certificate without --tls-key"),
        (None, one.key, "--tls-key without --tls-certificate"),
        (missing, one.key, f"--tls-certificate {missing}: cannot be read: No such file"),
        (one.certificate, tmp_path, f"--tls-key {tmp_path}: cannot be read: Is a directory"),
        (one.key, one.key, f"--tls-certificate {one.key}: expected CERTIFICATE in PEM format"),
        (one.certificate, two.certificate, f"--tls-key {two.certificate}: expected PRIVATE KEY in PEM format"),
        (one.certificate, two.key, f"--tls-key {two.key}: is not the key of the certificate in {one.certificate}"),
        (three.certificate, three.key, "--tls-key: is protected by a password"),
        (broken, one.key, "cannot be used"),
    ]:
        with pytest.raises(SettingsError, match=re.escape(expected)):
            server_context(Settings(tls_certificate=certificate, tls_key=key))

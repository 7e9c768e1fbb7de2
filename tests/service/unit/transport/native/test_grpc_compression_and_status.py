"""gRPC over HTTP/2 (github.com/grpc/grpc, doc/compression.md and doc/PROTOCOL-HTTP2.md): compression and encoding of statuses."""

import base64
import gzip
import urllib.parse
import zlib

import pytest
from google.rpc import status_pb2

from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.transport.native import shares
from digitserve.transport.native.limits import FIRST_WINDOW
from digitserve.transport.native.message import (
    MAX_MESSAGE_TEXT,
    SMALL_BYTES,
    MessageError,
    encode_status,
    inflate,
    inflated_bytes,
)
from digitserve.transport.native.shares import INFLATE_BURST_S, INFLATE_SHARE, InflateBudget
from support.http2_peer import (
    DATA,
    LIMITS,
    STREAM,
    UNARY,
    Peer,
    call,
    data,
    headers,
    message,
    raw,
    request,
)

GZIP = (b"grpc-encoding", b"gzip")
MAX = LIMITS.max_message_bytes


def names(peer: Peer, stream_id: int = 1) -> list[str]:
    return [each[0] for each in peer.unary.events if each[1] == stream_id]


@pytest.mark.parametrize("level", [0, 1, 9])
@pytest.mark.parametrize("size", [0, 5, 100_000, MAX])
def test_compressed_messages_are_inflated(level: int, size: int) -> None:
    """grpc-encoding gzip: messages with flag 1 are gzip, with flag 0 as they are."""
    body = bytes(size)
    compressed = gzip.compress(body, level)
    peer = Peer()
    if len(compressed) <= MAX:
        peer.send(headers(1, request(UNARY, GZIP)))
        whole = message(compressed, 1)
        peer.send(raw(DATA, 0, 1, whole[:5]))
        peer.send(data(1, whole[5:], ended=True))
        assert peer.unary.events[-1] == ("message", 1, body)
    peer.send(call(3, body[:1000], UNARY, GZIP))
    assert peer.unary.events[-1] == ("message", 3, body[:1000])


@pytest.mark.parametrize(
    "compressed",
    [
        b"",
        b"no gzip",
        gzip.compress(b"hello")[:-1],
        gzip.compress(b"hello") + b"x",
        gzip.compress(b"hello")[:-8] + bytes(8),  # wrong checksum
        zlib.compress(b"hello"),
    ],
    ids=["empty", "not gzip", "truncated", "more after the end", "wrong checksum", "zlib"],
)
def test_a_message_that_is_not_gzip_fails_the_call(compressed: bytes) -> None:
    """Broken compression is INTERNAL, and reported once."""
    peer = Peer()
    peer.send(headers(1, request(UNARY, GZIP)), data(1, message(compressed, 1), ended=True))
    assert peer.unary.events == [("accept", 1), ("failed", 1, Code.INTERNAL)]


@pytest.mark.parametrize("size", [MAX + 1, 50 * MAX])
def test_a_zip_bomb_is_too_large(size: int) -> None:
    """A message over the limit after decompression is too large; no more than the limit is decompressed."""
    peer = Peer()
    peer.send(headers(1, request(UNARY, GZIP)), data(1, message(gzip.compress(bytes(size), 9), 1), ended=True))
    assert names(peer) == ["accept", "too large"]
    assert peer.answer(1).status == Code.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("size", [0, 1, 100, SMALL_BYTES, SMALL_BYTES + 1, 300_000])
def test_no_more_is_decompressed_than_a_message_states(size: int) -> None:
    """The size at its end decides before decompression: over the limit it is too large, and a wrong size is an error."""
    body = gzip.compress(bytes(size))
    assert inflated_bytes(memoryview(body), b"gzip") == size
    assert inflate(body, size, size) == bytes(size)
    for stated in (size - 1, size + 1):
        if stated >= 0:
            with pytest.raises(MessageError):
                inflate(body[:-4] + stated.to_bytes(4, "little"), stated, 1 << 20)
    with pytest.raises(MessageError, match="grpc-encoding is not gzip"):
        inflated_bytes(memoryview(body), b"identity")


def test_of_a_message_over_the_limit_only_the_start_is_decompressed() -> None:
    """A message that states a size over the limit is too large, unless its start shows that this size is wrong."""
    body = gzip.compress(bytes(SMALL_BYTES + 1))
    assert inflate(body, SMALL_BYTES + 1, SMALL_BYTES) is None
    assert inflate(body[:-20] + bytes(20), 1 << 31, 100) is None, "its end is not read"
    for broken in (b"no gzip", body[:20], gzip.compress(b"short")):
        with pytest.raises(MessageError):
            inflate(broken, 1 << 31, 100)


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_large_compressed_messages_wait_for_the_time_budget(path: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker spends a limited part of its time on decompression. Messages beyond it wait, oldest first, and small ones
    pass them. They end by their deadlines, and calls also after the time limit of a message.
    """
    now = [50.0]

    def slow_inflate(body: bytes, num_bytes: int, max_bytes: int) -> bytes | None:
        now[0] += INFLATE_BURST_S
        return inflate(body, num_bytes, max_bytes)

    monkeypatch.setattr(shares, "inflate", slow_inflate)
    peer = Peer()
    peer.budget.inflate = InflateBudget(lambda: now[0])
    peer.unary.answer, peer.stream.answer = lambda unary, body: unary.reply(b""), lambda stream, body: stream.read()
    recorder = peer.unary if path == UNARY else peer.stream

    def arrived() -> list[int]:
        return [each[1] for each in recorder.events if each[0] == "message" and each[1] < 1000]

    body = message(gzip.compress(bytes(MAX), 9), 1)
    assert len(body) < FIRST_WINDOW
    for stream_id in (1, 3, 5, 7, 9, 11):
        timeout = (b"grpc-timeout", b"1S" if stream_id == 9 else b"9S")
        peer.send(headers(stream_id, request(path, GZIP, timeout)), data(stream_id, body, ended=True))
    assert arrived() == [1, 3], "the second one uses the share of the time that the first one took"
    peer.send(headers(1001, request(UNARY, GZIP)), data(1001, message(gzip.compress(bytes(784)), 1), ended=True))
    assert peer.unary.events[-1] == ("message", 1001, bytes(784))
    for waits_s, expected in ((0.0, [1, 3]), (0.75 * INFLATE_BURST_S / INFLATE_SHARE, [1, 3, 5])):
        now[0] += waits_s
        peer.connection.on_room()
        peer.read()
        assert arrived() == expected
    peer.wall += 2
    peer.check()
    assert peer.answer(9).status == Code.DEADLINE_EXCEEDED
    peer.now += LIMITS.message_s + 1
    peer.check()
    if path == UNARY:
        assert [peer.answer(stream_id).status for stream_id in (7, 11)] == [Code.RESOURCE_EXHAUSTED] * 2
    for _ in range(2):
        now[0] += 1
        peer.connection.on_room()
        peer.read()
    assert path == UNARY or arrived() == [1, 3, 5, 7, 11]
    assert not peer.connection.streams and not peer.connection.waiting and peer.budget.used_bytes == 0


@pytest.mark.parametrize("stated", [0, MAX + 1])
@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_long_messages_without_content_wait_for_their_turn(
    path: bytes, stated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Empty blocks take time to decompress too, whatever size the message states: 16 MiB of them take 0.7 s."""
    now = [50.0]

    def slow_inflate(body: bytes, num_bytes: int, max_bytes: int) -> bytes | None:
        now[0] += 1.0
        return inflate(body, num_bytes, max_bytes)

    monkeypatch.setattr(shares, "inflate", slow_inflate)
    peer = Peer()
    peer.budget.inflate = InflateBudget(lambda: now[0])
    empty_blocks = bytes((0, 0, 0, 255, 255)) * (SMALL_BYTES // 5 + 1)
    end = bytes((1, 0, 0, 255, 255)) + bytes(4) + stated.to_bytes(4, "little")
    body = message(gzip.compress(b"")[:10] + empty_blocks + end, 1)
    for stream_id in (1, 3):
        peer.send(headers(stream_id, request(path, GZIP)), data(stream_id, body[:5]))
        peer.send(data(stream_id, body[5:], ended=True))
    assert list(peer.connection.waiting) == [peer.connection.streams[3]]
    now[0] += 10.0
    peer.connection.on_room()
    peer.read()
    assert not peer.connection.waiting and not peer.connection.streams


@pytest.mark.parametrize("encoding", [b"snappy", b"deflate", b"", b"GZIP", b"gzip, gzip", b"\xff"])
@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_an_unknown_encoding_is_unimplemented(encoding: bytes, path: bytes) -> None:
    """The answer lists what the server accepts; the message is not handed over."""
    peer = Peer()
    peer.stream.accept = lambda stream: stream.read()
    peer.send(call(1, b"x", path, (b"grpc-encoding", encoding)))
    answer = peer.answer(1)
    assert answer.status == Code.UNIMPLEMENTED
    assert answer.trailers[b"grpc-accept-encoding"] == b"identity,gzip"
    events = peer.unary.events + peer.stream.events
    assert [each[0] for each in events] == ["accept", "failed" if path == UNARY else "close"]
    assert not peer.connection.streams


def test_a_status_without_message_is_trailers_only() -> None:
    """Trailers-only: one HEADERS frame with :status, content-type and the gRPC status."""
    peer = Peer()
    frames = peer.send(call(1, b"", b"/no/Such"))
    assert [each.type for each in frames] == [1]
    assert peer.answer(1).trailers == {
        b":status": b"200",
        b"content-type": b"application/grpc",
        b"grpc-status": b"12",
        b"grpc-message": b"unknown method",
    }


def decoded(status: Status) -> dict[bytes, bytes]:
    peer = Peer()
    peer.unary.answer = lambda unary, body: unary.fail(status)
    peer.send(call(1))
    return peer.answer(1).trailers


@pytest.mark.parametrize(
    ("text", "encoded"),
    [
        ("plain text ~!", b"plain text ~!"),
        ("100 %", b"100 %25"),
        ("a\nb\tc\x7f\0", b"a%0Ab%09c%7F%00"),
        ("ä€😀", b"%C3%A4%E2%82%AC%F0%9F%98%80"),
        ("  two  spaces  ", b"%20 two  spaces%20%20"),
    ],
)
def test_messages_are_percent_encoded(text: str, encoded: bytes | None) -> None:
    """Bytes outside 0x20 to 0x7E, and the percent sign, are encoded; decoding gives the text."""
    found = decoded(Status(Code.INTERNAL, text))[b"grpc-message"]
    if encoded is not None:
        assert found == encoded
    assert urllib.parse.unquote(found.decode()) == text
    assert found.strip() == found, "HTTP/2 forbids space at the ends of a value"


@pytest.mark.parametrize(("end", "num_left"), [("€", -1), ("y", 0), ("", 0)])
def test_long_messages_are_cut_at_a_character(end: str, num_left: int) -> None:
    """At most 1024 bytes of UTF-8, never half a character."""
    found = decoded(Status(Code.INTERNAL, "x" * (MAX_MESSAGE_TEXT + num_left) + end))[b"grpc-message"]
    assert found == b"x" * (MAX_MESSAGE_TEXT + num_left)


@pytest.mark.parametrize(("seconds", "pushback"), [(0.25, b"250"), (0.0, b"0"), (1.5, b"1500")])
def test_overload_has_pushback_and_details(seconds: float, pushback: bytes) -> None:
    """grpc-retry-pushback-ms, and a google.rpc.Status with RetryInfo as base64 without padding."""
    status = Status(Code.RESOURCE_EXHAUSTED, "full", seconds)
    trailers = decoded(status)
    assert trailers[b"grpc-retry-pushback-ms"] == pushback
    details = trailers[b"grpc-status-details-bin"]
    assert not details.endswith(b"=")
    proto = status_pb2.Status.FromString(base64.b64decode(details + b"=" * (-len(details) % 4)))
    assert proto == status.to_proto()


def test_a_status_without_retry_has_neither() -> None:
    """No pushback and no details without a time."""
    assert set(decoded(Status(Code.NOT_FOUND))) == {b":status", b"content-type", b"grpc-status"}
    assert encode_status(Status(Code.NOT_FOUND)) is encode_status(Status(Code.NOT_FOUND)), "encoded once"

"""RFC 9113, section 8: requests, and what is malformed."""

import pytest

from digitserve.transport.native.frames import ErrorCode
from support.http2_peer import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    REQUEST,
    STREAM,
    UNARY,
    Peer,
    call,
    headers,
    message,
    raw,
    request,
)


def without(name: bytes) -> list[tuple[bytes, bytes]]:
    return [each for each in REQUEST if each[0] != name]


MALFORMED = {
    # 8.2.1
    "uppercase name": request(UNARY, (b"X-Name", b"1")),
    "empty name": request(UNARY, (b"", b"1")),
    "space in a name": request(UNARY, (b"a b", b"1")),
    "colon in a name": request(UNARY, (b"a:b", b"1")),
    "control character in a name": request(UNARY, (b"a\x7f", b"1")),
    "not ASCII in a name": request(UNARY, ("ä".encode(), b"1")),
    "NUL in a value": request(UNARY, (b"a", b"x\0y")),
    "LF in a value": request(UNARY, (b"a", b"x\ny")),
    "CR in a value": request(UNARY, (b"a", b"x\ry")),
    "space before a value": request(UNARY, (b"a", b" x")),
    "tab after a value": request(UNARY, (b"a", b"x\t")),
    # 8.2.2
    **{
        f"{name.decode()} field": request(UNARY, (name, b"close"))
        for name in (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
    },
    "te other than trailers": request(UNARY, (b"te", b"trailers, deflate")),
    # 8.3
    "pseudo-header after a regular field": [*without(b":path"), (b":path", UNARY)],
    "unknown pseudo-header": [(b":new", b"x"), *REQUEST],
    "pseudo-header of a response": [(b":status", b"200"), *REQUEST],
    "repeated :method": [(b":method", b"POST"), *REQUEST],
    "repeated :scheme": [(b":scheme", b"http"), *REQUEST],
    "repeated :path": [(b":path", UNARY), *REQUEST],
    "repeated :authority": [(b":authority", b"a"), *REQUEST],
    # 8.3.1
    "no :method": without(b":method"),
    "no :scheme": without(b":scheme"),
    "no :path": without(b":path"),
    "empty :path": request(path=b""),
    "user information in :authority": request(authority=b"me@server"),
    "no field at all": [],
    # 8.1.1
    "content-length that is no number": request(UNARY, (b"content-length", b"ten")),
    "negative content-length": request(UNARY, (b"content-length", b"-1")),
    "different content-lengths": request(UNARY, (b"content-length", b"10"), (b"content-length", b"11")),
}


@pytest.mark.parametrize("flags", [END_HEADERS, END_HEADERS | END_STREAM])
@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_request_is_a_stream_error(fields: list[tuple[bytes, bytes]], flags: int) -> None:
    """8.1.1: PROTOCOL_ERROR for the stream; no handler sees it, and other streams go on."""
    peer = Peer()
    peer.send(headers(1, fields, flags), call(3))
    assert peer.answer(1).reset == ErrorCode.PROTOCOL_ERROR
    assert peer.answer(3).status == 0
    assert {each[1] for each in peer.unary.events + peer.unknown.events} == {3}


@pytest.mark.parametrize("path", [UNARY, STREAM])
@pytest.mark.parametrize(
    ("length", "body", "ended"),
    [
        (5, message(b"a"), False),
        (7, message(b"a"), True),
        (5, message(b"a"), True),
        (0, message(b"a"), True),
        (1, b"", True),
        (10, message(b"a") + message(b"bcdefghi"), False),
    ],
)
def test_a_body_that_contradicts_content_length_is_malformed(
    path: bytes, length: int, body: bytes, ended: bool
) -> None:
    """8.1.1: a content-length that differs from the sum of DATA is a stream error, as soon as that is certain."""
    peer = Peer()
    fields = request(path, (b"content-length", b"%d" % length))
    peer.send(headers(1, fields), raw(DATA, END_STREAM if ended else 0, 1, body), call(3))
    assert peer.answer(1).reset == ErrorCode.PROTOCOL_ERROR
    assert ("message", 1, b"a") not in peer.unary.events
    assert peer.answer(3).status == 0
    assert [each[0] for each in (peer.unary if path == UNARY else peer.stream).events].count("close") == 1


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_content_length_without_a_body_is_malformed(path: bytes) -> None:
    """8.1.1: HEADERS with END_STREAM and a content-length other than 0; no handler sees the request."""
    peer = Peer()
    peer.send(headers(1, request(path, (b"content-length", b"6")), END_HEADERS | END_STREAM))
    assert peer.answer(1).reset == ErrorCode.PROTOCOL_ERROR
    assert peer.unary.events == peer.stream.events == []


@pytest.mark.parametrize("num_frames", [1, 2, 11])
@pytest.mark.parametrize("padding", [0, 9])
@pytest.mark.parametrize("trailers", [False, True])
def test_a_correct_content_length_is_accepted(num_frames: int, padding: int, trailers: bool) -> None:
    """8.1.1: it is compared with the content of all DATA frames, without padding, also before trailers."""
    peer = Peer()
    body = message(b"hello!")
    fields = request(UNARY, (b"content-length", b"11"), (b"content-length", b"11"))
    size = -(-11 // num_frames)
    frames = headers(1, fields)
    for start in range(0, 11, size):
        frames += raw(DATA, PADDED, 1, bytes([padding]) + body[start : start + size] + bytes(padding))
    end = headers(1, [(b"x", b"1")], END_HEADERS | END_STREAM) if trailers else raw(DATA, END_STREAM, 1)
    peer.send(frames, end)
    assert peer.answer(1).messages == [b"hello!"]


@pytest.mark.parametrize(
    "fields",
    [
        [(b":path", b"/x")],
        [(b":unknown", b"x")],
        [(b"Upper", b"x")],
        [(b"a", b"x\n")],
        [(b"connection", b"close")],
    ],
    ids=str,
)
def test_malformed_trailers_are_a_stream_error(fields: list[tuple[bytes, bytes]]) -> None:
    """8.1 and 8.3: trailers have no pseudo-header fields, and only valid ones."""
    peer = Peer()
    peer.send(headers(1), raw(DATA, 0, 1, message(b"x")), headers(1, fields, END_HEADERS | END_STREAM), call(3))
    assert peer.answer(1).reset == ErrorCode.PROTOCOL_ERROR
    assert peer.unary.events[:2] == [("accept", 1), ("close", 1)]
    assert peer.answer(3).status == 0


def test_a_second_headers_frame_without_end_stream_is_malformed() -> None:
    """8.1: trailers end the request."""
    peer = Peer()
    peer.send(headers(1), headers(1, [(b"x", b"y")]), call(3))
    assert peer.answer(1).reset == ErrorCode.PROTOCOL_ERROR
    assert peer.answer(3).status == 0


@pytest.mark.parametrize(
    "fields",
    [
        without(b"te"),
        without(b":authority"),
        [*without(b":authority"), (b"host", b"server")],
        request(UNARY, (b"cookie", b"a=1"), (b"cookie", b"b=2")),
        request(UNARY, (b"x-empty", b"")),
        request(UNARY, (b"x-bytes", b"\xff\x80")),
        request(scheme=b"https"),
        request(UNARY, (b"priority", b"u=1")),
    ],
    ids=["no te", "no authority", "host", "cookies", "empty value", "obs-text", "https", "priority"],
)
def test_valid_variants_are_answered(fields: list[tuple[bytes, bytes]]) -> None:
    """8.2 and 8.3.1: what is optional may be missing, and repeated or unusual regular fields are metadata."""
    peer = Peer()
    peer.send(headers(1, fields), raw(DATA, END_STREAM, 1, message(b"x")))
    assert peer.answer(1).messages == [b"x"]


def test_answers_have_the_fields_that_http_demands() -> None:
    """8.3.2: exactly one :status first, lowercase names, no connection-specific field; never a push (8.4)."""
    peer = Peer()
    frames = peer.send(call(1))
    assert [each.type for each in frames] == [HEADERS, DATA, HEADERS]
    assert next(iter(peer.answer(1).headers.items())) == (b":status", b"200")
    assert all(name == name.lower() for name in peer.answer(1).headers)
    assert not any(name.startswith(b":") for name in peer.answer(1).trailers)


def test_requests_on_interleaved_streams_are_independent() -> None:
    """5: frames of streams may be interleaved; an unfinished request does not delay another."""
    peer = Peer()
    first, second = message(b"first"), message(b"second")
    peer.send(headers(1), headers(3), raw(DATA, 0, 1, first[:6]), raw(DATA, 0, 3, second[:3]), call(5))
    peer.send(raw(DATA, END_STREAM, 3, second[3:]), raw(DATA, END_STREAM, 1, first[6:]))
    assert [each[1:] for each in peer.unary.events if each[0] == "message"] == [
        (5, b"hello"),
        (3, b"second"),
        (1, b"first"),
    ]


def static_request() -> bytes:
    """Encode a request without the dynamic table."""
    path = b"\x04" + bytes([len(UNARY)]) + UNARY
    return b"\x83\x86" + path + b"\x0f\x10\x10application/grpc"


def test_a_cached_header_block_follows_the_table() -> None:
    """4.3.1: equal bytes mean other fields once the table has changed."""
    peer = Peer()
    # b"\xbe" is the newest entry of the dynamic table: field x in one call, field y in the next.
    newest = static_request() + b"\xbe"
    for stream_id, name in ((1, b"x"), (3, b"y")):
        insert = static_request() + b"\x40\x01" + name + b"\x01v"
        for number, fields in enumerate((insert, newest, newest)):
            each = stream_id + 100 * (stream_id - 1) + 2 * number
            peer.send(raw(HEADERS, END_HEADERS, each, fields), raw(DATA, END_STREAM, each, message(b"")))
    names = [each.head.fields[-1][0] for each in peer.unary.calls]
    assert names == [b"x"] * 3 + [b"y"] * 3

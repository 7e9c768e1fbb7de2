"""gRPC over HTTP/2 (github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md and doc/compression.md): unary calls."""

from typing import Any

import pytest

from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.transport.native.frames import ErrorCode
from digitserve.transport.native.limits import FIRST_WINDOW, ReceiveBudget
from support.http2_peer import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    LIMITS,
    PADDED,
    RST_STREAM,
    STREAM,
    UNARY,
    WINDOW_UPDATE,
    Peer,
    call,
    data,
    headers,
    message,
    raw,
    request,
    reset,
    settings,
)

GZIP = (b"grpc-encoding", b"gzip")
MAX = LIMITS.max_message_bytes


def names(peer: Peer, stream_id: int = 1) -> list[str]:
    return [each[0] for each in peer.unary.events if each[1] == stream_id]


@pytest.mark.parametrize("size", [0, 1, 20])
@pytest.mark.parametrize("end", ["last", "empty DATA", "trailers"])
@pytest.mark.parametrize("first", [b"", b"hello"])
def test_a_message_may_be_split_anywhere(size: int, end: str, first: bytes) -> None:
    """A message in any number of DATA frames, ended by any of the ways to end a request, is one message."""
    body = first + bytes(range(size))
    whole = message(body)
    for cut in range(len(whole) + 1):
        peer = Peer()
        last = raw(DATA, END_STREAM if end == "last" else 0, 1, whole[cut:])
        more = {
            "last": b"",
            "empty DATA": raw(DATA, END_STREAM, 1),
            "trailers": headers(1, [(b"grpc-client", b"x"), (b"y-bin", b"AA")], END_HEADERS | END_STREAM),
        }[end]
        peer.send(headers(1), raw(DATA, 0, 1, whole[:cut]), last, more)
        assert peer.unary.events == [("accept", 1), ("message", 1, body)]
        assert peer.answer(1).messages == [body] and peer.answer(1).status == 0
        assert peer.budget.used_bytes == 0 and not peer.connection.streams


def test_a_message_may_arrive_byte_by_byte() -> None:
    """One byte per DATA frame."""
    peer = Peer()
    peer.send(headers(1), data(1, message(b"hello world"), ended=True, size=1))
    assert peer.answer(1).messages == [b"hello world"]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", Code.UNIMPLEMENTED),  # as gRPC core: no message in a unary request
        (b"\0", Code.INTERNAL),
        (message(b"hello")[:-1], Code.INTERNAL),
        (message(b"hello") + b"\0", Code.INTERNAL),
        (message(b"a") + message(b"b"), Code.INTERNAL),
        (message(b"") + message(b""), Code.INTERNAL),
        (message(b"hello", 2), Code.INTERNAL),
        (message(b"hello", 255), Code.INTERNAL),
        (message(b"hello", 1), Code.INTERNAL),  # compressed, although grpc-encoding is identity
    ],
    ids=["none", "part of prefix", "truncated", "too long", "two", "two empty", "flag 2", "flag 255", "compressed"],
)
@pytest.mark.parametrize("size", [1, 3, 100])
def test_broken_framing_fails_the_call(body: bytes, code: Code, size: int) -> None:
    """A request that is not exactly one message fails with a status; the handler learns it once."""
    peer = Peer()
    peer.send(headers(1), data(1, body, ended=True, size=size))
    failed = [each for each in peer.unary.events if each[0] == "failed"]
    if body:
        assert failed == [("failed", 1, code)]
    assert len(failed) == 1
    assert peer.answer(1).status == failed[0][2] and peer.answer(1).reset is None
    assert names(peer) == ["accept", "failed"]
    assert peer.budget.used_bytes == 0 and not peer.connection.streams


@pytest.mark.parametrize("flags", [END_HEADERS | END_STREAM])
def test_a_request_without_data_has_no_message(flags: int) -> None:
    """HEADERS with END_STREAM: the call fails as with empty DATA."""
    peer = Peer()
    peer.send(headers(1, request(), flags))
    assert names(peer) == ["accept", "failed"]
    assert not peer.connection.streams


@pytest.mark.parametrize("ended", [False, True])
def test_a_message_over_the_limit_is_reported_from_its_prefix(ended: bool) -> None:
    """The handler answers before the body is received; no window is given for it, and no reset is sent."""
    peer = Peer()
    peer.send(headers(1), raw(DATA, 0, 1, message(bytes(MAX + 1))[:5]))
    assert names(peer) == ["accept", "too large"]
    assert peer.answer(1).status == Code.RESOURCE_EXHAUSTED
    assert peer.answer(1).reset is None and peer.answer(1).windows == 0
    assert peer.send(data(1, bytes(60_000), ended=ended)) == []
    assert len(peer.connection.answered) == (not ended)


@pytest.mark.parametrize("size", [FIRST_WINDOW - 6, FIRST_WINDOW - 5, FIRST_WINDOW - 4, FIRST_WINDOW, 300_000, MAX])
@pytest.mark.parametrize("first", [0, 1, 5, 6, 1000])
def test_a_long_message_gets_exactly_its_window(size: int, first: int) -> None:
    """The prefix reserves the message: the client may send exactly the rest of it, and is never stalled."""
    peer = Peer()
    body = message(bytes(size))
    peer.send(headers(1), raw(DATA, 0, 1, body[:first]) if first else b"")
    sent = first
    while sent < len(body):
        allowed = FIRST_WINDOW + peer.answer(1).windows
        assert allowed > sent, "stalled"
        assert allowed <= max(FIRST_WINDOW, len(body))
        part = body[sent : min(sent + 16_384, allowed)]
        sent += len(part)
        peer.send(raw(DATA, END_STREAM if sent == len(body) else 0, 1, part))
    assert peer.unary.events[-1] == ("message", 1, bytes(size))
    assert peer.budget.used_bytes == 0


def test_padding_before_the_prefix_does_not_stall() -> None:
    """Padding uses up the window; the client still gets room for the prefix and then for the message."""
    peer = Peer()
    body = message(b"x" * 1000)
    peer.send(headers(1), raw(DATA, 0, 1, body[:1]))
    padding = FIRST_WINDOW - 1 - 2  # the client keeps 2 bytes, too few for the rest of the prefix
    while padding:
        size = min(padding, 256)
        padding -= size
        peer.send(raw(DATA, PADDED, 1, bytes([size - 1]) + bytes(size - 1)))
    peer.send(raw(DATA, 0, 1, body[1:3]))
    assert peer.answer(1).windows == 5
    peer.send(raw(DATA, 0, 1, body[3:5]))
    assert peer.answer(1).windows == 5 + 997
    peer.send(raw(DATA, END_STREAM, 1, body[5:]))
    assert peer.answer(1).messages == [b"x" * 1000]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(b"1S", 1), (b"1H", 3600), (b"2M", 120), (b"50m", 0.05), (b"7u", 7e-6), (b"99999999n", 0.099999999), (b"0S", 0)],
)
def test_the_deadline_counts_from_the_arrival(value: bytes, seconds: float) -> None:
    """grpc-timeout is relative: it counts from ``arrived``, not from when the bytes are handled."""
    peer = Peer()
    peer.connection.receive(headers(1, request(UNARY, (b"grpc-timeout", value))), peer.now, 777.0)
    assert peer.unary.calls[0].deadline == pytest.approx(777.0 + seconds, abs=1e-9)
    assert peer.unary.calls[0].accepted == peer.now


def test_no_timeout_is_no_deadline() -> None:
    """``deadline`` is more than 1e18 when the client set none."""
    peer = Peer()
    peer.send(headers(1))
    assert peer.unary.calls[0].deadline > 1e18


@pytest.mark.parametrize("value", [b"", b"S", b"1", b"1s", b"-1S", b"1.5S", b"123456789S", b" 1S", b"1 S"])
def test_an_invalid_timeout_fails_the_call(value: bytes) -> None:
    """INTERNAL, as in gRPC core; a value with space at an end is malformed in HTTP/2."""
    peer = Peer()
    peer.send(call(1, b"", UNARY, (b"grpc-timeout", value)), call(3))
    if value.strip() != value:
        assert peer.answer(1).reset == ErrorCode.PROTOCOL_ERROR
    else:
        assert peer.answer(1).status == Code.INTERNAL
    assert peer.answer(3).status == 0


@pytest.mark.parametrize("phase", ["no message", "partial", "handled", "stream", "answer blocked"])
def test_a_deadline_that_passes_ends_the_call(phase: str) -> None:
    """``check`` sends DEADLINE_EXCEEDED and reports the call as closed; a blocked answer is reset, as its status cannot change."""
    peer = Peer()
    timeout = (b"grpc-timeout", b"1S")
    peer.unary.answer = lambda unary, body: unary.reply(body) if phase == "answer blocked" else None
    match phase:
        case "no message":
            peer.send(headers(1, request(UNARY, timeout)))
        case "partial":
            peer.send(headers(1, request(UNARY, timeout)), raw(DATA, 0, 1, message(bytes(500_000))[:9000]))
        case "handled":
            peer.send(call(1, b"x", UNARY, timeout))
        case "stream":
            peer.send(headers(1, request(STREAM, timeout)))
        case _:
            peer.send(settings(s4=0), call(1, b"x", UNARY, timeout))
    peer.wall += 0.99
    assert peer.check() == []
    peer.wall += 0.02
    peer.check()
    assert peer.check() == []
    if phase == "answer blocked":
        assert peer.answer(1).reset == ErrorCode.CANCEL and names(peer) == ["accept", "message"]
    else:
        assert peer.answer(1).status == Code.DEADLINE_EXCEEDED and peer.answer(1).reset is None
        assert [each[0] for each in peer.unary.events + peer.stream.events].count("close") == 1
    assert peer.budget.used_bytes == 0
    peer.send(b"" if phase in {"handled", "answer blocked"} else raw(DATA, END_STREAM, 1))
    assert not peer.connection.streams and peer.failure is None


def test_refused_calls_get_the_same_bytes_and_take_no_place() -> None:
    """A refused call reaches no other callback. Its answer differs from others in the stream id only, also for the first
    call of a connection, and is what a call gets that fails later; its message is not kept.
    """
    peer = Peer()
    status = peer.unary.refused = Status(Code.RESOURCE_EXHAUSTED, "full", 0.05)
    answers = []
    for stream_id in (1, 3, 5):
        (frame,) = peer.send(call(stream_id))
        assert (frame.type, frame.stream_id, frame.flags) == (HEADERS, stream_id, {"END_HEADERS", "END_STREAM"})
        answers.append(frame.data)
        assert not peer.connection.streams and not peer.connection.answered and peer.budget.used_bytes == 0
    assert peer.unary.events == [] and answers[1] == answers[2] and answers[0].endswith(answers[1])
    peer.unary.refused, peer.unary.answer = None, lambda unary, body: unary.fail(status)
    assert peer.send(call(7))[0].data == answers[1]
    assert peer.answer(7).trailers == peer.answer(1).trailers


@pytest.mark.parametrize("early", ["unknown method", "refused", "failed", "too large", "expired", "overloaded"])
@pytest.mark.parametrize("end", ["DATA", "trailers", "RST_STREAM", "never"])
def test_an_early_status_does_not_reset_the_request(early: str, end: str) -> None:
    """The rest of the request is ignored until its end. Only one that does not end in ``message_s`` is reset, NO_ERROR."""
    peer = Peer(budget=ReceiveBudget(100) if early == "overloaded" else None)
    path, body = UNARY, message(b"x" * 1000)
    if early == "unknown method":
        path = b"/no/Such"
    elif early == "refused":
        peer.unary.refused = Status(Code.RESOURCE_EXHAUSTED, "full", 1.0)
    elif early == "failed":
        peer.unary.accept = lambda unary: unary.fail(Status(Code.RESOURCE_EXHAUSTED, "full", 1.0))
    elif early == "too large":
        body = message(bytes(MAX + 1))[:1000]
    peer.send(headers(1, request(path, (b"grpc-timeout", b"1S"))), raw(DATA, 0, 1, body[:500]))
    if early == "expired":
        peer.wall += 2
        peer.check()
    assert peer.answer(1).ended and peer.answer(1).reset is None
    events = [*peer.unary.events]
    assert peer.send(raw(DATA, 0, 1, body[500:])) == []
    peer.wall += 5
    assert peer.check() == []
    match end:
        case "DATA":
            assert peer.send(raw(DATA, END_STREAM, 1)) == []
        case "trailers":
            assert peer.send(headers(1, [(b"x", b"y")], END_HEADERS | END_STREAM)) == []
        case "RST_STREAM":
            assert peer.send(reset(1)) == []
        case _:
            peer.now += LIMITS.message_s + 1
            (frame,) = peer.check()
            assert (frame.type, frame.error_code) == (RST_STREAM, ErrorCode.NO_ERROR)
            assert peer.send(raw(DATA, 0, 1, b"late")) == []
    assert peer.unary.events == events
    assert not peer.connection.streams and peer.budget.used_bytes == 0


def test_a_request_that_does_not_end_is_given_up() -> None:
    """A unary call whose message does not arrive within ``message_s`` is cancelled, then reset."""
    peer = Peer()
    peer.send(headers(1), raw(DATA, 0, 1, message(bytes(100_000))[:1000]))
    assert peer.budget.used_bytes == 100_005
    peer.now += LIMITS.message_s
    assert peer.check() == []
    peer.now += 1
    peer.check()
    assert peer.answer(1).status == Code.CANCELLED
    assert peer.unary.events[-1] == ("failed", 1, Code.CANCELLED)
    assert peer.budget.used_bytes == 0
    peer.check()
    assert peer.answer(1).reset == ErrorCode.NO_ERROR
    assert not peer.connection.streams


@pytest.mark.parametrize(
    ("fields", "status", "extra"),
    [
        (request(method=b"GET"), b"405", (b"allow", b"POST")),
        (request(method=b"OPTIONS"), b"405", (b"allow", b"POST")),
        ([(b":method", b"CONNECT"), (b":authority", b"a:1")], b"405", (b"allow", b"POST")),
        ([each for each in request() if each[0] != b"content-type"], b"415", (b"accept", b"application/grpc")),
        *[
            ([*[each for each in request() if each[0] != b"content-type"], (b"content-type", value)], b"415", None)
            for value in (b"text/html", b"application/grpc-web", b"application/grpc+json", b"application/grpcx", b"")
        ],
        (request(UNARY, (b"big", b"x" * 16_384)), b"431", None),
        (request(UNARY, *[(b"a", b"")] * 128), b"431", None),
    ],
)
@pytest.mark.parametrize("ended", [False, True])
def test_what_is_not_grpc_gets_an_http_status(fields: Any, status: bytes, extra: Any, ended: bool) -> None:
    """405, 415 and 431 without a gRPC status. The rest of the request is ignored, and reset only after its time limit:
    some clients discard the answer when RST_STREAM follows it at once.
    """
    peer = Peer()
    block = headers(1, fields)[9:]
    flags = END_STREAM if ended else 0
    peer.send(raw(HEADERS, flags, 1, block[:16_384]), raw(CONTINUATION, END_HEADERS, 1, block[16_384:]))
    answer = peer.answer(1)
    assert answer.headers[b":status"] == status and answer.status is None
    assert extra is None or extra in answer.headers.items()
    assert answer.reset is None and bool(peer.connection.answered) == (not ended)
    if not ended:
        assert peer.send(data(1, bytes(60_000))) == []
        peer.now += LIMITS.message_s + 0.1
        peer.check()
        assert answer.reset == ErrorCode.NO_ERROR
    assert not peer.unary.events and not peer.connection.streams
    peer.send(call(3))
    assert peer.answer(3).status == 0


@pytest.mark.parametrize(
    "value", [b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=utf-8", b"Application/GRPC"]
)
def test_grpc_content_types(value: bytes) -> None:
    """All forms of the protobuf content type are accepted; the answer has application/grpc."""
    peer = Peer()
    fields = [*[each for each in request() if each[0] != b"content-type"], (b"content-type", value)]
    peer.send(headers(1, fields), raw(DATA, END_STREAM, 1, message(b"x")))
    assert peer.answer(1).headers[b"content-type"] == b"application/grpc"
    assert peer.answer(1).messages == [b"x"]


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 70_000])
def test_answers_of_any_size(size: int) -> None:
    """The first answer of a connection and later ones, fast and slow path, have the same parts."""
    peer = Peer()
    peer.unary.answer = lambda unary, body: unary.reply(b"z" * size)
    for stream_id in (1, 3, 5):
        peer.send(call(stream_id), settings(s4=1 << 20), raw(WINDOW_UPDATE, 0, 0, (1 << 20).to_bytes(4, "big")))
        answer = peer.answer(stream_id)
        assert (answer.messages, answer.status, len(answer.trailers)) == ([b"z" * size], 0, 1)
        assert answer.headers == {b":status": b"200", b"content-type": b"application/grpc"}
    assert not any(each.context for each in peer.unary.calls), "no reference cycle is left"


def test_a_late_answer_of_a_cancelled_call_is_not_possible() -> None:
    """``open`` is false after a cancellation, an expiry and a failure."""
    peer = Peer()
    peer.unary.answer = lambda unary, body: None
    peer.send(call(1), call(3, b"x", UNARY, (b"grpc-timeout", b"1S")), headers(5), raw(DATA, END_STREAM, 5, b"\2"))
    peer.send(reset(1))
    peer.wall += 2
    peer.check()
    assert [each.open for each in peer.unary.calls] == [False] * 3


def test_a_handler_that_fails_ends_its_connection() -> None:
    """An exception of a handler is a bug: GOAWAY INTERNAL_ERROR, and the other calls of the connection are closed."""
    peer = Peer()

    def broken(unary: Any, body: bytes) -> None:
        raise RuntimeError(body)

    peer.send(headers(1))
    peer.unary.answer = broken
    peer.send(call(3))
    assert peer.failure == ErrorCode.INTERNAL_ERROR
    assert ("close", 1) in peer.unary.events


def test_a_call_may_be_answered_before_its_request_ends() -> None:
    """The stream stays until the client ends it; only then is its place free."""
    peer = Peer()
    peer.send(call(1))
    peer.unary.accept = lambda unary: unary.reply(b"early")
    peer.send(headers(3))
    assert peer.answer(3).messages == [b"early"] and peer.answer(3).status == 0
    assert list(peer.connection.answered) == [3]
    assert peer.send(raw(DATA, 0, 3, b"ignored"), raw(DATA, END_STREAM, 3)) == []
    assert not peer.connection.streams and not peer.connection.answered

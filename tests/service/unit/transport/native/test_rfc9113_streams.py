"""RFC 9113, section 5: states and ids of streams, concurrency, errors of streams."""

import dataclasses

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.transport.native.control import MAX_RECENT_RESETS
from digitserve.transport.native.frames import ErrorCode
from digitserve.transport.native.shares import MIN_STREAMS, StreamShare
from support.http2_peer import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    LIMITS,
    MAX_STREAM_ID,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    STREAM,
    UNARY,
    Peer,
    call,
    headers,
    message,
    raw,
    request,
    reset,
    settings,
    window_update,
)

HALF = headers(1, request(), END_HEADERS | END_STREAM)
TRAILERS = headers(1, [(b"x", b"y")], END_HEADERS | END_STREAM)


def half_closed(peer: Peer) -> None:
    """Leave stream 1 half-closed by the client, with its call unanswered."""
    peer.unary.answer = lambda unary, body: None
    peer.send(call(1))


def test_data_on_a_half_closed_stream_is_a_stream_error() -> None:
    """5.1: half-closed (remote): stream error STREAM_CLOSED; the call is closed, others go on."""
    peer = Peer()
    half_closed(peer)
    peer.send(raw(DATA, 0, 1, b"more"), raw(DATA, 0, 1, b"more"))
    assert peer.answer(1).reset == ErrorCode.STREAM_CLOSED
    assert peer.unary.events[-1] == ("close", 1)
    assert [each.type for each in peer.seen].count(RST_STREAM) == 1
    assert not peer.connection.closing and not peer.connection.streams


@pytest.mark.parametrize("before", ["half-closed", "closed", "reset by the client", "skipped"])
def test_headers_on_a_closed_stream_end_the_connection(before: str) -> None:
    """5.1 and 5.1.1: an id that was used or skipped cannot be used again.

    The RFC asks for a stream error STREAM_CLOSED after RST_STREAM or while half-closed, a connection error STREAM_CLOSED
    after END_STREAM, and PROTOCOL_ERROR for a skipped id. The server does not remember closed streams, so it always ends
    the connection with STREAM_CLOSED, which section 5.4.1 permits.
    """
    peer = Peer()
    match before:
        case "half-closed":
            half_closed(peer)
        case "closed":
            peer.send(call(1))
        case "reset by the client":
            peer.send(headers(1), reset(1))
        case "skipped":
            peer.send(call(3))
    peer.send(TRAILERS)
    assert peer.failure == ErrorCode.STREAM_CLOSED


@pytest.mark.parametrize("before", ["closed", "reset by the client", "skipped"])
def test_data_on_a_closed_stream_is_a_stream_error(before: str) -> None:
    """5.1: DATA on a closed stream is STREAM_CLOSED, reported once, and counts for the connection's window."""
    peer = Peer()
    match before:
        case "closed":
            peer.send(call(1))
            peer.answers.clear()  # the RST_STREAM follows END_STREAM
        case "reset by the client":
            peer.send(headers(1), reset(1))
        case "skipped":
            peer.send(call(3))
    window = peer.connection._receive_window
    frames = peer.send(raw(DATA, 0, 1, bytes(100)), raw(DATA, END_STREAM, 1, bytes(100)))
    assert [(each.type, each.stream_id) for each in frames] == [(RST_STREAM, 1)]
    assert peer.answer(1).reset == ErrorCode.STREAM_CLOSED
    assert peer.connection._receive_window == window - 200
    peer.send(call(5))
    assert peer.answer(5).status == 0


@pytest.mark.parametrize(
    "late",
    [
        raw(DATA, 0, 1, b"x" * 1000),
        raw(DATA, END_STREAM, 1),
        TRAILERS,
        window_update(1, 100),
        reset(1),
        raw(DATA, 0, 1, b"x") + TRAILERS + reset(1),
    ],
    ids=["DATA", "end", "trailers", "WINDOW_UPDATE", "RST_STREAM", "all"],
)
@pytest.mark.parametrize("cause", ["uppercase", "http", "too many"])
def test_late_frames_after_a_reset_are_ignored(late: bytes, cause: str) -> None:
    """5.1: frames that were sent before the client received RST_STREAM are ignored; header blocks are still decoded."""
    limits = dataclasses.replace(LIMITS, max_streams=1)
    peer = Peer(limits)
    peer.unary.answer = lambda unary, body: None
    match cause:
        case "uppercase":
            peer.send(headers(1, request(UNARY, (b"X", b"y"))))
        case "http":
            peer.send(headers(1, request(method=b"GET")))
            peer.now += LIMITS.message_s + 0.1
            peer.check()
        case "too many":
            # The stream that occupies the place has a lower id.
            late = late.replace(b"\0\0\0\x01", b"\0\0\0\x03")
            peer.send(headers(1), headers(3), reset(1))
    late_stream = 3 if cause == "too many" else 1
    assert peer.answer(late_stream).reset is not None
    assert peer.send(late) == []
    peer.unary.answer = lambda unary, body: unary.reply(body)
    peer.send(call(5))
    assert peer.answer(5).messages == [b"hello"]
    assert not peer.connection.streams


def test_a_table_entry_of_a_reset_stream_is_known_later() -> None:
    """4.3: header blocks change the dynamic table also on streams that are refused or were reset."""
    encoder = hpack.Encoder()
    peer = Peer()

    def block(stream_id: int, *more: tuple[bytes, bytes], flags: int = END_HEADERS) -> bytes:
        fields = [*request(), *more] if flags == END_HEADERS else list(more)
        return raw(HEADERS, flags, stream_id, encoder.encode(fields))

    peer.send(block(1, (b"Upper", b"1")))
    peer.send(block(1, (b"late", b"trailer"), flags=END_HEADERS | END_STREAM))
    peer.send(block(3, (b"late", b"trailer"), (b"new", b"2")), raw(DATA, END_STREAM, 3, message(b"x")))
    assert peer.answer(1).reset == ErrorCode.PROTOCOL_ERROR
    fields = [(name, value) for name, value, *_ in peer.unary.calls[0].head.fields]
    assert (b"late", b"trailer") in fields and (b"new", b"2") in fields


def test_the_memory_of_resets_is_bounded() -> None:
    """Implementation: late frames of the latest 256 reset streams are ignored, not of more."""
    peer = Peer()
    for number in range(MAX_RECENT_RESETS + 10):
        peer.send(headers(2 * number + 1, request(UNARY, (b"X", b"y"))))
    assert len(peer.connection._was_reset) == MAX_RECENT_RESETS
    assert peer.failure is None


def test_ids_may_be_skipped_and_reach_the_maximum() -> None:
    """5.1.1: ids grow, with gaps; the last one is 2^31-1."""
    peer = Peer()
    peer.send(call(3), call(4001), call(MAX_STREAM_ID))
    assert peer.answer(MAX_STREAM_ID).status == 0
    assert peer.failure is None


@pytest.mark.parametrize("acknowledged", [False, True])
def test_streams_above_the_limit_are_refused(acknowledged: bool) -> None:
    """5.1.2: REFUSED_STREAM while the client cannot know the limit, PROTOCOL_ERROR later; a closed stream makes room."""
    peer = Peer(dataclasses.replace(LIMITS, max_streams=2), handshake=False)
    peer.send(PREFACE, settings(), raw(SETTINGS, 1) if acknowledged else b"")
    peer.send(headers(1), headers(3, request(STREAM)), headers(5))
    assert peer.answer(5).reset == (ErrorCode.PROTOCOL_ERROR if acknowledged else ErrorCode.REFUSED_STREAM)
    assert ("accept", 5) not in peer.unary.events
    peer.send(reset(1), call(7))
    assert peer.answer(7).status == 0


def num_open(peer: Peer) -> int:
    return len(peer.connection.streams)


def test_a_changed_limit_is_announced_and_holds_when_it_is_acknowledged() -> None:
    """6.5.3: the last acknowledged SETTINGS limit the streams of a client. Until it acknowledges a lower limit, the higher one
    applies; a higher limit applies immediately; only one announcement is unacknowledged at a time.
    """
    peer = Peer(dataclasses.replace(LIMITS, max_streams=100))
    share = peer.budget.streams = StreamShare(200)
    assert peer.check() == [], "an unchanged limit is not announced again"
    share.update(8)
    (lowered,) = peer.check()
    assert lowered.settings == {3: 25}
    share.update(1)
    assert peer.check() == [], "the last announcement is not acknowledged yet"
    peer.send(*(headers(stream_id) for stream_id in range(1, 81, 2)))
    assert num_open(peer) == 40
    peer.send(raw(SETTINGS, ACK), headers(81))
    assert peer.answer(81).reset == ErrorCode.PROTOCOL_ERROR and num_open(peer) == 40
    (raised,) = peer.check()
    assert raised.settings == {3: 100}
    peer.send(headers(83))
    assert num_open(peer) == 41, "before the acknowledgement"
    peer.send(raw(SETTINGS, ACK))
    assert peer.check() == []


def test_nothing_is_announced_before_the_first_acknowledgement() -> None:
    """A client that never acknowledges SETTINGS gets them once."""
    peer = Peer(handshake=False)
    peer.send(PREFACE, settings())
    peer.budget.streams = StreamShare(32)
    assert peer.check() == []
    peer.send(raw(SETTINGS, ACK))
    assert peer.check()[0].settings == {3: 32}


@given(st.lists(st.integers(0, 5000), max_size=30), st.integers(1, 5000))
def test_the_share_of_a_connection(numbers: list[int], total: int) -> None:
    """All connections together may open about as many streams as may wait, from half to twice, but each at least 16."""
    share = StreamShare(total)
    for number in numbers:
        share.update(number)
        assert share.num_streams >= MIN_STREAMS
        if share.num_streams > MIN_STREAMS:
            assert total / 2 - number < share.num_streams * max(1, number) <= 2 * total


def test_few_more_or_less_connections_change_no_share() -> None:
    """Each change is sent on all connections, so it needs twice or half as many."""
    share = StreamShare(1000)
    share.update(20)
    for number in (10, 11, 19, 21, 39, 40):
        share.update(number)
        assert share.num_streams == 50
    share.update(41)
    assert share.num_streams == 24
    share.update(20)
    assert share.num_streams == 50


def test_the_limit_is_announced() -> None:
    """5.1.2 and 6.5.2: the first SETTINGS announce MAX_CONCURRENT_STREAMS and MAX_HEADER_LIST_SIZE, and no push."""
    peer = Peer(handshake=False)
    first = peer.read()[0]
    assert first.settings == {3: LIMITS.max_streams, 6: LIMITS.max_header_list_bytes}


@pytest.mark.parametrize("when", ["before the message", "within the message", "while it is handled"])
@pytest.mark.parametrize("path", ["unary", "stream"])
def test_rst_stream_closes_the_call_once(when: str, path: str) -> None:
    """5.4.2 and 6.4: RST_STREAM is not answered; the handler learns it once, and nothing is sent on the stream."""
    peer = Peer()
    peer.unary.answer = lambda unary, body: None
    peer.stream.answer = lambda stream, body: None
    peer.send(headers(1, request(STREAM) if path == "stream" else request()))
    if when != "before the message":
        body = message(b"hello")
        peer.send(raw(DATA, 0, 1, body[:7]))
        if when == "while it is handled":
            peer.send(raw(DATA, END_STREAM, 1, body[7:]))
    assert peer.send(reset(1)) == []
    assert peer.send(reset(1)) == []
    events = (peer.stream if path == "stream" else peer.unary).events
    assert [each[0] for each in events].count("close") == 1
    assert not peer.connection.streams and peer.budget.used_bytes == 0


def test_a_client_may_send_nothing_after_goaway() -> None:
    """6.8: calls that are open when the client sends GOAWAY are answered."""
    peer = Peer()
    half_closed(peer)
    peer.send(raw(7, 0, 0, bytes(8)))
    peer.unary.calls[0].reply(b"late")
    peer.read()
    assert peer.answer(1).messages == [b"late"]

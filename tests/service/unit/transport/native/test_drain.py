"""Draining without loss: GOAWAY, a PING's round trip, GOAWAY with the last stream (RFC 9113, section 6.8)."""

import pytest

from digitserve.transport.native.control import DRAIN_GRACE_S, DRAIN_PING
from digitserve.transport.native.frames import ErrorCode
from support.http2_peer import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    LIMITS,
    MAX_STREAM_ID,
    PING,
    STREAM,
    Peer,
    call,
    data,
    headers,
    message,
    raw,
    request,
    reset,
    window_update,
)

PONG = raw(PING, ACK, 0, DRAIN_PING)


def draining(*, open_call: bool = True) -> Peer:
    """Return a client whose server has announced its drain, with call 1 unanswered."""
    peer = Peer()
    peer.unary.answer = lambda unary, body: None
    if open_call:
        peer.send(call(1))
    peer.connection.drain(peer.now)
    peer.read()
    return peer


def pong(peer: Peer) -> None:
    """Answer the PING, and let the time pass until the drain is finished."""
    peer.send(PONG)
    peer.now += DRAIN_GRACE_S
    peer.check()
    peer.now += 0.01
    peer.check()


def last_ids(peer: Peer) -> list[int]:
    return [each.last_stream_id for each in peer.seen if each.type == GOAWAY]


def test_a_drain_is_announced_once() -> None:
    """The first GOAWAY has the largest stream id and no error; a PING follows it. A second drain changes nothing."""
    peer = Peer()
    peer.connection.drain(peer.now)
    goaway, ping = peer.read()
    assert (goaway.type, goaway.last_stream_id, goaway.error_code) == (GOAWAY, MAX_STREAM_ID, 0)
    assert (ping.type, ping.opaque_data, ping.flags) == (PING, DRAIN_PING, set())
    peer.connection.drain(peer.now + 1)
    assert peer.read() == []


def test_nothing_is_refused_between_the_two_goaways() -> None:
    """Calls that crossed the first GOAWAY are handled as before."""
    peer = draining()
    peer.unary.answer = lambda unary, body: unary.reply(body)
    peer.send(call(3), headers(5, request(STREAM)))
    assert peer.answer(3).status == 0 and ("accept", 5) in peer.stream.events
    pong(peer)
    assert last_ids(peer) == [MAX_STREAM_ID, 5]
    peer.send(data(5, message(b"x"), ended=True))
    assert peer.answer(5).messages == [b"x"] and peer.answer(5).status == 0


def test_calls_behind_the_answer_to_the_ping_are_not_lost() -> None:
    """GRPC core writes this answer before requests that it had queued already: they are handled, and the last id is theirs."""
    peer = draining()
    peer.unary.answer = lambda unary, body: unary.reply(body)
    peer.send(PONG, call(3))
    peer.now += DRAIN_GRACE_S / 2
    peer.check()
    peer.send(call(5))
    assert peer.answer(3).status == peer.answer(5).status == 0
    assert last_ids(peer) == [MAX_STREAM_ID]
    pong(peer)
    assert last_ids(peer) == [MAX_STREAM_ID, 5]


@pytest.mark.parametrize("by", ["PING", "time"])
def test_open_calls_finish_first(by: str) -> None:
    """The last GOAWAY follows the answer to the PING, or the limit of its wait; the connection closes after its last call."""
    peer = draining()
    if by == "PING":
        peer.send(raw(PING, ACK, 0, b"another!"))
        assert len(last_ids(peer)) == 1
        pong(peer)
    else:
        peer.now += LIMITS.drain_ping_s
        assert peer.check() == []
        peer.now += 0.01
        peer.check()
    assert last_ids(peer) == [MAX_STREAM_ID, 1]
    assert not peer.connection.closing
    pong(peer)
    peer.now += 10
    peer.check()
    peer.connection.drain(peer.now)
    assert peer.read() == [] and len(last_ids(peer)) == 2
    peer.unary.calls[0].reply(b"late")
    peer.read()
    assert peer.answer(1).messages == [b"late"] and peer.answer(1).status == 0
    assert peer.connection.closing


@pytest.mark.parametrize("end", ["reset", "deadline", "end of an ignored request"])
def test_a_call_that_ends_otherwise_closes_the_connection_too(end: str) -> None:
    """Whatever ends the last stream, the connection is then closed without an error."""
    peer = Peer()
    peer.send(headers(1, request(b"/test.Service/Unary", (b"grpc-timeout", b"1S"))))
    peer.connection.drain(peer.now)
    pong(peer)
    if end == "reset":
        peer.send(reset(1))
    else:
        peer.wall += 2
        peer.check()
        assert not peer.connection.closing
        peer.send(raw(DATA, END_STREAM, 1))
    assert peer.connection.closing and peer.failure is None


def test_a_connection_without_streams_closes_after_the_ping() -> None:
    """It stays open during the round trip, for calls that are on their way."""
    peer = draining(open_call=False)
    assert not peer.connection.closing
    pong(peer)
    assert last_ids(peer) == [MAX_STREAM_ID, 0]
    assert peer.connection.closing and not peer.connection.wants_read()
    assert peer.send(call(1)) == []


def test_streams_above_the_final_id_are_ignored() -> None:
    """6.8: frames on them are ignored, whatever they are; header blocks are decoded, DATA counts for the window."""
    peer = draining()
    pong(peer)
    window = peer.connection._receive_window
    late = [
        headers(3),
        raw(DATA, 0, 3, bytes(100)),
        window_update(3, 100),
        raw(DATA, END_STREAM, 3, bytes(100)),
        headers(5),
        headers(5, [(b"x", b"trailers")], END_HEADERS | END_STREAM),
        headers(7),
        reset(7),
        headers(9, request(b"/no/Such")),
        headers(11, request(method=b"GET")),
        headers(13, [(b"BAD", b"1")]),
        headers(15, request(STREAM)),
    ]
    for frame in late:
        assert peer.send(frame) == []
    assert peer.connection._receive_window == window - 200
    assert [each[:2] for each in peer.unary.events] == [("accept", 1), ("message", 1)]
    assert peer.stream.events == peer.unknown.events == []
    peer.unary.calls[0].reply(b"still open")
    peer.read()
    assert peer.answer(1).messages == [b"still open"] and peer.connection.closing


def test_headers_that_crossed_the_final_goaway_within_a_block() -> None:
    """A header block that was begun before the final GOAWAY and ends after it belongs to an ignored stream."""
    peer = draining()
    block = headers(3)[9:]
    peer.send(raw(1, 0, 3, block[:5]))
    peer.now += LIMITS.drain_ping_s + 1
    peer.check()
    peer.send(raw(9, END_HEADERS, 3, block[5:]), raw(DATA, END_STREAM, 3, message(b"x")))
    assert peer.failure is None and len(peer.unary.calls) == 1


def test_the_last_stream_id_never_grows() -> None:
    """6.8: an error after the final GOAWAY repeats its id, although later streams were seen."""
    peer = draining()
    pong(peer)
    peer.send(headers(3), raw(PING))
    assert last_ids(peer) == [MAX_STREAM_ID, 1, 1]
    assert peer.failure == ErrorCode.FRAME_SIZE_ERROR


def test_an_idle_stream_stays_an_error_while_draining() -> None:
    """Streams that were never opened are not 'ignored ones'."""
    peer = draining()
    pong(peer)
    peer.send(raw(DATA, 0, 3, b"x"))
    assert peer.failure == ErrorCode.PROTOCOL_ERROR


def test_no_goaway_follows_the_end_of_a_connection() -> None:
    """After an error of the client during the round trip, the time limit of the PING has no effect."""
    peer = draining()
    peer.send(raw(PING))
    peer.now += 100
    assert peer.check() == []
    assert peer.unary.events[-1:] == [("close", 1)]


def test_a_drain_before_the_preface() -> None:
    """A client that connected but has not said anything gets both GOAWAYs, and its first call is lost neither."""
    peer = Peer(handshake=False)
    peer.connection.drain(peer.now)
    peer.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", raw(4), call(1))
    pong(peer)
    assert peer.answer(1).status == 0
    assert last_ids(peer) == [MAX_STREAM_ID, 1] and peer.connection.closing

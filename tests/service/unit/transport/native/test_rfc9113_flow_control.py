"""RFC 9113, sections 5.2, 6.9 and 6.5.2: flow control in both directions."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.transport.native.connection import CONNECTION_WINDOW
from digitserve.transport.native.frames import ErrorCode
from support.http2_peer import (
    DATA,
    MAX_WINDOW,
    PADDED,
    STREAM,
    WINDOW_UPDATE,
    Peer,
    call,
    data,
    headers,
    raw,
    request,
    reset,
    settings,
    window_update,
)


def answering(num_bytes: int) -> Callable[[Any, bytes], None]:
    return lambda unary, body: unary.reply(bytes(num_bytes))


def sent_bytes(peer: Peer, stream_id: int) -> int:
    return len(peer.answer(stream_id).body)


@pytest.mark.parametrize("limited", ["stream", "connection"])
@pytest.mark.parametrize("missing", [0, 1, 104, 105])
def test_a_small_answer_stops_at_a_window(limited: str, missing: int) -> None:
    """6.9.1: a later answer that would fit one frame keeps to both windows too."""
    peer = Peer()
    peer.send(call(1))
    peer.unary.answer = answering(100)
    if limited == "stream":
        peer.send(settings(s4=105 - missing), call(3))
    else:
        peer.connection.send_window = 105 - missing
        peer.send(call(3))
    assert sent_bytes(peer, 3) == 105 - missing
    assert peer.answer(3).ended == (not missing)
    peer.send(window_update(3 if limited == "stream" else 0, 1000))
    assert peer.answer(3).messages == [bytes(100)] and peer.answer(3).status == 0


@pytest.mark.parametrize("window", [0, 1, 4, 5, 6, 100, 65_535])
def test_an_answer_stops_at_the_window_of_its_stream(window: int) -> None:
    """6.9.1: no more DATA than the stream's window; the rest follows WINDOW_UPDATE, then the trailers."""
    peer = Peer()
    peer.unary.answer = answering(70_000)
    peer.send(window_update(0, 1 << 20), settings(s4=window), call(1))
    assert sent_bytes(peer, 1) == window
    for more in (1, 2, 1000):
        peer.send(window_update(1, more))
    assert sent_bytes(peer, 1) == window + 1003
    assert not peer.answer(1).ended
    peer.send(window_update(1, 100_000))
    assert sent_bytes(peer, 1) == 70_005
    assert peer.answer(1).status == 0 and not peer.connection.streams


def test_an_answer_stops_at_the_window_of_the_connection() -> None:
    """6.9.1: no more DATA than the connection's window; several streams continue in turn."""
    peer = Peer()
    peer.unary.answer = answering(40_000)
    peer.send(call(1), call(3), call(5))
    assert [sent_bytes(peer, each) for each in (1, 3, 5)] == [40_005, 25_530, 0]
    peer.send(window_update(0, 20_000))
    peer.send(window_update(0, 100_000))
    assert [peer.answer(each).status for each in (1, 3, 5)] == [0, 0, 0]


def test_settings_can_make_windows_negative() -> None:
    """6.9.2: a smaller initial window changes all streams; a negative window must become positive before more DATA."""
    peer = Peer()
    peer.unary.answer = answering(200_000)
    peer.send(window_update(0, 1 << 20), call(1))
    assert sent_bytes(peer, 1) == 65_535
    peer.send(settings(s4=0))
    assert peer.connection.streams[1].send_window == -65_535
    peer.send(window_update(1, 65_535))
    assert sent_bytes(peer, 1) == 65_535
    peer.send(window_update(1, 1))
    assert sent_bytes(peer, 1) == 65_536
    peer.send(settings(s4=200_000))
    assert peer.answer(1).status == 0


def test_settings_continue_blocked_answers_after_the_acknowledgement() -> None:
    """6.5.3 and 6.9.2: the last value of a frame counts, for open and new streams; the connection's window is unchanged."""
    peer = Peer()
    peer.unary.answer = answering(100)
    peer.send(settings(s4=0), call(1))
    frames = peer.send(settings(s4=3) + settings(s4=1000))
    assert peer.answer(1).status == 0
    assert frames[0].type == 4
    assert peer.connection.send_window == 65_535 - 105
    peer.send(call(3))
    assert peer.answer(3).status == 0


def test_the_window_of_a_stream_is_not_the_window_of_another() -> None:
    """5.2.1: WINDOW_UPDATE of one stream continues only this stream."""
    peer = Peer()
    peer.unary.answer = answering(10)
    peer.send(settings(s4=0), call(1), call(3))
    peer.send(window_update(3, 100))
    assert peer.answer(3).status == 0 and not peer.answer(1).ended


def test_trailers_need_no_window() -> None:
    """5.2.1: only DATA is flow-controlled."""
    peer = Peer()
    peer.send(settings(s4=0), call(1, b"", b"/unknown"))
    assert peer.answer(1).status == 12


@pytest.mark.parametrize(
    ("update", "code"), [(MAX_WINDOW, ErrorCode.FLOW_CONTROL_ERROR), (0, ErrorCode.PROTOCOL_ERROR)]
)
def test_an_invalid_increment_resets_the_stream(update: int, code: ErrorCode) -> None:
    """6.9 and 6.9.1: zero and overflow on a stream are stream errors; the connection goes on."""
    peer = Peer()
    peer.send(headers(1), window_update(1, update), call(3))
    assert peer.answer(1).reset == code
    assert peer.answer(3).status == 0
    assert peer.unary.events[1] == ("close", 1)


def test_the_largest_window_is_valid() -> None:
    """6.9.1: a window of exactly 2^31-1 is allowed."""
    peer = Peer()
    peer.send(headers(1), window_update(1, MAX_WINDOW - 65_535), window_update(0, MAX_WINDOW - 65_535))
    assert peer.failure is None and peer.answer(1).reset is None


def test_settings_that_overflow_a_window_end_the_connection() -> None:
    """6.9.2: a connection error FLOW_CONTROL_ERROR."""
    peer = Peer()
    peer.send(headers(1), window_update(1, MAX_WINDOW - 65_535), settings(s4=65_536))
    assert peer.failure == ErrorCode.FLOW_CONTROL_ERROR


@pytest.mark.parametrize("path", [b"/test.Service/Unary", STREAM])
@pytest.mark.parametrize("padded", [False, True])
def test_a_client_that_exceeds_a_stream_window_is_reset(path: bytes, padded: bool) -> None:
    """6.9.1: more than the window, padding included, is FLOW_CONTROL_ERROR for the stream; others go on."""
    peer = Peer()
    peer.stream.accept = lambda stream: None
    peer.send(headers(1, request(path)), data(1, bytes(5) + bytes(65_530 - 5)))
    frame = raw(DATA, PADDED, 1, b"\x05" + bytes(5)) if padded else raw(DATA, 0, 1, bytes(6))
    assert peer.answer(1).reset is None
    peer.send(frame, call(3))
    # The sixth byte is one too many; the unary message of zero bytes fails before, and is then ignored.
    assert peer.answer(1).reset == ErrorCode.FLOW_CONTROL_ERROR
    assert peer.answer(3).status == 0
    assert peer.budget.used_bytes == 0


@pytest.mark.parametrize("kind", ["open", "closed", "reset", "failed", "padding", "after the final GOAWAY"])
def test_the_window_of_the_connection_is_given_back(kind: str) -> None:
    """5.2 and 6.9: DATA counts for the connection on every stream, also reset ones; half of the window is returned at once.

    The server never lets the connection's window limit a client: what is held is bounded by the windows of the streams.
    """
    peer = Peer()
    window = CONNECTION_WINDOW
    peer.stream.accept = lambda stream: None
    for number in range(600):  # more than half of the window
        stream_id = 2 * number + 1
        flags, body = 0, bytes(16_384)
        match kind:
            case "open":
                start, end = headers(stream_id, request(STREAM)), b""
            case "closed":
                start, end = headers(stream_id) + reset(stream_id), b""
            case "reset":
                start, end = headers(stream_id, request(method=b"PUT")), b""
            case "failed":
                start, end = headers(stream_id, request(b"/unknown")), b""
            case "padding":
                start, end = headers(stream_id), b""
                flags, body = PADDED, b"\xff" + bytes(255) + bytes(16_128)
            case _:
                start, end = headers(stream_id), b""
                if number == 1:
                    peer.connection.drain(peer.now)
                    peer.connection._finish_drain()
        for frame in peer.send(start, raw(DATA, flags, stream_id, body), end):
            if frame.type == WINDOW_UPDATE and frame.stream_id == 0:
                window += frame.window_increment
        window -= 16_384
        assert CONNECTION_WINDOW // 2 <= window <= CONNECTION_WINDOW
        assert window == peer.connection._receive_window
    assert peer.failure is None


def test_the_first_window_of_the_connection_is_announced() -> None:
    """6.9.2: it can only be changed by WINDOW_UPDATE, which follows the first SETTINGS."""
    peer = Peer(handshake=False)
    first = peer.read()[1]
    assert (first.type, first.stream_id, first.window_increment) == (WINDOW_UPDATE, 0, CONNECTION_WINDOW - 65_535)


@given(st.lists(st.tuples(st.sampled_from([0, 1, 3, 5, "settings"]), st.integers(1, 30_000)), max_size=40))
def test_windows_are_kept_and_nothing_is_lost(steps: list[tuple[Any, int]]) -> None:
    """6.9.1: after any sequence of updates, exactly what the windows allow is sent, and all of it once they are open."""
    peer = Peer()
    peer.unary.answer = answering(20_000)
    peer.send(settings(s4=0), call(1), call(3), call(5))
    connection, first, updates = 65_535, 0, dict.fromkeys((1, 3, 5), 0)
    for target, amount in steps:
        if target == "settings":
            first = amount
            peer.send(settings(s4=first))
        elif not target:
            connection += amount
            peer.send(window_update(0, amount))
        else:
            updates[target] += amount
            peer.send(window_update(target, amount))
        sent = {each: sent_bytes(peer, each) for each in updates}
        assert sum(sent.values()) <= connection
        for each, num_bytes in sent.items():
            stream = peer.connection.streams.get(each)
            if stream is None:
                assert num_bytes == 20_005 and peer.answer(each).status == 0
            else:
                assert stream.send_window == first + updates[each] - num_bytes
                assert stream.send_window <= 0 or sum(sent.values()) == connection
    peer.send(window_update(0, 1 << 20), settings(s4=1 << 20))
    assert [peer.answer(each).messages for each in updates] == [[bytes(20_000)]] * 3
    assert not peer.connection.streams and not peer.connection.blocked

"""Bidirectional streams: reads bound what a client may send, order, and exactly one close."""

import gzip
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.transport.native.frames import ErrorCode
from digitserve.transport.native.limits import FIRST_WINDOW, ReceiveBudget
from support.http2_peer import (
    DATA,
    END_HEADERS,
    END_STREAM,
    LIMITS,
    STREAM,
    Peer,
    data,
    headers,
    message,
    raw,
    request,
    reset,
    settings,
    window_update,
)

OPEN = headers(1, request(STREAM))
OK = Status(Code.OK)


def kinds(peer: Peer) -> list[str]:
    return [each[0] for each in peer.stream.events]


def bodies(peer: Peer) -> list[bytes]:
    return [each[2] for each in peer.stream.events if each[0] == "message"]


def test_messages_are_echoed_in_order() -> None:
    """Headers come first, messages in order as they are read, the status after the end, one close."""
    peer = Peer()
    assert [each.type for each in peer.send(OPEN)] == [1]
    for number in range(3):
        peer.send(raw(DATA, 0, 1, message(b"%d" % number)))
        assert peer.answer(1).messages[-1] == b"%d" % number
    peer.send(raw(DATA, END_STREAM, 1))
    assert peer.answer(1).status == 0
    assert kinds(peer) == ["accept", *["message", "written"] * 3, "end", "close"]
    assert peer.stream.events[-1] == ("close", 1, False)
    assert not peer.connection.streams and peer.budget.used_bytes == 0


@pytest.mark.parametrize("flags", [END_HEADERS | END_STREAM])
def test_a_stream_without_messages(flags: int) -> None:
    """HEADERS with END_STREAM: a read gets the end."""
    peer = Peer()
    peer.send(headers(1, request(STREAM), flags))
    assert kinds(peer) == ["accept", "end", "close"]
    assert peer.answer(1).status == 0 and not peer.connection.streams


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize("end", ["last", "empty", "trailers"])
def test_messages_may_be_split_anywhere(size: int, end: str) -> None:
    """The boundaries of DATA frames have no meaning."""
    peer = Peer()
    sent = [b"", b"a", b"hello", bytes(300)]
    whole = b"".join(map(message, sent))
    peer.send(OPEN, data(1, whole, ended=end == "last", size=size))
    if end == "empty":
        peer.send(raw(DATA, END_STREAM, 1))
    elif end == "trailers":
        peer.send(headers(1, [(b"x", b"y")], END_HEADERS | END_STREAM))
    assert peer.answer(1).messages == sent and peer.answer(1).status == 0


@given(
    sizes=st.lists(st.sampled_from([0, 1, 100, 16_000, 32_760, 60_000, 65_530, 65_531, 70_000, 200_000]), max_size=6),
    frame=st.sampled_from([700, 5000, 16_384]),
    lazy=st.lists(st.booleans(), min_size=8, max_size=8),
    padded=st.booleans(),
)
def test_reads_bound_the_client_and_never_stall_it(
    sizes: list[int], frame: int, lazy: list[bool], padded: bool
) -> None:
    """What is held plus what the client may send is at most the first window, or the one message that is being read."""
    peer = Peer(budget=ReceiveBudget(1 << 20))
    waiting: list[Any] = []

    def answer(stream: Any, body: bytes) -> None:
        if lazy[len(bodies(peer)) - 1]:
            waiting.append(stream)
        else:
            stream.read()

    peer.stream.answer = answer
    peer.send(OPEN)
    whole = b"".join(message(bytes(size)) for size in sizes)
    sent = content = 0
    for _ in range(100_000):
        stream = peer.connection.streams[1]
        held = len(stream.buffer or b"")
        reading = next((size for size in sizes[len(bodies(peer)) :]), 0) + 5
        assert held + stream.receive_window <= max(FIRST_WINDOW, reading)
        assert stream.receive_window == FIRST_WINDOW + peer.answer(1).windows - sent
        assert held <= peer.budget.used_bytes <= max(FIRST_WINDOW, reading)
        if content == len(whole):
            if not waiting:
                break
            waiting.pop().read()
            peer.read()
            continue
        window = FIRST_WINDOW + peer.answer(1).windows - sent
        overhead = 11 if padded and window > 11 else 0  # a client gives up padding rather than progress
        room = min(window, 16_384) - overhead
        if room <= 0:
            assert waiting, "stalled although the handler reads"
            waiting.pop().read()
            peer.read()
            continue
        part = whole[content : content + min(frame, room)]
        content += len(part)
        sent += len(part) + overhead
        peer.send(raw(DATA, 8, 1, b"\x0a" + part + bytes(10)) if overhead else raw(DATA, 0, 1, part))
    assert [len(each) for each in bodies(peer)] == sizes
    peer.send(raw(DATA, END_STREAM, 1))
    assert kinds(peer)[-2:] == ["end", "close"]
    assert peer.budget.used_bytes == 0


def test_a_handler_that_does_not_read_gets_nothing() -> None:
    """Without a read nothing is delivered, not even the end, and no window is given."""
    peer = Peer()
    peer.stream.accept = lambda stream: None
    peer.send(OPEN, data(1, message(b"x") * 10_000, ended=True))
    assert kinds(peer) == ["accept"] and peer.answer(1).windows == 0
    peer.stream.streams[0].read()
    peer.read()
    assert len(bodies(peer)) == 10_000 and kinds(peer)[-1] == "close"


def test_written_is_reported_per_message_when_it_is_sent() -> None:
    """``on_written`` follows the last byte of each message; flow control delays it; the status waits for all messages."""
    peer = Peer()
    peer.stream.end = lambda stream: None
    peer.send(settings(s4=0), OPEN)
    stream = peer.stream.streams[0]
    for body in (b"a" * 10, b"b" * 10, b"c" * 10):
        stream.write(body)
    assert peer.read() == []
    stream.flush()
    for window, num_written in ((14, 0), (1, 1), (15, 2), (14, 2)):
        peer.send(window_update(1, window))
        assert kinds(peer).count("written") == num_written
    stream.finish(Status(Code.ABORTED, "why"))
    peer.read()
    assert not peer.answer(1).ended
    peer.send(window_update(1, 1))
    assert peer.answer(1).messages == [b"a" * 10, b"b" * 10, b"c" * 10]
    assert peer.answer(1).trailers[b"grpc-status"] == b"10"
    assert kinds(peer)[-1] == "close" and len(peer.connection.answered) == 1
    peer.send(raw(DATA, END_STREAM, 1))
    assert not peer.connection.streams and not peer.connection.answered


def test_finish_sends_what_was_written_without_flush() -> None:
    """Messages that were written but not flushed precede the status."""
    peer = Peer()
    peer.stream.accept = lambda stream: (stream.write(b"x"), stream.finish(OK))
    peer.send(OPEN, raw(DATA, 0, 1, message(b"ignored")))
    assert peer.answer(1).messages == [b"x"] and peer.answer(1).status == 0
    assert kinds(peer) == ["accept", "close"]
    assert peer.budget.used_bytes == 0


def test_the_handler_may_write_and_finish_while_a_message_is_sent() -> None:
    """Callbacks of ``on_written`` may write, flush, read and finish; the order is kept."""
    peer = Peer()
    left = [b"2", b"3"]

    def written(stream: Any) -> None:
        if left:
            stream.write(left.pop(0))
            stream.flush()
        else:
            stream.finish(OK)

    peer.stream.written = written
    peer.stream.accept = lambda stream: (stream.write(b"1"), stream.flush())
    peer.send(headers(1, request(STREAM), END_HEADERS | END_STREAM))
    assert peer.answer(1).messages == [b"1", b"2", b"3"] and peer.answer(1).status == 0
    assert kinds(peer).count("close") == 1 and not peer.connection.streams


def test_a_framing_error_while_messages_are_sent() -> None:
    """A read in ``on_written`` finds a broken message: the status follows what was written, and no DATA after it."""
    peer = Peer()
    peer.stream.accept = lambda stream: None
    peer.stream.written = lambda stream: stream.read()
    peer.send(settings(s4=0), OPEN, raw(DATA, 0, 1, message(b"x", 7)))
    stream = peer.stream.streams[0]
    stream.write(b"one")
    stream.write(b"two")
    stream.flush()
    peer.send(window_update(1, 1000))
    assert peer.answer(1).messages == [b"one", b"two"]
    assert peer.answer(1).status == Code.INTERNAL
    assert kinds(peer) == ["accept", "written", "written", "close"]


def test_handlers_are_not_called_while_they_call_the_transport() -> None:
    """``read``, ``flush`` and ``finish`` return before the handler gets what they lead to."""
    peer = Peer()
    seen: list[list[str]] = []

    def answer(stream: Any, _: bytes) -> None:
        before = list(kinds(peer))
        stream.read()
        stream.write(b"answer")
        stream.flush()
        seen.append(kinds(peer)[len(before) :])

    peer.stream.answer = answer
    peer.send(OPEN, data(1, message(b"x") * 20))
    assert len(peer.answer(1).messages) == 20 and not any(seen)
    assert kinds(peer).count("written") == 20


@pytest.mark.parametrize("flag", [1, 2])
@pytest.mark.parametrize("size", [5, 70_000])
def test_broken_messages_end_the_stream(flag: int, size: int) -> None:
    """A wrong flag, or compression that was not announced, is INTERNAL; the handler gets one close, cancelled."""
    peer = Peer()
    body = message(bytes(size), flag)
    peer.send(OPEN, raw(DATA, 0, 1, message(b"good")), raw(DATA, 0, 1, body[:5]))
    for start in range(5, len(body), 10_000):
        peer.send(raw(DATA, 0, 1, body[start : start + 10_000]))
    assert peer.answer(1).messages == [b"good"] and peer.answer(1).status == Code.INTERNAL
    assert peer.stream.events[-1] == ("close", 1, True)
    assert peer.budget.used_bytes == 0


def test_a_truncated_message_ends_the_stream() -> None:
    """END_STREAM within a message is INTERNAL."""
    peer = Peer()
    peer.send(OPEN, raw(DATA, END_STREAM, 1, message(b"hello")[:-1]))
    assert peer.answer(1).status == Code.INTERNAL and kinds(peer) == ["accept", "close"]
    assert not peer.connection.streams and peer.budget.used_bytes == 0


@pytest.mark.parametrize("compressed", [False, True])
def test_a_message_over_the_limit(compressed: bool) -> None:
    """The handler finishes the stream after what it had written; what follows is ignored."""
    peer = Peer()
    peer.send(settings(s4=0), headers(1, request(STREAM, (b"grpc-encoding", b"gzip"))), raw(DATA, 0, 1, message(b"ok")))
    too_large = bytes(LIMITS.max_message_bytes + 1)
    body = message(gzip.compress(too_large), 1) if compressed else message(too_large)[:1000]
    peer.send(data(1, body))
    assert kinds(peer) == ["accept", "message", "too large"]
    assert peer.send(data(1, bytes(1000))) == []
    peer.send(window_update(1, 1000))
    assert peer.answer(1).messages == [b"ok"], "what was written before is not lost"
    assert peer.answer(1).status == Code.RESOURCE_EXHAUSTED
    assert kinds(peer).count("close") == 1 and peer.budget.used_bytes == 0


@pytest.mark.parametrize("how", ["reset", "disconnect", "connection error", "deadline"])
@pytest.mark.parametrize("at", range(8))
def test_a_stream_may_be_cancelled_at_any_point(how: str, at: int) -> None:
    """Exactly one ``on_close``, whatever came before, and nothing is held afterwards."""
    peer = Peer()
    body = message(bytes(70_000))
    steps = [
        headers(1, request(STREAM, (b"grpc-timeout", b"1S"))),
        raw(DATA, 0, 1, message(b"one")),
        raw(DATA, 0, 1, body[:3]),
        raw(DATA, 0, 1, body[3:10_000]),
        data(1, body[10_000:60_000]),
        settings(s4=0),
        data(1, body[60_000:]),
        raw(DATA, END_STREAM, 1),
    ]
    for step in steps[: at + 1]:
        peer.send(step)
    match how:
        case "reset":
            peer.send(reset(1))
        case "disconnect":
            peer.connection.drop()
        case "connection error":
            peer.send(raw(DATA, 0, 0))
        case _:
            peer.wall += 2
            peer.check()
            assert peer.answer(1).status == Code.DEADLINE_EXCEEDED or peer.answer(1).reset == ErrorCode.CANCEL
    assert kinds(peer).count("close") == 1
    assert peer.stream.events[-1] == ("close", 1, True)
    assert peer.budget.used_bytes == 0
    assert not peer.stream.streams[0].open and peer.stream.streams[0].context is None
    peer.send(reset(1)) if how != "reset" else None
    assert kinds(peer).count("close") == 1


def test_a_stream_is_refused_when_it_starts() -> None:
    """A handler may finish in ``on_accept``; then the rest of the request is ignored."""
    peer = Peer()
    peer.stream.accept = lambda stream: stream.finish(Status(Code.UNAVAILABLE, "draining"))
    peer.send(OPEN, data(1, message(b"x"), ended=True))
    assert peer.answer(1).status == Code.UNAVAILABLE
    assert kinds(peer) == ["accept", "close"] and not peer.connection.streams


def test_streams_share_the_budget_and_wait_for_it() -> None:
    """A long message waits for the budget, and continues when another is done; the client gets no window before."""
    peer = Peer(budget=ReceiveBudget(150_000))
    body = message(bytes(100_000))
    for stream_id in (1, 3):
        peer.send(headers(stream_id, request(STREAM)), raw(DATA, 0, stream_id, body[:10]))
    assert peer.answer(1).windows == 100_005 - FIRST_WINDOW and peer.answer(3).windows == 0
    peer.check()
    assert peer.answer(3).windows == 0
    peer.send(data(1, body[10:]))
    peer.check()
    assert peer.answer(3).windows == 100_005 - FIRST_WINDOW
    peer.send(data(3, body[10:]))
    assert len(bodies(peer)) == 2 and peer.budget.used_bytes == 0


def test_a_stream_that_waited_for_the_budget_gets_no_window_without_a_read() -> None:
    """It reserved when its next part arrived, not by ``on_room``; a later ``on_room`` must not read for the handler."""
    peer = Peer(budget=ReceiveBudget(150_000))
    peer.stream.answer = lambda stream, body: None
    body = message(bytes(100_000))
    for stream_id in (1, 3):
        peer.send(headers(stream_id, request(STREAM)), raw(DATA, 0, stream_id, body[:10]))
    peer.send(reset(1))
    peer.send(data(3, body[10:]))
    assert len(bodies(peer)) == 1
    assert peer.check() == [] and peer.budget.used_bytes == 0 and not peer.connection.waiting


def test_a_full_budget_fails_a_stream() -> None:
    """A part that does not fit the budget ends its stream with RESOURCE_EXHAUSTED."""
    peer = Peer(budget=ReceiveBudget(1000))
    peer.stream.accept = lambda stream: None
    peer.send(OPEN, raw(DATA, 0, 1, bytes(600)), raw(DATA, 0, 1, bytes(600)))
    assert peer.answer(1).status == Code.RESOURCE_EXHAUSTED
    assert peer.stream.events[-1] == ("close", 1, True) and peer.budget.used_bytes == 0

"""Time and memory limits for clients that send or read slowly, or are idle. Time is passed in."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from digitserve.protocol.names import Code
from digitserve.telemetry.block import CloseReason, RefusalReason
from digitserve.transport.native.limits import SLOW_GRACE_S, ReceiveBudget
from support.http2_peer import (
    DATA,
    GOAWAY,
    LIMITS,
    PING,
    STREAM,
    UNARY,
    Peer,
    call,
    data,
    headers,
    message,
    raw,
    request,
    settings,
    window_update,
)

CANCEL = 8
CHECK_S = 0.1


def pass_time(peer: Peer, seconds: float) -> None:
    """Advance the time, with a check before and after."""
    peer.check()
    peer.now += seconds
    peer.check()


@pytest.mark.parametrize("step", [0, 1], ids=["nothing", "one byte each 10 s"])
def test_a_client_that_does_not_take_its_answer_loses_it(step: int) -> None:
    """After ``message_s`` the stream is reset, whether the client reads nothing or very little; the connection continues."""
    peer = Peer()
    peer.unary.answer = lambda unary, body: unary.reply(bytes(1000))
    peer.send(settings(s4=0), call(1))
    for _ in range(6):
        pass_time(peer, LIMITS.message_s / 6)
        if step:
            peer.send(window_update(1, step))
    assert peer.answer(1).reset is None and peer.connection.streams
    pass_time(peer, CHECK_S)
    assert (peer.answer(1).reset, peer.connection.streams) == (CANCEL, {})
    assert peer.counts.refused == {RefusalReason.ANSWER_TIMEOUT: 1}
    peer.send(settings(s4=100_000), window_update(1, 100), call(3))
    assert peer.answer(3).status == 0


def test_a_stream_whose_messages_are_taken_in_time_continues() -> None:
    """The time limit applies to each message: a slow client may read for hours. If it stops, its stream is reset."""
    peer = Peer()
    peer.send(settings(s4=0), headers(1, request(STREAM)), data(1, message(bytes(1000)) * 60))
    for _ in range(50):
        pass_time(peer, LIMITS.message_s - 1)
        peer.send(window_update(1, 1005))
    assert len(peer.answer(1).messages) == 50 and peer.answer(1).reset is None
    pass_time(peer, LIMITS.message_s + CHECK_S)
    assert (peer.answer(1).reset, peer.connection.streams) == (CANCEL, {})
    assert peer.stream.events[-1] == ("close", 1, True)
    assert peer.counts.refused == {RefusalReason.ANSWER_TIMEOUT: 1}


class Message:
    """A holder of a reservation."""

    def __init__(self, budget: ReceiveBudget, num_bytes: int) -> None:
        self.budget, self.num_bytes, self.received, self.evicted = budget, num_bytes, 0.0, False
        assert budget.reserve(self, num_bytes)

    def num_received_bytes(self) -> int:
        return int(self.received)

    def evict(self) -> None:
        self.evicted = True
        self.budget.give_back_reserved(self)


def make_room(budget: ReceiveBudget, now: float) -> None:
    """Call ``make_room`` while a message waits for more than there is."""
    assert not budget.reserve(object(), budget.max_bytes)  # type: ignore[arg-type]
    budget.make_room(now)


@given(st.integers(100_000, 1 << 24), st.floats(0, 1.5), st.floats(2 * SLOW_GRACE_S, 120))
@settings_of_hypothesis(max_examples=50)
def test_a_reserved_message_gives_way_only_if_it_would_miss_its_time_limit(
    num_bytes: int, share: float, message_s: float
) -> None:
    """A client that sends at the required rate, or faster, keeps its reservation. One that is slower by more than the grace
    loses it before the time limit.
    """
    budget = ReceiveBudget(1 << 26, message_s)
    sent = Message(budget, num_bytes)
    for step in range(401):
        passed_s = step * message_s / 400
        sent.received = min(num_bytes, share * num_bytes * passed_s / message_s)
        if not sent.evicted:
            make_room(budget, 50.0 + passed_s)
    least_share = 1 - SLOW_GRACE_S / message_s
    if abs(share - least_share) > 0.01:
        assert sent.evicted == (share < least_share)
    assert budget.reserved_bytes == (0 if sent.evicted else num_bytes)


def test_slow_messages_give_way_one_at_a_time_oldest_first() -> None:
    """``make_room`` ends at most one call each time, so that no more calls end than necessary."""
    budget = ReceiveBudget(1 << 26)
    slow, fast, slower = (Message(budget, 1 << 20) for _ in range(3))
    fast.received = 1 << 20
    make_room(budget, 0.0)
    make_room(budget, SLOW_GRACE_S)
    assert not slow.evicted
    make_room(budget, SLOW_GRACE_S + 1)
    budget.make_room(SLOW_GRACE_S + 1)  # nothing waits any more
    assert [each.evicted for each in (slow, fast, slower)] == [True, False, False]
    make_room(budget, SLOW_GRACE_S + 1)
    make_room(budget, LIMITS.message_s)
    assert [each.evicted for each in (slow, fast, slower)] == [True, False, True]


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_clients_that_trickle_do_not_keep_others_from_sending(path: bytes) -> None:
    """Six clients reserve all the room and send one byte per second. While no other client waits, they have until their time
    limit. A client that waits gets room after a few seconds: slow calls end with RESOURCE_EXHAUSTED, as few as necessary.
    """
    budget = ReceiveBudget(801_000)
    slow = [Peer(budget=budget) for _ in range(6)]
    body = message(bytes(100_000))
    for peer in slow:
        peer.send(headers(1, request(path)), raw(DATA, 0, 1, body[:10]))
    other = Peer(budget=budget)
    other.unary.answer = lambda unary, body: unary.reply(b"%d" % len(body))

    def pass_second(number: int) -> None:
        for peer in (*slow, other):
            peer.now += 1
            peer.check()
        for peer in slow:
            if peer.connection.streams:
                peer.send(raw(DATA, 0, 1, body[number : number + 1]))

    for number in range(10, 40):
        pass_second(number)
    assert [peer.answer(1).status for peer in slow] == [None] * 6
    other.send(headers(1), data(1, body[:60_000]))
    assert other.connection.waiting
    number = 40
    while other.connection.waiting:
        pass_second(number)
        number += 1
    other.send(data(1, body[60_000:], ended=True))
    assert other.answer(1).messages == [b"100000"]
    slow[0].read()
    assert number - 40 <= SLOW_GRACE_S + 2
    assert [peer.answer(1).status for peer in slow] == [Code.RESOURCE_EXHAUSTED] + [None] * 5
    assert slow[0].counts.refused == {RefusalReason.RECEIVE_MEMORY: 1}


IDLE = dataclasses.replace(LIMITS, max_idle_s=10.0)


def test_a_connection_without_calls_drains() -> None:
    """After ``max_idle_s`` without a call it gets the two GOAWAY of a drain; PINGs do not keep it open, calls do."""
    peer = Peer(IDLE)
    peer.unary.answer = lambda unary, body: None
    for stream_id in (1, 3, 5):
        pass_time(peer, 9)
        peer.send(call(stream_id))
        peer.unary.calls[-1].reply(b"")
    pass_time(peer, 9)
    peer.send(call(7))  # takes longer than the limit
    pass_time(peer, 50)
    peer.unary.calls[-1].reply(b"")
    for _ in range(10):
        assert not [each for each in peer.seen if each.type == GOAWAY]
        pass_time(peer, 1)
        peer.send(raw(PING, 0, 0, bytes(8)))
    pass_time(peer, CHECK_S)
    assert [each.last_stream_id for each in peer.seen if each.type == GOAWAY] == [(1 << 31) - 1]
    peer.send(call(9))
    assert len(peer.unary.calls) == 5, "between the two GOAWAY calls are accepted"
    assert peer.connection.close_reason is CloseReason.IDLE


def test_a_connection_that_never_has_a_call_is_idle_from_its_start() -> None:
    """The time begins with the connection."""
    peer = Peer(IDLE)
    pass_time(peer, 10)
    assert peer.connection.close_reason is None
    pass_time(peer, CHECK_S)
    assert peer.connection.close_reason is CloseReason.IDLE

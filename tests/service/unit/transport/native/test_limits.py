"""What a client cannot make the server hold or do: rates, sizes, times. Time is passed in."""

import dataclasses
import gzip

import pytest

from digitserve.protocol.names import Code
from digitserve.transport.native.frames import ErrorCode
from digitserve.transport.native.limits import RateLimit, ReceiveBudget
from digitserve.transport.native.multiplex import STREAM_BYTES
from digitserve.transport.native.shares import InflateBudget
from support.http2_peer import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    LIMITS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    STREAM,
    UNARY,
    Peer,
    call,
    data,
    headers,
    message,
    raw,
    request,
    reset,
    settings,
    window_update,
)

CALM = ErrorCode.ENHANCE_YOUR_CALM
SMALL = dataclasses.replace(LIMITS, max_control_frames=50, control_frames_per_s=10, max_resets=20, resets_per_s=5)
OPEN = headers(1, request(STREAM))

FLOODS = {
    "PING": raw(PING, 0, 0, bytes(8)),
    "PING with ACK": raw(PING, 1, 0, bytes(8)),
    "SETTINGS": settings(),
    "SETTINGS with ACK": raw(4, 1),
    "PRIORITY": raw(PRIORITY, 0, 1, bytes(5)),
    "unknown frames": raw(99),
    "GOAWAY": raw(7, 0, 0, bytes(8)),
    "empty DATA": raw(DATA, 0, 1),
    "DATA of padding": raw(DATA, PADDED, 1, b"\x03" + bytes(3)),
    "DATA on a closed stream": raw(DATA, 0, 3, b"x"),
}


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS)
def test_frames_without_a_request_are_limited(frame: bytes) -> None:
    """The burst is allowed, and the rate afterwards; more ends the connection with ENHANCE_YOUR_CALM."""
    peer = Peer(SMALL)
    peer.now += 10  # the handshake has counted too
    peer.send(OPEN, headers(3, request(UNARY, (b"X", b"y"))))
    for _ in range(25):
        peer.send(frame)
    for _ in range(300):
        peer.now += 0.2  # 10 per s are allowed; SETTINGS count twice at most
        peer.send(frame)
    assert peer.failure is None
    peer.send(frame * 51)
    assert peer.failure == CALM
    assert peer.stream.events[-1] == ("close", 1, True)


def test_settings_count_by_their_number_and_the_open_streams() -> None:
    """One frame with thousands of settings is no way around the limit; each setting of the initial window is work."""
    peer = Peer()
    peer.send(raw(4, 0, 0, (b"\0\4" + (100).to_bytes(4, "big")) * 2_000))
    assert peer.failure == CALM
    peer = Peer()
    peer.send(*(headers(2 * number + 1) for number in range(1000)))
    peer.send(*(settings(s4=number) for number in range(100)))
    assert peer.failure == CALM


def test_a_ping_per_round_trip_is_allowed_for_an_hour() -> None:
    """Clients that measure the bandwidth send a PING in each round trip: 0.2 ms on one host, here for a simulated hour."""
    limit = RateLimit(LIMITS.max_control_frames, LIMITS.control_frames_per_s, 0.0)
    now = 0.0
    for step_s, count in ((0.0002, 20_000), (0.001, 10_000), (3600 / 5_000, 5_000)):
        for _ in range(count):
            now += step_s
            assert limit.allows(now)
    peer = Peer()
    for number in range(2_000):
        peer.now += 0.0002
        peer.send(raw(PING, 0, 0, bytes(8)), call(2 * number + 1))
    assert peer.failure is None


RESETS = {
    # The client opens and resets: CVE-2023-44487.
    "by the client": lambda each: headers(each) + reset(each),
    # The client makes the server reset: CVE-2025-8671.
    "malformed": lambda each: headers(each, request(UNARY, (b"X", b"y"))),
    "window of 0": lambda each: headers(each) + window_update(each, 0),
    "window overflow": lambda each: headers(each) + window_update(each, 2**31 - 1),
    "priority size": lambda each: headers(each) + raw(PRIORITY, 0, each, bytes(4)),
    "data after the end": lambda each: call(each) + raw(DATA, 0, each, b"x"),
    "too much data": lambda each: headers(each) + data(each, b"\x02" + bytes(70_000)),
    "content-length": lambda each: headers(each, request(UNARY, (b"content-length", b"1"))) + data(each, bytes(6)),
    "trailers": lambda each: headers(each) + headers(each, [(b":path", b"x")], END_HEADERS | END_STREAM),
}


@pytest.mark.parametrize("kind", RESETS)
def test_resets_are_limited_whoever_sends_them(kind: str) -> None:
    """Streams that the client resets, or that it makes the server reset, are limited together."""
    peer = Peer(SMALL)
    for number in range(20):
        peer.send(RESETS[kind](2 * number + 1))
    assert peer.failure is None
    for number in range(20, 60):
        peer.now += 0.2
        peer.send(RESETS[kind](2 * number + 1))
    assert peer.failure is None and not peer.connection.streams
    for number in range(60, 82):
        peer.send(RESETS[kind](2 * number + 1))
    assert peer.failure == CALM
    assert peer.budget.used_bytes == 0


def test_cancelled_calls_of_a_busy_client_are_allowed() -> None:
    """A thousand calls in flight, all cancelled at once, ten times in ten seconds."""
    peer = Peer()
    peer.unary.answer = lambda unary, body: None
    for second in range(10):
        ids = range(2000 * second + 1, 2000 * second + 2001, 2)
        peer.send(*map(call, ids))
        peer.send(*map(reset, ids))
        peer.now += 1
    assert peer.failure is None and not peer.connection.streams


@pytest.mark.parametrize("part", [b"", b"x", bytes(16_384)])
def test_a_header_block_without_end_is_limited(part: bytes) -> None:
    """CONTINUATION frames, empty ones too, end the connection at the limit of bytes or frames: CVE-2024-27316."""
    peer = Peer()
    peer.send(headers(1, flags=0))
    num_sent = 0
    while not peer.connection.closing:
        peer.send(raw(CONTINUATION, 0, 1, part))
        num_sent += 1
        assert num_sent <= (5 if len(part) > 1 else LIMITS.max_control_frames)
        assert len(peer.connection._block or b"") <= LIMITS.max_header_block_bytes + len(part)
    assert peer.failure == CALM


def test_a_long_header_block_is_answered_with_431() -> None:
    """Fields over the limit are decoded, as the table needs it, and the request fails; the connection goes on."""
    peer = Peer()
    block = headers(1, request(UNARY, *[(b"name-%d" % number, b"x" * 1000) for number in range(40)]))[9:]
    parts = [block[start : start + 16_000] for start in range(0, len(block), 16_000)]
    peer.send(raw(HEADERS, 0, 1, parts[0]), *(raw(CONTINUATION, 0, 1, each) for each in parts[1:]))
    peer.send(raw(CONTINUATION, END_HEADERS, 1), call(3))
    assert peer.answer(1).headers[b":status"] == b"431"
    assert peer.answer(3).status == 0


def test_a_client_that_does_not_read_is_not_read() -> None:
    """With more than ``max_unsent_bytes`` unsent, the socket is not read, and answers wait in their streams."""
    limits = dataclasses.replace(LIMITS, max_unsent_bytes=1000)
    peer = Peer(limits)
    connection = peer.connection
    connection.receive(settings(s4=1 << 20) + window_update(0, 1 << 20), peer.now, peer.wall)
    peer.read()
    peer.unary.answer = lambda unary, body: unary.reply(bytes(30_000))
    connection.receive(call(1) + call(3) + call(5), peer.now, peer.wall)
    assert not connection.wants_read()
    assert connection.num_unsent_bytes < 1000 + 16_384 + 100
    for _ in range(20):
        peer.read()
    assert connection.wants_read() and connection.num_unsent_bytes == 0
    assert [peer.answer(each).messages for each in (1, 3, 5)] == [[bytes(30_000)]] * 3


def test_acknowledgements_do_not_pile_up() -> None:
    """PINGs of a client that does not read stop at the bound of unsent bytes, as the loop then stops reading."""
    peer = Peer(dataclasses.replace(LIMITS, max_unsent_bytes=2_000))
    while peer.connection.wants_read():
        peer.connection.receive(raw(PING, 0, 0, bytes(8)), peer.now, peer.wall)
    assert peer.connection.num_unsent_bytes <= 2_000 + 17
    peer.read()
    assert peer.connection.wants_read()


@pytest.mark.parametrize("sent", [b"", PREFACE[:10], PREFACE, PREFACE + settings()[:5]], ids=len)
def test_the_preface_has_a_time_limit(sent: bytes) -> None:
    """A client that connects and does not complete preface and SETTINGS is closed after ``handshake_s``."""
    peer = Peer(handshake=False)
    peer.send(sent)
    peer.now += LIMITS.handshake_s
    peer.check()
    assert not peer.connection.closing
    peer.now += 0.1
    peer.check()
    assert peer.failure == ErrorCode.PROTOCOL_ERROR


def test_a_header_block_has_a_time_limit() -> None:
    """It counts from HEADERS; more CONTINUATION frames do not extend it."""
    peer = Peer()
    peer.send(headers(1, flags=0))
    peer.now += LIMITS.handshake_s
    peer.send(raw(CONTINUATION, 0, 1))
    peer.check()
    assert not peer.connection.closing
    peer.now += 0.1
    peer.check()
    assert peer.failure == ErrorCode.PROTOCOL_ERROR


def test_an_idle_connection_has_no_time_limit() -> None:
    """Once SETTINGS are received, a client may be silent; a stream may be silent too."""
    peer = Peer()
    peer.send(OPEN)
    peer.now += 1e6
    assert peer.check() == []
    peer.send(data(1, message(b"x"), ended=True))
    assert peer.answer(1).status == 0


def test_answers_that_wait_for_their_own_window_are_not_visited() -> None:
    """WINDOW_UPDATE frames of one stream, or of the connection, cost nothing for a thousand other blocked answers."""
    peer = Peer()
    peer.unary.answer = lambda unary, body: unary.reply(bytes(20_000))
    peer.send(settings(s4=0), *(call(2 * number + 1) for number in range(1000)))
    assert len(peer.connection.streams) == 1000 and not peer.connection.blocked
    peer.send(
        window_update(1, 100_000), window_update(3, 100_000), window_update(5, 100_000), window_update(7, 100_000)
    )
    assert list(peer.connection.blocked) == [peer.connection.streams[7]], "it waits for the connection's window"
    peer.send(window_update(0, 100_000))
    assert [peer.answer(each).status for each in (1, 3, 5, 7, 9)] == [0, 0, 0, 0, None]
    assert not peer.connection.blocked


def test_a_rate_limit_allows_burst_and_rate() -> None:
    """A token bucket: never more than the burst is saved."""
    limit = RateLimit(3, 2.0, 0.0)
    assert [limit.allows(1000.0) for _ in range(4)] == [True, True, True, False]
    limit = RateLimit(3, 2.0, 0.0)
    assert limit.allows(0.0, 3) and not limit.allows(0.4)
    limit = RateLimit(3, 2.0, 0.0)
    assert limit.allows(0.0, 3) and limit.allows(0.5) and not limit.allows(0.6)


def test_the_budget_bounds_what_connections_hold_together() -> None:
    """Connections share it: for a part that does not fit, the oldest calls fail with RESOURCE_EXHAUSTED; all is returned."""
    budget = ReceiveBudget(400_000)
    peers = [Peer(budget=budget) for _ in range(5)]
    for peer in peers:
        peer.send(headers(1), data(1, message(bytes(60_000))[:40_000]))
        assert budget.first_bytes <= 100_000
        assert budget.used_bytes <= budget.max_bytes
    for peer in peers:
        peer.read()
    assert [peer.answer(1).status for peer in peers] == [8, 8, 8, None, None]
    for peer in peers[3:]:
        peer.connection.drop()
    assert budget.used_bytes == 0


def test_a_call_that_waited_for_the_budget_holds_nothing_after_its_message() -> None:
    """It reserved when its next part arrived, not by ``on_room``; a later ``on_room`` must not reserve it again."""
    peer = Peer(budget=ReceiveBudget(200_000))
    peer.unary.answer = lambda unary, body: None
    body = message(bytes(100_000))
    peer.send(headers(1), raw(DATA, 0, 1, body[:10]), headers(3), raw(DATA, 0, 3, body[:10]))
    assert list(peer.connection.waiting) == [peer.connection.streams[3]]
    peer.send(reset(1))
    peer.send(data(3, body[10:], ended=True))
    assert peer.budget.used_bytes == 0
    frames = peer.check()
    assert frames == [] and peer.budget.used_bytes == 0
    peer.unary.calls[1].reply(b"ok")
    peer.read()
    assert peer.answer(3).messages == [b"ok"] and not peer.connection.waiting


def test_reservations_leave_room_for_first_windows() -> None:
    """Messages with a reservation take at most three quarters of the budget, first windows the rest: neither can keep the
    other out.
    """
    budget = ReceiveBudget(400_000)
    large = Peer(budget=budget)
    for number in range(5):
        stream_id = 2 * number + 1
        large.send(headers(stream_id), raw(DATA, 0, stream_id, message(bytes(100_000))[:10]))
    assert budget.reserved_bytes == 200_010 and len(large.connection.waiting) == 3
    small = Peer(budget=budget)
    body = bytes(60_000)
    small.send(headers(1), data(1, message(body)[:40_000]))
    small.send(data(1, message(body)[40_000:], ended=True))
    assert small.answer(1).messages == [body]
    small.send(headers(3), data(3, message(body)[:60_000]))
    large.send(reset(1), reset(3))
    large.check()
    assert budget.reserved_bytes == 200_010 and len(large.connection.waiting) == 1


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_the_oldest_unfinished_message_gives_way(path: bytes) -> None:
    """Clients that send a part of a message and stop cannot keep others out: the oldest part gives way to the newest, and
    no more than necessary.
    """
    budget = ReceiveBudget(480_000)
    silent = [Peer(budget=budget) for _ in range(2)]
    for peer in silent:
        peer.send(headers(1, request(path)), data(1, message(bytes(60_000))[:50_000]))
    other = Peer(budget=budget)
    other.send(headers(1), data(1, message(b"x" * 60_000), ended=True))
    assert other.answer(1).messages == [b"x" * 60_000]
    for peer in silent:
        peer.read()
    assert [peer.answer(1).status for peer in silent] == [Code.RESOURCE_EXHAUSTED, None]
    silent[1].connection.drop()
    assert budget.used_bytes == 0


def test_what_waits_for_the_client_is_counted() -> None:
    """Requests without an end, answers without a window, header blocks without an end, and the decoder's table count."""
    peer = Peer()
    decoder_bytes = peer.connection._decoder.num_held_bytes
    peer.send(settings(s4=0))
    peer.check()
    assert peer.connection.num_held_bytes == 0
    peer.send(*(headers(2 * number + 1) for number in range(10)))
    peer.check()
    stream_bytes = STREAM_BYTES + peer.unary.calls[0].head.num_bytes
    assert peer.connection.num_held_bytes == 10 * stream_bytes + decoder_bytes()
    peer.unary.answer = lambda unary, body: unary.reply(bytes(50_000))
    peer.send(*(data(2 * number + 1, message(b"x"), ended=True) for number in range(10)))
    peer.check()
    assert peer.connection.num_held_bytes == 10 * (stream_bytes + 50_005) + decoder_bytes()
    peer.send(settings(s4=100_000), window_update(0, 1 << 20))
    peer.send(headers(101, flags=0), raw(CONTINUATION, 0, 101, bytes(1000)), bytes(5))
    peer.check()
    assert 1005 < peer.connection.num_held_bytes - decoder_bytes() < 1200
    peer.connection.trim()
    assert not peer.connection._decoder._heads


def test_what_waits_for_its_decompression_or_for_its_handler_is_counted() -> None:
    """Their clients have sent all, but no other limit counts them. What is handed over counts in the queue of the worker."""
    peer = Peer()
    peer.unary.answer = peer.stream.accept = lambda *_: None
    peer.budget.inflate = InflateBudget(lambda: 50.0)
    peer.budget.inflate._left_s = 0.0
    compressed = message(gzip.compress(bytes(1 << 17)), 1)
    peer.send(headers(1, request(UNARY, (b"grpc-encoding", b"gzip"))), data(1, compressed, ended=True))
    peer.send(headers(3, request(STREAM), END_HEADERS | END_STREAM), call(5, b"x", STREAM), call(7))
    assert [stream.stream_id for stream in peer.connection.waiting] == [1]
    peer.check()
    assert len(peer.connection.streams) == 4
    waiting = [stream for stream_id, stream in peer.connection.streams.items() if stream_id != 7]
    expected = sum(STREAM_BYTES + stream.head.num_bytes for stream in waiting)
    assert peer.connection.num_held_bytes == expected + peer.connection._decoder.num_held_bytes()


def test_header_fields_of_open_requests_are_counted() -> None:
    """Long fields and many short ones: both are kept as long as their request."""
    peer = Peer()
    long, short = [(b"name-%d" % number, b"x" * 200) for number in range(40)], [(b"%d" % n, b"") for n in range(100)]
    peer.send(headers(1, request(UNARY, *long)), headers(3, request(UNARY, *short)))
    assert peer.unary.calls[0].head.num_bytes > 10_000 and peer.unary.calls[1].head.num_bytes > 16_000
    peer.check()
    assert peer.connection.num_held_bytes > 26_000


def test_a_reserved_message_of_a_stream_has_a_time_limit() -> None:
    """A stream may be idle, but not while it has reserved room that others need."""
    peer = Peer()
    body = bytes(100_000)
    peer.send(OPEN, window_update(0, 1 << 20), window_update(1, 1 << 20))
    for _ in range(2):
        peer.now += 10 * LIMITS.message_s
        peer.send(data(1, message(body)[:50_000]))
        peer.check()
        peer.now += LIMITS.message_s / 2
        peer.check()
        peer.send(data(1, message(body)[50_000:]))
        peer.check()
    assert peer.answer(1).messages == [body, body] and peer.answer(1).status is None
    peer.send(data(1, message(body)[:50_000]))
    peer.check()
    peer.now += LIMITS.message_s + 0.1
    peer.check()
    assert peer.answer(1).trailers[b"grpc-message"] == b"a message did not arrive within 60 s"
    assert peer.stream.events[-1] == ("close", 1, True) and peer.budget.used_bytes == 0

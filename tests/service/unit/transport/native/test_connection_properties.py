"""Property tests of the native transport's connection: any bytes, any splits, a small budget."""

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from digitserve.protocol.names import Code
from digitserve.transport.native.connection import Connection
from digitserve.transport.native.frames import ErrorCode
from digitserve.transport.native.limits import FIRST_WINDOW, ReceiveBudget
from support.http2_peer import (
    ACK,
    LIMITS,
    PREFACE,
    STREAM,
    UNARY,
    Peer,
    block,
    headers,
    message,
    raw,
    request,
    reset,
    window_update,
)
from support.http2_peer import settings as settings_frame

EXAMPLES = 200

# Bytes that are nearly HTTP/2.

STREAM_IDS = st.sampled_from([0, 1, 1, 1, 3, 3, 5, 7, 2, 2**31 - 1])
REQUESTS = [
    block(request()),
    block(request(STREAM)),
    block(request(STREAM)),
    block(request(b"/no/Such")),
    block(request(UNARY, (b"grpc-encoding", b"gzip"))),
    block(request(UNARY, (b"grpc-encoding", b"zip"))),
    block(request(STREAM, (b"grpc-encoding", b"zip"))),
    block(request(UNARY, (b"content-length", b"6"))),
    block(request(STREAM, (b"content-length", b"10"))),
    block(request(UNARY, (b"grpc-timeout", b"1S"))),
    block(request(STREAM, (b"grpc-timeout", b"1S"))),
    block(request(UNARY, (b"grpc-timeout", b"soon"))),
    block(request(method=b"GET")),
    block(request(UNARY, (b"BAD", b"1"))),
    b"\x20" + block(request()),
]
BLOCKS_OF_REQUESTS = st.sampled_from(REQUESTS)
BLOCKS = st.sampled_from([*REQUESTS, block([(b"x", b"y")]), b"", b"\xbe"])
PAYLOADS = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([message(b"a"), message(b""), message(b"hello") * 3, message(b"x", 1), message(bytes(300))]),
)
FRAMES = st.one_of(
    st.builds(raw, st.integers(0, 11), st.integers(0, 255), STREAM_IDS, st.binary(max_size=12)),
    st.builds(raw, st.just(1), st.sampled_from([4, 4, 4, 5, 0, 1]), STREAM_IDS, BLOCKS),
    st.builds(raw, st.just(9), st.sampled_from([4, 4, 0]), STREAM_IDS, BLOCKS),
    st.builds(raw, st.just(0), st.sampled_from([0, 1, 1]), STREAM_IDS, PAYLOADS),
    st.builds(raw, st.just(6), st.sampled_from([0, 1]), st.just(0), st.just(b"draining")),
    st.builds(window_update, STREAM_IDS, st.sampled_from([0, 1, 100, 2**31 - 1])),
    st.builds(lambda value: settings_frame(s4=value), st.sampled_from([0, 5, 6, 100, 2**31 - 1, 2**31])),
)


VALID = st.sampled_from(
    [
        "open",
        "open",
        "open",
        "blocks",
        "data",
        "data",
        "data",
        "data",
        "end",
        "end",
        "trailers",
        "reset",
        "window",
        "connection",
        "settings",
        "ping",
        "pong",
        "priority",
        "unknown",
        "late",
    ]
)


@st.composite
def sessions(draw: st.DrawFn, max_frames: int = 12) -> bytes:  # noqa: C901, PLR0912 - a case for each kind of frame
    """Frames as a client may send them: most are valid, so that later ones matter too."""
    sent, last, alive = [PREFACE, settings_frame(s4=draw(st.sampled_from([0, 7, 100, 65_535])))], -1, []
    for kind in draw(st.lists(VALID, max_size=max_frames)):
        stream_id = draw(st.sampled_from(alive)) if alive else 0
        match kind:
            case "open" | "blocks":
                last += draw(st.sampled_from([2, 2, 2, 4]))
                encoded = draw(BLOCKS_OF_REQUESTS)
                ended = draw(st.sampled_from([0, 0, 0, 1]))
                if not ended:
                    alive.append(last)
                cut = draw(st.integers(0, len(encoded))) if kind == "blocks" else len(encoded)
                sent.append(raw(1, ended | 4 * (kind == "open"), last, encoded[:cut]))
                if kind == "blocks":
                    sent.append(raw(9, 4, last, encoded[cut:]))
            case "data" | "end" | "trailers" | "reset" | "window" if not alive:
                sent.append(raw(2, 0, 1, bytes(5)))
            case "data":
                sent.append(raw(0, 0, stream_id, draw(PAYLOADS)))
            case "end":
                alive.remove(stream_id)
                sent.append(raw(0, 1, stream_id, draw(PAYLOADS)))
            case "trailers":
                alive.remove(stream_id)
                sent.append(raw(1, 5, stream_id, draw(st.sampled_from([b"", block([(b"x", b"y")]), b"\x82"]))))
            case "reset":
                alive.remove(stream_id)
                sent.append(reset(stream_id))
            case "window":
                sent.append(window_update(stream_id, draw(st.sampled_from([1, 4, 100, 2**30]))))
            case "connection":
                sent.append(window_update(0, draw(st.sampled_from([1, 100]))))
            case "settings":
                sent.append(settings_frame(s4=draw(st.sampled_from([0, 5, 6, 100, 2**20])), s5=16_384))
            case "ping":
                sent.append(raw(6, 0, 0, b"12345678"))
            case "pong":
                sent.append(raw(6, 1, 0, b"draining"))
            case "priority":
                sent.append(raw(2, 0, 1, bytes(5)))
            case "unknown":
                sent.append(raw(50, 3, draw(STREAM_IDS), b"abc"))
            case _ if last > 0:
                sent.append(raw(0, draw(st.integers(0, 1)), 1, b"late"))
    return b"".join(sent)


@st.composite
def byte_streams(draw: st.DrawFn, max_frames: int = 8) -> bytes:
    """Frames that follow a preface, perhaps with some bytes changed, inserted or removed."""
    valid = draw(sessions(max_frames))
    more = b"".join(draw(st.lists(FRAMES, max_size=draw(st.sampled_from([0, 0, 1, 5])))))
    sent = bytearray(valid + more)
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 3]))):
        position = draw(st.integers(0, len(sent)))
        sent[position : position + draw(st.integers(0, 2))] = draw(st.binary(max_size=2))
    return bytes(sent)


def outcome(parts: list[bytes], drains: bool) -> tuple[Any, ...]:
    """Return all that can be observed of a connection that gets these parts."""
    peer = Peer(replace(LIMITS, max_control_frames=30, max_resets=10), handshake=False)
    peer.stream.answer = lambda stream, body: (stream.write(body), stream.flush(), stream.open and stream.read())
    if drains:
        peer.connection.drain(peer.now)
    output = [peer.connection.take_output()]
    for part in parts:
        peer.connection.receive(part, peer.now, peer.wall)
        output.append(peer.connection.take_output())
        peer.connection.on_sent(len(output[-1]))
    connection = peer.connection
    return (
        b"".join(output),
        peer.unary.events,
        peer.stream.events,
        peer.unknown.events,
        connection.closing,
        sorted(connection.streams),
        peer.budget.used_bytes,
        connection.send_window,
    )


@settings(max_examples=EXAMPLES)
@given(byte_streams(), st.booleans())
@example(PREFACE + settings_frame() + raw(6, ACK, 0, b"draining") + raw(6, 0, 0, bytes(8)), True)
@example(PREFACE + settings_frame() + raw(6, ACK, 0, b"draining") + headers(1) + raw(0, 1, 1, message(b"x")), True)
def test_any_split_gives_the_same(sent: bytes, drains: bool) -> None:
    """Where the socket cuts the bytes has no influence: split at every position, and into single bytes."""
    whole = outcome([sent], drains)
    for position in range(1, len(sent)):
        assert outcome([sent[:position], sent[position:]], drains) == whole
    assert outcome([sent[position : position + 1] for position in range(len(sent))], drains) == whole


def holds_its_limits(peer: Peer) -> None:
    connection = peer.connection
    assert len(connection._rest) <= 9 + 16_384
    assert len(connection._block or b"") <= 2 * 16_384 + LIMITS.max_header_block_bytes
    assert len(connection.streams) <= LIMITS.max_streams
    assert peer.budget.used_bytes <= peer.budget.max_bytes
    held = sum(len(each.buffer or b"") for each in connection.streams.values())
    assert held <= peer.budget.used_bytes
    for each in connection.streams.values():
        assert 0 <= each.receive_window <= max(FIRST_WINDOW, LIMITS.max_message_bytes + 5)


@settings(max_examples=2 * EXAMPLES)
@given(st.lists(st.one_of(byte_streams(30).map(lambda each: each.removeprefix(PREFACE)), st.binary(max_size=300))))
def test_no_bytes_break_a_connection(parts: list[bytes]) -> None:
    """Any bytes after the handshake: no exception (it would be INTERNAL_ERROR), no limit exceeded, all released at the end."""
    peer = Peer()
    for part in parts:
        peer.connection.receive(part, peer.now, peer.wall)
        output = peer.connection.take_output()
        peer.connection.on_sent(len(output))
        assert b"internal error" not in output
        holds_its_limits(peer)
        peer.now += 0.5
        peer.wall += 0.5
        peer.connection.check(peer.now, peer.wall)
    peer.connection.drop()
    assert peer.budget.used_bytes == 0 and not peer.connection.streams
    for events in (peer.unary.events, peer.stream.events):
        for stream_id in {each[1] for each in events}:
            kinds = [each[0] for each in events if each[1] == stream_id]
            assert kinds[0] == "accept" and kinds.count("accept") == 1
            ends = kinds.count("close") + kinds.count("failed") + kinds.count("too large")
            assert ends == 1 or (ends == 0 and kinds == ["accept", "message"]) or events is peer.stream.events
            assert kinds.count("close") <= 1


@settings(max_examples=EXAMPLES)
@given(
    sizes=st.lists(st.sampled_from([1000, 60_000, 80_000, 100_000]), min_size=2, max_size=12),
    budget=st.sampled_from([100_005, 150_000, 300_000]),
    connections=st.integers(1, 4),
    seed=st.integers(0, 1 << 16),
    path=st.sampled_from([UNARY, STREAM]),
)
def test_partial_messages_cannot_starve_each_other(
    sizes: list[int], budget: int, connections: int, seed: int, path: bytes
) -> None:
    """With a budget for few messages, each call completes, or fails by the budget or the time limit; then nothing is held."""
    rng = random.Random(seed)
    shared = ReceiveBudget(budget)
    peers = [Peer(budget=shared) for _ in range(connections)]
    clients: list[tuple[Peer, int, bytearray, list[int]]] = []
    for peer in peers:
        peer.unary.answer = lambda unary, body: unary.reply(b"")
        peer.stream.answer = lambda stream, body: stream.read()
    for number, size in enumerate(sizes):
        peer, stream_id = peers[number % connections], 2 * number + 1
        peer.send(headers(stream_id, request(path, (b"grpc-timeout", b"90S"))))
        clients.append((peer, stream_id, bytearray(message(bytes(size))), [0]))

    def ends(peer: Peer, stream_id: int) -> bool:
        return peer.answer(stream_id).ended or peer.answer(stream_id).reset is not None

    for _ in range(3000):
        active = [each for each in clients if not ends(each[0], each[1])]
        if not active:
            break
        progress = False
        rng.shuffle(active)
        for peer, stream_id, unsent, sent in active:
            room = min(FIRST_WINDOW + peer.answer(stream_id).windows - sent[0], rng.choice([5, 3000, 16_384]))
            if room <= 0 or not unsent or ends(peer, stream_id):
                continue
            part = bytes(unsent[:room])
            del unsent[:room]
            sent[0] += len(part)
            peer.send(raw(0, 0 if unsent else 1, stream_id, part))
            assert shared.used_bytes <= budget
            progress = True
        for peer in peers:
            peer.now += 0.0 if progress else 1.0
            peer.wall += 0.0 if progress else 1.0
            peer.check()
    statuses = [peer.answer(stream_id).status for peer, stream_id, *_ in clients]
    assert set(statuses) <= {0, Code.RESOURCE_EXHAUSTED, Code.CANCELLED, Code.DEADLINE_EXCEEDED}
    for peer in peers:
        peer.now += 100
        peer.check()
    assert shared.used_bytes == 0


def test_internal_errors_are_found_by_these_tests() -> None:
    """The check of ``test_no_bytes_break_a_connection`` can fail: an exception ends in GOAWAY with this text."""
    peer = Peer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Connection, "_on_block", lambda *_: 1 // 0)
        peer.send(headers(1))
    assert peer.failure == ErrorCode.INTERNAL_ERROR
    assert b"internal error" in peer.output

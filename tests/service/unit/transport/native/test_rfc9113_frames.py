"""RFC 9113, sections 3 to 6: preface, format of frames, and the rules of each type. What a client must not send ends the connection."""

import struct

import pytest

from digitserve.transport.native.frames import ErrorCode
from support.http2_peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_STREAM_ID,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    REQUEST,
    RST_STREAM,
    SETTINGS,
    UNARY,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    Peer,
    block,
    call,
    headers,
    message,
    raw,
    request,
    reset,
    settings,
    window_update,
)

PROTOCOL, FLOW, CLOSED, SIZE, COMPRESSION = (
    ErrorCode.PROTOCOL_ERROR,
    ErrorCode.FLOW_CONTROL_ERROR,
    ErrorCode.STREAM_CLOSED,
    ErrorCode.FRAME_SIZE_ERROR,
    ErrorCode.COMPRESSION_ERROR,
)
OPEN = headers(1)
HALF = headers(1, request(), END_HEADERS | END_STREAM)
BLOCK = block(REQUEST)


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.1", PREFACE[:-1] + b"x", b"\x16\x03\x01"])
def test_an_invalid_preface_ends_the_connection(first: bytes) -> None:
    """3.4: an invalid connection preface is a connection error PROTOCOL_ERROR."""
    peer = Peer(handshake=False)
    peer.send(first)
    assert peer.failure == PROTOCOL


@pytest.mark.parametrize(
    "first", [raw(PING, 0, 0, bytes(8)), OPEN, raw(SETTINGS, ACK), window_update(0, 1), raw(99)], ids=str
)
def test_the_preface_ends_with_settings(first: bytes) -> None:
    """3.4: the first frame of a client is SETTINGS, not its acknowledgement."""
    peer = Peer(handshake=False)
    peer.send(PREFACE, first)
    assert peer.failure == PROTOCOL


def test_the_server_sends_settings_first_and_acknowledges_at_once() -> None:
    """3.4 and 6.5.3: SETTINGS are the server's preface, sent before it has heard anything; the client's are acknowledged."""
    peer = Peer(handshake=False)
    first, *_ = peer.read()
    assert first.type == SETTINGS and "ACK" not in first.flags
    answers = peer.send(PREFACE, settings(s3=7, s1=0), settings())
    assert [(each.type, set(each.flags)) for each in answers] == [(SETTINGS, {"ACK"})] * 2


INVALID = {
    # 4.2
    "frame longer than SETTINGS_MAX_FRAME_SIZE": (raw(DATA, 0, 1, bytes(16_385)), SIZE),
    "unknown frame longer than that": (raw(200, 0, 0, bytes(16_385)), SIZE),
    "HEADERS longer than that": (raw(HEADERS, END_HEADERS, 1, bytes(16_385)), SIZE),
    # 4.3, 6.2, 6.10: nothing may interrupt a header block
    "DATA within a header block": (headers(1, flags=0) + raw(DATA, 0, 1), PROTOCOL),
    "PING within a header block": (headers(1, flags=0) + raw(PING, 0, 0, bytes(8)), PROTOCOL),
    "unknown frame within a header block (5.5)": (headers(1, flags=0) + raw(99, 0, 1), PROTOCOL),
    "HEADERS within a header block": (headers(1, flags=0) + headers(3), PROTOCOL),
    "CONTINUATION of another stream": (headers(1, flags=0) + raw(CONTINUATION, END_HEADERS, 3), PROTOCOL),
    "CONTINUATION alone": (raw(CONTINUATION, END_HEADERS, 1, BLOCK), PROTOCOL),
    "CONTINUATION after the end of a block": (OPEN + raw(CONTINUATION, END_HEADERS, 1), PROTOCOL),
    "CONTINUATION after CONTINUATION with END_HEADERS": (
        headers(1, flags=0) + raw(CONTINUATION, END_HEADERS, 1) + raw(CONTINUATION, END_HEADERS, 1),
        PROTOCOL,
    ),
    "CONTINUATION after DATA": (OPEN + raw(DATA, 0, 1) + raw(CONTINUATION, END_HEADERS, 1), PROTOCOL),
    "CONTINUATION on stream 0": (raw(CONTINUATION, END_HEADERS, 0, BLOCK), PROTOCOL),
    "index beyond the table": (raw(HEADERS, END_HEADERS, 1, b"\xff\xff\x00"), COMPRESSION),
    "index 0": (raw(HEADERS, END_HEADERS, 1, b"\x80"), COMPRESSION),
    "truncated block": (raw(HEADERS, END_HEADERS, 1, BLOCK[:-1]), COMPRESSION),
    "table size update after a field": (raw(HEADERS, END_HEADERS, 1, BLOCK + b"\x20"), COMPRESSION),
    "table size above the announced one": (raw(HEADERS, END_HEADERS, 1, b"\x3f\xe2\x1f" + BLOCK), COMPRESSION),
    "invalid block of trailers": (OPEN + raw(HEADERS, END_HEADERS | END_STREAM, 1, b"\x80"), COMPRESSION),
    "invalid block of a stream that was reset": (OPEN + reset(1) + raw(HEADERS, END_HEADERS, 3, b"\x80"), COMPRESSION),
    # 6.1
    "DATA on stream 0": (raw(DATA, END_STREAM, 0, b"x"), PROTOCOL),
    "DATA with as much padding as payload": (OPEN + raw(DATA, PADDED, 1, b"\x05" + bytes(4)), PROTOCOL),
    "DATA with more padding than payload": (OPEN + raw(DATA, PADDED, 1, b"\xff"), PROTOCOL),
    "padded DATA without pad length (4.2)": (OPEN + raw(DATA, PADDED, 1), SIZE),
    # 6.2
    "HEADERS on stream 0": (headers(0), PROTOCOL),
    "HEADERS with too much padding": (raw(HEADERS, END_HEADERS | PADDED, 1, b"\x04abc"), PROTOCOL),
    "HEADERS with padding that reaches the priority": (
        raw(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 1, b"\x03" + bytes(7)),
        PROTOCOL,
    ),
    "HEADERS shorter than the priority (4.2)": (raw(HEADERS, END_HEADERS | WITH_PRIORITY, 1, bytes(4)), SIZE),
    "padded HEADERS shorter than the priority": (
        raw(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 1, bytes(5)),
        SIZE,
    ),
    "padded HEADERS without pad length": (raw(HEADERS, END_HEADERS | PADDED, 1), SIZE),
    # 6.3
    "PRIORITY on stream 0": (raw(PRIORITY, 0, 0, bytes(5)), PROTOCOL),
    # A stream error by the RFC; but RST_STREAM on an idle stream is forbidden (6.4), so the connection ends (5.4.1).
    "PRIORITY of 4 bytes on an idle stream": (raw(PRIORITY, 0, 1, bytes(4)), SIZE),
    # 6.4
    "RST_STREAM on stream 0": (reset(0), PROTOCOL),
    "RST_STREAM on an idle stream": (reset(1), PROTOCOL),
    "RST_STREAM on a stream of the server": (OPEN + reset(2), PROTOCOL),
    "RST_STREAM of 3 bytes": (OPEN + raw(RST_STREAM, 0, 1, bytes(3)), SIZE),
    "RST_STREAM of 5 bytes": (OPEN + raw(RST_STREAM, 0, 1, bytes(5)), SIZE),
    # 6.5
    "SETTINGS on a stream": (raw(SETTINGS, 0, 1), PROTOCOL),
    "SETTINGS with ACK and payload": (raw(SETTINGS, ACK, 0, bytes(6)), SIZE),
    "SETTINGS of 5 bytes": (raw(SETTINGS, 0, 0, bytes(5)), SIZE),
    "SETTINGS of 7 bytes": (raw(SETTINGS, 0, 0, bytes(7)), SIZE),
    "ENABLE_PUSH of 2": (settings(s2=2), PROTOCOL),
    "INITIAL_WINDOW_SIZE of 2^31": (settings(s4=2**31), FLOW),
    "INITIAL_WINDOW_SIZE of 2^31, then a valid one": (settings(s4=2**31) + settings(s4=1), FLOW),
    "MAX_FRAME_SIZE of 16383": (settings(s5=16_383), PROTOCOL),
    "MAX_FRAME_SIZE of 2^24": (settings(s5=2**24), PROTOCOL),
    # 6.6 and 8.4
    "PUSH_PROMISE": (OPEN + raw(PUSH_PROMISE, END_HEADERS, 1, struct.pack(">I", 2) + BLOCK), PROTOCOL),
    "PUSH_PROMISE on stream 0": (raw(PUSH_PROMISE, END_HEADERS, 0, struct.pack(">I", 2) + BLOCK), PROTOCOL),
    # 6.7
    "PING on a stream": (raw(PING, 0, 1, bytes(8)), PROTOCOL),
    "PING of 7 bytes": (raw(PING, 0, 0, bytes(7)), SIZE),
    "PING with ACK of 9 bytes": (raw(PING, ACK, 0, bytes(9)), SIZE),
    # 6.8
    "GOAWAY on a stream": (raw(GOAWAY, 0, 1, bytes(8)), PROTOCOL),
    "GOAWAY of 7 bytes (4.2)": (raw(GOAWAY, 0, 0, bytes(7)), SIZE),
    # 6.9
    "WINDOW_UPDATE of 0 for the connection": (window_update(0, 0), PROTOCOL),
    "WINDOW_UPDATE of 0 with the reserved bit": (window_update(0, 2**31), PROTOCOL),
    "WINDOW_UPDATE of 3 bytes": (raw(WINDOW_UPDATE, 0, 0, bytes(3)), SIZE),
    "WINDOW_UPDATE of 5 bytes on a stream": (OPEN + raw(WINDOW_UPDATE, 0, 1, bytes(5)), SIZE),
    "WINDOW_UPDATE beyond 2^31-1 for the connection": (window_update(0, MAX_STREAM_ID), FLOW),
    "WINDOW_UPDATE on an idle stream": (window_update(1, 1), PROTOCOL),
    "WINDOW_UPDATE on a stream of the server": (window_update(2, 1), PROTOCOL),
    # 5.1 and 5.1.1
    "DATA on an idle stream": (raw(DATA, 0, 1, b"x"), PROTOCOL),
    "DATA on a stream of the server": (OPEN + raw(DATA, 0, 2, b"x"), PROTOCOL),
    "HEADERS on an even stream": (headers(2), PROTOCOL),
}


@pytest.mark.parametrize(("sent", "code"), INVALID.values(), ids=INVALID)
def test_a_connection_error_ends_the_connection(sent: bytes, code: ErrorCode) -> None:
    """5.4.1: GOAWAY with the code is the last frame, and nothing is handled after it."""
    peer = Peer()
    answers = peer.send(sent, call(99, b"late"))
    assert peer.failure == code
    assert answers[-1].type == GOAWAY
    assert not peer.connection.wants_read()
    assert peer.send(call(101), raw(PING, 0, 0, bytes(8))) == []
    assert ("accept", 99) not in peer.unary.events
    assert peer.unary.events in ([], [("accept", 1), ("close", 1)]), "an open call is reported as closed"


def test_goaway_names_the_last_stream() -> None:
    """6.8: the last stream id is the highest one that was processed."""
    peer = Peer()
    goaway = peer.send(call(1), call(7), raw(PING))[-1]
    assert (goaway.type, goaway.last_stream_id) == (GOAWAY, 7)


VALID = {
    # 4.1, 5.5
    "frame of an unknown type": raw(99, 255, 0, b"x" * 100),
    "frame of an unknown type on an idle stream": raw(10, 255, 77, b"x"),
    "frame of 16384 bytes": raw(99, 0, 0, bytes(16_384)),
    "undefined flags": raw(PING, 0xFE, 0, bytes(8)),
    # 5.3.2 and 6.3: priorities are ignored
    "PRIORITY on an idle stream": raw(PRIORITY, 0, 1, bytes(4) + b"\x10"),
    "PRIORITY on an even stream": raw(PRIORITY, 0, 2, bytes(5)),
    "PRIORITY that depends on itself": raw(PRIORITY, 0, 5, struct.pack(">IB", 5, 1)),
    "PRIORITY on a closed stream": call(1) + raw(PRIORITY, 0, 1, bytes(5)),
    "PRIORITY on a half-closed stream": HALF + raw(PRIORITY, 0, 1, bytes(5)),
    # 6.5.2
    "SETTINGS unknown": settings(s99=2**32 - 1, s0=1),
    "SETTINGS repeated": settings(s4=1) + settings(s4=65_535),
    "SETTINGS with the largest values": settings(s1=2**32 - 1, s2=1, s3=2**32 - 1, s5=2**24 - 1, s6=2**32 - 1),
    "SETTINGS with zero values": settings(s1=0, s2=0, s3=0, s6=0),
    # 6.7, 6.8
    "PING with ACK that nobody asked for": raw(PING, ACK, 0, bytes(8)),
    "GOAWAY": raw(GOAWAY, 0, 0, bytes(8) + b"bye"),
    "GOAWAY with an unknown code (7)": raw(GOAWAY, 0, 0, bytes(4) + b"\xff" * 4),
    # 5.1, closed: late frames that may have crossed the end of the stream
    "WINDOW_UPDATE on a closed stream": call(1) + window_update(1, 5),
    "WINDOW_UPDATE of 0 on a closed stream": call(1) + window_update(1, 0),
    "RST_STREAM on a closed stream": call(1) + reset(1),
    "RST_STREAM twice, with an unknown code (7)": OPEN + reset(1, 1000) + reset(1),
    # 6.9.1
    "WINDOW_UPDATE up to 2^31-1": window_update(0, MAX_STREAM_ID - 65_535),
    "DATA that is padding only": OPEN + raw(DATA, PADDED, 1, b"\x02\0\0"),
}


@pytest.mark.parametrize("sent", VALID.values(), ids=VALID)
def test_the_connection_goes_on(sent: bytes) -> None:
    """What the RFC allows, or demands to ignore, harms no later call."""
    peer = Peer()
    peer.send(sent, call(99, b"after"))
    assert peer.failure is None
    assert peer.answer(99).messages == [b"after"] and peer.answer(99).status == 0


@pytest.mark.parametrize("frame", [raw(PING, 0, 0, b"opaque!!"), raw(PING, 0xF0, 0, b"opaque!!")], ids=["", "flags"])
def test_ping_is_answered_with_its_opaque_bytes(frame: bytes) -> None:
    """6.7: the answer has ACK and the same eight bytes."""
    (answer,) = Peer().send(frame)
    assert (answer.type, set(answer.flags), answer.opaque_data) == (PING, {"ACK"}, b"opaque!!")


def test_ping_with_ack_is_not_answered() -> None:
    """6.7: an endpoint must not respond to PING frames that contain ACK."""
    assert Peer().send(raw(PING, ACK, 0, bytes(8))) == []


def test_the_reserved_bit_is_ignored() -> None:
    """4.1 and 6.9: the reserved bit of a stream id and of an increment has no meaning."""
    peer = Peer()
    peer.send(headers(1 | 1 << 31), raw(DATA, END_STREAM, 1 | 1 << 31, message(b"x")))
    peer.send(window_update(1 << 31, 5 | 1 << 31), raw(PING, 0, 1 << 31, bytes(8)))
    assert peer.failure is None
    assert peer.answer(1).messages == [b"x"]


@pytest.mark.parametrize(
    ("flags", "before", "after"),
    [
        (0, b"", b""),
        (PADDED, b"\0", b""),
        (PADDED, b"\x07", bytes(7)),
        (WITH_PRIORITY, bytes(5), b""),
        (WITH_PRIORITY, struct.pack(">IB", 1, 255), b""),  # depends on itself: priorities are ignored
        (PADDED | WITH_PRIORITY, b"\x02" + bytes(5), bytes(2)),
        (0xD2, b"", b""),  # undefined flags
    ],
)
@pytest.mark.parametrize("num_parts", [1, 2, 5])
def test_headers_with_padding_priority_and_continuation(
    flags: int, before: bytes, after: bytes, num_parts: int
) -> None:
    """6.2 and 6.10: a request is the same with padding, priority and CONTINUATION frames, empty ones too."""
    peer = Peer()
    step = -(-len(BLOCK) // num_parts)
    parts = [BLOCK[start : start + step] for start in range(0, len(BLOCK), step)]
    if num_parts > 1:
        parts.insert(1, b"")
    frames = raw(HEADERS, flags | (END_HEADERS if num_parts == 1 else 0), 1, before + parts[0] + after)
    for number, part in enumerate(parts[1:], 2):
        frames += raw(CONTINUATION, END_HEADERS if number == len(parts) else 0, 1, part)
    peer.send(frames, raw(DATA, END_STREAM, 1, message(b"x")))
    assert peer.answer(1).messages == [b"x"]


@pytest.mark.parametrize("padding", [0, 1, 255])
def test_padding_of_data_is_not_content(padding: int) -> None:
    """6.1: padding is removed; it counts for flow control."""
    peer = Peer()
    peer.send(OPEN, raw(DATA, PADDED | END_STREAM, 1, bytes([padding]) + message(b"body") + bytes(padding)))
    assert peer.unary.events[-1] == ("message", 1, b"body")


def test_a_priority_frame_of_wrong_size_is_a_stream_error() -> None:
    """6.3: a stream error FRAME_SIZE_ERROR; other streams go on."""
    peer = Peer()
    peer.send(OPEN, raw(PRIORITY, 0, 1, bytes(6)), call(3))
    assert peer.answer(1).reset == SIZE
    assert peer.answer(3).status == 0
    assert peer.unary.events[:2] == [("accept", 1), ("close", 1)]


def test_answers_use_no_dynamic_table_and_the_smallest_frames() -> None:
    """4.2, 4.3.1 and RFC 7541, 4.2: any SETTINGS_HEADER_TABLE_SIZE and SETTINGS_MAX_FRAME_SIZE of the client are kept."""
    peer = Peer()
    peer._decoder.max_allowed_table_size = 0
    peer.send(settings(s1=0), window_update(0, 1 << 20), settings(s4=1 << 20), call(1, b"x" * 50_000)[:0])
    peer.unary.answer = lambda unary, body: unary.reply(b"y" * 50_000)
    frames = peer.send(call(1), call(3, path=UNARY))
    assert peer.answer(1).messages == peer.answer(3).messages == [b"y" * 50_000]
    assert max(len(each.data) for each in frames if each.type == DATA) == 16_384

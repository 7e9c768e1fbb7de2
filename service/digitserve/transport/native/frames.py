"""HTTP/2 frames: constants, and encoding of the frames that a server sends.

Source: RFC 9113, sections 6 and 7. ``connection`` decodes frames itself, because that is the hot path.
"""

import struct
from enum import IntEnum

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
"""What a client sends first (RFC 9113, section 3.4)."""

HEADER_BYTES = 9
"""Length of a frame's header: length (3), type, flags, stream (4)."""

FRAME_BYTES = 16_384
"""Largest payload that this server accepts: the initial value of SETTINGS_MAX_FRAME_SIZE, which it does not change."""

INITIAL_WINDOW = 65_535
"""Initial flow-control window of a connection and of its streams, in bytes."""

MAX_WINDOW = (1 << 31) - 1
MAX_STREAM_ID = (1 << 31) - 1

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)

ACK = END_STREAM = 0x01
END_HEADERS = 0x04
PADDED = 0x08
WITH_PRIORITY = 0x20

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = (
    range(1, 7)
)


class ErrorCode(IntEnum):
    """Reasons for RST_STREAM and GOAWAY (RFC 9113, section 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


pack_id = struct.Struct(">I").pack
"""A stream id, or any other 32-bit number, as four bytes."""

_HEADER = struct.Struct(">IBI")

unpack_header, pack_header = _HEADER.unpack_from, _HEADER.pack
"""The header of a frame: length and, in the lowest 8 bits, type; flags; stream id with its reserved bit."""

KIND_BITS, KIND_MASK = 8, 0xFF
"""Size and mask of the type within that first number."""

_SETTING = struct.Struct(">HI")

unpack_setting = _SETTING.unpack_from
"""One setting: identifier and value."""


def frame(frame_type: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Encode a frame of at most 16 384 bytes of payload."""
    return pack_id(len(payload) << 8 | frame_type) + bytes((flags,)) + pack_id(stream_id) + payload


def settings(values: dict[int, int]) -> bytes:
    """Encode a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(key, value) for key, value in values.items()))


def window_update(stream_id: int, increment: int) -> bytes:
    """Encode a WINDOW_UPDATE frame; stream 0 is the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, pack_id(increment))


def reset(stream_id: int, code: int) -> bytes:
    """Encode an RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, pack_id(code))


def goaway(last_stream_id: int, code: int, reason: bytes = b"") -> bytes:
    """Encode a GOAWAY frame."""
    return frame(GOAWAY, 0, 0, pack_id(last_stream_id) + pack_id(code) + reason)


def headers(stream_id: int, block: bytes, flags: int, max_frame_bytes: int = FRAME_BYTES) -> bytes:
    """Encode a header block as HEADERS, followed by CONTINUATION frames if it is longer than one frame.

    Args:
        stream_id: of the stream.
        block: the encoded header fields.
        flags: of HEADERS, without END_HEADERS.
        max_frame_bytes: largest payload that the peer accepts.
    """
    if len(block) <= max_frame_bytes:
        return frame(HEADERS, flags | END_HEADERS, stream_id, block)
    parts = [block[start : start + max_frame_bytes] for start in range(0, len(block), max_frame_bytes)]
    return b"".join(
        frame(
            CONTINUATION if number else HEADERS,
            (0 if number else flags) | (END_HEADERS if number == len(parts) - 1 else 0),
            stream_id,
            part,
        )
        for number, part in enumerate(parts)
    )

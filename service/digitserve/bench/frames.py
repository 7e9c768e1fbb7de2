"""The frames of HTTP/2: their types, flags and layout. Stands under ``http2``; no state.

Source: RFC 9113 (HTTP/2).
"""

import struct

from digitserve.errors import DigitserveError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
WITH_PRIORITY = 0x20
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = range(1, 6)
NO_ERROR, REFUSED_STREAM, CANCEL = 0x0, 0x7, 0x8

DEFAULT_WINDOW_BYTES = 65_535
DEFAULT_FRAME_BYTES = 16_384
DEFAULT_TABLE_BYTES = 4_096
LARGEST_WINDOW_BYTES = LAST_STREAM = 2**31 - 1

HEAD = struct.Struct(">BHBBI")
HEAD_BYTES = HEAD.size
SETTING = struct.Struct(">HI")
WORD = struct.Struct(">I")


class ProtocolError(DigitserveError):
    """The peer does not speak HTTP/2, or breaks its rules; the connection is of no more use."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return head(len(payload), kind, flags, stream) + payload


def head(num_bytes: int, kind: int, flags: int, stream: int) -> bytes:
    """Return a frame's head."""
    return HEAD.pack(num_bytes >> 16, num_bytes & 0xFFFF, kind, flags, stream)


def unpad(payload: bytes) -> bytes:
    """Strip a frame's padding; what follows is its length's byte, content, padding."""
    if not payload or payload[0] >= len(payload):
        raise ProtocolError("got a frame with more padding than bytes")
    return payload[1 : len(payload) - payload[0]]


def word(payload: bytes) -> int:
    """Read the number of 32 bits at the beginning of a payload."""
    if len(payload) < WORD.size:
        raise ProtocolError(f"got a frame of {len(payload)} bytes; expected at least {WORD.size}")
    return int.from_bytes(payload[:4], "big")

"""HTTP/2 frames: types, flags and layout. Used by ``http2``; no state.

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
NO_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY = 0x0, 0x7, 0x8, 0xB, 0xC

DEFAULT_WINDOW_BYTES = 65_535
DEFAULT_FRAME_BYTES = 16_384
DEFAULT_TABLE_BYTES = 4_096
MAX_WINDOW_BYTES = MAX_STREAM_ID = 2**31 - 1

FRAME_HEADER = struct.Struct(">BHBBI")
FRAME_HEADER_BYTES = FRAME_HEADER.size
SETTING = struct.Struct(">HI")
U32 = struct.Struct(">I")


class ProtocolError(DigitserveError):
    """The peer does not speak HTTP/2 or violates it; the connection must be closed."""


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Return a frame."""
    return frame_header(len(payload), kind, flags, stream_id) + payload


def frame_header(num_bytes: int, kind: int, flags: int, stream_id: int) -> bytes:
    """Return the header of a frame whose payload has ``num_bytes``."""
    return FRAME_HEADER.pack(num_bytes >> 16, num_bytes & 0xFFFF, kind, flags, stream_id)


def strip_padding(payload: bytes) -> bytes:
    """Return the content of a padded payload: one byte with the padding's length, content, padding."""
    if not payload or payload[0] >= len(payload):
        raise ProtocolError("got a frame with more padding than bytes")
    return payload[1 : len(payload) - payload[0]]


def read_u32(payload: bytes) -> int:
    """Read the 32-bit number at the beginning of a payload."""
    if len(payload) < U32.size:
        raise ProtocolError(f"got a frame of {len(payload)} bytes; expected at least {U32.size}")
    return int.from_bytes(payload[:4], "big")

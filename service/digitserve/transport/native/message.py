"""What gRPC puts into HTTP/2: the prefix of messages, compression, and statuses as header fields.

    call, stream ──▶ parse_prefix, inflate        messages of requests
    stream ──▶ encode_status                      the last header block of an answer
    call, connection ──▶ encode_answer            the only header block of an answer without a message

Source: github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md.
"""

import base64
import re
import urllib.parse
import zlib
from functools import lru_cache
from struct import Struct

from digitserve.protocol.status import Status
from digitserve.transport.native import frames
from digitserve.transport.native.frames import END_HEADERS, END_STREAM, HEADERS
from digitserve.transport.native.hpack import encode_fields

MESSAGE_PREFIX_BYTES = 5
"""Compressed flag and length before each gRPC message."""

MAX_MESSAGE_TEXT = 1_024
"""Longest ``grpc-message`` in bytes before percent-encoding; clients limit header fields to 8 KiB or more."""

GZIP_WINDOW_BITS = 31
"""For zlib: the gzip format with its largest window."""

GZIP_SIZE_BYTES = 4
"""Length of the size at the end of gzip data."""

SMALL_BYTES = 1 << 16
"""Messages up to this size are always decompressed immediately: this takes no longer than classifying their images."""

_PREFIX = Struct(">BI")

unpack_prefix, pack_prefix = _PREFIX.unpack_from, _PREFIX.pack
"""The prefix of a message: compressed flag and length."""

RESPONSE_HEADERS = encode_fields([(b":status", b"200"), (b"content-type", b"application/grpc")])
OK_TRAILERS = encode_fields([(b"grpc-status", b"0")])

_PRINTABLE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_SPACE_AT_END = re.compile(r"\A | (?= *\Z)")


class MessageError(Exception):
    """The peer broke gRPC's message framing; the call ends with INTERNAL and this text."""


def parse_prefix(buffer: bytes | bytearray) -> tuple[bool, int]:
    """Return from the prefix of a message whether it is compressed, and its length in bytes.

    Raises:
        MessageError: the flag is neither 0 nor 1.
    """
    flag = buffer[0]
    if flag > 1:
        raise MessageError(f"got a message with flag {flag}, expected 0 (not compressed) or 1 (compressed)")
    return flag == 1, int.from_bytes(buffer[1:MESSAGE_PREFIX_BYTES], "big")


def inflated_bytes(message: bytearray | memoryview, encoding: bytes) -> int:
    """Return the decompressed size that a compressed message states in its last four bytes (RFC 1952).

    ``inflate`` decompresses no more than that; a message with a wrong size is invalid.

    Args:
        message: with or without its prefix.
        encoding: of ``grpc-encoding``.

    Raises:
        MessageError: the encoding is not gzip.
    """
    if encoding != b"gzip":
        raise MessageError("got a compressed message, but grpc-encoding is not gzip")
    return int.from_bytes(message[-GZIP_SIZE_BYTES:], "little")


def inflate(body: bytes, num_bytes: int, max_bytes: int) -> bytes | None:
    """Decompress a message in gzip format.

    Args:
        body: the message without its prefix.
        num_bytes: as ``inflated_bytes`` returns it.
        max_bytes: largest message.

    Returns:
        ``None`` if the message exceeds ``max_bytes``. Then only its start is decompressed.

    Raises:
        MessageError: the message is not in gzip format, or has another size.
    """
    inflater = zlib.decompressobj(GZIP_WINDOW_BITS)
    try:
        # One byte more than its size: with the exact size, zlib would not read the end of the data.
        inflated = inflater.decompress(body, num_bytes + 1 if num_bytes <= max_bytes else SMALL_BYTES)
    except zlib.error:
        raise MessageError("got a message that is not in gzip format") from None
    if num_bytes > max_bytes and len(inflated) == SMALL_BYTES:
        return None
    if num_bytes > max_bytes or not inflater.eof or inflater.unused_data:
        raise MessageError("got a message in gzip format that ends too early or goes on after its end")
    return inflated


@lru_cache(maxsize=512)
def encode_status(status: Status) -> bytes:
    """Encode a status as a block of trailers.

    Cached: under overload most calls get one of few statuses. The message is percent-encoded, and the details, if there are
    any, are those of ``google.rpc.Status``.
    """
    fields = [(b"grpc-status", b"%d" % status.code)]
    if status.message:
        text = status.message.encode()[:MAX_MESSAGE_TEXT].decode(errors="ignore")
        # Printable ASCII except the percent sign stays as it is.
        encoded = urllib.parse.quote(text, safe=_PRINTABLE)
        # HTTP/2 forbids space at the ends of a value (RFC 9113, section 8.2.1).
        fields.append((b"grpc-message", _SPACE_AT_END.sub("%20", encoded).encode()))
    for name, value in status.trailers():
        encoded_value = value.encode() if isinstance(value, str) else base64.b64encode(value).rstrip(b"=")
        fields.append((name.encode(), encoded_value))
    return encode_fields(fields)


@lru_cache(maxsize=512)
def encode_answer(status: Status) -> tuple[bytes, bytes]:
    """Encode an answer that is only a status: the start of its HEADERS frame, up to the stream id, and the block after it."""
    block = RESPONSE_HEADERS + encode_status(status)
    return frames.frame(HEADERS, END_HEADERS | END_STREAM, 0, block)[:5], block

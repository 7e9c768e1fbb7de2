"""gRPC over HTTP/2, without state: headers, the prefix of a message, what a status is called.

Stands under ``lanes``; see the protocol's description, "gRPC over HTTP2", of the gRPC project.
"""

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote

from digitserve.telemetry.block import CODES

OK = CODES.index("OK")
CANCELED = CODES.index("Canceled")
UNKNOWN = CODES.index("Unknown")
DEADLINE_EXCEEDED = CODES.index("DeadlineExceeded")
INTERNAL = CODES.index("Internal")
UNAVAILABLE = CODES.index("Unavailable")

PREFIX_BYTES = 5
"""Before each message: one byte for 'not compressed', its length in four, big endian."""

_PREFIX = struct.Struct(">BI")

_HTTP_STATUS = {
    "400": INTERNAL, "401": CODES.index("Unauthenticated"), "403": CODES.index("PermissionDenied"),
    "404": CODES.index("Unimplemented"), "429": UNAVAILABLE, "502": UNAVAILABLE, "503": UNAVAILABLE, "504": UNAVAILABLE,
}  # fmt: skip
"""What stands for a gRPC status where something between answered in plain HTTP."""

_REFUSED_STREAM, _CANCEL, _CALM, _INSECURE = 0x7, 0x8, 0xB, 0xC
_RESETS = {
    _REFUSED_STREAM: UNAVAILABLE,
    _CANCEL: CANCELED,
    _CALM: CODES.index("ResourceExhausted"),
    _INSECURE: CODES.index("PermissionDenied"),
}

_TIMEOUT_UNITS = (("n", 1e-9), ("u", 1e-6), ("m", 1e-3), ("S", 1.0), ("M", 60.0), ("H", 3600.0))
_TIMEOUT_MOST = 99_999_999


class Status(NamedTuple):
    """How a call ended: gRPC's number of the code, and the message for people."""

    code: int
    message: str


def request_headers(path: str, authority: str, user_agent: str, deadline_s: float | None) -> list[tuple[str, str]]:
    """Return the headers of a call, pseudo-headers first."""
    headers = [
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", authority), ("te", "trailers"),
        ("content-type", "application/grpc"), ("user-agent", user_agent),
    ]  # fmt: skip
    return headers if deadline_s is None else [*headers, ("grpc-timeout", timeout(deadline_s))]


def timeout(seconds: float) -> str:
    """Write a deadline as ``grpc-timeout``: at most eight digits, in the finest unit that holds it."""
    unit, unit_s = next((unit for unit in _TIMEOUT_UNITS if seconds / unit[1] <= _TIMEOUT_MOST), _TIMEOUT_UNITS[-1])
    return f"{min(_TIMEOUT_MOST, max(1, round(seconds / unit_s)))}{unit}"


def frame(message: bytes) -> bytes:
    """Put its prefix before a message."""
    return _PREFIX.pack(0, len(message)) + message


def split(received: bytes) -> tuple[list[bytes], bytes]:
    """Split what a stream carried.

    Returns:
        The whole messages without their prefixes, and what is left of one that has not come whole.
    """
    messages = []
    position = 0
    while len(received) - position >= PREFIX_BYTES:
        _, num_bytes = _PREFIX.unpack_from(received, position)
        end = position + PREFIX_BYTES + num_bytes
        if end > len(received):
            break
        messages.append(received[position + PREFIX_BYTES : end])
        position = end
    return messages, received[position:]


def whole(received: bytes) -> bool:
    """Tell whether these bytes are exactly one message with its prefix."""
    return len(received) >= PREFIX_BYTES and int.from_bytes(received[1:5], "big") == len(received) - PREFIX_BYTES


def read_status(headers: Iterable[Any]) -> Status:
    """Read the status from trailers; OK, too, from headers that carry none because the answer only begins."""
    found: dict[str, str] = dict(headers)
    message = unquote(found.get("grpc-message", ""))
    if "grpc-status" in found:
        number = found["grpc-status"]
        known = number.isdecimal() and int(number) < len(CODES)
        return Status(int(number), message) if known else Status(UNKNOWN, f"grpc-status is '{number}'")
    http_status = found.get(":status", "200")
    if http_status == "200":
        return Status(OK, "")
    return Status(_HTTP_STATUS.get(http_status, UNKNOWN), f"HTTP status {http_status}")


def reset_status(error_code: int) -> Status:
    """Return the status that stands for a stream's reset with an error code of HTTP/2."""
    return Status(_RESETS.get(error_code, INTERNAL), f"the stream was reset with HTTP/2's error {error_code}")

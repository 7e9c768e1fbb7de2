"""gRPC over HTTP/2, without state: request headers, the message prefix, the status of a call.

Used by ``driver``, ``unary`` and ``streaming``. Source: github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md.
"""

import struct
from collections.abc import Iterable
from typing import Any, NamedTuple
from urllib.parse import unquote

from digitserve.bench import frames
from digitserve.protocol.names import Code

PREFIX_BYTES = 5
"""Before each message: one byte for the compression flag, four for the message's length, big endian."""

_PREFIX = struct.Struct(">BI")

_CODE_BY_HTTP_STATUS = {
    "400": Code.INTERNAL, "401": Code.UNAUTHENTICATED, "403": Code.PERMISSION_DENIED, "404": Code.UNIMPLEMENTED,
    "429": Code.UNAVAILABLE, "502": Code.UNAVAILABLE, "503": Code.UNAVAILABLE, "504": Code.UNAVAILABLE,
}  # fmt: skip
"""For answers of a proxy that does not speak gRPC. Source: doc/http-grpc-status-mapping.md."""

_CODE_BY_RESET = {
    frames.REFUSED_STREAM: Code.UNAVAILABLE,
    frames.CANCEL: Code.CANCELLED,
    frames.ENHANCE_YOUR_CALM: Code.RESOURCE_EXHAUSTED,
    frames.INADEQUATE_SECURITY: Code.PERMISSION_DENIED,
}

_TIMEOUT_UNITS = (("n", 1e-9), ("u", 1e-6), ("m", 1e-3), ("S", 1.0), ("M", 60.0), ("H", 3600.0))
_MAX_TIMEOUT = 99_999_999


class Status(NamedTuple):
    """How a call ended: gRPC's code, and the message for people."""

    code: Code
    message: str


OK = Status(Code.OK, "")


def request_headers(
    path: str,
    authority: str,
    user_agent: str,
    deadline_s: float | None,
    *,
    scheme: str = "http",
    authorization: str = "",
) -> list[tuple[str, str]]:
    """Return the headers of a call, pseudo-headers first."""
    headers = [
        (":method", "POST"), (":scheme", scheme), (":path", path), (":authority", authority), ("te", "trailers"),
        ("content-type", "application/grpc"), ("user-agent", user_agent),
    ]  # fmt: skip
    if authorization:  # may enter the HPACK table, as with gRPC core: 1 byte per request instead of all
        headers.append(("authorization", authorization))
    if deadline_s is not None:
        headers.append(("grpc-timeout", timeout(deadline_s)))
    return headers


def timeout(seconds: float) -> str:
    """Format a deadline as ``grpc-timeout``: at most eight digits, in the finest unit that fits."""
    unit, unit_s = next((unit for unit in _TIMEOUT_UNITS if seconds / unit[1] <= _MAX_TIMEOUT), _TIMEOUT_UNITS[-1])
    return f"{min(_MAX_TIMEOUT, max(1, round(seconds / unit_s)))}{unit}"


def prefix(message: bytes) -> bytes:
    """Return the prefix of a message."""
    return _PREFIX.pack(0, len(message))


def add_prefix(message: bytes) -> bytes:
    """Return a message with its prefix before it."""
    return prefix(message) + message


def split(received: bytes) -> tuple[list[bytes], bytes]:
    """Split the bytes of a stream into messages.

    Returns:
        The complete messages without their prefixes, and the bytes of the incomplete message at the end.
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


def is_one_message(received: bytes) -> bool:
    """Return whether these bytes are exactly one message with its prefix."""
    return len(received) >= PREFIX_BYTES and int.from_bytes(received[1:5], "big") == len(received) - PREFIX_BYTES


def read_status(headers: Iterable[Any]) -> Status:
    """Read the status from trailers; OK also for the headers at the beginning of an answer, which carry no status."""
    found: dict[str, str] = dict(headers)
    message = unquote(found.get("grpc-message", ""))
    if "grpc-status" in found:
        number = found["grpc-status"]
        known = number.isdecimal() and int(number) < len(Code)
        return Status(Code(int(number)), message) if known else Status(Code.UNKNOWN, f"grpc-status is '{number}'")
    http_status = found.get(":status", "200")
    if http_status == "200":
        return OK
    return Status(_CODE_BY_HTTP_STATUS.get(http_status, Code.UNKNOWN), f"HTTP status {http_status}")


def reset_status(error_code: int) -> Status:
    """Return the status of a stream that was reset with an HTTP/2 error code."""
    return Status(_CODE_BY_RESET.get(error_code, Code.INTERNAL), f"the stream was reset with HTTP/2 error {error_code}")

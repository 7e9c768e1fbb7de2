"""Reads the bodies of requests, within limits of their size, their time, and the memory of all of them.

Used by ``api``, on the supervisor's event loop.
"""

import asyncio
from typing import Self

from starlette.requests import ClientDisconnect, Request

from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.web.answers import Failure

BODY_S = 20.0
"""Time for a body: the largest by default, 16 MiB, at 7 Mbit/s."""

NUM_LARGEST = 2
"""All bodies together may hold as many bytes as this number of the largest ones: ten photos of 3 MB. The supervisor needs up to three
times as much memory, because a body is copied into a message."""

SMALL_BYTES, RESERVE_BYTES = 1 << 17, 1 << 23
"""Largest small body, a drawing of 360x360 pixels, and the memory only for small ones: 64 of the largest. Without it two clients that
send large bodies slowly would keep everyone out."""

RAW_TYPES = ("application/octet-stream", "application/x-www-form-urlencoded", "")
"""Content types of raw pixels: the type for any bytes, the type that curl sends by default, and none."""

FILE_TYPES = (
    "image/png", "image/jpeg", "image/bmp", "image/gif", "image/webp", "image/tiff", "application/x-npy",
)  # fmt: skip

_FULL = Status(Code.RESOURCE_EXHAUSTED, "other requests use all memory for bodies; retry later", retry_after_s=1.0)


class Memory:
    """The bytes that the requests of the HTTP API hold; owned by the API.

    Attributes:
        num_bytes: held now.
        max_bytes: most of them; beyond it a request may hold up to ``SMALL_BYTES``, in ``RESERVE_BYTES`` for all.
    """

    def __init__(self, max_bytes: int) -> None:
        self.num_bytes = 0
        self.max_bytes = max_bytes


class Share:
    """The part of the memory that one request holds, until the end of its ``with`` block."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._num_bytes = 0

    def __enter__(self) -> Self:
        """Hold nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Hold nothing any more."""
        self.hold(0)

    def hold(self, num_bytes: int) -> None:
        """Hold this number of bytes from now on.

        Raises:
            Failure: there is no room for more.
        """
        memory = self._memory
        more = num_bytes - self._num_bytes
        room = memory.max_bytes + (RESERVE_BYTES if num_bytes <= SMALL_BYTES else 0)
        if more > 0 and memory.num_bytes + more > room:
            raise Failure.of(_FULL)
        memory.num_bytes += more
        self._num_bytes = num_bytes


def check_type(request: Request, *, is_raw: bool) -> None:
    """Check the header fields that describe a body.

    Args:
        request: its header fields are read.
        is_raw: whether the query says that the body is raw pixels.

    Raises:
        Failure: the body is something else.
    """
    coding = request.headers.get("content-encoding", "identity").strip().lower()
    if coding != "identity":
        raise Failure.invalid(f"got a body with content-encoding '{coding[:50]}'; expected none", 415)
    sent = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    expected = RAW_TYPES if is_raw else (*FILE_TYPES, *RAW_TYPES)
    if sent not in expected:
        kind = " for raw pixels" if is_raw else ""
        named = ", ".join(name for name in expected if name and name != RAW_TYPES[1])
        raise Failure.invalid(f"got content-type '{sent[:100]}'; expected {named}{kind}", 415)


async def read(request: Request, share: Share, max_bytes: int, too_large: str) -> bytes:
    """Read the body of a request.

    Args:
        request: whose body it is.
        share: holds its bytes.
        max_bytes: most of them. More are not read.
        too_large: the error about more.

    Raises:
        Failure: it is empty, too large or too slow, or there is no memory for it.
    """
    refusal = Failure.of(Status(Code.RESOURCE_EXHAUSTED, too_large), 413)
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > max_bytes:
        raise refusal
    parts = []
    num_bytes = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for part in request.stream():
                num_bytes += len(part)
                if num_bytes > max_bytes:
                    raise refusal
                share.hold(num_bytes)
                parts.append(part)
    except TimeoutError:
        message = f"got {num_bytes} bytes of the body within {BODY_S:g} s; expected all of it"
        raise Failure.of(Status(Code.DEADLINE_EXCEEDED, message), 408) from None
    except ClientDisconnect:
        raise Failure.of(Status(Code.CANCELLED, "the client has closed the connection")) from None
    if not num_bytes:
        raise Failure.invalid("got an empty body; expected an image")
    return b"".join(parts)

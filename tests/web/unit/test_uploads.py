"""Bodies of requests: size, time, type and memory."""

import asyncio
from collections.abc import Iterable
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from digitserve.web import uploads
from digitserve.web.answers import Failure
from digitserve.web.uploads import RESERVE_BYTES, SMALL_BYTES, Memory, Share, check_type

MAX_BYTES = 100


def request(headers: dict[str, str], parts: Iterable[bytes] = (), *, ends: bool = True) -> Request:
    """Return a request whose body arrives in parts, and then ends or stalls."""
    waiting = list(parts)

    async def receive() -> dict[str, object]:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting) or not ends}
        if not ends:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    encoded = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "POST", "headers": encoded}, receive)


def read(one: Request, memory: Memory) -> bytes:
    async def body() -> bytes:
        with Share(memory) as share:
            return await uploads.read(one, share, MAX_BYTES, "too large")

    return asyncio.run(body())


@given(st.lists(st.binary(max_size=60), max_size=6), st.integers(50, 200))
def test_bodies_within_the_limits_are_read_and_memory_is_given_back(parts: list[bytes], room: int) -> None:
    """A body is returned in full, or refused with 400, 413 or 429; afterwards no memory is held."""
    memory = Memory(room - RESERVE_BYTES)  # these bodies are small
    num_bytes = sum(map(len, parts))
    try:
        assert read(request({}, parts), memory) == b"".join(parts)
    except Failure as failure:
        expected = {400} if not num_bytes else {413} if room >= num_bytes > MAX_BYTES else {413, 429}
        assert failure.http_status in expected
    else:
        assert 0 < num_bytes <= min(room, MAX_BYTES)
    assert memory.num_bytes == 0


def test_large_bodies_leave_room_for_small_ones() -> None:
    """When large bodies take all memory, more of them are refused, and small ones are not, up to a limit of their own."""
    memory = Memory(3 * SMALL_BYTES)
    with ExitStack() as stack:
        stack.enter_context(Share(memory)).hold(3 * SMALL_BYTES)
        with pytest.raises(Failure, match="retry later"), Share(memory) as large:
            large.hold(SMALL_BYTES + 1)
        for _ in range(RESERVE_BYTES // SMALL_BYTES):
            stack.enter_context(Share(memory)).hold(SMALL_BYTES)
        with pytest.raises(Failure, match="retry later"), Share(memory) as small:
            small.hold(1)
    assert memory.num_bytes == 0


def test_a_large_body_is_not_read() -> None:
    """A declared size over the limit is refused before anything is read."""
    one = request({"content-length": str(MAX_BYTES + 1)}, ends=False)
    with pytest.raises(Failure, match="too large") as caught:
        read(one, Memory(MAX_BYTES))
    assert caught.value.http_status == 413


def test_a_slow_body_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that stalls gets 408 with what has arrived, and its memory is free."""
    monkeypatch.setattr(uploads, "BODY_S", 0.01)
    memory = Memory(MAX_BYTES)
    with pytest.raises(Failure, match="got 4 bytes of the body within") as caught:
        read(request({}, [b"slow"], ends=False), memory)
    assert (caught.value.http_status, memory.num_bytes) == (408, 0)


@pytest.mark.parametrize(
    "sent", ["image/png", "IMAGE/JPEG; q=1", "application/octet-stream", "application/x-www-form-urlencoded", ""]
)
def test_content_types_of_images(sent: str) -> None:
    """The types of the formats, of any bytes, that of curl, and none are accepted."""
    check_type(request({"content-type": sent} if sent else {}), is_raw=False)


@pytest.mark.parametrize(
    ("headers", "is_raw"),
    [
        ({"content-type": "text/html"}, False),
        ({"content-type": "image/svg+xml"}, False),
        ({"content-type": "multipart/form-data; boundary=x"}, False),
        ({"content-type": "image/png"}, True),
        ({"content-type": "image/png", "content-encoding": "gzip"}, False),
    ],
)
def test_other_content_types_are_refused(headers: dict[str, str], is_raw: bool) -> None:
    """Other types, and compressed bodies, get 415 and what is expected."""
    with pytest.raises(Failure, match=r"got .*; expected ") as caught:
        check_type(request(headers), is_raw=is_raw)
    assert caught.value.http_status == 415

"""Calls to workers whose connections fail."""

import asyncio
import socket

import pytest

from digitserve.bench import frames
from digitserve.protocol.names import GET_MODEL
from digitserve.web.answers import Failure
from digitserve.web.worker_calls import NUM_ATTEMPTS, WorkerCalls


class Slot:
    """A slot whose worker sends some bytes on each connection, and closes it if it sends any."""

    token = ""

    def __init__(self, sends: bytes | None, *, accepts: bool = True, connects: bool = True) -> None:
        self.accepts = accepts
        self.num_connections = 0
        self._sends, self._connects = sends, connects
        self._open: list[socket.socket] = []

    def connect(self) -> socket.socket:
        self.num_connections += 1
        if not self._connects:
            raise OSError("no worker is ready")
        ours, theirs = socket.socketpair()
        self._open.append(theirs)
        if self._sends is not None:
            theirs.sendall(self._sends)
            theirs.shutdown(socket.SHUT_WR)
        return ours

    def close(self) -> None:
        for one in self._open:
            one.close()


SETTINGS = frames.frame(frames.SETTINGS, 0, 0)
REFUSED = SETTINGS + frames.frame(frames.RST_STREAM, 0, 1, frames.U32.pack(frames.REFUSED_STREAM))
GOAWAY = SETTINGS + frames.frame(frames.GOAWAY, 0, 0, frames.U32.pack(0) * 2)


def failure_of(*slots: Slot, timeout_s: float = 5.0) -> Failure:
    async def call() -> bytes:
        calls = WorkerCalls(slots)
        try:
            return await calls.call(GET_MODEL, b"", timeout_s)
        finally:
            calls.close()
            await asyncio.sleep(0)

    try:
        with pytest.raises(Failure) as caught:
            asyncio.run(call())
    finally:
        for slot in slots:
            slot.close()
    return caught.value


@pytest.mark.parametrize(
    "sends",
    [b"", SETTINGS, REFUSED, GOAWAY, b"no HTTP/2 at all"],
    ids=["nothing", "settings", "refused", "goaway", "garbage"],
)
def test_a_lost_connection_is_tried_again_a_few_times(sends: bytes) -> None:
    """A worker that ends before it has answered is replaced by another try; after a few the client is asked to retry."""
    slot = Slot(sends)
    failure = failure_of(slot)
    assert (failure.http_status, failure.headers["retry-after"]) == (503, "1")
    assert slot.num_connections == NUM_ATTEMPTS


def test_slots_that_are_not_ready_are_not_asked() -> None:
    """Without a ready worker there is no connection, and the answer is 503."""
    slot = Slot(None, accepts=False)
    assert failure_of(slot).http_status == 503
    assert slot.num_connections == 0


def test_a_slot_that_cannot_connect_counts_as_lost() -> None:
    """The kernel's limits do not cause an internal error."""
    assert failure_of(Slot(None, connects=False)).http_status == 503


def test_a_worker_that_is_silent_is_late() -> None:
    """The deadline also holds if a worker hangs."""
    assert failure_of(Slot(None), timeout_s=0.01).http_status == 504

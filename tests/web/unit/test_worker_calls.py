"""Calls to workers whose connections fail."""

import asyncio
import base64
import socket
import threading

import hpack
import pytest

from digitserve.bench import frames
from digitserve.errors import Overloaded
from digitserve.protocol.names import GET_MODEL
from digitserve.protocol.status import Status
from digitserve.web.answers import Failure
from digitserve.web.worker_calls import NUM_ATTEMPTS, WorkerCalls
from support.serving import PATIENCE_S


class Slot:
    """A slot whose worker answers the preface and the call of each connection with given bytes, and then closes it."""

    token = ""

    def __init__(self, *sends: bytes, accepts: bool = True, connects: bool = True) -> None:
        """``sends`` are sent one after another, each when something has arrived; without any the worker is silent."""
        self.accepts = accepts
        self.num_connections = 0
        self._sends, self._connects = sends, connects
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []

    def connect(self) -> socket.socket:
        self.num_connections += 1
        if not self._connects:
            raise OSError("no worker accepts")
        ours, theirs = socket.socketpair()
        self._open.append(theirs)
        if self._sends:
            self._threads.append(threading.Thread(target=self._answer, args=(theirs,)))
            self._threads[-1].start()
        return ours

    def _answer(self, connection: socket.socket) -> None:
        for sent in self._sends:
            arrived = b""
            # With the call, the acknowledgement of SETTINGS may arrive first.
            while not arrived or (sent is not self._sends[0] and frames.frame_header(0, 0, 1, 1) not in arrived):
                received = connection.recv(1 << 16)
                if not received:
                    break
                arrived += received
            connection.sendall(sent)
        connection.close()

    def close(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for one in self._open:
            one.close()


def reset(code: int) -> bytes:
    return frames.frame(frames.RST_STREAM, 0, 1, frames.U32.pack(code))


def trailers(*fields: tuple[str, str]) -> bytes:
    block = hpack.Encoder().encode([(":status", "200"), ("content-type", "application/grpc"), *fields])
    return frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, 1, block)


SETTINGS = frames.frame(frames.SETTINGS, 0, 0)
GOAWAY = frames.frame(frames.GOAWAY, 0, 0, frames.U32.pack(0) * 2)
FULL = Status.from_error(Overloaded("the queue is full", 2.5))


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


LOST = {
    "nothing": (b"",),
    "settings": (SETTINGS,),
    "no HTTP/2": (b"HTTP/1.1 400 Bad Request\r\n\r\n",),
    "goaway": (SETTINGS + GOAWAY,),
    "end": (SETTINGS, b""),
    "refused": (SETTINGS, reset(frames.REFUSED_STREAM)),
    "cancelled": (SETTINGS, reset(frames.CANCEL)),
    "goaway after the call": (SETTINGS, GOAWAY),
    "draining": (SETTINGS, trailers(("grpc-status", "14"), ("grpc-message", "draining"))),
    "OK without a message": (SETTINGS, trailers(("grpc-status", "0"))),
}


@pytest.mark.parametrize("sends", LOST.values(), ids=LOST)
def test_a_lost_call_is_tried_again_a_few_times(sends: tuple[bytes, ...]) -> None:
    """A worker that ends before it has answered is replaced by another try; after a few the client is asked to retry."""
    slot = Slot(*sends)
    failure = failure_of(slot)
    assert (failure.http_status, failure.headers["retry-after"]) == (503, "1")
    assert 1 < slot.num_connections <= NUM_ATTEMPTS  # a connection may be used again before its end is noticed


def test_an_error_is_passed_on_with_its_details() -> None:
    """Code, text and delay are those of the worker, and the call is not tried again."""
    details = base64.b64encode(FULL.details() or b"").decode().rstrip("=")
    slot = Slot(SETTINGS, trailers(("grpc-status", "8"), ("grpc-message", "?"), ("grpc-status-details-bin", details)))
    failure = failure_of(slot)
    assert (failure.http_status, str(failure), failure.headers["retry-after"]) == (429, "the queue is full", "3")
    assert slot.num_connections == 1


@pytest.mark.parametrize("details", ["", "!", "AAAA"])
def test_an_error_without_valid_details_has_code_and_text(details: str) -> None:
    """Details that cannot be read are left out."""
    fields = [("grpc-status", "3"), ("grpc-message", "a%20b")]
    slot = Slot(SETTINGS, trailers(*fields, ("grpc-status-details-bin", details)))
    failure = failure_of(slot)
    assert (failure.http_status, str(failure)) == (400, "a b")


def test_slots_that_are_not_ready_are_not_asked() -> None:
    """Without a ready worker there is no connection, and the answer is 503."""
    slot = Slot(accepts=False)
    assert failure_of(slot).http_status == 503
    assert slot.num_connections == 0


def test_a_slot_that_cannot_connect_counts_as_lost() -> None:
    """The kernel's limits do not cause an internal error."""
    assert failure_of(Slot(connects=False)).http_status == 503


@pytest.mark.parametrize("num_slots", range(1, NUM_ATTEMPTS + 1))
def test_a_lost_slot_is_asked_again_only_after_the_others(num_slots: int) -> None:
    """A worker that has ended, and is not replaced yet, does not take the attempts of a call that others could answer."""
    slots = [Slot(connects=False) for _ in range(num_slots)]
    failure_of(*slots)
    assert min(slot.num_connections for slot in slots) >= 1


def test_a_worker_that_is_silent_is_late() -> None:
    """The deadline also holds if a worker hangs."""
    assert failure_of(Slot(), timeout_s=0.01).http_status == 504

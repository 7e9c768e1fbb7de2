"""A connection driver of the load generator on a real socket, with frames that arrive in one read."""

import select
import socket
import time
from collections.abc import Iterator
from itertools import repeat

import hpack
import pytest

from digitserve.bench import frames, wire
from digitserve.bench.counts import Recorder
from digitserve.bench.driver import ConnectionDriver, Context
from digitserve.bench.streaming import StreamDriver
from digitserve.bench.traffic import EncodedRequest
from support.serving import PATIENCE_S

STREAM_ID = 1
"""Id of a connection's first stream."""

TRAILERS = frames.frame(
    frames.HEADERS,
    frames.END_HEADERS | frames.END_STREAM,
    STREAM_ID,
    hpack.Encoder().encode([(":status", "200"), ("grpc-status", "14"), ("grpc-message", "draining")]),
)


def goaway(last_stream_id: int) -> bytes:
    return frames.frame(frames.GOAWAY, 0, 0, frames.U32.pack(last_stream_id) + frames.U32.pack(frames.NO_ERROR))


class StreamConnection:
    """A stream driver, and the service's end of its connection."""

    def __init__(self, listener: socket.socket, epoll: select.epoll) -> None:
        self.recorder = Recorder()
        self.recorder.set_window(0.0, 1.0)
        self.released: list[ConnectionDriver] = []
        context = Context(
            repeat((socket.AF_INET, listener.getsockname())), [(":path", "/x")], repeat(EncodedRequest(wire.add_prefix(b"x"), 1)),
            self.recorder, epoll, time.monotonic,
        )  # fmt: skip
        self._epoll = epoll
        self.driver = StreamDriver(context, self.released.append)
        self.driver.connect()
        self.service, _ = listener.accept()
        self.receive(frames.frame(frames.SETTINGS, 0, 0))

    def receive(self, sent: bytes) -> None:
        """Send bytes from the service, and let the driver read all of them at once."""
        self.service.sendall(sent)
        mask = 0
        while not mask & select.EPOLLIN:
            self.driver.flush()
            ((_, mask),) = self._epoll.poll(PATIENCE_S)
        self.driver.on_event(mask)
        self.driver.flush()


@pytest.fixture
def stream() -> Iterator[StreamConnection]:
    with socket.create_server(("127.0.0.1", 0)) as listener, select.epoll() as epoll:
        made = StreamConnection(listener, epoll)
        yield made
        made.driver.close()
        made.service.close()


@pytest.mark.parametrize(
    "received",
    [goaway(STREAM_ID) + TRAILERS, TRAILERS + goaway(STREAM_ID), goaway(0)],
    ids=["GOAWAY before the trailers", "GOAWAY after the trailers", "stream not processed"],
)
def test_goaway_and_the_end_of_the_stream_in_one_read(stream: StreamConnection, received: bytes) -> None:
    """If a service sends GOAWAY and ends the stream at once, the requests on it get its status code and nothing else: each
    slot is returned, and the driver closes the connection.
    """
    assert stream.driver.prepare_to_send()
    for _ in range(3):
        stream.driver.send_request(0.5)
    stream.receive(received)

    assert stream.recorder.take().codes == {"Unavailable": 3}
    assert (stream.driver.num_in_flight, len(stream.released)) == (0, 3)
    assert not stream.driver.connected


def test_goaway_half_closes_the_stream(stream: StreamConnection) -> None:
    """After GOAWAY the driver half-closes its stream, and still waits for the answers."""
    assert stream.driver.prepare_to_send()
    stream.driver.send_request(0.5)
    stream.receive(goaway(STREAM_ID))
    half_close = frames.frame_header(0, frames.DATA, frames.END_STREAM, STREAM_ID)
    seen = b""
    stream.service.settimeout(PATIENCE_S)
    while not seen.endswith(half_close):
        seen += stream.service.recv(1 << 16)

    assert stream.driver.num_in_flight == 1
    assert not stream.driver.prepare_to_send()

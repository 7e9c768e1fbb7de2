"""A lane of the load generator on a real socket, whose other end says what a service may, in one read."""

import select
import socket
import time
from collections.abc import Iterator
from itertools import repeat

import hpack
import pytest

from digitserve.bench import frames, wire
from digitserve.bench.counts import Tally
from digitserve.bench.lanes import Context, Lane
from digitserve.bench.streaming import StreamLane
from digitserve.bench.traffic import Body
from support.serving import PATIENCE_S

STREAM = 1
"""The number of a connection's first stream."""

TRAILERS = frames.frame(
    frames.HEADERS,
    frames.END_HEADERS | frames.END_STREAM,
    STREAM,
    hpack.Encoder().encode([(":status", "200"), ("grpc-status", "14"), ("grpc-message", "draining")]),
)


def goaway(last_stream: int) -> bytes:
    return frames.frame(frames.GOAWAY, 0, 0, frames.WORD.pack(last_stream) + frames.WORD.pack(frames.NO_ERROR))


class Wire:
    """A streaming lane, and the service's end of its connection."""

    def __init__(self, listener: socket.socket, epoll: select.epoll) -> None:
        self.tally = Tally()
        self.tally.measure(0.0, 1.0)
        self.released: list[Lane] = []
        context = Context(
            socket.AF_INET, listener.getsockname(), [(":path", "/x")], repeat(Body(wire.frame(b"x"), 1)), self.tally, epoll,
            time.monotonic,
        )  # fmt: skip
        self._epoll = epoll
        self.lane = StreamLane(context, self.released.append)
        self.lane.connect()
        self.service, _ = listener.accept()
        self.say(frames.frame(frames.SETTINGS, 0, 0))

    def say(self, what: bytes) -> None:
        """Let the service say something, and the lane read it, all at once."""
        self.service.sendall(what)
        mask = 0
        while not mask & select.EPOLLIN:
            self.lane.flush()
            ((_, mask),) = self._epoll.poll(PATIENCE_S)
        self.lane.on_event(mask)
        self.lane.flush()


@pytest.fixture
def line() -> Iterator[Wire]:
    with socket.create_server(("127.0.0.1", 0)) as listener, select.epoll() as epoll:
        made = Wire(listener, epoll)
        yield made
        made.lane.close()
        made.service.close()


@pytest.mark.parametrize(
    "said",
    [goaway(STREAM) + TRAILERS, TRAILERS + goaway(STREAM), goaway(0)],
    ids=["then its end", "after its end", "stream not taken"],
)
def test_goaway_and_the_end_of_the_stream_in_one_read(line: Wire, said: bytes) -> None:
    """A service that leaves and ends the stream at once costs the requests on it, by the code it gave, and no more: each
    gives its slot back, and the lane leaves the connection.
    """
    assert line.lane.can_issue()
    for _ in range(3):
        line.lane.issue(0.5)
    line.say(said)

    assert line.tally.take().codes == {"Unavailable": 3}
    assert (line.lane.num_in_flight, len(line.released)) == (0, 3)
    assert not line.lane.connected


def test_goaway_alone_ends_the_lanes_side_of_the_stream(line: Wire) -> None:
    """A service that leaves but still answers hears that nothing more comes on the stream."""
    assert line.lane.can_issue()
    line.lane.issue(0.5)
    line.say(goaway(STREAM))
    half_close = frames.head(0, frames.DATA, frames.END_STREAM, STREAM)
    seen = b""
    line.service.settimeout(PATIENCE_S)
    while not seen.endswith(half_close):
        seen += line.service.recv(1 << 16)

    assert line.lane.num_in_flight == 1
    assert not line.lane.can_issue()

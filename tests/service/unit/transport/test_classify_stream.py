"""The handler of streams with a fake stream and a fake pipeline: answers in any order, time passed in."""

from typing import Any

import numpy as np
import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from digitserve.errors import Overloaded
from digitserve.protocol.codec import Limits
from digitserve.protocol.names import CLASSIFY_STREAM, Code
from digitserve.telemetry.block import METHODS, REASONS, Block
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.classify_stream import MAX_KEPT, WINDOW_BATCHES, ClassifyStreamHandler, StreamState
from digitserve.types import Source
from digitserve.v1 import digits_pb2 as pb
from support.server_stream import FakeStream

LABELS = tuple("0123456789")
LIMITS = Limits(model_version="1", max_side=4096, max_images=4096, max_request_bytes=1 << 24)
MAX_BATCH_SIZE = 64
WINDOW_IMAGES = WINDOW_BATCHES * MAX_BATCH_SIZE


class FakePipeline:
    """Keeps what is admitted until a test answers it."""

    def __init__(self) -> None:
        self.admitted: list[tuple[Any, Any]] = []
        self.cancelled: list[Any] = []
        self.half_full = False
        self.half_full_for: list[Source] = []
        self.full = self.full_for_large = False
        self.held_bytes, self.max_held_bytes = 0, 1 << 30

    def admit(self, responder: Any, request: Any, *, patient: bool) -> object:
        assert patient
        if self.full or (self.full_for_large and self.is_large(request)):
            raise Overloaded("full", 0.5)
        self.admitted.append((responder, request))
        return responder

    def hold(self, request: Any) -> None:
        if self.held_bytes + len(request.pixels) > self.max_held_bytes:
            raise Overloaded("full", 0.5)
        self.held_bytes += len(request.pixels)

    def release(self, request: Any) -> None:
        self.held_bytes -= len(request.pixels)

    def is_large(self, request: Any) -> bool:
        return bool(request.num_images > MAX_BATCH_SIZE)

    def cancel(self, pending: object) -> None:
        self.cancelled.append(pending)

    def is_half_full(self, source: Source) -> bool:
        return self.half_full or source in self.half_full_for


class Connection:
    """A handler with one fake stream."""

    def __init__(self) -> None:
        self.pipeline = FakePipeline()
        self.block = Block(LABELS)
        recorder = Recorder(self.block, LABELS)
        self.handler = ClassifyStreamHandler(
            self.pipeline, LIMITS, WINDOW_BATCHES * MAX_BATCH_SIZE, recorder, clock=lambda: 1.0
        )  # type: ignore[arg-type]
        self.stream = FakeStream()
        self.handler.on_accept(self.stream)

    def send(self, num_images: int, marker: int) -> None:
        """Deliver a message whose first pixel is a marker."""
        pixels = np.zeros(784 * num_images, np.uint8)
        pixels[0] = marker
        request = pb.ClassifyStreamRequest(request=pb.ClassifyRequest(pixels=pixels.tobytes()))
        self.handler.on_message(self.stream, request.SerializeToString())

    def answer(self, index: int) -> None:
        """Answer one of the admitted requests with its marker."""
        responder, request = self.pipeline.admitted.pop(index)
        responder.reply(pb.ClassifyResponse(model_version=str(request.pixels[0])).SerializeToString())

    def confirm(self) -> None:
        """Confirm that one written message is sent."""
        self.stream.num_sent += 1
        self.handler.on_written(self.stream)

    def markers(self) -> list[int]:
        """Return the markers of the written answers."""
        return [int(pb.ClassifyStreamResponse.FromString(body).response.model_version) for body in self.stream.written]

    @property
    def state(self) -> StreamState:
        return self.stream.context


@given(st.data(), st.integers(1, 40))
def test_answers_are_in_order_and_the_window_holds_for_any_schedule(given_data: st.DataObject, steps: int) -> None:
    """For messages of any size, answered in any order and sent at any time: answers are in order, at most one read is
    outstanding, and at most the window and one message are in flight.
    """
    connection, sent = Connection(), 0
    stream, state, pipeline = connection.stream, connection.state, connection.pipeline
    for _ in range(steps):
        choices = ["read"] * state.reading + ["answer"] * bool(pipeline.admitted)
        choices += ["confirm"] * (stream.num_sent < len(stream.written))
        match given_data.draw(st.sampled_from(choices)) if choices else "nothing":
            case "read":
                assert state.num_images < WINDOW_IMAGES
                connection.send(given_data.draw(st.integers(1, 200)), sent)
                sent += 1
            case "answer":
                connection.answer(given_data.draw(st.integers(0, len(pipeline.admitted) - 1)))
            case "confirm":
                connection.confirm()
        connection.handler.flush()
        assert connection.markers() == list(range(len(stream.written)))
        assert stream.reads == sent + state.reading
        assert state.num_images < WINDOW_IMAGES + 200
        assert connection.handler.images_in_flight == [state.num_images]
    while pipeline.admitted:
        connection.answer(-1)
    connection.handler.on_end(stream)
    connection.handler.flush()
    while stream.num_sent < len(stream.written):
        assert connection.handler.has_unsent_answers()
        connection.confirm()

    assert connection.markers() == list(range(sent))
    assert stream.status == (Code.OK, "", None)
    assert not connection.handler.has_unsent_answers()


def test_nothing_is_read_while_the_queue_is_half_full() -> None:
    """A stream is paused while half of the queue's limit is used, and is read once afterwards."""
    connection = Connection()
    connection.pipeline.half_full = True
    for marker in range(2):
        if connection.state.reading:
            connection.send(1, marker)
    assert (connection.stream.reads, connection.state.reading) == (1, False)
    connection.answer(0)
    connection.handler.flush()
    connection.confirm()
    connection.handler.flush()
    assert connection.stream.reads == 1

    connection.pipeline.half_full = False
    connection.handler.flush()

    assert connection.stream.reads == 2


def test_paused_streams_of_a_flood_do_not_hold_up_others() -> None:
    """Streams of a connection that uses its part of the queue stay paused; those of others behind them are read."""
    connection = Connection()
    pipeline, handler = connection.pipeline, connection.handler
    pipeline.half_full = True
    flood = Source()
    streams = [FakeStream() for _ in range(MAX_KEPT + 1)]
    for stream in streams:
        stream.source = flood
        handler.on_accept(stream)
    other = FakeStream()
    handler.on_accept(other)
    pipeline.half_full, pipeline.half_full_for = False, [flood]
    for _ in range(2):
        handler.flush()

    assert other.reads == 1
    assert not any(stream.reads for stream in streams)
    pipeline.half_full_for = []
    handler.flush()
    assert all(stream.reads == 1 for stream in streams)


def test_a_message_that_finds_no_room_is_held_until_there_is_room() -> None:
    """A message that finds the queue full waits for room in the order of arrival, and nothing more is read meanwhile."""
    connection = Connection()
    connection.send(1, 7)
    connection.pipeline.full = True
    connection.send(1, 8)
    connection.answer(0)
    connection.handler.flush()
    assert connection.markers() == [7]
    assert (connection.state.reading, connection.handler.has_unsent_answers()) == (False, True)

    connection.pipeline.full = False
    connection.handler.flush()
    connection.answer(0)
    connection.handler.flush()

    assert connection.markers() == [7, 8]
    assert connection.state.reading


def body(num_images: int) -> bytes:
    """Serialize a message."""
    request = pb.ClassifyRequest(pixels=bytes(784 * num_images))
    return pb.ClassifyStreamRequest(request=request).SerializeToString()


def test_a_held_large_message_delays_no_small_ones() -> None:
    """While a large message waits for room in its queue, small ones of other streams are admitted and read; a second large
    one waits behind it.
    """
    connection = Connection()
    handler, pipeline = connection.handler, connection.pipeline
    pipeline.full_for_large = True
    connection.send(100, 1)
    second, small = FakeStream(), FakeStream()
    for stream in (second, small):
        handler.on_accept(stream)
    handler.on_message(second, body(99))
    handler.on_message(small, body(1))
    handler.flush()
    assert [request.num_images for _, request in pipeline.admitted] == [1]
    assert small.reads == 2
    pipeline.full_for_large = False
    handler.flush()
    assert [request.num_images for _, request in pipeline.admitted] == [1, 100, 99]


def test_what_is_held_is_limited_in_bytes() -> None:
    """Messages beyond the limit are rejected with a time to retry, in their place; what was admitted makes room again."""
    connection = Connection()
    handler, pipeline = connection.handler, connection.pipeline
    pipeline.full = True
    large = body(4096)
    num_held = 3
    pipeline.max_held_bytes = num_held * 4096 * 784
    streams = [FakeStream() for _ in range(num_held + 1)]
    for stream in streams:
        handler.on_accept(stream)
        handler.on_message(stream, large)
    handler.flush()
    assert [len(stream.written) for stream in streams] == [0] * num_held + [1]
    error = pb.ClassifyStreamResponse.FromString(streams[-1].written[0]).error
    assert error.code == Code.RESOURCE_EXHAUSTED and error.details
    pipeline.full = False
    handler.flush()
    pipeline.full = True
    late = FakeStream()
    handler.on_accept(late)
    handler.on_message(late, large)
    handler.flush()
    assert late.written == [] and pipeline.held_bytes == 4096 * 784


def test_a_held_message_of_a_closed_stream_is_dropped() -> None:
    """When a stream closes, its held message is dropped and does not block those behind it."""
    connection = Connection()
    connection.pipeline.full = True
    connection.send(1, 1)
    connection.stream.open = False
    connection.handler.on_close(connection.stream, cancelled=True)
    connection.pipeline.full = False
    connection.handler.flush()

    assert connection.pipeline.admitted == []
    assert not connection.handler.has_unsent_answers()
    assert connection.handler.images_in_flight == []


def test_a_rejected_message_is_answered_in_its_place() -> None:
    """A message that is rejected for good gets its error after earlier answers."""
    connection = Connection()
    connection.send(1, 7)
    connection.handler.on_message(connection.stream, b"\xff\xff")
    connection.handler.flush()
    assert connection.stream.written == []

    connection.answer(0)
    connection.handler.flush()

    first, second = (pb.ClassifyStreamResponse.FromString(body) for body in connection.stream.written)
    assert first.response.model_version == "7"
    assert second.error.code == Code.INVALID_ARGUMENT
    assert isinstance(second.error, status_pb2.Status)


@pytest.mark.parametrize(
    ("ends", "cancelled", "code"),
    [(True, False, Code.OK), (True, True, Code.CANCELLED), (False, True, Code.CANCELLED)],
)
def test_a_stream_is_recorded_once_with_the_status_that_its_caller_saw(ends: bool, cancelled: bool, code: Code) -> None:
    """A stream that ended counts as OK; one that was cancelled at its end or before counts as cancelled."""
    connection = Connection()
    if ends:
        connection.handler.on_end(connection.stream)
    else:
        connection.send(1, 0)
    connection.stream.open = False
    connection.handler.on_close(connection.stream, cancelled=cancelled)

    handled = connection.block.cells["grpc_server_handled"].reshape(len(METHODS), len(Code))
    assert handled[METHODS.index(CLASSIFY_STREAM)].tolist() == [float(one is code) for one in Code]
    messages = connection.block.cells["digitserve_stream_messages"][:, 0]
    assert messages.tolist() == [float(one is code and not ends) for one in Code]
    assert len(connection.pipeline.cancelled) == (not ends)
    assert not connection.handler.has_unsent_answers()


def test_draining_sends_answers_before_the_status() -> None:
    """A drain reads no further message, sends the answers that are left, and then UNAVAILABLE; new streams get it at
    once.
    """
    connection = Connection()
    connection.send(1, 5)
    connection.handler.drain()
    assert connection.stream.status is None
    connection.answer(0)
    connection.handler.flush()
    connection.confirm()

    assert connection.markers() == [5]
    assert connection.stream.status is not None
    assert connection.stream.status.code is Code.UNAVAILABLE
    late = FakeStream()
    connection.handler.on_accept(late)
    assert late.status is not None
    assert (late.status.code, late.reads) == (Code.UNAVAILABLE, 0)


@pytest.mark.parametrize(("deadline", "num_rejected"), [(1.0, 2), (2e18, 0)])
def test_messages_without_an_answer_count_as_late_if_the_deadline_has_passed(
    deadline: float, num_rejected: int
) -> None:
    """A stream that ends after its deadline adds each message that it did not answer; a cancelled one adds none."""
    connection = Connection()
    connection.stream.deadline = deadline
    for marker in range(3):
        connection.send(1, marker)
    connection.answer(1)
    connection.handler.on_close(connection.stream, cancelled=True)

    assert connection.block.cells["digitserve_rejected"][REASONS.index("deadline"), 0] == num_rejected
    assert connection.block.cells["digitserve_rejected"].sum() == num_rejected

"""Images in flight on a stream, without a socket."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.client import Closed, InvalidRequest, RequestRejected, Unreachable
from digitserve.client.blocking_stream import BlockingStream
from digitserve.client.pool import Deadline, Pool
from digitserve.client.predictions import Prediction
from digitserve.client.requests import Classifier, request_options
from digitserve.client.stream_window import (
    MAX_STREAM_BYTES,
    StreamInterrupted,
    StreamWindow,
    resume_delay_s,
    to_item,
    to_outcome,
)
from digitserve.v1 import digits_pb2 as pb

KIND = Classifier(request_options(0, None, None))


@given(
    steps=st.lists(st.sampled_from(["add", "add invalid", "send", "answer", "resume"]), max_size=120),
    max_images=st.integers(1, 9),
)
def test_every_valid_image_is_sent_until_it_is_answered(steps: list[str], max_images: int) -> None:
    """In any order of events, a stream sends the valid images from its head on, once each, and a new stream begins again
    at the head; no more than ``max_images`` are in flight.
    """
    window = StreamWindow(max_images)
    num_added, position, sent, answered = 0, -1, [], 0
    for step in steps:
        if step.startswith("add") and window.has_room:
            window.add(to_item(num_added, np.zeros((2, 2), np.uint8) if step == "add" else "text", KIND))
            num_added += 1
        elif step == "send" and (item := window.next_after(position)) is not None:
            assert item.message is not None
            assert item.index > position and item.index not in sent
            sent.append(item.index)
            position = item.index
        elif step == "answer" and window.head is not None:
            assert window.head.index == answered
            window.pop()
            answered += 1
        elif step == "resume":
            position, sent = -1, []
        assert num_added - answered <= max_images
    first = window.next_after(-1)
    assert first is None or first.index >= answered


def test_the_bytes_in_flight_are_bounded() -> None:
    """Large images fill the window before their number does; the window has room again when they are answered."""
    window = StreamWindow(1000)
    window.add(
        to_item(0, np.zeros((4096, 4096, 4), np.uint8), Classifier(request_options(0, None, None), max_side=None))
    )
    assert MAX_STREAM_BYTES == 4096 * 4096 * 4
    assert not window.has_room
    window.pop()
    assert window.has_room


def test_an_invalid_image_keeps_its_place() -> None:
    """An invalid image is not sent; its error is in its place, with its position."""
    item = to_item(7, np.zeros((2, 2)), KIND)
    assert item.message is None
    assert isinstance(item.error, InvalidRequest)
    assert item.error.index == 7


def test_a_large_image_is_reduced_before_it_is_sent() -> None:
    """What waits in the window and is sent is the reduced image; boxes of its answer are in pixels of the original."""
    kind = Classifier(request_options(0, None, None, explain=True), max_side=20)
    item = to_item(0, np.full((30, 41, 3), 7, np.uint8), kind)
    assert item.message is not None
    assert (item.message.request.height, item.message.request.width) == (10, 14)
    assert item.message.request.pixels == bytes([7]) * (10 * 14 * 3)
    assert item.num_bytes == 10 * 14 * 3
    answer = pb.ClassifyStreamResponse()
    answer.response.predictions.add().preparation.box.CopyFrom(pb.Box(top=1, bottom=10, left=2, right=14))
    prediction = to_outcome(item, answer, kind)
    assert isinstance(prediction, Prediction) and prediction.preparation is not None
    assert prediction.preparation.box == (3, 30, 6, 41)


def test_an_answer_of_a_draining_worker_interrupts_the_stream() -> None:
    """UNAVAILABLE in place of an answer, and an end without an answer, mean that the image is sent again; other errors are
    its outcome.
    """
    item = to_item(3, np.zeros((2, 2), np.uint8), KIND)
    draining, invalid = pb.ClassifyStreamResponse(), pb.ClassifyStreamResponse()
    draining.error.code, invalid.error.code = 14, 3
    for message in (draining, None):
        with pytest.raises(StreamInterrupted):
            to_outcome(item, message, KIND)
    outcome = to_outcome(item, invalid, KIND)
    assert isinstance(outcome, RequestRejected) and outcome.index == 3


def test_the_delay_before_a_new_stream_grows_up_to_the_deadline() -> None:
    """10 ms after the first failure, at most 1 s later; beyond the deadline the stream's error is raised."""
    error = Unreachable("gone")
    assert 0 < resume_delay_s(1, Deadline(60), error) <= 0.01
    assert 0.5 <= resume_delay_s(50, Deadline(60), error) <= 1
    with pytest.raises(Unreachable, match="gone"):
        resume_delay_s(1, Deadline(0), error)


class Call:
    """A stream that answers each image with its first pixel."""

    def __init__(self, messages: Iterator[pb.ClassifyStreamRequest], **_: Any) -> None:
        self._messages = messages

    def __iter__(self) -> "Call":
        return self

    def __next__(self) -> pb.ClassifyStreamResponse:
        prediction = pb.Prediction(class_index=next(self._messages).request.pixels[0])
        return pb.ClassifyStreamResponse(response=pb.ClassifyResponse(predictions=[prediction]))

    def cancel(self) -> None:
        """Nothing runs."""


@pytest.mark.parametrize("num_read", [1, 5])
def test_a_finished_stream_returns_its_connection(num_read: int) -> None:
    """Whether a stream is exhausted or left early, its connection is free for other calls again."""
    connections = [
        SimpleNamespace(number=number, streams=SimpleNamespace(ClassifyStream=Call), metadata=lambda: None)
        for number in range(2)
    ]
    pool: Pool[Any] = Pool(connections)
    images = [np.full((2, 2), n, np.uint8) for n in range(5)]
    outcomes = BlockingStream(images, KIND, StreamWindow(2), pool, 60.0).outcomes(return_exceptions=False)
    assert [next(outcomes).class_index for _ in range(num_read)] == list(range(num_read))  # type: ignore[union-attr]
    assert num_read < 5 or next(outcomes, None) is None
    outcomes.close()

    used = []
    for _ in range(4):
        with pool.borrow() as connection:
            used.append(connection.number)
    assert used == [1, 0, 1, 0]
    pool.close()
    with pytest.raises(Closed), pool.borrow():
        pass

"""Streams as plain objects: a fake stream in place of gRPC's, answers in any order, time and chance passed in."""

from typing import Any

import numpy as np
import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from digitserve.errors import Overloaded
from digitserve.protocol.codec import Limits
from digitserve.telemetry.block import CODES, STREAM_ROW, Block, Tally
from digitserve.transport.classify_stream import WINDOW_BATCHES, ClassifyStreamTaker
from digitserve.v1 import digits_pb2 as pb

LABELS = tuple("0123456789")
LIMITS = Limits(model_version="1", max_side=4096, max_images=4096, max_request_bytes=1 << 24)
MAX_BATCH_SIZE = 64
WINDOW_IMAGES = WINDOW_BATCHES * MAX_BATCH_SIZE
NEVER = 1e19


class FakeStream:
    """Behaves as ``completion_queue.Stream`` does, sends into a list, and confirms a write when told to."""

    def __init__(self) -> None:
        self.deadline, self.accepted, self.open = NEVER, 0.0, True
        self.context: Any = None
        self.reads = 0
        self.written: list[bytes] = []
        self.num_sent = 0
        self.status: tuple[int, str] | None = None

    def read(self) -> None:
        self.reads += 1

    def write(self, body: bytes) -> None:
        assert self.open
        self.written.append(body)

    def flush(self) -> None:
        """Sending is confirmed by the test."""

    def finish(self, code: int, message: str = "", details: bytes | None = None) -> None:
        assert self.num_sent == len(self.written), "the status must come last"
        self.open, self.status = False, (code, message)


class FakeClassifier:
    """Keeps what is admitted until a test answers it."""

    def __init__(self) -> None:
        self.admitted: list[tuple[Any, Any]] = []
        self.cancelled: list[Any] = []
        self.is_crowded = False
        self.is_full = False

    def admit(self, asker: Any, asking: Any, request: Any) -> object:
        if self.is_full:
            raise Overloaded("full", 0.5)
        self.admitted.append((asking, request))
        return asking

    def cancel(self, entry: object) -> None:
        self.cancelled.append(entry)

    def crowded(self) -> bool:
        return self.is_crowded


class Talk:
    """A taker with one fake stream."""

    def __init__(self) -> None:
        self.classifier = FakeClassifier()
        block = Block(LABELS)
        self.tally = Tally(block, LABELS)
        self.taker = ClassifyStreamTaker(self.classifier, LIMITS, MAX_BATCH_SIZE, self.tally, clock=lambda: 1.0)  # type: ignore[arg-type]
        self.stream = FakeStream()
        self.taker.on_accept(self.stream)  # type: ignore[arg-type]

    def send(self, num_images: int, marker: int) -> None:
        """Deliver a message whose first pixel is a marker."""
        pixels = np.zeros(784 * num_images, np.uint8)
        pixels[0] = marker
        request = pb.ClassifyStreamRequest(request=pb.ClassifyRequest(pixels=pixels.tobytes()))
        self.taker.on_message(self.stream, request.SerializeToString())  # type: ignore[arg-type]

    def answer(self, place: int) -> None:
        """Answer one of the admitted requests by its marker."""
        slot, request = self.classifier.admitted.pop(place)
        self.taker.reply(slot, pb.ClassifyResponse(model_version=str(request.pixels[0])).SerializeToString())

    def confirm(self) -> None:
        """Confirm that one written message is sent."""
        self.stream.num_sent += 1
        self.taker.on_written(self.stream)  # type: ignore[arg-type]

    def markers(self) -> list[int]:
        """Return the markers of what was written."""
        return [int(pb.ClassifyStreamResponse.FromString(body).response.model_version) for body in self.stream.written]

    @property
    def conversation(self) -> Any:
        return self.stream.context


@given(st.data(), st.integers(1, 40))
def test_whatever_happens_when_answers_are_in_order_and_the_window_holds(given_data: st.DataObject, steps: int) -> None:
    """Messages of any size, answered in any order and sent at any time: answers are in order, one message is asked for at
    a time, and never more than the window and one message are on the way.
    """
    talk, sent = Talk(), 0
    for _ in range(steps):
        choices = ["read"] * talk.conversation.reading + ["answer"] * bool(talk.classifier.admitted)
        choices += ["confirm"] * (talk.stream.num_sent < len(talk.stream.written))
        match given_data.draw(st.sampled_from(choices)) if choices else "nothing":
            case "read":
                assert talk.conversation.num_images < WINDOW_IMAGES
                talk.send(given_data.draw(st.integers(1, 200)), sent)
                sent += 1
            case "answer":
                talk.answer(given_data.draw(st.integers(0, len(talk.classifier.admitted) - 1)))
            case "confirm":
                talk.confirm()
        talk.taker.flush()
        assert talk.markers() == list(range(len(talk.stream.written)))
        assert talk.stream.reads == sent + talk.conversation.reading
        assert talk.conversation.num_images < WINDOW_IMAGES + 200
    while talk.classifier.admitted:
        talk.answer(-1)
    talk.taker.on_end(talk.stream)  # type: ignore[arg-type]
    talk.taker.flush()
    while talk.stream.num_sent < len(talk.stream.written):
        assert talk.taker.owes()
        talk.confirm()

    assert talk.markers() == list(range(sent))
    assert talk.stream.status == (0, "")
    assert not talk.taker.owes()


def test_nothing_is_read_while_it_is_crowded() -> None:
    """A stream waits while half of what may wait does, once however often it is asked, and goes on afterwards."""
    talk = Talk()
    talk.classifier.is_crowded = True
    for marker in range(2):
        if talk.conversation.reading:
            talk.send(1, marker)
    assert (talk.stream.reads, talk.conversation.reading) == (1, False)
    talk.answer(0)
    talk.taker.flush()
    talk.confirm()
    talk.taker.flush()
    assert talk.stream.reads == 1

    talk.classifier.is_crowded = False
    talk.taker.flush()

    assert talk.stream.reads == 2


def test_what_finds_no_room_is_held_until_there_is() -> None:
    """A message that finds the queue full waits for room in the order of its coming, and nothing more is read meanwhile."""
    talk = Talk()
    talk.send(1, 7)
    talk.classifier.is_full = True
    talk.send(1, 8)
    talk.answer(0)
    talk.taker.flush()
    assert talk.markers() == [7]
    assert (talk.conversation.reading, talk.taker.owes()) == (False, True)

    talk.classifier.is_full = False
    talk.taker.flush()
    talk.answer(0)
    talk.taker.flush()

    assert talk.markers() == [7, 8]
    assert talk.conversation.reading


def test_what_is_held_of_a_stream_that_is_over_is_dropped() -> None:
    """A client that goes away takes its held message with it; the next one has its turn."""
    talk = Talk()
    talk.classifier.is_full = True
    talk.send(1, 1)
    talk.stream.open = False
    talk.taker.on_close(talk.stream, cancelled=True)  # type: ignore[arg-type]
    talk.classifier.is_full = False
    talk.taker.flush()

    assert talk.classifier.admitted == []
    assert not talk.taker.owes()


def test_what_can_never_be_admitted_is_told_in_its_place() -> None:
    """A message that is refused for good gets its error behind earlier answers."""
    talk = Talk()
    talk.send(1, 7)
    talk.taker.on_message(talk.stream, b"\xff\xff")  # type: ignore[arg-type]
    talk.taker.flush()
    assert talk.stream.written == []

    talk.answer(0)
    talk.taker.flush()

    first, second = (pb.ClassifyStreamResponse.FromString(body) for body in talk.stream.written)
    assert first.response.model_version == "7"
    assert second.error.code == CODES.index("InvalidArgument")
    assert isinstance(second.error, status_pb2.Status)


@pytest.mark.parametrize(
    ("ends", "cancelled", "code"), [(True, False, "OK"), (True, True, "Canceled"), (False, True, "Canceled")]
)
def test_a_stream_is_counted_once_as_what_its_caller_saw(ends: bool, cancelled: bool, code: str) -> None:
    """A stream that ended counts as OK; one whose end was a cancellation, and one that broke off, as cancelled."""
    talk = Talk()
    if ends:
        talk.taker.on_end(talk.stream)  # type: ignore[arg-type]
    else:
        talk.send(1, 0)
    talk.stream.open = False
    talk.taker.on_close(talk.stream, cancelled=cancelled)  # type: ignore[arg-type]

    assert talk.tally.handled[STREAM_ROW].tolist() == [float(name == code) for name in CODES]
    assert len(talk.classifier.cancelled) == (not ends)
    assert not talk.taker.owes()


def test_draining_lets_answers_out_before_the_status() -> None:
    """A drain asks for no further message, sends what is owed, and then says UNAVAILABLE; new streams hear it at once."""
    talk = Talk()
    talk.send(1, 5)
    talk.taker.drain()
    assert talk.stream.status is None
    talk.answer(0)
    talk.taker.flush()
    talk.confirm()

    assert talk.markers() == [5]
    assert talk.stream.status is not None
    assert talk.stream.status[0] == CODES.index("Unavailable")
    late = FakeStream()
    talk.taker.on_accept(late)  # type: ignore[arg-type]
    assert late.status is not None
    assert (late.status[0], late.reads) == (CODES.index("Unavailable"), 0)

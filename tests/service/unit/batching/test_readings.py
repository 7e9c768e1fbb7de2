"""The promises of readings: time is passed in, and the network's output encodes its input."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.batching.batcher import Batcher
from digitserve.batching.pending import PendingRequest
from digitserve.batching.pipeline import Pipeline
from digitserve.batching.reading_queue import MAX_LARGE_STARTED, MAX_SMALL_STARTED, SMALL_PIXELS
from digitserve.batching.readings import STEPS_S, Readings
from digitserve.batching.stepwise import StepReader, Steps
from digitserve.errors import DeadlineUnmeetable, Draining, InvalidRequest, Overloaded, RequestError, Unsupported
from digitserve.inference.session import Outputs
from digitserve.protocol.codec import Limits, decode
from digitserve.protocol.names import CLASSIFY, READ
from digitserve.protocol.read_codec import ReadRequest, decode_read
from digitserve.protocol.read_encoder import ReadEncoder
from digitserve.protocol.readings import Reading, ReadOptions
from digitserve.telemetry.block import METHODS, Block
from digitserve.telemetry.recorder import Recorder
from digitserve.types import Gray, Source
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_request
from support.column_reader import ColumnReader, echo_row
from support.log_lines import capture_logs
from support.responder import BUNDLE, LABELS

LIMITS = Limits("1", 4096, 4096, 1 << 24)
STEP_S = 0.010


class Caller:
    """What waits for an answer: keeps it, or the error."""

    metadata = ()
    peer = None

    def __init__(self, source: Source | None = None, deadline: float = 1e19, completes: Any = READ) -> None:
        self.source = source or Source()
        self.accepted = 0.0
        self.deadline = deadline
        self.completes = completes
        self.answers: list[bytes | RequestError | str] = []

    @property
    def open(self) -> bool:
        return not self.answers

    @property
    def caller(self) -> "Caller":
        return self

    def reply(self, body: bytes) -> None:
        self.answers.append(body)

    def reject(self, error: RequestError) -> None:
        self.answers.append(error)

    def fail(self) -> None:
        self.answers.append("failed")

    @property
    def text(self) -> str:
        """The text of the answer."""
        (answer,) = self.answers
        assert isinstance(answer, bytes)
        (line,) = pb.ReadResponse.FromString(answer).lines
        return line.text

    @property
    def error(self) -> RequestError:
        """The error."""
        (answer,) = self.answers
        assert isinstance(answer, RequestError)
        return answer


class Bench:
    """A worker without sockets: its steps take ``STEP_S``, its network no time."""

    def __init__(self, reader: StepReader | None = None, *, max_readings: int = 100, max_bytes: int = 1 << 24) -> None:
        self.now = 100.0
        self.order: list[str] = []
        self.reader = reader or ColumnReader(on_step=self.on_step)
        self.block = Block(LABELS)
        recorder = Recorder(self.block, LABELS)
        self.batch_sizes: list[int] = []
        self.batcher = Batcher[PendingRequest](
            max_batch_size=8, max_pending_images=100, max_pending_bytes=1 << 26, max_batch_s=1.0, image_s=1e-6, work_s=1e-12
        )  # fmt: skip
        session: Any = self
        self.pipeline = Pipeline(self.batcher, session, BUNDLE, recorder, clock=self.clock)
        self.readings = Readings(
            self.batcher, self.reader, ReadEncoder("digits", "1", LABELS), recorder, max_readings=max_readings,
            max_bytes=max_bytes, clock=self.clock,
        )  # fmt: skip

    def clock(self) -> float:
        return self.now

    def on_step(self, options: ReadOptions) -> None:
        """Note whose step it is, by its placeholder."""
        self.order.append(options.placeholder)
        self.now += STEP_S

    def run(self, images: Any) -> Outputs:
        """Be the echo network."""
        self.batch_sizes.append(len(images))
        pixels = images.reshape(len(images), -1).astype(np.float32)
        return Outputs(
            np.eye(10, dtype=np.float32)[images.reshape(len(images), -1)[:, 3]], pixels[:, :3] @ [65536, 256, 1]
        )

    def read(self, *numbers: int, caller: Caller | None = None, patient: bool = False, **options: Any) -> Caller:
        """Admit a reading."""
        caller = caller or Caller()
        self.admit(decode_read(echo_row(*numbers, **options).SerializeToString(), LIMITS), caller, patient=patient)
        return caller

    def admit(self, request: ReadRequest, caller: Caller, *, patient: bool = False) -> Any:
        return self.readings.admit(caller, request, patient=patient)

    def classify(self, *numbers: int) -> Caller:
        """Admit a request to classify."""
        caller = Caller(completes=CLASSIFY)
        self.pipeline.admit(caller, decode(echo_request(*numbers).SerializeToString(), LIMITS))
        return caller

    def turn(self) -> bool:
        """Do what the worker's loop does once; return whether it did anything."""
        ran = self.pipeline.run_batch()
        if not self.readings.can_advance():
            return ran
        self.readings.advance(busy=self.pipeline.answered)
        self.pipeline.begin_iteration()
        return True

    def finish(self) -> None:
        """Do so until nothing is left to do."""
        while self.turn():
            pass

    def count(self, metric: str) -> float:
        return float(self.block.cells[metric][:, 0].sum())


def test_a_reading_gets_its_own_scores() -> None:
    """Its images are classified, and its answer has their labels, scores, boxes and the model; its call is counted as OK."""
    bench = Bench()
    caller = bench.read(70003, 1, 4, top_k=2)
    bench.finish()
    response = pb.ReadResponse.FromString(caller.answers[0])  # type: ignore[arg-type]
    assert (response.model_name, response.model_version) == ("digits", "1")
    (line,) = response.lines
    assert [mark.ood_score for mark in line.marks] == [70003.0, 1.0, 4.0]
    assert [mark.label for mark in line.marks] == ["3", "1", "4"]
    assert [(score.label, score.confidence) for score in line.marks[0].top] == [("3", 1.0), ("0", 0.0)]
    assert (line.marks[2].box.left, line.marks[2].box.right) == (56, 84)
    assert response.timing.batch_size == 3
    assert response.timing.preprocess_s == pytest.approx(2 * STEP_S)
    assert bench.block.cells["grpc_server_handled"][:, 0].sum() == 1


@settings(max_examples=50)
@given(st.data())
def test_readings_and_requests_get_their_own_answers(data: st.DataObject) -> None:
    """Whatever is admitted when, each reading and each request is answered once, with what its own images encode."""
    bench = Bench(ColumnReader(candidates=data.draw(st.integers(1, 12)), pauses=data.draw(st.integers(0, 2))))
    numbers = st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=20)
    expected: list[tuple[Caller, list[int], bool]] = []
    for is_reading, own in data.draw(st.lists(st.tuples(st.booleans(), numbers), max_size=12)):
        expected.append(((bench.read if is_reading else bench.classify)(*own), own, is_reading))
        for _ in range(data.draw(st.integers(0, 3))):
            bench.turn()
    bench.finish()
    for caller, own, is_reading in expected:
        (body,) = caller.answers
        assert isinstance(body, bytes)
        if is_reading:
            marks = pb.ReadResponse.FromString(body).lines[0].marks
            assert [mark.ood_score for mark in marks] == own
        else:
            assert [one.ood_score for one in pb.ClassifyResponse.FromString(body).predictions] == own
    num_read = sum(len(own) for _, own, is_reading in expected if is_reading)
    num_classified = sum(len(own) for _, own, is_reading in expected if not is_reading)
    assert bench.count("digitserve_reading_images") == num_read
    assert bench.count("digitserve_images") == bench.count("digitserve_predictions") == num_classified
    assert bench.block.cells["digitserve_batch_size"][0, -1] == num_read + num_classified
    assert bench.batcher.pending_images == bench.batcher._pending_bytes == bench.batcher._held_bytes == 0


def test_candidates_count_in_metrics_of_their_own() -> None:
    """They are no images that callers have classified, no predictions and no confidences; lines and marks are counted."""
    bench = Bench()
    bench.read(1, 2, 3)
    bench.finish()
    counts = {
        name: bench.count(name)
        for name in (
            "digitserve_images", "digitserve_predictions", "digitserve_confidence", "digitserve_readings",
            "digitserve_reading_images", "digitserve_read_lines", "digitserve_read_marks", "digitserve_pending_readings",
        )
    }  # fmt: skip
    assert counts == {
        "digitserve_images": 0, "digitserve_predictions": 0, "digitserve_confidence": 0, "digitserve_readings": 1,
        "digitserve_reading_images": 3, "digitserve_read_lines": 1, "digitserve_read_marks": 3,
        "digitserve_pending_readings": 0,
    }  # fmt: skip
    assert bench.block.cells["digitserve_reading_step_seconds"][0, :-1].sum() == 3


def test_the_shadow_version_does_not_see_candidates() -> None:
    """What is compared are the images of requests, also if candidates are in the same batch."""
    bench = Bench()
    offered: list[list[int]] = []

    class Shadow:
        """Notes the scores, which the images encode, of what is offered."""

        def offer(self, prepared: Any, class_index: Any, verdicts: Any, probabilities: Any) -> None:
            assert len(prepared.images) == len(prepared.blank) == len(verdicts) == len(probabilities)
            offered.append(class_index)

    bench.pipeline._shadow = Shadow()  # type: ignore[assignment]
    bench.read(1, 2, 3)
    bench.turn()
    bench.turn()
    bench.classify(7, 9)
    bench.finish()
    assert bench.batch_sizes == [4, 1]
    assert offered == [[7, 9]]


def test_readings_take_turns() -> None:
    """A reading with many steps does not delay one with few: their steps alternate."""
    bench = Bench()
    bench.reader.pauses = 3  # type: ignore[attr-defined]
    bench.read(1, placeholder="a")
    bench.read(2, placeholder="b")
    bench.finish()
    assert "".join(bench.order[:6]) == "ababab"


def test_single_images_wait_for_one_step() -> None:
    """Whatever readings there are, a request that arrives is in the next batch, after at most ``STEPS_S`` and one step."""
    bench = Bench()
    for _ in range(10):
        bench.read(*range(20))
    while bench.readings.can_advance():
        caller, arrived = bench.classify(5), bench.now
        bench.pipeline.run_batch()
        assert caller.answers
        bench.readings.advance(busy=False)
        assert bench.now - arrived <= STEPS_S + STEP_S


def test_steps_use_half_of_the_time_while_requests_are_classified() -> None:
    """After a step of 10 ms, batches of requests run for 10 ms before the next step; without requests steps go on."""
    bench = Bench()
    bench.reader.pauses = 100  # type: ignore[attr-defined]
    bench.read(1)
    for _ in range(100):
        bench.classify(5)
        bench.turn()
        bench.now += 0.001
    # 100 iterations of 1 ms, and as much for steps.
    assert 8 <= len(bench.order) <= 11
    before = len(bench.order)
    for _ in range(10):
        bench.turn()
    assert len(bench.order) == before + 10


def test_steps_are_not_part_of_the_estimated_time_of_batches() -> None:
    """Steps do not make images look slow: their deadlines would be rejected."""
    bench = Bench()
    bench.reader.pauses = 50  # type: ignore[attr-defined]
    bench.read(1)
    before = bench.batcher.iteration_image_s.seconds
    bench.classify(*range(8))
    for _ in range(50):
        bench.classify(*range(8))
        bench.turn()
    assert bench.batcher.iteration_image_s.seconds <= before


def test_a_large_image_does_not_block_small_ones() -> None:
    """One large image is read at a time; small ones start beside it."""
    bench = Bench(ColumnReader(pauses=10**6))
    width = 28 * (SMALL_PIXELS // 28**2 + 1)
    request = ReadRequest(bytes(28 * width), 28, width, 1, ReadOptions())
    large = [bench.admit(request, Caller()) for _ in range(MAX_LARGE_STARTED + 1)]
    small = [
        bench.admit(ReadRequest(bytes(784), 28, 28, 1, ReadOptions()), Caller()) for _ in range(MAX_SMALL_STARTED + 1)
    ]
    assert [reading.started is not None for reading in large] == [True] * MAX_LARGE_STARTED + [False]
    assert [reading.started is not None for reading in small] == [True] * MAX_SMALL_STARTED + [False]
    bench.readings.cancel(large[0])
    bench.readings.cancel(small[0])
    assert large[-1].started is not None
    assert small[-1].started is not None


def test_sources_start_in_turn() -> None:
    """A source that sends many readings does not delay those of another one."""
    bench = Bench(ColumnReader(pauses=10**6))
    busy = Source()
    own = [bench.admit(ReadRequest(bytes(784), 28, 28, 1, ReadOptions()), Caller(busy)) for _ in range(40)]
    other = bench.admit(ReadRequest(bytes(784), 28, 28, 1, ReadOptions()), Caller())
    bench.readings.cancel(own[0])
    bench.readings.cancel(own[1])
    assert other.started is not None


def test_the_number_of_readings_is_limited() -> None:
    """Over the limit readings are rejected with a time to retry after, before their message is read too; one source alone gets
    4/5 of the room.
    """
    bench = Bench(ColumnReader(pauses=10**6), max_readings=10)
    source = Source()
    for _ in range(8):
        bench.read(1, caller=Caller(source))
    with pytest.raises(Overloaded, match="at most 10 readings may wait") as raised:
        bench.read(1, caller=Caller(source))
    assert raised.value.retry_after_s > 0
    assert source.num_readings == 8
    assert isinstance(bench.readings.refusal(math.inf, source), Overloaded)
    assert bench.readings.refusal(math.inf, Source()) is None
    bench.read(1)
    bench.read(1)
    assert isinstance(bench.readings.refusal(math.inf, Source()), Overloaded)
    assert bench.readings.is_half_full(Source())


def test_the_memory_of_readings_is_limited() -> None:
    """Readings hold at most their limit in bytes; one is always admitted. Its memory counts as that of other requests."""
    bench = Bench(ColumnReader(pauses=10**6), max_bytes=1000)
    large = bench.admit(ReadRequest(bytes(28 * 280), 28, 280, 1, ReadOptions()), Caller())
    assert bench.batcher._held_bytes == 28 * 280
    with pytest.raises(Overloaded, match="1000 bytes"):
        bench.read(1)
    bench.readings.cancel(large)
    bench.readings.cancel(large)
    assert bench.batcher._held_bytes == 0
    bench.read(1)


def test_a_deadline_that_cannot_be_met_is_rejected() -> None:
    """The time of a reading is learnt from those before; a deadline before it is rejected, and the estimate decreases when only
    rejections come.
    """
    bench = Bench()
    for _ in range(200):
        bench.read(1)
        bench.finish()
    (request,) = [decode_read(echo_row(1).SerializeToString(), LIMITS)]
    work_s = bench.readings._needed_s(request.height * request.width + (1 << 16))
    assert work_s == pytest.approx(1.5 * 2 * STEP_S, rel=0.1)
    refusal = bench.readings.refusal(work_s / 2, Source())
    assert isinstance(refusal, DeadlineUnmeetable)
    assert "smaller image" in str(refusal)
    for _ in range(1000):
        bench.readings.refusal(work_s / 2, Source())
    assert bench.readings.refusal(work_s / 2, Source()) is None


def test_a_reading_past_its_deadline_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is rejected before its next step, or when its candidates would run, and its steps are closed."""
    monkeypatch.setattr("time.time", lambda: 1000.0)
    for num_turns in (1, 2):
        bench = Bench()
        caller = bench.read(1, caller=Caller(deadline=1010.0))
        for _ in range(num_turns):
            bench.turn()
        bench.now += 20
        bench.finish()
        assert isinstance(caller.error, DeadlineUnmeetable)
        assert bench.reader.closed == 1  # type: ignore[attr-defined]
        assert bench.batcher.pending_images == bench.batcher._held_bytes == 0


@pytest.mark.parametrize("num_turns", [0, 1, 2])
def test_a_cancelled_reading_frees_what_it_holds(num_turns: int) -> None:
    """Before its first step, between steps, and while its candidates wait, its steps are closed and nothing is pending."""
    bench = Bench()
    caller = Caller()
    reading = bench.admit(decode_read(echo_row(1, 2).SerializeToString(), LIMITS), caller)
    for _ in range(num_turns):
        bench.turn()
    bench.readings.cancel(reading)
    bench.finish()
    assert not caller.answers
    assert bench.reader.closed == (num_turns > 0)  # type: ignore[attr-defined]
    assert bench.batcher.pending_images == bench.batcher._held_bytes == bench.batcher._pending_bytes == 0
    assert bench.count("digitserve_pending_readings") == caller.source.num_readings == 0


def test_errors_of_steps_affect_no_other_reading() -> None:
    """An invalid request is rejected with its text, a fault of the reader is an internal error whose text is only logged."""
    bench = Bench()
    good, limit, bug = bench.read(1, 2), bench.read(1, pattern="limit"), bench.read(1, pattern="bug")
    with pytest.raises(InvalidRequest, match="closing bracket"):
        bench.read(1, pattern="(")
    with capture_logs() as lines:
        bench.finish()
    assert good.text == "12"
    assert isinstance(limit.error, InvalidRequest)
    assert bug.answers == ["failed"]
    assert [line["event"] for line in lines] == ["reading failed"]


class EmptyReader:
    """Yields no images, which is a fault."""

    def check(self, options: ReadOptions) -> None:
        pass

    def read(self, pixels: Gray, options: ReadOptions) -> Steps:
        yield np.zeros((0, 28, 28, 1), np.uint8)
        return Reading([])


def test_no_candidates_are_a_fault_of_the_reader() -> None:
    """A batch of them would never be complete, so the reading fails."""
    bench = Bench(EmptyReader())
    with capture_logs():
        caller = bench.read(1)
        bench.finish()
    assert caller.answers == ["failed"]


def test_a_failing_network_fails_the_reading() -> None:
    """It gets an internal error, and holds nothing more."""
    bench = Bench()

    def fail(_images: Any) -> Outputs:
        raise RuntimeError("the device is gone")

    bench.run = fail  # type: ignore[method-assign]
    with capture_logs():
        caller = bench.read(1)
        bench.finish()
    assert caller.answers == ["failed"]
    assert bench.reader.closed == 1  # type: ignore[attr-defined]
    assert bench.batcher.pending_images == bench.batcher._held_bytes == 0


def test_an_answer_that_cannot_be_encoded_is_an_internal_error() -> None:
    """A fault in what a reader returns affects its own caller only."""
    bench = Bench()
    bench.readings._encoder = ReadEncoder("digits", "1", ())  # has no labels
    with capture_logs():
        caller = bench.read(1)
        bench.finish()
    assert caller.answers == ["failed"]


def test_close_rejects_what_is_left() -> None:
    """When the worker ends, each reading gets UNAVAILABLE, also those whose candidates wait."""
    bench = Bench()
    callers = [bench.read(1), bench.read(2)]
    bench.turn()
    bench.turn()
    assert bench.readings.close() == 2
    assert bench.pipeline.close() == 0
    assert all(isinstance(caller.error, Draining) for caller in callers)
    with pytest.raises(Draining):
        bench.read(1)
    assert isinstance(bench.readings.refusal(math.inf, Source()), Draining)


def test_other_labels_than_digits_cannot_be_read() -> None:
    """Without a reader each call is rejected, before its message is read if possible."""
    bench = Bench()
    bench.readings._reader = None
    assert isinstance(bench.readings.refusal(math.inf, Source()), Unsupported)
    with pytest.raises(Unsupported, match="not the ten digits"):
        bench.read(1)


def test_a_stream_may_wait_for_room() -> None:
    """A patient caller needs room for one reading only, whatever share its source has."""
    bench = Bench(ColumnReader(pauses=10**6), max_readings=10)
    source = Source()
    for _ in range(10):
        bench.read(1, caller=Caller(source, completes=None), patient=True)
    with pytest.raises(Overloaded):
        bench.read(1, caller=Caller(source, completes=None), patient=True)


def test_messages_of_streams_are_counted() -> None:
    """An answer to a message of a stream counts as a message, and its stream is not counted as ended."""
    bench = Bench()
    bench.read(1, caller=Caller(completes=None))
    bench.finish()
    assert bench.count("digitserve_stream_messages") == 1
    assert bench.block.cells["grpc_server_handled"][:, 0].sum() == 0
    assert READ in METHODS

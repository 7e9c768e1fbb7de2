"""``Read`` and ``ReadStream``: a real worker and client, and a network and a reader whose output encodes their input."""

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from digitserve.protocol.names import READ, READ_STREAM
from digitserve.protocol.readings import ReadOptions
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_request, write_echo_bundle
from support.column_reader import ColumnReader, echo_row
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until


class Gate:
    """Steps of a reader, which wait while a test has closed it. A closed gate blocks the worker's loop at the next step."""

    def __init__(self) -> None:
        self.steps = 0
        self._open = threading.Event()
        self._open.set()

    def close(self) -> None:
        self._open.clear()

    def open(self) -> None:
        self._open.set()

    def __call__(self, _options: ReadOptions) -> None:
        self.steps += 1
        assert self._open.wait(PATIENCE_S)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_echo_bundle(tmp_path)
    return tmp_path


@pytest.fixture
def reader() -> ColumnReader:
    return ColumnReader(candidates=7)


@pytest.fixture
def worker(models: Path, transport: str, reader: ColumnReader) -> Iterator[RunningWorker]:
    with run_worker(models, new_reader=lambda _: reader, transport=transport) as running:
        yield running


def scores(response: pb.ReadResponse) -> list[int]:
    """Return the numbers that the digits of a response encode."""
    return [int(mark.ood_score) for line in response.lines for mark in line.marks]


def outcome(outcome: pb.ReadStreamResponse) -> list[int] | int:
    """Return the numbers that an answer encodes, or the negative code of its error."""
    return -outcome.error.code if outcome.HasField("error") else scores(outcome.response)


def failure(call: Callable[[], Any]) -> Any:
    """Return the error with which a call fails."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value


def test_an_image_is_read(worker: RunningWorker) -> None:
    """The answer has text, digits, boxes in pixels of the image, the model and the times; the metrics count all of it."""
    response = worker.read(echo_row(70001, 2, 3, top_k=2))

    (line,) = response.lines
    assert (line.text, [mark.label for mark in line.marks]) == ("123", ["1", "2", "3"])
    assert scores(response) == [70001, 2, 3]
    assert line.marks[1].box == pb.Box(top=0, bottom=28, left=28, right=56)
    assert [score.label for score in line.marks[1].top] == ["2", "0"]
    assert (response.model_name, response.model_version) == ("digits", "1")
    assert response.timing.batch_size == 3
    assert response.timing.inference_s > 0
    assert worker.handled("Read") == {"OK": 1}
    assert worker.num_images() == 0
    assert worker.series("digitserve_reading_images")[()] == 3
    assert worker.series("digitserve_read_marks")["digit",] == 3


def test_concurrent_calls_get_what_they_get_alone(worker: RunningWorker) -> None:
    """Readings and classifications of many clients at once each get the answer that they get one after another."""
    rng = random.Random(16)
    rows = [[rng.randrange(2**24) for _ in range(rng.randint(1, 40))] for _ in range(60)]

    def call(index: int) -> list[int]:
        if index % 2:
            return [int(one.ood_score) for one in worker.classify(echo_request(*rows[index])).predictions]
        return scores(worker.read(echo_row(*rows[index])))

    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(call, range(len(rows))))
    assert together == [call(index) for index in range(len(rows))] == rows
    assert worker.series("digitserve_readings")[()] == 60
    assert worker.num_images() == 2 * sum(len(row) for row in rows[1::2])


BAD = {
    "no pixels": (pb.ReadRequest(height=28, width=28), "INVALID_ARGUMENT", "got 0 bytes; expected 784"),
    "too few pixels": (pb.ReadRequest(pixels=b"1", height=28, width=28), "INVALID_ARGUMENT", "got 1 bytes"),
    "no size": (pb.ReadRequest(pixels=bytes(784)), "INVALID_ARGUMENT", "height 0 and width 0"),
    "huge": (pb.ReadRequest(pixels=b"1", height=2**31, width=2**31), "INVALID_ARGUMENT", "at most 4096"),
    "an unknown layout": (echo_row(1, layout=77), "INVALID_ARGUMENT", "layout: got 77"),
    "a NaN": (echo_row(1, min_confidence=float("nan")), "INVALID_ARGUMENT", "min_confidence: got nan"),
    "a bad pattern": (echo_row(1, pattern="("), "INVALID_ARGUMENT", "closing bracket"),
    "a long pattern": (echo_row(1, pattern="1" * 10_000), "INVALID_ARGUMENT", "at most 256"),
    "a bad placeholder": (echo_row(1, placeholder="77"), "INVALID_ARGUMENT", "placeholder: got '77'"),
    "too many digits": (echo_row(1, num_digits=2**32 - 1), "INVALID_ARGUMENT", "at most 64"),
    "another version": (echo_row(1, model_version="9"), "NOT_FOUND", "expected '1'"),
    "a limit of a step": (echo_row(1, pattern="limit"), "INVALID_ARGUMENT", "at most 1000"),
    "a fault of the reader": (echo_row(1, pattern="bug"), "INTERNAL", "the server's log has the details"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_answered_with_its_error(worker: RunningWorker, case: str) -> None:
    """The status and the text state what is wrong, and the next request is served."""
    request, code, part = BAD[case]
    error = failure(lambda: worker.read(request))
    assert (error.code().name, part in error.details()) == (code, True), error.details()
    assert "secret" not in error.details()
    assert worker.read(echo_row(5)).lines[0].text == "5"


def test_bytes_that_are_no_message_are_rejected(worker: RunningWorker) -> None:
    """They get INVALID_ARGUMENT."""
    error = failure(lambda: worker.channel.unary_unary(READ.path)(b"\xff\xff\xff", timeout=PATIENCE_S))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_is_answered_in_order_with_its_errors(worker: RunningWorker) -> None:
    """Short and long readings, and bad requests, are answered in the order of the requests."""
    rng = random.Random(3)
    requests, expected = [], []
    bad = [request for request, _, _ in BAD.values()]
    codes = [-grpc.StatusCode[code].value[0] for _, code, _ in BAD.values()]
    for number in range(100):
        if number % 5 == 4:
            index = number % len(bad)
            requests.append(bad[index])
            expected.append(codes[index])
        else:
            row = [rng.randrange(2**24) for _ in range(rng.choice([1, 5, 100]))]
            requests.append(echo_row(*row))
            expected.append(row)  # type: ignore[arg-type]

    assert [outcome(one) for one in worker.read_stream(requests)] == expected
    wait_until(lambda: worker.handled("ReadStream") == {"OK": 1}, "the stream is counted")
    assert worker.stream_messages()["OK"] == 80


def test_bytes_on_a_stream_that_are_no_message_affect_no_other(worker: RunningWorker) -> None:
    """They are answered with an error in their place."""
    good = pb.ReadStreamRequest(request=echo_row(7)).SerializeToString()
    call = worker.channel.stream_stream(READ_STREAM.path)
    bodies = call(iter([good, b"\xff\xff", b"", good]), timeout=PATIENCE_S)
    assert [outcome(pb.ReadStreamResponse.FromString(body)) for body in bodies] == [[7], -3, -3, [7]]


def test_other_labels_than_digits_cannot_be_read(tmp_path: Path, transport: str) -> None:
    """A model of letters answers ``Read`` with FAILED_PRECONDITION, says why, and serves ``Classify``."""
    write_echo_bundle(tmp_path, labels=tuple("ABCDEFGHIJ"))
    with run_worker(tmp_path, transport=transport) as worker:
        error = failure(lambda: worker.read(echo_row(1)))
        (message,) = worker.read_stream([echo_row(1)])
        classified = worker.classify(echo_request(2)).predictions[0].label
    assert error.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert "not the ten digits" in error.details()
    assert outcome(message) == -9
    assert classified == "C"


def test_too_many_readings_are_told_when_to_retry(models: Path, transport: str) -> None:
    """Over the limit a call gets RESOURCE_EXHAUSTED with RetryInfo; a stream waits for room instead."""
    gate = Gate()
    reader = ColumnReader(pauses=3, on_step=gate)
    with run_worker(models, new_reader=lambda _: reader, transport=transport, max_pending_images=128) as worker:
        call = worker.channel.unary_unary(READ.path)
        body = echo_row(1).SerializeToString()
        gate.close()
        futures = [call.future(body, timeout=PATIENCE_S) for _ in range(20)]
        wait_until(lambda: gate.steps, "a reading has started")
        gate.open()
        errors = [error for future in futures if (error := future.exception())]
        in_order = [outcome(one) for one in worker.read_stream(echo_row(number) for number in range(50))]
    assert errors
    for error in errors:
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        details = next(value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin")
        retry = error_details_pb2.RetryInfo()
        assert status_pb2.Status.FromString(details).details[0].Unpack(retry)
        assert retry.retry_delay.ToNanoseconds() > 0
    assert in_order == [[number] for number in range(50)]


def test_a_cancelled_call_frees_its_reading(models: Path, transport: str) -> None:
    """The steps are closed, nothing is pending any more, and the worker serves others; the same for the messages of a stream."""
    reader = ColumnReader(pauses=10**9)
    with run_worker(models, new_reader=lambda _: reader, transport=transport) as worker:
        call = worker.channel.unary_unary(READ.path).future(echo_row(1).SerializeToString())
        stream = worker.read_stream(echo_row(number) for number in range(5))
        wait_until(lambda: worker.series("digitserve_pending_readings")[()] == 6, "all readings are admitted")
        assert worker.classify(echo_request(3)).predictions[0].label == "3"
        call.cancel()
        stream.cancel()
        wait_until(lambda: worker.series("digitserve_pending_readings")[()] == 0, "nothing is pending")
        assert reader.closed == 6
        assert worker.num_pending() == 0
        wait_until(lambda: worker.handled("Read") == {"Canceled": 1}, "the call is counted")


def test_an_expired_reading_ends_with_its_deadline(models: Path, transport: str) -> None:
    """A reading that takes longer than its caller waits ends with DEADLINE_EXCEEDED and frees what it holds."""
    reader = ColumnReader(pauses=10**9)
    with run_worker(models, new_reader=lambda _: reader, transport=transport) as worker:
        error = failure(lambda: worker.read(echo_row(1), timeout_s=0.3))
        wait_until(lambda: worker.series("digitserve_pending_readings")[()] == 0, "nothing is pending")
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert reader.closed == 1


def test_admitted_readings_are_answered_before_the_worker_ends(models: Path, transport: str) -> None:
    """Readings that are in progress when the worker drains, in calls and on a stream, get their answers."""
    reader = ColumnReader(candidates=1)
    reader.is_held = True
    ended = threading.Event()

    def requests() -> Iterator[pb.ReadRequest]:
        yield from (echo_row(number) for number in range(3))
        ended.wait(PATIENCE_S)

    with run_worker(models, new_reader=lambda _: reader, transport=transport) as worker:
        call = worker.channel.unary_unary(READ.path, None, pb.ReadResponse.FromString)
        futures = [call.future(echo_row(n, n + 1).SerializeToString(), timeout=PATIENCE_S) for n in range(8)]
        stream = worker.read_stream(requests())
        wait_until(lambda: worker.series("digitserve_pending_readings")[()] == 11, "all readings are admitted")
        worker.worker.drain()
        reader.is_held = False
        answered = [scores(future.result()) for future in futures]
        streamed = [outcome(next(stream)) for _ in range(3)]
        with pytest.raises(grpc.RpcError, match="shutting down"):
            next(stream)
        ended.set()
    assert answered == [[n, n + 1] for n in range(8)]
    assert streamed == [[0], [1], [2]]


def test_readings_that_cannot_end_are_unanswered(models: Path, transport: str) -> None:
    """After the grace period they get UNAVAILABLE, and the worker reports their number."""
    reader = ColumnReader(pauses=10**9)
    with run_worker(models, new_reader=lambda _: reader, transport=transport, grace_s=0.2) as worker:
        call = worker.channel.unary_unary(READ.path).future(echo_row(1).SerializeToString(), timeout=PATIENCE_S)
        wait_until(lambda: worker.series("digitserve_pending_readings")[()] == 1, "the reading is admitted")
        worker.worker.drain()
        assert call.exception().code() is grpc.StatusCode.UNAVAILABLE
    assert reader.closed == 1

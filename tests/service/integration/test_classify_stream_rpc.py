"""``ClassifyStream``: a real worker and client, and a network whose output encodes its input."""

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from digitserve.protocol.names import CLASSIFY_STREAM
from digitserve.settings import Settings
from digitserve.transport.classify_stream import WINDOW_BATCHES
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_request
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until

WINDOW_IMAGES = WINDOW_BATCHES * Settings().batch_limit


def scores(outcome: pb.ClassifyStreamResponse) -> list[int] | int:
    """Return the numbers that the images of an answer encode, or the negative code of its error."""
    if outcome.HasField("error"):
        return -outcome.error.code
    return [int(prediction.ood_score) for prediction in outcome.response.predictions]


class Paced:
    """An iterator of requests that a test sends one by one; the stream stays open until ``close``."""

    def __init__(self) -> None:
        self._next: list[pb.ClassifyRequest] = []
        self._changed = threading.Condition()
        self._closed = False

    def send(self, *requests: pb.ClassifyRequest) -> None:
        with self._changed:
            self._next += requests
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()

    def __iter__(self) -> Iterator[pb.ClassifyRequest]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next or self._closed, PATIENCE_S)
                if not self._next:
                    return
                request = self._next.pop(0)
            yield request


def test_answers_are_in_request_order(worker: RunningWorker) -> None:
    """Requests of any size are answered in the order in which they were sent."""
    sizes = [1, 500, 1, 1, 200, 3, 64, 1, 65]
    numbers = itertools.count(1)
    expected = [[next(numbers) for _ in range(size)] for size in sizes]

    outcomes = [scores(outcome) for outcome in worker.stream(echo_request(*part) for part in expected)]

    assert outcomes == expected
    wait_until(lambda: worker.handled("ClassifyStream") == {"OK": 1}, "the stream is counted")
    assert worker.started("ClassifyStream") == 1
    assert worker.num_images() == sum(sizes)


def test_a_bad_request_affects_no_other(worker: RunningWorker) -> None:
    """Bad requests, one of them empty, are answered with their status in their place; the others are served."""
    bad = [
        pb.ClassifyRequest(pixels=bytes(800)),
        pb.ClassifyRequest(),
        echo_request(1, model_version="9"),
    ]
    requests: list[pb.ClassifyRequest] = []
    for number, one in enumerate(bad):
        requests += [echo_request(number), one]
    requests.append(echo_request(99))

    outcomes = list(worker.stream(requests))

    assert [scores(outcome) for outcome in outcomes] == [[0], -3, [1], -3, [2], -5, [99]]
    assert "image 1 has only 16" in outcomes[1].error.message
    assert "expected '1'" in outcomes[5].error.message


def test_bytes_that_are_not_a_message_affect_no_other(worker: RunningWorker) -> None:
    """Bytes that protobuf cannot parse are answered with an error in their place."""
    call = worker.channel.stream_stream(CLASSIFY_STREAM.path)
    good = pb.ClassifyStreamRequest(request=echo_request(7)).SerializeToString()

    outcomes = [pb.ClassifyStreamResponse.FromString(body) for body in call(iter([good, b"\xff\xff\xff", b"", good]))]

    assert [scores(outcome) for outcome in outcomes] == [[7], -3, -3, [7]]
    assert "3 bytes" in outcomes[1].error.message


def test_an_empty_stream_ends_with_ok(worker: RunningWorker) -> None:
    """A stream without messages ends with OK and no answers."""
    assert list(worker.stream([])) == []
    wait_until(lambda: worker.handled("ClassifyStream") == {"OK": 1}, "the stream is counted")


def test_messages_can_be_sent_one_at_a_time(worker: RunningWorker) -> None:
    """Each message is answered before the next one is sent: no message waits for another to fill a batch."""
    paced = Paced()
    answers = worker.stream(paced)
    for number in range(20):
        paced.send(echo_request(number))
        assert scores(next(answers)) == [number]
    paced.close()

    assert list(answers) == []


def test_many_streams_each_get_their_own_answers(worker: RunningWorker) -> None:
    """With sixteen streams of 300 messages and unary calls at once, each stream gets its own answers, in order."""
    outcomes: dict[int, list[Any]] = {}

    def run_stream(number: int) -> None:
        own = [number * 1000 + n for n in range(300)]
        outcomes[number] = [scores(outcome) for outcome in worker.stream(echo_request(n) for n in own)]

    threads = [threading.Thread(target=run_stream, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    single = [worker.classify(echo_request(n)).predictions[0].ood_score for n in range(50)]
    for thread in threads:
        thread.join(PATIENCE_S)

    assert outcomes == {number: [[number * 1000 + n] for n in range(300)] for number in range(16)}
    assert single == list(range(50))


def test_a_client_that_does_not_read_answers_is_paused(worker: RunningWorker) -> None:
    """Of a client that sends continuously and reads nothing, the worker classifies no more than the window and what the
    client's side buffers, some megabytes; once the client reads, it gets every answer.
    """
    total, own = 2_000, list(range(64))
    request = echo_request(*own, top_k=10)
    answers = worker.stream(request for _ in range(total))

    def paused() -> bool:
        # The worker is also idle while a client on a busy machine has not sent its next messages.
        classified = worker.num_images()
        worker.wait_until_idle()
        return worker.worker.stream_images_in_flight == [WINDOW_IMAGES] and worker.num_images() == classified

    wait_until(paused, "the window is full, and the worker waits for the client")

    assert WINDOW_IMAGES <= worker.num_images() < total * len(own) / 2
    assert all(scores(answer) == own for answer in answers)
    assert worker.num_images() == total * len(own)


def test_large_messages_are_bounded_too(worker: RunningWorker) -> None:
    """A message of 1,000 images fills the window: one is in flight at a time, and a client that reads gets all answers."""
    most = 0

    def watched() -> Iterator[pb.ClassifyRequest]:
        nonlocal most
        for number in range(12):
            most = max([most, *worker.worker.stream_images_in_flight])
            yield echo_request(*range(number, number + 1000))

    outcomes = [scores(outcome) for outcome in worker.stream(watched())]

    assert outcomes == [list(range(number, number + 1000)) for number in range(12)]
    assert most < WINDOW_IMAGES + 1000


@pytest.mark.parametrize(
    ("num_streams", "num_images", "limits"),
    [
        pytest.param(32, 1, {"max_pending_images": 16, "max_batch_size": 4}, id="many-streams"),
        pytest.param(16, 1000, {}, id="large-messages"),
        pytest.param(8, 200, {"max_request_bytes": 400_000}, id="many-bytes"),
    ],
)
def test_streams_wait_where_unary_calls_would_be_rejected(
    models: Path, num_streams: int, num_images: int, limits: dict[str, int], transport: str
) -> None:
    """Streams that together send more than the queue holds, in images or in bytes, are slowed down; none of their messages
    is rejected, though a read was outstanding on all of them: half of the limit has room for one message of each stream.
    """
    own = list(range(num_images))
    with run_worker(models, transport=transport, **limits) as worker:
        outcomes: list[bool] = []
        threads = [
            threading.Thread(
                target=lambda: outcomes.append(
                    [scores(one) for one in worker.stream(echo_request(*own) for _ in range(12))] == [own] * 12
                )
            )
            for _ in range(num_streams)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE_S)

        assert outcomes == [True] * num_streams
        assert worker.num_rejected() == 0


def test_a_message_of_the_maximal_size_does_not_starve(models: Path, transport: str) -> None:
    """Streams that send small messages continuously do not take the room of one message that needs all of it."""
    with run_worker(models, transport=transport, max_pending_images=64, max_batch_size=8) as worker:
        stop = threading.Event()

        def small() -> Iterator[pb.ClassifyRequest]:
            while not stop.is_set():
                yield echo_request(*range(16))

        threads = [threading.Thread(target=lambda: [None for _ in worker.stream(small())]) for _ in range(3)]
        for thread in threads:
            thread.start()
        large = [scores(one) for one in worker.stream(echo_request(*range(64)) for _ in range(5))]
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)

    assert large == [list(range(64))] * 5


def test_a_request_that_can_never_fit_is_rejected_in_its_place(models: Path, transport: str) -> None:
    """A message of more images than the queue holds is answered with an error; the other messages are served."""
    with run_worker(models, transport=transport, max_pending_images=16) as worker:
        outcomes = [scores(one) for one in worker.stream([echo_request(1), echo_request(*range(17)), echo_request(2)])]

    assert outcomes == [[1], -3, [2]]


def test_each_message_is_counted_once_with_the_code_of_its_answer(models: Path, transport: str) -> None:
    """Answered, invalid and too large messages: the availability of the service is computed from these counts."""
    with run_worker(models, transport=transport, max_pending_images=16, max_request_bytes=100_000) as worker:
        invalid = pb.ClassifyRequest(pixels=b"1")
        list(worker.stream([echo_request(1), invalid, echo_request(*range(17)), echo_request(2)]))
        with pytest.raises(grpc.RpcError):
            list(worker.stream([echo_request(*range(200))]))
        counts = {"OK": 2, "InvalidArgument": 2, "ResourceExhausted": 1}
        wait_until(lambda: worker.stream_messages() == counts, "all messages are counted")


def test_a_message_over_the_limit_ends_the_stream_after_earlier_answers(models: Path, transport: str) -> None:
    """A message over the limit is discarded: earlier messages are answered, then the stream ends with the reason."""
    with run_worker(models, transport=transport, max_request_bytes=100_000) as worker:
        paced = Paced()
        answers = worker.stream(paced)
        paced.send(echo_request(1), echo_request(2))
        assert [scores(next(answers)), scores(next(answers))] == [[1], [2]]
        paced.send(echo_request(*range(200)))
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)

        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        wait_until(lambda: worker.handled("ClassifyStream") == {"ResourceExhausted": 1}, "the stream is counted")


def test_a_cancelled_stream_is_dropped(worker: RunningWorker) -> None:
    """When a client cancels, the waiting requests of its stream are dropped, and the stream counts as cancelled."""
    answers = worker.stream(echo_request(*range(1000)) for _ in range(1000))
    next(answers)
    answers.cancel()

    wait_until(lambda: worker.handled("ClassifyStream") == {"Canceled": 1}, "the stream is counted")
    wait_until(lambda: worker.num_pending() == 0, "nothing waits")
    assert not worker.worker.stream_images_in_flight
    assert [scores(one) for one in worker.stream([echo_request(3)])] == [[3]]


def test_an_expired_stream_is_dropped(worker: RunningWorker) -> None:
    """The deadline of a stream ends all of it."""
    paced = Paced()
    answers = worker.stream(paced, timeout_s=1.0)
    paced.send(echo_request(1))
    assert scores(next(answers)) == [1]
    with pytest.raises(grpc.RpcError) as ended:
        next(answers)
    paced.close()

    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: worker.handled("ClassifyStream"), "it is counted")
    assert set(worker.handled("ClassifyStream")) <= {"DeadlineExceeded", "Canceled"}
    assert not worker.worker.stream_images_in_flight


def test_draining_answers_what_was_read_and_ends_with_unavailable(models: Path, transport: str) -> None:
    """A worker that drains stops reading its streams, answers all that it has read and ends with UNAVAILABLE. The answers
    are those of the first requests, so their number shows the client what to send again.
    """
    outcomes = []
    with run_worker(models, transport=transport) as worker:
        answers = worker.stream(echo_request(n) for n in range(1_000_000))
        outcomes.append(scores(next(answers)))
        worker.worker.drain()
        with pytest.raises(grpc.RpcError) as ended:
            outcomes += map(scores, answers)

        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert outcomes == [[n] for n in range(len(outcomes))]
        assert len(outcomes) <= worker.num_images() < 1_000_000
        wait_until(lambda: worker.handled("ClassifyStream") == {"Unavailable": 1}, "the stream is counted")


def test_an_idle_stream_does_not_delay_a_drain(models: Path, transport: str) -> None:
    """A drain ends an idle stream at once."""
    paced = Paced()
    with run_worker(models, transport=transport, grace_s=PATIENCE_S) as worker:
        answers = worker.stream(paced)
        paced.send(echo_request(1))
        assert scores(next(answers)) == [1]
        worker.worker.drain()
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)
        paced.close()

    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


def test_framed_images_and_options_work_on_streams(worker: RunningWorker) -> None:
    """A stream accepts what ``Classify`` accepts: other sizes, colours, ``top_k``."""
    paper = np.full((60, 40, 3), 255, np.uint8)
    paper[10:50, 18:23] = 0
    colour = pb.ClassifyRequest(pixels=paper.tobytes(), height=60, width=40, pixel_format=pb.PIXEL_FORMAT_RGB8)

    framed, listed = worker.stream([colour, echo_request(3, top_k=2)])

    assert framed.response.predictions[0].verdict == pb.VERDICT_ACCEPTED
    assert len(listed.response.predictions[0].top) == 2
    assert listed.response.model_version == "1"

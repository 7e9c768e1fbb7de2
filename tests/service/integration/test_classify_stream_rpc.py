"""``ClassifyStream``: a real worker, a real client, and a network whose output encodes its input."""

import itertools
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from digitserve.settings import Settings
from digitserve.telemetry.block import STREAM_ROW
from digitserve.transport.classify_stream import WINDOW_BATCHES
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_request
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until

WINDOW_IMAGES = WINDOW_BATCHES * Settings().batch_limit


def scores(outcome: pb.ClassifyStreamResponse) -> list[int] | int:
    """Return the numbers that a message is answered with, or the code of its error."""
    if outcome.HasField("error"):
        return -outcome.error.code
    return [int(prediction.ood_score) for prediction in outcome.response.predictions]


class Paced:
    """Requests that are sent one by one, as a test says; the stream stays open until it is closed."""

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


def test_answers_come_in_the_order_of_their_requests(worker: RunningWorker) -> None:
    """Small requests behind large ones, framed ones behind plain ones: all answers come in the order of their requests."""
    sizes = [1, 500, 1, 1, 200, 3, 64, 1, 65]
    numbers = itertools.count(1)
    expected = [[next(numbers) for _ in range(size)] for size in sizes]

    outcomes = [scores(outcome) for outcome in worker.stream(echo_request(*part) for part in expected)]

    assert outcomes == expected
    wait_until(lambda: worker.handled("ClassifyStream") == {"OK": 1}, "the stream is counted")
    assert worker.block.cells["grpc_server_started"][STREAM_ROW, 0] == 1
    assert worker.block.cells["digitserve_images"][0, 0] == sum(sizes)


def test_a_bad_request_costs_only_itself(worker: RunningWorker) -> None:
    """Bad requests, one of them no message at all, are answered with their status in their place; the others are served."""
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
    assert "image 1 with 16" in outcomes[1].error.message
    assert "served is '1'" in outcomes[5].error.message


def test_bytes_that_are_no_message_cost_only_themselves(worker: RunningWorker) -> None:
    """Bytes that protobuf cannot parse get their error in their place."""
    call = worker.channel.stream_stream("/digitserve.v1.DigitService/ClassifyStream")
    good = pb.ClassifyStreamRequest(request=echo_request(7)).SerializeToString()

    outcomes = [pb.ClassifyStreamResponse.FromString(body) for body in call(iter([good, b"\xff\xff\xff", b"", good]))]

    assert [scores(outcome) for outcome in outcomes] == [[7], -3, -3, [7]]
    assert "3 bytes" in outcomes[1].error.message


def test_an_empty_stream_ends_well(worker: RunningWorker) -> None:
    """A stream without messages ends with OK and no answers."""
    assert list(worker.stream([])) == []
    wait_until(lambda: worker.handled("ClassifyStream") == {"OK": 1}, "the stream is counted")


def test_a_conversation_may_be_one_message_at_a_time(worker: RunningWorker) -> None:
    """Each message is answered before the next one is sent: nothing waits for company."""
    paced = Paced()
    answers = worker.stream(paced)
    for number in range(20):
        paced.send(echo_request(number))
        assert scores(next(answers)) == [number]
    paced.close()

    assert list(answers) == []


def test_many_streams_each_get_their_own_answers(worker: RunningWorker) -> None:
    """Sixteen streams of 300 messages at once, beside unary calls: each gets its own answers, in order."""
    outcomes: dict[int, list[Any]] = {}

    def converse(number: int) -> None:
        own = [number * 1000 + n for n in range(300)]
        outcomes[number] = [scores(outcome) for outcome in worker.stream(echo_request(n) for n in own)]

    threads = [threading.Thread(target=converse, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    single = [worker.classify(echo_request(n)).predictions[0].ood_score for n in range(50)]
    for thread in threads:
        thread.join(PATIENCE_S)

    assert outcomes == {number: [[number * 1000 + n] for n in range(300)] for number in range(16)}
    assert single == list(range(50))


def test_a_client_that_does_not_read_is_not_read_from(worker: RunningWorker) -> None:
    """Of a client that sends without end and reads nothing, no more is taken than the window and what its own side
    buffers, some megabytes; when it reads, it gets every answer.
    """
    total, own = 2_000, list(range(64))
    request = echo_request(*own, top_k=10)
    answers = worker.stream(request for _ in range(total))
    images = worker.block.cells["digitserve_images"]
    taken = -1.0
    while taken != images[0, 0]:
        taken = images[0, 0]
        time.sleep(0.5)

    assert WINDOW_IMAGES <= taken < total * len(own) / 2
    (conversation,) = worker.worker._streams._conversations
    assert conversation.num_images == WINDOW_IMAGES
    assert all(scores(answer) == own for answer in answers)
    assert images[0, 0] == total * len(own)


def test_large_messages_are_bounded_too(worker: RunningWorker) -> None:
    """Messages of 1 000 images fill the window alone: one is on the way at a time, and a client that reads gets all."""
    most = 0

    def watched() -> Iterator[pb.ClassifyRequest]:
        nonlocal most
        for number in range(12):
            most = max([most, *(one.num_images for one in worker.worker._streams._conversations)])
            yield echo_request(*range(number, number + 1000))

    outcomes = [scores(outcome) for outcome in worker.stream(watched())]

    assert outcomes == [list(range(number, number + 1000)) for number in range(12)]
    assert most < WINDOW_IMAGES + 1000


@pytest.mark.parametrize(
    ("num_streams", "num_images", "limits"),
    [
        pytest.param(32, 1, {"max_pending_images": 16, "max_batch_size": 4}, id="many-streams"),
        pytest.param(16, 1000, {}, id="large-messages"),
        pytest.param(8, 200, {"max_request_bytes": 200_000}, id="many-bytes"),
    ],
)
def test_streams_wait_where_unary_calls_would_be_refused(
    models: Path, num_streams: int, num_images: int, limits: dict[str, int]
) -> None:
    """Streams that together bring more than may wait, in images or in bytes, are read as fast as they are answered; none of
    their messages is refused, though all streams were asked for one when there was room.
    """
    own = list(range(num_images))
    with run_worker(models, **limits) as worker:
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
        assert worker.block.cells["digitserve_rejected"].sum() == 0


def test_a_message_as_large_as_may_be_gets_its_turn_beside_small_ones(models: Path) -> None:
    """Streams that always have something small to send do not take the room of one that needs all of it."""
    with run_worker(models, max_pending_images=64, max_batch_size=8) as worker:
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


def test_a_request_that_can_never_fit_is_refused_in_its_place(models: Path) -> None:
    """A message of more images than may wait is an error of its own; its neighbours are answered."""
    with run_worker(models, max_pending_images=16) as worker:
        outcomes = [scores(one) for one in worker.stream([echo_request(1), echo_request(*range(17)), echo_request(2)])]

    assert outcomes == [[1], -3, [2]]


def test_a_message_over_the_limit_ends_the_stream_after_earlier_answers(models: Path) -> None:
    """Core throws a message over the limit away: earlier messages are answered, then the stream ends and says why."""
    with run_worker(models, max_request_bytes=100_000) as worker:
        paced = Paced()
        answers = worker.stream(paced)
        paced.send(echo_request(1), echo_request(2))
        assert [scores(next(answers)), scores(next(answers))] == [[1], [2]]
        paced.send(echo_request(*range(200)))
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)

        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        wait_until(lambda: worker.handled("ClassifyStream") == {"ResourceExhausted": 1}, "the stream is counted")


def test_a_cancelled_stream_is_forgotten(worker: RunningWorker) -> None:
    """When a client cancels, what waits of its stream is dropped, and the stream counts as cancelled."""
    answers = worker.stream(echo_request(*range(1000)) for _ in range(1000))
    next(answers)
    answers.cancel()

    wait_until(lambda: worker.handled("ClassifyStream") == {"Canceled": 1}, "the stream is counted")
    wait_until(lambda: worker.block.cells["digitserve_pending_images"][0, 0] == 0, "nothing waits")
    assert not worker.worker._streams._conversations
    assert [scores(one) for one in worker.stream([echo_request(3)])] == [[3]]


def test_a_stream_that_expires_is_forgotten(worker: RunningWorker) -> None:
    """A stream's deadline ends the whole of it."""
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
    assert not worker.worker._streams._conversations


def test_draining_answers_what_was_read_and_sends_clients_elsewhere(models: Path) -> None:
    """A worker that drains reads no more of its streams, answers all that it took and ends with UNAVAILABLE. What the
    client has read then is a beginning of the whole, so it knows by the number of answers what to send again.
    """
    outcomes = []
    with run_worker(models) as worker:
        answers = worker.stream(echo_request(n) for n in range(1_000_000))
        outcomes.append(scores(next(answers)))
        worker.worker.drain()
        with pytest.raises(grpc.RpcError) as ended:
            outcomes += map(scores, answers)

        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        assert outcomes == [[n] for n in range(len(outcomes))]
        assert len(outcomes) <= worker.block.cells["digitserve_images"][0, 0] < 1_000_000
        wait_until(lambda: worker.handled("ClassifyStream") == {"Unavailable": 1}, "the stream is counted")


def test_a_quiet_stream_does_not_hold_up_a_drain(models: Path) -> None:
    """A stream on which nothing happens is ended by a drain at once."""
    paced = Paced()
    with run_worker(models, grace_s=PATIENCE_S) as worker:
        answers = worker.stream(paced)
        paced.send(echo_request(1))
        assert scores(next(answers)) == [1]
        worker.worker.drain()
        with pytest.raises(grpc.RpcError) as ended:
            next(answers)
        paced.close()

    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


def test_framed_images_and_options_work_on_streams(worker: RunningWorker) -> None:
    """What ``Classify`` takes, a stream takes: other sizes, colours, ``top_k``."""
    paper = np.full((60, 40, 3), 255, np.uint8)
    paper[10:50, 18:23] = 0
    colour = pb.ClassifyRequest(pixels=paper.tobytes(), height=60, width=40, pixel_format=pb.PIXEL_FORMAT_RGB8)

    framed, listed = worker.stream([colour, echo_request(3, top_k=2)])

    assert framed.response.predictions[0].verdict == pb.VERDICT_ACCEPTED
    assert len(listed.response.predictions[0].top) == 2
    assert listed.response.model_version == "1"

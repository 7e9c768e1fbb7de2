"""The load generator's event loop against real gRPC servers: every request is counted once, under its status code."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import count, islice
from pathlib import Path

import grpc
import numpy as np
import pytest
from google.rpc import status_pb2

from digitserve.bench.counts import Counts
from digitserve.bench.load import Load, Unreachable
from digitserve.bench.plan import PATHS, Plan, Size
from digitserve.bench.traffic import draw
from digitserve.v1 import digits_pb2 as pb
from support.digits import MODELS
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until

PLAN = Plan("", connections=4, in_flight=3, duration_s=0.4, warm_up_s=0.0, timeout_s=PATIENCE_S)


def run_load(plan: Plan, clock: Callable[[], float] = time.monotonic) -> Counts:
    """Run a plan on this thread and return its counts."""
    counts = Counts()
    load = Load(plan, 0, counts.add, clock)
    load.connect()
    load.run(clock())
    load.close()
    return counts


def run_load_until(plan: Plan, condition: Callable[[Counts], bool]) -> Counts:
    """Run a plan on this thread until its counts so far meet a condition, and return its counts."""
    counts = Counts()
    reader, writer = os.pipe()

    def report(more: Counts) -> None:
        counts.add(more)
        if condition(counts):
            os.write(writer, b"stop")

    load = Load(replace(plan, duration_s=PATIENCE_S), 0, report)
    load.connect()
    load.stop_when_readable(reader)
    measured_s, _ = load.run(time.monotonic())
    load.close()
    os.close(reader)
    os.close(writer)
    assert measured_s < PATIENCE_S, f"the condition was never met: {counts}"
    return counts


def many_answered(counts: Counts) -> bool:
    return counts.codes.total() > 10


@pytest.fixture
def worker(models: Path) -> Iterator[RunningWorker]:
    with run_worker(models, max_side=64) as running:
        yield running


class Classifier:
    """Answers of a plain ``grpc.server``: one prediction per image. It rejects every fifth message of a stream, and images
    of width 13. While ``unblocked`` is not set, it answers nothing.
    """

    def __init__(self) -> None:
        self.num_answered = 0
        self.num_streams_ended_ok = 0
        self.blocked_call: grpc.ServicerContext | None = None
        self.unblocked = threading.Event()
        self.unblocked.set()

    def classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        self.num_answered += 1
        if request.width == 13:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "width 13 is not supported: größer bitte")
        return self.predict(request, context)

    def predict(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        if not self.unblocked.is_set():
            self.blocked_call = context
        self.unblocked.wait(PATIENCE_S)
        return pb.ClassifyResponse(predictions=[pb.Prediction(label="1")] * request.num_images)

    def stream(
        self, requests: Iterator[pb.ClassifyStreamRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ClassifyStreamResponse]:
        for number, request in enumerate(requests, start=1):
            self.num_answered += 1
            if number % 5 == 0:
                yield pb.ClassifyStreamResponse(error=status_pb2.Status(code=8, message="later"))
            else:
                yield pb.ClassifyStreamResponse(response=self.predict(request.request, context))
        self.num_streams_ended_ok += 1

    def handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        unary = grpc.unary_unary_rpc_method_handler(
            self.classify, pb.ClassifyRequest.FromString, pb.ClassifyResponse.SerializeToString
        )
        stream = grpc.stream_stream_rpc_method_handler(
            self.stream, pb.ClassifyStreamRequest.FromString, pb.ClassifyStreamResponse.SerializeToString
        )
        return {"Classify": unary, "ClassifyStream": stream}


@contextmanager
def run_server(
    *options: tuple[str, int], address: str = "127.0.0.1:0"
) -> Iterator[tuple[Classifier, grpc.Server, str]]:
    """Run a plain ``grpc.server``; yield its classifier, the server and its address."""
    classifier = Classifier()
    with ThreadPoolExecutor(16) as pool:
        server = grpc.server(pool, options=options)
        server.add_registered_method_handlers("digitserve.v1.DigitService", classifier.handlers())
        port = server.add_insecure_port(address)
        server.start()
        try:
            yield classifier, server, f"127.0.0.1:{port}"
        finally:
            server.stop(0).wait(PATIENCE_S)


def test_counts_agree_with_the_service(worker: RunningWorker) -> None:
    """In the closed loop, requests sent equal RPCs started, and OK answers equal RPCs handled."""
    counts = run_load_until(replace(PLAN, address=worker.address), many_answered)
    assert counts.codes == worker.handled()
    assert counts.codes["OK"] == counts.sent == worker.started() == counts.measured > 10
    assert counts.latencies.num == counts.sent
    assert counts.checked >= 1 and not counts.wrong
    assert not counts.failed_connections


@pytest.mark.parametrize("num_readings", range(10, 16))
def test_requests_at_the_end_of_the_measured_time(worker: RunningWorker, num_readings: int) -> None:
    """Every request sent in the measured time is counted in it, wherever the measured time ends: the clock of this test
    advances at each reading, so a second reading per request would show.
    """
    clock_readings = count()
    counts = run_load(
        replace(PLAN, address=worker.address, duration_s=num_readings - 0.5, timeout_s=1e9),
        clock=lambda: next(clock_readings),
    )
    assert counts.codes == worker.handled()
    assert counts.codes.total() == counts.sent > 0


def test_the_warm_up_is_sent_and_not_measured(worker: RunningWorker) -> None:
    """Requests of the warm-up reach the service, and are not in codes and latencies."""
    counts = run_load_until(replace(PLAN, address=worker.address, warm_up_s=0.2), many_answered)
    assert counts.sent == worker.started() > counts.codes["OK"] == counts.latencies.num > 0


def test_the_open_loop_sends_due_requests(worker: RunningWorker) -> None:
    """The rate determines the number of requests in the measured time, however fast the service is; all are counted, as
    answered or as due but not sent.
    """
    counts = run_load(replace(PLAN, address=worker.address, rate=100.0, duration_s=0.5))
    assert counts.measured == 50
    assert counts.codes["OK"] + counts.unsent == counts.latencies_and_waits().num == 50
    assert counts.codes == worker.handled()


def test_mixed_sizes_many_images_and_errors_by_code(worker: RunningWorker) -> None:
    """Images that the service frames are answered; those that it rejects are counted under its status code and message."""
    sizes = (Size(28, 28), Size(40, 64), Size(65, 28))
    counts = run_load_until(
        replace(PLAN, address=worker.address, sizes=sizes, images=3), lambda counts: len(counts.codes) == 2
    )
    assert set(counts.codes) == {"OK", "InvalidArgument"}
    assert counts.codes == worker.handled()
    assert counts.codes.total() == counts.sent
    assert "65" in counts.messages["InvalidArgument"]
    assert not counts.wrong


def test_requests_larger_than_every_window(worker: RunningWorker) -> None:
    """Requests of one megabyte pass flow control complete, several at once on a connection."""
    counts = run_load(replace(PLAN, address=worker.address, images=1_400, connections=1, in_flight=2))
    assert counts.codes == worker.handled() == {"OK": counts.sent}
    assert counts.checked and not counts.wrong


def test_deadline_exceeded(worker: RunningWorker) -> None:
    """A deadline of one microsecond is always exceeded, whether client or service notices first."""
    counts = run_load_until(replace(PLAN, address=worker.address, deadline_s=1e-6), many_answered)
    assert counts.codes == {"DeadlineExceeded": counts.sent}
    assert counts.sent > 10


def test_deadline_with_a_service_that_never_answers() -> None:
    """With a deadline, requests that the service never answers end at the deadline."""
    with run_server() as (classifier, _, address):
        classifier.unblocked.clear()
        try:
            counts = run_load(replace(PLAN, address=address, deadline_s=0.05))
        finally:
            classifier.unblocked.set()
    assert counts.codes == {"DeadlineExceeded": counts.sent}
    assert counts.sent >= PLAN.connections * PLAN.in_flight


def test_status_messages_in_unicode() -> None:
    """A status message arrives unchanged."""
    with run_server() as (classifier, _, address):
        counts = run_load(replace(PLAN, address=address, sizes=(Size(28, 13),)))
    assert counts.codes == {"FailedPrecondition": counts.sent} == {"FailedPrecondition": classifier.num_answered}
    assert counts.messages == {"FailedPrecondition": "width 13 is not supported: größer bitte"}


def test_max_concurrent_streams() -> None:
    """If the service limits the streams of a connection, further requests wait. gRPC core also counts streams that have
    just ended, and refuses some new ones; they are counted as UNAVAILABLE.
    """
    with run_server(("grpc.max_concurrent_streams", 2)) as (classifier, _, address):
        counts = run_load_until(replace(PLAN, address=address, in_flight=16), lambda counts: counts.codes["OK"] > 10)
    assert counts.codes["OK"] == classifier.num_answered > 10
    assert counts.codes["OK"] + counts.codes["Unavailable"] == counts.sent


def test_a_stream_carries_many_requests() -> None:
    """Answers are matched in order, errors inside the stream are counted by code, and each stream ends with OK."""
    with run_server() as (classifier, _, address):
        counts = run_load_until(replace(PLAN, address=address, method="stream", images=2), many_answered)
    assert set(counts.codes) == {"OK", "ResourceExhausted"}
    assert counts.codes.total() == counts.sent == classifier.num_answered > 10
    assert counts.codes["OK"] == pytest.approx(0.8 * counts.sent, abs=PLAN.connections)
    assert counts.messages == {"ResourceExhausted": "later"}
    assert counts.checked and not counts.wrong
    assert classifier.num_streams_ended_ok == PLAN.connections


def test_a_service_without_streams() -> None:
    """Each request counts under the status code of its stream."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        counts = run_load(replace(PLAN, address=f"127.0.0.1:{port}", method="stream"))
        server.stop(0).wait(PATIENCE_S)
    assert counts.codes == {"Unimplemented": counts.sent}


@pytest.mark.parametrize("method", list(PATHS))
def test_goaway_loses_no_request(method: str) -> None:
    """After GOAWAY, everything sent is answered, and a new connection replaces the old one."""
    age = (("grpc.max_connection_age_ms", 150), ("grpc.max_connection_age_grace_ms", 1000 * int(PATIENCE_S)))
    with run_server(*age) as (classifier, _, address):
        plan = replace(PLAN, address=address, method=method)
        counts = run_load_until(plan, lambda counts: counts.going_away >= PLAN.connections)
    assert counts.failed_connections == 0
    assert set(counts.codes) <= {"OK", "ResourceExhausted"}
    assert counts.codes.total() == counts.sent == classifier.num_answered


@pytest.mark.parametrize("method", list(PATHS))
def test_a_service_that_stops_and_restarts(method: str) -> None:
    """Requests in flight are counted as Unavailable or Canceled, and closed connections are counted; when a server
    listens again at the address, the load continues.
    """
    with run_server() as (first, server, address):
        plan = replace(PLAN, address=address, method=method)
        with ThreadPoolExecutor(1) as pool:

            def replace_server() -> None:
                wait_until(lambda: first.num_answered >= 50, "50 answers")
                # A request must be in flight when the server stops.
                first.unblocked.clear()
                wait_until(lambda: first.blocked_call, "a blocked request")
                stopped = server.stop(0)
                wait_until(lambda: not first.blocked_call.is_active(), "its end")  # type: ignore[union-attr]
                first.unblocked.set()
                stopped.wait(PATIENCE_S)
                with run_server(address=address) as (second, _, _):
                    wait_until(lambda: second.num_answered, "an answer of the second server")
                    answered.set()
                    loaded.wait(PATIENCE_S)

            answered, loaded = threading.Event(), threading.Event()
            replaced = pool.submit(replace_server)
            counts = run_load_until(plan, lambda _: answered.is_set())
            loaded.set()
            replaced.result()
    assert counts.failed_connections + counts.going_away >= PLAN.connections
    assert counts.codes.total() + counts.unanswered == counts.sent
    assert set(counts.codes) <= {"OK", "ResourceExhausted", "Unavailable", "Canceled"}
    assert counts.codes["Unavailable"] + counts.codes["Canceled"] >= 1, counts


def test_stopping_reports_what_was_measured(worker: RunningWorker) -> None:
    """A readable control descriptor ends the measured time; what was in flight is still answered and counted."""
    counts = run_load_until(replace(PLAN, address=worker.address), many_answered)
    assert counts.codes == worker.handled() == {"OK": counts.sent}


def test_unreachable_addresses() -> None:
    """A port where no server listens, and malformed addresses, raise Unreachable before any load."""
    with pytest.raises(Unreachable, match="refused"):
        run_load(replace(PLAN, address="127.0.0.1:1", timeout_s=0.3))
    for address in ("127.0.0.1", "no.such.host.invalid:1", "127.0.0.1:99999999"):
        with pytest.raises(Unreachable):
            run_load(replace(PLAN, address=address, timeout_s=0.3))


def test_drawn_digits_are_recognised() -> None:
    """The shipped network recognises most of the drawn digits: the load resembles real requests."""
    with run_worker(MODELS) as worker:
        generator = np.random.default_rng(5)
        drawn = list(islice(((digit, draw(digit, Size(28, 28), generator)) for digit in [*range(10)] * 10), 100))
        pixels = b"".join(image.tobytes() for _, image in drawn)
        predictions = worker.classify(pb.ClassifyRequest(pixels=pixels)).predictions
    correct = [prediction.label == str(digit) for prediction, (digit, _) in zip(predictions, drawn, strict=True)]
    assert np.mean(correct) > 0.8

"""The load generator's loop against real gRPC servers: every request is counted once, under the code that it got."""

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
from support.bundles import write_echo_bundle
from support.digits import MODELS
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until

PLAN = Plan("", connections=4, in_flight=3, duration_s=0.4, warm_up_s=0.0, timeout_s=PATIENCE_S)


def load(plan: Plan, clock: Callable[[], float] = time.monotonic) -> Counts:
    """Run a plan on this thread and return what it counted."""
    counts = Counts()
    running = Load(plan, 0, counts.add, clock)
    running.connect()
    running.run(clock())
    running.close()
    return counts


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_echo_bundle(path)
    return path


@pytest.fixture
def worker(models: Path) -> Iterator[RunningWorker]:
    with run_worker(models, max_side=64) as running:
        yield running


class Classifier:
    """A plain ``grpc.server``'s answers: right in number; every fifth message of a stream, and images of width 13, are
    refused; while it is not ``opened``, nothing is answered.
    """

    def __init__(self) -> None:
        self.num_answered = 0
        self.num_streams_ended_well = 0
        self.held: grpc.ServicerContext | None = None
        self.opened = threading.Event()
        self.opened.set()

    def classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        self.num_answered += 1
        if request.width == 13:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "13 brings bad luck: größer bitte")
        return self.predict(request, context)

    def predict(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        if not self.opened.is_set():
            self.held = context
        self.opened.wait(PATIENCE_S)
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
        self.num_streams_ended_well += 1

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
    """Run a plain ``grpc.server``; give its classifier, itself and its address."""
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


def test_counts_are_those_of_the_service(worker: RunningWorker) -> None:
    """Closed loop: requests sent are RPCs started, and OK answers are RPCs handled, exactly."""
    counts = load(replace(PLAN, address=worker.address))
    assert counts.codes == worker.handled()
    assert counts.codes["OK"] == counts.sent == worker.started() == counts.measured > 10
    assert counts.latencies.num == counts.sent
    assert counts.checked >= 1 and not counts.wrong
    assert not counts.failed_connections


@pytest.mark.parametrize("num_readings", range(10, 16))
def test_what_is_sent_in_the_measured_time_is_counted_in_it(worker: RunningWorker, num_readings: int) -> None:
    """Wherever among the first requests the measured time ends: with a clock that moves only by being read, no request
    falls between two readings.
    """
    readings = count()
    counts = load(
        replace(PLAN, address=worker.address, duration_s=num_readings - 0.5, timeout_s=1e9),
        clock=lambda: next(readings),
    )
    assert counts.codes == worker.handled()
    assert counts.codes.total() == counts.sent > 0


def test_the_warm_up_is_sent_and_not_measured(worker: RunningWorker) -> None:
    """Requests of the warm-up reach the service and stay out of codes and latencies."""
    counts = load(replace(PLAN, address=worker.address, warm_up_s=0.2))
    assert counts.sent == worker.started() > counts.codes["OK"] == counts.latencies.num > 0


def test_the_open_loop_sends_what_is_due(worker: RunningWorker) -> None:
    """At a rate, as many requests as it says are meant for the measured time, however fast the service is: all of them
    are counted, answered or still in line.
    """
    counts = load(replace(PLAN, address=worker.address, rate=100.0, duration_s=0.5))
    assert counts.measured == 50
    assert counts.codes["OK"] + counts.unsent == counts.latencies_and_waits().num == 50
    assert counts.codes == worker.handled()


def test_mixed_sizes_many_images_and_errors_by_code(worker: RunningWorker) -> None:
    """Sizes that the service frames are answered, those that it refuses are counted under its code with its words."""
    sizes = (Size(28, 28), Size(40, 64), Size(65, 28))
    counts = load(replace(PLAN, address=worker.address, sizes=sizes, images=3))
    assert set(counts.codes) == {"OK", "InvalidArgument"}
    assert counts.codes == worker.handled()
    assert counts.codes.total() == counts.sent
    assert "65" in counts.messages["InvalidArgument"]
    assert not counts.wrong


def test_requests_larger_than_every_window(worker: RunningWorker) -> None:
    """A megabyte a request passes the service's flow control whole, several at once on a connection."""
    counts = load(replace(PLAN, address=worker.address, images=1_400, connections=1, in_flight=2, duration_s=0.3))
    assert counts.codes == worker.handled() == {"OK": counts.sent}
    assert counts.checked and not counts.wrong


def test_deadlines_pass(worker: RunningWorker) -> None:
    """A deadline of a thousandth of a millisecond is met by nobody, whoever notices first."""
    counts = load(replace(PLAN, address=worker.address, deadline_s=1e-6))
    assert counts.codes == {"DeadlineExceeded": counts.sent}
    assert counts.sent > 10


def test_a_silent_service_is_not_waited_for() -> None:
    """With a deadline, requests that a stuck service never answers end by it."""
    with run_server() as (classifier, _, address):
        classifier.opened.clear()
        try:
            counts = load(replace(PLAN, address=address, deadline_s=0.05))
        finally:
            classifier.opened.set()
    assert counts.codes == {"DeadlineExceeded": counts.sent}
    assert counts.sent >= PLAN.connections * PLAN.in_flight


def test_statuses_with_words_of_any_script() -> None:
    """A status' message arrives as it was written."""
    with run_server() as (classifier, _, address):
        counts = load(replace(PLAN, address=address, sizes=(Size(28, 13),)))
    assert counts.codes == {"FailedPrecondition": counts.sent} == {"FailedPrecondition": classifier.num_answered}
    assert counts.messages == {"FailedPrecondition": "13 brings bad luck: größer bitte"}


def test_no_more_streams_than_the_service_takes() -> None:
    """Where the service bounds the streams of a connection, the rest waits. Core counts streams that have just ended, too,
    and refuses some: those are counted as never answered by it.
    """
    with run_server(("grpc.max_concurrent_streams", 2)) as (classifier, _, address):
        counts = load(replace(PLAN, address=address, in_flight=16))
    assert counts.codes["OK"] == classifier.num_answered > 10
    assert counts.codes["OK"] + counts.codes["Unavailable"] == counts.sent


def test_a_stream_carries_many_requests() -> None:
    """Answers are matched in order, errors inside the stream are counted by code, and each stream is ended well."""
    with run_server() as (classifier, _, address):
        counts = load(replace(PLAN, address=address, method="stream", images=2))
    assert set(counts.codes) == {"OK", "ResourceExhausted"}
    assert counts.codes.total() == counts.sent == classifier.num_answered > 10
    assert counts.codes["OK"] == pytest.approx(0.8 * counts.sent, abs=PLAN.connections)
    assert counts.messages == {"ResourceExhausted": "later"}
    assert counts.checked and not counts.wrong
    assert classifier.num_streams_ended_well == PLAN.connections


def test_a_service_without_the_stream_says_so() -> None:
    """Each message counts as what its stream ended with."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        counts = load(replace(PLAN, address=f"127.0.0.1:{port}", method="stream"))
        server.stop(0).wait(PATIENCE_S)
    assert counts.codes == {"Unimplemented": counts.sent}


@pytest.mark.parametrize("method", list(PATHS))
def test_connections_that_are_asked_to_leave_come_back(method: str) -> None:
    """GOAWAY loses nothing: what was sent is answered, then a new connection takes the place."""
    age = (("grpc.max_connection_age_ms", 150), ("grpc.max_connection_age_grace_ms", 1000 * int(PATIENCE_S)))
    with run_server(*age) as (classifier, _, address):
        counts = load(replace(PLAN, address=address, method=method, duration_s=1.0))
    assert counts.going_away >= PLAN.connections
    assert counts.failed_connections == 0
    assert set(counts.codes) <= {"OK", "ResourceExhausted"}
    assert counts.codes.total() == counts.sent == classifier.num_answered


@pytest.mark.parametrize("method", list(PATHS))
def test_a_service_that_breaks_off_loses_requests_and_is_found_again(method: str) -> None:
    """Requests in flight are counted as Unavailable or Canceled, the ends of connections are counted; once somebody
    listens there again, the load goes on.
    """
    with run_server() as (first, server, address):
        plan = replace(PLAN, address=address, method=method, duration_s=2.0)
        counts = Counts()
        running = Load(plan, 0, counts.add)
        running.connect()
        with ThreadPoolExecutor(1) as pool:

            def replace_server() -> int:
                wait_until(lambda: first.num_answered >= 50, "50 answers")
                # Something must be under way when it breaks off.
                first.opened.clear()
                wait_until(lambda: first.held, "a request that is held")
                stopped = server.stop(0)
                wait_until(lambda: not first.held.is_active(), "its end")  # type: ignore[union-attr]
                first.opened.set()
                stopped.wait(PATIENCE_S)
                with run_server(address=address) as (second, _, _):
                    loaded.wait(PATIENCE_S)
                    return second.num_answered

            loaded = threading.Event()
            num_answered = pool.submit(replace_server)
            running.run(time.monotonic())
            running.close()
            loaded.set()
            assert num_answered.result() > 0
    assert counts.failed_connections + counts.going_away >= PLAN.connections
    assert counts.codes.total() + counts.unanswered == counts.sent
    assert set(counts.codes) <= {"OK", "ResourceExhausted", "Unavailable", "Canceled"}
    assert counts.codes["Unavailable"] + counts.codes["Canceled"] >= 1, counts


def test_stopping_reports_what_was_measured(worker: RunningWorker) -> None:
    """A word on the control descriptor ends the measuring; what was in flight is still answered and counted."""
    reader, writer = os.pipe()
    counts = Counts()
    running = Load(replace(PLAN, address=worker.address, duration_s=PATIENCE_S), 0, counts.add)
    running.connect()
    running.watch(reader)
    threading.Timer(0.3, os.close, [writer]).start()
    measured_s, _ = running.run(time.monotonic())
    running.close()
    os.close(reader)
    assert 0 < measured_s < PATIENCE_S / 2
    assert counts.codes == worker.handled() == {"OK": counts.sent}


def test_nobody_at_the_address() -> None:
    """A port where nobody listens, and an address that is none, are told before any load."""
    with pytest.raises(Unreachable, match="refused"):
        load(replace(PLAN, address="127.0.0.1:1", timeout_s=0.3))
    for address in ("127.0.0.1", "no.such.host.invalid:1", "127.0.0.1:99999999"):
        with pytest.raises(Unreachable):
            load(replace(PLAN, address=address, timeout_s=0.3))


def test_drawn_digits_are_digits() -> None:
    """The network that is shipped reads most of the drawn images as what was drawn: the load is of the kind that a
    service gets.
    """
    with run_worker(MODELS) as running:
        chance = np.random.default_rng(5)
        drawn = list(islice(((digit, draw(digit, Size(28, 28), chance)) for digit in [*range(10)] * 10), 100))
        pixels = b"".join(image.tobytes() for _, image in drawn)
        predictions = running.classify(pb.ClassifyRequest(pixels=pixels)).predictions
    right = [prediction.label == str(digit) for prediction, (digit, _) in zip(predictions, drawn, strict=True)]
    assert np.mean(right) > 0.8

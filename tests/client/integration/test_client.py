"""The client library against a real worker whose network's output encodes its input."""

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from numpy.typing import NDArray

from digitserve.client import (
    AsyncClient,
    Client,
    Closed,
    Framing,
    Ink,
    InvalidRequest,
    Prediction,
    Refused,
    Unreachable,
    Verdict,
)
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, RunningWorker, run_worker, sockets, wait_until


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_echo_bundle(path)
    return path


@pytest.fixture
def worker(models: Path) -> Iterator[RunningWorker]:
    with run_worker(models) as running:
        yield running


def images_of(first: int, num_images: int) -> NDArray[np.uint8]:
    """Return uint8[N,28,28] whose answers are consecutive numbers."""
    images = [echo_image(number) for number in range(first, first + num_images)]
    return np.array(images, np.uint8).reshape(-1, 28, 28)


def scores(predictions: list[Prediction]) -> list[int]:
    """Return the numbers that predictions carry."""
    return [int(prediction.ood_score) for prediction in predictions]


def awaited(address: str, use: Callable[[AsyncClient], Awaitable[Any]], **arguments: Any) -> Any:
    """Use an asynchronous client in a loop of its own."""

    async def run() -> Any:
        async with AsyncClient(address, **arguments) as client:
            return await use(client)

    return asyncio.run(run())


def classify(kind: str, address: str, images: Any, **arguments: Any) -> list[Prediction]:
    """Classify once with either client."""
    options = {name: arguments.pop(name) for name in ("top_k", "ink", "framing") if name in arguments}
    if kind == "async":
        return awaited(address, lambda client: client.classify(images, **options), **arguments)
    with Client(address, **arguments) as client:
        return client.classify(images, **options)


KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


@KINDS
def test_a_prediction_says_all(worker: RunningWorker, kind: str) -> None:
    """One image gets one prediction: label, index, confidence, verdict, score, and the classes asked for."""
    (prediction,) = classify(kind, worker.address, echo_image(1234567), top_k=2)

    assert (prediction.label, prediction.class_index, prediction.confidence) == ("7", 7, 1.0)
    assert (prediction.verdict, prediction.ood_score) == (Verdict.ACCEPTED, 1234567)
    assert [(score.label, score.confidence) for score in prediction.top] == [("7", 1.0), ("0", 0.0)]
    assert classify(kind, worker.address, []) == []


@KINDS
def test_many_images_come_back_in_order(worker: RunningWorker, kind: str) -> None:
    """A thousand images in requests of 7 are the same thousand answers, in order; each request was counted once."""
    answers = classify(kind, worker.address, images_of(0, 1000), images_per_request=7)

    assert scores(answers) == list(range(1000))
    assert worker.handled() == {"OK": 143}


@KINDS
def test_the_services_limits_shape_the_requests(models: Path, kind: str) -> None:
    """A service that takes little at once gets small requests: its limits are asked for, and none is refused."""
    with run_worker(models, max_request_bytes=5000, max_pending_images=64) as worker:
        answers = classify(kind, worker.address, images_of(0, 50), images_per_request=1000, max_in_flight=4)

        assert scores(answers) == list(range(50))
        # 4 936 bytes hold 6 images of 784.
        assert worker.handled() == {"OK": 9}


@KINDS
def test_images_of_many_sizes_and_colours_go_in_one_call(worker: RunningWorker, kind: str) -> None:
    """A list of grey and coloured images of any sizes is answered in its order; ink and framing are passed on."""
    blanks = np.zeros((40, 30, 3), np.uint8), np.zeros((9, 9), np.uint8)
    images = [image for number in range(0, 60, 3) for image in (echo_image(number), *blanks)]
    answers = classify(kind, worker.address, images, images_per_request=5)
    framed = classify(kind, worker.address, 255 - echo_image(3), ink=Ink.DARK_ON_LIGHT, framing=Framing.AS_IS)

    assert [answer.verdict for answer in answers] == [Verdict.ACCEPTED, Verdict.BLANK, Verdict.BLANK] * 20
    assert scores(answers[::3]) == list(range(0, 60, 3))
    assert scores(framed) == [3]


@KINDS
def test_a_failing_part_fails_the_call_and_is_named(worker: RunningWorker, kind: str) -> None:
    """When one of several requests is refused, the error says which images, got and expected, and has the code."""
    images = [echo_image(0), echo_image(1), np.zeros((2, 5000), np.uint8), echo_image(3)]
    with pytest.raises(Refused, match=r"^image 2: INVALID_ARGUMENT: got 2x5000.*expected") as refused:
        classify(kind, worker.address, images)
    assert refused.value.code is grpc.StatusCode.INVALID_ARGUMENT

    with pytest.raises(Refused, match=r"^INVALID_ARGUMENT") as alone:
        classify(kind, worker.address, images[2])
    assert alone.value.code is grpc.StatusCode.INVALID_ARGUMENT


@KINDS
def test_what_is_no_image_is_refused_before_it_is_sent(worker: RunningWorker, kind: str) -> None:
    """A wrong type or shape raises InvalidRequest; the service hears nothing of it."""
    with pytest.raises(InvalidRequest, match="float64"):
        classify(kind, worker.address, np.zeros((28, 28)))
    assert worker.started() == 0


@KINDS
def test_one_deadline_holds_for_all_parts(worker: RunningWorker, kind: str) -> None:
    """A call whose images take longer than its time fails as a whole; it does not start anew with each request."""
    with pytest.raises(Unreachable, match=r"within 0\.2 s"):
        classify(kind, worker.address, images_of(0, 20_000), images_per_request=1, timeout_s=0.2, max_in_flight=2)
    assert worker.started() < 20_000


@KINDS
def test_nobody_at_the_address_is_told_at_once(models: Path, kind: str) -> None:
    """An address where nobody has ever answered is Unreachable long before the deadline, and not healthy."""
    with run_worker(models) as worker:
        address = worker.address
    with pytest.raises(Unreachable, match="digitserve serve"):
        classify(kind, address, echo_image(1), timeout_s=3600)
    with Client(address) as client:
        assert not client.healthy()
    assert not awaited(address, lambda other: other.healthy())


@KINDS
def test_the_model_and_its_health_are_asked_for(worker: RunningWorker, kind: str) -> None:
    """``model`` has what ``GetModel`` says; ``healthy`` is true while the service says SERVING."""

    async def ask(client: AsyncClient) -> Any:
        return await client.model(), await client.healthy()

    if kind == "async":
        model, healthy = awaited(worker.address, ask)
    else:
        with Client(worker.address) as client:
            model, healthy = client.model(), client.healthy()

    assert (model.name, model.version, list(model.labels)) == ("digits", "1", list("0123456789"))
    assert healthy


def test_eight_threads_get_their_own_answers(worker: RunningWorker) -> None:
    """A hundred calls of random sizes from each of 8 threads on one client: every caller gets its own answers."""

    def call(client: Client, caller: int) -> int:
        chance = random.Random(caller)
        for turn in range(100):
            first, num_images = caller * 100_000 + turn * 100, chance.choice((1, 1, 1, 2, 9, 40))
            answers = client.classify(images_of(first, num_images))
            assert scores(answers) == list(range(first, first + num_images))
        return 100

    with Client(worker.address, images_per_request=8, timeout_s=PATIENCE_S) as client, ThreadPoolExecutor(8) as callers:
        assert sum(callers.map(lambda caller: call(client, caller), range(8))) == 800


def test_a_hundred_tasks_get_their_own_answers(worker: RunningWorker) -> None:
    """A hundred simultaneous calls of random sizes in one loop: every caller gets its own answers."""
    chance = random.Random(3)
    sizes = [chance.choice((0, 1, 2, 9, 40)) for _ in range(100)]

    async def use(client: AsyncClient) -> list[list[Prediction]]:
        return await asyncio.gather(*(client.classify(images_of(n * 100, size)) for n, size in enumerate(sizes)))

    answers = awaited(worker.address, use, images_per_request=8, timeout_s=PATIENCE_S)
    assert [scores(one) for one in answers] == [list(range(n * 100, n * 100 + size)) for n, size in enumerate(sizes)]


def test_a_large_call_leaves_room_for_others(worker: RunningWorker) -> None:
    """While a call of many requests holds all of the client's threads, another thread's call is answered."""
    with Client(worker.address, images_per_request=1, timeout_s=PATIENCE_S, max_in_flight=2) as client:
        client.model()
        large = threading.Thread(target=client.classify, args=(images_of(0, 600),))
        large.start()
        wait_until(lambda: worker.started() > 10, "the large call is under way")
        assert scores(client.classify(images_of(70_000, 3))) == [70_000, 70_001, 70_002]
        small_was_first = worker.started() < 600
        large.join()

    assert small_was_first


def test_a_closed_client_says_so(worker: RunningWorker) -> None:
    """After ``close`` every call raises Closed; closing twice does no harm."""
    client = Client(worker.address, images_per_request=1)
    assert scores(client.classify(images_of(0, 3))) == [0, 1, 2]
    client.close()
    client.close()
    for call in (lambda: client.classify(images_of(0, 3)), client.model, client.healthy):
        with pytest.raises(Closed):
            call()


def test_each_connection_is_its_own(worker: RunningWorker) -> None:
    """A pool of five has five connections to the service, not five names for one."""
    with Client(worker.address, num_connections=5) as client:
        for _ in range(12):
            client.classify(echo_image(1))
        assert sum(one.open for one in sockets(worker.address)) == 5


class Busy:
    """A plain ``grpc.server`` that refuses its first calls of ``Classify``, with or without a time to retry."""

    def __init__(self, num_refused: int, retry_after_s: float | None) -> None:
        self.num_calls = 0
        self._num_refused = num_refused
        self._status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="no room")
        if retry_after_s is not None:
            retry, packed = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration()), any_pb2.Any()
            retry.retry_delay.FromNanoseconds(int(retry_after_s * 1e9))
            packed.Pack(retry)
            self._status.details.append(packed)

    def classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        self.num_calls += 1
        if self.num_calls <= self._num_refused:
            context.abort_with_status(rpc_status.to_status(self._status))
        return pb.ClassifyResponse(predictions=[pb.Prediction(label="1")] * request.num_images)

    def model(self, _request: pb.GetModelRequest, _context: grpc.ServicerContext) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=pb.Model(max_request_bytes=1 << 20, max_images_per_request=64))

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve, and give the address."""
        handlers = {
            "Classify": grpc.unary_unary_rpc_method_handler(
                self.classify, pb.ClassifyRequest.FromString, pb.ClassifyResponse.SerializeToString
            ),
            "GetModel": grpc.unary_unary_rpc_method_handler(
                self.model, pb.GetModelRequest.FromString, pb.GetModelResponse.SerializeToString
            ),
        }
        with ThreadPoolExecutor(1) as pool:
            server = grpc.server(pool)
            server.add_registered_method_handlers("digitserve.v1.DigitService", handlers)
            address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
            server.start()
            try:
                yield address
            finally:
                server.stop(0).wait(PATIENCE_S)


@KINDS
def test_a_service_without_room_is_asked_again(kind: str) -> None:
    """RESOURCE_EXHAUSTED with a time to retry is tried again until there is room; the caller sees the answer only."""
    busy = Busy(num_refused=3, retry_after_s=0.001)
    with busy.running() as address:
        (prediction,) = classify(kind, address, echo_image(1), timeout_s=PATIENCE_S)

    assert prediction.label == "1"
    assert busy.num_calls == 4


@KINDS
@pytest.mark.parametrize("retry_after_s", [None, 3600.0])
def test_what_no_time_will_change_is_not_asked_again(kind: str, retry_after_s: float | None) -> None:
    """RESOURCE_EXHAUSTED without a time to retry, or with one after the deadline, is told after one call."""
    busy = Busy(num_refused=100, retry_after_s=retry_after_s)
    with busy.running() as address, pytest.raises(Refused, match="RESOURCE_EXHAUSTED: no room") as refused:
        classify(kind, address, echo_image(1), timeout_s=PATIENCE_S)

    assert refused.value.retry_after_s == retry_after_s
    assert busy.num_calls == 1


@KINDS
@pytest.mark.parametrize("smaller", [{"max_request_bytes": 5000}, {"max_pending_images": 16}])
def test_limits_of_a_service_that_was_started_anew_are_learnt(models: Path, kind: str, smaller: dict[str, int]) -> None:
    """After a restart with smaller limits the same client cuts anew and every call is answered; an image that no cut makes
    small enough is refused all the same.
    """

    async def turn(use: Callable[..., Any], *arguments: Any) -> Any:
        return await use(*arguments) if kind == "async" else await asyncio.to_thread(use, *arguments)

    async def run() -> None:
        arguments: dict[str, Any] = {"images_per_request": 50, "timeout_s": PATIENCE_S, "max_in_flight": 1}
        with run_worker(models) as first:
            address = first.address
            client = (AsyncClient if kind == "async" else Client)(address, **arguments)
            assert scores(await turn(client.classify, images_of(0, 50))) == list(range(50))
        with run_worker(models, grpc_port=int(address.rpartition(":")[2]), **smaller) as second:
            assert scores(await turn(client.classify, images_of(0, 50))) == list(range(50))
            with pytest.raises(Refused):
                await turn(client.classify, np.zeros((2, 5000), np.uint8))
            before = second.handled()["OK"]
            assert scores(await turn(client.classify, images_of(50, 6))) == list(range(50, 56))
            assert second.handled()["OK"] == before + 1
            await turn(client.close)

    asyncio.run(run())


def test_threads_whose_client_is_closed_are_told_so(worker: RunningWorker) -> None:
    """Calls under way when another thread closes the client end with Closed, at whatever point they were."""
    for _ in range(5):
        client = Client(worker.address, num_connections=2, images_per_request=1, timeout_s=PATIENCE_S, max_in_flight=4)
        before = worker.started()

        def ask(client: Client = client) -> None:
            while True:
                client.classify(images_of(0, 20))

        with ThreadPoolExecutor(3) as callers:
            asking = [callers.submit(ask) for _ in range(3)]
            wait_until(lambda before=before: worker.started() > before + 10, "calls are under way")
            client.close()
            assert [type(one.exception()) for one in asking] == [Closed] * 3


def test_tasks_whose_client_is_closed_are_told_so(worker: RunningWorker) -> None:
    """Calls under way when another task closes the client end with Closed; none returns fewer answers, and a task that was
    cancelled beside that stays so.
    """

    async def ask(client: AsyncClient) -> None:
        while True:
            assert scores(await client.classify(images_of(0, 20))) == list(range(20))

    async def run() -> None:
        client = AsyncClient(worker.address, num_connections=2, images_per_request=1, timeout_s=PATIENCE_S)
        before = worker.started()
        asking = [asyncio.create_task(ask(client)) for _ in range(4)]
        while worker.started() < before + 10:  # noqa: ASYNC110 - the worker is a thread
            await asyncio.sleep(0.001)
        asking[0].cancel()
        await client.close()
        ends = await asyncio.gather(*asking, return_exceptions=True)
        assert [type(end) for end in ends] == [asyncio.CancelledError, Closed, Closed, Closed]

    for _ in range(5):
        asyncio.run(run())

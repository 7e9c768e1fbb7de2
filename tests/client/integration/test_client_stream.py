"""``classify_stream`` of both clients against a real worker whose network's output encodes its input."""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from digitserve.client import (
    AsyncClient,
    Client,
    ClientError,
    Closed,
    DeadlineExceeded,
    Framing,
    Ink,
    InvalidRequest,
    RequestRejected,
    Unreachable,
)
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image
from support.clients import serve_handlers
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until

KINDS = pytest.mark.parametrize("kind", ["sync", "async"])


def stream(kind: str, address: str, images: Iterable[Any], each: Callable[[Any], None], **options: Any) -> None:
    """Classify a stream with either client, and pass every outcome to ``each``."""
    arguments = {"num_connections": 4, "timeout_s": options.pop("timeout_s", PATIENCE_S)}
    if "max_side" in options:
        arguments["max_side"] = options.pop("max_side")

    async def run() -> None:
        async with (
            AsyncClient(address, **arguments) as client,
            aclosing(client.classify_stream(images, **options)) as outcomes,
        ):
            async for outcome in outcomes:
                each(outcome)

    if kind == "async":
        asyncio.run(run())
    else:
        with (
            Client(address, **arguments) as client,
            closing(client.classify_stream(images, **options)) as outcomes,
        ):
            for outcome in outcomes:
                each(outcome)


def numbers_of(outcomes: list[Any]) -> list[int]:
    """Return the numbers that predictions carry; the position of an error is negative."""
    return [-outcome.index if isinstance(outcome, ClientError) else int(outcome.ood_score) for outcome in outcomes]


def ended_streams(worker: RunningWorker) -> dict[str, int]:
    """Return how many streams ended, by code."""
    return worker.handled("ClassifyStream")


@KINDS
def test_a_stream_is_answered_in_order(worker: RunningWorker, kind: str) -> None:
    """A thousand images of two sizes, more than may be in flight, get their answers in order, on one stream that ends with OK."""
    outcomes: list[Any] = []
    images = (echo_image(n) if n % 2 else np.pad(echo_image(n), ((0, 0), (0, 0))) for n in range(1000))
    stream(kind, worker.address, images, outcomes.append, max_in_flight=100)

    assert numbers_of(outcomes) == list(range(1000))
    wait_until(lambda: ended_streams(worker), "the stream is counted")
    assert ended_streams(worker) == {"OK": 1}


@KINDS
def test_a_stream_may_ask_how_images_were_prepared(worker: RunningWorker, kind: str) -> None:
    """With ``explain`` each prediction of a stream has its preparation; large images are reduced as in single calls."""
    photo = np.full((2050, 100, 3), 255, np.uint8)
    photo[500:1500, 45:55] = 0
    outcomes: list[Any] = []
    stream(kind, worker.address, [echo_image(5), photo], outcomes.append, explain=True)

    small, large = (outcome.preparation for outcome in outcomes)
    assert (small.pixels == echo_image(5)).all() and small.framing is Framing.AS_IS
    assert (large.framing, large.ink) == (Framing.MNIST, Ink.DARK_ON_LIGHT)
    outcomes.clear()
    stream(kind, worker.address, [echo_image(5)], outcomes.append)
    assert outcomes[0].preparation is None


@KINDS
def test_the_input_is_read_a_bounded_number_of_images_ahead(worker: RunningWorker, kind: str) -> None:
    """Without the caller taking predictions, at most ``max_in_flight`` images are taken from the input, and one more."""
    taken: list[int] = []
    ahead: list[int] = []

    def images() -> Iterator[Any]:
        for number in range(200):
            taken.append(number)
            yield echo_image(number)

    stream(
        kind,
        worker.address,
        images(),
        lambda outcome: ahead.append(len(taken) - int(outcome.ood_score)),
        max_in_flight=7,
    )

    assert len(ahead) == 200
    assert max(ahead) <= 8


@KINDS
def test_an_answer_does_not_wait_for_the_next_image(worker: RunningWorker, kind: str) -> None:
    """A caller that gives the next image only after the last answer is answered: nothing is buffered to fill a window."""
    answered: queue.Queue[int] = queue.Queue()

    def images() -> Iterator[Any]:
        for number in range(20):
            if number:
                assert answered.get(timeout=PATIENCE_S) == number - 1
            yield echo_image(number)

    async def images_async() -> AsyncIterator[Any]:
        for number in range(20):
            while number and answered.empty():  # noqa: ASYNC110 - the queue serves both kinds of client
                await asyncio.sleep(0.001)
            assert not number or answered.get() == number - 1
            yield echo_image(number)

    source: Any = images_async() if kind == "async" else images()
    seen: list[int] = []
    stream(kind, worker.address, source, lambda one: (answered.put(int(one.ood_score)), seen.append(1)))
    assert len(seen) == 20


@KINDS
def test_a_bad_image_raises_in_its_place(worker: RunningWorker, kind: str) -> None:
    """Images before a bad one are answered; then its error is raised with its position, whether the client or the service
    found it.
    """
    for bad, error in ((np.zeros((28, 28)), InvalidRequest), (np.zeros((2, 5000), np.uint8), RequestRejected)):
        outcomes: list[Any] = []
        images = [echo_image(0), echo_image(1), bad, echo_image(3)]
        with pytest.raises(error, match="image 2: .*expected") as caught:
            stream(kind, worker.address, images, outcomes.append, max_side=None)
        assert numbers_of(outcomes) == [0, 1]
        assert caught.value.index == 2


@KINDS
def test_errors_are_returned_in_their_place_on_request(worker: RunningWorker, kind: str) -> None:
    """With ``return_exceptions`` a bad image costs only itself: its error takes the place of its prediction."""
    outcomes: list[Any] = []
    images = [echo_image(0), np.zeros((28, 28)), echo_image(2), np.zeros((2, 5000), np.uint8), echo_image(4), "text"]
    stream(kind, worker.address, images, outcomes.append, return_exceptions=True, max_side=None)

    assert numbers_of(outcomes) == [0, -1, 2, -3, 4, -5]
    assert [type(outcomes[n]) for n in (1, 3, 5)] == [InvalidRequest, RequestRejected, InvalidRequest]
    assert outcomes[3].code is grpc.StatusCode.INVALID_ARGUMENT


@KINDS
def test_a_message_that_is_too_large_costs_only_itself(models: Path, kind: str) -> None:
    """The service ends the stream at a message over its limit; the client reports that image, and continues with the next."""
    outcomes: list[Any] = []
    with run_worker(models, max_request_bytes=5000) as worker:
        images = [echo_image(0), np.zeros((100, 100), np.uint8), echo_image(2)]
        stream(kind, worker.address, images, outcomes.append, return_exceptions=True, max_side=None)

    assert numbers_of(outcomes) == [0, -1, 2]
    assert outcomes[1].code is grpc.StatusCode.RESOURCE_EXHAUSTED


@KINDS
def test_an_error_of_the_input_is_raised_after_the_answers(worker: RunningWorker, kind: str) -> None:
    """When the caller's iterator raises, the images before it are answered, then its error is raised."""
    outcomes: list[Any] = []

    def images() -> Iterator[Any]:
        yield echo_image(0)
        yield echo_image(1)
        raise KeyError("camera")

    with pytest.raises(KeyError, match="camera"):
        stream(kind, worker.address, images(), outcomes.append)
    assert numbers_of(outcomes) == [0, 1]


@KINDS
def test_a_stream_survives_worker_replacement(models: Path, kind: str) -> None:
    """Workers are drained in the middle of a stream, each replaced by another: no answer is lost, repeated or out of order."""
    outcomes: list[Any] = []
    with ExitStack() as stack:
        workers = [stack.enter_context(run_worker(models))]
        port = int(workers[0].address.rpartition(":")[2])

        def each(outcome: Any) -> None:
            outcomes.append(outcome)
            if len(outcomes) in {500, 1000, 1500}:
                workers.append(stack.enter_context(run_worker(models, grpc_port=port)))
                workers[-2].worker.drain()
                wait_until(lambda: ended_streams(workers[-2]), "the stream on the drained worker ended")

        stream(kind, workers[0].address, (echo_image(n) for n in range(3000)), each)
        wait_until(lambda: len(ended_streams(workers[-1])) == 1, "the last stream is counted")
        ends = [ended_streams(worker) for worker in workers]

    assert numbers_of(outcomes) == list(range(3000))
    # A draining worker may reject the stream more than once.
    assert [list(end) for end in ends] == [["Unavailable"]] * 3 + [["OK"]]


@KINDS
def test_a_stream_survives_a_restart_of_the_service(models: Path, kind: str) -> None:
    """The only worker ends while the stream is open, and another starts later on the same port: the stream continues."""
    outcomes: list[Any] = []
    gone = threading.Event()
    with run_worker(models) as first:
        port = int(first.address.rpartition(":")[2])

        def images() -> Iterator[Any]:
            yield echo_image(0)
            # The iterator of a stream runs on a separate thread, or as a task: only the former may block.
            if kind == "sync":
                assert gone.wait(PATIENCE_S)
            yield echo_image(1)

        streaming = threading.Thread(target=stream, args=(kind, first.address, images(), outcomes.append))
        streaming.start()
        wait_until(lambda: outcomes, "the first answer")
    gone.set()
    with run_worker(models, grpc_port=port):
        streaming.join(PATIENCE_S)

    assert numbers_of(outcomes) == [0, 1]


@contextmanager
def silent_service() -> Iterator[str]:
    """Run a service that accepts streams and never answers on them; yield its address."""

    def silent(_requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        ended = threading.Event()
        if context.add_callback(ended.set):
            ended.wait(PATIENCE_S)
        yield from ()

    def model(_request: bytes, _context: grpc.ServicerContext) -> bytes:
        return pb.GetModelResponse().SerializeToString()

    handlers = {
        "ClassifyStream": grpc.stream_stream_rpc_method_handler(silent),
        "GetModel": grpc.unary_unary_rpc_method_handler(model),
    }
    with serve_handlers(handlers, num_threads=4) as address:
        yield address


@KINDS
def test_a_stream_without_a_timeout(worker: RunningWorker, kind: str) -> None:
    """A caller that wants no limit passes infinity."""
    received: list[Any] = []
    stream(kind, worker.address, [echo_image(1), echo_image(2)], received.append, timeout_s=float("inf"))
    assert [prediction.ood_score for prediction in received] == [1, 2]


@KINDS
def test_an_overdue_answer_raises(kind: str) -> None:
    """A service that accepts a stream and never answers: DeadlineExceeded after ``timeout_s``, with the image's position."""
    with (
        silent_service() as address,
        pytest.raises(DeadlineExceeded, match=r"image 0: no answer within 0\.2 s") as caught,
    ):
        stream(kind, address, [echo_image(0)], lambda _: None, timeout_s=0.2)
    assert caught.value.index == 0


@KINDS
def test_a_stream_raises_closed_when_the_client_is_closed(kind: str) -> None:
    """A stream that waits for an answer, and one that waits for an image, raise Closed when the client is closed."""

    async def run(images: Any) -> None:
        async with asyncio.timeout(PATIENCE_S):
            client = AsyncClient(address, timeout_s=PATIENCE_S)
            waiting = asyncio.create_task(anext(client.classify_stream(images)))
            await client.model()
            await asyncio.sleep(0)
            await client.close()
            with pytest.raises(Closed):
                await waiting

    async def no_images() -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield echo_image(0)

    with silent_service() as address:
        if kind == "async":
            asyncio.run(run([echo_image(0)]))
            asyncio.run(run(no_images()))
            return
        for source in (iter([echo_image(0)]), iter(lambda: threading.Event().wait(PATIENCE_S / 2), None)):
            client = Client(address, timeout_s=PATIENCE_S)
            client.model()
            with ThreadPoolExecutor(1) as caller:
                waiting = caller.submit(next, client.classify_stream(source))
                client.close()
                assert isinstance(waiting.exception(PATIENCE_S), Closed)


@KINDS
def test_leaving_the_iteration_early_ends_the_stream(worker: RunningWorker, kind: str) -> None:
    """After ``close`` of the iterator the service's stream ends, and nothing more is taken from an endless input."""
    taken: list[int] = []

    def images() -> Iterator[Any]:
        while True:
            taken.append(1)
            yield echo_image(len(taken))

    class EnoughError(Exception):
        pass

    def each(_: Any) -> None:
        raise EnoughError

    with pytest.raises(EnoughError):
        stream(kind, worker.address, images(), each)
    wait_until(lambda: ended_streams(worker), "the stream ended")
    assert ended_streams(worker) == {"Canceled": 1}
    assert len(taken) <= 300


@KINDS
def test_arguments_are_checked_at_the_call(worker: RunningWorker, kind: str) -> None:
    """A wrong argument is rejected when the stream is created, before its first prediction is awaited."""

    async def run() -> None:
        async with AsyncClient(worker.address) as client:
            check(client)

    def check(client: Client | AsyncClient) -> None:
        with pytest.raises(InvalidRequest, match="top_k"):
            client.classify_stream([], top_k=-1)
        with pytest.raises(InvalidRequest, match="max_in_flight: got 0"):
            client.classify_stream([], max_in_flight=0)

    if kind == "async":
        asyncio.run(run())
    else:
        with Client(worker.address) as client:
            check(client)


@KINDS
def test_an_address_without_a_service_is_unreachable_at_once(models: Path, kind: str) -> None:
    """Nothing is taken for a restart where no service has ever answered."""
    with run_worker(models) as worker:
        address = worker.address
    with pytest.raises(Unreachable, match="digitserve serve"):
        stream(kind, address, [echo_image(1)], lambda _: None, timeout_s=3600)

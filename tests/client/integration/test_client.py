"""The client library against a real worker whose network's output encodes its input."""

import asyncio
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from digitserve.client import (
    AsyncClient,
    Client,
    Closed,
    DeadlineExceeded,
    Framing,
    Ink,
    InvalidRequest,
    Prediction,
    RequestRejected,
    Unreachable,
    Verdict,
)
from support.bundles import echo_image
from support.clients import KINDS, awaited, classify, images_of, scores
from support.serving import PATIENCE_S, RunningWorker, run_worker, sockets, wait_until


@KINDS
def test_a_prediction_has_all_fields(worker: RunningWorker, kind: str) -> None:
    """One image gets one prediction: label, index, confidence, verdict, score, and the requested classes."""
    (prediction,) = classify(kind, worker.address, echo_image(1234567), top_k=2)

    assert (prediction.label, prediction.class_index, prediction.confidence) == ("7", 7, 1.0)
    assert (prediction.verdict, prediction.ood_score) == (Verdict.ACCEPTED, 1234567)
    assert [(score.label, score.confidence) for score in prediction.top] == [("7", 1.0), ("0", 0.0)]
    assert classify(kind, worker.address, []) == []


@KINDS
def test_no_timeout_is_infinite(worker: RunningWorker, kind: str) -> None:
    """A caller that wants no limit passes infinity."""
    assert scores(classify(kind, worker.address, images_of(1, 2), timeout_s=float("inf"))) == [1, 2]


@KINDS
def test_many_images_are_answered_in_order(worker: RunningWorker, kind: str) -> None:
    """A thousand images in requests of 7 get their thousand answers, in order; each request is counted once."""
    answers = classify(kind, worker.address, images_of(0, 1000), images_per_request=7)

    assert scores(answers) == list(range(1000))
    assert worker.handled() == {"OK": 143}


@KINDS
def test_a_call_may_ask_how_images_were_prepared(worker: RunningWorker, kind: str) -> None:
    """With ``explain`` each prediction has its preparation, also when a request is split over batches; otherwise none has."""
    canvas = np.full((90, 90), 255, np.uint8)
    canvas[20:70, 40:48] = 0
    images = [*images_of(0, 100), canvas, np.full((30, 30), 7, np.uint8)]
    answers = classify(kind, worker.address, images, explain=True)
    preparations = [one.preparation for one in answers if one.preparation is not None]

    assert len(preparations) == len(images)
    for image, preparation in zip(images[:100], preparations, strict=False):
        assert (preparation.pixels == image).all()
        assert (preparation.framing, preparation.ink, preparation.box) == (Framing.AS_IS, Ink.LIGHT_ON_DARK, None)
    drawn, blank = preparations[100:]
    assert (drawn.framing, drawn.ink, drawn.pixels.max()) == (Framing.MNIST, Ink.DARK_ON_LIGHT, 255)
    assert (blank.ink, blank.box, blank.pixels.any()) == (None, None, False)
    assert [one.preparation for one in classify(kind, worker.address, images)] == [None] * len(images)


@KINDS
def test_large_photos_are_answered(worker: RunningWorker, kind: str) -> None:
    """A 12-megapixel photo in colour exceeds the message limit; the client reduces it, and it is answered."""
    photo = np.full((4000, 3000, 3), 255, np.uint8)
    photo[1000:3000, 1400:1600] = 0
    (answer,) = classify(kind, worker.address, [photo], explain=True)

    assert answer.verdict is Verdict.ACCEPTED
    with pytest.raises(RequestRejected, match=r"16842752.*reduce the image") as caught:
        classify(kind, worker.address, [photo], max_side=None)
    assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED


@KINDS
def test_a_grey_image_of_the_longest_side_fits_into_a_message(worker: RunningWorker, kind: str) -> None:
    """One grey image of 4096x4096 pixels, the longest side that the service accepts, is answered without reduction."""
    image = np.zeros((4096, 4096), np.uint8)
    image[1000:3000, 1900:2100] = 255

    assert classify(kind, worker.address, image, max_side=None)[0].verdict is Verdict.ACCEPTED


@KINDS
def test_requests_respect_the_limits_of_the_service(models: Path, kind: str) -> None:
    """A service with small limits gets small requests: the client reads its limits, and no request is rejected."""
    with run_worker(models, max_request_bytes=5000, max_pending_images=64) as worker:
        answers = classify(kind, worker.address, images_of(0, 50), images_per_request=1000, max_in_flight=4)

        assert scores(answers) == list(range(50))
        # 4 936 bytes hold 6 images of 784.
        assert worker.handled() == {"OK": 9}


@KINDS
def test_images_of_many_sizes_and_colours_may_be_in_one_call(worker: RunningWorker, kind: str) -> None:
    """A list of grey and coloured images of any sizes is answered in its order; ink and framing reach the service."""
    blanks = np.zeros((40, 30, 3), np.uint8), np.zeros((9, 9), np.uint8)
    images = [image for number in range(0, 60, 3) for image in (echo_image(number), *blanks)]
    answers = classify(kind, worker.address, images, images_per_request=5)
    framed = classify(kind, worker.address, 255 - echo_image(3), ink=Ink.DARK_ON_LIGHT, framing=Framing.AS_IS)

    assert [answer.verdict for answer in answers] == [Verdict.ACCEPTED, Verdict.BLANK, Verdict.BLANK] * 20
    assert scores(answers[::3]) == list(range(0, 60, 3))
    assert scores(framed) == [3]


@KINDS
def test_a_rejected_request_fails_the_call_and_names_its_images(worker: RunningWorker, kind: str) -> None:
    """When one of several requests is rejected, the error states which images, got and expected, and has the code."""
    images = [echo_image(0), echo_image(1), np.zeros((2, 5000), np.uint8), echo_image(3)]
    with pytest.raises(RequestRejected, match=r"^image 2: INVALID_ARGUMENT: got 2x5000.*expected") as caught:
        classify(kind, worker.address, images, max_side=None)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT

    with pytest.raises(RequestRejected, match=r"^INVALID_ARGUMENT") as alone:
        classify(kind, worker.address, images[2], max_side=None)
    assert alone.value.code is grpc.StatusCode.INVALID_ARGUMENT


@KINDS
def test_invalid_images_are_rejected_before_they_are_sent(worker: RunningWorker, kind: str) -> None:
    """A wrong type or shape raises InvalidRequest; nothing reaches the service."""
    with pytest.raises(InvalidRequest, match="float64"):
        classify(kind, worker.address, np.zeros((28, 28)))
    assert worker.started() == 0


@KINDS
def test_one_deadline_applies_to_all_requests_of_a_call(worker: RunningWorker, kind: str) -> None:
    """A call whose images take longer than its timeout fails as a whole; the time does not start again with each request."""
    with pytest.raises(DeadlineExceeded, match=r"within 0\.2 s"):
        classify(kind, worker.address, images_of(0, 20_000), images_per_request=1, timeout_s=0.2, max_in_flight=2)
    assert worker.started() < 20_000


@KINDS
def test_a_timeout_applies_per_call(worker: RunningWorker, kind: str) -> None:
    """``timeout_s`` of a call overrides the client's, for every method; an overdue answer is no unreachable service."""

    async def use(client: AsyncClient) -> None:
        for call in (
            client.classify(echo_image(1), timeout_s=1e-9),
            client.model(timeout_s=1e-9),
            client.health(timeout_s=1e-9),
        ):
            with pytest.raises(DeadlineExceeded, match="no answer"):
                await call
        assert not await client.healthy(timeout_s=1e-9)
        assert await client.health(timeout_s=PATIENCE_S) == "SERVING"

    if kind == "async":
        awaited(worker.address, use)
    else:
        with Client(worker.address) as client:
            for method in (lambda **options: client.classify(echo_image(1), **options), client.model, client.health):
                with pytest.raises(DeadlineExceeded, match="no answer") as caught:
                    method(timeout_s=1e-9)
                assert isinstance(caught.value, TimeoutError) and not isinstance(caught.value, Unreachable)
            assert not client.healthy(timeout_s=1e-9)
            assert client.health(timeout_s=PATIENCE_S) == "SERVING"


@KINDS
def test_pillow_images_are_classified(worker: RunningWorker, kind: str) -> None:
    """One Pillow image, or several in a list, get the answers of their pixels."""
    images = [Image.fromarray(echo_image(number)) for number in (3, 4)]

    assert scores(classify(kind, worker.address, images[0])) == [3]
    assert scores(classify(kind, worker.address, images)) == [3, 4]


@KINDS
def test_loopback_ignores_a_proxy(worker: RunningWorker, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``http_proxy`` set, the service on this machine is reached directly."""
    for name in ("http_proxy", "grpc_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("no_grpc_proxy", raising=False)

    assert scores(classify(kind, worker.address, echo_image(5))) == [5]


@KINDS
def test_an_address_without_a_service_is_unreachable_at_once(models: Path, kind: str) -> None:
    """An address where no service has answered raises Unreachable long before the deadline, and is not healthy."""
    with run_worker(models) as worker:
        address = worker.address
    with pytest.raises(Unreachable, match="digitserve serve"):
        classify(kind, address, echo_image(1), timeout_s=3600)
    with Client(address) as client:
        assert not client.healthy()
    assert not awaited(address, lambda other: other.healthy())


@KINDS
def test_the_http_port_of_a_service_is_explained(kind: str) -> None:
    """An address where an HTTP/1 server answers is a wrong port, not a service that is down."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            with pytest.raises(Unreachable, match="the server does not speak gRPC; use the gRPC port"):
                classify(kind, f"127.0.0.1:{server.server_port}", echo_image(1))
        finally:
            server.shutdown()


@KINDS
def test_model_and_health_are_read_from_the_service(worker: RunningWorker, kind: str) -> None:
    """``model`` returns the facts of ``GetModel``; ``healthy`` is true while the service reports SERVING."""

    async def query(client: AsyncClient) -> Any:
        return await client.model(), await client.healthy()

    if kind == "async":
        model, healthy = awaited(worker.address, query)
    else:
        with Client(worker.address) as client:
            model, healthy = client.model(), client.healthy()

    assert (model.name, model.version, model.labels) == ("digits", "1", tuple("0123456789"))
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
    """While a call of many requests occupies all threads of the client, another thread's call is answered."""
    with Client(worker.address, images_per_request=1, timeout_s=PATIENCE_S, max_in_flight=2) as client:
        client.model()
        large = threading.Thread(target=client.classify, args=(images_of(0, 600),))
        large.start()
        wait_until(lambda: worker.started() > 10, "the large call is in progress")
        assert scores(client.classify(images_of(70_000, 3))) == [70_000, 70_001, 70_002]
        small_was_first = worker.started() < 600
        large.join()

    assert small_was_first


def test_a_closed_client_raises_closed(worker: RunningWorker) -> None:
    """After ``close`` every call raises Closed; a second ``close`` has no effect."""
    client = Client(worker.address, images_per_request=1)
    assert scores(client.classify(images_of(0, 3))) == [0, 1, 2]
    client.close()
    client.close()
    for call in (lambda: client.classify(images_of(0, 3)), client.model, client.healthy):
        with pytest.raises(Closed):
            call()


def test_each_connection_of_the_pool_is_a_connection_of_its_own(worker: RunningWorker) -> None:
    """A pool of five has five TCP connections to the service."""
    with Client(worker.address, num_connections=5) as client:
        for _ in range(12):
            client.classify(echo_image(1))
        assert sum(one.open for one in sockets(worker.address)) == 5


def test_threads_get_closed_when_another_thread_closes_the_client(worker: RunningWorker) -> None:
    """Calls in progress when another thread closes the client raise Closed, at any point of the call."""
    for _ in range(5):
        client = Client(worker.address, num_connections=2, images_per_request=1, timeout_s=PATIENCE_S, max_in_flight=4)
        before = worker.started()

        def classify_repeatedly(client: Client = client) -> None:
            while True:
                client.classify(images_of(0, 20))

        with ThreadPoolExecutor(3) as callers:
            calls = [callers.submit(classify_repeatedly) for _ in range(3)]
            wait_until(lambda before=before: worker.started() > before + 10, "calls are in progress")
            client.close()
            assert [type(one.exception()) for one in calls] == [Closed] * 3


@pytest.mark.parametrize("num_iterations", range(6))
def test_tasks_get_closed_when_another_task_closes_the_client(worker: RunningWorker, num_iterations: int) -> None:
    """Calls in progress when another task closes the client raise Closed; none returns fewer answers, and a task that was
    cancelled itself raises CancelledError, before, during and after the close.
    """

    async def classify_repeatedly(client: AsyncClient) -> None:
        while True:
            assert scores(await client.classify(images_of(0, 20))) == list(range(20))

    async def run() -> None:
        client = AsyncClient(worker.address, num_connections=2, images_per_request=1, timeout_s=PATIENCE_S)
        before = worker.started()
        calls = [asyncio.create_task(classify_repeatedly(client)) for _ in range(4)]
        while worker.started() < before + 10:  # noqa: ASYNC110 - the worker is a thread
            await asyncio.sleep(0.001)
        close = asyncio.create_task(client.close())
        for _ in range(num_iterations):
            await asyncio.sleep(0)
        ended = calls[0].done()
        calls[0].cancel()
        await close
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(end) for end in ends] == [Closed if ended else asyncio.CancelledError, Closed, Closed, Closed]

    for _ in range(3):
        asyncio.run(run())


def test_a_task_does_not_count_as_cancelled_after_a_failed_call(worker: RunningWorker) -> None:
    """A task whose call has failed can continue with ``asyncio.timeout`` and task groups, which look at that count."""

    async def run() -> None:
        async with AsyncClient(worker.address, max_side=None) as client:
            with pytest.raises(RequestRejected):
                await client.classify([np.zeros((5000, 1), np.uint8), np.zeros((1, 5000), np.uint8)])
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0

    asyncio.run(run())

"""``read`` and ``read_stream`` of both clients, against a service whose readings repeat what it was asked, and a real worker."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from digitserve.client import AsyncClient, Client, ClientError, InvalidRequest, Reading, RequestRejected, Unreachable
from support.bundles import echo_image, write_echo_bundle
from support.clients import KINDS, awaited
from support.column_reader import ColumnReader
from support.fake_reader import REFUSED, serve_fake_reader
from support.serving import LOCAL, PATIENCE_S, RunningWorker, run_worker


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serve_fake_reader() as running:
        yield running


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningWorker]:
    """Run a worker that reads 28 columns as a digit."""
    models = tmp_path_factory.mktemp("models")
    write_echo_bundle(models)
    with run_worker(models, new_reader=lambda _: ColumnReader()) as running:
        yield running


def row_of(*numbers: int) -> np.ndarray:
    """Return an image whose marks have these numbers as OOD scores."""
    return np.concatenate([echo_image(number) for number in numbers], axis=1)


def read(kind: str, address: str, image: Any, **options: Any) -> Reading:
    """Read an image with either client."""
    if kind == "async":
        reading: Reading = awaited(address, lambda client: client.read(image, **options))
        return reading
    with Client(address) as client:
        return client.read(image, **options)


def read_stream(kind: str, address: str, images: Any, **options: Any) -> list[Reading | ClientError]:
    """Read images on a stream with either client."""

    async def collect() -> list[Reading | ClientError]:
        async with (
            AsyncClient(address, timeout_s=PATIENCE_S) as client,
            aclosing(client.read_stream(images, **options)) as outcomes,
        ):
            return [outcome async for outcome in outcomes]

    if kind == "async":
        return asyncio.run(collect())
    with Client(address, timeout_s=PATIENCE_S) as client:
        return list(client.read_stream(images, **options))


@KINDS
def test_an_image_is_read(address: str, kind: str) -> None:
    """Arrays and Pillow images are read; boxes of a reduced image are in pixels of the given one."""
    pixels = np.full((30, 41, 3), 7, np.uint8)
    for image in (pixels, Image.fromarray(pixels)):
        reading = read(kind, address, image)
        assert (reading.text, reading.model, reading.version) == ("30/41\n7", "fake", "1")
    reduced = read(kind, address, pixels, max_side=20)
    assert reduced.text == "10/14\n7"
    assert reduced.lines[0].box == reduced.ignored[0].box == (0, 30, 0, 41)


@KINDS
def test_errors_are_those_of_classify(address: str, kind: str) -> None:
    """An invalid image is not sent, a refused pattern has the message of the service, and a missing service is unreachable."""
    with pytest.raises(InvalidRequest, match=r"got float64\[2, 2\]"):
        read(kind, address, np.zeros((2, 2)))
    with pytest.raises(RequestRejected, match="expected another one") as caught:
        read(kind, address, np.zeros((2, 2), np.uint8), pattern=REFUSED)
    assert caught.value.code is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(Unreachable):
        read(kind, f"{LOCAL}:1", np.zeros((2, 2), np.uint8))


@KINDS
def test_a_stream_is_read_in_order(address: str, kind: str) -> None:
    """More images than may be in flight get their readings in order; an invalid one has its error in its place."""
    images: list[Any] = [np.full((10, 10 + number), 5, np.uint8) for number in range(40)]
    images[7] = "text"
    outcomes = read_stream(kind, address, images, max_in_flight=6, return_exceptions=True, layout="line")
    widths = [-1 if isinstance(one, ClientError) else int(one.lines[0].text.partition("/")[2]) for one in outcomes]
    assert widths == [-1 if number == 7 else 10 + number for number in range(40)]
    assert isinstance(outcomes[7], InvalidRequest) and outcomes[7].index == 7


@KINDS
def test_a_refused_image_of_a_stream_is_named(address: str, kind: str) -> None:
    """Its error ends the iteration, with its position; options are checked before the stream is opened."""
    with pytest.raises(RequestRejected) as caught:
        read_stream(kind, address, [np.zeros((2, 2), np.uint8)], pattern=REFUSED)
    assert caught.value.index == 0
    with pytest.raises(InvalidRequest, match="min_confidence"):
        read_stream(kind, address, [], min_confidence=2)


@KINDS
def test_an_unavailable_service_is_asked_again(kind: str) -> None:
    """A call that a worker refuses because it ends is retried, as for ``classify``."""
    with serve_fake_reader(num_refusals=2) as address:
        assert read(kind, address, np.full((2, 3), 9, np.uint8), placeholder="_").text == "2/3\n_"


@KINDS
def test_a_worker_reads(worker: RunningWorker, kind: str) -> None:
    """A real worker answers single calls and streams; its errors are those of the client library."""
    reading = read(kind, worker.address, row_of(70001, 2, 3), top_k=1)
    assert (reading.text, reading.model, reading.timing.batch_size) == ("123", "digits", 3)
    assert [mark.ood_score for mark in reading.lines[0].marks] == [70001, 2, 3]
    assert [mark.top[0].label for mark in reading.lines[0].marks] == ["1", "2", "3"]
    with pytest.raises(RequestRejected, match="expected a closing bracket"):
        read(kind, worker.address, row_of(1), pattern="(")

    outcomes = read_stream(kind, worker.address, [row_of(number, number + 1) for number in range(50)])
    scores = [[mark.ood_score for mark in one.lines[0].marks] for one in outcomes if isinstance(one, Reading)]
    assert scores == [[number, number + 1] for number in range(50)]


@KINDS
def test_a_large_image_of_a_stream_fails_in_its_place(worker: RunningWorker, kind: str) -> None:
    """An image that the service refuses has its error in its place; with the default ``max_side`` it would be reduced."""
    images = [row_of(1), np.zeros((4200, 28), np.uint8), row_of(2)]
    first, refused, last = read_stream(kind, worker.address, images, max_side=None, return_exceptions=True)
    assert isinstance(first, Reading) and isinstance(last, Reading)
    assert isinstance(refused, RequestRejected) and refused.index == 1
    assert "4200x28" in str(refused)

"""``read`` and ``read_stream`` of both clients, against a service whose readings repeat what it was asked."""

import asyncio
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from digitserve.client import AsyncClient, Client, ClientError, InvalidRequest, Reading, RequestRejected, Unreachable
from support.clients import KINDS, awaited
from support.fake_reader import REFUSED, serve_fake_reader
from support.serving import LOCAL, PATIENCE_S


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with serve_fake_reader() as running:
        yield running


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

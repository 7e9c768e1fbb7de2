"""From a file to a request, as the child process does it."""

import io

import numpy as np
import pytest
from PIL import Image

from digitserve.client.predictions import ModelInfo
from digitserve.client.read_requests import Reader
from digitserve.client.requests import group, request_options, split
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.reduction import Reduction
from digitserve.web.decoder_messages import Question
from digitserve.web.decoder_process import decode

MAX_PIXELS = 1 << 14

LIMITS = ModelInfo.from_message(pb.Model(max_request_bytes=1 << 24, max_images_per_request=64))


def saved(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    np.save(file, pixels) if kind == "npy" else Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize("shape", [(28, 28), (60, 90, 3), (128, 100, 4)], ids=str)
@pytest.mark.parametrize("max_side", [0, 50, 2048])
def test_requests_are_those_of_the_client(shape: tuple[int, ...], max_side: int) -> None:
    """Pixels, size, format and reduction are those of the client library for the same picture."""
    pixels = random(*shape)
    answer, body = decode(saved(pixels), Question(max_side, 1), MAX_PIXELS)
    images = pixels[None] if pixels.ndim == 3 else pixels[None, ..., None]
    groups = group(images, max_side or None)
    (chunk,) = split(groups, 64, LIMITS)
    expected = chunk.to_request(request_options(0, None, None))
    assert pb.ClassifyRequest.FromString(body) == expected
    assert answer == ("", False, groups[0].reduction)


@pytest.mark.parametrize("shape", [(60, 90), (60, 90, 3), (128, 100, 4)], ids=str)
@pytest.mark.parametrize("max_side", [0, 50, 4096])
def test_requests_to_read_are_those_of_the_client(shape: tuple[int, ...], max_side: int) -> None:
    """Pixels, size, format and reduction are those of the client library for the same picture."""
    pixels = random(*shape)
    answer, body = decode(saved(pixels), Question(max_side, 1, message="ReadRequest"), MAX_PIXELS)
    reader = Reader(max_side=max_side or None)
    sent = reader.prepare(pixels, 0)
    expected = reader.to_message(sent).request
    expected.ClearField("layout")
    expected.ClearField("placeholder")
    assert pb.ReadRequest.FromString(body) == expected
    assert answer == ("", False, sent.reduction)


def test_a_page_is_reduced_until_it_fits() -> None:
    """Pixels that would not fit into a message are reduced also if no side is too long."""
    question = Question(4096, 1, 5000, "ReadRequest")
    answer, body = decode(saved(random(60, 90, 3)), question, MAX_PIXELS)
    assert answer.reduction == Reduction(2, 60, 90)
    assert len(pb.ReadRequest.FromString(body).pixels) == 30 * 45 * 3


def test_files_with_too_many_images_are_refused() -> None:
    """The number of images of an array is limited."""
    answer, body = decode(saved(random(3, 28, 28), "npy"), Question(0, 2), MAX_PIXELS)
    assert answer.error.startswith("got 3 images; expected at most 2 per HTTP request") and not body


def test_too_many_pixels_are_reported_as_such() -> None:
    """The supervisor then asks the process for large pictures, or answers 413."""
    answer, _ = decode(saved(random(200, 100)), Question(0, 1), MAX_PIXELS)
    assert answer == (f"image: got 200x100 pixels; expected at most {MAX_PIXELS} in all", True, None)


def test_a_large_jpeg_keeps_its_size_for_boxes() -> None:
    """The reduction counts both the smaller decoding and the block means."""
    answer, body = decode(saved(random(400, 300), "JPEG"), Question(30, 1), MAX_PIXELS)
    request = pb.ClassifyRequest.FromString(body)
    assert answer.reduction == Reduction(16, 400, 300)
    assert (request.height, request.width) == answer.reduction.size


@pytest.mark.parametrize("content", [b"GIF89a", b"\x89PNG\r\n\x1a\n", b"hello", saved(random(28, 28))[:-30]])
def test_no_image(content: bytes) -> None:
    """What is no image gets a text that says so."""
    answer, body = decode(content, Question(0, 1), MAX_PIXELS)
    assert answer.error.startswith("image: ") and "expected" in answer.error and not answer.is_too_large and not body

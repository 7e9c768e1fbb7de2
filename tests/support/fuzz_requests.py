"""Fuzz targets of requests: messages, and the framing of images."""

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from digitserve.batching.prepare import Prepared, prepare
from digitserve.protocol.codec import Limits, Request, decode
from digitserve.types import Ink
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.framing import MAX_LOOKS, frame, frame_colors
from digitserve.vision.views import Framed
from support.decode_checks import check_decode, check_decode_read
from support.fuzz_source import CHOICES, Source, Target
from support.infer_checks import check_infer, infer_request

MAX_OPERATIONS = 40_000
"""Most function calls, into numpy too, for one image. A digit takes 100 to 400; the worst pattern found, 10,891.

An image and up to three parts of parts of it are framed, each with up to three segmentations of at most 3,500 calls. Besides,
framing only does numpy operations on arrays of the image's size, whose number this limits too.
"""

INKS = tuple(Ink)


# Images.


def draw(source: Source) -> NDArray[np.uint8]:
    """Return uint8[H, W, C]: a pattern, with a few rectangles on it."""
    height, width = _side(source), _side(source)
    if height * width > 1 << 20:
        width = (1 << 20) // height
    image = np.array(np.broadcast_to(_pattern(source, height, width), (height, width)), np.uint8)
    for _ in range(source.byte() % 6):
        top, left = source.byte() * height // 256, source.byte() * width // 256
        bottom, right = top + 1 + source.byte() * height // 256, left + 1 + source.byte() * width // 256
        shade = source.byte()
        image[top:bottom, left:right] = shade
        if shade & 1:  # only an outline
            image[top + 1 + shade % 3 : bottom - 1, left + 1 + shade % 3 : right - 1] = source.byte()
    channels = source.pick((1, 1, 1, 3, 4))
    if channels == 1:
        return image[..., None]
    colors = np.repeat(image[..., None], channels, axis=2)
    for channel in range(channels):
        colors[..., channel] = colors[..., channel] * source.pick((1, 1, 0)) ^ source.pick((0, 0, 255))
    return colors


def _side(source: Source) -> int:
    how = source.byte()
    if how < 100:
        return 28
    return 1 + how % 80 if how < 240 else int(source.pick((1, 2, 12, 64, 65, 127, 128, 129, 256, 300, 513, 1024, 2048)))


def _pattern(source: Source, height: int, width: int) -> NDArray[np.uint8]:  # noqa: PLR0911 - a case for each kind
    """Return an array that broadcasts to uint8[height, width]."""
    y, x = np.ogrid[:height, :width]
    step = 2 + source.byte() % 8
    match source.byte() % 10:
        case 0:
            return np.full((height, width), source.byte(), np.uint8)
        case 1:  # the bytes of the input
            tile = np.frombuffer(source.take(64).ljust(64, b"\0"), np.uint8)
            return np.resize(tile, (height, width))
        case 2:  # dots
            return ((y % step == 0) & (x % step == 0)) * np.uint8(255)
        case 3:  # stripes
            return ((y * source.pick((0, 1, 2)) + x * source.pick((0, 1, 3))) % step < step // 2) * np.uint8(255)
        case 4:  # a comb: one component with many bends
            return ((x % 2 == 0) | (y % step == 0)) * np.uint8(255)
        case 5:  # a gradient
            return ((y * 255 // height + x * 255 // width) // 2).astype(np.uint8)
        case 6:
            low, high = sorted((source.byte(), source.byte()))
            return np.random.default_rng(source.byte()).integers(low, high + 1, (height, width), np.uint8)
        case 7:
            sparse = np.random.default_rng(source.byte()).random((height, width))
            return (sparse < source.byte() / 512) * np.uint8(255)
        case 8:  # rings
            return ((((y - height // 2) ** 2 + (x - width // 2) ** 2) // (step * step)) % 2) * np.uint8(255)
        case _:  # the bits of the input
            bits = np.unpackbits(np.frombuffer(source.take(98).ljust(98, b"\0"), np.uint8)).reshape(28, 28)
            enlarged = bits.repeat(-(-height // 28), 0).repeat(-(-width // 28), 1)
            return np.ascontiguousarray(enlarged[:height, :width]) * np.uint8(255)


class OperationCount:
    """Counts calls of functions until the end of a ``with`` statement, also of those that are written in C."""

    def __enter__(self) -> Self:
        self.count = 0
        self._previous = sys.getprofile()
        sys.setprofile(self._on_event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._previous)

    def _on_event(self, _frame: FrameType, event: str, called: Any) -> None:
        # Not the calls with which atheris traces coverage.
        self.count += event == "call" or (event == "c_call" and "atheris" not in (called.__module__ or ""))


def framing(choices: bytes) -> None:
    """Any image gives 28x28 pixels and consistent findings, the same again, in a bounded number of operations."""
    source = Source(choices)
    ink = source.pick(INKS)
    pixels = draw(source)
    before = pixels.tobytes()
    with OperationCount() as operations:
        framed = frame_colors(pixels, ink)
    assert operations.count <= MAX_OPERATIONS, operations.count
    assert pixels.tobytes() == before
    _check_framed(framed, pixels)
    again = frame_colors(pixels, ink)
    assert np.array_equal(framed.pixels, again.pixels) and framed[1:] == again[1:]
    if pixels.shape[2] == 1:
        spaced = np.repeat(pixels[..., 0], 2, axis=1)[:, ::2]  # the same pixels, not contiguous
        other = frame(spaced, ink)
        assert np.array_equal(framed.pixels, other.pixels) and framed[1:] == other[1:]


def _check_framed(framed: Framed, pixels: NDArray[np.uint8]) -> None:
    height, width, _ = pixels.shape
    assert (framed.pixels.shape, framed.pixels.dtype) == ((28, 28), np.uint8)
    assert bool(framed.pixels.any()) is not framed.blank
    assert framed.ink is not Ink.AUTO
    assert len(framed.removed) <= MAX_LOOKS
    assert (framed.box is None) == framed.blank
    assert not (framed.blank and (framed.several or framed.spans_image))
    if framed.box is not None:
        assert 0 <= framed.box.top < framed.box.bottom <= height
        assert 0 <= framed.box.left < framed.box.right <= width


def _picture(*rectangles: tuple[int, ...], paper: int = 255, side: int = 7) -> bytes:
    """Return the choices for a picture of constant grey with rectangles: top, left, height, width, shade, shade inside."""
    drawn = bytes(number for rectangle in rectangles for number in rectangle)
    return bytes([2, 250, side, 250, side, 0, 0, paper, len(rectangles)]) + drawn


STROKE, FRAME, SHEET = (80, 120, 90, 20, 0), (10, 10, 230, 230, 1, 255), (40, 40, 180, 180, 255, 255)
PICTURES = (
    _picture(STROKE), _picture(FRAME, STROKE), _picture(SHEET, STROKE, paper=120), _picture((0, 0, 30, 255, 0), STROKE),
    _picture((0, 60, 255, 4, 0), (0, 200, 255, 4, 0), STROKE), _picture(SHEET, FRAME, STROKE, paper=90, side=11),
    _picture((0, 100, 255, 60, 0)), _picture(STROKE, (80, 40, 90, 20, 0)), _picture(), _picture(STROKE, side=0),
)  # fmt: skip

BATCH_LIMITS = Limits(model_version="1", max_side=2048, max_images=64, max_request_bytes=1 << 24)


def batches(choices: bytes) -> None:
    """Images in one batch are prepared as one by one, whatever their sizes and treatments, also in parts of a request."""
    source = Source(choices)
    requests = [_request(source) for _ in range(1 + source.byte() % 4)]
    together = prepare([(request, 0, request.num_images) for request in requests])
    each = [prepare([(request, n, n + 1)]) for request in requests for n in range(request.num_images)]
    _assert_equal(together, Prepared(*(np.concatenate(arrays) for arrays in zip(*each, strict=True))))
    num_images = sum(request.num_images for request in requests)
    assert (together.images.shape, together.images.dtype) == ((num_images, 28, 28, 1), np.uint8)
    assert not (together.blank & (together.several | together.spans_image)).any()
    for flags in together[1:]:
        assert (flags.shape, flags.dtype) == ((num_images,), np.bool_)
    for request, position in zip(requests, np.cumsum([0] + [request.num_images for request in requests]), strict=False):
        if request.framing.name == "AS_IS" and request.channels == 1 and request.ink is Ink.LIGHT_ON_DARK:
            assert together.images[position : position + request.num_images].tobytes() == request.pixels


def _request(source: Source) -> Request:
    first = draw(source)
    height, width, channels = first.shape
    num_more = source.byte() % 4 if first.size < 1 << 16 else 0
    images = [first, *(np.roll(first, source.byte(), axis=0)[:, ::-1] for _ in range(num_more))]
    fits = (height, width) == (28, 28)
    message = pb.ClassifyRequest(
        pixels=b"".join(image.tobytes() for image in images), height=height, width=width,
        pixel_format={1: pb.PIXEL_FORMAT_GRAY8, 3: pb.PIXEL_FORMAT_RGB8, 4: pb.PIXEL_FORMAT_RGBA8}[channels],
        ink=source.pick(pb.Ink.values()), framing=source.pick(pb.Framing.values() if fits else (pb.FRAMING_MNIST,)),
    )  # fmt: skip
    return decode(message.SerializeToString(), BATCH_LIMITS)


def _assert_equal(one: Prepared, other: Prepared) -> None:
    for got, expected in zip(one, other, strict=True):
        assert np.array_equal(got, expected)


def _message_seeds() -> Iterator[bytes]:
    """Return requests with each field, and others that are wrong in one."""
    full = {"pixels": bytes(45), "height": 3, "width": 5, "pixel_format": 2, "num_images": 1, "ink": 1, "framing": 2,
            "top_k": 3, "model_version": "7", "explain": True}  # fmt: skip
    yield pb.ClassifyRequest(pixels=bytes(784)).SerializeToString()
    yield pb.ClassifyRequest(**full).SerializeToString()
    yield pb.ClassifyRequest(pixels=bytes(1568), framing=1).SerializeToString()
    yield pb.ClassifyRequest(pixels=bytes(784), height=28, width=28, num_images=1, pixel_format=1).SerializeToString()
    for changes in (
        {"height": 0},
        {"width": 41},
        {"num_images": 2},
        {"framing": 1},
        {"ink": 9},
        {"model_version": "x"},
    ):
        yield pb.ClassifyRequest(**full | changes).SerializeToString()  # type: ignore[arg-type] # of each field


def _read_seeds() -> Iterator[bytes]:
    """Yield requests to read, valid and nearly so."""
    image = {"pixels": bytes(6), "height": 2, "width": 3}
    for fields in (
        {}, {"height": 3}, {"pixels": bytes(18), "pixel_format": 2}, {"layout": 3, "num_digits": 64}, {"num_digits": 65},
        {"pattern": r"\d{5}"}, {"pattern": "1" * 257}, {"min_confidence": 0.5}, {"min_confidence": float("nan")},
        {"placeholder": "_"}, {"placeholder": "1"}, {"placeholder": "\x00"}, {"ink": 7}, {"model_version": "7", "top_k": 3},
    ):  # fmt: skip
        yield pb.ReadRequest(**(image | fields)).SerializeToString()  # type: ignore[arg-type]


def _infer_seeds() -> Iterator[bytes]:
    """Return requests of ModelInfer with each field, and others that are wrong in one."""
    full = infer_request(
        bytes(45), (1, 3, 5, 3), id="a", model_version="7", outputs=("verdict", "probabilities:3", "label", "ood_score"),
        parameters=(("ink", "auto"), ("framing", "mnist"), ("priority", 1)),
    )  # fmt: skip
    yield full.SerializeToString()
    yield infer_request(bytes(1568), (2, 28, 28), parameters=(("framing", "as_is"),)).SerializeToString()
    yield infer_request(bytes(15), (1, 3, 5), raw=False, outputs=("probabilities",)).SerializeToString()
    yield infer_request(bytes(784), (1, 28, 28, 1), raw=False, id="b").SerializeToString()
    for fields in ({"model_name": "x"}, {"model_version": "x"}, {"id": "x" * 1025}):
        yield infer_request(bytes(784), (1, 28, 28, 1), **fields).SerializeToString()
    for shape in ((2, 3, 5), (1, 15), (1, 3, 5, 2), (0, 3, 5), (-1, 3, 5)):
        yield infer_request(bytes(15), shape).SerializeToString()


TARGETS = {
    "tensors": Target(check_infer, tuple(_infer_seeds()), 3_000),
    "read_messages": Target(check_decode_read, tuple(_read_seeds()), 3_000),
    "messages": Target(check_decode, tuple(_message_seeds()), 3_000),
    "framing": Target(framing, (*PICTURES, *CHOICES), 300),
    "batches": Target(batches, (*(b"\3" + picture[1:] * 4 for picture in PICTURES), *CHOICES), 600),
}

"""Preparation of images: nothing is changed without need, and each image has one verdict."""

import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from digitserve.batching.prepare import (
    GrayImages,
    Prepared,
    decide_verdicts,
    framing_work,
    prepare,
    prepare_gray,
    prepare_image,
)
from digitserve.protocol.codec import IMAGE_BYTES, Limits, Request, decode
from digitserve.protocol.names import Verdict
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.batch_checks import verdicts
from digitserve.vision.framing import frame
from digitserve.vision.gray import to_gray
from support.digits import scanned_digits

LIMITS = Limits(model_version="7", max_side=64, max_images=2000, max_request_bytes=1 << 24)
FORMATS = {pb.PIXEL_FORMAT_GRAY8: 1, pb.PIXEL_FORMAT_RGB8: 3, pb.PIXEL_FORMAT_RGBA8: 4}


def noise(num_bytes: int, seed: int = 0) -> bytes:
    """Return random bytes."""
    return np.random.default_rng(seed).integers(0, 256, num_bytes, np.uint8).tobytes()


def request(**fields: object) -> Request:
    """Decode a request with these fields, as the service does."""
    return decode(pb.ClassifyRequest(**fields).SerializeToString(), LIMITS)


def gray_request(images: NDArray[np.uint8], **fields: object) -> Request:
    """Decode a request of these grey images."""
    return request(pixels=images.tobytes(), height=images.shape[1], width=images.shape[2], **fields)


def whole(*requests: Request) -> Prepared:
    """Prepare a batch of whole requests."""
    return prepare([(one, 0, one.num_images) for one in requests])


def test_a_plain_request_reaches_the_network_byte_for_byte() -> None:
    """28x28 grey pixels, light on dark, used as they are, are the network's input unchanged."""
    body = noise(3 * IMAGE_BYTES)

    prepared = whole(request(pixels=body, framing=pb.FRAMING_AS_IS))

    assert prepared.images.shape == (3, 28, 28, 1)
    assert prepared.images.tobytes() == body


def test_one_plain_request_is_not_copied() -> None:
    """When one plain request fills a batch, or a part of it does, the network reads the pixels of the request itself."""
    plain = request(pixels=noise(3 * IMAGE_BYTES), framing=pb.FRAMING_AS_IS)
    pixels = np.frombuffer(plain.pixels, np.uint8)

    assert np.shares_memory(whole(plain).images, pixels)
    assert np.shares_memory(prepare([(plain, 1, 3)]).images, pixels)
    assert prepare([(plain, 1, 3)]).images.tobytes() == plain.pixels[IMAGE_BYTES:]


def test_an_image_of_unspecified_framing_is_framed_unless_it_looks_like_mnist() -> None:
    """Of 28x28 images with all options at their defaults, dark ones on light and small ones are framed, beside others."""
    like = np.zeros((28, 28), np.uint8)
    like[4:24, 12:16] = 255
    small = np.zeros((28, 28), np.uint8)
    small[3:13, 3:5] = 255
    images = np.stack([like, 255 - like, small])
    beside = gray_request(np.pad(images, ((0, 0), (4, 4), (4, 4))))

    prepared = whole(beside, gray_request(images), beside)

    assert (prepared.images[3, ..., 0] == like).all()
    for row, image in ((4, 255 - like), (5, small)):
        assert (prepared.images[row, ..., 0] == frame(image, Ink.AUTO).pixels).all()
    assert not prepared.blank.any()


def test_a_band_from_border_to_border_is_marked() -> None:
    """An image that shows only the gutter of a book is marked, and is never accepted."""
    gutter = np.full((60, 60), 240, np.uint8)
    gutter[:, 30:36] = 20
    digit = np.full((60, 60), 240, np.uint8)
    digit[15:45, 28:34] = 20

    prepared = whole(gray_request(np.stack([digit, gutter])), gray_request(np.zeros((1, 28, 28), np.uint8)))

    assert prepared.spans_image.tolist() == [False, True, False]
    verdicts_found = decide_verdicts([0.0, 0.0, 0.0], 1.0, prepared)
    assert verdicts_found == [Verdict.ACCEPTED, Verdict.UNFAMILIAR, Verdict.BLANK]


def test_transparent_images_of_the_networks_size_are_read_from_their_alpha() -> None:
    """A white digit on transparent pixels reaches the network as its alpha channel."""
    alpha = np.zeros((28, 28), np.uint8)
    alpha[4:24, 12:16] = 255
    rgba = np.full((28, 28, 4), 255, np.uint8)
    rgba[..., 3] = alpha

    prepared = whole(request(pixels=rgba.tobytes(), pixel_format=pb.PIXEL_FORMAT_RGBA8))

    assert (prepared.images[0, ..., 0] == alpha).all()


def test_dark_ink_used_as_it_is_is_inverted_and_nothing_else() -> None:
    """AS_IS with INK_DARK_ON_LIGHT inverts each byte in its place."""
    body = noise(2 * IMAGE_BYTES)

    prepared = whole(request(pixels=body, ink=pb.INK_DARK_ON_LIGHT))

    assert prepared.images.tobytes() == bytes(255 - byte for byte in body)


def test_framed_images_are_those_of_frame() -> None:
    """An image in colour is converted to grey and framed by ``vision``."""
    body = noise(30 * 20 * 3)
    colour = request(pixels=body, height=30, width=20, pixel_format=pb.PIXEL_FORMAT_RGB8)

    framed = frame(to_gray(body, 1, 30, 20, 3)[0], Ink.AUTO)

    assert whole(colour).images.tobytes() == framed.pixels.tobytes()


def test_framed_images_have_the_verdicts_of_framing() -> None:
    """A blank image and one with two shapes are recognised by framing, image by image."""
    images = np.zeros((3, 40, 40), np.uint8)
    images[1, 10:30, 15:22] = 255
    images[2, 5:35, 3:12] = images[2, 5:35, 26:36] = 255

    prepared = whole(gray_request(images))

    assert prepared.blank.tolist() == [True, False, False]
    assert prepared.several.tolist() == [False, False, True]
    assert not prepared.images[0].any()


def test_requests_keep_their_rows_whatever_they_are_mixed_with() -> None:
    """In a batch of plain, inverted and framed requests each image has the row, and the verdict, that it has alone."""
    images = np.zeros((3, 28, 28), np.uint8)
    images[1, 4:24, 10:16] = 255
    images[2, 5:23, 3:9] = images[2, 5:23, 18:24] = 255
    requests = [
        gray_request(images),
        gray_request(images, framing=pb.FRAMING_MNIST),
        gray_request(255 - images, ink=pb.INK_DARK_ON_LIGHT),
        gray_request(255 - images, framing=pb.FRAMING_MNIST, ink=pb.INK_DARK_ON_LIGHT),
        gray_request(images),
    ]

    prepared = whole(*requests)

    for number, one in enumerate(requests):
        alone, rows = whole(one), slice(3 * number, 3 * number + 3)
        assert (prepared.images[rows] == alone.images).all()
        assert prepared.blank[rows].tolist() == alone.blank.tolist() == [True, False, False]
        assert prepared.several[rows].tolist() == alone.several.tolist() == [False, False, True]


@pytest.mark.parametrize("max_group_pixels", [1, 1 << 17])
def test_images_of_several_requests_are_framed_together_as_alone(
    max_group_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests of the same and of other sizes, colours, framings and polarities in one batch get the rows they have alone."""
    monkeypatch.setattr("digitserve.batching.prepare.MAX_GROUP_PIXELS", max_group_pixels)
    ring = np.zeros((3, 40, 40), np.uint8)
    ring[:2, 8:32, 12:28] = 220
    ring[0, 12:28, 16:24] = 0
    noisy = np.frombuffer(noise(2 * 40 * 40), np.uint8).reshape(2, 40, 40)
    requests = [
        gray_request(ring),
        gray_request(255 - ring[:1]),
        gray_request(np.repeat(ring[:, 5:35], 2, axis=1)),
        gray_request(noisy, ink=pb.INK_LIGHT_ON_DARK),
        gray_request(noisy[:, :28, :28]),
        request(pixels=np.repeat(ring[..., None], 3, axis=3).tobytes(), height=40, width=40, num_images=3,
                pixel_format=pb.PIXEL_FORMAT_RGB8),
        gray_request(ring[1:], ink=pb.INK_LIGHT_ON_DARK),
        gray_request(255 - ring[:2]),
        gray_request(ring[:, 6:34, 6:34], framing=pb.FRAMING_AS_IS, ink=pb.INK_DARK_ON_LIGHT),
    ]  # fmt: skip

    together, row = prepare([(one, one.num_images // 2, one.num_images) for one in requests]), 0

    for one in requests:
        alone = prepare([(one, one.num_images // 2, one.num_images)])
        for ours, theirs in zip(together, alone, strict=True):
            assert (ours[row : row + len(theirs)] == theirs).all()
        row += len(alone.images)
    assert row == len(together.images)


@given(
    num_images=st.integers(1, 5),
    cut=st.tuples(st.integers(0, 4), st.integers(1, 5)),
    side=st.sampled_from([(28, 28), (28, 28), (9, 13), (1, 1), (40, 3)]),
    pixel_format=st.sampled_from([*FORMATS]),
    ink=st.sampled_from(pb.Ink.values()),
    framing=st.sampled_from(pb.Framing.values()),
    seed=st.integers(0, 9),
)
@settings(max_examples=250)
def test_parts_of_a_request_are_prepared_as_the_whole(
    num_images: int, cut: tuple[int, int], side: tuple[int, int], pixel_format: int, ink: int, framing: int, seed: int,
) -> None:  # fmt: skip
    """A request that is split over batches reaches the network exactly as one that fits into one batch."""
    if framing == pb.FRAMING_AS_IS and side != (28, 28):
        framing = pb.FRAMING_MNIST
    split = request(
        pixels=noise(num_images * side[0] * side[1] * FORMATS[pixel_format], seed), height=side[0], width=side[1],
        pixel_format=pixel_format, ink=ink, framing=framing,
    )  # fmt: skip
    start, stop = min(cut[0], num_images - 1), max(min(cut[1], num_images), min(cut[0], num_images - 1) + 1)

    part, all_of_it = prepare([(split, start, stop)]), whole(split)

    assert all_of_it.images.shape == (num_images, 28, 28, 1)
    for ours, theirs in zip(part, all_of_it, strict=True):
        assert (ours == theirs[start:stop]).all()


def drawn_digits(number: int = 200) -> NDArray[np.uint8]:
    """Draw ellipses and arcs of them, light on dark: uint8[N,20,20]."""
    generator = np.random.default_rng(3)
    y, x = np.mgrid[-1 : 1 : 20 * 1j, -1 : 1 : 20 * 1j]
    images = []
    for _ in range(number):
        radius = np.hypot(x / generator.uniform(0.3, 1), y)
        angle = np.arctan2(y, x) + np.pi
        arc = angle < generator.choice([4.5, 5.5, 7])
        images.append(255 * ((np.abs(radius - 0.75) < generator.uniform(0.15, 0.25)) & arc))
    return np.stack(images).astype(np.uint8)


def scans(number: int | None = None) -> NDArray[np.uint8]:
    """Return scikit-learn's scans of digits, light on dark: uint8[N,8,8]."""
    pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    return scanned_digits()[0][:number]


def side_by_side(digits: NDArray[np.uint8], gap: int) -> NDArray[np.uint8]:
    """Return images of two digits each, with a gap between them."""
    space = np.zeros((len(digits), digits.shape[1], gap), np.uint8)
    return np.concatenate([digits, space, np.roll(digits, 1, axis=0)], axis=2)


@pytest.mark.parametrize("framing", [pb.FRAMING_MNIST, pb.FRAMING_AS_IS])
@pytest.mark.parametrize("source", [drawn_digits, lambda: scans(400)], ids=["drawn", "scanned"])
def test_service_and_evaluation_agree_on_verdicts(source: Callable[[], NDArray[np.uint8]], framing: int) -> None:
    """Single digits and side-by-side pairs get the same images and verdicts from the service, in batches shared with
    another request, and from ``prepare_gray``, with which training evaluates.
    """
    singles = source()
    pairs = side_by_side(singles, 3)
    found = []
    for drawn in (singles, pairs):
        as_is = framing == pb.FRAMING_AS_IS
        images = np.stack([frame(image, Ink.LIGHT_ON_DARK).pixels for image in drawn]) if as_is else drawn
        ours = gray_request(images, framing=framing, ink=pb.INK_LIGHT_ON_DARK)
        evaluated = prepare_gray(images, Ink.LIGHT_ON_DARK, ours.framing)
        found.append(evaluated.several.mean())
        for start in range(0, len(images), 64):
            rows = slice(start, start + 64)
            served = prepare([(request(pixels=bytes(784)), 0, 1), (ours, start, min(start + 64, len(images)))])
            assert (served.images[1:] == evaluated.images[rows]).all()
            assert served.blank[1:].tolist() == evaluated.blank[rows].tolist()
            assert served.several[1:].tolist() == evaluated.several[rows].tolist()
    assert found[0] < 0.1, "single digits should be single"
    assert found[1] > 0.5, "pairs should be several"


def test_a_framed_image_is_several_only_if_framing_says_so() -> None:
    """Framed images are not checked a second time: with that check, some scans of single digits would be several."""
    digits = scans()
    framed = [frame(digit, Ink.LIGHT_ON_DARK) for digit in digits]

    prepared = whole(gray_request(digits, ink=pb.INK_LIGHT_ON_DARK))

    assert prepared.several.tolist() == [one.several for one in framed]
    checked_again = verdicts(prepared.images[..., 0])[1]
    assert (checked_again & ~prepared.several).any(), "these digits do not show the difference"


def test_large_images_are_not_copied_together() -> None:
    """The memory for framing images of which no two are framed together does not grow with their number."""
    side, num_images = 300, 20
    image = GrayImages(noise(side * side * 3), 1, side, side, Ink.AUTO, Framing.MNIST, channels=3)
    prepare([(image, 0, 1)])  # tables that are kept
    tracemalloc.start()
    try:
        prepare([(image, 0, 1)] * num_images)
        assert tracemalloc.get_traced_memory()[1] < num_images * len(image.pixels) / 2
    finally:
        tracemalloc.stop()


def test_framing_work_grows_with_pixels_and_channels() -> None:
    """A larger image takes more units, and one in colour more than one in grey."""
    assert framing_work(20, 30) < framing_work(200, 300)
    assert framing_work(20, 30) < framing_work(20, 30, 3) < framing_work(20, 30, 4)
    assert framing_work(20, 30, 1) == framing_work(20, 30)


@pytest.mark.parametrize("framing", Framing)
def test_whole_arrays_are_prepared_as_requests_are(framing: Framing) -> None:
    """``prepare_gray`` gives arrays for all images, of the promised shapes and dtypes."""
    images = np.frombuffer(noise(5 * IMAGE_BYTES), np.uint8).reshape(5, 28, 28)

    prepared = prepare_gray(images, Ink.LIGHT_ON_DARK, framing)

    assert (prepared.images.shape, prepared.images.dtype) == ((5, 28, 28, 1), np.uint8)
    assert (prepared.blank.shape, prepared.several.shape) == ((5,), (5,))


@pytest.mark.parametrize(
    "shape", [(28, 28, 1), (28, 28, 3), (28, 28, 4), (8, 8, 1), (28, 40, 1), (60, 45, 3), (40, 28, 4)]
)
def test_an_image_alone_is_prepared_as_in_a_plain_request(shape: tuple[int, int, int]) -> None:
    """``prepare_image``, with which training evaluates, treats an image as the service treats a request that states neither
    ink nor framing.
    """
    height, width, channels = shape
    image = np.frombuffer(noise(height * width * channels), np.uint8).reshape(shape)
    pixel_format = next(key for key, number in FORMATS.items() if number == channels)

    ours = prepare_image(image, Framing.AUTO)

    served = whole(request(pixels=image.tobytes(), height=height, width=width, pixel_format=pixel_format))
    assert all(np.array_equal(got, expected) for got, expected in zip(ours, served, strict=True))

"""Images into parts and responses into predictions: no socket, every shape, any order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from digitserve.client import Framing, Ink, InvalidRequest, Verdict
from digitserve.client.parts import OVERHEAD_BYTES, PART_BYTES, Assembly, Part, check, decode, options, split
from digitserve.v1 import digits_pb2 as pb

LIMITS = pb.Model(max_request_bytes=16 << 20, max_images_per_request=4096)
SIZES = ((1, 1), (2, 5), (28, 28), (3, 3, 1), (2, 2, 3), (2, 2, 4))


def image_of(number: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return an image whose pixels are all ``number``, below 256."""
    return np.full(shape, number, np.uint8)


def answer(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
    """Answer as a service would whose class index is an image's first pixel."""
    pixels = np.frombuffer(request.pixels, np.uint8).reshape(request.num_images, -1)
    return pb.ClassifyResponse(predictions=[pb.Prediction(class_index=int(one[0])) for one in pixels])


def complete(images: object, images_per_request: int, order: list[int] | None = None) -> list[int]:
    """Send all parts of a call, put the responses in another order, and return the class indices."""
    assembly = Assembly(split(check(images), images_per_request, LIMITS), options(0, None, None))
    sent = [(part, answer(request)) for part, request in assembly]
    for index in np.argsort(order[: len(sent)]) if order else range(len(sent)):
        assembly.put(*sent[index])
    return [prediction.class_index for prediction in assembly.predictions()]


@given(
    num_images=st.integers(0, 200),
    images_per_request=st.integers(1, 300),
    order=st.permutations(range(200)),
)
def test_predictions_are_in_order_whatever_comes_first(
    num_images: int, images_per_request: int, order: list[int]
) -> None:
    """For any number of images, any size of requests and any order of completion, predictions are the images'."""
    images = np.stack([image_of(n, (2, 2)) for n in range(num_images)] or [image_of(0, (2, 2))])[:num_images]

    assert complete(images, images_per_request, order) == list(range(num_images))


@given(
    sizes=st.lists(st.sampled_from(SIZES), max_size=60),
    images_per_request=st.integers(1, 9),
    order=st.permutations(range(60)),
)
def test_images_of_mixed_sizes_come_back_in_order(
    sizes: list[tuple[int, ...]], images_per_request: int, order: list[int]
) -> None:
    """A list of images of any mixture of sizes is sent by sizes, and answered in its own order."""
    images = [image_of(n, shape) for n, shape in enumerate(sizes)]

    assert complete(images, images_per_request, order) == list(range(len(sizes)))


@given(images_per_request=st.integers(1, 5000), max_images=st.integers(1, 300), max_bytes=st.integers(1, 5000))
def test_no_request_exceeds_a_limit(images_per_request: int, max_images: int, max_bytes: int) -> None:
    """Parts keep to what was asked, and to the service's images and bytes; one image alone may be too large."""
    limits = pb.Model(max_request_bytes=max_bytes, max_images_per_request=max_images)
    parts = split(check(np.zeros((257, 4, 4, 3), np.uint8)), images_per_request, limits)
    requests = [part.request(options(3, Ink.AUTO, Framing.MNIST)) for part in parts]

    assert sum(request.num_images for request in requests) == 257
    assert all(request.num_images <= min(images_per_request, max_images) for request in requests)
    assert all(request.ByteSize() <= max_bytes or request.num_images == 1 for request in requests)


def test_large_images_travel_few_at_a_time() -> None:
    """Several images in one request have no more than PART_BYTES, however much the service takes; one may have more."""
    limits = pb.Model(max_request_bytes=1 << 30, max_images_per_request=4096)
    sizes = [
        [
            (part.stop - part.start) * side * side
            for part in split(check(np.zeros((9, side, side), np.uint8)), 64, limits)
        ]
        for side in (28, 512, 1100)
    ]

    assert sizes == [[9 * 28 * 28], [PART_BYTES, PART_BYTES, 512 * 512], [1100 * 1100] * 9]


def test_a_request_says_beside_its_pixels_less_than_is_left_for_it() -> None:
    """The largest values of every field fit into the bytes that splitting leaves free."""
    largest = pb.ClassifyRequest(
        pixels=b"", height=2**32 - 1, width=2**32 - 1, num_images=2**32 - 1, pixel_format=3, ink=3, framing=2,
        top_k=2**32 - 1,
    )  # fmt: skip
    assert largest.ByteSize() + len(b"\x0a" + bytes(5)) <= OVERHEAD_BYTES


@pytest.mark.parametrize(
    ("shape", "sides", "num_images", "pixel_format"),
    [
        ((5, 7), (5, 7), 1, pb.PIXEL_FORMAT_GRAY8),
        ((6, 5, 7), (5, 7), 6, pb.PIXEL_FORMAT_GRAY8),
        ((6, 5, 7, 1), (5, 7), 6, pb.PIXEL_FORMAT_GRAY8),
        ((6, 5, 7, 3), (5, 7), 6, pb.PIXEL_FORMAT_RGB8),
        ((6, 5, 7, 4), (5, 7), 6, pb.PIXEL_FORMAT_RGBA8),
        ((1, 28, 28), (28, 28), 1, pb.PIXEL_FORMAT_GRAY8),
        ((3, 28, 28), (28, 28), 3, pb.PIXEL_FORMAT_GRAY8),
        ((5, 28, 3, 1), (28, 3), 5, pb.PIXEL_FORMAT_GRAY8),
    ],
)
def test_the_axes_of_an_array_tell_what_it_is(
    shape: tuple[int, ...], sides: tuple[int, int], num_images: int, pixel_format: int
) -> None:
    """Two axes are one image, three [N,H,W], four [N,H,W,C]; the pixels travel in the array's order."""
    images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (part,) = split(check(images), 64, LIMITS)
    request = part.request(options(2, None, None))

    assert (request.height, request.width, request.num_images) == (*sides, num_images)
    assert (request.pixel_format, request.pixels, request.top_k) == (pixel_format, images.tobytes(), 2)
    assert (request.ink, request.framing) == (pb.INK_UNSPECIFIED, pb.FRAMING_UNSPECIFIED)


def test_a_view_travels_as_what_it_shows() -> None:
    """Arrays that are not contiguous, such as a turned or thinned one, are sent as they look."""
    whole = np.arange(600, dtype=np.uint8).reshape(6, 10, 10)
    for view in (whole.transpose(0, 2, 1), whole[::2, :, ::-1], whole[:, 2:7, 1:9]):
        (array,) = split(check(view), 64, LIMITS)
        (listed,) = split(check(list(view)), 64, LIMITS)
        assert array.request(pb.ClassifyRequest()) == listed.request(pb.ClassifyRequest())
        assert array.request(pb.ClassifyRequest()).pixels == np.ascontiguousarray(view).tobytes()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_three_axes_that_may_be_one_image_in_colour_are_refused(channels: int) -> None:
    """[H,W,3] is told from [N,H,W] by nobody's guess: it is refused with the two ways to say it."""
    images = np.zeros((28, 28, channels), np.uint8)
    with pytest.raises(InvalidRequest, match=r"images\[None\].*images\[\.\.\., None\]") as refused:
        check(images)

    assert f"uint8[28, 28, {channels}]" in str(refused.value)
    assert check(images[None])[0].shape == check([images])[0].shape == (28, 28, channels)
    assert check(images[..., None])[0].shape == (28, channels, 1)


@pytest.mark.parametrize(
    ("images", "got"),
    [
        (np.zeros((28, 28)), "float64[28, 28]"),
        (np.zeros((28, 28), bool), "bool[28, 28]"),
        (np.zeros(784, np.uint8), "uint8[784]"),
        (np.zeros((), np.uint8), "uint8[]"),
        (np.zeros((2, 9, 9, 2), np.uint8), "2 channels"),
        (np.zeros((1, 1, 2, 9, 9), np.uint8), "uint8[1, 1, 2, 9, 9]"),
        (np.zeros((3, 0, 28), np.uint8), "uint8[3, 0, 28]"),
        ([np.zeros((9, 9), np.uint8), np.zeros((9, 9), np.int32)], "image 1: got int32[9, 9]"),
        ([np.zeros((1, 9, 9), np.uint8)], "image 0: got uint8[1, 9, 9], 9 channels"),
        ([np.zeros((1, 9, 9, 3), np.uint8)], "image 0: got uint8[1, 9, 9, 3]"),
        ([[1, 2], [3, 4]], "image 0: got list"),
        (b"\x00" * 784, "got bytes"),
        (None, "got NoneType"),
    ],
)
def test_what_is_no_image_is_refused(images: object, got: str) -> None:
    """Another type or shape raises InvalidRequest that says what was got, which image, and what is expected."""
    with pytest.raises(InvalidRequest) as refused:
        check(images)

    assert got in str(refused.value)
    assert "expected" in str(refused.value)


def test_no_images_are_no_requests() -> None:
    """An empty list or array is answered with nothing, and nothing is sent."""
    for nothing in ([], (), np.zeros((0, 28, 28), np.uint8)):
        assert complete(nothing, 64) == []


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        (range(5, 6), "image 5"),
        (range(64, 128), "images 64 to 127"),
        ([3, 4, 5], "images 3 to 5"),
        ([1, 4, 9], "images 1, 4, 9"),
        (list(range(0, 24, 2)), "images 0, 2, 4, 6, 8, 10, 12, 14 and 4 more"),
    ],
)
def test_a_part_names_its_images(indices: list[int], text: str) -> None:
    """An error can say which images a part held, by their places among all."""
    images = [np.zeros((2, 2), np.uint8)] * (indices[-1] + 1)
    (group,) = check(images)
    part = Part(group._replace(indices=indices), 0, len(indices))

    assert part.describe() == text


def test_nothing_is_handed_out_after_a_failure() -> None:
    """Once one part has failed, no other is sent."""
    assembly = Assembly(split(check(np.zeros((10, 2, 2), np.uint8)), 1, LIMITS), options(0, None, None))
    taken = iter(assembly)
    next(taken)
    assembly.stop()

    assert list(taken) == []


def test_a_prediction_has_every_field_of_the_response() -> None:
    """Label, class, confidence, verdict, score and the listed classes arrive; a verdict of tomorrow is UNSPECIFIED."""
    response = pb.ClassifyResponse(
        predictions=[
            pb.Prediction(
                label="7", class_index=7, confidence=0.75, verdict=pb.VERDICT_SEVERAL, ood_score=-2.5,
                top=[pb.ClassScore(label="7", class_index=7, confidence=0.75),
                     pb.ClassScore(label="1", class_index=1, confidence=0.25)],
            ),
            pb.Prediction(verdict=99),
        ]
    )  # fmt: skip
    first, second = decode(response, top_k=2)

    assert (first.label, first.class_index, first.confidence) == ("7", 7, 0.75)
    assert (first.verdict, first.ood_score) == (Verdict.SEVERAL, -2.5)
    assert [(score.label, score.class_index, score.confidence) for score in first.top] == [
        ("7", 7, 0.75),
        ("1", 1, 0.25),
    ]
    assert (second.verdict, second.top) == (Verdict.UNSPECIFIED, ())


@pytest.mark.parametrize("ink", Ink)
@pytest.mark.parametrize("framing", Framing)
def test_every_ink_and_framing_has_its_name_in_the_protocol(ink: Ink, framing: Framing) -> None:
    """Options reach the request under the protocol's own names."""
    request = options(5, ink, framing)

    assert (pb.Ink.Name(request.ink), pb.Framing.Name(request.framing)) == (
        f"INK_{ink.name}",
        f"FRAMING_{framing.name}",
    )
    assert request.top_k == 5


def test_a_negative_top_k_is_refused() -> None:
    """The mistake is said before anything is sent."""
    with pytest.raises(InvalidRequest, match="top_k: got -1"):
        options(-1, None, None)

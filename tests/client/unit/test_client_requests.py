"""Images into requests and responses into predictions, without a socket."""

import io
from dataclasses import FrozenInstanceError, fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from digitserve.client import Artefact, Box, Framing, Ink, InvalidRequest, Removed, Verdict
from digitserve.client.predictions import ModelInfo, to_predictions
from digitserve.client.requests import (
    MAX_CHUNK_BYTES,
    OVERHEAD_BYTES,
    Chunk,
    ClassifyCall,
    group,
    request_options,
    split,
)
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.image_files import image_to_array
from digitserve.vision.reduction import reduce_by_block_means


def limits(max_request_bytes: int, max_images_per_request: int) -> ModelInfo:
    """Return a model whose service has these limits."""
    return ModelInfo.from_message(
        pb.Model(max_request_bytes=max_request_bytes, max_images_per_request=max_images_per_request)
    )


LIMITS = limits(16 << 20, 4096)
SIZES = ((1, 1), (2, 5), (28, 28), (3, 3, 1), (2, 2, 3), (2, 2, 4))


def image_of(number: int, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return an image whose pixels are all ``number``, below 256."""
    return np.full(shape, number, np.uint8)


def answer(request: pb.ClassifyRequest) -> pb.ClassifyResponse:
    """Answer as a service whose class index is an image's first pixel."""
    pixels = np.frombuffer(request.pixels, np.uint8).reshape(request.num_images, -1)
    return pb.ClassifyResponse(predictions=[pb.Prediction(class_index=int(one[0])) for one in pixels])


def complete(images: object, images_per_request: int, order: list[int] | None = None) -> list[int]:
    """Send all chunks of a call, add the responses in another order, and return the class indices."""
    call = ClassifyCall(split(group(images), images_per_request, LIMITS), request_options(0, None, None))
    sent = [(chunk, answer(request)) for chunk, request in call]
    for index in np.argsort(order[: len(sent)]) if order else range(len(sent)):
        call.add_response(*sent[index])
    return [prediction.class_index for prediction in call.predictions()]


@given(
    num_images=st.integers(0, 200),
    images_per_request=st.integers(1, 300),
    order=st.permutations(range(200)),
)
def test_predictions_have_the_order_of_the_images(num_images: int, images_per_request: int, order: list[int]) -> None:
    """For any number of images, any size of requests and any order of responses, predictions have the order of the images."""
    images = np.stack([image_of(n, (2, 2)) for n in range(num_images)] or [image_of(0, (2, 2))])[:num_images]

    assert complete(images, images_per_request, order) == list(range(num_images))


@given(
    sizes=st.lists(st.sampled_from(SIZES), max_size=60),
    images_per_request=st.integers(1, 9),
    order=st.permutations(range(60)),
)
def test_predictions_of_mixed_sizes_have_the_order_of_the_images(
    sizes: list[tuple[int, ...]], images_per_request: int, order: list[int]
) -> None:
    """A list of images of any sizes is sent grouped by size; its predictions have the order of the list."""
    images = [image_of(n, shape) for n, shape in enumerate(sizes)]

    assert complete(images, images_per_request, order) == list(range(len(sizes)))


@given(images_per_request=st.integers(1, 5000), max_images=st.integers(1, 300), max_bytes=st.integers(1, 5000))
def test_no_request_exceeds_a_limit(images_per_request: int, max_images: int, max_bytes: int) -> None:
    """Chunks respect ``images_per_request`` and the service's limits; a single image may exceed the limit on bytes."""
    chunks = split(group(np.zeros((257, 4, 4, 3), np.uint8)), images_per_request, limits(max_bytes, max_images))
    requests = [chunk.to_request(request_options(3, Ink.AUTO, Framing.MNIST)) for chunk in chunks]

    assert sum(request.num_images for request in requests) == 257
    assert all(request.num_images <= min(images_per_request, max_images) for request in requests)
    assert all(request.ByteSize() <= max_bytes or request.num_images == 1 for request in requests)


def test_a_chunk_of_several_images_has_a_limit_on_bytes() -> None:
    """Several images in one request have at most MAX_CHUNK_BYTES, whatever the service accepts; one image may have more."""
    sizes = [
        [
            (chunk.stop - chunk.start) * side * side
            for chunk in split(group(np.zeros((9, side, side), np.uint8)), 64, limits(1 << 30, 4096))
        ]
        for side in (28, 512, 1100)
    ]

    assert sizes == [[9 * 28 * 28], [MAX_CHUNK_BYTES, MAX_CHUNK_BYTES, 512 * 512], [1100 * 1100] * 9]


def test_the_overhead_of_a_request_has_an_upper_bound() -> None:
    """The largest values of all fields fit into OVERHEAD_BYTES."""
    largest = pb.ClassifyRequest(
        pixels=b"", height=2**32 - 1, width=2**32 - 1, num_images=2**32 - 1, pixel_format=3, ink=3, framing=2,
        top_k=2**32 - 1, explain=True,
    )  # fmt: skip
    assert largest.ByteSize() + len(b"\x0a" + bytes(5)) <= OVERHEAD_BYTES


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4])), min_size=1, max_size=6),
    max_side=st.one_of(st.none(), st.integers(1, 10)),
)
def test_no_side_over_the_maximum_is_sent(sizes: list[tuple[int, int, int]], max_side: int | None) -> None:
    """Images with a longer side are sent as their block means; all others byte for byte; with None, every image is."""
    chance = np.random.default_rng(0)
    images = [chance.integers(0, 256, size, np.uint8) for size in sizes]
    for chunk in split(group(images, max_side), 1, LIMITS):
        request, image = chunk.to_request(request_options(0, None, None)), images[chunk.indices[0]]
        if max_side is not None and max(image.shape[:2]) > max_side:
            image = reduce_by_block_means(image, -(-max(image.shape[:2]) // max_side))
            assert max(request.height, request.width) <= max_side
        assert (request.height, request.width) == image.shape[:2]
        assert request.pixels == image.tobytes()


def test_an_array_of_large_images_is_reduced() -> None:
    """The images of one array are reduced one by one when their request is built; the default is 2 048 pixels."""
    images = np.random.default_rng(0).integers(0, 256, (3, 2049, 5), np.uint8)
    (only,) = group(images)

    assert only.shape == (1025, 3, 1)
    (chunk,) = split([only], 64, LIMITS)
    expected = b"".join(reduce_by_block_means(image, 2).tobytes() for image in images)
    assert chunk.to_request(request_options(0, None, None)).pixels == expected
    assert group(images[:, :2048])[0].reduction is None


def test_boxes_are_in_pixels_of_the_image_as_it_was_given() -> None:
    """Images of two sizes that are reduced to the same size keep their own boxes; the last block may be cut off."""
    images = [np.zeros((20, 40), np.uint8), np.zeros((19, 39), np.uint8)]
    call = ClassifyCall(split(group(images, 20), 64, LIMITS), request_options(0, None, None, explain=True))
    for chunk, request in call:
        assert (request.height, request.width, request.explain) == (10, 20, True)
        prediction = pb.Prediction(preparation=pb.Preparation(box=pb.Box(top=0, bottom=10, left=3, right=20)))
        call.add_response(chunk, pb.ClassifyResponse(predictions=[prediction]))

    assert [one.preparation and one.preparation.box for one in call.predictions()] == [(0, 20, 6, 40), (0, 19, 6, 39)]


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
def test_the_axes_of_an_array_determine_its_meaning(
    shape: tuple[int, ...], sides: tuple[int, int], num_images: int, pixel_format: int
) -> None:
    """Two axes are one image, three [N,H,W], four [N,H,W,C]; pixels are sent in the array's order."""
    images = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    (chunk,) = split(group(images), 64, LIMITS)
    request = chunk.to_request(request_options(2, None, None))

    assert (request.height, request.width, request.num_images) == (*sides, num_images)
    assert (request.pixel_format, request.pixels, request.top_k) == (pixel_format, images.tobytes(), 2)
    assert (request.ink, request.framing) == (pb.INK_UNSPECIFIED, pb.FRAMING_UNSPECIFIED)


def test_a_view_is_sent_as_it_looks() -> None:
    """Arrays that are not contiguous, such as transposed or sliced ones, are sent in their logical order."""
    whole = np.arange(600, dtype=np.uint8).reshape(6, 10, 10)
    for view in (whole.transpose(0, 2, 1), whole[::2, :, ::-1], whole[:, 2:7, 1:9]):
        (array,) = split(group(view), 64, LIMITS)
        (listed,) = split(group(list(view)), 64, LIMITS)
        assert array.to_request(pb.ClassifyRequest()) == listed.to_request(pb.ClassifyRequest())
        assert array.to_request(pb.ClassifyRequest()).pixels == np.ascontiguousarray(view).tobytes()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_three_axes_that_may_be_one_image_in_colour_are_rejected(channels: int) -> None:
    """[H,W,3] is not guessed to be [N,H,W] or one image: it is rejected, and the message shows both ways to write it."""
    images = np.zeros((28, 28, channels), np.uint8)
    with pytest.raises(InvalidRequest, match=r"images\[None\].*images\[\.\.\., None\]") as caught:
        group(images)

    assert f"uint8[28, 28, {channels}]" in str(caught.value)
    assert group(images[None])[0].shape == group([images])[0].shape == (28, 28, channels)
    assert group(images[..., None])[0].shape == (28, channels, 1)


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
def test_invalid_images_are_rejected(images: object, got: str) -> None:
    """Another type or shape raises InvalidRequest; the message states got, expected, and which image."""
    with pytest.raises(InvalidRequest) as caught:
        group(images)

    assert got in str(caught.value)
    assert "expected" in str(caught.value)


def test_no_images_need_no_requests() -> None:
    """An empty list or array has no predictions, and nothing is sent."""
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
def test_a_chunk_names_its_images(indices: list[int], text: str) -> None:
    """An error can say which images a chunk contained, by their positions in the call."""
    images = [np.zeros((2, 2), np.uint8)] * (indices[-1] + 1)
    (only,) = group(images)

    assert Chunk(only._replace(indices=indices), 0, len(indices)).describe() == text


def test_no_chunk_is_sent_after_a_failure() -> None:
    """After one chunk has failed, no other is handed out."""
    call = ClassifyCall(split(group(np.zeros((10, 2, 2), np.uint8)), 1, LIMITS), request_options(0, None, None))
    chunks = iter(call)
    next(chunks)
    call.abort()

    assert list(chunks) == []


def test_a_prediction_has_every_field_of_the_response() -> None:
    """Label, class, confidence, verdict, score and listed classes are converted; an unknown verdict is UNSPECIFIED."""
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
    first, second = to_predictions(response, top_k=2)

    assert (first.label, first.class_index, first.confidence) == ("7", 7, 0.75)
    assert (first.verdict, first.ood_score) == (Verdict.SEVERAL, -2.5)
    assert [(score.label, score.class_index, score.confidence) for score in first.top] == [
        ("7", 7, 0.75),
        ("1", 1, 0.25),
    ]
    assert (second.verdict, second.top) == (Verdict.UNSPECIFIED, ())
    assert first.preparation is None


def test_a_preparation_has_every_field_of_the_response() -> None:
    """Pixels, framing, ink, box and removed artefacts are converted; what the message leaves out is None."""
    message = pb.Preparation(
        pixels=bytes(range(256)) * 3 + bytes(16), framing=pb.FRAMING_MNIST, ink=pb.INK_DARK_ON_LIGHT,
        box=pb.Box(top=1, bottom=2, left=3, right=4),
        removed=[pb.Removed(artefact=pb.ARTEFACT_BORDER, box=pb.Box(bottom=9, right=1)), pb.Removed(artefact=99)],
    )  # fmt: skip
    response = pb.ClassifyResponse(
        predictions=[
            pb.Prediction(preparation=message),
            pb.Prediction(preparation=pb.Preparation(pixels=bytes(784))),
            pb.Prediction(),
        ]
    )
    full, bare, none = (one.preparation for one in to_predictions(response, 0, explain=True))

    assert full is not None and bare is not None
    assert full.pixels.tobytes() == message.pixels and full.pixels.shape == (28, 28)
    assert (full.framing, full.ink, full.box) == (Framing.MNIST, Ink.DARK_ON_LIGHT, Box(1, 2, 3, 4))
    assert full.removed == (Removed(Artefact.BORDER, Box(0, 9, 0, 1)), Removed(Artefact.UNSPECIFIED))
    assert (bare.framing, bare.ink, bare.box, bare.removed) == (None, None, None, ())
    assert none is None
    assert [one.preparation for one in to_predictions(response, 0)] == [None] * 3


@pytest.mark.parametrize("ink", Ink)
@pytest.mark.parametrize("framing", Framing)
def test_every_ink_and_framing_has_its_name_in_the_protocol(ink: Ink, framing: Framing) -> None:
    """Options are written to the request as the protocol's enum values; AUTO is what it does without framing."""
    request = request_options(5, ink, framing)
    name = "UNSPECIFIED" if framing is Framing.AUTO else framing.name

    assert (pb.Ink.Name(request.ink), pb.Framing.Name(request.framing)) == (
        f"INK_{ink.name}",
        f"FRAMING_{name}",
    )
    assert request.top_k == 5


@pytest.mark.parametrize("top_k", [-1, 1 << 32])
def test_a_top_k_that_the_protocol_cannot_carry_is_rejected(top_k: int) -> None:
    """The error is one of the client's own, and nothing is sent."""
    with pytest.raises(InvalidRequest, match=f"top_k: got {top_k}; expected 0 to 4294967295"):
        request_options(top_k, None, None)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_a_pillow_image_is_sent_as_the_command_sends_it(mode: str) -> None:
    """One Pillow image, alone or in a list beside arrays, has the pixels of ``image_to_array``."""
    source = Image.fromarray(np.arange(63, dtype=np.uint16 if mode == "I;16" else np.uint8).reshape(7, 9))
    image = source if mode == "I;16" else source.convert(mode)
    expected = image_to_array(image)

    (alone,) = group(image)
    assert np.array_equal(alone.images[0], expected)
    listed = group([np.zeros((2, 2), np.uint8), image])
    assert [one.indices for one in listed] == [[0], [1]]
    assert np.array_equal(listed[1].images[0], expected)


@pytest.mark.parametrize(
    ("mode", "channels"), [("L", 1), ("1", 1), ("P", 3), ("RGB", 3), ("CMYK", 3), ("RGBA", 4), ("LA", 4), ("PA", 4)]
)
def test_colours_and_alpha_are_sent(mode: str, channels: int) -> None:
    """The client converts no colour to grey and drops no alpha: framing decides which channel shows the ink."""
    source = Image.new("RGBA" if channels == 4 else "RGB", (5, 4), (255, 0, 0, 128) if channels == 4 else (255, 0, 0))
    (only,) = group(source.convert(mode))

    assert only.shape == (4, 5, channels)
    if mode not in {"L", "1", "LA"}:
        red, green = only.images[0][0, 0, :2]
        assert red > 2 * green
    if channels == 4:
        assert (only.images[0][..., 3] == 128).all()


def test_the_transparency_of_a_palette_is_sent() -> None:
    """A palette image with a transparent colour is sent as RGBA."""
    content = io.BytesIO()
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.save(content, "PNG", transparency=1)
    with Image.open(content) as image:
        assert image.mode == "P"
        (only,) = group(image)

    assert only.shape == (2, 3, 4)
    assert not only.images[0][..., 3].any()


def test_a_pillow_image_is_rotated_as_its_orientation_says() -> None:
    """A photograph stored on its side is sent upright, and transparency is kept."""
    content = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (4, 2), (1, 2, 3, 0)).save(content, "PNG", exif=exif)
    with Image.open(content) as image:
        (only,) = group(image)

    assert only.shape == (4, 2, 4)
    assert only.images[0][0, 0].tolist() == [1, 2, 3, 0]


def test_a_damaged_pillow_image_is_rejected_with_its_position() -> None:
    """Pillow decodes at first use: a truncated file is found here, and raises InvalidRequest."""
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(content, "PNG")
    with (
        Image.open(io.BytesIO(content.getvalue()[:-600])) as image,
        pytest.raises(InvalidRequest, match="image 1: cannot"),
    ):
        group([np.zeros((2, 2), np.uint8), image])


def test_a_model_has_every_field_of_the_message() -> None:
    """``ModelInfo`` is immutable and carries all facts of ``GetModel`` in Python's types."""
    message = pb.Model(
        name="digits", version="3", sha256="ab", labels=["0", "1"], height=28, width=28, ink=pb.INK_LIGHT_ON_DARK,
        framing=pb.FRAMING_MNIST, ood_threshold=-1.5, execution_provider="CPUExecutionProvider",
        max_request_bytes=1000, max_images_per_request=10, max_batch_size=5, quality={"test_accuracy": 0.5}, precision="int8",
    )  # fmt: skip
    model = ModelInfo.from_message(message)

    assert {field.name for field in fields(model)} == {field.name for field in message.DESCRIPTOR.fields}
    assert (model.labels, model.ink, model.framing) == (("0", "1"), Ink.LIGHT_ON_DARK, Framing.MNIST)
    assert (model.quality, model.ood_threshold, model.max_batch_size) == ({"test_accuracy": 0.5}, -1.5, 5)
    assert model.precision == "int8"
    with pytest.raises(FrozenInstanceError):
        model.name = "other"  # type: ignore[misc]

"""Images into requests, and responses into predictions in order. No I/O; both clients share it.

    images ──group──▶ Group (images of one size) ──split──▶ Chunk ──to_request──▶ ClassifyRequest

ClassifyCall hands out the chunks, takes their responses in any order, and returns predictions in the order of the images.
"""

import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from digitserve.client.errors import InvalidRequest
from digitserve.client.predictions import ModelInfo, Prediction, to_predictions
from digitserve.errors import ImageFileError
from digitserve.protocol.names import CLASSIFY_STREAM
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.reduction import MAX_SIDE, Reduction, reduce_by_block_means

if TYPE_CHECKING:
    import PIL.Image

Pixels = NDArray[np.uint8]
Image: TypeAlias = "Pixels | PIL.Image.Image"
Images: TypeAlias = "Image | Sequence[Image]"

FORMATS = {1: pb.PIXEL_FORMAT_GRAY8, 3: pb.PIXEL_FORMAT_RGB8, 4: pb.PIXEL_FORMAT_RGBA8}
"""Pixel formats by the number of channels."""

OVERHEAD_BYTES = 64
"""Upper bound of a request's size without its pixels: ten fields of at most 6 bytes with their tags."""

MAX_CHUNK_BYTES = 1 << 20
"""Most pixels of a chunk with several images. Many chunks are in flight at a time, and a worker limits the bytes that wait."""

MAX_NAMED = 8
"""Images of a chunk that an error lists one by one."""

MAX_TOP_K = (1 << 32) - 1
"""Largest value of the field, a uint32."""

EXPECTED_IMAGE = "uint8[H,W], uint8[H,W,C] or a Pillow image"
EXPECTED = (
    "uint8[H,W], uint8[N,H,W], uint8[N,H,W,C] with C of 1, 3 or 4, a Pillow image, or a list of "
    "uint8[H,W], uint8[H,W,C] and Pillow images of any sizes"
)


class Group(NamedTuple):
    """Images of one size, with their positions in the call.

    Attributes:
        images: one array uint8[N,H,W] or uint8[N,H,W,C], or N arrays uint8[H,W] or uint8[H,W,C].
        indices: N positions, ascending.
        shape: H, W and C as they are sent.
        reduction: from the images to what is sent; None if they are sent as they are.
    """

    images: Pixels | list[Pixels]
    indices: Sequence[int]
    shape: tuple[int, int, int]
    reduction: Reduction | None


class Chunk(NamedTuple):
    """The images of one request: images ``start`` to ``stop`` of a group."""

    group: Group
    start: int
    stop: int

    @property
    def indices(self) -> Sequence[int]:
        """Positions of its images in the call."""
        return self.group.indices[self.start : self.stop]

    def to_request(self, options: pb.ClassifyRequest) -> pb.ClassifyRequest:
        """Build the request. Pixels are reduced and copied only here, so that few requests exist at a time."""
        images, reduction = self.group.images[self.start : self.stop], self.group.reduction
        if reduction is not None:
            images = [reduce_by_block_means(image, reduction.factor) for image in images]
        height, width, channels = self.group.shape
        request = pb.ClassifyRequest(
            pixels=images.tobytes() if isinstance(images, np.ndarray) else b"".join(one.tobytes() for one in images),
            num_images=self.stop - self.start,
            height=height,
            width=width,
            pixel_format=FORMATS[channels],
        )
        request.MergeFrom(options)
        return request

    def describe(self) -> str:
        """Name its images by their positions, from 0."""
        first, last, num_unnamed = self.indices[0], self.indices[-1], len(self.indices) - MAX_NAMED
        if len(self.indices) == 1:
            return f"image {first}"
        if last - first + 1 == len(self.indices):
            return f"images {first} to {last}"
        named = ", ".join(map(str, self.indices[:MAX_NAMED]))
        return f"images {named} and {num_unnamed} more" if num_unnamed > 0 else f"images {named}"


def group(images: object, max_side: int | None = MAX_SIDE) -> list[Group]:
    """Check images and group them by size; those with a side over ``max_side`` are to be reduced.

    An array of two axes is one image, of three ``[N,H,W]``, of four ``[N,H,W,C]``. Three axes whose last has length 1, 3 or 4
    are rejected: the array could be one image in colour. ``image[None]`` is one image in colour, and ``images[..., None]`` are
    N narrow grey images.

    Raises:
        InvalidRequest: the message states what was received and what is expected.
    """
    if isinstance(images, np.ndarray):
        only = _group_array(images, max_side)
        return [only] if len(only.indices) else []
    if _is_pillow(images):
        images = [images]
    if not isinstance(images, list | tuple):
        raise InvalidRequest(f"images: got {type(images).__name__}; expected {EXPECTED}")
    arrays = [to_array(image, index) for index, image in enumerate(images)]
    indices_by_shape: dict[tuple[int, int, int], list[int]] = {}
    for index, array in enumerate(arrays):
        indices_by_shape.setdefault(image_shape(array, index), []).append(index)
    return [
        _to_group([arrays[i] for i in indices], indices, shape, max_side) for shape, indices in indices_by_shape.items()
    ]


def _to_group(
    images: Pixels | list[Pixels], indices: Sequence[int], shape: tuple[int, int, int], max_side: int | None
) -> Group:
    height, width, channels = shape
    if max_side is None or max(height, width) <= max_side:
        return Group(images, indices, shape, None)
    reduction = Reduction.to_side(height, width, max_side)
    return Group(images, indices, (*reduction.size, channels), reduction)


def to_array(image: object, index: int) -> Pixels:
    """Return an image as an array; Pillow images are converted as ``digitserve classify`` converts them.

    Raises:
        InvalidRequest: it is neither an array nor a Pillow image, or its file is damaged.
    """
    if isinstance(image, np.ndarray):
        return image
    if not _is_pillow(image):
        raise InvalidRequest(f"image {index}: got {type(image).__name__}; expected {EXPECTED_IMAGE}")
    from digitserve.vision.image_files import image_to_array  # noqa: PLC0415 - Pillow is loaded already

    try:
        return image_to_array(image, f"image {index}")
    except ImageFileError as error:
        raise InvalidRequest(str(error)) from None


def _is_pillow(image: object) -> "TypeGuard[PIL.Image.Image]":
    # Callers that use no Pillow do not load it.
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(image, pillow.Image)


def image_shape(image: Pixels, index: int) -> tuple[int, int, int]:
    """Return height, width and channels of one image.

    Raises:
        InvalidRequest: it is not uint8[H,W] or uint8[H,W,C] with C of 1, 3 or 4.
    """
    got = f"image {index}: got {image.dtype}{list(image.shape)}"
    if image.dtype != np.uint8 or image.ndim not in {2, 3}:
        raise InvalidRequest(f"{got}; expected {EXPECTED_IMAGE}")
    return _check_shape(image.shape, got)


def _group_array(images: Pixels, max_side: int | None) -> Group:
    shape, got = images.shape, f"images: got {images.dtype}{list(images.shape)}"
    if images.dtype != np.uint8 or images.ndim not in {2, 3, 4}:
        raise InvalidRequest(f"{got}; expected {EXPECTED}")
    if images.ndim == 3 and shape[2] in FORMATS:  # noqa: PLR2004 - axes
        raise InvalidRequest(
            f"{got}, which is one image of {shape[2]} channels or {shape[0]} grey images {shape[2]} pixels wide; "
            "expected images[None] for the former, images[..., None] for the latter"
        )
    stacked = images[None] if images.ndim == 2 else images  # noqa: PLR2004 - axes
    return _to_group(stacked, range(len(stacked)), _check_shape(stacked.shape[1:], got), max_side)


def _check_shape(shape: tuple[int, ...], got: str) -> tuple[int, int, int]:
    height, width, channels = (*shape, 1)[:3]
    if channels not in FORMATS:
        raise InvalidRequest(f"{got}, {channels} channels; expected 1 (grey), 3 (RGB) or 4 (RGBA)")
    if not height or not width:
        raise InvalidRequest(f"{got}; expected at least one pixel per image")
    return height, width, channels


def split(groups: list[Group], images_per_request: int, limits: ModelInfo) -> list[Chunk]:
    """Split groups into chunks, each for one request.

    Args:
        groups: as ``group`` returned them.
        images_per_request: most images in a chunk.
        limits: the service's limits; of its bytes at most ``MAX_CHUNK_BYTES`` are used. A single image that exceeds them
            becomes a separate chunk, which the service rejects.
    """
    chunks = []
    max_bytes = min(limits.max_request_bytes - OVERHEAD_BYTES, MAX_CHUNK_BYTES)
    for one in groups:
        height, width, channels = one.shape
        max_images = max_bytes // (height * width * channels)
        step = max(1, min(images_per_request, limits.max_images_per_request, max_images))
        num_images = len(one.indices)
        chunks += [Chunk(one, start, min(start + step, num_images)) for start in range(0, num_images, step)]
    return chunks


def request_options(
    top_k: int, ink: Ink | None, framing: Framing | None, *, explain: bool = False
) -> pb.ClassifyRequest:
    """Return the fields that all requests of a call share.

    Raises:
        InvalidRequest: ``top_k`` is negative, or too large for its field.
    """
    if not 0 <= top_k <= MAX_TOP_K:
        raise InvalidRequest(f"top_k: got {top_k}; expected 0 to {MAX_TOP_K}")
    return pb.ClassifyRequest(
        top_k=top_k,
        ink=f"INK_{ink.name if ink else 'UNSPECIFIED'}",
        framing=f"FRAMING_{'UNSPECIFIED' if framing is None or framing is Framing.AUTO else framing.name}",
        explain=explain,
    )


class Sent(NamedTuple):
    """One image as it is sent.

    Attributes:
        pixels: uint8[H,W] or uint8[H,W,C].
        pixel_format: of them.
        reduction: from the image as it was given; None if it is sent as it is.
    """

    pixels: Pixels
    pixel_format: pb.PixelFormat
    reduction: Reduction | None


def prepare(image: object, index: int, max_side: int | None, max_bytes: int | None = None) -> Sent:
    """Check one image, and reduce it if a side is over ``max_side``.

    Args:
        image: an array or a Pillow image.
        index: its position in the call, for errors.
        max_side: longest side in pixels; None to send any image as it is.
        max_bytes: most bytes of its pixels, unless ``max_side`` is None; None for any number.

    Raises:
        InvalidRequest: it is not one image.
    """
    array = to_array(image, index)
    height, width, channels = image_shape(array, index)
    reduction = None
    if max_side is not None:
        max_pixels = height * width if max_bytes is None else max_bytes // channels
        reduction = Reduction.to_fit(height, width, max_side, max_pixels)
    if reduction is None or reduction.factor == 1:
        return Sent(array, FORMATS[channels], None)
    return Sent(reduce_by_block_means(array, reduction.factor), FORMATS[channels], reduction)


class Classifier:
    """How one call of ``classify_stream`` classifies its images.

    Attributes:
        stream: name of the RPC.
    """

    stream = CLASSIFY_STREAM.name

    def __init__(self, options: pb.ClassifyRequest, max_side: int | None = MAX_SIDE) -> None:
        """Use ``options`` for each image, from ``request_options``, and reduce those with a side over ``max_side``."""
        self._options = options
        self._max_side = max_side

    def prepare(self, image: object, index: int) -> Sent:
        """Check an image, and reduce it if it is too large.

        Raises:
            InvalidRequest: it is not one image.
        """
        return prepare(image, index, self._max_side)

    def to_message(self, sent: Sent) -> pb.ClassifyStreamRequest:
        """Return the message of an image."""
        message = pb.ClassifyStreamRequest(request=self._options)
        request = message.request
        request.pixels, request.num_images, request.pixel_format = sent.pixels.tobytes(), 1, sent.pixel_format
        request.height, request.width = sent.pixels.shape[:2]
        return message

    def to_result(self, response: pb.ClassifyResponse, reduction: Reduction | None) -> Prediction:
        """Return the prediction of an image that was reduced in this way."""
        options = self._options
        (prediction,) = to_predictions(response, options.top_k, explain=options.explain, reduction=reduction)
        return prediction


class ClassifyCall:
    """The unsent chunks and the received predictions of one call of ``classify``.

    Created per call; several threads or tasks may take chunks from it and add responses to it.
    """

    def __init__(self, chunks: list[Chunk], options: pb.ClassifyRequest) -> None:
        self._unsent = deque(chunks)
        self._options = options
        self._predictions: dict[int, Prediction] = {}
        self.num_chunks = len(chunks)

    def __iter__(self) -> Iterator[tuple[Chunk, pb.ClassifyRequest]]:
        """Take chunks, each with its request, until none is left."""
        while True:
            try:
                chunk = self._unsent.popleft()
            except IndexError:
                return
            yield chunk, chunk.to_request(self._options)

    def add_response(self, chunk: Chunk, response: pb.ClassifyResponse) -> None:
        """Keep the predictions of a chunk."""
        options, reduction = self._options, chunk.group.reduction
        predictions = to_predictions(response, options.top_k, explain=options.explain, reduction=reduction)
        self._predictions.update(zip(chunk.indices, predictions, strict=True))

    def abort(self) -> None:
        """Hand out no more chunks, because one has failed."""
        self._unsent.clear()

    def error_prefix(self, chunk: Chunk) -> str:
        """Name a chunk's images for an error; "" if the call has no other chunk."""
        return chunk.describe() if self.num_chunks > 1 else ""

    def predictions(self) -> list[Prediction]:
        """Return all predictions, in the order of the images."""
        return [self._predictions[index] for index in range(len(self._predictions))]

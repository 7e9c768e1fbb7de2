"""Images into requests and responses into predictions, without any I/O: what both clients share.

images ──check──▶ Group (images of one size) ──split──▶ Part ──request──▶ ClassifyRequest
Assembly: hands out parts, takes their responses in any order, has the predictions in the order of the images
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.errors import InvalidRequest
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb

Images = NDArray[np.uint8]

FORMATS = {1: pb.PIXEL_FORMAT_GRAY8, 3: pb.PIXEL_FORMAT_RGB8, 4: pb.PIXEL_FORMAT_RGBA8}
"""By the number of channels."""

OVERHEAD_BYTES = 64
"""More than a request holds beside its pixels: nine fields of at most 6 bytes and their tags."""

PART_BYTES = 1 << 20
"""Most pixels of a part with several images: many parts are under way at a time, and a worker bounds the bytes that wait."""

MAX_NAMED = 8
"""Images of a part that an error names one by one."""

EXPECTED = "uint8[H,W], uint8[N,H,W], uint8[N,H,W,C] with C of 1, 3 or 4, or a list of uint8[H,W] and uint8[H,W,C] of any sizes"


class Verdict(Enum):
    """Whether a prediction should be believed."""

    UNSPECIFIED = pb.VERDICT_UNSPECIFIED
    ACCEPTED = pb.VERDICT_ACCEPTED
    UNFAMILIAR = pb.VERDICT_UNFAMILIAR
    BLANK = pb.VERDICT_BLANK
    SEVERAL = pb.VERDICT_SEVERAL


_VERDICTS = {verdict.value: verdict for verdict in Verdict}


@dataclass(frozen=True)
class ClassScore:
    """One class of an image.

    Attributes:
        label: its name.
        class_index: its position among the model's labels.
        confidence: its probability, 0 to 1.
    """

    label: str
    class_index: int
    confidence: float


@dataclass(frozen=True)
class Prediction:
    """What the service says of one image.

    Attributes:
        label: empty for a blank image.
        class_index: position of the label among the model's labels.
        confidence: calibrated probability of the label, 0 to 1.
        verdict: whether to believe it.
        ood_score: higher is stranger.
        top: the ``top_k`` most probable classes, the first of them first.
    """

    label: str
    class_index: int
    confidence: float
    verdict: Verdict
    ood_score: float
    top: tuple[ClassScore, ...] = ()


class Group(NamedTuple):
    """Images of one size, and where they stand among all.

    Attributes:
        images: one array uint8[N,H,W] or uint8[N,H,W,C], or N arrays uint8[H,W] or uint8[H,W,C].
        indices: N positions, ascending.
        shape: H, W and C.
    """

    images: Images | list[Images]
    indices: Sequence[int]
    shape: tuple[int, int, int]


class Part(NamedTuple):
    """What travels in one request: images ``start`` to ``stop`` of a group."""

    group: Group
    start: int
    stop: int

    @property
    def indices(self) -> Sequence[int]:
        """Positions of its images among all."""
        return self.group.indices[self.start : self.stop]

    def request(self, options: pb.ClassifyRequest) -> pb.ClassifyRequest:
        """Write the request; its pixels are copied only here, so few requests exist at a time."""
        images = self.group.images[self.start : self.stop]
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
        """Name its images: positions among all, from 0."""
        first, last, others = self.indices[0], self.indices[-1], len(self.indices) - MAX_NAMED
        if len(self.indices) == 1:
            return f"image {first}"
        if last - first + 1 == len(self.indices):
            return f"images {first} to {last}"
        named = ", ".join(map(str, self.indices[:MAX_NAMED]))
        return f"images {named} and {others} more" if others > 0 else f"images {named}"


def check(images: object) -> list[Group]:
    """Look at what a caller gave, and sort it by size.

    An array of two axes is one image, of three ``[N,H,W]``, of four ``[N,H,W,C]``. Three axes of which the last is 1, 3
    or 4 long could be one image in colour, so they are refused: ``image[None]`` is one in colour, and ``images[..., None]``
    are N narrow grey ones.

    Raises:
        InvalidRequest: says what was got and what was expected.
    """
    if isinstance(images, np.ndarray):
        group = _group_of(images)
        return [group] if len(group.indices) else []
    if not isinstance(images, list | tuple):
        raise InvalidRequest(f"images: got {type(images).__name__}; expected {EXPECTED}")
    places: dict[tuple[int, int, int], list[int]] = {}
    for index, image in enumerate(images):
        places.setdefault(_shape_of(image, index), []).append(index)
    return [Group([images[i] for i in indices], indices, shape) for shape, indices in places.items()]


def _group_of(images: Images) -> Group:
    shape, seen = images.shape, f"images: got {images.dtype}{list(images.shape)}"
    if images.dtype != np.uint8 or images.ndim not in {2, 3, 4}:
        raise InvalidRequest(f"{seen}; expected {EXPECTED}")
    if images.ndim == 3 and shape[2] in FORMATS:  # noqa: PLR2004 - axes
        raise InvalidRequest(
            f"{seen}, which is one image of {shape[2]} channels or {shape[0]} grey ones {shape[2]} pixels wide; "
            "expected images[None] for the one, images[..., None] for the others"
        )
    stacked = images[None] if images.ndim == 2 else images  # noqa: PLR2004
    return Group(stacked, range(len(stacked)), _sides(stacked.shape[1:], seen))


def _shape_of(image: object, index: int) -> tuple[int, int, int]:
    if not isinstance(image, np.ndarray):
        raise InvalidRequest(f"image {index}: got {type(image).__name__}; expected uint8[H,W] or uint8[H,W,C]")
    seen = f"image {index}: got {image.dtype}{list(image.shape)}"
    if image.dtype != np.uint8 or image.ndim not in {2, 3}:
        raise InvalidRequest(f"{seen}; expected uint8[H,W] or uint8[H,W,C]")
    return _sides(image.shape, seen)


def _sides(shape: tuple[int, ...], seen: str) -> tuple[int, int, int]:
    height, width, channels = (*shape, 1)[:3]
    if channels not in FORMATS:
        raise InvalidRequest(f"{seen}, {channels} channels; expected 1 (grey), 3 (RGB) or 4 (RGBA)")
    if not height or not width:
        raise InvalidRequest(f"{seen}; expected at least one pixel an image")
    return height, width, channels


def split(groups: list[Group], images_per_request: int, limits: pb.Model) -> list[Part]:
    """Cut groups into parts that one request can carry.

    Args:
        groups: as ``check`` gave them.
        images_per_request: most images in a part.
        limits: what the service takes, of which no more than ``PART_BYTES`` is used; an image that is too large by itself is a part of its own, for it to refuse.
    """
    parts = []
    most_bytes = min(limits.max_request_bytes - OVERHEAD_BYTES, PART_BYTES)
    for group in groups:
        height, width, channels = group.shape
        fitting = most_bytes // (height * width * channels)
        step = max(1, min(images_per_request, limits.max_images_per_request, fitting))
        num_images = len(group.indices)
        parts += [Part(group, start, min(start + step, num_images)) for start in range(0, num_images, step)]
    return parts


def same_limits(one: pb.Model, other: pb.Model) -> bool:
    """Tell whether images are cut alike for both."""
    return (one.max_request_bytes, one.max_images_per_request) == (
        other.max_request_bytes, other.max_images_per_request,
    )  # fmt: skip


def options(top_k: int, ink: Ink | None, framing: Framing | None) -> pb.ClassifyRequest:
    """Return the fields that all requests of a call share.

    Raises:
        InvalidRequest: ``top_k`` is negative.
    """
    if top_k < 0:
        raise InvalidRequest(f"top_k: got {top_k}; expected 0 or more")
    return pb.ClassifyRequest(
        top_k=top_k,
        ink=f"INK_{ink.name if ink else 'UNSPECIFIED'}",
        framing=f"FRAMING_{framing.name if framing else 'UNSPECIFIED'}",
    )


class Assembly:
    """The parts of one call of ``classify`` that wait, and the predictions that have come.

    Made by one call; several threads or tasks may take parts from it and put responses into it.
    """

    def __init__(self, parts: list[Part], request_options: pb.ClassifyRequest) -> None:
        self._waiting = deque(parts)
        self._options = request_options
        self._predictions: dict[int, Prediction] = {}
        self.num_parts = len(parts)

    def __iter__(self) -> Iterator[tuple[Part, pb.ClassifyRequest]]:
        """Take parts, each with its request, until none is left for anybody."""
        while True:
            try:
                part = self._waiting.popleft()
            except IndexError:
                return
            yield part, part.request(self._options)

    def put(self, part: Part, response: pb.ClassifyResponse) -> None:
        """Keep the predictions of a part."""
        self._predictions.update(zip(part.indices, decode(response, self._options.top_k), strict=True))

    def stop(self) -> None:
        """Hand out no more parts: one has failed."""
        self._waiting.clear()

    def what(self, part: Part) -> str:
        """Name a part's images in an error, where there are other parts."""
        return part.describe() if self.num_parts > 1 else ""

    def predictions(self) -> list[Prediction]:
        """Return all predictions, in the order of the images."""
        return [self._predictions[index] for index in range(len(self._predictions))]


def decode(response: pb.ClassifyResponse, top_k: int) -> list[Prediction]:
    """Read a response's predictions, in order."""
    # By position, and without a look at what is not there: this is most of what the client itself spends on an image.
    verdict_of, unknown = _VERDICTS.get, Verdict.UNSPECIFIED
    return [
        Prediction(
            one.label, one.class_index, one.confidence, verdict_of(one.verdict, unknown), one.ood_score,
            tuple([ClassScore(s.label, s.class_index, s.confidence) for s in one.top]) if top_k else (),
        )
        for one in response.predictions
    ]  # fmt: skip

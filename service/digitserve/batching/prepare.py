"""Parts of requests to the network's images, blank and several: the only place that decides all three.

    pixels ──▶ gray ──┬─ AS_IS: unchanged, or inverted for dark ink ─┬▶ check ──▶ images, blank, several
                      ├─ AUTO: unchanged ────────────────────────────┘  all such images of the batch together; those of
                      │                                                 AUTO that do not look like MNIST's are framed
                      └─ MNIST: frame, those of one size together ──────▶ images, blank, several

Framed images keep the verdict of framing, which checks the image at its full size. Checking the framed 28x28 image again
would call some single digits several. The worker calls ``prepare`` on its one thread for each batch, and
``decide_verdicts`` after the network has run. Training calls ``prepare_gray``, ``prepare_image`` and ``decide_verdicts``
to measure what the service would answer.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from digitserve.protocol.names import Verdict
from digitserve.types import IMAGE_SIZE, Framing, Gray, Ink, default_framing, default_ink
from digitserve.vision.batch_checks import as_is, check
from digitserve.vision.channel import select_channel
from digitserve.vision.framing import MAX_GROUP_PIXELS, frame_all, frame_all_colors
from digitserve.vision.gray import to_gray
from digitserve.vision.views import Framed

_FIXED_WORK = 1 << 18
"""Work of framing an image apart from its pixels, in grey pixels."""

_CHANNEL_WORK = {1: 1, 3: 8, 4: 20}
"""Work per pixel of so many channels, in grey pixels: conversion to grey takes longer than all else."""

# Members of an enum are slow to look up, and these are needed for each request or image.
_AUTO, _MNIST = Framing.AUTO, Framing.MNIST
_LIGHT_ON_DARK = Ink.LIGHT_ON_DARK
_ACCEPTED, _UNFAMILIAR, _BLANK, _SEVERAL = Verdict.ACCEPTED, Verdict.UNFAMILIAR, Verdict.BLANK, Verdict.SEVERAL


class Images(Protocol):
    """Images of one size, format and treatment, as a request brings them."""

    @property
    def pixels(self) -> bytes:
        """num_images x height x width x channels bytes, row-major."""

    @property
    def num_images(self) -> int:
        """At least 1."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def width(self) -> int:
        """In pixels."""

    @property
    def channels(self) -> int:
        """1 for grey, 3 for RGB, 4 for RGBA."""

    @property
    def ink(self) -> Ink:
        """Whether the strokes are lighter or darker than the background; AUTO if ``framing`` is."""

    @property
    def framing(self) -> Framing:
        """How the images are brought to the network's size; AS_IS and AUTO only for images of 28x28."""


class GrayImages(NamedTuple):
    """Images outside of a request, grey unless ``channels`` says otherwise; see ``Images``."""

    pixels: bytes
    num_images: int
    height: int
    width: int
    ink: Ink
    framing: Framing
    channels: int = 1


class Prepared(NamedTuple):
    """Images ready for the network.

    Attributes:
        images: uint8[N,28,28,1], C-contiguous, perhaps read-only.
        blank: bool[N], no ink.
        several: bool[N], more than one separate shape; never where ``blank``.
        spans_image: bool[N], only a straight band from border to border, which no digit is.
    """

    images: Gray
    blank: NDArray[np.bool_]
    several: NDArray[np.bool_]
    spans_image: NDArray[np.bool_]


class _Group(NamedTuple):
    """Images of one size, format and polarity, from all requests of a batch: they are framed together.

    Attributes:
        pixels: of each part.
        rows: of each image, in the batch.
    """

    pixels: list[bytes | memoryview]
    rows: list[int]


def framing_work(height: int, width: int, channels: int = 1) -> int:
    """Return the units of work of framing one image of this size and number of channels."""
    return height * width * _CHANNEL_WORK[channels] + _FIXED_WORK


def prepare(parts: Sequence[tuple[Images, int, int]]) -> Prepared:
    """Prepare a batch.

    Args:
        parts: images of a request, index of the first one to prepare and index after the last, for each; at least one
            image over all. If one part is the whole batch and needs no conversion, its pixels are not copied.

    Returns:
        The images of all parts, in order.
    """
    # By row of the batch: the pixels of a framed image, or at the first row of another part those of the whole part.
    chunks: list[bytes | memoryview] = []
    groups: dict[tuple[int, int, int, Ink, int], _Group] = {}
    undecided: list[tuple[int, int]] = []
    for images, start, stop in parts:
        row, num_images = len(chunks), stop - start
        pixels: bytes | memoryview = images.pixels
        if num_images < images.num_images:
            image_bytes = images.height * images.width * images.channels
            pixels = memoryview(pixels)[start * image_bytes : stop * image_bytes]
        framing = images.framing
        chunks += [b""] * num_images
        if framing is _MNIST:
            group = _group_of(groups, images, row)
            group.pixels.append(pixels)
            group.rows.extend(range(row, row + num_images))
        elif images.channels == 1 and (framing is _AUTO or images.ink is _LIGHT_ON_DARK):
            chunks[row] = pixels
        else:
            chunks[row] = _convert(images, pixels, num_images).data
        if framing is _AUTO:
            undecided.append((row, row + num_images))
    framed: list[tuple[int, Framed]] = []
    for (height, width, channels, ink, _), group in groups.items():
        together = group.pixels[0] if len(group.pixels) == 1 else b"".join(group.pixels)
        colors = np.frombuffer(together, np.uint8).reshape(-1, height, width, channels)
        results = frame_all(colors[..., 0], ink) if channels == 1 else frame_all_colors(colors, ink)
        for row, result in zip(group.rows, results, strict=True):
            chunks[row] = result.pixels.data
            framed.append((row, result))
    joined = chunks[0] if len(parts) == 1 and not framed else b"".join(chunks)
    batch = np.frombuffer(joined, np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 1)
    return _check(batch, framed, undecided)


def prepare_gray(gray: Gray, ink: Ink, framing: Framing) -> Prepared:
    """Prepare grey images as the service does.

    Args:
        gray: uint8[N,H,W], N at least 1; 28x28 if framing is AS_IS.
        ink: of all images.
        framing: of all images.
    """
    num_images, height, width = gray.shape
    return prepare([(GrayImages(gray.tobytes(), num_images, height, width, ink, framing), 0, num_images)])


def prepare_image(pixels: NDArray[np.uint8], native: Framing) -> Prepared:
    """Prepare one image as the service prepares it for a request that states neither ink nor framing.

    Args:
        pixels: uint8[H,W,C] with C of 1, 3 or 4.
        native: default framing of 28x28 images, see ``types.native_framing``.
    """
    height, width, channels = pixels.shape
    framing = default_framing(height, width, native)
    image = GrayImages(pixels.tobytes(), 1, height, width, default_ink(framing), framing, channels)
    return prepare([(image, 0, 1)])


def decide_verdicts(ood_score: Sequence[float], threshold: float, prepared: Prepared) -> list[Verdict]:
    """Return the verdict on each image of a batch.

    Args:
        ood_score: of each image.
        threshold: above it an image is unfamiliar.
        prepared: the batch; blank and several take precedence over the score, and what spans the image is unfamiliar.
    """
    found = [_UNFAMILIAR if score > threshold else _ACCEPTED for score in ood_score]
    for flags, verdict in (
        (prepared.spans_image.tolist(), _UNFAMILIAR),
        (prepared.several.tolist(), _SEVERAL),
        (prepared.blank.tolist(), _BLANK),
    ):
        if True in flags:
            found = [verdict if flag else other for flag, other in zip(flags, found, strict=True)]
    return found


def _group_of(groups: dict[tuple[int, int, int, Ink, int], _Group], images: Images, row: int) -> _Group:
    """Return the group of images that are framed together with these; a new one is added.

    Images so large that each is framed alone are not grouped: joining their pixels would take memory and time for nothing.
    """
    height, width = images.height, images.width
    key = height, width, images.channels, images.ink, row if 2 * height * width > MAX_GROUP_PIXELS else -1
    group = groups.get(key)
    if group is None:
        groups[key] = group = _Group([], [])
    return group


def _convert(images: Images, pixels: bytes | memoryview, num_images: int) -> Gray:
    """Return 28x28 images in grey, light on dark unless that is still to be decided: uint8[N,28,28]."""
    if images.framing is _AUTO:
        colors = np.frombuffer(pixels, np.uint8).reshape(num_images, IMAGE_SIZE, IMAGE_SIZE, images.channels)
        return np.stack([select_channel(image, images.ink)[0] for image in colors])
    return as_is(to_gray(pixels, num_images, IMAGE_SIZE, IMAGE_SIZE, images.channels), images.ink)


def _check(batch: Gray, framed: Sequence[tuple[int, Framed]], undecided: Sequence[tuple[int, int]]) -> Prepared:
    """Check what framing did not, and frame what was left undecided.

    Args:
        batch: uint8[N,28,28,1].
        framed: rows of the batch with the results of framing.
        undecided: first row, and row after the last, of images whose framing is AUTO.
    """
    gray = batch[..., 0]
    if not framed:
        num_undecided = sum(stop - start for start, stop in undecided)
        partly = 0 < num_undecided < len(batch)
        checked = check(gray, _flags(len(batch), undecided) if partly else num_undecided > 0)
        return Prepared(batch if checked.images is gray else checked.images[..., None], *checked[1:])
    flags = [(False, False, False)] * len(batch)
    for row, result in framed:
        flags[row] = result[1:4]  # blank, several and spans_image
    found = np.array(flags, np.bool_).T
    if len(framed) < len(batch):
        rest = np.ones(len(batch), np.bool_)
        rest[[row for row, _ in framed]] = False
        alone = gray[rest]
        checked = check(alone, _flags(len(batch), undecided)[rest])
        found[:, rest] = checked[1:]
        if checked.images is not alone:
            batch = batch.copy()
            batch[rest, ..., 0] = checked.images
    return Prepared(batch, *found)


def _flags(size: int, ranges: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return bool[size], true in half-open ranges."""
    flags = np.zeros(size, np.bool_)
    for start, stop in ranges:
        flags[start:stop] = True
    return flags

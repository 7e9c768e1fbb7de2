"""Parts of requests to the network's images, blank and several: the only place that decides all three.

    pixels ──▶ gray ──┬─ AS_IS: unchanged, or inverted for dark ink ─┬▶ images ──verdicts──▶ blank, several
                      └─ MNIST: frame ──▶ images, blank, several     └▶ one check for all such images of the batch

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
from digitserve.vision.framing import Framed, as_is, frame, verdicts
from digitserve.vision.gray import to_gray

_FIXED_WORK = 1 << 18
"""Work of framing an image apart from its pixels, in grey pixels."""

_CHANNEL_WORK = {1: 1, 3: 8, 4: 20}
"""Work per pixel of so many channels, in grey pixels: conversion to grey takes longer than all else."""

# Members of an enum are slow to look up, and these are needed for each request or image.
_AS_IS = Framing.AS_IS
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
        """Whether the strokes are lighter or darker than the background."""

    @property
    def framing(self) -> Framing:
        """How the images are brought to the network's size; AS_IS only for images of 28x28."""


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
    """

    images: Gray
    blank: NDArray[np.bool_]
    several: NDArray[np.bool_]


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
    chunks: list[bytes | memoryview] = []
    framed: list[tuple[int, Sequence[Framed]]] = []
    row = 0
    for images, start, stop in parts:
        pixels: bytes | memoryview = images.pixels
        if stop - start < images.num_images:
            image_bytes = images.height * images.width * images.channels
            pixels = memoryview(pixels)[start * image_bytes : stop * image_bytes]
        as_they_are = images.framing is _AS_IS
        if as_they_are and images.ink is _LIGHT_ON_DARK and images.channels == 1:
            chunks.append(pixels)
        else:
            converted = to_gray(pixels, stop - start, images.height, images.width, images.channels)
            if as_they_are:
                chunks.append(as_is(converted, images.ink).tobytes())
            else:
                results = [frame(image, images.ink) for image in converted]
                chunks += [result.pixels.tobytes() for result in results]
                framed.append((row, results))
        row += stop - start
    joined = chunks[0] if len(chunks) == 1 else b"".join(chunks)
    batch = np.frombuffer(joined, np.uint8).reshape(row, IMAGE_SIZE, IMAGE_SIZE, 1)
    gray = batch[..., 0]
    return Prepared(batch, *(_verdicts(gray, framed) if framed else verdicts(gray)))


def prepare_gray(gray: Gray, ink: Ink, framing: Framing) -> Prepared:
    """Prepare grey images as the service does.

    Args:
        gray: uint8[N,H,W], N at least 1; 28x28 if framing is AS_IS.
        ink: of all images.
        framing: of all images.
    """
    num_images, height, width = gray.shape
    return prepare([(GrayImages(gray.tobytes(), num_images, height, width, ink, framing), 0, num_images)])


def prepare_image(pixels: NDArray[np.uint8]) -> Prepared:
    """Prepare one image as the service prepares it for a request that states neither ink nor framing.

    Args:
        pixels: uint8[H,W,C] with C of 1, 3 or 4.
    """
    height, width, channels = pixels.shape
    framing = default_framing(height, width)
    image = GrayImages(pixels.tobytes(), 1, height, width, default_ink(framing), framing, channels)
    return prepare([(image, 0, 1)])


def decide_verdicts(ood_score: Sequence[float], threshold: float, prepared: Prepared) -> list[Verdict]:
    """Return the verdict on each image of a batch.

    Args:
        ood_score: of each image.
        threshold: above it an image is unfamiliar.
        prepared: the batch; blank and several take precedence over the score.
    """
    found = [_UNFAMILIAR if score > threshold else _ACCEPTED for score in ood_score]
    for flags, verdict in ((prepared.several.tolist(), _SEVERAL), (prepared.blank.tolist(), _BLANK)):
        if True in flags:
            found = [verdict if flag else other for flag, other in zip(flags, found, strict=True)]
    return found


def _verdicts(
    images: Gray, framed: Sequence[tuple[int, Sequence[Framed]]]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return blank bool[N] and several bool[N] of a batch that holds framed images.

    Args:
        images: uint8[N,28,28] of a batch.
        framed: results of framing, each group with its first row in the batch.
    """
    blank, several = np.zeros((2, len(images)), np.bool_)
    unframed = np.ones(len(images), np.bool_)
    for row, results in framed:
        rows = slice(row, row + len(results))
        unframed[rows] = False
        blank[rows] = [result.blank for result in results]
        several[rows] = [result.several for result in results]
    if unframed.any():
        blank[unframed], several[unframed] = verdicts(images[unframed])
    return blank, several

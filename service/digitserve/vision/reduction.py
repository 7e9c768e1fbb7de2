"""Reduction of large images by block means, before they are sent. No I/O; the clients and the HTTP API use it.

The service finds the digit at a much smaller size, so pixels of photos would only cost time and the message limit.
"""

from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from digitserve.types import Box

Pixels = NDArray[np.uint8]

MAX_SIDE = 2048
"""Default of the longest side that is sent, in pixels: such an image fits into the service's default limit in every format."""

_ALPHA = 3
"""Index of the channel that holds alpha."""

_BAND_ROWS = 32
"""Rows of the reduced image that are computed at a time: their sums fit in the CPU cache."""


class Reduction(NamedTuple):
    """How images of one size are reduced.

    Attributes:
        factor: height and width of a block in pixels.
        height: of the original images, in pixels.
        width: of the original images, in pixels.
    """

    factor: int
    height: int
    width: int

    @classmethod
    def to_side(cls, height: int, width: int, max_side: int) -> Self:
        """Choose the smallest factor with which no side is longer than ``max_side``."""
        return cls(-(-max(height, width) // max_side), height, width)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the reduced images."""
        return -(-self.height // self.factor), -(-self.width // self.factor)

    def to_original(self, box: Box) -> Box:
        """Convert a box in pixels of the reduced image to pixels of the original."""
        return Box(
            box.top * self.factor,
            min(box.bottom * self.factor, self.height),
            box.left * self.factor,
            min(box.right * self.factor, self.width),
        )


def reduce_by_block_means(image: Pixels, factor: int) -> Pixels:
    """Reduce an image: each block of ``factor`` x ``factor`` pixels becomes one pixel.

    Args:
        image: uint8[H,W] or uint8[H,W,C].
        factor: at least 1.

    Returns:
        The mean of each block and channel, rounded to nearest. Blocks at the right and at the bottom hold the pixels that are
        left. The mean colour of a block with alpha weighs each pixel by its alpha: then reducing and compositing give the same
        image in either order, apart from rounding.
    """
    reduce_band = _with_alpha if image.ndim == 3 and image.shape[2] == _ALPHA + 1 else _means  # noqa: PLR2004 - axes
    band_rows = _BAND_ROWS * factor
    return np.concatenate(
        [reduce_band(image[top : top + band_rows], factor) for top in range(0, len(image), band_rows)]
    )


def _means(image: Pixels, factor: int) -> Pixels:
    counts = _counts(image, factor)
    return _divide(_sums(image, factor), counts.reshape(*counts.shape, *[1] * (image.ndim - 2)))


def _with_alpha(image: Pixels, factor: int) -> Pixels:
    colors, alpha = image[..., :_ALPHA], image[..., _ALPHA:]
    weights = _sums(alpha, factor)
    weighted = _divide(_sums(colors * alpha.astype(_sum_type(factor)), factor), np.maximum(weights, 1))
    # The colour of a transparent block does not show; it keeps the plain mean.
    mean_colors = np.where(weights > 0, weighted, _means(colors, factor))
    return np.concatenate([mean_colors, _means(alpha, factor)], axis=2)


def _sums(image: NDArray[Any], factor: int) -> NDArray[Any]:
    """Return the sum of each block. Adding strided slices is several times as fast as ``np.add.reduceat``."""
    rows = image[::factor].astype(_sum_type(factor))
    for offset in range(1, factor):
        part = image[offset::factor]
        rows[: len(part)] += part
    sums = rows[:, ::factor].copy()
    for offset in range(1, factor):
        part = rows[:, offset::factor]
        sums[:, : part.shape[1]] += part
    return sums


def _sum_type(factor: int) -> type[np.unsignedinteger[Any]]:
    """Return a type that holds factor x factor x 255 x 255."""
    return np.uint32 if factor <= 256 else np.uint64  # noqa: PLR2004 - follows from the formula


def _counts(image: Pixels, factor: int) -> NDArray[Any]:
    """Return the number of pixels of each block."""
    rows, columns = (np.minimum(factor, length - np.arange(0, length, factor)) for length in image.shape[:2])
    return np.outer(rows, columns).astype(_sum_type(factor))


def _divide(sums: NDArray[Any], counts: NDArray[Any]) -> Pixels:
    """Divide integers and round to nearest; half is rounded up."""
    means: Pixels = ((sums + counts // 2) // counts).astype(np.uint8)
    return means

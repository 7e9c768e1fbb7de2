"""Reduction of large images by block means, before they are sent. No I/O; the clients and the HTTP API use it.

The service finds the digit at a much smaller size, so pixels of photos would only cost time and the message limit.
"""

import math
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from digitserve.types import Box

Pixels = NDArray[np.uint8]

MAX_SIDE = 2048
"""Default of the longest side that is sent, in pixels: such an image fits into the service's default limit in every format."""

READ_SIDE = 4096
"""The same for pages of numbers, whose digits are small: the service's default limit."""

READ_BYTES = 1 << 24
"""Most bytes of the pixels of such a page: those of the longest sides in grey, and the service's default limit of a message, which
leaves 64 KiB for the other fields."""

_ALPHA = 3
"""Index of the channel that holds alpha."""

_OPAQUE = 255
"""Alpha of a pixel that hides its background."""

_MAX_EXACT = 16
"""Largest factor with which float32 divides exactly: the sum of a block's colours times alpha is below 2^24, so it and its
weight are exact, and a quotient below 256 is at least 1 / 65,280 below the next integer, more than it is rounded by.
"""

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

    @classmethod
    def to_fit(cls, height: int, width: int, max_side: int, max_pixels: int) -> Self:
        """Choose the smallest factor with which no side is longer than ``max_side``, and at most ``max_pixels`` are left.

        ``max_pixels`` is at least 1.
        """
        reduction = cls.to_side(height, width, max_side)
        while math.prod(reduction.size) > max_pixels:
            reduction = reduction._replace(factor=reduction.factor + 1)
        return reduction

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
    return _divide(_sums(image, factor, 255), image.shape[:2], factor)


def _with_alpha(image: Pixels, factor: int) -> Pixels:
    # One integer of 32 bits per pixel: numpy's loops over every fourth byte take three times as long.
    pixels = np.ascontiguousarray(image).view("<u4")[..., 0]
    if np.minimum.reduce(pixels, axis=None) >> 8 * _ALPHA == _OPAQUE:
        return _means(image, factor)
    alpha = pixels >> 8 * _ALPHA
    weights = _sums(alpha, factor, 255 * 255)
    # A transparent block, whose colour does not show, keeps the plain mean of its colours.
    hidden = (weights == 0) * np.uint8(255)
    all_shown = not hidden.any()
    means = np.empty((*weights.shape, _ALPHA + 1), np.uint8) if all_shown else _means(image, factor)
    means[..., _ALPHA] = _divide(weights, image.shape[:2], factor)
    half, divisor = weights // 2, np.maximum(weights, 1).astype(np.float32 if factor <= _MAX_EXACT else np.float64)
    for channel in range(_ALPHA):
        weighted = _sums((pixels >> 8 * channel & 255) * alpha, factor, 255 * 255)
        weighted += half
        quotients = weighted.astype(divisor.dtype)
        quotients /= divisor  # faster than division of integers
        colors = quotients.astype(np.uint8)
        if not all_shown:
            colors |= means[..., channel] & hidden  # the quotient is 0 there
        means[..., channel] = colors
    return means


def _sums(image: NDArray[Any], factor: int, highest: int) -> NDArray[Any]:
    """Return the sum of each block.

    Args:
        image: unsigned[H,W] or unsigned[H,W,C].
        factor: height and width of a block in pixels.
        highest: largest value that a pixel can have.

    Returns:
        Sums in a type that holds one and a half times the largest one, so that they can be rounded in place.
    """
    sum_type = np.min_scalar_type(factor * factor * highest * 3 // 2)
    rows = image[::factor].astype(sum_type)
    for offset in range(1, factor):
        part = image[offset::factor]
        rows[: len(part)] += part
    sums = np.empty((len(rows), -(-rows.shape[1] // factor), *rows.shape[2:]), sum_type)
    # One channel at a time: numpy's inner loop would have three or four steps only, which takes eight times as long.
    for channel in range(math.prod(rows.shape[2:])):
        plane, total = (array.reshape(*array.shape[:2], -1)[..., channel] for array in (rows, sums))
        total[:] = plane[:, ::factor]
        for offset in range(1, factor):
            columns = plane[:, offset::factor]
            total[:, : columns.shape[1]] += columns
    return sums


def _divide(sums: NDArray[Any], shape: tuple[int, ...], factor: int) -> Pixels:
    """Divide the sums of blocks by their numbers of pixels and round to nearest; half is rounded up.

    Args:
        sums: unsigned[H,W] or unsigned[H,W,C], of ``_sums``.
        shape: height and width of the original image, in pixels.
        factor: height and width of a block, in pixels; those at the bottom and at the right may be smaller.
    """
    means = np.empty(sums.shape, np.uint8)
    rows_left, columns_left = shape[0] % factor or factor, shape[1] % factor or factor
    # A division by one number is much faster than one by an array of numbers.
    for rows, block_height in ((slice(-1), factor), (slice(-1, None), rows_left)):
        for columns, block_width in ((slice(-1), factor), (slice(-1, None), columns_left)):
            count = block_height * block_width
            means[rows, columns] = (sums[rows, columns] + count // 2) // count
    return means

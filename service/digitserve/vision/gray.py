"""Raw pixels to grey images, and the range of their grey levels.

The codec and the training package call ``to_gray``. The other modules of ``vision`` use the rest. No state is kept.
"""

import numpy as np
from numpy.typing import NDArray

from digitserve.types import FloatImage, Gray

MAX_CHUNK_PIXELS = 8192
"""Colour pixels converted at a time: their sums fit in the CPU cache and in memory that malloc reuses without the kernel."""

_LUMA_PER_MILLE = np.array([299, 587, 114], np.uint32)
"""Weights of red, green and blue in luma, in thousandths."""


def to_gray(
    pixels: bytes | memoryview | NDArray[np.uint8], num_images: int, height: int, width: int, channels: int
) -> Gray:
    """View or convert raw pixels as grey images.

    Luma is ITU-R BT.601 in integers: (299 R + 587 G + 114 B) / 1000, rounded to nearest. An image with four channels has
    straight alpha and is composited on white, with a single rounding: (luma * a + 255 * (255 - a)) / 255.

    Args:
        pixels: num_images x height x width x channels bytes, row-major and contiguous; the caller has checked the length.
        num_images: number of images.
        height: of each image, in pixels.
        width: of each image, in pixels.
        channels: 1 for GRAY8, 3 for RGB8, 4 for RGBA8.

    Returns:
        uint8[num_images, height, width]. GRAY8 is not copied: the result is a view of ``pixels``.
    """
    raw = np.frombuffer(pixels, np.uint8)
    if channels == 1:
        return raw.reshape(num_images, height, width)
    colors = raw.reshape(-1, channels)
    gray = np.empty(len(colors), np.uint8)
    for start in range(0, len(gray), MAX_CHUNK_PIXELS):
        chunk = slice(start, start + MAX_CHUNK_PIXELS)
        gray[chunk] = _luma(colors[chunk])
    return gray.reshape(num_images, height, width)


def _luma(colors: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the luma of colours uint8[N, 3 or 4]. Integer arithmetic, so that the only rounding is the final one."""
    red, green, blue = _LUMA_PER_MILLE
    milli: NDArray[np.uint32] = colors[:, 0] * red
    milli += colors[:, 1] * green
    milli += colors[:, 2] * blue
    if colors.shape[1] > len(_LUMA_PER_MILLE):
        alpha = colors[:, 3].astype(np.uint32)
        milli *= alpha
        milli += (255 - alpha) * 255_000
        milli += 127_627
        milli //= 255_000
    else:
        milli += 500
        milli //= 1000
    return milli


def gray_ranges(images: FloatImage) -> tuple[list[float], list[float]]:
    """Return the lowest and the highest grey level of each image of float32[N, H, W]."""
    flat = images.reshape(len(images), -1)
    # numpy finds the position of an extreme in less time than its value, for one image in a third of the time.
    lowest, highest = flat.argmin(axis=1).tolist(), flat.argmax(axis=1).tolist()
    return (
        [flat.item(row, column) for row, column in enumerate(lowest)],
        [flat.item(row, column) for row, column in enumerate(highest)],
    )


def gray_range(image: FloatImage) -> tuple[float, float]:
    """Return the lowest and the highest grey level of an image."""
    return float(np.minimum.reduce(image, axis=None)), float(np.maximum.reduce(image, axis=None))

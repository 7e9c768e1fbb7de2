"""Change of image size: block means of large images, and resampling with area or bicubic weights.

Used by ``polarity`` and ``framing``. Caches the weights of the sizes used most recently.
"""

from functools import lru_cache

import numpy as np

from digitserve.types import FloatImage, Gray

MAX_REDUCED_SIDE = 128
"""Larger images are reduced to at most this longest side, in pixels, before any other step."""


def reduce_by_block_means(gray: Gray) -> FloatImage:
    """Reduce large images of one size to at most ``MAX_REDUCED_SIDE`` pixels a side; convert smaller ones to float32.

    Rows and columns that do not fill a block, at the bottom and at the right, are cut off.

    Args:
        gray: uint8[..., H, W].

    Returns:
        float32[..., h, w], a new array; grey levels from 0 to 255.
    """
    height, width = gray.shape[-2:]
    factor = -(-max(height, width) // MAX_REDUCED_SIDE)
    if factor == 1:
        return gray.astype(np.float32)
    outer = gray.shape[:-2]
    if min(height, width) < factor:
        floats: FloatImage = gray.astype(np.float32)
        size = max(1, height // factor), max(1, width // factor)
        resized = [resize(image, *size) for image in floats.reshape(-1, height, width)]
        return np.stack(resized).reshape(*outer, *size)
    height, width = height // factor, width // factor
    whole = gray[..., : height * factor, : width * factor].reshape(*outer, height, factor, width * factor)
    rows = np.add.reduce(whole, axis=-2, dtype=np.uint16)  # 255 * 257 fits: factors up to 257
    # Not a product with ones: with so few columns some builds of BLAS read past the array and report invalid values.
    sums = rows[..., ::factor].astype(np.uint32)
    for column in range(1, factor):
        sums += rows[..., column::factor]
    means: FloatImage = np.multiply(sums, 1 / factor**2, dtype=np.float32)
    return means


def resize(image: FloatImage, height: int, width: int) -> FloatImage:
    """Resample an image to height x width pixels: area weights along an axis that shrinks, bicubic along one that grows.

    Returns:
        float32[height, width]; ``image`` itself if it has that size.
    """
    if image.shape[0] != height:
        image = axis_weights(image.shape[0], height).dot(image)
    if image.shape[1] != width:
        image = image.dot(axis_weights(image.shape[1], width).T)
    return image


@lru_cache(maxsize=1024)
def axis_weights(size_in: int, size_out: int) -> FloatImage:
    """Return the weights float32[size_out, size_in] that resample one axis; pixels outside the image count as background (0).

    Source: Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -1/2.
    """
    scale = size_in / size_out
    centers = (np.arange(size_out)[:, None] + 0.5) * scale
    sources = np.arange(size_in)[None, :]
    if scale >= 1:
        overlap = np.minimum(centers + scale / 2, sources + 1) - np.maximum(centers - scale / 2, sources)
        area: FloatImage = (overlap.clip(0) / scale).astype(np.float32)
        return area
    t = np.abs(centers - 0.5 - sources)
    near, far = (1.5 * t - 2.5) * t * t + 1, ((2.5 - 0.5 * t) * t - 4) * t + 2
    cubic: FloatImage = np.where(t < 1, near, np.where(t < 2, far, 0)).astype(np.float32)  # noqa: PLR2004 - its support
    return cubic


@lru_cache(maxsize=256)
def sum_weights(size: int) -> FloatImage:
    """Return weights float32[3, size] that sum the first pixel of an axis, the last one, and all of them."""
    weights: FloatImage = np.zeros((3, size), np.float32)
    weights[0, 0] = weights[1, -1] = 1
    weights[2] = 1
    return weights

"""The last steps of framing: crop to the ink, scale to 20 pixels, and centre in 28x28, as in MNIST.

``framing`` and ``reading.candidates`` call it on a worker's thread. Caches the weights of the sizes used most recently.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from digitserve.types import IMAGE_SIZE, Box, FloatImage, Gray
from digitserve.vision.resample import axis_weights

INK_SIZE = 20
"""Longest side of a digit's ink in MNIST, in pixels; 9 997 of its 10 000 test images have exactly that."""

MAX_SUM_ERROR = 0.01
"""Distance from the border between two pixels, in pixels, at which a centre of mass is computed again in a fixed order.

A sum of at most 400 numbers is exact to 400 / 2^24, in any order, so a centre below 20 is exact to 0.001.
"""

_ZERO, _HALF = np.zeros((), np.float32), np.full((), 0.5, np.float32)
"""Arrays, because numpy would convert a Python number in each call."""


def place(strength: FloatImage, box: Box, faintest: FloatImage) -> Gray:
    """Place ink as in MNIST: longest side 20, centre of mass at the centre of 28x28.

    Args:
        strength: float32[H, W], 0 = background, 1 = full ink.
        box: the part that holds the ink; some pixel in it is above ``faintest``.
        faintest: float32[], strength above which a pixel belongs to the bounding box of the ink.

    Returns:
        uint8[28, 28], a new array; full ink is 255.

    Source: LeCun, Cortes, Burges, "The MNIST database", on normalisation. Every MNIST image has its centre of
        mass within pixel 14 of both axes (counted from 0), so shifts are whole pixels.
    """
    top, bottom, left, right = _trim(strength, box, faintest)
    ink = _scale(strength[top:bottom, left:right])
    return _center(ink, grown=max(bottom - top, right - left) < INK_SIZE)


def place_many(inks: Sequence[FloatImage]) -> Gray:
    """Place many inks, each in less time than ``place``; the images are equal.

    Args:
        inks: float32[H, W] each, whose bounding box is the whole array; 0 = background, 1 = full ink.

    Returns:
        uint8[N, 28, 28], a new array.
    """
    scaled = np.zeros((len(inks), INK_SIZE, INK_SIZE), np.float32)
    sizes = np.empty((len(inks), 2), np.int64)
    for index, ink in enumerate(inks):
        small = _scale(ink)
        height, width = sizes[index] = small.shape
        scaled[index, :height, :width] = small
    levels = scaled * (255 / scaled.max(axis=(1, 2)).astype(np.float64)).astype(np.float32)[:, None, None]
    levels += _HALF
    np.maximum(levels, _ZERO, out=levels)
    whole = levels.astype(np.uint8)
    sums = (np.matmul(_MOMENTS[INK_SIZE], scaled) @ _MOMENTS[INK_SIZE].T).astype(np.float64)
    centers = np.stack([sums[:, 1, 0], sums[:, 0, 1]], axis=1) / sums[:, :1, 0]
    unsure = ((centers % 1 <= MAX_SUM_ERROR) | (centers % 1 >= 1 - MAX_SUM_ERROR)).any(axis=1)
    for index in np.flatnonzero(unsure).tolist():
        height, width = sizes[index].tolist()
        centers[index] = _sum_in_order(np.ascontiguousarray(scaled[index, :height, :width]))
    starts = np.clip(IMAGE_SIZE // 2 - centers.astype(np.int64), 0, IMAGE_SIZE - sizes)
    pixels = np.zeros((len(inks), IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    for image, small, (top, left), (height, width) in zip(pixels, whole, starts.tolist(), sizes.tolist(), strict=True):
        image[top : top + height, left : left + width] = small[:height, :width]
    return pixels


def _scale(ink: FloatImage) -> FloatImage:
    """Scale ink to 20 pixels on its longest side."""
    height, width = ink.shape
    rows, columns = _weights(height, width)
    if rows is not None:
        ink = rows.dot(ink)
    if columns is not None:
        ink = ink.dot(columns)
    return ink


def _trim(strength: FloatImage, box: Box, faintest: FloatImage) -> tuple[int, int, int, int]:
    """Return the top, bottom, left and right of the bounding box of the pixels above ``faintest`` in a box."""
    visible = (strength > faintest).tobytes()
    width = strength.shape[1]
    top, bottom, left, right = box
    # Few lines at the sides are clear, and a call into numpy takes as long as looking at five of them.
    while top < bottom and visible.find(1, top * width + left, top * width + right) < 0:
        top += 1
    while top < bottom and visible.find(1, (bottom - 1) * width + left, (bottom - 1) * width + right) < 0:
        bottom -= 1
    start, end = top * width, bottom * width
    while left < right and 1 not in visible[start + left : end : width]:
        left += 1
    while left < right and 1 not in visible[start + right - 1 : end : width]:
        right -= 1
    return top, bottom, left, right


@lru_cache(maxsize=4096)
def _weights(height: int, width: int) -> tuple[FloatImage | None, FloatImage | None]:
    """Return the weights that scale ink to 20 pixels on its longest side.

    Returns:
        For a product with the rows from the left, and with the columns from the right; None for an axis that stays as it is.
    """
    longest = max(height, width)
    scaled = (max(1, round(INK_SIZE * side / longest)) for side in (height, width))
    rows, columns = (
        None if size == size_in else axis_weights(size_in, size)
        for size_in, size in zip((height, width), scaled, strict=True)
    )
    return rows, None if columns is None else columns.T


def _center(strength: FloatImage, *, grown: bool) -> Gray:
    """Put scaled ink into 28x28, its centre of mass in pixel 14 of both axes as far as it fits: uint8[28, 28]."""
    height, width = strength.shape
    levels = strength * (255 / strength.item(strength.argmax()))  # the position is found in less time than the value
    levels += _HALF
    if grown:
        np.maximum(levels, _ZERO, out=levels)  # bicubic weights can give values below 0
    (mass, moment_x), (moment_y, _) = _MOMENTS[height].dot(strength).dot(_MOMENTS[width].T).tolist()
    center_y, center_x = moment_y / mass, moment_x / mass
    if not (MAX_SUM_ERROR < center_y % 1 < 1 - MAX_SUM_ERROR and MAX_SUM_ERROR < center_x % 1 < 1 - MAX_SUM_ERROR):
        center_y, center_x = _sum_in_order(strength)
    top = min(max(IMAGE_SIZE // 2 - int(center_y), 0), IMAGE_SIZE - height)
    left = min(max(IMAGE_SIZE // 2 - int(center_x), 0), IMAGE_SIZE - width)
    pixels = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    pixels[top : top + height, left : left + width] = levels
    return pixels


def _sum_in_order(strength: FloatImage) -> tuple[float, float]:
    """Return the centre of mass along y and x. Its rounding does not depend on the processor's matrix product."""
    rows, columns = np.add.reduce(strength, axis=1), np.add.reduce(strength, axis=0)
    mass = float(np.add.reduce(rows))
    return (
        float(rows.dot(_MOMENTS[len(rows)][1])) / mass,
        float(columns.dot(_MOMENTS[len(columns)][1])) / mass,
    )


_MOMENTS = [
    np.stack([np.ones(size, np.float32), np.arange(size, dtype=np.float32) + np.float32(0.5)])
    for size in range(INK_SIZE + 1)
]
"""Weights of the mass and of the moment along an axis of each length, float32[2, length]: 1, and centres of the pixels."""

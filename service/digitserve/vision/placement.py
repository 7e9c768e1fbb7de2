"""The last steps of framing: crop to the ink, scale to 20 pixels, and centre in 28x28, as in MNIST.

``framing`` calls it on the worker's thread. No state is kept.
"""

import numpy as np

from digitserve.types import IMAGE_SIZE, FloatImage, Gray
from digitserve.vision.resample import resize

INK_SIZE = 20
"""Longest side of a digit's ink in MNIST, in pixels; 9 997 of its 10 000 test images have exactly that."""


def place(strength: FloatImage, faintest: float) -> Gray:
    """Place ink as in MNIST: longest side 20, centre of mass at the centre of 28x28.

    Args:
        strength: float32[H, W], 0 = background, 1 = full ink; some pixel is above ``faintest``.
        faintest: strength above which a pixel belongs to the bounding box of the ink.

    Returns:
        uint8[28, 28], a new array; full ink is 255.

    Source: LeCun, Cortes, Burges, "The MNIST database", on normalisation. Every MNIST image has its centre of
        mass within pixel 14 of both axes (counted from 0), so shifts are whole pixels.
    """
    return _center(_scale(_trim(strength, faintest)))


def _trim(strength: FloatImage, faintest: float) -> FloatImage:
    """Crop ink strength to the bounding box of the pixels above ``faintest``."""
    visible = strength > faintest
    flags, columns = visible.tobytes(), np.logical_or.reduce(visible, axis=0).tobytes()
    width = len(columns)
    return strength[
        flags.find(1) // width : flags.rfind(1) // width + 1,
        columns.find(1) : columns.rfind(1) + 1,
    ]


def _scale(strength: FloatImage) -> FloatImage:
    """Scale ink strength to 20 pixels on its longest side."""
    height, width = strength.shape
    longest = max(height, width)
    return resize(strength, max(1, round(INK_SIZE * height / longest)), max(1, round(INK_SIZE * width / longest)))


def _center(strength: FloatImage) -> Gray:
    """Put scaled ink into 28x28, its centre of mass in pixel 14 of both axes as far as it fits: uint8[28, 28]."""
    height, width = strength.shape
    levels = strength * (255 / float(np.maximum.reduce(strength, axis=None)))
    levels += 0.5
    np.maximum(levels, 0, out=levels)  # bicubic weights can give values below 0
    rows, columns = np.add.reduce(strength, axis=1), np.add.reduce(strength, axis=0)
    mass = float(np.add.reduce(rows))
    center_y = float(rows.dot(_CENTERS[:height])) / mass
    center_x = float(columns.dot(_CENTERS[:width])) / mass
    top = min(max(IMAGE_SIZE // 2 - int(center_y), 0), IMAGE_SIZE - height)
    left = min(max(IMAGE_SIZE // 2 - int(center_x), 0), IMAGE_SIZE - width)
    pixels = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    pixels[top : top + height, left : left + width] = levels
    return pixels


_CENTERS = np.arange(IMAGE_SIZE, dtype=np.float32) + np.float32(0.5)
"""Centres of the pixels along one axis."""

"""From a caller's pixels to what the network takes: grey, strokes light on dark, framed as MNIST was.

    pixels ──to_gray──▶ gray ──▶ images uint8[N,28,28,1], blank, several
                              │ as it is: byte for byte, turned over when ink is dark
                              └ framed:   find_ink ▶ take off the background ▶ find the figures ▶ scale ▶ centre

The worker calls it on its one thread when it forms a batch; the training package calls it to measure what the service
will see. It keeps no state but small tables of weights.
"""

from functools import lru_cache
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from digitserve.types import IMAGE_SIZE, Gray, Ink
from digitserve.vision.background import MIN_CONTRAST, Floats, residuals, take_off_background
from digitserve.vision.components import MAX_SIDE, Box, look, may_be_several

INK_SIZE = 20
"""Longest side of a digit's ink in MNIST, in pixels; 9 997 of its 10 000 test images have exactly that."""

MAX_WORK_SIZE = 128
"""Larger images are reduced by block means to at most this longest side before anything else is done."""

MAX_FIGURE_SIZE = MAX_SIDE
"""Longest side at which figures are told apart: a gap of 3 pixels between two 20 pixel digits stays above 3."""

FIGURE_STRENGTH = 0.35
"""Share of full ink from which a pixel counts as part of a figure."""

AS_IS_FIGURE_LEVEL = 96
"""The same for images that are used as they are, of 255: higher, for there two digits have half the space."""

CLEAN_TRIM_STRENGTH = 0.02
"""Share of full ink from which a pixel widens the box of the ink: MNIST's own boxes reach to the faintest pixels."""

NOISY_TRIM_STRENGTH = 0.3
"""The same where there is noise, or where pixels are so large that a faint one would add more than it holds."""

MAX_COLORS = 8192
"""Colours turned to grey at once: their sums stay in the cache, and below what malloc fetches from the kernel."""

_MILLI_LUMA = np.array([299, 587, 114], np.uint32)
"""Shares of red, green and blue in grey, in thousandths."""

SURE_LIGHTNESS = 0.65
"""Lightness of the border, -1 to 1, from which nothing else is asked to tell which side ink is on."""

MIN_RING = 3
"""Shortest side of an image that has an inside within its outermost pixels."""


class Framed(NamedTuple):
    """One image placed as MNIST does.

    Attributes:
        pixels: uint8[28, 28], 0 = background, 255 = full ink; all zero when blank.
        blank: there is no ink.
        several: there is more than one separate figure.
    """

    pixels: Gray
    blank: bool
    several: bool


BLANK = Framed(np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8), blank=True, several=False)


def to_gray(pixels: bytes | memoryview, num_images: int, height: int, width: int, channels: int) -> Gray:
    """View or convert raw pixels as grey images.

    Luma is ITU-R BT.601 in integers, (299 R + 587 G + 114 B) / 1000, rounded to nearest. With four channels, alpha is
    straight and the colour is laid on white, all in one rounding: (luma * a + 255 * (255 - a)) / 255.

    Args:
        pixels: num_images x height x width x channels bytes, row-major; the caller has checked the length.
        num_images: how many images.
        height: of each, in pixels.
        width: of each, in pixels.
        channels: 1 for GRAY8 (no copy is made, the result is read-only), 3 for RGB8, 4 for RGBA8.

    Returns:
        uint8[num_images, height, width].
    """
    raw = np.frombuffer(pixels, np.uint8)
    if channels == 1:
        return raw.reshape(num_images, height, width)
    colors = raw.reshape(-1, channels)
    gray = np.empty(len(colors), np.uint8)
    for start in range(0, len(gray), MAX_COLORS):
        chunk = slice(start, start + MAX_COLORS)
        gray[chunk] = _luma(colors[chunk])
    return gray.reshape(num_images, height, width)


def _luma(colors: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Return the grey of colours; all numbers are whole, so that nothing is rounded twice."""
    red, green, blue = _MILLI_LUMA
    milli: NDArray[np.uint32] = colors[:, 0] * red
    milli += colors[:, 1] * green
    milli += colors[:, 2] * blue
    if colors.shape[1] > len(_MILLI_LUMA):
        alpha = colors[:, 3].astype(np.uint32)
        milli *= alpha
        milli += (255 - alpha) * 255_000
        milli += 127_627
        milli //= 255_000
    else:
        milli += 500
        milli //= 1000
    return milli


def as_is(gray: Gray, ink: Ink) -> Gray:
    """Return images light on dark, every pixel in its place; ``gray`` itself when ink is already light.

    Args:
        gray: uint8[N, H, W].
        ink: AUTO finds out for each image.
    """
    if ink is Ink.LIGHT_ON_DARK:
        return gray
    if ink is Ink.DARK_ON_LIGHT:
        return ~gray
    return np.stack([~image if find_ink(image) is Ink.DARK_ON_LIGHT else image for image in gray])


def verdicts(images: Gray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Say of images that are used as they are, light on dark, which are blank and which show several figures.

    Meant to be called once for a whole batch: 64 images take hardly longer than 5.

    Args:
        images: uint8[N, 28, 28].

    Returns:
        blank bool[N], several bool[N].
    """
    flat = images.reshape(len(images), IMAGE_SIZE * IMAGE_SIZE)
    blank = flat.max(axis=1) - flat.min(axis=1) < MIN_CONTRAST
    several = np.zeros(len(images), np.bool_)
    masks = images >= AS_IS_FIGURE_LEVEL
    # A single mask is looked at sooner than it is found out whether it must be.
    for index in np.flatnonzero(may_be_several(masks)) if len(images) != 1 else (0,):
        seen = look(masks[index])
        several[index] = seen is not None and seen.several
    return blank, several & ~blank


def find_ink(gray: Gray) -> Ink:
    """Find out which side of the grey scale an image's strokes are on.

    Args:
        gray: uint8[H, W].

    Returns:
        LIGHT_ON_DARK or DARK_ON_LIGHT; the former for a constant image.
    """
    work = _reduce(gray)
    return _find_ink(work, *_extremes(work))[0]


def frame(gray: Gray, ink: Ink) -> Framed:
    """Place an image's ink as MNIST does: longest side 20, centre of mass at the centre of 28x28.

    Args:
        gray: uint8[H, W].
        ink: which side the strokes are on; AUTO finds out.

    Source: LeCun, Cortes, Burges, "The MNIST database", on normalisation. Every MNIST image has its centre of
        mass within pixel 14 of both axes (counted from 0), so shifts are whole pixels.
    """
    work = _reduce(gray)
    low, high = _extremes(work)
    if high - low < MIN_CONTRAST:
        return BLANK
    residual = None
    if ink is Ink.AUTO:
        ink, residual = _find_ink(work, low, high)
    if ink is Ink.DARK_ON_LIGHT:
        work, low, high = 255 - work, 255 - high, 255 - low
    strength = take_off_background(work, low, high, residual)
    if strength is None:
        return BLANK
    mask = _for_figures(strength.ink) > FIGURE_STRENGTH
    seen = look(mask)
    if seen is None:
        return BLANK
    longest = seen.box.longest
    if longest < MAX_FIGURE_SIZE / 3 and max(gray.shape) > 2 * MAX_FIGURE_SIZE:
        return frame(
            _cut(gray, seen.box, mask.shape, longest * 0.3), ink
        )  # a small digit in a large image: look closer
    faintest = CLEAN_TRIM_STRENGTH if strength.clean and longest >= 0.7 * INK_SIZE else NOISY_TRIM_STRENGTH
    pixels = _place(_scale(_trim(_cut(strength.ink, seen.box, mask.shape, 1), faintest)))
    return Framed(pixels, blank=False, several=seen.several)


Pixels = TypeVar("Pixels", np.uint8, np.float32)


def _cut(image: NDArray[Pixels], box: Box, mask_shape: tuple[int, ...], margin: float) -> NDArray[Pixels]:
    """Cut a box, with a margin in pixels of the mask that it was found in, out of an image of any scale."""
    y, x = image.shape[0] / mask_shape[0], image.shape[1] / mask_shape[1]
    return image[
        max(0, int((box.top - margin) * y)) : int((box.bottom + margin) * y) + 1,
        max(0, int((box.left - margin) * x)) : int((box.right + margin) * x) + 1,
    ]


def _reduce(gray: Gray) -> Floats:
    """Reduce a large image by block means; what is left over of a block at the right and the bottom is cut off."""
    height, width = gray.shape
    factor = -(-max(height, width) // MAX_WORK_SIZE)
    if factor == 1:
        return gray.astype(np.float32)
    if min(height, width) < factor:
        floats: Floats = gray.astype(np.float32)
        return _resize(floats, max(1, height // factor), max(1, width // factor))
    height, width = height // factor, width // factor
    whole = gray[: height * factor, : width * factor].reshape(height, factor, -1)
    rows = np.add.reduce(whole, axis=1, dtype=np.uint16)  # 255 * 257 fits: factors up to 257
    # Not a product with ones: with so few columns some builds of BLAS read past them and report invalid values.
    sums = rows[:, ::factor].astype(np.uint32)
    for column in range(1, factor):
        sums += rows[:, column::factor]
    blocks: Floats = np.multiply(sums, 1 / factor**2, dtype=np.float32)
    return blocks


def _extremes(work: Floats) -> tuple[float, float]:
    """Return the darkest and the lightest."""
    return float(np.minimum.reduce(work, axis=None)), float(np.maximum.reduce(work, axis=None))


def _find_ink(work: Floats, low: float, high: float) -> tuple[Ink, Floats | None]:
    """Return the side that ink is on, and what stands out of the background if that had to be asked.

    Where light is uneven: ink covers less than paper does, so a background fitted from the right side leaves less
    standing out of it.
    """
    if high == low:
        return Ink.LIGHT_ON_DARK, None
    lightness = _border_lightness(work, low, high)
    if abs(lightness) < SURE_LIGHTNESS:
        sides = residuals(work, low, high)
        if sides is not None:
            excess = 2 * float(np.add.reduce(sides.light - sides.dark, axis=None)) / (work.size * (high - low))
            lightness += 2 * excess  # with 2, 399 of 400 digits on vignetted paper are right, with 1, 377
            return (Ink.DARK_ON_LIGHT, sides.dark) if lightness > 0 else (Ink.LIGHT_ON_DARK, sides.light)
    return (Ink.DARK_ON_LIGHT if lightness > 0 else Ink.LIGHT_ON_DARK), None


def _border_lightness(work: Floats, low: float, high: float) -> float:
    """Say where the outermost pixels are between darkest (-1) and lightest (1), the corners most of all.

    The weights are those of a logistic regression over MNIST digits cropped to their ink, where mistakes are likeliest:
    2 in 20 000. There is no constant term, so that an image and its negative get opposite answers.
    """
    height, width = work.shape
    # Sums of whole grey levels: exact in float32.
    sums: list[list[float]] = _borders(height).dot(work).dot(_borders(width).T).tolist()
    (corners, outer_rows), (outer_columns, everything) = sums
    ring = (outer_rows + outer_columns) / (2 * (height + width))
    num_inner = (height - 2) * (width - 2)
    inner = ring
    if min(height, width) >= MIN_RING:
        inner = (everything - outer_rows - outer_columns + corners) / num_inner
    lightness: float = ((2.5 * ring + 4.4 * (corners / 4) - inner) / 5.9 - (low + high) / 2) * 2 / (high - low)
    return lightness


@lru_cache(maxsize=256)
def _borders(size: int) -> Floats:
    """Weights float32[2, size] that sum up the two ends of an axis, which may be one, and all of it."""
    ends: Floats = np.stack([np.zeros(size, np.float32), np.ones(size, np.float32)])
    ends[0, 0] += 1
    ends[0, -1] += 1
    return ends


def _for_figures(ink: Floats) -> Floats:
    """Reduce ink to the size at which figures are told apart."""
    height, width = ink.shape
    longest = max(height, width)
    if longest <= MAX_FIGURE_SIZE:
        return ink
    share = MAX_FIGURE_SIZE / longest
    return _resize(ink, max(1, round(height * share)), max(1, round(width * share)))


def _trim(ink: Floats, faintest: float) -> Floats:
    """Cut a region down to the box of what is stronger than ``faintest``."""
    seen = ink > faintest
    flags, columns = seen.tobytes(), np.logical_or.reduce(seen, axis=0).tobytes()
    width = len(columns)
    return ink[
        flags.find(1) // width : flags.rfind(1) // width + 1,
        columns.find(1) : columns.rfind(1) + 1,
    ]


def _scale(ink: Floats) -> Floats:
    """Scale a box of ink to 20 pixels on its longest side."""
    height, width = ink.shape
    longest = max(height, width)
    return _resize(ink, max(1, round(INK_SIZE * height / longest)), max(1, round(INK_SIZE * width / longest)))


def _resize(image: Floats, height: int, width: int) -> Floats:
    """Resample: by area where it shrinks, bicubic where it grows."""
    if image.shape[0] != height:
        image = _weights(image.shape[0], height).dot(image)
    if image.shape[1] != width:
        image = image.dot(_weights(image.shape[1], width).T)
    return image


@lru_cache(maxsize=1024)
def _weights(size_in: int, size_out: int) -> Floats:
    """Weights float32[size_out, size_in] of one axis; outside the image there is background.

    Source: Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -1/2.
    """
    scale = size_in / size_out
    centers = (np.arange(size_out)[:, None] + 0.5) * scale
    sources = np.arange(size_in)[None, :]
    if scale >= 1:
        overlap = np.minimum(centers + scale / 2, sources + 1) - np.maximum(centers - scale / 2, sources)
        area: Floats = (overlap.clip(0) / scale).astype(np.float32)
        return area
    t = np.abs(centers - 0.5 - sources)
    near, far = (1.5 * t - 2.5) * t * t + 1, ((2.5 - 0.5 * t) * t - 4) * t + 2
    cubic: Floats = np.where(t < 1, near, np.where(t < 2, far, 0)).astype(np.float32)  # noqa: PLR2004 - its support
    return cubic


def _place(ink: Floats) -> Gray:
    """Put scaled ink into 28x28 with its centre of mass in pixel 14 of both axes, as far as it fits."""
    height, width = ink.shape
    levels = ink * (255 / float(np.maximum.reduce(ink, axis=None)))
    levels += 0.5
    np.maximum(levels, 0, out=levels)  # bicubic falls below 0
    rows, columns = np.add.reduce(ink, axis=1), np.add.reduce(ink, axis=0)
    mass = float(np.add.reduce(rows))
    center_y = float(rows.dot(_CENTERS[:height])) / mass
    center_x = float(columns.dot(_CENTERS[:width])) / mass
    top = min(max(IMAGE_SIZE // 2 - int(center_y), 0), IMAGE_SIZE - height)
    left = min(max(IMAGE_SIZE // 2 - int(center_x), 0), IMAGE_SIZE - width)
    field = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    field[top : top + height, left : left + width] = levels
    return field


_CENTERS = np.arange(IMAGE_SIZE, dtype=np.float32) + np.float32(0.5)

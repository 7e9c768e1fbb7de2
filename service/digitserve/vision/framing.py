"""Framing: grey images of any size to the network's input, 28x28 pixels, light on dark, as in MNIST.

    gray uint8[N,H,W] ──as_is──▶ the same bytes, inverted where ink is dark ──▶ verdicts: blank, several
                      └─frame──▶ reduce ▶ polarity ▶ subtract background ▶ segment ▶ scale ▶ centre, blank, several

The worker calls it on its event loop's thread when it forms a batch; the training package calls it so that it measures what
the service does. The only state is caches of small tables in the other modules.

Imports within ``vision`` go one way: framing > polarity > background | components | resample | gray.
"""

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from digitserve.types import IMAGE_SIZE, FloatImage, Gray, Ink
from digitserve.vision.background import MIN_CONTRAST, subtract_background
from digitserve.vision.components import MAX_SIDE, Box, have_gaps, segment
from digitserve.vision.gray import gray_range
from digitserve.vision.polarity import find_ink, find_reduced_ink
from digitserve.vision.resample import reduce_by_block_means, resize

INK_SIZE = 20
"""Longest side of a digit's ink in MNIST, in pixels; 9 997 of its 10 000 test images have exactly that."""

MAX_SEGMENTED_SIDE = MAX_SIDE
"""Longest side at which components are found: a gap of 3 pixels between two digits of 20 pixels stays above 3."""

FOREGROUND_STRENGTH = 0.35
"""Share of full ink from which a pixel is foreground."""

AS_IS_FOREGROUND_LEVEL = 96
"""The same for images that are used as they are, of 255: higher, because two digits have half the space there."""

CLEAN_TRIM_STRENGTH = 0.02
"""Share of full ink from which a pixel widens the box of the ink: MNIST's own boxes include the faintest pixels."""

NOISY_TRIM_STRENGTH = 0.3
"""The same in noise, or where pixels are so large that a faint one would widen the box by more than its ink."""

SMALL_DIGIT_MARGIN = 0.3
"""Margin around a small digit that is framed again from the original pixels, as a share of its longest side."""


class Framed(NamedTuple):
    """One image framed as in MNIST.

    Attributes:
        pixels: uint8[28, 28], 0 = background, 255 = full ink; all zero when blank.
        blank: there is no ink.
        several: there is more than one separate shape.
    """

    pixels: Gray
    blank: bool
    several: bool


BLANK = Framed(np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8), blank=True, several=False)


def as_is(gray: Gray, ink: Ink) -> Gray:
    """Return images light on dark, with every pixel in its place.

    Args:
        gray: uint8[N, H, W].
        ink: polarity of all images; AUTO finds the polarity of each image.

    Returns:
        uint8[N, H, W]; ``gray`` itself when ``ink`` is LIGHT_ON_DARK.
    """
    if ink is Ink.LIGHT_ON_DARK:
        return gray
    if ink is Ink.DARK_ON_LIGHT:
        return ~gray
    return np.stack([~image if find_ink(image) is Ink.DARK_ON_LIGHT else image for image in gray])


def verdicts(images: Gray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Find the blank images, and those with several shapes, among images that are used as they are, light on dark.

    Call it once per batch: 64 images take hardly longer than 5.

    Args:
        images: uint8[N, 28, 28].

    Returns:
        blank bool[N], several bool[N].
    """
    flat = images.reshape(len(images), IMAGE_SIZE * IMAGE_SIZE)
    blank = flat.max(axis=1) - flat.min(axis=1) < MIN_CONTRAST
    several = np.zeros(len(images), np.bool_)
    masks = images >= AS_IS_FOREGROUND_LEVEL
    # For a single mask, segmenting is faster than first testing whether it is necessary.
    for index in np.flatnonzero(have_gaps(masks)) if len(images) != 1 else (0,):
        segmentation = segment(masks[index])
        several[index] = segmentation is not None and segmentation.several
    return blank, several & ~blank


def frame(gray: Gray, ink: Ink) -> Framed:
    """Place an image's ink as in MNIST: longest side 20, centre of mass at the centre of 28x28.

    Args:
        gray: uint8[H, W].
        ink: polarity; AUTO finds it.

    Returns:
        ``BLANK`` if there is no ink.

    Source: LeCun, Cortes, Burges, "The MNIST database", on normalisation. Every MNIST image has its centre of
        mass within pixel 14 of both axes (counted from 0), so shifts are whole pixels.
    """
    image = reduce_by_block_means(gray)
    low, high = gray_range(image)
    if high - low < MIN_CONTRAST:
        return BLANK
    residual = None
    if ink is Ink.AUTO:
        ink, residual = find_reduced_ink(image, low, high)
    if ink is Ink.DARK_ON_LIGHT:
        image, low, high = 255 - image, 255 - high, 255 - low
    found = subtract_background(image, low, high, residual)
    if found is None:
        return BLANK
    mask = _for_segmentation(found.strength) > FOREGROUND_STRENGTH
    segmentation = segment(mask)
    if segmentation is None:
        return BLANK
    box = segmentation.box
    longest = box.longest
    if longest < MAX_SEGMENTED_SIDE / 3 and max(gray.shape) > 2 * MAX_SEGMENTED_SIDE:
        # A small digit in a large image: frame it from the original pixels.
        return frame(_crop(gray, box, mask.shape, longest * SMALL_DIGIT_MARGIN), ink)
    faintest = CLEAN_TRIM_STRENGTH if found.clean and longest >= 0.7 * INK_SIZE else NOISY_TRIM_STRENGTH
    pixels = _place(_scale(_trim(_crop(found.strength, box, mask.shape, 1), faintest)))
    return Framed(pixels, blank=False, several=segmentation.several)


Pixels = TypeVar("Pixels", np.uint8, np.float32)


def _crop(image: NDArray[Pixels], box: Box, mask_shape: tuple[int, ...], margin: float) -> NDArray[Pixels]:
    """Crop an image to a box of its mask, which may have another scale.

    Args:
        image: [H, W].
        box: in pixels of the mask.
        mask_shape: height and width of the mask.
        margin: added on all sides, in pixels of the mask.
    """
    y, x = image.shape[0] / mask_shape[0], image.shape[1] / mask_shape[1]
    return image[
        max(0, int((box.top - margin) * y)) : int((box.bottom + margin) * y) + 1,
        max(0, int((box.left - margin) * x)) : int((box.right + margin) * x) + 1,
    ]


def _for_segmentation(strength: FloatImage) -> FloatImage:
    """Reduce ink strength to the size at which components are found."""
    height, width = strength.shape
    longest = max(height, width)
    if longest <= MAX_SEGMENTED_SIDE:
        return strength
    share = MAX_SEGMENTED_SIDE / longest
    return resize(strength, max(1, round(height * share)), max(1, round(width * share)))


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


def _place(strength: FloatImage) -> Gray:
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

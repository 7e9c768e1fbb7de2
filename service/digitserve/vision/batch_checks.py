"""Checks of a whole batch of 28x28 images at once: blank, several shapes, and which of them must be framed.

    images ──▶ quick test of all ──▶ as in MNIST ───────────────────────────────▶ unchanged
                                 └─▶ the others, one by one ──▶ decide ─┬───────▶ unchanged
                                                                        ├─▶ pale ▶ contrast stretched
                                                                        └─▶ dark on light, small, large,
                                                                            off-centre ▶ framed

``batching.prepare`` calls ``check`` once per batch, on the worker's thread; no state is kept. A call into numpy costs more
than the work on so few pixels, so the quick test looks at all images together.
"""

from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.types import IMAGE_SIZE, FloatImage, Gray, Ink
from digitserve.vision.background import FLAT_SHARE, MIN_CONTRAST
from digitserve.vision.components import find_gaps, project, segment, segment_rows
from digitserve.vision.framing import frame_all
from digitserve.vision.polarity import find_ink, find_reduced_ink, measure_border

FOREGROUND_LEVEL = 96
"""Grey level, of 255, from which a pixel is foreground: higher than in framing, because two digits have half the space."""

MIN_INK_SIDE, MAX_INK_SIDE = 16, 25
"""Longest side of the ink, in pixels, of an image that is used as it is; MNIST has 20, some of it faint."""

MAX_OFF_CENTER = 1.5
"""Distance of the centre of mass from the centre of pixel 14, along either axis, of such an image; in MNIST it is 0.5."""

FULL_CONTRAST = 128
"""Range of grey levels above which the contrast of such an image is not stretched."""

MAX_SINGLY = 2
"""Largest batch whose images are checked one by one."""

MAX_INK_SHARE = 0.4
"""Share of full ink, as a mean of all pixels, below which the quick test takes an image for light on dark."""

FAINT_STRENGTH = 0.1
"""Share of the range of grey levels from which a pixel belongs to the box of ink that may be too small."""

BOX_STRENGTH = 0.2
"""The same for ink that may be too large."""

CLEAR_BORDER_STRENGTH = 0.15
"""Share of the range of grey levels below which all pixels of the border are, if the ink is clear of it."""

MIN_LIGHT_SIDES = 3
"""Sides of the image that are light if it is dark on light. Two light sides are a stripe."""

MIN_LIGHT_SHARE = 0.6
"""Share of a side's pixels that are light if the side is."""

_PIXELS = IMAGE_SIZE * IMAGE_SIZE
_POSITIONS = np.arange(IMAGE_SIZE, dtype=np.float32) - np.float32(IMAGE_SIZE // 2)
_Y, _X = _POSITIONS.repeat(IMAGE_SIZE), np.tile(_POSITIONS, IMAGE_SIZE)
_MOMENTS = np.stack([np.full(_PIXELS, MAX_OFF_CENTER, np.float32), _Y, _X])
"""Weights of the largest moment of an image whose centre of mass is central enough, and of its moments along y and x about
pixel 14: float32[3, 784]. The sums are multiples of 1/2 below 2**23: exact in float32, in any order of summation.
"""

_TOTALS = _MOMENTS.sum(axis=1)
"""What each grey level of the background adds to these sums: float32[3]."""

_MAX_INK = MAX_OFF_CENTER * MAX_INK_SHARE * 255 * _PIXELS
"""In the unit of the first moment."""

_MIN_INK_SIDE, _INK_SIDES = np.uint8(MIN_INK_SIDE), np.uint8(MAX_INK_SIDE - MIN_INK_SIDE)

_ROW = np.uint32((1 << IMAGE_SIZE) - 1)
_HALF_BYTE = np.uint32(4)


class Checked(NamedTuple):
    """A batch of 28x28 images, ready for the network.

    Attributes:
        images: uint8[N, 28, 28], light on dark; the array that was given if no image was changed.
        blank: bool[N], no ink.
        several: bool[N], more than one separate shape; never where ``blank``.
        spans_image: bool[N], only a straight band from border to border, found by framing.
    """

    images: Gray
    blank: NDArray[np.bool_]
    several: NDArray[np.bool_]
    spans_image: NDArray[np.bool_]


class Treatment(Enum):
    """What happens to a 28x28 image whose framing is left to the service."""

    AS_IS = "as_is"
    STRETCH = "stretch"
    FRAME = "frame"


def check(images: Gray, undecided: NDArray[np.bool_] | bool = False) -> Checked:  # noqa: FBT001, FBT002 - one for all
    """Find blank images and images with several shapes, and frame those that do not look like MNIST's.

    Args:
        images: uint8[N, 28, 28].
        undecided: bool[N], the images whose polarity and framing are left to the service; or one value for all. All
            others are light on dark.

    Returns:
        The images, changed only where ``undecided``. Framed images have the results of framing.
    """
    if len(images) <= MAX_SINGLY:
        blank, several, plain = np.array([_check_one(image) for image in images], np.bool_).reshape(-1, 3).T
    else:
        blank, several, plain = _check_batch(images.reshape(len(images), _PIXELS))
    spans_image = np.zeros(len(images), np.bool_)
    if undecided is not False and not plain.all():
        others = np.flatnonzero(~plain & undecided).tolist()
        if others:
            images = _treat(images, others, blank, several, spans_image)
    return Checked(images, blank, several, spans_image)


def verdicts(images: Gray) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Find the blank images, and those with several shapes, among images that are used as they are, light on dark.

    Args:
        images: uint8[N, 28, 28].

    Returns:
        blank bool[N], several bool[N].
    """
    checked = check(images)
    return checked.blank, checked.several


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


def decide(gray: Gray) -> Treatment:
    """Decide what happens to a 28x28 image whose polarity and framing are left to the service.

    It stays as it is if it is light on dark, and: its background is not flat, so that there is no box to trust; or its ink
    reaches the border; or its ink has about the size and place of MNIST's. Low contrast alone does not move it.

    Args:
        gray: uint8[28, 28].
    """
    image = gray.astype(np.float32)
    low, high = float(image.min()), float(image.max())
    contrast = high - low
    if contrast < MIN_CONTRAST:
        return Treatment.AS_IS
    ink, _ = find_reduced_ink(image, low, high, measure_border(image, low, high))
    if ink is Ink.DARK_ON_LIGHT:
        middle = (low + high) / 2
        num_light = sum(np.count_nonzero(side > middle) >= MIN_LIGHT_SHARE * IMAGE_SIZE for side in _sides(image))
        return Treatment.FRAME if num_light >= MIN_LIGHT_SIDES else Treatment.AS_IS
    if np.count_nonzero(image <= low + 1) <= FLAT_SHARE * _PIXELS:
        return Treatment.AS_IS
    image -= low
    if _is_misplaced(image, contrast):
        return Treatment.FRAME
    return Treatment.STRETCH if contrast <= FULL_CONTRAST else Treatment.AS_IS


def _check_one(image: Gray) -> tuple[bool, bool, bool]:
    """Return what ``_check_batch`` does for one image: faster for so few that its wide calls do not pay."""
    flat = image.reshape(_PIXELS)
    high = int(np.maximum.reduce(flat))
    low = int(np.minimum.reduce(flat)) if flat[0] else 0
    blank = high - low < MIN_CONTRAST
    segmentation = segment(image >= FOREGROUND_LEVEL)
    if segmentation is None or blank:
        return blank, False, False
    plain = MIN_INK_SIDE <= segmentation.box.longest <= MAX_INK_SIDE and high - low > FULL_CONTRAST
    if plain:
        moments = _MOMENTS.dot(flat.astype(np.float32))
        if low:
            moments -= low * _TOTALS
        largest, y, x = moments.tolist()
        plain = max(abs(y), abs(x)) <= largest <= _MAX_INK
    return blank, segmentation.several, plain


def _check_batch(flat: Gray) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Look at all images together.

    Args:
        flat: uint8[N, 784].

    Returns:
        blank bool[N], several bool[N], and bool[N], the images that certainly look like MNIST's.
    """
    contrast = np.maximum.reduce(flat, axis=1)
    pixels = flat.astype(np.float32)
    # Three products with a vector take half the time of one with a matrix of three columns.
    largest, y, x = (pixels.dot(weights) for weights in _MOMENTS)
    if np.count_nonzero(flat[:, 0]):  # otherwise the lowest grey level of all is 0
        low = np.minimum.reduce(flat, axis=1)
        contrast -= low
        largest, y, x = (sums - low * total for sums, total in zip((largest, y, x), _TOTALS, strict=True))
    rows = _pack_rows(flat)
    projections = project(rows)
    longest = np.maximum.reduce(np.bitwise_count(projections[:2]), axis=0)  # without a gap
    blank = contrast < MIN_CONTRAST
    several = np.zeros(len(flat), np.bool_)
    for index in find_gaps(projections).nonzero()[0].tolist():
        box, several_shapes = segment_rows(rows[:, index])
        longest[index] = box.longest
        several[index] = several_shapes and not blank[index]
    plain = np.maximum(np.abs(y), np.abs(x)) <= largest
    plain &= largest <= _MAX_INK
    plain &= contrast > FULL_CONTRAST
    plain &= longest - _MIN_INK_SIDE <= _INK_SIDES  # unsigned: a smaller side wraps around
    return blank, several, plain


def _pack_rows(flat: Gray) -> NDArray[np.uint64]:
    """Turn the rows of the foreground of 28x28 images into integers whose lowest bit is the first pixel.

    Args:
        flat: uint8[N, 784], N at least 1.

    Returns:
        uint64[28, N].
    """
    num_images = len(flat)
    packed = np.packbits(flat >= FOREGROUND_LEVEL, bitorder="little")
    # Two rows are 7 bytes: the second one begins in the middle of the fourth byte.
    layout = (IMAGE_SIZE // 2, num_images), "<u4", packed
    strides = 7, _PIXELS // 8
    rows = np.empty((IMAGE_SIZE // 2, 2, num_images), np.uint64)
    np.bitwise_and(np.ndarray(*layout, 0, strides), _ROW, out=rows[:, 0])
    np.right_shift(np.ndarray(*layout, 3, strides), _HALF_BYTE, out=rows[:, 1])
    return rows.reshape(IMAGE_SIZE, num_images)


def _treat(
    images: Gray,
    indices: list[int],
    blank: NDArray[np.bool_],
    several: NDArray[np.bool_],
    spans_image: NDArray[np.bool_],
) -> Gray:
    """Return a copy of a batch in which some images are framed or stretched as decided; the checks are updated in place."""
    images = images.copy()
    to_frame = []
    for index in indices:
        treatment = decide(images[index])
        if treatment is Treatment.STRETCH:
            images[index] = _stretch(images[index])
            blank[index], several[index], _ = _check_one(images[index])
        elif treatment is Treatment.FRAME:
            to_frame.append(index)
    if to_frame:
        for index, framed in zip(to_frame, frame_all(images[to_frame], Ink.AUTO), strict=True):
            if not framed.blank:
                images[index] = framed.pixels
                blank[index], several[index], spans_image[index] = False, framed.several, framed.spans_image
    return images


def _stretch(gray: Gray) -> Gray:
    """Scale grey levels so that they use the whole range from 0 to 255."""
    low, high = int(gray.min()), int(gray.max())
    stretched: Gray = ((gray.astype(np.float32) - low) * (255 / (high - low)) + 0.5).astype(np.uint8)
    return stretched


def _is_misplaced(ink: FloatImage, contrast: float) -> bool:
    """Return whether ink differs in size or place from MNIST's.

    Args:
        ink: float32[28, 28], grey levels above the background.
        contrast: its maximum.
    """
    largest, y, x = _MOMENTS.dot(ink.reshape(_PIXELS)).tolist()
    if _longest(ink >= FAINT_STRENGTH * contrast) < MIN_INK_SIDE:
        return True
    clear = max(float(side.max()) for side in _sides(ink)) < CLEAR_BORDER_STRENGTH * contrast
    return clear and (_longest(ink >= BOX_STRENGTH * contrast) > MAX_INK_SIDE or max(abs(y), abs(x)) > largest)


def _longest(mask: NDArray[np.bool_]) -> int:
    """Return the longest side of the bounding box of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return max(int(rows[-1] - rows[0]), int(columns[-1] - columns[0])) + 1


def _sides(image: FloatImage) -> tuple[FloatImage, FloatImage, FloatImage, FloatImage]:
    return image[0], image[-1], image[:, 0], image[:, -1]

"""Framing: an image of any size to the network's input, 28x28 pixels, light on dark, as in MNIST.

    gray ──▶ reduce ──▶ polarity ──▶ page edges ──▶ background ──▶ rectangles ──▶ border ──▶ components ──▶ place
                                       │                             │              │          │
                                       └──── look again at a part ◀──┴──────────────┴──────────┘ (a small digit)

Most images go straight through. Where something else than the digit is found (the edge of a page or table, a frame, the
lines of a form), the part without it is framed as an image of its own, from the original pixels: its polarity, background
and scale are not those of the whole.

``batching.prepare`` and ``batch_checks`` call it on the worker's thread; the training package calls it so that it measures
what the service does. The only state is caches of small tables in the other modules.

Imports within ``vision`` go one way: batch_checks > framing > polarity | panel | border | placement | channel >
background | components > resample | gray.
"""

import math
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.types import IMAGE_SIZE, Box, FloatImage, Gray, Ink
from digitserve.vision.background import (
    MAX_SIDE_DIFFERENCE,
    MIN_CONTRAST,
    InkStrength,
    is_shaded,
    subtract_background,
    subtract_local_background,
)
from digitserve.vision.border import MIN_SHAPE, clean, crop_around, dilate, find_page
from digitserve.vision.channel import select_channel
from digitserve.vision.components import MAX_SIDE, Segmentation, segment
from digitserve.vision.gray import gray_range
from digitserve.vision.panel import find_panel, may_hold_panel
from digitserve.vision.placement import INK_SIZE, place
from digitserve.vision.polarity import Border, find_reduced_ink, measure_border
from digitserve.vision.resample import reduce_by_block_means

MAX_SEGMENTED_SIDE = MAX_SIDE
"""Longest side at which components are found: a gap of 3 pixels between two digits of 20 pixels stays above 3."""

FOREGROUND_STRENGTH = 0.35
"""Share of full ink from which a pixel is foreground."""

CLEAN_TRIM_STRENGTH = 0.02
"""Share of full ink from which a pixel widens the box of the ink: MNIST's own boxes include the faintest pixels."""

NOISY_TRIM_STRENGTH = 0.3
"""The same in noise, or where pixels are so large that a faint one would widen the box by more than its ink."""

SMALL_DIGIT_SHARE = 1 / 3
"""Longest side of a digit, as a share of the image's, below which it is framed again from the original pixels."""

SMALL_DIGIT_MARGIN = 0.3
"""Margin around such a digit, as a share of its longest side."""

MAX_LOOKS = 3
"""How often a part of an image is looked at again as an image of its own: page on a table, cell on a page."""

MIN_PART_SIDE = 12
"""Shortest side of such a part, in pixels."""

MIN_CLEANED_SIDE = 20
"""Longest side, in pixels, of an image from which something at the border is cut off. A smaller one is cropped to its digit,
unless a frame encloses it.
"""

MIN_FRAME_SIDES = 3
"""Sides of a small image that are set from end to end if a frame encloses it."""

MIN_SHADED_SIDE = 40
"""Shortest side, in pixels, of an image in which the hard edge of a shadow is looked for."""

SIDE_OF_PAPER = 0.1
"""Mean lightness, from -1 to 1, that each side of an image on light paper has at least, unless something else fills it."""


class Removed(Enum):
    """What was cut off before the digit was framed."""

    PAGE_EDGE = "page edge"
    RECTANGLE = "rectangle"
    BORDER = "border"


class Framed(NamedTuple):
    """One image framed as in MNIST.

    Attributes:
        pixels: uint8[28, 28], 0 = background, 255 = full ink; all zero when blank.
        blank: there is no ink.
        several: there is more than one separate shape.
        spans_image: the only shape is a straight band from border to border: an edge or a line, not a digit.
        ink: polarity of the ink, never AUTO.
        box: bounding box of the ink in pixels of the image, as far as the segmentation resolves it; None when blank.
        removed: what was cut off, outermost first.
    """

    pixels: Gray
    blank: bool
    several: bool
    spans_image: bool = False
    ink: Ink = Ink.LIGHT_ON_DARK
    box: Box | None = None
    removed: tuple[Removed, ...] = ()


BLANK = Framed(np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8), blank=True, several=False)


class _View(NamedTuple):
    """An image, or a part of one, while it is framed.

    Attributes:
        gray: uint8[H, W], the original pixels.
        top, left: position of the part in the image.
        ink: polarity that was given, or AUTO.
        looks: how many more parts of parts may be framed.
    """

    gray: Gray
    top: int
    left: int
    ink: Ink
    looks: int


def frame(gray: Gray, ink: Ink) -> Framed:
    """Place an image's ink as in MNIST: longest side 20, centre of mass at the centre of 28x28.

    Args:
        gray: uint8[H, W].
        ink: polarity; AUTO finds it.

    Returns:
        All zero and ``blank`` if there is no ink.
    """
    return _frame(_View(gray, 0, 0, ink, MAX_LOOKS))


def frame_colors(pixels: Gray, ink: Ink) -> Framed:
    """Frame an image with colours or transparency, by its luma or by the channel that shows the ink.

    Args:
        pixels: uint8[H, W, C]; C is 1 for grey, 3 for RGB, 4 for RGBA.
        ink: polarity of the luma; AUTO finds it.
    """
    return frame(*select_channel(pixels, ink))


def _frame(view: _View) -> Framed:
    image = reduce_by_block_means(view.gray)
    low, high = gray_range(image)
    if high - low < MIN_CONTRAST:
        return BLANK
    border = measure_border(image, low, high)
    ink, residual = view.ink, None
    if ink is Ink.AUTO:
        ink, residual = find_reduced_ink(image, low, high, border)
    if view.looks and (framed := _frame_page(view, image, ink, border, (low + high) / 2)) is not None:
        return framed
    if ink is Ink.DARK_ON_LIGHT:
        image, low, high = 255 - image, 255 - high, 255 - low
    found = subtract_background(image, low, high, residual)
    if found is None:
        return _frame_sheet(view, image, ink)
    return _frame_ink(view, image, found, ink, border)


def _frame_page(view: _View, image: FloatImage, ink: Ink, border: Border, middle: float) -> Framed | None:
    """Frame the part inside page edges, which would spoil the background of the whole; None if there are none."""
    dark = ink is Ink.DARK_ON_LIGHT
    if border.darkest >= SIDE_OF_PAPER if dark else border.lightest <= -SIDE_OF_PAPER:
        return None
    mask = _reduce_mask(image < middle if dark else image > middle)
    return _frame_part(view, find_page(mask), mask.shape, view.ink, Removed.PAGE_EDGE)


def _frame_sheet(view: _View, inverted: FloatImage, ink: Ink) -> Framed:
    """Frame what a rectangle of the background's colour holds, in an image without ink: a sheet on a table.

    Args:
        view: the image.
        inverted: float32[H, W], light where ink of the polarity ``ink`` would be.
        ink: the polarity for which no ink was found.
    """
    if view.looks and view.ink is Ink.AUTO:
        image = 255 - inverted
        found = subtract_background(image, *gray_range(image), None)
        if found is not None:
            mask = _reduce_mask(found.strength > FOREGROUND_STRENGTH)
            panel = find_panel(mask)
            if panel is not None and panel.solid:
                return _frame_part(view, panel.inside, mask.shape, ink, Removed.RECTANGLE) or BLANK
    return BLANK


def _frame_ink(view: _View, image: FloatImage, found: InkStrength, ink: Ink, border: Border) -> Framed:
    """Frame the ink of an image, or the ink of the part of it that holds the digit.

    Args:
        view: the image.
        image: float32[H, W], reduced, ink light.
        found: its ink.
        ink: its polarity.
        border: of the image.
    """
    mask = _reduce_mask(found.strength > FOREGROUND_STRENGTH)
    segmentation = segment(mask)
    if segmentation is None:
        return BLANK
    if not segmentation.num_components:  # a texture: no artefacts are looked for
        return _frame_shape(view, found, mask, segmentation, ink, spans_image=False)
    if view.looks and may_hold_panel(segmentation, mask.shape):
        framed = _frame_panel(view, mask, segmentation, ink)
        if framed is not None:
            return framed
    spans_image = False
    if segmentation.box.touches(mask.shape) and (max(mask.shape) >= MIN_CLEANED_SIDE or _is_enclosed(mask)):
        cleaned = clean(mask, segmentation)
        spans_image = cleaned.spans_image
        if cleaned.mask is not mask:
            part = crop_around(cleaned.mask, mask & ~cleaned.mask)
            framed = _frame_part(view, part, mask.shape, ink, Removed.BORDER)
            if framed is not None:
                return framed
            found, mask, segmentation = _remove(found, mask, cleaned.mask), cleaned.mask, segment(cleaned.mask)
    uneven = border.lightest - border.darkest > 2 * MAX_SIDE_DIFFERENCE
    if uneven and min(image.shape) >= MIN_SHADED_SIDE and is_shaded(found.strength):
        framed = _frame_without_shadow(view, image, ink)
        if framed is not None:
            return framed
    return _frame_shape(view, found, mask, segmentation, ink, spans_image=spans_image)


def _frame_without_shadow(view: _View, image: FloatImage, ink: Ink) -> Framed | None:
    """Frame ink on a background with a step, such as the hard edge of a shadow; None if it is not clear of the border."""
    found = subtract_local_background(image)
    if found is None:
        return None
    mask = _reduce_mask(found.strength > FOREGROUND_STRENGTH)
    shape = segment(mask)
    if shape is None:
        return None
    cleaned = clean(mask, shape)
    if cleaned.mask is not mask:
        found, shape = _remove(found, mask, cleaned.mask), segment(cleaned.mask)
    if shape is None or shape.box.touches(mask.shape) or shape.box.longest < MIN_SHAPE * max(mask.shape):
        return None
    return _frame_shape(view, found, cleaned.mask, shape, ink, spans_image=False)


def _frame_shape(
    view: _View,
    found: InkStrength,
    mask: NDArray[np.bool_],
    segmentation: Segmentation | None,
    ink: Ink,
    *,
    spans_image: bool,
) -> Framed:
    """Frame what a mask without artefacts shows.

    Args:
        view: the image.
        found: its ink.
        mask: foreground of that ink, at most 64 pixels a side.
        segmentation: of that mask.
        ink: polarity.
        spans_image: for the result.
    """
    if segmentation is None:
        return BLANK
    box, longest = segmentation.box, segmentation.box.longest
    if longest < max(mask.shape) * SMALL_DIGIT_SHARE and max(view.gray.shape) > 2 * MAX_SEGMENTED_SIDE:
        return _frame_cut(
            view, _enlarge(box, mask.shape, view.gray.shape, longest * SMALL_DIGIT_MARGIN), ink, view.looks
        )
    strength = found.strength[_slices(_enlarge(box, mask.shape, found.strength.shape, 1))]
    faintest = CLEAN_TRIM_STRENGTH if found.clean and longest >= 0.7 * INK_SIZE else NOISY_TRIM_STRENGTH
    where = _enlarge(box, mask.shape, view.gray.shape, 0)
    where = Box(view.top + where.top, view.top + where.bottom, view.left + where.left, view.left + where.right)
    return Framed(place(strength, faintest), False, segmentation.several, spans_image, ink, where)  # noqa: FBT003 - faster


def _frame_panel(view: _View, mask: NDArray[np.bool_], segmentation: Segmentation, ink: Ink) -> Framed | None:
    """Frame what a rectangle holds; None if there is none."""
    panel = find_panel(mask, segmentation.components)
    # What a solid rectangle holds has the opposite polarity, which is no ink if the caller gave the polarity.
    if panel is None or (panel.solid and view.ink is not Ink.AUTO):
        return None
    return _frame_part(view, panel.inside, mask.shape, Ink.AUTO if panel.solid else ink, Removed.RECTANGLE)


def _frame_part(view: _View, part: Box | None, shape: tuple[int, ...], ink: Ink, removed: Removed) -> Framed | None:
    """Frame a part of an image.

    Args:
        view: the image.
        part: in pixels of a mask of the image, or None.
        shape: of that mask.
        ink: polarity of the part.
        removed: what is outside of it.

    Returns:
        None without a part, and for one that is blank, too small, or as large as the image.
    """
    if part is None or not view.looks:
        return None
    height, width = view.gray.shape
    y, x = height / shape[0], width / shape[1]
    box = Box(math.ceil(part.top * y), int(part.bottom * y), math.ceil(part.left * x), int(part.right * x))
    if min(box.height, box.width) < MIN_PART_SIDE or (box.height, box.width) == (height, width):
        return None
    framed = _frame_cut(view, box, ink, view.looks - 1)
    return None if framed.blank else framed._replace(removed=(removed, *framed.removed))


def _frame_cut(view: _View, box: Box, ink: Ink, looks: int) -> Framed:
    """Frame a box of an image as an image of its own."""
    return _frame(_View(view.gray[_slices(box)], view.top + box.top, view.left + box.left, ink, looks))


def _enlarge(box: Box, mask_shape: tuple[int, ...], shape: tuple[int, ...], margin: float) -> Box:
    """Return a box of a mask in pixels of an image of another size, with a margin in pixels of the mask on all sides."""
    y, x = shape[0] / mask_shape[0], shape[1] / mask_shape[1]
    return Box(
        max(0, int((box.top - margin) * y)),
        min(shape[0], int((box.bottom + margin) * y) + 1),
        max(0, int((box.left - margin) * x)),
        min(shape[1], int((box.right + margin) * x) + 1),
    )


def _slices(box: Box) -> tuple[slice, slice]:
    return slice(box.top, box.bottom), slice(box.left, box.right)


def _reduce_mask(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Reduce a mask to at most 64 pixels a side. A pixel is set where any is, so that thin strokes stay connected."""
    height, width = mask.shape
    if max(height, width) <= MAX_SEGMENTED_SIDE:
        return mask
    if height % 2 or width % 2:
        # Twenty times as fast as np.pad.
        even = np.zeros((height + height % 2, width + width % 2), np.bool_)
        even[:height, :width] = mask
        mask = even
    rows = mask[::2] | mask[1::2]
    reduced: NDArray[np.bool_] = rows[:, ::2] | rows[:, 1::2]
    return reduced


def _is_enclosed(mask: NDArray[np.bool_]) -> bool:
    """Return whether at least three sides of a mask are set from end to end: a frame, which no digit is."""
    return sum(bool(side.all()) for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1])) >= MIN_FRAME_SIDES


def _remove(found: InkStrength, mask: NDArray[np.bool_], kept: NDArray[np.bool_]) -> InkStrength:
    """Return ink without the parts of its mask that are not kept, and without their soft edges."""
    removed = dilate(mask & ~kept) & ~kept
    factor = -(-max(found.strength.shape) // MAX_SEGMENTED_SIDE)
    height, width = found.strength.shape
    enlarged = removed.repeat(factor, axis=0).repeat(factor, axis=1)[:height, :width]
    return InkStrength(np.where(enlarged, np.float32(0), found.strength), found.clean)

"""Framing: an image of any size to the network's input, 28x28 pixels, light on dark, as in MNIST.

    gray ──▶ reduce ──▶ polarity ──▶ page edges ──▶ background ──▶ rectangles ──▶ border ──▶ components ──▶ place
                                       │                             │              │          │
                                       └──── look again at a part ◀──┴──────────────┴──────────┘ (a small digit)

Most images go straight through. Where something else than the digit is found (the edge of a page or table, a frame, the
lines of a form), the part without it is framed as an image of its own, from the original pixels: its polarity, background
and scale are not those of the whole.

``batching.prepare`` and ``batch_checks`` call it on the worker's thread; the training package calls it so that it measures
what the service does. The only state is caches of small tables in the other modules.

Imports within ``vision`` go one way: batch_checks > framing > views > polarity | panel | border | placement | channel >
background | components > resample | gray | packed_masks.
"""

import math
from collections.abc import Sequence
from operator import sub

import numpy as np
from numpy.typing import NDArray

from digitserve.types import Box, FloatImage, Gray, Ink
from digitserve.vision.background import (
    MAX_SIDE_DIFFERENCE,
    MIN_CONTRAST,
    InkStrength,
    is_shaded,
    subtract_backgrounds,
    subtract_local_background,
)
from digitserve.vision.border import MIN_SHAPE, clean, crop_around, find_page
from digitserve.vision.channel import select_channel
from digitserve.vision.components import MAX_SIDE, Segmentation, segment, segment_all
from digitserve.vision.gray import gray_range, gray_ranges
from digitserve.vision.panel import find_panel, may_hold_panel
from digitserve.vision.placement import INK_SIZE, place
from digitserve.vision.polarity import Border, find_reduced_inks, measure_borders
from digitserve.vision.resample import reduce_by_block_means
from digitserve.vision.views import BLANK, Framed, Removed, View, enlarge, is_enclosed, reduce_masks, remove

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

MAX_GROUP_PIXELS = 1 << 17
"""Most pixels of images that are framed together: their grey levels as float32 and the arrays of a step fit in the L2 cache."""

MIN_SHADED_SIDE = 40
"""Shortest side, in pixels, of an image in which the hard edge of a shadow is looked for."""

SIDE_OF_PAPER = 0.1
"""Mean lightness, from -1 to 1, that each side of an image on light paper has at least, unless something else fills it."""

# Arrays, because numpy would convert a Python number in each call; and members of an enum, which are slow to look up.
_FOREGROUND, _WHITE = np.full((), FOREGROUND_STRENGTH, np.float32), np.full((), 255, np.float32)
_CLEAN_TRIM, _NOISY_TRIM = np.full((), CLEAN_TRIM_STRENGTH, np.float32), np.full((), NOISY_TRIM_STRENGTH, np.float32)
_AUTO, _DARK_ON_LIGHT = Ink.AUTO, Ink.DARK_ON_LIGHT


def frame(gray: Gray, ink: Ink) -> Framed:
    """Place an image's ink as in MNIST: longest side 20, centre of mass at the centre of 28x28.

    Args:
        gray: uint8[H, W].
        ink: polarity; AUTO finds it.

    Returns:
        All zero and ``blank`` if there is no ink.
    """
    return _frame(View(gray, 0, 0, ink, MAX_LOOKS))


def frame_all(images: Sequence[Gray] | Gray, ink: Ink) -> list[Framed]:
    """Frame images of one size, as ``frame`` frames each of them.

    Args:
        images: N images uint8[H, W], or uint8[N, H, W].
        ink: polarity of all; AUTO finds that of each.
    """
    step = max(1, MAX_GROUP_PIXELS // images[0].size)
    views = [View(image, 0, 0, ink, MAX_LOOKS) for image in images]
    framed: list[Framed] = []
    for start in range(0, len(views), step):
        group = images[start : start + step]
        framed += _frame_group(views[start : start + step], group if isinstance(group, np.ndarray) else np.stack(group))
    return framed


def frame_colors(pixels: Gray, ink: Ink) -> Framed:
    """Frame an image with colours or transparency, by its luma or by the channel that shows the ink.

    Args:
        pixels: uint8[H, W, C]; C is 1 for grey, 3 for RGB, 4 for RGBA.
        ink: polarity of the luma; AUTO finds it.
    """
    return frame(*select_channel(pixels, ink))


def frame_all_colors(pixels: Gray, ink: Ink) -> list[Framed]:
    """Frame images of one size with colours or transparency, as ``frame_colors`` frames each of them: uint8[N, H, W, C]."""
    chosen = [select_channel(image, ink) for image in pixels]
    if all(ink_of_channel is ink for _, ink_of_channel in chosen):
        return frame_all([gray for gray, _ in chosen], ink)
    return [frame(*one) for one in chosen]


def _frame(view: View) -> Framed:
    return _frame_group([view], view.gray[None])[0]


def _frame_group(views: Sequence[View], gray: Gray) -> list[Framed]:
    """Frame images of one size; one call into numpy computes what all need.

    Args:
        views: the images, of the same polarity and with the same number of looks.
        gray: uint8[N, H, W], their pixels.
    """
    images = reduce_by_block_means(gray)
    lows, highs = gray_ranges(images)
    if min(map(sub, highs, lows)) < MIN_CONTRAST:
        return _frame_visible(views, gray, [high - low >= MIN_CONTRAST for low, high in zip(lows, highs, strict=True)])
    borders = measure_borders(images, lows, highs)
    ink, looks = views[0].ink, views[0].looks
    inks: list[tuple[Ink, FloatImage | None]] = [(ink, None)] * len(views)
    if ink is _AUTO:
        inks = find_reduced_inks(images, lows, highs, borders)
    pages: list[Framed | None] = []
    for index, (image, (ink, _), border) in enumerate(zip(images, inks, borders, strict=True)):
        low, high = lows[index], highs[index]
        pages.append(_frame_page(views[index], image, ink, border, (low + high) / 2) if looks else None)
        if ink is _DARK_ON_LIGHT:
            np.subtract(_WHITE, image, out=image)
            lows[index], highs[index] = 255 - high, 255 - low
    if len(views) == 1 and pages[0] is not None:
        return [pages[0]]
    strengths, found = subtract_backgrounds(images, lows, highs, [residual for _, residual in inks])
    masks = reduce_masks(strengths > _FOREGROUND)
    framed = []
    for index, segmentation in enumerate(segment_all(masks)):
        page, ink_strength, (ink, _) = pages[index], found[index], inks[index]
        if page is None:
            page = (
                _frame_sheet(views[index], images[index], ink)
                if ink_strength is None
                else _frame_ink(
                    views[index], images[index], ink_strength, masks[index], segmentation, ink, borders[index]
                )
            )
        framed.append(page)
    return framed


def _frame_visible(views: Sequence[View], gray: Gray, visible: list[bool]) -> list[Framed]:
    """Frame the images that are not blank."""
    rows = [row for row, flag in enumerate(visible) if flag]
    framed = [BLANK] * len(views)
    if rows:
        for row, result in zip(rows, _frame_group([views[row] for row in rows], gray[rows]), strict=True):
            framed[row] = result
    return framed


def _frame_page(view: View, image: FloatImage, ink: Ink, border: Border, middle: float) -> Framed | None:
    """Frame the part inside page edges, which would spoil the background of the whole; None if there are none."""
    dark = ink is _DARK_ON_LIGHT
    if border.darkest >= SIDE_OF_PAPER if dark else border.lightest <= -SIDE_OF_PAPER:
        return None
    mask = reduce_masks(image < middle if dark else image > middle)
    return _frame_part(view, find_page(mask), mask.shape, view.ink, Removed.PAGE_EDGE)


def _frame_sheet(view: View, inverted: FloatImage, ink: Ink) -> Framed:
    """Frame what a rectangle of the background's colour holds, in an image without ink: a sheet on a table.

    Args:
        view: the image.
        inverted: float32[H, W], light where ink of the polarity ``ink`` would be.
        ink: the polarity for which no ink was found.
    """
    if view.looks and view.ink is _AUTO:
        image = 255 - inverted
        low, high = gray_range(image)
        found = subtract_backgrounds(image[None], [low], [high], [None])[1][0]
        if found is not None:
            mask = reduce_masks(found.strength > FOREGROUND_STRENGTH)
            panel = find_panel(mask)
            if panel is not None and panel.solid:
                return _frame_part(view, panel.inside, mask.shape, ink, Removed.RECTANGLE) or BLANK
    return BLANK


def _frame_ink(
    view: View,
    image: FloatImage,
    found: InkStrength,
    mask: NDArray[np.bool_],
    segmentation: Segmentation | None,
    ink: Ink,
    border: Border,
) -> Framed:
    """Frame the ink of an image, or the ink of the part of it that holds the digit.

    Args:
        view: the image.
        image: float32[H, W], reduced, ink light.
        found: its ink.
        mask: foreground of that ink, at most 64 pixels a side.
        segmentation: of that mask.
        ink: its polarity.
        border: of the image.
    """
    if segmentation is None:
        return BLANK
    if not segmentation.num_components:  # a texture: no artefacts are looked for
        return _frame_shape(view, found, mask, segmentation, ink, spans_image=False)
    if view.looks and may_hold_panel(segmentation, mask.shape):
        framed = _frame_panel(view, mask, segmentation, ink)
        if framed is not None:
            return framed
    spans_image = False
    if segmentation.box.touches(mask.shape) and (max(mask.shape) >= MIN_CLEANED_SIDE or is_enclosed(mask)):
        cleaned = clean(mask, segmentation)
        spans_image = cleaned.spans_image
        if cleaned.mask is not mask:
            part = crop_around(cleaned.mask, mask & ~cleaned.mask)
            framed = _frame_part(view, part, mask.shape, ink, Removed.BORDER)
            if framed is not None:
                return framed
            found, mask, segmentation = remove(found, mask, cleaned.mask), cleaned.mask, segment(cleaned.mask)
    uneven = border.lightest - border.darkest > 2 * MAX_SIDE_DIFFERENCE
    if uneven and min(image.shape) >= MIN_SHADED_SIDE and is_shaded(found.strength):
        framed = _frame_without_shadow(view, image, ink)
        if framed is not None:
            return framed
    return _frame_shape(view, found, mask, segmentation, ink, spans_image=spans_image)


def _frame_without_shadow(view: View, image: FloatImage, ink: Ink) -> Framed | None:
    """Frame ink on a background with a step, such as the hard edge of a shadow; None if it is not clear of the border."""
    found = subtract_local_background(image)
    if found is None:
        return None
    mask = reduce_masks(found.strength > FOREGROUND_STRENGTH)
    shape = segment(mask)
    if shape is None:
        return None
    cleaned = clean(mask, shape)
    if cleaned.mask is not mask:
        found, shape = remove(found, mask, cleaned.mask), segment(cleaned.mask)
    if shape is None or shape.box.touches(mask.shape) or shape.box.longest < MIN_SHAPE * max(mask.shape):
        return None
    return _frame_shape(view, found, cleaned.mask, shape, ink, spans_image=False)


def _frame_shape(
    view: View,
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
    box = segmentation.box
    longest = box.longest
    if longest < max(mask.shape) * SMALL_DIGIT_SHARE and max(view.gray.shape) > 2 * MAX_SEGMENTED_SIDE:
        around = enlarge(box, mask.shape, view.gray.shape, longest * SMALL_DIGIT_MARGIN)
        return _frame(view.part(around, ink, view.looks))
    faintest = _CLEAN_TRIM if found.clean and longest >= 0.7 * INK_SIZE else _NOISY_TRIM
    where = enlarge(box, mask.shape, view.gray.shape, 0)
    if view.top or view.left:
        where = Box(view.top + where.top, view.top + where.bottom, view.left + where.left, view.left + where.right)
    pixels = place(found.strength, enlarge(box, mask.shape, found.strength.shape, 1), faintest)
    return Framed(pixels, False, segmentation.several, spans_image, ink, where)  # noqa: FBT003 - keywords cost time


def _frame_panel(view: View, mask: NDArray[np.bool_], segmentation: Segmentation, ink: Ink) -> Framed | None:
    """Frame what a rectangle holds; None if there is none."""
    panel = find_panel(mask, segmentation.components)
    # What a solid rectangle holds has the opposite polarity, which is no ink if the caller gave the polarity.
    if panel is None or (panel.solid and view.ink is not _AUTO):
        return None
    return _frame_part(view, panel.inside, mask.shape, _AUTO if panel.solid else ink, Removed.RECTANGLE)


def _frame_part(view: View, part: Box | None, shape: tuple[int, ...], ink: Ink, removed: Removed) -> Framed | None:
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
    framed = _frame(view.part(box, ink, view.looks - 1))
    return None if framed.blank else framed._replace(removed=(removed, *framed.removed))

"""The types of framing, and the geometry of masks: an image while it is framed, the result, and boxes of reduced masks.

``framing`` uses them on the worker's thread; ``batching`` and the training package read the results. No state is kept.
"""

from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.types import IMAGE_SIZE, Box, Gray, Ink
from digitserve.vision.background import InkStrength
from digitserve.vision.border import dilate
from digitserve.vision.components import MAX_SIDE

MIN_FRAME_SIDES = 3
"""Sides of a small image that are set from end to end if a frame encloses it."""


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


class View(NamedTuple):
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

    def part(self, box: Box, ink: Ink, looks: int) -> "View":
        """Return a box of the image as an image of its own."""
        top, bottom, left, right = box
        return View(self.gray[top:bottom, left:right], self.top + top, self.left + left, ink, looks)


def enlarge(box: Box, mask_shape: tuple[int, ...], shape: tuple[int, ...], margin: float) -> Box:
    """Return a box of a mask in pixels of an image of another size, with a margin in pixels of the mask on all sides."""
    top, bottom, left, right = box
    height, width = shape
    y, x = height / mask_shape[0], width / mask_shape[1]
    return Box(
        max(0, int((top - margin) * y)),
        min(height, int((bottom + margin) * y) + 1),
        max(0, int((left - margin) * x)),
        min(width, int((right + margin) * x) + 1),
    )


def reduce_masks(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Reduce masks to at most 64 pixels a side. A pixel is set where any is, so that thin strokes stay connected.

    Args:
        masks: bool[..., H, W], at most 128 pixels a side.
    """
    height, width = masks.shape[-2:]
    if height <= MAX_SIDE and width <= MAX_SIDE:
        return masks
    if height % 2 or width % 2:
        # Twenty times as fast as np.pad.
        even = np.zeros((*masks.shape[:-2], height + height % 2, width + width % 2), np.bool_)
        even[..., :height, :width] = masks
        masks = even
    rows = masks[..., ::2, :] | masks[..., 1::2, :]
    reduced: NDArray[np.bool_] = rows[..., ::2] | rows[..., 1::2]
    return reduced


def is_enclosed(mask: NDArray[np.bool_]) -> bool:
    """Return whether at least three sides of a mask are set from end to end: a frame, which no digit is."""
    return sum(bool(side.all()) for side in (mask[0], mask[-1], mask[:, 0], mask[:, -1])) >= MIN_FRAME_SIDES


def remove(found: InkStrength, mask: NDArray[np.bool_], kept: NDArray[np.bool_]) -> InkStrength:
    """Return ink without the parts of its mask that are not kept, and without their soft edges."""
    removed = dilate(mask & ~kept) & ~kept
    factor = -(-max(found.strength.shape) // MAX_SIDE)
    height, width = found.strength.shape
    enlarged = removed.repeat(factor, axis=0).repeat(factor, axis=1)[:height, :width]
    return InkStrength(np.where(enlarged, np.float32(0), found.strength), found.clean)

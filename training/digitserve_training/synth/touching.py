"""Several digits in one shape: pairs that touch, and digits that touch parts of their neighbours.

``fit.pool`` uses them as images that show no single digit: they are what a wrong segmentation of a number cuts out. Does
not import TensorFlow.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digitserve.types import Gray, Ink
from digitserve.vision.framing import frame
from digitserve_training.synth.scans import crop

PAIR_SHARE = 0.5
"""Share of the images that show two whole digits; the others show one digit and parts of one or two neighbours."""

PART = (0.35, 0.75)
"""Smallest and largest part of a neighbour's width: with less, the digit in the middle could be meant."""

MAX_OVERLAP_PX = 2
"""With more, a 1 disappears in the side of a 0 or an 8."""

MIN_PART_PX = 4
"""Smallest part of a narrow neighbour."""

MIN_ASPECT = 0.4
"""Smallest ratio of width to height of the first digit: two upright ones side by side look like one with a thick pen."""

MARGIN_PX = 4

INK_LEVEL = 100
"""Grey level from which a pixel counts as ink when digits are moved together."""

SLACK_PX = 6
"""Room above and below for digits that are not on one line."""


def touching_digits(digits: Gray, number: int, seed: int) -> Gray:
    """Draw images of digits that touch, framed as the service frames images.

    Args:
        digits: uint8[N,28,28,1], light ink on dark; each is used any number of times.
        number: of images to draw.
        seed: seed of all random values.

    Returns:
        uint8[number,28,28,1], light ink on dark.
    """
    generator = np.random.default_rng(seed)
    inks = [crop(digit) for digit in digits[..., 0]]
    wide = [ink for ink in inks if ink.shape[1] >= MIN_ASPECT * len(ink)] or inks
    drawn = [_draw(wide, inks, generator) for _ in range(number)]
    return np.stack([frame(ink, Ink.LIGHT_ON_DARK).pixels for ink in drawn])[..., np.newaxis]


def _draw(wide: Sequence[Gray], inks: Sequence[Gray], generator: np.random.Generator) -> Gray:
    """Draw one image of one of ``wide`` and one or two of ``inks``: uint8[H,W], with a margin."""
    ink, left, right = (_choose(some, generator) for some in (wide, inks, inks))
    if generator.random() < PAIR_SHARE:
        return np.pad(_join(*((ink, right) if generator.random() < 0.5 else (left, ink)), generator), MARGIN_PX)
    sides = int(generator.integers(1, 4))
    if sides & 1:
        ink = _join(ink, right[:, : _part(right, generator)], generator)
    if sides & 2:
        ink = _join(left[:, -_part(left, generator) :], ink, generator)
    return np.pad(ink, MARGIN_PX)


def _choose(inks: Sequence[Gray], generator: np.random.Generator) -> Gray:
    """Choose one and change its height and width slightly."""
    ink = inks[int(generator.integers(len(inks)))]
    height, width = (max(3, round(length * generator.uniform(0.8, 1.2))) for length in ink.shape)
    return np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC))


def _part(ink: Gray, generator: np.random.Generator) -> int:
    """Return the number of columns of a part of a neighbour."""
    return max(MIN_PART_PX, int(ink.shape[1] * generator.uniform(*PART)))


def _join(left: Gray, right: Gray, generator: np.random.Generator) -> Gray:
    """Move two digits together at random heights until they touch or overlap."""
    height = max(len(left), len(right)) + int(generator.integers(0, SLACK_PX + 1))
    left, right = (_pad_to_height(ink, height, generator) for ink in (left, right))
    return join(left, right, int(generator.integers(0, MAX_OVERLAP_PX + 1)))


def _pad_to_height(ink: Gray, height: int, generator: np.random.Generator) -> Gray:
    top = int(generator.integers(0, height - len(ink) + 1))
    return np.pad(ink, ((top, height - top - len(ink)), (0, 0)))


def join(left: Gray, right: Gray, overlap_px: int) -> Gray:
    """Place two drawings of one height side by side, so close that their ink touches in some row.

    Args:
        left: uint8[H,W], light ink on dark.
        right: uint8[H,V].
        overlap_px: how many columns the ink overlaps in the row where it is closest; with 0 it touches.

    Returns:
        uint8[H,width]; the lighter pixel where both drawings have one. If no row has ink of both, the drawings
        themselves overlap.
    """
    start = left.shape[1] - overlap_px - free_columns(left >= INK_LEVEL, right >= INK_LEVEL)
    first, start = max(0, -start), max(0, start)
    joined = np.zeros((len(left), max(first + left.shape[1], start + right.shape[1])), np.uint8)
    joined[:, first : first + left.shape[1]] = left
    joined[:, start : start + right.shape[1]] = np.maximum(joined[:, start : start + right.shape[1]], right)
    return joined


def free_columns(left: NDArray[np.bool_], right: NDArray[np.bool_]) -> int:
    """Count the columns by which a drawing can be moved to the left until it touches the one beside it in some row.

    Args:
        left: bool[H,W], true for ink.
        right: bool[H,V], directly beside it.

    Returns:
        The number of columns; 0 if no row has ink of both.
    """
    rows = left.any(axis=1) & right.any(axis=1)
    free = left[rows, ::-1].argmax(axis=1) + right[rows].argmax(axis=1)
    return int(free.min()) if rows.any() else 0

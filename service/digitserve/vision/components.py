"""Connected figures of ink: which pixels hang together, and whether they are several figures or one.

Called by ``preprocess`` only, on the worker's thread. Ink whose shadow is whole along rows, columns and both diagonals is
taken for one figure: that needs one integer for each row, and passes most images. For the others the mask becomes one
Python integer, a bit for a pixel, so that growing a figure by a pixel in all eight directions is a dozen operations on
the whole image.

    mask ──▶ shadows whole? ──yes──▶ one figure
                    └ no ──▶ flood ──▶ figures, largest first ──▶ box of all but specks, several
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_MASS_RATIO = 0.12
"""A second figure has at least this share of the first's pixels: a thin 1 beside a thick 0 has 0.13."""

MIN_HEIGHT_RATIO = 0.55
"""Neither of two figures is lower than this share of the other's height: the loose bar of a 5 is much lower."""

MIN_LENGTH_RATIO = 0.5
"""The second figure's longest side against the first's."""

MIN_GAP_RATIO = 0.11
"""Clear space between two figures against the longest side of both: pieces that are closer are strokes of one digit.

These four were chosen on 40 000 MNIST digits, of which 0.05 % are then called several, and on pairs of digits with 3
pixels between them, of which 97 to 98 % are when squeezed into 28x28 together, and 99 % when framed.
"""

MIN_KEPT_RATIO = 0.04
"""Figures of fewer pixels, against the largest, are specks and do not widen the box of the ink."""

MAX_SIDE = 64
"""Largest mask, in pixels a side: a row is one unsigned integer of 64 bits."""


class Box(NamedTuple):
    """Part of a mask, half open.

    Attributes:
        top, bottom, left, right: in pixels of the mask.
    """

    top: int
    bottom: int
    left: int
    right: int

    @property
    def longest(self) -> int:
        """Longest side."""
        return max(self.bottom - self.top, self.right - self.left)


class Seen(NamedTuple):
    """What a mask shows.

    Attributes:
        box: around all figures but specks.
        several: some figure is a second one beside the first, not a stroke or a speck of it.
    """

    box: Box
    several: bool


class _Figure(NamedTuple):
    """One 8-connected set of pixels of a mask: the figure alone in the layout of ``_pack``, its pixels, its box."""

    bits: int
    num_pixels: int
    box: Box


def look(mask: NDArray[np.bool_]) -> Seen | None:
    """Find the figures of a mask.

    Pieces that interlock so that no line along a row, a column or a diagonal parts them may come as one figure.

    Args:
        mask: bool[H, W], at most 64 a side.

    Returns:
        None for an empty mask.
    """
    outline = _outline(mask)
    if outline is None:
        return None
    box, whole = outline
    if whole:
        return Seen(box, several=False)
    figures, stride = _find_figures(mask), _stride(mask)
    first = figures[0]
    kept = [figure.box for figure in figures if figure.num_pixels >= MIN_KEPT_RATIO * first.num_pixels]
    tops, bottoms, lefts, rights = zip(*kept, strict=True)
    several = any(_is_second(first, other, stride) for other in figures[1:])
    return Seen(Box(min(tops), max(bottoms), min(lefts), max(rights)), several)


def may_be_several(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which masks of a batch have a gap in some shadow: all the others are one figure.

    Args:
        masks: bool[N, H, W], where H + W is at most 64.

    Returns:
        bool[N].
    """
    rows = np.ascontiguousarray(_rows(masks).T)
    near, _ = _shears(masks.shape[1])
    shadows = np.empty((4, len(masks)), np.uint64)
    np.bitwise_or.reduce(rows[:, None] << near.T[..., None], axis=0, out=shadows[:3])
    np.bitwise_or.reduce((rows != 0) << near[1][:, None], axis=0, out=shadows[3])
    lowest = shadows & (~shadows + np.uint64(1))
    gap: NDArray[np.bool_] = np.logical_or.reduce(shadows & (shadows + lowest), axis=0)  # the carry clears a whole one
    return gap


def _outline(mask: NDArray[np.bool_]) -> tuple[Box, bool] | None:
    """Return the box of all that a mask holds, and whether the shadows along all four directions have no gap."""
    height, width = mask.shape
    rows = _rows(mask)
    inked = (rows != 0).tobytes()
    top, bottom = inked.find(1), inked.rfind(1) + 1
    if not bottom:
        return None
    near, far = _shears(height)
    down, right, left = np.bitwise_or.reduce(rows << near, axis=1).tolist()
    if height + width > MAX_SIDE:
        beyond_right, beyond_left = np.bitwise_or.reduce(rows >> far, axis=1).tolist()
        right |= beyond_right << MAX_SIDE
        left |= beyond_left << MAX_SIDE
    box = Box(top, bottom, (down & -down).bit_length() - 1, down.bit_length())
    return box, inked.find(0, top, bottom) < 0 and _is_run(down) and _is_run(right) and _is_run(left)


def _rows(masks: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Turn each row of masks bool[..., W] into an integer whose lowest bit is the first pixel: uint64[...]."""
    *outer, width = masks.shape
    if width < MAX_SIDE:
        padded = np.zeros((*outer, MAX_SIDE), np.bool_)
        padded[..., :width] = masks
        masks = padded
    return (
        np.packbits(masks, bitorder="little").view(np.uint64).reshape(outer)
    )  # all at once: by rows it is 20 times slower


@lru_cache(maxsize=MAX_SIDE)
def _shears(height: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """How far each row moves for its shadow along columns and both diagonals to fall straight down.

    Returns:
        Bits to the left, uint64[3, H]; and to the right uint64[2, H], for those that the diagonals push out of 64 bits.
    """
    down = np.arange(height, dtype=np.uint64)
    near = np.stack([0 * down, down, down[::-1]])
    return near, MAX_SIDE - near[1:]


def _find_figures(mask: NDArray[np.bool_]) -> list[_Figure]:
    """Split a mask into its 8-connected figures, the one of most pixels first."""
    rest, stride = _pack(mask), _stride(mask)
    figures = []
    while rest:
        bits = _flood(rest & -rest, rest, stride)
        figures.append(_measure(bits, stride))
        rest &= ~bits
    return sorted(figures, key=lambda figure: -figure.num_pixels)


def _is_second(first: _Figure, other: _Figure, stride: int) -> bool:
    lower, higher = sorted((first.box.bottom - first.box.top, other.box.bottom - other.box.top))
    if other.num_pixels < MIN_MASS_RATIO * first.num_pixels or lower < MIN_HEIGHT_RATIO * higher:
        return False
    if other.box.longest < MIN_LENGTH_RATIO * first.box.longest:
        return False
    grown = first.bits
    for _ in range(_gap(max(first.box.longest, other.box.longest))):
        grown = _grow(grown, stride)
    return not grown & other.bits


def _gap(longest: int) -> int:
    """Return the pixels that are clear between two figures, the longer one's longest side given."""
    return math.ceil(MIN_GAP_RATIO * longest)


def _stride(mask: NDArray[np.bool_]) -> int:
    """Bits from one row to the next: with so much between rows that a figure grown by a gap does not reach another."""
    height, width = mask.shape
    return int(width + 1 + _gap(max(height, width)))


def _pack(mask: NDArray[np.bool_]) -> int:
    """Turn a mask into an integer: the pixel (y, x) is the bit y * stride + x."""
    padded = np.zeros((mask.shape[0], _stride(mask)), np.bool_)
    padded[:, : mask.shape[1]] = mask
    return int.from_bytes(np.packbits(padded, bitorder="little").tobytes(), "little")


def _shadow(bits: int, height: int, stride: int) -> int:
    """Fold the rows onto each other, halving their number each time, into one row."""
    while height > 1:
        half = (height + 1) // 2
        bits = bits & ((1 << half * stride) - 1) | bits >> half * stride
        height = half
    return bits


def _is_run(shadow: int) -> bool:
    return not shadow & (shadow + (shadow & -shadow))  # the carry clears a single run of ones


def _grow(bits: int, stride: int) -> int:
    across = bits | bits << 1 | bits >> 1
    return across | across << stride | across >> stride


def _flood(seed: int, mask: int, stride: int) -> int:
    """Grow a seed within a mask until it is a whole figure."""
    while True:
        grown = _grow(seed, stride) & mask
        grown |= mask & ~(mask + grown)  # the carry of the addition runs along a row to the end of its run
        if grown == seed:
            return seed
        seed = grown


def _measure(bits: int, stride: int) -> _Figure:
    top = ((bits & -bits).bit_length() - 1) // stride
    bottom = (bits.bit_length() - 1) // stride + 1
    columns = _shadow(bits >> top * stride, bottom - top, stride)
    box = Box(top, bottom, (columns & -columns).bit_length() - 1, columns.bit_length())
    return _Figure(bits, bits.bit_count(), box)

"""Connected figures of ink: which pixels hang together, and whether they are several figures or one.

Called by ``preprocess`` only, on the worker's thread. A mask becomes one Python integer, a bit for a pixel, so that
growing a figure by a pixel in all eight directions is a dozen operations on the whole image. Most images are passed
without even that: ink whose shadow is whole along rows, columns and both diagonals is taken for one figure.

    mask ──▶ shadows whole? ──yes──▶ one figure
                    └ no ──▶ flood ──▶ figures, largest first ──▶ are_several
"""

import math
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Figure:
    """One 8-connected set of pixels of a mask.

    Attributes:
        bits: the figure alone, in the layout of ``_pack``.
        num_pixels: how many it has.
        top, bottom, left, right: its box, half open, in pixels of the mask.
    """

    bits: int
    num_pixels: int
    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        """Rows of the box."""
        return self.bottom - self.top

    @property
    def longest(self) -> int:
        """Longest side of the box."""
        return max(self.bottom - self.top, self.right - self.left)


def find_figures(mask: NDArray[np.bool_]) -> list[Figure]:
    """Split a mask into its 8-connected figures, the one of most pixels first.

    Pieces that interlock so that no line along a row, a column or a diagonal parts them may come as one figure.

    Args:
        mask: bool[H, W].

    Returns:
        Nothing for an empty mask.
    """
    rest, stride = _pack(mask), _stride(mask)
    if not rest:
        return []
    if _looks_whole(rest, mask.shape[0], stride):
        return [_measure(rest, stride)]
    figures = []
    while rest:
        bits = _flood(rest & -rest, rest, stride)
        figures.append(_measure(bits, stride))
        rest &= ~bits
    return sorted(figures, key=lambda figure: -figure.num_pixels)


def are_several(figures: list[Figure], mask: NDArray[np.bool_]) -> bool:
    """Say whether some figure is a second one beside the first, not a stroke or a speck of it.

    Args:
        figures: of ``mask``, the largest first.
        mask: bool[H, W].
    """
    return any(_is_second(figures[0], other, _stride(mask)) for other in figures[1:])


def may_be_several(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which masks of a batch have a gap in some shadow: all the others are one figure.

    Args:
        masks: bool[N, H, W], where H + W is at most 64.

    Returns:
        bool[N].
    """
    num, height, width = masks.shape
    packed = np.zeros((num, height, 8), np.uint8)
    packed[:, :, : -(-width // 8)] = np.packbits(masks, axis=2, bitorder="little")
    rows = packed.view(np.uint64)[..., 0]
    down = np.arange(height, dtype=np.uint64)
    shadows = np.stack(
        [
            np.bitwise_or.reduce(rows, axis=1),
            np.bitwise_or.reduce(rows << down, axis=1),
            np.bitwise_or.reduce(rows << down[::-1], axis=1),
            np.bitwise_or.reduce((rows != 0) * (np.uint64(1) << down), axis=1),
        ]
    )
    lowest = shadows & (~shadows + np.uint64(1))
    gap: NDArray[np.bool_] = (shadows & (shadows + lowest)).any(axis=0)  # the carry clears a shadow that is whole
    return gap


def _is_second(first: Figure, other: Figure, stride: int) -> bool:
    lower, higher = sorted((first.height, other.height))
    if other.num_pixels < MIN_MASS_RATIO * first.num_pixels or lower < MIN_HEIGHT_RATIO * higher:
        return False
    if other.longest < MIN_LENGTH_RATIO * first.longest:
        return False
    grown = first.bits
    for _ in range(math.ceil(MIN_GAP_RATIO * max(first.longest, other.longest))):
        grown = _grow(grown, stride)
    return not grown & other.bits


def _stride(mask: NDArray[np.bool_]) -> int:
    """Bits from one row to the next: wide enough for a diagonal's shadow, and for an empty column between rows."""
    return int(mask.shape[0] + mask.shape[1] + 1)


def _pack(mask: NDArray[np.bool_]) -> int:
    """Turn a mask into an integer: the pixel (y, x) is the bit y * stride + x."""
    padded = np.zeros((mask.shape[0], _stride(mask)), np.bool_)
    padded[:, : mask.shape[1]] = mask
    return int.from_bytes(np.packbits(padded, bitorder="little").tobytes(), "little")


def _looks_whole(bits: int, height: int, stride: int) -> bool:
    """Say whether the shadows along columns, both diagonals and rows have no gap."""
    return (
        _is_run(_shadow(bits, height, stride))
        and _is_run(_shadow(bits, height, stride - 1))  # row y moves y to the right
        and _is_run(_shadow(bits << height, height, stride + 1))  # row y moves y to the left
        and _has_all_rows(bits, stride)
    )


def _shadow(bits: int, height: int, stride: int) -> int:
    """Fold the rows onto each other, halving their number each time, into one row."""
    while height > 1:
        half = (height + 1) // 2
        bits = bits & ((1 << half * stride) - 1) | bits >> half * stride
        height = half
    return bits


def _is_run(shadow: int) -> bool:
    return not shadow & (shadow + (shadow & -shadow))  # the carry clears a single run of ones


def _has_all_rows(bits: int, stride: int) -> bool:
    """Say whether there is no empty row between the first and the last that has ink."""
    row = (1 << stride) - 1
    bits >>= ((bits & -bits).bit_length() - 1) // stride * stride
    while bits:
        if not bits & row:
            return False
        bits >>= stride
    return True


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


def _measure(bits: int, stride: int) -> Figure:
    top = ((bits & -bits).bit_length() - 1) // stride
    bottom = (bits.bit_length() - 1) // stride + 1
    columns = _shadow(bits >> top * stride, bottom - top, stride)
    left = (columns & -columns).bit_length() - 1
    return Figure(bits, bits.bit_count(), top, bottom, left, columns.bit_length())

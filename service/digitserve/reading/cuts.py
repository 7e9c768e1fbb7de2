"""Cuts through ink that may be several touching digits.

    piece ──▶ slanted lines ──bent to the cheapest way through the ink──▶ paths ──▶ the cheapest that differ

``candidates`` calls it for each doubtful piece on a worker's thread; no state is kept. Digits lean and overlap, so a cut is a
path from the top to the bottom that follows a slanted line at a small distance. Valleys of the upper and lower contour,
ligatures and gaps between overhanging strokes are where little ink is in the way. Where two strokes merge into one thick one,
no way is cheap, so paths are chosen to be everywhere, the cheapest of each neighbourhood first.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.types import FloatImage

SLANTS = (-0.45, -0.2, 0.0, 0.2, 0.4, 0.65)
"""Columns to the right per row upwards; most writers lean to the right."""

STEP = 0.075
"""Distance of lines of one slant, as a share of the height of digits: half a pen's width of MNIST."""

MARGIN = 0.1
"""Distance of the first line from the side, likewise: half the width of the narrowest digit."""

REACH = 0.11
"""How far a path may leave its line, likewise."""

MOVE_COST = np.float32(0.1)
"""Cost of one pixel to the side, in pixels of full ink: straight cuts leave natural strokes."""

DISTANCE_COST = np.float32(0.02)
"""Cost of each pixel away from the line."""

MIN_PART_HEIGHT = 0.4
"""Height of each side of a cut, as a share of the height of digits: a flat 2 or 0 of MNIST has half."""

MIN_PART_AREA = 0.1
"""Ink of each side, as a share of the piece's ink: a thin 1 beside a thick 0."""

_INK = np.float32(0.35)
_FAR = np.float32(1e6)


class Cuts(NamedTuple):
    """Paths from the top to the bottom of a piece, from left to right.

    Attributes:
        paths: int32[K, H], column of each row; the pixel itself belongs to both sides.
        costs: float32[K], pixels of full ink on the path.
        ranks: int64[K], 0 for the path that was chosen first.
    """

    paths: NDArray[np.int32]
    costs: NDArray[np.float32]
    ranks: NDArray[np.int64]


def find_cuts(strength: FloatImage, height: float, max_cuts: int, min_distance: float) -> Cuts:
    """Find where to cut a piece.

    Args:
        strength: float32[H, W], the piece's own ink.
        height: of the digits of the line, in pixels.
        max_cuts: how many.
        min_distance: mean distance of two paths, as a share of ``height``.
    """
    lines = _lines(strength.shape, height)
    if not len(lines):
        return Cuts(np.zeros((0, len(strength)), np.int32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    paths = _bend(strength, lines, max(1, round(REACH * height)))
    np.clip(paths, 0, strength.shape[1] - 1, out=paths)
    paths = paths[_leave_digits(strength, paths, height)]
    costs = strength[np.arange(len(strength)), paths].sum(axis=1)
    chosen = _choose(paths, costs, max_cuts, min_distance * height)
    order = np.argsort(paths[chosen].mean(axis=1), kind="stable")
    chosen = chosen[order]
    return Cuts(paths[chosen], costs[chosen], order)


def _lines(shape: tuple[int, ...], height: float) -> NDArray[np.int32]:
    """Return the columns of straight slanted lines: int32[L, H]."""
    rows, columns = shape
    middles = np.arange(MARGIN * height, columns - MARGIN * height, STEP * height)
    slants = np.array(SLANTS)[:, None, None]
    lines = middles[None, :, None] + slants * ((rows - 1) / 2 - np.arange(rows))
    rounded: NDArray[np.int32] = np.rint(lines).astype(np.int32).reshape(-1, rows)
    return rounded


def _bend(strength: FloatImage, lines: NDArray[np.int32], reach: int) -> NDArray[np.int32]:
    """Return the cheapest path near each line, by dynamic programming over the rows of all of them: int32[L, H]."""
    rows, width = strength.shape
    offsets = np.arange(-reach, reach + 1, dtype=np.int32)
    around = lines.T[..., None] + offsets
    inside = (around >= 0) & (around < width)
    costs = np.where(inside, strength[np.arange(rows)[:, None, None], around.clip(0, width - 1)], np.float32(0))
    costs += DISTANCE_COST * np.abs(offsets)
    moves = np.empty((rows, len(lines), len(offsets)), np.int8)
    padded = np.full((len(lines), len(offsets) + 2), _FAR, np.float32)
    total = costs[0]
    for row in range(1, rows):
        padded[:, 1:-1] = total
        before, after = padded[:, :-2] + MOVE_COST, padded[:, 2:] + MOVE_COST
        best = np.minimum(total, np.minimum(before, after))
        moves[row] = np.where(best == total, 0, np.where(best == before, -1, 1))
        total = best + costs[row]
    at = total.argmin(axis=1)
    every = np.arange(len(lines))
    paths = np.empty_like(lines)
    for row in range(rows - 1, -1, -1):
        paths[:, row] = lines[:, row] + offsets[at]
        if row:
            at = at + moves[row, every, at]
    return paths


def _leave_digits(strength: FloatImage, paths: NDArray[np.int32], height: float) -> NDArray[np.bool_]:
    """Return which paths leave on both sides what may be a digit: bool[L]."""
    ink = strength > _INK
    rows = np.arange(len(ink))
    sums = ink.cumsum(axis=1)
    total = int(sums[:, -1].sum())
    left = sums[rows, paths]
    right = sums[:, -1] - left + ink[rows, paths]
    enough = MIN_PART_AREA * total
    fits: NDArray[np.bool_] = (left.sum(axis=1) > enough) & (right.sum(axis=1) > enough)
    for part in (left > 0, right > 0):
        extent = len(rows) - part.argmax(axis=1) - part[:, ::-1].argmax(axis=1)
        fits &= extent >= MIN_PART_HEIGHT * height
    return fits


def _choose(
    paths: NDArray[np.int32], costs: NDArray[np.float32], max_cuts: int, min_distance: float
) -> NDArray[np.int64]:
    """Choose the cheapest paths, none near a cheaper one; cheapest first: indices int64[K]."""
    order = np.argsort(costs, kind="stable")
    sorted_paths = paths[order].astype(np.float32)
    free = np.ones(len(order), np.bool_)
    chosen: list[int] = []
    while free.any() and len(chosen) < max_cuts:
        first = int(free.argmax())
        chosen.append(first)
        free &= np.abs(sorted_paths - sorted_paths[first]).mean(axis=1) > min_distance
        free[first] = False
    return order[chosen]

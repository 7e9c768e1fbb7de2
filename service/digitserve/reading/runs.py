"""Connected components of large masks: runs of pixels along rows, joined where they touch.

``pieces`` and ``rulings`` call it on a worker's thread; no state is kept. Time grows with the number of runs, not of pixels, and
``MAX_RUNS`` bounds it: all loops are over array operations, of which a mask needs at most about a dozen.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.errors import InvalidRequest
from digitserve.reading.pieces import Mask

MAX_RUNS = 100_000
"""Runs above which an image is refused: a page of 400 digits on two megapixels has about 30 000; noise and checks have more."""

Indices = NDArray[np.intp]


class Runs(NamedTuple):
    """Runs of pixels along the rows of a mask, in the order of reading.

    Attributes:
        row: intp[N]; row of each run.
        start: intp[N]; first column.
        stop: intp[N]; column after the last one.
    """

    row: Indices
    start: Indices
    stop: Indices

    @property
    def length(self) -> Indices:
        """Number of pixels of each run."""
        return self.stop - self.start

    def select(self, chosen: NDArray[np.bool_] | Indices) -> "Runs":
        """Return some of the runs; indices must ascend."""
        return Runs(self.row[chosen], self.start[chosen], self.stop[chosen])


def find_runs(mask: Mask) -> Runs:
    """Find the runs along the rows of a mask bool[H, W].

    Raises:
        InvalidRequest: more than ``MAX_RUNS``.
    """
    height, width = mask.shape
    # One column of background, so that no run continues in the next row.
    padded = np.zeros((height, width + 1), np.bool_)
    padded[:, :width] = mask
    flat = padded.reshape(-1)
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    if flat[0]:
        changes = np.concatenate([[0], changes])
    if len(changes) > 2 * MAX_RUNS:
        raise InvalidRequest(
            f"the image has {len(changes) // 2} separate strokes of ink along its rows, more than {MAX_RUNS}: it looks like "
            "noise or texture, not like numbers; send a sharper or smaller image, or a part of the page"
        )
    row, start = np.divmod(changes[::2], width + 1)
    return Runs(row, start, changes[1::2] - row * (width + 1))


def find_pixels(runs: Runs, rows: Indices, columns: Indices) -> Indices:
    """Return the indices of the runs that hold any of these pixels; pixels outside of all runs are left out."""
    stride = int(max(runs.stop.max(initial=0), columns.max(initial=0))) + 1
    positions = rows * stride + columns
    found = np.searchsorted(runs.row * stride + runs.start, positions, "right") - 1
    inside = (found >= 0) & (positions < (runs.row * stride + runs.stop)[found]) if len(runs.row) else found >= 0
    return found[inside]


def label_runs(runs: Runs, *, gap: int = 0) -> tuple[Indices, int]:
    """Find the 8-connected components of runs.

    Args:
        runs: in the order of reading.
        gap: columns by which runs of adjacent rows may miss each other; 0 for pixels that touch at a corner.

    Returns:
        intp[N], the component of each run, and their number; components are numbered by their first run.
    """
    count = len(runs.row)
    if not count:
        return np.zeros(0, np.intp), 0
    above, below = _touching(runs, gap)
    parents = np.arange(count)
    # At first each run hangs below the first one that it touches above; most pairs are in one tree then.
    parents[below[::-1]] = above[::-1]
    parents = _compress(parents)
    while len(above):
        first, second = parents[above], parents[below]
        different = np.flatnonzero(first != second)
        if not len(different):
            break
        above, below, first, second = above[different], below[different], first[different], second[different]
        # Each root is hooked to the smallest root beside it, so at least half of the roots that have neighbours disappear.
        np.minimum.at(parents, np.maximum(first, second), np.minimum(first, second))
        parents = _compress(parents)
    roots = parents == np.arange(count)
    return (np.cumsum(roots) - 1)[parents], int(np.count_nonzero(roots))


def _compress(parents: Indices) -> Indices:
    """Return the root of each run."""
    while True:
        grandparents = parents[parents]
        if not (grandparents != parents).any():
            return parents
        parents = grandparents


def _touching(runs: Runs, gap: int) -> tuple[Indices, Indices]:
    """Return all pairs of runs in adjacent rows that touch: indices of the upper and of the lower ones."""
    # Positions in reading order; the margin keeps runs of different rows apart.
    stride = int(runs.stop.max()) + 2 + 2 * gap
    starts, stops = runs.row * stride + runs.start, runs.row * stride + runs.stop
    first = np.searchsorted(stops, starts + stride - gap, "left")
    last = np.searchsorted(starts, stops + stride + gap, "right")
    numbers = np.maximum(last - first, 0)
    above = np.repeat(np.arange(len(starts)), numbers)
    offsets = np.arange(len(above)) - np.repeat(np.cumsum(numbers) - numbers, numbers)
    return above, np.repeat(first, numbers) + offsets

"""Components of a mask with their boxes and areas, and the pieces made of some of them.

``layout`` calls it on a worker's thread; no state is kept. Only the components that may be digits become pieces, so that thousands
of specks cost a few array operations.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.reading.pieces import Mask, Piece
from digitserve.reading.runs import Indices, Runs, find_runs, label_runs
from digitserve.types import Box

MIN_HEIGHT = 8
"""Height, in working pixels, from which ink counts for the typical height of digits."""

MAX_ASPECT = 2.5
"""Width against height up to which ink counts for it: rules and hyphens do not."""

MIN_LOW_SHARE = 0.3
"""Share of the sum of heights that ink of at most half of the page's height has, if the higher ink is not the digits."""


class Components(NamedTuple):
    """The 8-connected components of a mask.

    Attributes:
        runs: of the mask, sorted by component.
        first: intp[N + 1]; first run of each component, and the number of runs.
        boxes: intp[N, 4]; top, bottom, left, right of each component, as in ``Box``.
        areas: intp[N]; pixels of each.
    """

    runs: Runs
    first: Indices
    boxes: Indices
    areas: Indices

    @property
    def heights(self) -> Indices:
        """Height of each box."""
        return self.boxes[:, 1] - self.boxes[:, 0]

    @property
    def widths(self) -> Indices:
        """Width of each box."""
        return self.boxes[:, 3] - self.boxes[:, 2]

    def digit_height(self, page_height: int) -> float:
        """Return the typical height of digits: the median of likely ones, weighted by their height.

        So many specks do not outweigh a few digits.
        """
        heights, widths = self.heights, self.widths
        likely = (heights >= MIN_HEIGHT) & (widths <= MAX_ASPECT * heights)
        low = likely & (heights <= page_height / 2)
        # Frames are higher than half of the page, but so may be the digits of a narrow field, beside a few specks.
        if MIN_LOW_SHARE * heights[likely].sum() <= heights[low].sum() and low.any():
            likely = low
        chosen = np.sort(heights[likely])
        if not len(chosen):
            return float(max(heights.max(initial=0), MIN_HEIGHT))
        weights = np.cumsum(chosen)
        return float(chosen[np.searchsorted(weights, weights[-1] / 2)])

    def box(self, index: int) -> Box:
        """Return the box of a component."""
        return Box(*self.boxes[index].tolist())

    def runs_of(self, index: int, box: Box) -> Runs:
        """Return the runs of a component within its box."""
        part = slice(self.first[index], self.first[index + 1])
        runs = self.runs
        return Runs(runs.row[part] - box.top, runs.start[part] - box.left, runs.stop[part] - box.left)


def find_components(mask: Mask) -> Components:
    """Find the components of a mask bool[H, W].

    Raises:
        InvalidRequest: too many runs, see ``find_runs``.
    """
    runs = find_runs(mask)
    labels, count = label_runs(runs)
    order = np.argsort(labels, kind="stable")
    runs = runs.select(order)
    first = np.searchsorted(labels[order], np.arange(count + 1))
    if not count:
        return Components(runs, first, np.zeros((0, 4), np.intp), np.zeros(0, np.intp))
    starts = first[:-1]
    boxes = np.stack(
        [
            np.minimum.reduceat(runs.row, starts),
            np.maximum.reduceat(runs.row, starts) + 1,
            np.minimum.reduceat(runs.start, starts),
            np.maximum.reduceat(runs.stop, starts),
        ],
        axis=1,
    )
    return Components(runs, first, boxes, np.add.reduceat(runs.length, starts))


def to_pieces(components: Components, chosen: NDArray[np.intp], mask: Mask) -> list[Piece]:
    """Return some components as pieces.

    Args:
        components: of ``find_components``.
        chosen: intp[M]; indices of components.
        mask: bool[H, W]; the mask that has these components.
    """
    pieces = []
    boxes, areas = components.boxes[chosen].tolist(), components.areas[chosen].tolist()
    for index, sides, area in zip(chosen.tolist(), boxes, areas, strict=True):
        box = Box(*sides)
        part = mask[box.top : box.bottom, box.left : box.right].copy()
        if np.count_nonzero(part) != area:
            part = fill_runs(part.shape, components.runs_of(index, box))
        pieces.append(Piece(box, part, area))
    return pieces


def fill_runs(shape: tuple[int, ...], runs: Runs) -> Mask:
    """Return a mask of this shape that has these runs."""
    mask = np.zeros(shape, np.bool_)
    mask.reshape(-1)[run_pixels(runs, shape[1])] = True
    return mask


def run_pixels(runs: Runs, width: int) -> Indices:
    """Return the positions of the pixels of runs in the flattened mask of this width."""
    lengths = runs.length
    offsets = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return np.repeat(runs.row * width + runs.start, lengths) + offsets

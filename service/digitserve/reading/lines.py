"""Lines of numbers: which pieces stand on one line, in reading order, on pages that are rotated by up to about 7 degrees.

    high pieces ──slope of the page──▶ lines ──fitted each──▶ small marks attached to the nearest line

``layout`` calls it on a worker's thread; no state is kept. Digits of uneven height share the height of their middles, so lines are
found from the middles of high pieces; points, commas and hyphens are attached afterwards.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.reading.pieces import Piece, TextLine

Places = NDArray[np.float64]

MIN_DIGIT_SHARE = 0.5
"""Height of a piece, as a share of the typical height of digits, from which it may be a digit by itself."""

MAX_SLOPE, SLOPE_STEP = 0.14, 0.01
"""Slopes of the page that are tried, in rows per column: up to 8 degrees, in steps of about half a degree."""

BIN_SHARE = 0.1
"""Height of the bins that count middles, as a share of the height of digits."""

MAX_OFFSET = 0.55
"""Distance of a digit's middle from its line, as a share of the height of digits."""

ABOVE, BELOW, BESIDE = 0.55, 0.75, 1.2
"""How far from a line's middle, and from its nearest digit, the middle of a small mark may be, as shares of the line's height."""

FLATTER_IS_LIKELIER = 1.0
"""Share by which the score of a slope is reduced per unit of slope, so that a column of single digits counts as level."""


def group_lines(pieces: Sequence[Piece], height: float) -> tuple[list[TextLine], list[Piece]]:
    """Group pieces into lines.

    Args:
        pieces: digits, touching digits and small marks.
        height: typical height of digits.

    Returns:
        Lines from top to bottom, pieces from left to right; and the small marks that are near no line.
    """
    boxes = np.array([tuple(piece.box) for piece in pieces], np.float64).reshape(-1, 4)
    heights = boxes[:, 1] - boxes[:, 0]
    high, small = (
        np.flatnonzero(heights >= MIN_DIGIT_SHARE * height),
        np.flatnonzero(heights < MIN_DIGIT_SHARE * height),
    )
    marks = [pieces[index] for index in small.tolist()]
    if not len(high):
        return [], marks
    x, y = (boxes[:, 2] + boxes[:, 3]) / 2, (boxes[:, 0] + boxes[:, 1]) / 2
    middles = _Middles(x[high], y[high], heights[high])
    slope = _page_slope(middles.x, middles.y, height)
    lines = [_fit(middles, line, slope, height) for line in _cluster(middles.x, middles.y, slope, height)]
    if len(lines) > 1:
        lines = _refit(lines, middles, height)
    members = [[pieces[index] for index in high[line.members].tolist()] for line in lines]
    left_over = []
    offsets = _offsets(lines, x[small], y[small]) / np.array([line.height for line in lines])[:, None]
    for piece, near in zip(marks, offsets.T.tolist(), strict=True):
        reached = [
            (abs(offset), index)
            for index, offset in enumerate(near)
            if -ABOVE <= offset <= BELOW and _gap(piece, members[index]) <= BESIDE * lines[index].height
        ]
        if reached:
            members[min(reached)[1]].append(piece)
        else:
            left_over.append(piece)
    middle = float(x[high].mean())
    order = sorted(range(len(lines)), key=lambda index: lines[index].level + lines[index].slope * middle)
    return [
        TextLine(sorted(members[index], key=lambda piece: piece.box.left), lines[index].height, lines[index].slope)
        for index in order
    ], left_over


class _Middles(NamedTuple):
    """Middles and heights of high pieces, float64[N] each."""

    x: Places
    y: Places
    heights: Places


class _Fit(NamedTuple):
    """A straight line through the middles of pieces.

    Attributes:
        members: intp[M]; indices of its pieces.
        slope: rows per column.
        level: row of the line at column 0.
        height: typical height of its digits.
    """

    members: NDArray[np.intp]
    slope: float
    level: float
    height: float


def _fit(middles: _Middles, members: NDArray[np.intp], slope: float, page_height: float) -> _Fit:
    x, y = middles.x[members], middles.y[members]
    # A line of few digits keeps the page's slope: their heights differ by more than a slope would show.
    from_middle = x - x.mean()
    weight = float(from_middle.dot(from_middle)) + (6 * page_height) ** 2
    slope += float(from_middle.dot(y - slope * x)) / weight
    return _Fit(members, slope, _median(y - slope * x), _median(middles.heights[members]))


def _median(values: Places) -> float:
    """Return the median; ``np.median`` takes five times as long for a few values."""
    ordered = np.sort(values)
    return float(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _offsets(lines: Sequence[_Fit], x: Places, y: Places) -> Places:
    """Return how far below each line each middle is, in pixels: float64[lines, N]."""
    fits = np.array([(line.slope, line.level) for line in lines])
    offsets: Places = y - fits[:, 1:] - fits[:, :1] * x
    return offsets


def _gap(piece: Piece, others: Sequence[Piece]) -> int:
    """Return the columns between a mark and the nearest digit of a line."""
    box = piece.box
    return min(max(box.left - other.box.right, other.box.left - box.right, 0) for other in others)


def _page_slope(x: Places, y: Places, height: float) -> float:
    """Return the slope at which the middles of pieces gather on the fewest rows."""
    steps = round(MAX_SLOPE / SLOPE_STEP)
    slopes = np.array(sorted(range(-steps, steps + 1), key=abs)) * SLOPE_STEP
    rows = (y - slopes[:, None] * x) / (BIN_SHARE * height)
    bins = (rows - rows.min(axis=1, keepdims=True)).astype(np.intp)
    # One histogram of all slopes; a bin is empty between two of them.
    number = int(bins.max()) + 2
    counts = np.bincount((bins + np.arange(len(slopes))[:, None] * number).reshape(-1), minlength=len(slopes) * number)
    counts = counts.reshape(len(slopes), number)
    # Each bin counts with half of both of its neighbours.
    scores = (counts * counts).sum(axis=1) + (counts[:, 1:] * counts[:, :-1]).sum(axis=1)
    return float(slopes[np.argmax(scores * (1 - FLATTER_IS_LIKELIER * np.abs(slopes)))])


def _cluster(x: Places, y: Places, slope: float, height: float) -> list[NDArray[np.intp]]:
    """Return the indices of the pieces of each line: rows of middles with no gap between them."""
    rows = y - slope * x
    order = np.argsort(rows)
    starts: list[int] = []
    total = 0.0
    for place, row in enumerate(rows[order].tolist()):
        if not starts or row - total / (place - starts[-1]) > MAX_OFFSET * height:
            starts.append(place)
            total = 0.0
        total += row
    return np.split(order, starts[1:])


def _refit(lines: Sequence[_Fit], middles: _Middles, height: float) -> list[_Fit]:
    """Assign each piece to the line that is nearest to its middle, and fit the lines again."""
    distances = np.abs(_offsets(lines, middles.x, middles.y)) / np.array([line.height for line in lines])[:, None]
    nearest = distances.argmin(axis=0)
    members = [np.flatnonzero(nearest == index) for index in range(len(lines))]
    return [_fit(middles, part, line.slope, height) for line, part in zip(lines, members, strict=True) if len(part)]

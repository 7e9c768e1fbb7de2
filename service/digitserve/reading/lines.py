"""Lines of numbers: which pieces stand on one line, in reading order, on pages that are rotated by up to about 7 degrees.

    high pieces ──slope of the page──▶ lines ──fitted each──▶ small marks attached to the nearest line

``layout`` calls it on a worker's thread; no state is kept. Digits of uneven height share the height of their middles, so lines are
found from the middles of high pieces; points, commas and hyphens are attached afterwards.
"""

from collections.abc import Sequence

import numpy as np

from digitserve.reading.pieces import Piece, TextLine
from digitserve.types import FloatImage

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
    high = [piece for piece in pieces if piece.box.height >= MIN_DIGIT_SHARE * height]
    small = [piece for piece in pieces if piece.box.height < MIN_DIGIT_SHARE * height]
    if not high:
        return [], small
    x, y = _middles(high)
    slope = _page_slope(x, y, height)
    members = _cluster(x, y, slope, height)
    lines = [_Fit([high[index] for index in line], slope, height) for line in members]
    lines = _refit([line for line in lines if line.pieces], high, height)
    left_over = []
    for piece in small:
        nearest = min(lines, key=lambda line: line.distance(piece))
        if nearest.distance(piece) < np.inf:
            nearest.marks.append(piece)
        else:
            left_over.append(piece)
    middle = float(np.mean(x))
    lines.sort(key=lambda line: line.level + line.slope * middle)
    return [line.to_line() for line in lines], left_over


class _Fit:
    """A straight line through the middles of its pieces.

    Attributes:
        pieces: high ones.
        marks: small ones.
        slope: rows per column.
        level: row of the line at column 0.
        height: typical height of its digits.
    """

    def __init__(self, pieces: list[Piece], slope: float, page_height: float) -> None:
        self.pieces = pieces
        self.marks: list[Piece] = []
        x, y = _middles(pieces)
        self.height = float(np.median([piece.box.height for piece in pieces]))
        # A line of few digits keeps the page's slope: their heights differ by more than a slope would show.
        spread = float(((x - x.mean()) ** 2).sum())
        weight = spread + (6 * page_height) ** 2
        residual = y - y.mean() - slope * (x - x.mean())
        self.slope = slope + float(((x - x.mean()) * residual).sum()) / weight
        self.level = float(np.median(y - self.slope * x))

    def offset(self, piece: Piece) -> float:
        """Return how far below the line a piece's middle is, in line heights."""
        box = piece.box
        row = self.level + self.slope * (box.left + box.right) / 2
        return ((box.top + box.bottom) / 2 - row) / self.height

    def distance(self, piece: Piece) -> float:
        """Return how far from the line a small mark is; infinite if it does not belong to it."""
        offset = self.offset(piece)
        if not -ABOVE <= offset <= BELOW:
            return float("inf")
        gap = min(max(piece.box.left - other.box.right, other.box.left - piece.box.right, 0) for other in self.pieces)
        return abs(offset) if gap <= BESIDE * self.height else float("inf")

    def to_line(self) -> TextLine:
        """Return the line."""
        pieces = sorted(self.pieces + self.marks, key=lambda piece: piece.box.left)
        return TextLine(pieces, self.height, self.slope)


def _middles(pieces: Sequence[Piece]) -> tuple[FloatImage, FloatImage]:
    boxes = np.array([piece.box for piece in pieces], np.float32).reshape(-1, 4)
    half = np.float32(0.5)
    return (boxes[:, 2] + boxes[:, 3]) * half, (boxes[:, 0] + boxes[:, 1]) * half


def _page_slope(x: FloatImage, y: FloatImage, height: float) -> float:
    """Return the slope at which the middles of pieces gather on the fewest rows."""
    best, best_score = 0.0, -1.0
    steps = round(MAX_SLOPE / SLOPE_STEP)
    for slope in sorted((step * SLOPE_STEP for step in range(-steps, steps + 1)), key=abs):
        rows = (y - slope * x) / (BIN_SHARE * height)
        counts = np.bincount((rows - rows.min()).astype(np.intp) + 2, minlength=5).astype(np.float64)
        smooth = np.convolve(counts, [0.5, 1, 0.5], "same")
        score = float((counts * smooth).sum()) * (1 - FLATTER_IS_LIKELIER * abs(slope))
        if score > best_score:
            best, best_score = slope, score
    return best


def _cluster(x: FloatImage, y: FloatImage, slope: float, height: float) -> list[list[int]]:
    """Return the indices of pieces of each line: rows of middles with no gap between them."""
    rows = y - slope * x
    lines: list[list[int]] = []
    for index in np.argsort(rows).tolist():
        if lines and rows[index] - float(np.mean(rows[lines[-1]])) <= MAX_OFFSET * height:
            lines[-1].append(index)
        else:
            lines.append([index])
    return lines


def _refit(lines: list[_Fit], high: Sequence[Piece], height: float) -> list[_Fit]:
    """Assign each piece to the line that is nearest to its middle, and fit the lines again."""
    members: list[list[Piece]] = [[] for _ in lines]
    for piece in high:
        members[min(range(len(lines)), key=lambda index: abs(lines[index].offset(piece)))].append(piece)
    return [_Fit(pieces, line.slope, height) for line, pieces in zip(lines, members, strict=True) if pieces]

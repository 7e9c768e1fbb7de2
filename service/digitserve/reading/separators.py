"""Points, commas, slashes and hyphens: which separator a piece may be, from its geometry.

``reader`` calls it on a worker's thread; no state is kept. The network knows digits only, so separators are recognised by size, by
position against the baseline, and by slant. A slash and a leaning 1 can look the same: then both stay possible, and the
pattern decides. All lengths are shares of the height of the line's digits.
"""

import math
from collections.abc import Sequence

import numpy as np

from digitserve.reading.pieces import Piece, TextLine
from digitserve.types import Box

DIGIT_HEIGHT = 0.6
"""Height of a piece from which it shows where the line's digits stand."""

MAX_POINT = 0.32
"""Longest side of a point."""

MIN_POINT = 0.12
"""Longest side of the smallest point; specks are smaller."""

MAX_MARK = 0.6
"""Longest side of a comma, and height of the highest mark that is no slash."""

MIN_SLASH = 0.8
"""Height of the lowest slash."""

SURE, LIKELY = 0.95, 0.8
"""Probability of a mark that only a separator looks like; and of one that a stroke of a digit looks like too."""

RARE = 0.01
"""Probability that a straight leaning stroke is a slash, if it is no higher than a digit: one in 100 ones leans as much."""


class Baseline:
    """Where the digits of a line stand; lives as long as its line.

    Attributes:
        height: of digits, in working pixels.
    """

    def __init__(self, line: TextLine) -> None:
        self.height = max(line.height, 1.0)
        self._slope = line.slope
        high = [piece.box for piece in line.pieces if piece.box.height >= DIGIT_HEIGHT * self.height]
        boxes = high or [piece.box for piece in line.pieces]
        self._offset = float(np.median([box.bottom - self._slope * _center(box) for box in boxes])) if boxes else 0.0

    def below(self, box: Box, row: float) -> float:
        """Return how far a row is below the baseline at the columns of a box, against the height of digits."""
        return (row - self._offset - self._slope * _center(box)) / self.height


def _center(box: Box) -> float:
    return (box.left + box.right) / 2


def is_below_digit(box: Box, others: Sequence[Box], baseline: Baseline) -> bool:
    """Return whether a mark shares columns with another, high one, as a stroke of a digit does."""
    height = MIN_SLASH * baseline.height
    return any(
        min(box.right, other.right) - max(box.left, other.left) > (box.right - box.left) / 2
        for other in others
        if other.height >= height and other != box
    )


def separators(piece: Piece, baseline: Baseline) -> Sequence[tuple[str, float]]:
    """Return the separators that a piece may be, with their probabilities; their sum is at most 1."""
    box = piece.box
    height, width = box.height / baseline.height, box.width / baseline.height
    if height >= MIN_SLASH:
        probability = _slash(piece, height)
        return [("/", probability)] if probability else ()
    if height > MAX_MARK or max(height, width) < MIN_POINT:
        return ()
    top, bottom = baseline.below(box, box.top), baseline.below(box, box.bottom)
    middle = (top + bottom) / 2
    if -0.8 <= middle <= -0.2 and width >= 1.4 * height and 0.15 <= width <= 1.1 and height <= 0.35:  # noqa: PLR2004
        return [("-", SURE if width >= 2 * height else LIKELY)]
    if max(height, width) <= MAX_POINT and -0.3 <= middle <= 0.25:  # noqa: PLR2004
        longer = height >= 1.6 * width
        return [(",", LIKELY), (".", 1 - LIKELY)] if longer and bottom > 0.05 else [(".", SURE), (",", 1 - SURE)]  # noqa: PLR2004
    if top >= -0.4 and bottom >= 0.05 and height >= 0.8 * width and width <= MAX_POINT + 0.1:  # noqa: PLR2004
        return [(",", LIKELY), (".", 0.05)]
    return ()


def _slash(piece: Piece, height: float) -> float:
    """Return the probability that a high piece is a slash: one straight stroke that leans to the right."""
    rows, columns = np.nonzero(piece.mask)
    if piece.mask.shape[1] > 1.2 * piece.mask.shape[0] or len(rows) < 3:  # noqa: PLR2004
        return 0.0
    y, x = rows - rows.mean(), columns - columns.mean()
    lean = -float(x.dot(y)) / max(float(y.dot(y)), 1.0)
    off = float(np.sqrt(np.mean((x + lean * y) ** 2))) / piece.mask.shape[0]
    thickness = piece.area / math.hypot(*piece.mask.shape) / piece.mask.shape[0]
    if lean < 0.25 or off > 0.35 * thickness + 0.02 or thickness > 0.25:  # noqa: PLR2004
        return 0.0
    higher = 12 * (height - 1.25) + 6 * (lean - 0.45)
    return max(RARE, 1 / (1 + math.exp(-max(-30.0, min(higher, 30.0)))))

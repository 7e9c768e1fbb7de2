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

MIN_SLASH, MIN_LEAN = 0.8, 0.2
"""Height of the lowest slash, and columns that it leans per row."""

MIN_CORNERS = 0.45
"""Width, against its own height, from which a straight stroke that leans to the right leaves the other two corners free."""

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


def find_separators(pieces: Sequence[Piece], baseline: Baseline) -> list[tuple[tuple[str, float], ...]]:
    """Find for each piece of a line what separators it may be, with their probabilities.

    A mark that shares columns with another, high one is a stroke of a digit.
    """
    min_height = MIN_SLASH * baseline.height
    high = [piece.box for piece in pieces if piece.box.height >= min_height]
    lefts, rights = np.array([box.left for box in high]), np.array([box.right for box in high])
    found = []
    for piece in pieces:
        box, marks = piece.box, separators(piece, baseline)
        if marks:
            shared = np.minimum(rights, box.right) - np.maximum(lefts, box.left)
            if np.count_nonzero(2 * shared > box.width) > (box.height >= min_height):
                marks = ()
        found.append(tuple(marks))
    return found


def separators(piece: Piece, baseline: Baseline) -> Sequence[tuple[str, float]]:
    """Return the separators that a piece may be, with their probabilities; their sum is at most 1."""
    box = piece.box
    height, width = box.height / baseline.height, box.width / baseline.height
    if height >= MIN_SLASH:
        probability = _slash(piece, height, baseline.below(box, box.bottom))
        return [("/", probability)] if probability else ()
    if height > MAX_MARK or max(height, width) < MIN_POINT:
        return ()
    top, bottom = baseline.below(box, box.top), baseline.below(box, box.bottom)
    middle = (top + bottom) / 2
    if -0.8 <= middle <= -0.2 and width >= 1.4 * height and 0.15 <= width <= 1.1 and height <= 0.35:  # noqa: PLR2004
        return [("-", SURE if width >= 2 * height else LIKELY)]
    is_small = max(height, width) <= MAX_POINT and -0.3 <= middle <= 0.25  # noqa: PLR2004
    is_long = top >= -0.4 and bottom >= 0.05 and height >= 0.8 * width and width <= MAX_POINT + 0.1  # noqa: PLR2004
    if is_small or is_long:
        comma = _logistic(20 * (bottom - 0.16) + 4 * (height / width - 1.25))
        return [(",", SURE * comma), (".", SURE * (1 - comma))]
    return ()


def _slash(piece: Piece, relative_height: float, below: float) -> float:
    """Return the probability that a high piece is a slash: one straight stroke that leans to the right, longer than a digit.

    Of 803 leaning strokes in fields held out from MNIST's training set, with and without separators, 9 of 164 slashes and 4 of 639
    other pieces are on the wrong side of 0.5.
    """
    height, width = piece.mask.shape
    thickness = piece.area / math.hypot(height, width) / height
    if width > 1.2 * height or piece.area < 3 or thickness > 0.25:  # noqa: PLR2004
        return 0.0
    corner_height, corner_width = max(1, height // 4), max(1, width // 4)
    if width > MIN_CORNERS * height and (
        piece.mask[:corner_height, :corner_width].any() or piece.mask[-corner_height:, -corner_width:].any()
    ):
        return 0.0  # as most digits: the rest would take five times as long
    # Moments of the ink, from its sums along rows and columns: this runs for each digit of a page.
    ink = piece.mask.astype(np.float32)
    y, x = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
    of_rows, of_columns = ink.sum(axis=1), ink.sum(axis=0)
    middle_y, middle_x = float(of_rows @ y) / piece.area, float(of_columns @ x) / piece.area
    y -= middle_y
    x -= middle_x
    var_y, var_x = float(of_rows @ (y * y)) / piece.area, float(of_columns @ (x * x)) / piece.area
    lean = -float(y @ ink @ x) / piece.area / max(var_y, 1 / piece.area)
    off = math.sqrt(max(0.0, var_x - lean * lean * var_y)) / height
    if lean < MIN_LEAN or off > 0.35 * thickness + 0.02:
        return 0.0
    return max(RARE, _logistic(20 * (below - 0.07) + 15 * (relative_height - 1.15)))


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-max(-30.0, min(value, 30.0))))

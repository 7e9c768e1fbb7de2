"""Compares what was read with what an image shows: text by lines and edit distance, digits by their boxes.

``report`` calls it for each image. Spaces are not compared: where a number ends is a matter of taste. Neither is a slash
distinguished from the end of a line, because tables of texts separate lines with slashes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.protocol.names import MarkKind
from digitserve.protocol.readings import Reading
from digitserve.types import Box
from digitserve_training.evaluate.numbers.samples import Digits

MIN_OVERLAP = 0.3
"""Smallest intersection over union of two boxes of the same digit: half of a digit that was cut in two is not found."""


class TextScore(NamedTuple):
    """How well the text of an image was read.

    Attributes:
        exact: whether all of it is right.
        num_lines: lines that the image shows.
        num_exact_lines: of these, lines that were read without a mistake, in the right order.
        num_characters: digits and separators that the image shows.
        num_edits: insertions, deletions and replacements that correct the text.
    """

    exact: bool
    num_lines: int
    num_exact_lines: int
    num_characters: int
    num_edits: int


class DigitScore(NamedTuple):
    """How well the digits of an image were found and read.

    Attributes:
        num_digits: that the image shows.
        num_right: found and read right.
        num_wrong: found and read as another digit.
        num_false: read where there is no digit.
    """

    num_digits: int
    num_right: int
    num_wrong: int
    num_false: int


def score_text(shown: str, read: str) -> TextScore:
    """Compare two texts, whose lines are separated by slashes or line breaks."""
    shown_lines, read_lines = _lines(shown), _lines(read)
    shown_text, read_text = "/".join(shown_lines), "/".join(read_lines)
    return TextScore(
        exact=shown_text == read_text,
        num_lines=len(shown_lines),
        num_exact_lines=_num_common(shown_lines, read_lines),
        num_characters=sum(map(len, shown_lines)),
        num_edits=edit_distance("".join(shown_lines), "".join(read_lines)),
    )


def text_of(reading: Reading) -> str:
    """Return the lines of a reading, separated by line breaks."""
    return "\n".join(line.text for line in reading.lines)


def score_digits(shown: Digits, reading: Reading) -> DigitScore:
    """Match digits that were read with those that the image shows, best overlap first."""
    read = [mark for line in reading.lines for mark in line.marks if mark.kind is MarkKind.DIGIT]
    overlaps = _overlaps(shown.boxes, [mark.box for mark in read])
    pairs: dict[int, int] = {}
    for flat in np.argsort(-overlaps, axis=None, kind="stable"):
        row, column = divmod(int(flat), len(read))
        if overlaps[row, column] < MIN_OVERLAP:
            break
        if row not in pairs and column not in pairs.values():
            pairs[row] = column
    num_right = sum(shown.labels[row] == read[column].text for row, column in pairs.items())
    return DigitScore(len(shown.boxes), num_right, len(pairs) - num_right, len(read) - len(pairs))


def edit_distance(first: Sequence[str], second: Sequence[str]) -> int:
    """Count the insertions, deletions and replacements that turn one sequence into the other (Levenshtein 1965)."""
    row: list[int] = [*range(len(second) + 1)]
    for above, one in enumerate(first, start=1):
        diagonal: int = row[0]
        row[0] = above
        for index, other in enumerate(second, start=1):
            diagonal, row[index] = row[index], min(row[index] + 1, row[index - 1] + 1, diagonal + (one != other))
    return row[-1]


def _lines(text: str) -> list[str]:
    lines = ("".join(line.split()) for line in text.replace("/", "\n").splitlines())
    return [line for line in lines if line]


def _num_common(first: Sequence[str], second: Sequence[str]) -> int:
    """Return the length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for one in first:
        diagonal = 0
        for index, other in enumerate(second, start=1):
            diagonal, row[index] = row[index], diagonal + 1 if one == other else max(row[index], row[index - 1])
    return row[-1]


def _overlaps(first: Sequence[Box], second: Sequence[Box]) -> NDArray[np.float64]:
    """Return the intersection over union of each pair of boxes: float64[len(first),len(second)]."""
    tops, bottoms, lefts, rights = (
        (one[:, np.newaxis], other[np.newaxis]) for one, other in zip(_columns(first), _columns(second), strict=True)
    )
    rows = (np.minimum(*bottoms) - np.maximum(*tops)).clip(0)
    columns = (np.minimum(*rights) - np.maximum(*lefts)).clip(0)
    areas = [(bottoms[index] - tops[index]) * (rights[index] - lefts[index]) for index in range(2)]
    overlaps: NDArray[np.float64] = rows * columns / np.maximum(1, areas[0] + areas[1] - rows * columns)
    return overlaps


def _columns(boxes: Sequence[Box]) -> NDArray[np.int64]:
    """Return tops, bottoms, lefts and rights: int64[4,N]."""
    return np.array(boxes, np.int64).reshape(-1, 4).T

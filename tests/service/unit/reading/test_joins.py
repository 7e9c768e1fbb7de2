"""Joins of strokes, with a network that takes wide ink for a 0 and knows nothing else."""

import numpy as np

from digitserve.batching.stepwise import Scores
from digitserve.protocol.names import Layout, MarkKind
from digitserve.protocol.readings import Line, ReadOptions
from digitserve.reading.reader import Reader, read_now
from digitserve.types import Gray

LABELS = tuple("0123456789")


def _wide_is_zero(images: Gray) -> Scores:
    widths = np.array([np.ptp(np.flatnonzero((image > 90).any(axis=0))) + 1 for image in images[..., 0]])
    probabilities = np.full((len(images), 10), 0.001, np.float32)
    probabilities[:, 0] = 0.991
    return Scores(probabilities, np.where(widths >= 14, -8, 3).astype(np.float32))


def _read(ink: np.ndarray) -> Line:
    pixels = np.where(np.pad(ink, 25), 20, 235).astype(np.uint8)[..., np.newaxis]
    (line,) = read_now(Reader(LABELS, -1.4), pixels, ReadOptions(layout=Layout.LINE), _wide_is_zero).lines
    return line


def _zeros(number: int) -> np.ndarray:
    """Frames of 40 by 36 pixels with 20 pixels between them: bool[40, W]."""
    ink = np.zeros((40, 56 * number), np.bool_)
    for left in range(0, 56 * number, 56):
        ink[:, left : left + 36] = True
        ink[6:-6, left + 6 : left + 30] = False
    return ink


def test_broken_digit_is_joined_where_the_network_confirms_it() -> None:
    """Two halves that are no digits, and one together, are read as one digit with a box around both."""
    ink = _zeros(3)
    ink[:, 56 + 15 : 56 + 21] = False
    line = _read(ink)
    assert line.text == "000"
    box = line.marks[1].box
    assert (box.left, box.width) == (25 + 56, 36)


def test_mark_beside_a_digit_stays_where_joining_explains_nothing() -> None:
    """A point near a digit is not joined to it: the digit was as familiar without."""
    ink = _zeros(3)
    ink[33:40, 43:50] = True
    line = _read(ink)
    assert [mark.kind for mark in line.marks] == [MarkKind.DIGIT, MarkKind.SEPARATOR, MarkKind.DIGIT, MarkKind.DIGIT]
    assert line.text == "0.00"


def test_neighbouring_digits_are_never_joined() -> None:
    """Two familiar digits stay two, however near they are."""
    ink = _zeros(4)
    ink = np.delete(ink, np.s_[36 : 36 + 17], axis=1)
    assert _read(ink).text == "0000"

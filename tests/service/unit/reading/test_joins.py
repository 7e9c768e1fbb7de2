"""Joins of strokes, with a network that takes wide ink for a 0 and knows nothing else."""

import itertools

import numpy as np

from digitserve.batching.stepwise import Scores
from digitserve.protocol.names import Layout, MarkKind
from digitserve.protocol.readings import Line, ReadOptions
from digitserve.reading.joins import find_joins
from digitserve.reading.pieces import InkImage
from digitserve.reading.reader import Reader, read_now, run_steps
from digitserve.types import Gray, Ink

LABELS = tuple("0123456789")


def _read(ink: np.ndarray, *wider: tuple[int, float]) -> Line:
    """Read with a network that calls ink a 0 with the score of the last of its widths, in pixels of 28x28, and else nothing."""

    def run(images: Gray) -> Scores:
        widths = np.array([np.ptp(np.flatnonzero((image > 90).any(axis=0))) + 1 for image in images[..., 0]])
        probabilities = np.full((len(images), 10), 0.001, np.float32)
        probabilities[:, 0] = 0.991
        scores = np.full(len(images), 3, np.float32)
        for width, score in wider or ((14, -8.0),):
            scores[widths >= width] = score
        return Scores(probabilities, scores)

    pixels = np.where(np.pad(ink, 25), 20, 235).astype(np.uint8)[..., np.newaxis]
    (line,) = read_now(Reader(LABELS, -1.4), pixels, ReadOptions(layout=Layout.LINE), run).lines
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
    """A point near a digit is not joined to it, also if the network likes both together a little better."""
    ink = _zeros(3)
    ink[33:40, 40:47] = True
    for wider in (((14, -8.0),), ((14, -8.0), (20, -9.5))):
        line = _read(ink, *wider)
        assert [mark.kind for mark in line.marks] == [
            MarkKind.DIGIT,
            MarkKind.SEPARATOR,
            MarkKind.DIGIT,
            MarkKind.DIGIT,
        ]
        assert line.text == "0.00"


def test_neighbouring_digits_are_never_joined() -> None:
    """Two clear digits stay two, however near they are, and however much the network likes both together."""
    ink = np.zeros((40, 100), np.bool_)
    for left in (0, 24, 80):
        ink[:, left : left + 20] = True
        ink[6:-6, left + 6 : left + 14] = False
    assert _read(ink, (8, -8.0), (14, -12.0)).text.replace(" ", "") == "000"


def test_specks_are_not_joined() -> None:
    """Specks near each other are no pairs of strokes, which would cost candidates."""
    ink = _zeros(2)
    for top, left in itertools.product(range(1, 37, 8), (40, 48)):
        ink[top : top + 5, left : left + 5] = True
    asked = []

    def run(images: Gray) -> Scores:
        asked.append(len(images))
        return Scores(np.full((len(images), 10), 0.1, np.float32), np.full(len(images), -8, np.float32))

    pixels = np.where(np.pad(ink, 25), 20, 235).astype(np.uint8)[..., np.newaxis]
    steps = Reader(LABELS, -1.4).draft(pixels, ReadOptions(layout=Layout.LINE))
    (line,) = run_steps(steps, run).lines
    assert asked[0] == 12
    for found in find_joins(line, InkImage(ink.astype(np.float32), ink, Ink.AUTO, 1.0)):
        assert 40 in (line.pieces[found.first].piece.box.height, line.pieces[found.second].piece.box.height)

"""What a request to read numbers states, and what is read: shared by the codec, ``reading``, training and the tests.

    codec ──ReadOptions──▶ reading ──Reading──▶ read_encoder ──▶ body

Boxes are in pixels of the request's image.
"""

from collections.abc import Sequence
from typing import NamedTuple

from digitserve.protocol.names import IgnoredKind, Layout, MarkKind, Verdict
from digitserve.types import Box, Ink

DEFAULT_PLACEHOLDER = "?"
"""Stands in the text for a mark that was not read."""


class ReadOptions(NamedTuple):
    """How to read an image.

    Attributes:
        layout: arrangement of the numbers.
        num_digits: digits of each line, for ``Layout.CELLS`` cells; 0 if any number is allowed.
        pattern: of each line, see ``reading.patterns``; empty if any text is allowed.
        min_confidence: confidence of a digit below which it is not read, from 0 to 1.
        placeholder: one character for a mark that was not read.
        top_k: alternatives of each digit; 0 for none.
        ink: polarity.
    """

    layout: Layout = Layout.PAGE
    num_digits: int = 0
    pattern: str = ""
    min_confidence: float = 0.0
    placeholder: str = DEFAULT_PLACEHOLDER
    top_k: int = 0
    ink: Ink = Ink.AUTO


class Mark(NamedTuple):
    """A digit, a separator, or what is neither.

    Attributes:
        text: one character.
        kind: what it is.
        box: of its ink; of an empty cell the cell.
        class_index: index of the most probable label of a digit or an unread mark; None for others.
        confidence: calibrated probability that the label, or the kind of separator, is right.
        verdict: judged beside the other digits of its line; UNSPECIFIED for separators and empty cells.
        ood_score: higher means less like the training data.
        probabilities: of the labels, most probable first, as pairs of index and probability; at most ``top_k``.
    """

    text: str
    kind: MarkKind
    box: Box
    class_index: int | None = None
    confidence: float = 1.0
    verdict: Verdict = Verdict.UNSPECIFIED
    ood_score: float = 0.0
    probabilities: Sequence[tuple[int, float]] = ()


class Line(NamedTuple):
    """One number, or several on one line.

    Attributes:
        text: of its marks, with a space at each wide gap.
        confidence: calibrated probability that the text is right; 0 if a mark is unread.
        box: of its ink.
        marks: from left to right.
        matches: whether the text has the pattern and the number of digits that the request states.
    """

    text: str
    confidence: float
    box: Box
    marks: Sequence[Mark]
    matches: bool = True


class Ignored(NamedTuple):
    """Ink that is part of no line."""

    kind: IgnoredKind
    box: Box


class Reading(NamedTuple):
    """What an image shows.

    Attributes:
        lines: in reading order.
        ignored: ink that is part of no line.
    """

    lines: Sequence[Line]
    ignored: Sequence[Ignored] = ()

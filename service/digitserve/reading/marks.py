"""The texts that were chosen for a line's pieces to its marks, text and confidence.

``reader`` calls it on a worker's thread; no state is kept.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from digitserve.protocol.names import IgnoredKind, MarkKind, Verdict
from digitserve.protocol.readings import Ignored, Line, Mark, ReadOptions
from digitserve.reading.confidence import digit_probability, unknown_odds
from digitserve.reading.drafts import LineDraft, PieceDraft, Scored
from digitserve.reading.search import LineText, PieceText
from digitserve.types import Box

WIDE_GAP, WIDER_THAN_OTHERS = 1.2, 2.0
"""Gap between two marks that is a space: against the height of digits, and against the median gap of the line."""


class Scale(NamedTuple):
    """From working pixels to pixels of the request.

    Attributes:
        factor: pixels of the request per working pixel.
        height: of the request's image.
        width: of the request's image.
    """

    factor: float
    height: int
    width: int

    def box(self, box: Box) -> Box:
        """Return a box in pixels of the request; at least one pixel, inside the image."""
        top = min(int(box.top * self.factor), self.height - 1)
        left = min(int(box.left * self.factor), self.width - 1)
        bottom = min(max(round(box.bottom * self.factor), top + 1), self.height)
        right = min(max(round(box.right * self.factor), left + 1), self.width)
        return Box(max(top, 0), bottom, max(left, 0), right)


class _Context(NamedTuple):
    """What the marks of a line have in common.

    Attributes:
        options: of the request.
        scale: of its boxes.
        probability: of the line's text.
        threshold: ``ood_score`` above which a single image is unfamiliar.
        num_familiar: digits of the line with a score up to that.
        num_digits: digits of the line.
    """

    options: ReadOptions
    scale: Scale
    probability: float
    threshold: float
    num_familiar: int
    num_digits: int

    def score(self, scored: Scored) -> float:
        """Return the ``ood_score`` of one of its digits beside the others: of a digit alone, as ``Classify`` does.

        Beside four clear digits a badly written one is read; among letters a letter that resembles a digit is not.
        """
        num_familiar = self.num_familiar - (scored.ood_score <= self.threshold)
        return scored.ood_score + math.log(unknown_odds(num_familiar, self.num_digits - 1))


def wide_gaps(draft: LineDraft) -> list[bool]:
    """Return for each piece whether a wide gap follows it."""
    boxes = [piece.piece.box for piece in draft.pieces]
    if not boxes:
        return []
    reached = np.maximum.accumulate([box.right for box in boxes])
    gaps = np.array([box.left for box in boxes[1:]], np.float64) - reached[:-1]
    usual = float(np.median(gaps)) if len(gaps) > 2 else 0.0  # noqa: PLR2004 - a median of less shows nothing
    wide = (gaps >= WIDE_GAP * draft.height) & (gaps >= WIDER_THAN_OTHERS * usual)
    return [*wide.tolist(), False]


def compose(
    draft: LineDraft, found: LineText, options: ReadOptions, scale: Scale, threshold: float, *, matches: bool
) -> tuple[Line | None, list[Ignored]]:
    """Build a line from the texts chosen for its pieces.

    Args:
        draft: the line.
        found: the chosen texts.
        options: of the request.
        scale: of its boxes.
        threshold: ``ood_score`` above which a single image is unfamiliar.
        matches: whether the text is one that the request allows.

    Returns:
        The line, None if it has no mark; and ink that is no mark.
    """
    chosen = [piece.texts[choice] for piece, choice in zip(draft.pieces, found.choices, strict=True)]
    candidates = [piece.candidates_of(one) for piece, one in zip(draft.pieces, chosen, strict=True)]
    familiar = [one.ood_score <= threshold for group in candidates for one in group if one is not None]
    context = _Context(options, scale, found.probability, threshold, sum(familiar), len(familiar))
    ignored: list[Ignored] = []
    groups: list[list[Mark]] = []
    for piece, one, group in zip(draft.pieces, chosen, candidates, strict=True):
        marks = _marks(piece, one, group, context)
        if not marks:
            ignored.append(Ignored(IgnoredKind.SPECK, scale.box(piece.piece.box)))
        groups.append(marks)
    if draft.cells is not None and draft.line.cells is not None:
        marks = _in_cells(draft.cells, draft.line.cells, groups, scale)
        text = "".join(mark.text for mark in marks)
    else:
        marks = [mark for group in groups for mark in group]
        text = _spaced(groups, wide_gaps(draft))
    if not any(mark.kind is not MarkKind.EMPTY for mark in marks):
        return None, ignored
    unread = any(mark.kind is MarkKind.UNREAD for mark in marks)
    are_digits = math.prod(digit_probability(context.score(one)) for group in candidates for one in group if one)
    confidence = 0.0 if unread else found.probability * are_digits
    box = _around([mark.box for mark in marks if mark.kind is not MarkKind.EMPTY])
    return Line(text, confidence, box, tuple(marks), matches), ignored


def _marks(piece: PieceDraft, chosen: PieceText, candidates: Sequence[Scored | None], context: _Context) -> list[Mark]:
    """Return the marks of a piece; none if it is no mark."""
    marks = []
    for position, (character, scored) in enumerate(zip(chosen.text, candidates, strict=True)):
        # A line cannot be right unless its marks are, also where a pattern made a mark certain.
        confidence = min(1.0, max(_marginal(piece, chosen.text, position), context.probability))
        if scored is None:
            box = context.scale.box(piece.piece.box)
            marks.append(Mark(character, MarkKind.SEPARATOR, box, confidence=confidence))
        else:
            if not chosen.is_cut:  # the weights of cuttings hold it already
                confidence *= digit_probability(context.score(scored))
            marks.append(_digit(character, scored, confidence, context))
    return marks


def _marginal(piece: PieceDraft, text: str, position: int) -> float:
    """Return the share of the texts with the same character at a position, counted from the left or from the right."""
    from_right = len(text) - position
    return sum(
        other.weight
        for other in piece.texts
        if text[position]
        in (other.text[position : position + 1], other.text[-from_right:][: len(other.text) >= from_right])
    )


def _digit(character: str, scored: Scored, confidence: float, context: _Context) -> Mark:
    options = context.options
    familiar = context.score(scored) <= context.threshold
    read = familiar and confidence >= options.min_confidence
    order = np.argsort(-scored.probabilities, kind="stable")[: options.top_k].tolist() if options.top_k else ()
    return Mark(
        character if read else options.placeholder,
        MarkKind.DIGIT if read else MarkKind.UNREAD,
        context.scale.box(scored.box),
        int(character),
        confidence,
        Verdict.ACCEPTED if familiar else Verdict.UNFAMILIAR,
        scored.ood_score,
        tuple((index, float(scored.probabilities[index])) for index in order),
    )


def _in_cells(
    cells: Sequence[int | None],
    boxes: Sequence[Box],
    groups: Sequence[Sequence[Mark]],
    scale: Scale,
) -> list[Mark]:
    """Return one mark per cell."""
    marks = []
    for index, box in zip(cells, boxes, strict=True):
        if index is None or not groups[index]:
            marks.append(Mark(" ", MarkKind.EMPTY, scale.box(box)))
        else:
            marks.append(groups[index][0])
    return marks


def _spaced(groups: Sequence[Sequence[Mark]], gaps: Sequence[bool]) -> str:
    """Return the text of marks with a space at each wide gap between them."""
    text, pending = "", False
    for group, gap in zip(groups, gaps, strict=True):
        if group:
            text += (" " if pending and text else "") + "".join(mark.text for mark in group)
            pending = False
        pending = pending or gap
    return text


def _around(boxes: Sequence[Box]) -> Box:
    tops, bottoms, lefts, rights = zip(*boxes, strict=True)
    return Box(min(tops), max(bottoms), min(lefts), max(rights))

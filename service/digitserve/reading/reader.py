"""Reads the numbers of an image: finds lines, asks the network about pieces and parts of pieces, and chooses the texts.

    pixels ──page, layout──▶ lines of pieces ──whole pieces──▶ network ──joins, cuts──▶ network ──search──▶ Reading

``batching`` advances the generator on a worker's thread, one step between two batches; training and tests do with ``read_now``.
A ``Reader`` belongs to a model and keeps no state between requests. Most pieces are one digit for sure after the first step, so
that only few are cut.
"""

from collections.abc import Callable, Generator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple, TypeVar

import numpy as np

from digitserve.batching.stepwise import Scores, Steps
from digitserve.errors import InvalidRequest
from digitserve.protocol.names import IgnoredKind, Layout
from digitserve.protocol.readings import Ignored, Line, Reading, ReadOptions
from digitserve.reading.candidates import Parts, crop, cut, place_pieces
from digitserve.reading.drafts import LineDraft, PieceDraft, Scored, fill_cells
from digitserve.reading.joins import Join, find_joins, join_confirmed
from digitserve.reading.layout import lay_out
from digitserve.reading.marks import Scale, compose, wide_gaps
from digitserve.reading.page import extract_ink
from digitserve.reading.patterns import LineAutomaton
from digitserve.reading.pieces import InkImage, TextLine
from digitserve.reading.search import LineText, read_line
from digitserve.reading.separators import Baseline
from digitserve.types import Gray

MAX_CANDIDATES = 4096
"""Images of one request for the network, in all steps: 0.4 s on one core. A page of 400 digits has 400, and 20 per touching pair."""

PIECES_PER_STEP, CUTS_PER_STEP = 150, 2
"""Pieces placed, and pieces cut, in about 10 ms."""

JOIN_SHARE = 0.25
"""Share of the candidates that are left for pairs of strokes, so that specks never keep touching digits from being cut."""

DIGIT_LABELS = tuple("0123456789")

Result = TypeVar("Result")

_NO_SCORES = "scores must be sent for candidates"


class Draft(NamedTuple):
    """An image when all its pieces have texts.

    Attributes:
        lines: in reading order.
        ignored: ink that is part of no line.
        scale: from working pixels to those of the request.
    """

    lines: list[LineDraft]
    ignored: list[Ignored]
    scale: Scale


class Reader:
    """Reads images step by step, for one model."""

    def __init__(self, labels: Sequence[str], ood_threshold: float) -> None:
        """Store what the steps need of the model.

        Args:
            labels: of the network, by index.
            ood_threshold: ``ood_score`` above which an image is unfamiliar.
        """
        self._labels = tuple(labels)
        self._threshold = ood_threshold

    def check(self, options: ReadOptions) -> None:
        """Check what the decoder cannot.

        Raises:
            InvalidRequest: the model does not classify the ten digits, or the pattern cannot be used.
        """
        self._automaton(options)

    def _automaton(self, options: ReadOptions) -> LineAutomaton | None:
        if self._labels != DIGIT_LABELS:
            raise InvalidRequest(
                f"got a request to read numbers for a model with the labels {', '.join(self._labels)[:100]};"
                " expected a model with the labels 0 to 9"
            )
        num_digits = 0 if options.layout is Layout.CELLS else options.num_digits
        return LineAutomaton(options.pattern, num_digits) if options.pattern or num_digits else None

    def read(self, pixels: Gray, options: ReadOptions) -> Steps:
        """Return the steps that read an image; nothing is done before the first one.

        Args:
            pixels: uint8[H, W, C]; C is 1 for grey, 3 for RGB, 4 for RGBA.
            options: how to read it.

        Raises:
            InvalidRequest: at any step: see ``check``, or the image has too much on it.
        """
        automaton = self._automaton(options)
        drafts, ignored, scale = yield from self.draft(pixels, options)
        lines: list[Line] = []
        for draft in drafts:
            line, specks = yield from self._compose(draft, automaton, options, scale)
            ignored += specks
            if line is not None:
                lines.append(line)
            yield None
        return Reading(tuple(lines), tuple(ignored))

    def draft(self, pixels: Gray, options: ReadOptions) -> Generator[Gray | None, Scores | None, Draft]:
        """Return the steps until each piece has its texts; arguments and errors as in ``read``."""
        ink = yield from extract_ink(pixels, options.ink)
        yield None
        arrangement = yield from lay_out(ink, options)
        yield None
        scale = Scale(ink.scale, *pixels.shape[:2])
        ignored = [found._replace(box=scale.box(found.box)) for found in arrangement.ignored]
        drafts = yield from _classify_whole(ink, arrangement.lines)
        left = MAX_CANDIDATES - sum(len(draft.pieces) for draft in drafts)
        left -= yield from _join_strokes(ink, drafts, int(JOIN_SHARE * left))
        yield from _cut_doubtful(drafts, left)
        return Draft(drafts, ignored, scale)

    def _compose(
        self, draft: LineDraft, automaton: LineAutomaton | None, options: ReadOptions, scale: Scale
    ) -> Generator[None, None, tuple[Line | None, list[Ignored]]]:
        found = yield from _search(draft, automaton)
        matches = found is not None
        if found is None:
            found = yield from _search(draft, None)
        if found is None:
            return None, [Ignored(IgnoredKind.SPECK, scale.box(piece.piece.box)) for piece in draft.pieces]
        if draft.cells is not None and options.num_digits:
            matches = matches and len(draft.cells) == options.num_digits
        return compose(draft, found, options, scale, self._threshold, matches=matches)


def read_now(reader: Reader, pixels: Gray, options: ReadOptions, run: Callable[[Gray], Scores]) -> Reading:
    """Read an image in one call, as training and tests do.

    Args:
        reader: of the model.
        pixels: uint8[H, W, C].
        options: how to read it.
        run: the network, for candidates uint8[N, 28, 28, 1].
    """
    return run_steps(reader.read(pixels, options), run)


def run_steps(steps: Generator[Gray | None, Scores | None, Result], run: Callable[[Gray], Scores]) -> Result:
    """Run all steps of ``Reader.read`` or ``Reader.draft``; ``run`` as in ``read_now``."""
    scores: Scores | None = None
    while True:
        try:
            candidates = steps.send(scores)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        scores = None if candidates is None else run(candidates)


def _classify_whole(ink: InkImage, lines: Sequence[TextLine]) -> Generator[Gray | None, Scores | None, list[LineDraft]]:
    """Ask the network about each piece as one digit."""
    drafts = []
    pieces: list[PieceDraft] = []
    for line in lines:
        in_line, cells = line.pieces, None
        if line.cells is not None:
            in_line, cells = fill_cells(line, line.cells)
        draft = LineDraft(line, Baseline(line), [], cells)
        for piece in in_line:
            draft.pieces.append(PieceDraft(piece, crop(ink, piece)))
            pieces.append(draft.pieces[-1])
            if len(pieces) % PIECES_PER_STEP == 0:
                _check_number(len(pieces))
                yield None
        if cells is None:
            draft.find_separators()
        drafts.append(draft)
    yield from _classify(pieces)
    return drafts


def _check_number(number: int) -> None:
    if number > MAX_CANDIDATES:
        raise InvalidRequest(
            f"image: got more than {MAX_CANDIDATES} shapes that may be digits; expected fewer: send parts of the page"
        )


def _classify(pieces: Sequence[PieceDraft]) -> Generator[Gray | None, Scores | None, None]:
    """Ask the network about pieces, each as one digit."""
    images: list[Gray] = []
    for start in range(0, len(pieces), PIECES_PER_STEP):
        if start:
            yield None
        images.append(place_pieces([piece.strength for piece in pieces[start : start + PIECES_PER_STEP]]))
    if images:
        scores = yield np.concatenate(images)
        if scores is None:
            raise AssertionError(_NO_SCORES)
        for piece, row, score in zip(pieces, scores.probabilities, scores.ood_score.tolist(), strict=True):
            piece.whole = Scored(piece.piece.box, row, score)


def _join_strokes(ink: InkImage, drafts: Sequence[LineDraft], most: int) -> Generator[Gray | None, Scores | None, int]:
    """Join the strokes that the network takes for one digit; at most ``most`` candidates. Return the number of candidates."""
    found: list[tuple[LineDraft, list[Join]]] = []
    joined: list[PieceDraft] = []
    for draft in drafts:
        if draft.cells is not None:
            continue
        joins: list[Join] = []
        found.append((draft, joins))
        for join in islice(find_joins(draft, ink), most - len(joined)):
            joins.append(join)
            joined.append(join.joined)
            if len(joined) % PIECES_PER_STEP == 0:
                yield None
    yield from _classify(joined)
    for draft, joins in found:
        join_confirmed(draft, joins)
    return len(joined)


def _cut_doubtful(drafts: Sequence[LineDraft], most: int) -> Generator[Gray | None, Scores | None, None]:
    """Cut the pieces that may be several digits, ask the network about the parts, and find the texts of all pieces.

    Args:
        drafts: the lines; each cell holds one digit.
        most: candidates; pieces beyond stay whole.
    """
    doubtful = [
        (draft, piece)
        for draft in drafts
        if draft.cells is None
        for piece in draft.pieces
        if piece.is_doubtful(draft.height)
    ]
    cut_pieces: list[tuple[PieceDraft, Parts]] = []
    number = 0
    for index, (draft, piece) in enumerate(doubtful, start=1):
        parts = cut(piece.strength, piece.piece.box, draft.height)
        if parts is not None and len(parts.images) and number + len(parts.images) <= most:
            cut_pieces.append((piece, parts))
            number += len(parts.images)
        if index % CUTS_PER_STEP == 0:
            yield None
    if cut_pieces:
        scores = yield np.concatenate([parts.images for _, parts in cut_pieces])[..., np.newaxis]
        if scores is None:
            raise AssertionError(_NO_SCORES)
        start = 0
        for piece, parts in cut_pieces:
            end = start + len(parts.images)
            piece.score_parts(parts, scores.probabilities[start:end], scores.ood_score[start:end])
            start = end
    number = 0
    for draft in drafts:
        for piece in draft.pieces:
            piece.find_texts(draft.height, draft.unknown_odds(piece) if piece.scored else 1.0)
            number += bool(piece.scored)
            if piece.scored and number % CUTS_PER_STEP == 0:
                yield None
        yield None


def _search(draft: LineDraft, automaton: LineAutomaton | None) -> Generator[None, None, LineText | None]:
    """Find the best text of a line; None if no text is allowed."""
    if not draft.pieces:
        return None
    gaps = wide_gaps(draft) if draft.cells is None else _empty_cells(draft.cells)
    return (yield from read_line([piece.texts for piece in draft.pieces], gaps, automaton))


def _empty_cells(cells: Sequence[int | None]) -> list[bool]:
    """Return for each piece whether an empty cell follows before the next one."""
    filled = [position for position, index in enumerate(cells) if index is not None]
    return [after - before > 1 for before, after in pairwise(filled)] + [False]

"""Lines while they are read: pieces with their candidates, scores and texts.

    TextLine ──draft_line──▶ LineDraft ──scores of whole pieces──▶ doubtful pieces cut ──scores of parts──▶ texts of each piece

``reader`` owns the drafts of a request and advances them on a worker's thread.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from digitserve.reading.candidates import Parts
from digitserve.reading.confidence import FITTED, TextModel, Weights, digit_probability, unknown_odds
from digitserve.reading.patterns import DIGITS
from digitserve.reading.pieces import Piece, TextLine
from digitserve.reading.search import PieceText, best_cutting, read_piece
from digitserve.reading.separators import Baseline, find_separators
from digitserve.reading.strokes import join
from digitserve.types import Box, FloatImage

SURE_DIGIT, SURE_LABEL = 0.97, 0.98
"""Probabilities, that a piece is one digit and of its label, above which it is not cut."""

WIDE, MIN_CUT_WIDTH, MIN_CUT_HEIGHT, MAX_CUT_WIDTH = 1.15, 0.35, 0.5, 10.0
"""Width of a piece, against the height of digits, from which it is always cut; size of the smallest piece that is cut, and width of
the widest: about twelve digits, which take 50 ms."""

NARROWEST = 0.4
"""Mean width of touching digits, likewise, at least."""

MIN_DIGIT_HEIGHT = 0.45
"""Height below which a piece that does not look like a digit is dust, not a digit that cannot be read."""

MIN_SMALL_HEIGHT = 0.3
"""Height below which a piece is no digit, whatever the network says: MNIST has no scale."""

MIN_LABEL = 1e-6
"""Probability of a label, given that a piece is one digit, up to which it is none: no pattern chooses it, and it costs no time."""


@dataclass(slots=True)
class Scored:
    """What the network says about one candidate.

    Attributes:
        box: in working pixels.
        probabilities: float32[10].
        ood_score: higher means less like the training data.
    """

    box: Box
    probabilities: NDArray[np.float32]
    ood_score: float


@dataclass(slots=True)
class PieceDraft:
    """A piece while it is read.

    Attributes:
        piece: its ink.
        strength: its own ink, of ``candidates.crop``.
        separators: what separators it may be, with probabilities.
        whole: the piece as one digit.
        parts: what it was cut into; None if it was not.
        scored: of the parts.
        texts: that it may show, weights summing to 1, highest first.
        weights: of the parts and of the links between cuts, from which the texts come.
    """

    piece: Piece
    strength: FloatImage
    separators: tuple[tuple[str, float], ...] = ()
    whole: Scored | None = None
    parts: Parts | None = None
    scored: list[Scored] = field(default_factory=list)
    texts: list[PieceText] = field(default_factory=list)
    weights: tuple[Weights, Weights] | None = None

    @property
    def ood_score(self) -> float:
        """Of the whole piece."""
        if self.whole is None:
            raise AssertionError("the whole piece has no scores yet")
        return self.whole.ood_score

    @property
    def is_digit(self) -> bool:
        """Whether the network is sure that the whole piece is one digit."""
        return digit_probability(self.ood_score) >= SURE_DIGIT

    def is_doubtful(self, height: float) -> bool:
        """Return whether it may be several digits, or parts of them."""
        if not self.can_be_cut(height) or self.whole is None:
            return False
        if self.piece.box.width >= WIDE * height:
            return True
        return not self.is_digit or float(self.whole.probabilities.max()) < SURE_LABEL

    def can_be_cut(self, height: float) -> bool:
        """Return whether it is large enough for two digits, not too large, and no separator for sure."""
        box = self.piece.box
        is_separator = sum(probability for _, probability in self.separators) > SURE_LABEL
        fits = MIN_CUT_WIDTH * height <= box.width <= MAX_CUT_WIDTH * height
        return fits and box.height >= MIN_CUT_HEIGHT * height and not is_separator

    def score_parts(self, parts: Parts, probabilities: NDArray[np.float32], ood_score: NDArray[np.float32]) -> None:
        """Take the network's scores of the parts."""
        self.parts = parts
        self.scored = [
            Scored(box, row, score)
            for box, row, score in zip(parts.boxes, probabilities, ood_score.tolist(), strict=True)
        ]

    def find_texts(self, height: float, odds: float, model: TextModel = FITTED) -> None:
        """Weigh the texts that the piece may show.

        Args:
            height: of the digits of the line.
            odds: that a mark of the line is no digit.
            model: how much each way to cut weighs.
        """
        if self.whole is None:
            raise AssertionError("the whole piece has no scores yet")
        is_separator = sum(probability for _, probability in self.separators)
        is_digit = digit_probability(self.whole.ood_score)
        whole = model.whole(self.whole.ood_score, self.piece.box.width / height, odds) if self.scored else is_digit
        texts: list[tuple[str, float, bool]] = []
        if self.piece.box.height < MIN_SMALL_HEIGHT * height:
            is_digit = 0.0
        else:
            texts += [
                (DIGITS[label], (1 - is_separator) * whole * probability, False)
                for label, probability in enumerate(self.whole.probabilities.tolist())
                if probability > MIN_LABEL
            ]
        texts += [(character, probability, False) for character, probability in self.separators]
        if self.piece.box.height < MIN_DIGIT_HEIGHT * height:
            texts.append(("", (1 - is_separator) * (1 - is_digit), False))
        if self.parts is not None and self.scored:
            weights, links = self.weights = self._weights(self.parts, height, model)
            most = max(2, int(self.piece.box.width / (NARROWEST * height)))
            found = read_piece(self.parts.starts, self.parts.ends, weights, links, most)
            texts += [(text, (1 - is_separator) * weight, True) for text, weight in found]
        total = sum(weight for _, weight, _ in texts)
        texts.sort(key=lambda text: -text[1])
        self.texts = [PieceText(text, weight / total, is_cut) for text, weight, is_cut in texts if weight > 0]

    def _weights(self, parts: Parts, height: float, model: TextModel) -> tuple[Weights, Weights]:
        weights = model.parts(
            np.stack([scored.probabilities for scored in self.scored]),
            np.array([scored.ood_score for scored in self.scored], np.float32),
            np.array([scored.box.height for scored in self.scored]) / height,
            np.array([scored.box.width for scored in self.scored]) / height,
        )
        return weights, model.links(parts.distances, parts.costs)

    def candidates_of(self, text: PieceText) -> list[Scored | None]:
        """Return for each character of a text what the network said about its ink; None for a separator."""
        if not text.is_cut or self.parts is None or self.weights is None:
            return [self.whole if character in DIGITS else None for character in text.text]
        parts = best_cutting(text.text, self.parts.starts, self.parts.ends, *self.weights)
        return [self.scored[part] for part in parts]


@dataclass(slots=True)
class LineDraft:
    """A line while it is read.

    Attributes:
        line: of ``layout``.
        baseline: where its digits stand.
        pieces: from left to right; with cells one per cell that is not empty.
        cells: with cells, for each cell the index of its piece; None for an empty one.
    """

    line: TextLine
    baseline: Baseline
    pieces: list[PieceDraft]
    cells: list[int | None] | None = None

    @property
    def height(self) -> float:
        """Height of digits, in working pixels."""
        return self.baseline.height

    def unknown_odds(self, piece: PieceDraft) -> float:
        """Return the odds that one of its pieces is no digit, from the others that are as high as a digit."""
        others = [
            other.is_digit
            for other in self.pieces
            if other is not piece and other.piece.box.height >= MIN_DIGIT_HEIGHT * self.height
        ]
        return unknown_odds(sum(others), len(others))

    def find_separators(self) -> None:
        """Find which pieces may be separators."""
        found = find_separators([piece.piece for piece in self.pieces], self.baseline)
        for piece, marks in zip(self.pieces, found, strict=True):
            piece.separators = marks


def fill_cells(line: TextLine, cells: list[Box]) -> tuple[list[Piece], list[int | None]]:
    """Join the pieces of each cell.

    Returns:
        One piece per cell that is not empty, and for each cell the index of its piece.
    """
    joined: list[Piece] = []
    indices: list[int | None] = []
    for cell in cells:
        inside = [piece for piece in line.pieces if cell.left <= (piece.box.left + piece.box.right) / 2 < cell.right]
        if not inside:
            indices.append(None)
            continue
        whole = inside[0]
        for piece in inside[1:]:
            whole = join(whole, piece)
        indices.append(len(joined))
        joined.append(whole)
    return joined, indices

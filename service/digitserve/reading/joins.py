"""Joins of strokes that the network confirms: a 5 and the bar beside it, the halves of a broken 0.

    pieces of a line ──near pairs──▶ both as one candidate ──network──▶ joined where that is more like a digit than before

``reader`` calls it on a worker's thread; no state is kept. ``strokes`` joins before the network is asked, and only what lies within
the width of a digit. All lengths are shares of the line's digit height.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from digitserve.reading.candidates import crop
from digitserve.reading.drafts import LineDraft, PieceDraft
from digitserve.reading.pieces import InkImage
from digitserve.reading.strokes import join

MAX_GAP, MAX_HEIGHT, MAX_WIDTH = 0.25, 1.4, 1.3
"""Columns between two strokes of one digit, and its size, at most."""

MIN_HEIGHT = 0.6
"""Height of a piece that may be a digit by itself."""

MIN_GAIN = 1.0
"""By how much ``ood_score`` falls if two strokes are one digit.

Of 335 such pairs in 900 fields of separate digits held out from MNIST's training set, a third of these with separators, 50 are one
digit. This joins 25 of them and one other; most of the rest are a digit and a speck beside it.
"""


class Join(NamedTuple):
    """Two pieces of a line that may be one digit.

    Attributes:
        first: index of a piece.
        second: index of a later one.
        joined: both as one.
    """

    first: int
    second: int
    joined: PieceDraft


def find_joins(draft: LineDraft, ink: InkImage) -> Iterator[Join]:
    """Find the pairs that the network shall see as one: near each other, and one of them too low or not surely a digit."""
    for first, one in enumerate(draft.pieces):
        for second in range(first + 1, min(first + 3, len(draft.pieces))):
            other = draft.pieces[second]
            if other.piece.box.left - one.piece.box.right > MAX_GAP * draft.height:
                break
            if all(_is_digit(piece, draft.height) for piece in (one, other)):
                continue
            joined = join(one.piece, other.piece)
            if joined.box.height <= MAX_HEIGHT * draft.height and joined.box.width <= MAX_WIDTH * draft.height:
                yield Join(first, second, PieceDraft(joined, crop(ink, joined)))


def _is_digit(piece: PieceDraft, height: float) -> bool:
    return piece.piece.box.height >= MIN_HEIGHT * height and piece.is_digit


def join_confirmed(draft: LineDraft, joins: Sequence[Join]) -> None:
    """Join what the network confirms, the clearest first and each piece once.

    Args:
        draft: its pieces are replaced.
        joins: with scores.
    """
    gains = [(_gain(draft, found), found) for found in joins]
    pieces: list[PieceDraft | None] = list(draft.pieces)
    for gain, found in sorted(gains, key=lambda item: -item[0]):
        if gain >= MIN_GAIN and pieces[found.first] is not None and pieces[found.second] is not None:
            pieces[found.first] = pieces[found.second] = None
            pieces.append(found.joined)
    if len(pieces) > len(draft.pieces):
        draft.pieces = sorted((piece for piece in pieces if piece is not None), key=lambda piece: piece.piece.box.left)
        draft.find_separators()


def _gain(draft: LineDraft, found: Join) -> float:
    """Return by how much ``ood_score`` falls, against the less familiar of those that are as high as a digit."""
    parts = [draft.pieces[found.first], draft.pieces[found.second]]
    high = [piece for piece in parts if piece.piece.box.height >= MIN_HEIGHT * draft.height] or parts
    return max(piece.ood_score for piece in high) - found.joined.ood_score

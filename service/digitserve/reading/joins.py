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
from digitserve.types import Box

MAX_GAP, MAX_HEIGHT, MAX_WIDTH = 0.25, 1.4, 1.3
"""Columns or rows between two strokes of one digit, and its size, at most."""

MIN_HEIGHT = 0.6
"""Height of a piece that may be a digit by itself."""

MIN_GAIN, MIN_HYPHEN_GAIN, MIN_POINT_GAIN = 1.0, 1.5, 3.0
"""By how much ``ood_score`` falls if two strokes are one digit; if one of them may be a hyphen; or a point or a comma.

Of 332 such pairs in 900 fields of separate digits held out from MNIST's training set, a third of these with separators, 49 are one
digit. This joins 25 of them and no other; most of the rest are a digit and a speck beside it.
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
    """Find the pairs that the network shall see as one: near each other, and one of them low or not clearly a digit."""
    for first, one in enumerate(draft.pieces):
        for second in range(first + 1, min(first + 3, len(draft.pieces))):
            other = draft.pieces[second]
            if other.piece.box.left - one.piece.box.right > MAX_GAP * draft.height:
                break
            if _fit(one.piece.box, other.piece.box, draft.height) and not all(
                _is_digit(piece, draft.height) for piece in (one, other)
            ):
                joined = join(one.piece, other.piece)
                yield Join(first, second, PieceDraft(joined, crop(ink, joined)))


def _fit(one: Box, two: Box, height: float) -> bool:
    """Return whether two boxes are near and together as large as a digit."""
    gap = max(one.top, two.top) - min(one.bottom, two.bottom)
    joined_height = max(one.bottom, two.bottom) - min(one.top, two.top)
    joined_width = max(one.right, two.right) - min(one.left, two.left)
    is_high = MIN_HEIGHT * height <= joined_height <= MAX_HEIGHT * height
    return gap <= MAX_GAP * height and is_high and joined_width <= MAX_WIDTH * height


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
        if gain >= _min_gain(draft, found) and pieces[found.first] is not None and pieces[found.second] is not None:
            pieces[found.first] = pieces[found.second] = None
            pieces.append(found.joined)
    if len(pieces) > len(draft.pieces):
        draft.pieces = sorted((piece for piece in pieces if piece is not None), key=lambda piece: piece.piece.box.left)
        draft.find_separators()


def _min_gain(draft: LineDraft, found: Join) -> float:
    marks = {mark for index in (found.first, found.second) for mark, _ in draft.pieces[index].separators}
    return MIN_POINT_GAIN if "." in marks else MIN_HYPHEN_GAIN if "-" in marks else MIN_GAIN


def _gain(draft: LineDraft, found: Join) -> float:
    """Return by how much ``ood_score`` falls, against the less familiar of those that are as high as a digit."""
    parts = [draft.pieces[found.first], draft.pieces[found.second]]
    high = [piece for piece in parts if piece.piece.box.height >= MIN_HEIGHT * draft.height] or parts
    return max(piece.ood_score for piece in high) - found.joined.ood_score

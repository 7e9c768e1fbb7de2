"""Joins of broken strokes: the bar above a 5 that misses its body, a 4 in two parts. Two digits are never joined.

``layout`` calls it for each line on a worker's thread; no state is kept. All limits are shares of the line's digit height, chosen
on pages of separate digits: a part of a digit is lower than a digit, lies above or beside it within its width, and is near.
"""

import numpy as np

from digitserve.reading.pieces import Mask, Piece, TextLine
from digitserve.types import Box

MAX_PART_HEIGHT = 0.75
"""Height of the lower of two parts: a digit that is lower stands alone, not within another one's width."""

MAX_JOINED_HEIGHT = 1.4
MAX_JOINED_WIDTH = 1.3

MIN_OVERLAP = 0.4
"""Columns that two parts share, as a share of the narrower one's width."""

MAX_GAP, MAX_BAR_GAP, MAX_BREAK = 0.12, 0.22, 0.05
"""Distance of ink: of parts that overlap; of a bar above most of its body; of a stroke that is only interrupted."""

MIN_BAR_OVERLAP = 0.6
MAX_BAR_HEIGHT = 0.45

MAX_POINT_SIDE, POINT_ZONE = 0.3, 0.65
"""A small mark that is no higher and no wider, and whose middle lies below this share of the line's height, may be a point."""


def join_strokes(line: TextLine, bridge: float = 0) -> None:
    """Join the broken strokes of a line, in place.

    Args:
        line: its pieces are replaced.
        bridge: thickness of the rules that were removed and may have broken strokes, in pixels.
    """
    pieces = sorted(line.pieces, key=lambda piece: piece.box.left)
    index = 0
    while index < len(pieces):
        found = next(
            (
                other
                for other in _neighbours(pieces, index)
                if _is_one(pieces[index], pieces[other], line.height, bridge)
            ),
            None,
        )
        if found is None:
            index += 1
        else:
            joined = join(pieces[index], pieces.pop(found))
            pieces[index] = joined
            index = max(index - 3, 0)
    line.pieces = sorted(pieces, key=lambda piece: piece.box.left)


def join(first: Piece, second: Piece) -> Piece:
    """Return two pieces as one."""
    one, two = first.box, second.box
    box = Box(min(one.top, two.top), max(one.bottom, two.bottom), min(one.left, two.left), max(one.right, two.right))
    return Piece(box, _within(first, box) | _within(second, box), first.area + second.area)


def _neighbours(pieces: list[Piece], index: int) -> list[int]:
    """Return the next pieces whose columns are near those of one piece."""
    right = pieces[index].box.right
    reach = range(index + 1, min(index + 5, len(pieces)))
    return [other for other in reach if pieces[other].box.left <= right + pieces[index].box.height * MAX_BREAK]


def _is_one(first: Piece, second: Piece, height: float, bridge: float) -> bool:
    """Return whether two pieces are parts of one digit of about this height."""
    one, two = first.box, second.box
    part, body = (first, second) if one.height < two.height else (second, first)
    if part.box.height > MAX_PART_HEIGHT * height:
        return False
    joined_height = max(one.bottom, two.bottom) - min(one.top, two.top)
    joined_width = max(one.right, two.right) - min(one.left, two.left)
    if joined_height > max(MAX_JOINED_HEIGHT * height, body.box.height) or joined_width > max(
        MAX_JOINED_WIDTH * height, body.box.width
    ):
        return False
    overlap = (min(one.right, two.right) - max(one.left, two.left)) / min(one.width, two.width)
    middle = (part.box.top + part.box.bottom) / 2
    bottom = max(one.bottom, two.bottom)
    is_point = part.box.longest <= MAX_POINT_SIDE * height and middle > bottom - (1 - POINT_ZONE) * height
    limit = MAX_BREAK
    if not is_point and overlap >= MIN_OVERLAP:
        is_bar = (
            overlap >= MIN_BAR_OVERLAP
            and part.box.height <= MAX_BAR_HEIGHT * height
            and middle < (body.box.top + body.box.bottom) / 2
        )
        limit = MAX_BAR_GAP if is_bar else MAX_GAP
    return _are_near(first, second, max(round(max(limit * height, bridge)), 2))


def _are_near(first: Piece, second: Piece, distance: int) -> bool:
    """Return whether the ink of two pieces is at most this far apart, in rows and in columns."""
    one = first.box
    grown = Box(one.top - distance, one.bottom + distance, one.left - distance, one.right + distance)
    two = second.box
    common = Box(
        max(grown.top, two.top), min(grown.bottom, two.bottom), max(grown.left, two.left), min(grown.right, two.right)
    )
    if common.height <= 0 or common.width <= 0:
        return False
    near = np.pad(first.mask, 2 * distance)
    for axis in (0, 1):
        total = np.cumsum(near, axis=axis, dtype=np.int32)
        span = 2 * distance
        near = (
            (total[span:] > np.pad(total, ((1, 0), (0, 0)))[: -span - 1])
            if axis == 0
            else (total[:, span:] > np.pad(total, ((0, 0), (1, 0)))[:, : -span - 1])
        )
    near = near[
        common.top - grown.top : common.bottom - grown.top, common.left - grown.left : common.right - grown.left
    ]
    own = second.mask[common.top - two.top : common.bottom - two.top, common.left - two.left : common.right - two.left]
    return bool((near & own).any())


def _within(piece: Piece, box: Box) -> Mask:
    """Return a piece's mask within a larger box."""
    mask = np.zeros((box.height, box.width), np.bool_)
    top, left = piece.box.top - box.top, piece.box.left - box.left
    mask[top : top + piece.box.height, left : left + piece.box.width] = piece.mask
    return mask

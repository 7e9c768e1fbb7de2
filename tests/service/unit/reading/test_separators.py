"""Separators are distinguished from digits by their geometry."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from digitserve.reading.drafts import LineDraft, PieceDraft
from digitserve.reading.pieces import Piece, TextLine
from digitserve.reading.separators import Baseline
from digitserve.types import Box

HEIGHT = 50
BASELINE = 100


def draw_piece(left: int, top: int, right: int, bottom: int, *, leaning: bool = False) -> Piece:
    """Return a filled rectangle, or the diagonal of one."""
    canvas = Image.new("L", (right - left, bottom - top), 0 if leaning else 255)
    if leaning:
        ImageDraw.Draw(canvas).line((2, canvas.height - 1, canvas.width - 3, 0), fill=255, width=5)
    mask = np.asarray(canvas) > 0
    return Piece(Box(top, bottom, left, right), mask, int(mask.sum()))


def most_probable(piece: Piece) -> str:
    """Return the separator that a piece between two digits is most probably; empty for none."""
    digits = [draw_piece(left, BASELINE - HEIGHT, left + 30, BASELINE) for left in (0, 120)]
    pieces = [digits[0], piece, digits[1]]
    line = TextLine(pieces, float(HEIGHT), 0.0)
    drafts = [PieceDraft(one, one.mask.astype(np.float32)) for one in pieces]
    LineDraft(line, Baseline(line), drafts, None).find_separators()
    assert drafts[0].separators == drafts[2].separators == ()
    return max(drafts[1].separators, key=lambda found: found[1], default=("", 0.0))[0]


@pytest.mark.parametrize(
    ("piece", "separator"),
    [
        (draw_piece(60, 92, 68, 100), "."),
        (draw_piece(60, 92, 66, 108), ","),
        (draw_piece(55, 72, 80, 77), "-"),
        (draw_piece(50, 35, 92, 115, leaning=True), "/"),
        (draw_piece(60, 50, 66, 100), ""),
    ],
    ids=["point", "comma", "hyphen", "slash", "one"],
)
def test_a_mark_between_two_digits_is_recognised_by_its_size_and_place(piece: Piece, separator: str) -> None:
    """Point, comma, hyphen and a slash that is higher than the digits are found; an upright stroke is none of them."""
    assert most_probable(piece) == separator

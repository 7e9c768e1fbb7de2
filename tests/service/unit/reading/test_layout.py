"""Lines, rules and cells of drawn pages: seven-segment-like digits whose places are known."""

from collections.abc import Generator
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from digitserve.protocol.names import IgnoredKind, Layout
from digitserve.protocol.readings import ReadOptions
from digitserve.reading.layout import lay_out
from digitserve.reading.page import extract_ink
from digitserve.reading.pieces import Arrangement
from digitserve.types import Gray, Ink

T = TypeVar("T")

HEIGHT, WIDTH, PEN = 40, 24, 5
"""Size of a drawn digit and thickness of its strokes, in pixels."""

PITCH_X, PITCH_Y = 60, 70

PAPER, DARK = 220, 30


def finish(steps: Generator[None, None, T]) -> T:
    """Return what a generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            result: T = stop.value
            return result


def arrange(page: Gray, layout: Layout = Layout.PAGE) -> Arrangement:
    """Lay out a grey page."""
    ink = finish(extract_ink(page[..., None], Ink.AUTO))
    return finish(lay_out(ink, ReadOptions(layout=layout)))


def draw_digit(page: Gray, top: int, left: int, *, kind: int = 0) -> None:
    """Draw a round-cornered shape with curves of a digit's size: a zero without corners, or a stroke like a 7."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    if kind == 0:
        radius = ((y - HEIGHT / 2 + 0.5) / (HEIGHT / 2)) ** 2 + ((x - WIDTH / 2 + 0.5) / (WIDTH / 2)) ** 2
        inner = ((y - HEIGHT / 2 + 0.5) / (HEIGHT / 2 - PEN)) ** 2 + ((x - WIDTH / 2 + 0.5) / (WIDTH / 2 - PEN)) ** 2
        shape = (radius <= 1) & (inner >= 1)
    else:
        shape = (y < PEN) | (abs(x - (WIDTH - PEN / 2 - y * (WIDTH - PEN) / HEIGHT)) <= PEN / 2)
    page[top : top + HEIGHT, left : left + WIDTH][shape] = DARK


def blank(rows: int, columns: int) -> Gray:
    """Return a page with room for digits."""
    return np.full((rows * PITCH_Y + 80, columns * PITCH_X + 80), PAPER, np.uint8)


def places(rows: int, columns: int, slope: float = 0.0) -> list[tuple[int, int]]:
    """Return top and left of digits in reading order."""
    return [
        (40 + row * PITCH_Y + 15 + round(slope * (column - columns / 2) * PITCH_X), 40 + column * PITCH_X + 18)
        for row in range(rows)
        for column in range(columns)
    ]


def lefts(arrangement: Arrangement) -> list[list[int]]:
    """Return the left edges of the pieces of each line."""
    return [[piece.box.left for piece in line.pieces] for line in arrangement.lines]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(2, 8), st.floats(-0.1, 0.1), st.integers(0, 2**32 - 1))
def test_lines_are_in_reading_order_under_rotation(rows: int, columns: int, slope: float, seed: int) -> None:
    """Digits of a page that slopes by up to six degrees, of uneven height above their line, keep their lines and order."""
    page = blank(rows, columns)
    page = np.pad(page, ((40, 40), (0, 0)), constant_values=PAPER)
    generator = np.random.default_rng(seed)
    for top, left in places(rows, columns, slope):
        draw_digit(page, top + 40 + int(generator.integers(-4, 5)), left, kind=int(generator.integers(2)))
    expected = sorted({left for _, left in places(rows, columns)})
    found = lefts(arrange(page))
    assert len(found) == rows
    for line in found:
        assert np.allclose(line, expected, atol=3)


def test_ruled_lines_are_removed_and_digits_stay() -> None:
    """Rules that cross digits become ignored ink, and no digit is lost, broken or joined with a neighbour."""
    page = blank(2, 6)
    for row in range(2):
        page[40 + row * PITCH_Y + 45 : 40 + row * PITCH_Y + 47, 10:-10] = DARK
    for top, left in places(2, 6):
        draw_digit(page, top, left)
    arrangement = arrange(page)
    assert [len(line.pieces) for line in arrangement.lines] == [6, 6]
    assert [ignored.kind for ignored in arrangement.ignored] == [IgnoredKind.RULING] * 2


def draw_rules(page: NDArray[np.uint8], kind: str, rows: int, columns: int) -> None:
    """Draw a grid, separate boxes or a comb around the places of digits."""
    for row in range(rows):
        top, bottom = 40 + row * PITCH_Y, 40 + (row + 1) * PITCH_Y - (0 if kind == "grid" else 6)
        for column in range(columns):
            left, right = 40 + column * PITCH_X, 40 + (column + 1) * PITCH_X - (6 if kind == "boxes" else 0)
            page[bottom : bottom + 2, left : right + 2] = DARK
            if kind != "comb":
                page[top : top + 2, left : right + 2] = DARK
            rise = bottom - 14 if kind == "comb" else top
            page[rise : bottom + 2, left : left + 2] = DARK
            page[rise : bottom + 2, right : right + 2] = DARK


@pytest.mark.parametrize("kind", ["grid", "boxes", "comb"])
def test_cells_are_found_in_order(kind: str) -> None:
    """Each row has its cells, an empty one too, and each digit is in its own."""
    page = blank(2, 6)
    draw_rules(page, kind, 2, 6)
    empty = 3
    for index, (top, left) in enumerate(places(2, 6)):
        if index != empty:
            draw_digit(page, top, left, kind=index % 2)
    arrangement = arrange(page, Layout.CELLS)
    assert [len(line.cells or []) for line in arrangement.lines] == [6, 6]
    assert [len(line.pieces) for line in arrangement.lines] == [5, 6]
    for line in arrangement.lines:
        cells = line.cells or []
        for piece in line.pieces:
            middle = (piece.box.left + piece.box.right) / 2
            assert sum(cell.left <= middle < cell.right for cell in cells) == 1


@pytest.mark.parametrize("kind", ["grid", "boxes", "comb"])
def test_boxes_leave_no_remains_on_a_page(kind: str) -> None:
    """With the layout of a page the rules are removed, and nothing of them is taken for a digit or a mark."""
    page = blank(2, 6)
    draw_rules(page, kind, 2, 6)
    for top, left in places(2, 6):
        draw_digit(page, top, left)
    assert [len(line.pieces) for line in arrange(page).lines] == [6, 6]


def test_a_digit_across_a_border_of_cells_is_split() -> None:
    """Two digits that touch across the border of their cells become one piece for each."""
    page = blank(1, 3)
    draw_rules(page, "grid", 1, 3)
    draw_digit(page, 55, 40 + PITCH_X - WIDTH + 1)
    draw_digit(page, 55, 40 + PITCH_X + 1)
    (line,) = arrange(page, Layout.CELLS).lines
    assert len(line.pieces) == 2


def test_a_broken_bar_is_joined_and_a_point_is_not() -> None:
    """A bar above its body is part of the digit; a point at the foot of a line, and two digits, stay apart."""
    page = blank(1, 4)
    (top, first), (_, second), (_, third), _ = places(1, 4)
    for left in (first, second, third):
        draw_digit(page, top, left)
    page[top + 20 : top + 23, first : first + WIDTH] = PAPER
    page[top + HEIGHT - 6 : top + HEIGHT, second + WIDTH + 8 : second + WIDTH + 14] = DARK
    (line,) = arrange(page).lines
    assert [piece.box.left for piece in line.pieces] == pytest.approx([first, second, second + WIDTH + 8, third], abs=2)


def test_specks_and_points_far_below_a_line_are_ignored() -> None:
    """A dot below all lines belongs to none, and is reported."""
    page = blank(2, 4)
    for top, left in places(1, 4):
        draw_digit(page, top, left)
    page[140:146, 100:106] = DARK
    arrangement = arrange(page)
    assert [len(line.pieces) for line in arrangement.lines] == [4]
    assert [ignored.kind for ignored in arrangement.ignored] == [IgnoredKind.SPECK]


def test_one_line_is_the_line_with_most_ink() -> None:
    """With the layout of a line the others are reported as other lines."""
    page = blank(2, 5)
    for top, left in places(2, 5)[:7]:
        draw_digit(page, top, left)
    arrangement = arrange(page, Layout.LINE)
    assert [len(line.pieces) for line in arrangement.lines] == [5]
    assert [ignored.kind for ignored in arrangement.ignored] == [IgnoredKind.OTHER_LINE]


@pytest.mark.parametrize("dark_part", [0.6, 0.45])
def test_a_hard_shadow_leaves_no_ink(dark_part: float) -> None:
    """Neither a shadow with a hard edge nor light that falls off adds pieces or hides digits."""
    page = blank(2, 5).astype(np.float64)
    drawn = page.astype(np.uint8)
    for top, left in places(2, 5):
        draw_digit(drawn, top, left)
    shaded = drawn * np.linspace(1, 0.8, page.shape[0])[:, None]
    shaded[:, page.shape[1] // 2 + 5 :] *= dark_part
    assert [len(line.pieces) for line in arrange(shaded.astype(np.uint8)).lines] == [5, 5]


def test_polarity_and_scale() -> None:
    """Light ink on dark paper gives the same ink; a small image is enlarged, one of high digits is reduced."""
    page = blank(1, 3)
    for top, left in places(1, 3):
        draw_digit(page, top, left)
    dark = finish(extract_ink(page[..., None], Ink.AUTO))
    light = finish(extract_ink(255 - page[..., None], Ink.AUTO))
    assert (dark.ink, light.ink) == (Ink.DARK_ON_LIGHT, Ink.LIGHT_ON_DARK)
    assert np.array_equal(dark.mask, light.mask)
    small = finish(extract_ink(page[::4, ::4, None], Ink.AUTO))
    large = finish(extract_ink(page.repeat(4, 0).repeat(4, 1)[..., None], Ink.AUTO))
    assert small.scale < 1 < large.scale


def test_blank_paper_has_no_lines() -> None:
    """An even page, and one of noise of the paper, have no lines."""
    even = np.full((200, 300), PAPER, np.uint8)
    rough = np.random.default_rng(0).normal(PAPER, 3, (200, 300)).astype(np.uint8)
    assert not arrange(even).lines
    assert not arrange(rough).lines


def test_the_edge_of_the_paper_is_no_digit() -> None:
    """A thin slanted line that runs into the border is a shape, and so is the thin line that continues it."""
    page = blank(1, 5)
    for top, left in places(1, 5)[:4]:
        draw_digit(page, top, left)
    width = page.shape[1]
    for step in range(58):
        page[40 + step, width - 1 - step * 40 // 58] = page[40 + step, width - 2 - step * 40 // 58] = DARK
    for step in range(30):
        page[100 + step, width - 36 + step // 2] = DARK
    arrangement = arrange(page)
    assert [len(line.pieces) for line in arrangement.lines] == [4]
    assert {ignored.kind for ignored in arrangement.ignored} == {IgnoredKind.SHAPE}


@pytest.mark.parametrize("ruled", ["none", "below", "boxes"])
def test_rules_of_a_low_field_are_found(ruled: str) -> None:
    """A low image of one row gives its digits, with a rule below, in boxes, or without: the search for rules is not left out wrongly."""
    page = np.full((76, 5 * PITCH_X + 40), PAPER, np.uint8)
    for column in range(5):
        left = 20 + column * PITCH_X
        draw_digit(page, 18, left + 18)
        if ruled == "boxes":
            page[8:68, left + 4 : left + 56][[0, 1, -2, -1]] = DARK
            page[8:68, left + 4 : left + 56][:, [0, 1, -2, -1]] = DARK
    if ruled == "below":
        page[66:68, 10:-10] = DARK
    arrangement = arrange(page)
    assert [len(line.pieces) for line in arrangement.lines] == [5]
    assert any(ignored.kind is IgnoredKind.RULING for ignored in arrangement.ignored) == (ruled != "none")

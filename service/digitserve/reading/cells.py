"""Rows of cells: grids, separate boxes and combs become boxes in order, with at most one piece of ink each.

    rules ──▶ cells between two verticals above a horizontal ──▶ rows
    pieces, rows ──▶ split where ink crosses into the next cell, joined within a cell ──▶ lines

``layout`` calls it on a worker's thread for ``Layout.CELLS``; no state is kept. Cells are upright boxes, also those of a slightly
rotated grid.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from digitserve.reading.pieces import Piece, TextLine
from digitserve.reading.rules import Rule, Rulings
from digitserve.reading.rulings import MIN_TICKS
from digitserve.reading.strokes import join
from digitserve.types import Box, FloatImage

MIN_CELL_SHARE = 0.4
"""Width and height of a cell, as a share of the height of digits: double lines are nearer."""

MIN_WIDTH_SHARE, MAX_WIDTH_SHARE = 0.5, 1.5
"""Width of a cell, as a share of the usual one: gaps between separate boxes are narrower; and of the narrowest one."""

MIN_RISE_SHARE = 0.1
"""How far a vertical rises above a horizontal that it bounds a cell on, as a share of the height of digits."""

OPEN_HEIGHT_SHARE = 1.5
"""Height of a cell of a comb, whose ticks are low, as a multiple of the height of digits."""

MAX_TICK_SHARE = 0.8
"""Length of a comb's tick, as a share of the height of digits; longer verticals are sides of boxes."""

MAX_STEP_DEVIATION = 0.15
"""How far the distance of two sides is from a multiple of the usual one, as a share of it, at most, if sides are missing between them."""

MIN_SIDE_INK, SIDE_STRENGTH = 0.6, 0.15
"""Share of the length of a missing side that has ink at least this strong: beside dark digits, a pale rule is no ink in the mask."""

MIN_PART_SHARE = 0.25
"""Share of a piece's ink in a second cell from which it is split: two digits that touch across the border."""

MIN_MARK_SHARE = 0.2
"""Longest side of ink in a cell, as a share of the height of digits, below which it is a speck."""

_REACH = 3
"""Pixels beyond its end in which a rule still meets another, more than its thickness."""


def complete_rows(rulings: Rulings, strength: FloatImage, height: float) -> Rulings:
    """Add sides of cells that digits hide: at regular distances between two horizontals, where there is ink, if only weak.

    Args:
        rulings: of the image.
        strength: float32[H, W], of the ink.
        height: typical height of digits.
    """
    rows = [
        (top, bottom, sides)
        for top, bottom in pairwise(rulings.horizontal)
        if len(sides := _sides_between(top, bottom, rulings.vertical, height)) > 1
    ]
    steps = np.concatenate([np.diff([column for column, _ in sides]) for *_, sides in rows]) if rows else np.zeros(0)
    steps = steps[steps >= MIN_CELL_SHARE * height]
    if not len(steps):
        return rulings
    step = float(np.median(steps[steps <= MAX_WIDTH_SHARE * steps.min()]))
    added: list[Rule] = []
    for top, bottom, sides in rows:
        missing = _missing(top, bottom, sides, step, strength)
        added += missing
        columns = [column for column, _ in sides] + [float(np.mean(rule.across)) for rule in missing]
        for rule in (top, bottom):
            _extend(rule, min(columns), max(columns))
    return rulings._replace(vertical=sorted(rulings.vertical + added, key=lambda rule: float(np.mean(rule.across))))


def _extend(rule: Rule, start: float, stop: float) -> None:
    """Extend a horizontal, in place, to sides of cells beyond its ends: a digit on its end hides it."""
    if start < rule.start:
        rule.along.insert(0, start)
        rule.across.insert(0, rule.across[0])
    if stop > rule.stop:
        rule.along.append(stop)
        rule.across.append(rule.across[-1])


def _sides_between(top: Rule, bottom: Rule, verticals: Sequence[Rule], height: float) -> list[tuple[float, Rule]]:
    """Return the verticals that reach from one horizontal to the next, from left to right, with their columns half-way."""
    sides = []
    for vertical in verticals:
        reach = vertical.thickness + bottom.thickness + _REACH
        column = vertical.at((vertical.start + vertical.stop) / 2)
        high, low = top.at(column), bottom.at(column)
        column = vertical.at((high + low) / 2)
        inside = min(top.start, bottom.start) - reach <= column <= max(top.stop, bottom.stop) + reach
        if inside and vertical.start - reach <= high <= low - MIN_CELL_SHARE * height and low <= vertical.stop + reach:
            sides.append((column, vertical))
    return sorted(sides, key=lambda side: side[0])


def _missing(
    top: Rule, bottom: Rule, sides: Sequence[tuple[float, Rule]], step: float, strength: FloatImage
) -> list[Rule]:
    """Return the sides of a row that are missing between its known ones, and at its ends."""
    first, last = sides[0], sides[-1]
    ends = (min(top.start, bottom.start), first[1]), (max(top.stop, bottom.stop), last[1])
    found = []
    for (left, side), (right, _) in pairwise([ends[0], *sides, ends[1]]):
        number = round((right - left) / step)
        if not number or abs(right - left - number * step) > MAX_STEP_DEVIATION * step * number:
            continue
        places = [left + (right - left) * index / number for index in range(1, number)]
        places += [end for end, _ in ends if end in (left, right)]
        for place in places:
            rule = _side_at(place, side, top, bottom, strength)
            if rule is not None:
                found.append(rule)
    return found


def _side_at(column: float, like: Rule, top: Rule, bottom: Rule, strength: FloatImage) -> Rule | None:
    """Return the side of a cell at, or beside, a column half-way between two horizontals; None if there is too little ink."""
    high, low = top.at(column), bottom.at(column)
    rows = np.arange(max(round(high), 0), min(round(low) + 1, len(strength)))
    lean = np.interp(rows, like.along, like.across) - like.at((high + low) / 2)
    best, best_share = 0.0, 0.0
    for offset in sorted(range(-_REACH, _REACH + 1), key=abs):
        columns = np.clip(np.rint(column + offset + lean).astype(np.intp), 0, strength.shape[1] - 1)
        share = float(np.mean(strength[rows, columns] > SIDE_STRENGTH))
        if share > best_share:
            best, best_share = float(offset), share
    if best_share < MIN_SIDE_INK:
        return None
    across = [column + best + float(lean[index]) for index in (0, -1)]
    return Rule([float(rows[0]), float(rows[-1])], across, like.thickness, horizontal=False)


def find_cells(rulings: Rulings, height: float) -> list[list[Box]]:
    """Find rows of cells.

    Args:
        rulings: of the image.
        height: typical height of digits.

    Returns:
        Rows from top to bottom, cells from left to right; empty if the rules bound no cells.
    """
    cells = [cell for bottom in rulings.horizontal for cell in _cells_on(bottom, rulings, height)]
    if not cells:
        return []
    usual = float(np.median([cell.width for cell in cells]))
    cells = [cell for cell in cells if cell.width >= MIN_WIDTH_SHARE * usual]
    slope = _slope(rulings.horizontal)
    rows: list[list[Box]] = []
    level = -np.inf
    for cell in sorted(cells, key=lambda cell: _level(cell, slope)):
        if _level(cell, slope) - level > cell.height / 2:
            rows.append([])
        rows[-1].append(cell)
        level = _level(cell, slope)
    return [_without_doubles(row) for row in rows]


def fill_cells(
    pieces: Sequence[Piece], rows: Sequence[Sequence[Box]], height: float
) -> tuple[list[TextLine], list[Piece]]:
    """Assign pieces to cells.

    Args:
        pieces: of the image.
        rows: of ``find_cells``.
        height: typical height of digits.

    Returns:
        A line for each row with ink, with at most one piece for each cell; and the pieces that are in no cell.
    """
    held: dict[Box, Piece] = {}
    outside = []
    cells = [cell for row in rows for cell in row]
    bounds = np.array(cells, np.intp).reshape(-1, 4)
    for piece in pieces:
        if piece.box.longest < MIN_MARK_SHARE * height:
            outside.append(piece)
            continue
        parts = _split(piece, cells, bounds)
        if not parts:
            outside.append(piece)
        for cell, part in parts:
            held[cell] = join(held[cell], part) if cell in held else part
    lines = []
    for row in rows:
        filled = [held[cell] for cell in row if cell in held]
        if filled:
            typical = float(np.median([piece.box.height for piece in filled]))
            lines.append(TextLine(filled, typical, _row_slope(row), list(row)))
    return lines, outside


def _cells_on(bottom: Rule, rulings: Rulings, height: float) -> list[Box]:
    """Return the cells that stand on a horizontal rule."""
    sides = []
    for vertical in rulings.vertical:
        reach = vertical.thickness + bottom.thickness + _REACH
        column = vertical.at(bottom.at(vertical.at(vertical.stop)))
        row = bottom.at(column)
        meets = bottom.start - reach <= column <= bottom.stop + reach and row <= vertical.stop + reach
        if meets and vertical.start <= row - MIN_RISE_SHARE * height:
            sides.append((column, vertical))
    sides.sort(key=lambda side: side[0])
    sides = _complete(sides, bottom, height)
    cells = []
    for (left, first), (right, second) in pairwise(sides):
        if right - left < MIN_CELL_SHARE * height:
            continue
        base = bottom.at((left + right) / 2)
        top = _top((left + right) / 2, base, (first, second), rulings.horizontal, height)
        if base - top >= MIN_CELL_SHARE * height:
            middle = (top + base) / 2
            cells.append(
                Box(max(round(top), 0), round(base) + 1, round(first.at(middle)), round(second.at(middle)) + 1)
            )
    return cells


def _without_doubles(row: Sequence[Box]) -> list[Box]:
    """Return the cells of a row from left to right; of two at one place, on a double line, the lower one."""
    single: list[Box] = []
    for cell in sorted(row, key=lambda cell: cell.left):
        if single and single[-1].right - cell.left > cell.width / 2:
            single[-1] = min(single[-1], cell, key=lambda box: box.height)
        else:
            single.append(cell)
    return single


def _complete(sides: list[tuple[float, Rule]], bottom: Rule, height: float) -> list[tuple[float, Rule]]:
    """Return the ticks of a comb with those that are missing, because a digit hides them, at the regular distance.

    Args:
        sides: columns and verticals, from left to right.
        bottom: the comb's horizontal.
        height: typical height of digits.
    """
    if len(sides) <= MIN_TICKS or any(vertical.length >= MAX_TICK_SHARE * height for _, vertical in sides):
        return sides
    step = float(np.median(np.diff([column for column, _ in sides])))
    complete = [sides[0]]
    before = round((sides[0][0] - bottom.start) / step)
    for column, vertical in [*sides[1:], (bottom.stop, sides[-1][1])]:
        last, tick = complete[-1]
        missing = round((column - last) / step) - (column != bottom.stop)
        complete += [(last + step * number, tick.moved(step * number)) for number in range(1, missing + 1)]
        if column != bottom.stop:
            complete.append((column, vertical))
    first, tick = sides[0]
    return [(first - step * number, tick.moved(-step * number)) for number in range(before, 0, -1)] + complete


def _top(column: float, base: float, sides: tuple[Rule, Rule], horizontal: Sequence[Rule], height: float) -> float:
    """Return the top of a cell: the next rule above that its sides reach, the end of its sides, or room for a digit."""
    end = max(side.start for side in sides)
    above = [
        row
        for rule in horizontal
        if rule.start - _REACH <= column <= rule.stop + _REACH
        and (row := rule.at(column)) <= base - MIN_CELL_SHARE * height
        and end <= row + rule.thickness + sides[0].thickness + _REACH
    ]
    if above:
        return max(above)
    return end if base - end >= height else base - OPEN_HEIGHT_SHARE * height


def _slope(rules: Sequence[Rule]) -> float:
    """Return the slope of rules, long ones with more weight."""
    rise = sum(rule.across[-1] - rule.across[0] for rule in rules)
    return rise / max(sum(rule.length for rule in rules), 1.0)


def _level(cell: Box, slope: float) -> float:
    """Return where the middle of a cell's row is at column 0."""
    return (cell.top + cell.bottom) / 2 - slope * (cell.left + cell.right) / 2


def _row_slope(row: Sequence[Box]) -> float:
    """Return the slope of a row of cells."""
    first, last = row[0], row[-1]
    return (last.bottom - first.bottom) / (last.left - first.left) if last.left > first.left else 0.0


def _split(piece: Piece, cells: Sequence[Box], bounds: np.ndarray) -> list[tuple[Box, Piece]]:
    """Return the cells that hold a large share of a piece's ink, each with its part; the whole piece for one cell."""
    box = piece.box
    overlapping = np.flatnonzero(
        (bounds[:, 0] < box.bottom) & (bounds[:, 1] > box.top) & (bounds[:, 2] < box.right) & (bounds[:, 3] > box.left)
    )
    parts = []
    for index in overlapping.tolist():
        part = _within(piece, cells[index])
        if part is not None and part.area >= MIN_PART_SHARE * piece.area:
            parts.append((cells[index], part))
    if len(parts) == 1:
        return [(parts[0][0], piece)]
    return parts


def _within(piece: Piece, cell: Box) -> Piece | None:
    """Return the part of a piece inside a cell; None if there is none."""
    box = piece.box
    top, left = max(cell.top - box.top, 0), max(cell.left - box.left, 0)
    part = piece.mask[top : max(cell.bottom - box.top, 0), left : max(cell.right - box.left, 0)]
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    if not len(rows):
        return None
    first_row, last_row, first, last = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    ink = part[first_row:last_row, first:last].copy()
    top, left = top + box.top, left + box.left
    return Piece(Box(top + first_row, top + last_row, left + first, left + last), ink, int(np.count_nonzero(ink)))

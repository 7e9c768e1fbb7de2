"""What an image shows before the network is asked: lines of pieces, and ink that is neither digit nor separator.

    InkImage ──▶ components ──▶ pieces, specks and shapes ignored ──▶ lines ──▶ broken strokes joined

``reader`` advances ``lay_out`` on a worker's thread; no state is kept.
"""

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from digitserve.errors import InvalidRequest
from digitserve.protocol.names import IgnoredKind, Layout
from digitserve.protocol.readings import Ignored, ReadOptions
from digitserve.reading.cells import complete_rows, fill_cells, find_cells
from digitserve.reading.components import Components, find_components, to_pieces
from digitserve.reading.lines import MIN_DIGIT_SHARE, group_lines
from digitserve.reading.pieces import Arrangement, InkImage, Mask, Piece, TextLine
from digitserve.reading.rules import Rule, Rulings, cover, remove
from digitserve.reading.rulings import choose_rules, find_candidates, may_have_columns
from digitserve.reading.strokes import join_strokes
from digitserve.types import Box

MAX_PIECES = 4000
"""Pieces above which an image is refused, ten times those of a page of 400 digits."""

MAX_IGNORED = 200
"""Ignored ink that is reported, largest first."""

MIN_MARK_SHARE, MIN_MARK_SIDE = 0.06, 2
"""Longest side of the smallest mark: a share of the height of digits, and in pixels."""

MAX_HEIGHT_SHARE = 5
"""Height of the highest digit, as a multiple of the typical height of digits."""

MAX_CUT_HEIGHT, MAX_CUT_WIDTH = 1.6, 2.5
"""The same of ink that the border of the image cuts, and its width: more is the edge of a page or a shadow."""

MIN_EDGE_HEIGHT, MAX_EDGE_THICKNESS, MAX_EDGE_GAP = 1.3, 0.6, 0.1
"""The edge of the paper that ends at the border: its height and the gap to the part that continues it, as shares of the height of
digits; its ink per height and width, against the median of other ink. A digit that is cut is not so high with such thin strokes.
"""

MAX_FLATNESS, MAX_FLAT_HEIGHT = 6, 0.15
"""Width against height from which ink is a dash of a rule, not a hyphen, if it is no higher than this share
of a digit and wider than one is high; the bar of a 5 is narrower."""

MAX_FILL = 0.9
"""Share of its box that the ink of a digit covers at most, if the box is as high and wide as a digit: a filled field has more."""

MIN_MARK_STRENGTH = 0.6
"""Strength of the strongest pixel of a small mark: of the same pen as the digits, not of the paper's texture."""


MIN_RULE_SHARE, MAX_PLAIN_WIDTH = 0.25, 1.4
"""Longest side of ink that may be a part of a rule; width of ink that is surely none if it is high, too. Both as shares of the
height of digits.
"""

MAX_BRIDGE_SHARE = 0.12
"""Height of the break, as a share of the height of digits, that a removed rule may leave in a stroke."""

MIN_SHARE_ON_RULE = 0.5
"""Share of a piece beside a rule from which it is what is left of the rule: a digit that touches a rule has less."""


def lay_out(ink: InkImage, options: ReadOptions) -> Generator[None, None, Arrangement]:
    """Find the lines of an image; yield after at most about 10 ms.

    Args:
        ink: of ``page.extract_ink``; ruled lines are removed from its arrays in place.
        options: how the numbers are arranged.

    Raises:
        InvalidRequest: more strokes or components than any page of numbers.
    """
    components = find_components(ink.mask)
    yield
    height = components.digit_height(len(ink.mask))
    rulings, zone = Rulings([], []), None
    if options.layout is Layout.CELLS or not _is_plain_row(components, ink.mask.shape, height):
        rulings, zone = yield from _take_rulings(ink, height, options.layout)
    if rulings.horizontal or rulings.vertical:
        components = find_components(ink.mask)
        yield
        height = components.digit_height(len(ink.mask))
    pieces, ignored = _sort_out(ink, components, height)
    if zone is not None:
        pieces = [piece for piece in pieces if not _is_left_of_rule(piece, zone)]
    ignored += [Ignored(IgnoredKind.RULING, rule.box(ink.mask.shape)) for rule in rulings.horizontal + rulings.vertical]
    yield
    rows = find_cells(rulings, height) if options.layout is Layout.CELLS else []
    if rows:
        lines, outside = fill_cells(pieces, rows, height)
        return Arrangement(lines, ignored + [_ignore_outside(piece, height) for piece in outside])
    lines, specks = group_lines(pieces, height)
    ignored += [Ignored(IgnoredKind.SPECK, piece.box) for piece in specks]
    yield
    bridge = rulings.thickness + 1 if zone is not None else 0
    for line in lines:
        join_strokes(line, min(bridge, MAX_BRIDGE_SHARE * line.height))
    if options.layout is Layout.LINE and lines:
        lines, others = _dominant(lines)
        ignored += others
    return Arrangement(lines, ignored)


def _ignore_outside(piece: Piece, height: float) -> Ignored:
    """Return ink that is in no cell."""
    small = piece.box.height < MIN_DIGIT_SHARE * height
    return Ignored(IgnoredKind.SPECK if small else IgnoredKind.OTHER_LINE, piece.box)


def _is_plain_row(components: Components, page: tuple[int, ...], height: float) -> bool:
    """Return whether all ink is digits side by side, of which none is in a box, wide, or cut by the border: without rules.

    Most images of one field are; the search for rules would take as long as all else.
    """
    heights, widths, boxes = components.heights, components.widths, components.boxes
    large = np.maximum(heights, widths) >= MIN_RULE_SHARE * height
    if not ((heights >= MIN_DIGIT_SHARE * height) & (widths <= MAX_PLAIN_WIDTH * height) | ~large).all():
        return False
    ordered = boxes[large]
    if not len(ordered) or ordered[:, 0].min() == 0 or ordered[:, 1].max() == page[0]:
        return False
    ordered = ordered[np.argsort(ordered[:, 2])]
    middles = ordered[:, 2] + ordered[:, 3]
    # Ink in a box begins right of the box's left side, and its middle is left of the right side.
    return bool((middles[1:] >= 2 * np.maximum.accumulate(ordered[:, 3])[:-1]).all())


def _take_rulings(ink: InkImage, height: float, layout: Layout) -> Generator[None, None, tuple[Rulings, Mask | None]]:
    """Find ruled lines and remove them from the ink in place; return them, and where what is left of them may be."""
    zone: Mask | None = None
    across = find_candidates(ink, height, horizontal=True)
    yield
    down: list[Rule] = []
    if may_have_columns(across, ink.mask, height):
        down = find_candidates(ink, height, horizontal=False)
        yield
    rulings = choose_rules(across, down, ink.mask, height)
    if layout is Layout.CELLS:
        rulings = complete_rows(rulings, ink.strength, height)
    yield
    if rulings.horizontal or rulings.vertical:
        zone = cover(ink.mask.shape, rulings)
        remove(ink.mask, rulings.horizontal, rulings.thickness)
        yield
        remove(ink.mask, rulings.vertical, rulings.thickness)
        ink.strength[zone & ~ink.mask] = 0
        yield
    return rulings, zone


def _is_left_of_rule(piece: Piece, zone: Mask) -> bool:
    """Return whether a piece is what is left of a removed rule: most of it is beside the rule."""
    box = piece.box
    on_rule = int(np.count_nonzero(zone[box.top : box.bottom, box.left : box.right] & piece.mask))
    return on_rule >= MIN_SHARE_ON_RULE * piece.area


def _sort_out(ink: InkImage, components: Components, height: float) -> tuple[list[Piece], list[Ignored]]:
    """Divide components into pieces and ignored ink."""
    heights, widths = components.heights, components.widths
    longest = np.maximum(heights, widths)
    shapes = _are_shapes(components, ink.mask.shape, height)
    specks = ~shapes & (longest < max(MIN_MARK_SHARE * height, MIN_MARK_SIDE))
    chosen = np.flatnonzero(~shapes & ~specks)
    if len(chosen) > MAX_PIECES:
        raise InvalidRequest(
            f"the image has {len(chosen)} separate pieces of ink, more than {MAX_PIECES}; send a part of the page"
        )
    pieces, ignored = [], []
    for piece in to_pieces(components, chosen, ink.mask):
        box = piece.box
        if box.height < MIN_DIGIT_SHARE * height:
            strength = ink.strength[box.top : box.bottom, box.left : box.right][piece.mask]
            if float(strength.max()) < MIN_MARK_STRENGTH:
                ignored.append(Ignored(IgnoredKind.SPECK, box))
                continue
        pieces.append(piece)
    for kind, flags in ((IgnoredKind.SHAPE, shapes), (IgnoredKind.SPECK, specks)):
        indices = np.flatnonzero(flags)
        largest = indices[np.argsort(-longest[indices], kind="stable")][: MAX_IGNORED - len(ignored)]
        ignored += [Ignored(kind, components.box(index)) for index in largest.tolist()]
    return pieces, ignored


def _are_shapes(components: Components, page: tuple[int, ...], height: float) -> NDArray[np.bool_]:
    """Return which components are too large, too full, too flat, or the edge of something at the border: bool[N]."""
    heights, widths = components.heights, components.widths
    boxes = components.boxes
    cut = (boxes[:, 0] == 0) | (boxes[:, 2] == 0) | (boxes[:, 1] == page[0]) | (boxes[:, 3] == page[1])
    fill = components.areas / (heights * widths)
    flat = (widths >= MAX_FLATNESS * heights) & (heights <= MAX_FLAT_HEIGHT * height) & (widths > height)
    full = (fill > MAX_FILL) & (np.minimum(heights, widths) > MIN_DIGIT_SHARE * height)
    at_edge = cut & ((heights > MAX_CUT_HEIGHT * height) | (widths > MAX_CUT_WIDTH * height) & (heights < height / 2))
    shapes: NDArray[np.bool_] = (heights > MAX_HEIGHT_SHARE * height) | flat | full | at_edge
    if cut.any():
        shapes |= _are_edges(components, cut, shapes, height)
    return shapes


def _are_edges(
    components: Components, cut: NDArray[np.bool_], shapes: NDArray[np.bool_], height: float
) -> NDArray[np.bool_]:
    """Return which components are the thin edge of the paper that runs into the border, or continue such an edge: bool[N].

    Args:
        components: of the mask.
        cut: which touch the border.
        shapes: which are no digits by other signs.
        height: typical height of digits.
    """
    boxes, heights, widths = components.boxes, components.heights, components.widths
    high = heights >= MIN_DIGIT_SHARE * height
    thickness = components.areas / (heights + widths)
    if not (high & ~shapes).any():
        return np.zeros(len(cut), np.bool_)
    thickness /= np.median(thickness[high & ~shapes])
    thin = high & (thickness < MAX_EDGE_THICKNESS)
    edges: NDArray[np.bool_] = thin & cut & (heights > MIN_EDGE_HEIGHT * height) & (widths > MIN_DIGIT_SHARE * height)
    reach = MAX_EDGE_GAP * height
    for top, bottom, left, right in boxes[edges].tolist():
        edges |= (
            high
            & (boxes[:, 0] <= bottom + reach)
            & (boxes[:, 1] >= top - reach)
            & (boxes[:, 2] <= right + reach)
            & (boxes[:, 3] >= left - reach)
            & (thickness < MAX_EDGE_THICKNESS / 2)
        )
    return edges


def _dominant(lines: list[TextLine]) -> tuple[list[TextLine], list[Ignored]]:
    """Return the line with most ink of digits, and the others as ignored ink."""
    best = max(lines, key=lambda line: sum(piece.box.height for piece in line.pieces))
    return [best], [Ignored(IgnoredKind.OTHER_LINE, _extent(line)) for line in lines if line is not best]


def _extent(line: TextLine) -> Box:
    tops, bottoms, lefts, rights = zip(*(piece.box for piece in line.pieces), strict=True)
    return Box(min(tops), max(bottoms), min(lefts), max(rights))

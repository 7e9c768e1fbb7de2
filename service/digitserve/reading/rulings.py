"""Ruled lines, boxes and combs: where they are.

    runs across the line's direction, thin ones ──components──▶ straight segments ──chained──▶ rules
    rules: long ones; sides of boxes, whose ends meet; ticks of a comb, which are regular

``layout`` calls it on a worker's thread; no state is kept. Horizontal rules are found from the runs of the transposed mask, vertical
ones from the runs of the mask, by the same functions: a position ``along`` the rule, and an ``across`` one.
"""

import numpy as np
from numpy.typing import NDArray

from digitserve.reading.pieces import InkImage, Mask
from digitserve.reading.rules import Rule, Rulings
from digitserve.reading.runs import Indices, Runs, find_runs, label_runs

MAX_SLOPE = 0.12
"""Slope of a rule: seven degrees."""

MAX_THICKNESS_SHARE, MAX_THICKNESS = 0.2, 4
"""Thickness of a rule: a share of the height of digits, but at least this many pixels."""

MIN_SEGMENT_SHARE, MIN_TICK_SHARE, MIN_SEGMENT = 0.25, 0.15, 5
"""Length of a straight segment, and of a vertical one, which may be a tick: a share of the height of digits, but at least this many pixels."""

MAX_SEGMENTS = 1000
"""Segments that are considered, longest first: a grid of 400 cells with a digit in each has about 800."""

MIN_STRAIGHT_SHARE, MIN_OWN_SHARE = 0.8, 0.5
"""Share of a segment's length that has a run on its straight line; share of a component's runs on it, the others being parts of
digits that touch it.
"""

MAX_HOLE_SHARE = 0.4
"""Background between two segments of one rule, as a share of the height of digits: faint rules are broken."""

BRIDGE_STRENGTH = 0.15
"""Strength of the ink that continues a rule: beside dark digits, a pale rule is weaker than what counts as ink."""

MAX_GAP_HOLES = 6
"""Distance of two segments of one rule that digits on it separate, as a multiple of such a hole."""

CURVATURE = 0.006
"""How far a rule on curved paper may leave a straight line, as a share of its length."""

NUM_FITS = 3
"""Fits of a line to a segment, each without the runs that were beside the one before."""

MIN_LONG = 3
"""Length of a rule that is one by its length alone, as a multiple of the height of digits."""

MIN_SIDE_SHARE = 0.8
"""Length of a side of a box, as a share of the height of digits."""

MIN_TICKS, MAX_TICK_DEVIATION = 3, 0.2
"""Ticks of a comb: their least number, and how much their lengths and distances differ."""

MAX_TICK_SHARE, FREE_ROWS = 0.6, 4
"""Length of a tick, as a share of the height of digits: a row of ones is no comb; rows without ink beyond its free end."""

MAX_TICKS, MIN_STEP_SHARE, MIN_REGULAR_SHARE = 60, 0.4, 0.6
"""Ticks that are compared; their least distance, as a share of the height of digits; share of lines like ticks on a rule that are at regular distances."""


def find_candidates(ink: InkImage, height: float, *, horizontal: bool) -> list[Rule]:
    """Find straight thin lines of one direction, of any length from a segment's; strokes of digits are among them.

    Args:
        ink: of the image.
        height: typical height of digits.
        horizontal: the direction.
    """
    across_mask = np.ascontiguousarray(ink.mask.T) if horizontal else ink.mask
    runs = find_runs(across_mask)
    thin = runs.select(runs.length <= max(MAX_THICKNESS_SHARE * height, MAX_THICKNESS))
    share = MIN_SEGMENT_SHARE if horizontal else MIN_TICK_SHARE
    segments = _find_segments(thin, max(share * height, MIN_SEGMENT), horizontal=horizontal)
    bridge = ink.strength > BRIDGE_STRENGTH
    return _chain(segments, bridge.T if horizontal else bridge, MAX_HOLE_SHARE * height)


def may_have_columns(horizontal: list[Rule], mask: Mask, height: float) -> bool:
    """Return whether ``choose_rules`` could choose a vertical rule: there is a horizontal one, or room for a long one.

    Args:
        horizontal: candidates of ``find_candidates``.
        mask: bool[H, W].
        height: typical height of digits.
    """
    if len(mask) >= MIN_LONG * height or (mask[:2].any() and mask[-3:].any()):
        return True
    return any(rule.length >= MIN_SIDE_SHARE * height for rule in horizontal)


def choose_rules(horizontal: list[Rule], vertical: list[Rule], mask: Mask, height: float) -> Rulings:
    """Choose the candidates that are rules: long ones, sides of boxes, ticks of combs.

    Args:
        horizontal: candidates of ``find_candidates``.
        vertical: the same.
        mask: bool[H, W].
        height: typical height of digits.
    """
    shape = mask.shape
    rows = [rule for rule in horizontal if rule.length >= MIN_LONG * height]
    columns = [rule for rule in vertical if rule.length >= MIN_LONG * height]
    sides_across = [rule for rule in horizontal if MIN_SIDE_SHARE * height <= rule.length < MIN_LONG * height]
    sides_down = [rule for rule in vertical if MIN_SIDE_SHARE * height <= rule.length < MIN_LONG * height]
    # Of sides that meet only other short sides, those are dropped that meet nothing at one end, until all do.
    while True:
        kept_across = [rule for rule in sides_across if _spans(rule, columns + sides_down, shape[1], height)]
        kept_down = [rule for rule in sides_down if _spans(rule, rows + kept_across, shape[0], height)]
        if len(kept_across) == len(sides_across) and len(kept_down) == len(sides_down):
            break
        sides_across, sides_down = kept_across, kept_down
    rows += sides_across
    columns += sides_down
    if rows:
        others = [rule for rule in vertical if rule.length < MIN_LONG * height and rule not in columns]
        columns += _find_ticks(others, rows, mask, height)
    return Rulings(
        sorted(rows, key=lambda rule: rule.at((rule.start + rule.stop) / 2)),
        sorted(columns, key=lambda rule: rule.at((rule.start + rule.stop) / 2)),
    )


def _find_segments(thin: Runs, min_length: float, *, horizontal: bool) -> list[Rule]:
    """Return the components of thin runs that are straight, by their starts."""
    labels, count = label_runs(thin)
    first = np.full(count, np.iinfo(np.intp).max)
    np.minimum.at(first, labels, thin.row)
    last = np.zeros(count, np.intp)
    np.maximum.at(last, labels, thin.row)
    lengths = last - first + 1
    chosen = np.flatnonzero(lengths >= min_length)
    chosen = chosen[np.argsort(-lengths[chosen], kind="stable")[:MAX_SEGMENTS]]
    numbers = np.full(count, -1)
    numbers[chosen] = np.arange(len(chosen))
    of_runs = numbers[labels]
    inside = of_runs >= 0
    return _fit(thin.select(inside), of_runs[inside], len(chosen), min_length, horizontal=horizontal)


def _fit(runs: Runs, numbers: Indices, count: int, min_length: float, *, horizontal: bool) -> list[Rule]:
    """Fit a straight line to each component, without the runs beside it; leave out those that have too few on it.

    Args:
        runs: of all components.
        numbers: intp[N]; the component of each run.
        count: of components.
        min_length: in pixels.
        horizontal: the direction.
    """
    if not count:
        return []
    along, across = runs.row.astype(np.float64), (runs.start + runs.stop - 1) / 2

    def total(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(numbers, values, count).astype(np.float64, copy=False)

    order = np.lexsort((runs.length, numbers))
    sizes = np.bincount(numbers, minlength=count)
    thickness = runs.length[order][np.cumsum(sizes) - sizes + sizes // 2]
    tolerance = np.maximum(np.maximum(1.0, thickness / 2), CURVATURE * sizes)
    # The rule is thinner than the digits that touch it.
    weights = (runs.length <= 1.5 * thickness[numbers] + 1).astype(np.float64)
    for _ in range(NUM_FITS):
        weight = np.maximum(total(weights), 1)
        mean_along, mean_across = total(weights * along) / weight, total(weights * across) / weight
        x, y = along - mean_along[numbers], across - mean_across[numbers]
        slope = total(weights * x * y) / np.maximum(total(weights * x * x), 1e-9)
        deviation = np.abs(y - slope[numbers] * x)
        weights = (deviation <= np.maximum(tolerance, total(deviation) / sizes)[numbers]).astype(np.float64)
    on_line = deviation <= tolerance[numbers]
    start = np.full(count, np.inf)
    np.minimum.at(start, numbers[on_line], along[on_line])
    stop = np.full(count, -np.inf)
    np.maximum.at(stop, numbers[on_line], along[on_line])
    num_on_line = total(on_line.astype(np.float64))
    straight = (num_on_line >= MIN_STRAIGHT_SHARE * (stop - start + 1)) & (num_on_line >= MIN_OWN_SHARE * sizes)
    good = np.flatnonzero(straight & (np.abs(slope) <= MAX_SLOPE) & (stop - start + 1 >= min_length))
    ends = np.stack([start, stop], axis=1)[good]
    middles = mean_across[good, None] + slope[good, None] * (ends - mean_along[good, None])
    order = np.argsort(ends[:, 0], kind="stable")
    return [
        Rule(knots, places, float(thick), horizontal)
        for knots, places, thick in zip(
            ends[order].tolist(), middles[order].tolist(), thickness[good][order].tolist(), strict=True
        )
    ]


def _chain(segments: list[Rule], across_mask: Mask, max_hole: float) -> list[Rule]:
    """Join the segments of one rule: collinear, and with ink between them, of digits that cross it, or a short hole.

    Args:
        segments: by their starts.
        across_mask: bool[along, across]; any ink, also weak.
        max_hole: pixels without ink between two segments.
    """
    chains: list[Rule] = []
    max_gap = MAX_GAP_HOLES * max_hole
    # Chains by the place of their ends across: those that a segment may continue are in its band or beside it.
    band = MAX_SLOPE * max_gap + MAX_THICKNESS
    ends: dict[int, list[Rule]] = {}
    for segment in segments:
        number = int(segment.across[0] // band)
        near = [chain for index in (number - 1, number, number + 1) for chain in ends.get(index, ())]
        best, best_offset = None, np.inf
        for chain in near:
            gap = segment.start - chain.stop
            if not -1 <= gap <= max_gap:
                continue
            offset = abs(chain.beyond(segment.start) - segment.across[0])
            tolerance = max(2.0, chain.thickness / 2) + 0.02 * max(gap, 0)
            if offset < min(tolerance, best_offset) and _similar(chain.thickness, segment.thickness):
                best, best_offset = chain, offset
        if best is not None and _is_bridged(best, segment, across_mask, max_hole):
            ends[int(best.across[-1] // band)].remove(best)
            best.extend(segment)
        else:
            best = segment
            chains.append(segment)
        ends.setdefault(int(best.across[-1] // band), []).append(best)
    return chains


def _similar(one: float, two: float) -> bool:
    low, high = sorted((one, two))
    return high <= 2 * low + 2


def _is_bridged(chain: Rule, segment: Rule, across_mask: Mask, max_hole: float) -> bool:
    """Return whether there is ink all the way between two segments, apart from a hole."""
    first, last = int(chain.stop) + 1, int(segment.start)
    if last - first <= max_hole / 4:
        return True
    along = np.arange(first, last)
    middle = np.interp(along, [chain.stop, segment.start], [chain.across[-1], segment.across[0]])
    places = np.clip(np.rint(middle).astype(np.intp), 1, across_mask.shape[1] - 2)
    inked = across_mask[along, places] | across_mask[along, places - 1] | across_mask[along, places + 1]
    return int(np.count_nonzero(~inked)) <= max_hole and int(np.count_nonzero(~inked)) <= chain.length / 2


def _spans(side: Rule, others: list[Rule], end_of_image: int, height: float) -> bool:
    """Return whether a side meets or crosses two rules, or the border of the image, that are a box's side apart.

    Args:
        side: a short straight line.
        others: rules across it.
        end_of_image: size of the image along it.
        height: typical height of digits.
    """
    met = [crossing for other in others if (crossing := _crossing(side, other)) is not None]
    if side.start <= 1:
        met.append(0)
    if side.stop >= end_of_image - 2:
        met.append(end_of_image)
    return bool(met) and max(met) - min(met) >= MIN_SIDE_SHARE * height


def _crossing(side: Rule, other: Rule) -> float | None:
    """Return where, along a side, another rule crosses or meets it."""
    reach = side.thickness + other.thickness + 2
    place = other.at(side.at((side.start + side.stop) / 2))
    if not side.start - reach <= place <= side.stop + reach:
        return None
    return place if other.start - reach <= side.at(place) <= other.stop + reach else None


def _meets(other: Rule, along: float, across: float, thickness: float) -> bool:
    """Return whether another rule passes, or ends, near a point: ``along`` and ``across`` are the other's directions."""
    reach = thickness + other.thickness + 2
    return other.start - reach <= along <= other.stop + reach and abs(other.at(along) - across) <= reach


def _find_ticks(candidates: list[Rule], rows: list[Rule], mask: Mask, height: float) -> list[Rule]:
    """Return short vertical lines that start from a horizontal rule, are of one length, and at regular distances."""
    found: list[Rule] = []
    candidates = [rule for rule in candidates if rule.length <= MAX_TICK_SHARE * height]
    for row in rows:
        for end in (-1, 0):
            ticks = [
                rule
                for rule in candidates
                if _meets(row, rule.across[end], rule.along[end], rule.thickness)
                and rule.thickness <= 2 * row.thickness + 1
                and _is_free(rule, -1 - end, mask)
            ]
            if len(ticks) < MIN_TICKS:
                continue
            length = float(np.median([tick.length for tick in ticks]))
            ticks = [tick for tick in ticks if abs(tick.length - length) <= MAX_TICK_DEVIATION * length + 2]
            places = np.array([tick.across[end] for tick in ticks])
            found += [
                tick
                for tick, regular in zip(ticks, _regular(places, MIN_STEP_SHARE * height), strict=True)
                if regular and tick not in found
            ]
    return found


def _is_free(tick: Rule, end: int, mask: Mask) -> bool:
    """Return whether a vertical line ends in background at its first (0) or last (-1) knot: strokes of digits go on in a curve."""
    row, column = round(tick.along[end]), round(tick.across[end])
    rows = slice(max(row - FREE_ROWS, 0), max(row - 1, 0)) if end == 0 else slice(row + 2, row + FREE_ROWS + 1)
    reach = round(tick.thickness)
    return not mask[rows, max(column - reach, 0) : column + reach + 1].any()


def _regular(places: NDArray[np.float64], min_step: float) -> NDArray[np.bool_]:
    """Return which places are at equal distances, of which some may be missing: bool[N]; none if most are not.

    Args:
        places: float64[N]; along a comb.
        min_step: least distance, in pixels.
    """
    best = np.zeros(len(places), np.bool_)
    distances = np.abs(places[:MAX_TICKS, None] - places)
    for step in np.unique(np.rint(np.diff(np.sort(places[:MAX_TICKS]))))[::-1]:
        if step < min_step:
            break
        steps = distances / step
        regular = np.abs(steps - np.rint(steps)) <= MAX_TICK_DEVIATION
        most = regular[int(np.argmax(regular.sum(axis=1)))]
        if np.count_nonzero(most) > np.count_nonzero(best):
            best = most
    enough = np.count_nonzero(best) >= max(MIN_TICKS, MIN_REGULAR_SHARE * len(places))
    return best if enough else np.zeros(len(places), np.bool_)

"""A rule, a ruled line or a side of a box, and the removal of rules without damage to the digits that touch or cross them.

``rulings`` finds rules, ``layout`` removes them on a worker's thread; no state is kept. A position ``along`` a rule is a column for a
horizontal one and a row for a vertical one; ``across`` is the other. A digit that crosses a rule makes the run there longer than
the rule is thick; such runs stay, so its stroke stays whole.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from digitserve.reading.components import run_pixels
from digitserve.reading.pieces import Mask
from digitserve.reading.runs import find_runs
from digitserve.types import Box


@dataclass(slots=True, eq=False)
class Rule:
    """A straight or slightly curved line.

    Attributes:
        along: knots, ascending: columns of a horizontal rule, rows of a vertical one.
        across: the rule's middle at the knots.
        thickness: in pixels.
        horizontal: its direction.
    """

    along: list[float]
    across: list[float]
    thickness: float
    horizontal: bool

    @property
    def start(self) -> float:
        """First position along."""
        return self.along[0]

    @property
    def stop(self) -> float:
        """Last position along."""
        return self.along[-1]

    @property
    def length(self) -> float:
        """Distance of its ends."""
        return self.stop - self.start

    def at(self, along: float) -> float:
        """Return its middle at a position along; beyond its ends that of the end."""
        return float(np.interp(along, self.along, self.across))

    def beyond(self, along: float) -> float:
        """Return where it would be beyond its last position, from the slope of the whole."""
        slope = (self.across[-1] - self.across[0]) / max(self.length, 1.0)
        return self.across[-1] + slope * (along - self.stop)

    def extend(self, segment: "Rule") -> None:
        """Append a segment that continues it."""
        weight = self.length / (self.length + segment.length)
        self.thickness = self.thickness * weight + segment.thickness * (1 - weight)
        self.along += [max(place, self.stop + 0.5) for place in segment.along]
        self.across += segment.across

    def moved(self, distance: float) -> "Rule":
        """Return it moved across its direction."""
        return Rule(self.along, [place + distance for place in self.across], self.thickness, self.horizontal)

    def box(self, shape: tuple[int, ...]) -> Box:
        """Return the box of the rule within a mask of this shape."""
        half = self.thickness / 2
        low, high = int(min(self.across) - half), int(max(self.across) + half) + 1
        start, stop = int(self.start), int(self.stop) + 1
        top, bottom, left, right = (low, high, start, stop) if self.horizontal else (start, stop, low, high)
        return Box(max(top, 0), min(bottom, shape[0]), max(left, 0), min(right, shape[1]))


class Rulings(NamedTuple):
    """The rules of an image.

    Attributes:
        horizontal: from top to bottom.
        vertical: from left to right.
    """

    horizontal: list[Rule]
    vertical: list[Rule]

    @property
    def thickness(self) -> float:
        """Thickness of the thickest rule; 0 if there is none."""
        return max((rule.thickness for rule in self.horizontal + self.vertical), default=0.0)


def remove(mask: Mask, rules: list[Rule], beyond: float) -> None:
    """Remove rules of one direction from a mask, in place; strokes that cross them stay.

    Args:
        mask: bool[H, W].
        rules: of one direction.
        beyond: pixels beyond the ends of a rule that are removed too: the thickness of a rule that it meets.
    """
    if not rules:
        return
    across_mask = mask.T if rules[0].horizontal else mask
    runs = find_runs(np.ascontiguousarray(across_mask))
    removed = np.zeros(len(runs.row), np.bool_)
    for rule in rules:
        first, last = np.searchsorted(runs.row, [rule.start - 2 - beyond, rule.stop + 3 + beyond])
        part = slice(int(first), int(last))
        middle = np.interp(runs.row[part], rule.along, rule.across)
        reach = rule.thickness / 2 + 1
        on_rule = (runs.start[part] <= middle + reach) & (runs.stop[part] >= middle - reach)
        thin = runs.length[part] <= rule.thickness + max(2, rule.thickness / 2)
        removed[part] |= on_rule & thin
    gone = runs.select(removed)
    rows, columns = np.divmod(run_pixels(gone, across_mask.shape[1]), across_mask.shape[1])
    across_mask[rows, columns] = False


def cover(shape: tuple[int, ...], rulings: Rulings) -> Mask:
    """Return the pixels on and beside the rules, where what is left of them may be: bool[H, W]."""
    zone = np.zeros(shape, np.bool_)
    beyond = 2 + int(rulings.thickness)
    for rule in rulings.horizontal + rulings.vertical:
        view = zone.T if rule.horizontal else zone
        along = np.arange(max(int(rule.start) - beyond, 0), min(int(rule.stop) + 1 + beyond, len(view)))
        middle = np.interp(along, rule.along, rule.across)
        reach = rule.thickness / 2 + 2
        for offset in np.arange(-reach, reach + 1):
            view[along, np.clip(np.rint(middle + offset).astype(np.intp), 0, view.shape[1] - 1)] = True
    return zone

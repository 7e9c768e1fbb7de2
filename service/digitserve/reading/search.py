"""The texts that a piece, or a line, may show, and how probable they are.

    parts of a piece, scored by the network ──read_piece──▶ texts of the piece
    texts of the pieces of a line, automaton ──read_line──▶ text of the line

``reader`` calls it on a worker's thread; no state is kept. The weight of a text is summed over all cuttings that give it (forward
algorithm), so the share of the best text is a posterior probability. Two cuts that are near may both be used: the left digit
ends at one, the right digit starts at the other, because strokes of touching digits share ink.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from digitserve.reading.confidence import Weights
from digitserve.reading.patterns import LineAutomaton, State

MAX_TEXTS = 24
"""Texts of one length that are kept for a piece; the eleventh best is right in less than 1 of 1 000 touching pieces."""

MAX_LINE_TEXTS = 4
"""Texts that are kept per state of the automaton."""

MIN_ALLOWED, MIN_STATE = 0.1, 1e-6
"""Probability that a line shows a text that is allowed, below which the line does not match: a clear digit is never changed to fit.
And that of all texts which lead to one state of the automaton, below which they are forgotten."""


class PieceText(NamedTuple):
    """One text that a piece may show.

    Attributes:
        text: its characters; empty for ink that is no mark.
        weight: not normalised.
        is_cut: whether its characters are parts of the piece.
    """

    text: str
    weight: float
    is_cut: bool = False


def read_piece(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    weights: Weights,
    links: Weights,
    max_digits: int,
) -> list[tuple[str, float]]:
    """Find the texts of a piece that is cut into parts.

    Args:
        starts: int64[S], first node of each part.
        ends: int64[S], last node; nodes are numbered from left to right, parts may not go backwards.
        weights: float64[S, 10], that the part is one digit with this label.
        links: float64[N, N], that a digit ends at the first node and the next one starts at the second.
        max_digits: of a text.

    Returns:
        Texts of at least two digits with their weights, highest first.
    """
    num_nodes = len(links)
    flat = _steps(starts, ends, weights, num_nodes).reshape(num_nodes, -1)
    texts = [""]
    reached = np.zeros((1, num_nodes))
    reached[0, 0] = 1
    found: list[tuple[str, float]] = []
    for length in range(1, max_digits + 1):
        after = (reached @ flat).reshape(len(texts), num_nodes, 10)
        if length > 1:
            final = after[:, -1]
            found += [(texts[row] + str(label), float(final[row, label])) for row, label in _largest(final, MAX_TEXTS)]
        after[:, -1] = 0
        going_on = after.transpose(0, 2, 1) @ links
        best = _largest(going_on.sum(axis=2), MAX_TEXTS)
        if not best:
            break
        texts = [texts[row] + str(label) for row, label in best]
        reached = np.stack([going_on[row, label] for row, label in best])
    found.sort(key=lambda item: -item[1])
    return found


def _steps(starts: NDArray[np.int64], ends: NDArray[np.int64], weights: Weights, num_nodes: int) -> Weights:
    """Return the weights of parts by their nodes: float64[N, N, 10]."""
    steps = np.zeros((num_nodes, num_nodes, 10))
    steps[starts, ends] = weights
    return steps


def _largest(values: Weights, most: int) -> list[tuple[int, int]]:
    """Return the positions of the largest positive values of a table."""
    flat = values.ravel()
    order = np.argsort(-flat, kind="stable")[:most]
    return [divmod(int(index), values.shape[1]) for index in order if flat[index] > 0]


def best_cutting(
    text: str, starts: NDArray[np.int64], ends: NDArray[np.int64], weights: Weights, links: Weights
) -> tuple[int, ...]:
    """Return the parts of the heaviest single cutting that gives a text of ``read_piece``, by the Viterbi algorithm."""
    num_nodes = len(links)
    steps = _steps(starts, ends, weights, num_nodes)
    part_at = np.full((num_nodes, num_nodes), -1)
    part_at[starts, ends] = np.arange(len(starts))
    reached = np.zeros(num_nodes)
    reached[0] = 1
    back: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for position, character in enumerate(text):
        linked = reached[:, None] * (links if position else np.eye(num_nodes))
        from_node = linked.argmax(axis=0)
        through = linked.max(axis=0)[:, None] * steps[:, :, int(character)]
        start = through.argmax(axis=0)
        back.append((from_node, start))
        reached = through.max(axis=0)
        if position < len(text) - 1:
            reached[-1] = 0
    segments = []
    node = num_nodes - 1
    for from_node, start in reversed(back):
        segments.append(int(part_at[start[node], node]))
        node = int(from_node[start[node]])
    return tuple(reversed(segments))


class LineText(NamedTuple):
    """A text of a line.

    Attributes:
        choices: for each piece, the index of its text.
        probability: weight of all cuttings that give this text, against all that are allowed.
    """

    choices: tuple[int, ...]
    probability: float


def read_line(
    pieces: Sequence[Sequence[PieceText]], gaps: Sequence[bool], automaton: LineAutomaton | None
) -> Generator[None, None, LineText | None]:
    """Find the best text of a line, in a step per piece if there is an automaton.

    Args:
        pieces: the texts of each piece, weights summing to 1, highest first.
        gaps: whether a wide gap follows the piece.
        automaton: what is allowed; None for any text.

    Returns:
        None if no text is allowed, or only such as are much less likely than others.
    """
    if automaton is None:
        probability = 1.0
        for texts in pieces:
            probability *= texts[0].weight
        return LineText((0,) * len(pieces), probability)
    states = {automaton.start: _Kept({"": _Entry(1.0, 1.0, None)})}
    for texts, gap in zip(pieces, gaps, strict=True):
        states = _extend(states, texts, automaton, gap=gap)
        if not states:
            return None
        yield
    final = _Kept()
    for state, kept in states.items():
        if automaton.accepts(state):
            final.add_all(kept, "", 1.0, None)
    total = final.weight()
    if not total > 0 or total < MIN_ALLOWED:
        return None
    best = max(final.texts.values(), key=lambda entry: entry.weight)
    return LineText(_unwind(best.choices), best.weight / total)


_Choices: TypeAlias = "tuple[int, _Choices] | None"
"""Of the last piece, and of those before it: a text that grows is not copied."""


def _unwind(choices: _Choices) -> tuple[int, ...]:
    found = []
    while choices is not None:
        choice, choices = choices
        found.append(choice)
    return tuple(reversed(found))


class _Entry(NamedTuple):
    """A text so far.

    Attributes:
        weight: of all its cuttings.
        heaviest: weight of the heaviest one.
        choices: of that one.
    """

    weight: float
    heaviest: float
    choices: _Choices


@dataclass(slots=True)
class _Kept:
    """The texts of a state of the automaton; lives during ``read_line``.

    Attributes:
        texts: the heaviest ones.
        rest: weight of all others, so that probabilities are not too high.
    """

    texts: dict[str, _Entry] = field(default_factory=dict)
    rest: float = 0.0

    def add_all(self, other: "_Kept", text: str, weight: float, choice: int | None) -> None:
        """Add the texts of another state, each with more text behind it; ``choice`` is None if no piece is added."""
        for start, entry in other.texts.items():
            longer, heaviest = start + text, entry.heaviest * weight
            choices = entry.choices if choice is None else (choice, entry.choices)
            known = self.texts.get(longer)
            if known is None:
                self.texts[longer] = _Entry(entry.weight * weight, heaviest, choices)
            elif heaviest > known.heaviest:
                self.texts[longer] = _Entry(known.weight + entry.weight * weight, heaviest, choices)
            else:
                self.texts[longer] = known._replace(weight=known.weight + entry.weight * weight)
        self.rest += other.rest * weight

    def drop(self) -> None:
        """Keep ``MAX_LINE_TEXTS``."""
        if len(self.texts) > MAX_LINE_TEXTS:
            heaviest_first = sorted(self.texts.items(), key=lambda item: -item[1].weight)
            self.texts = dict(heaviest_first[:MAX_LINE_TEXTS])
            self.rest += sum(entry.weight for _, entry in heaviest_first[MAX_LINE_TEXTS:])

    def weight(self) -> float:
        """Return the weight of all its texts."""
        return self.rest + sum(entry.weight for entry in self.texts.values())


def _extend(
    states: dict[State, _Kept], texts: Sequence[PieceText], automaton: LineAutomaton, *, gap: bool
) -> dict[State, _Kept]:
    """Add a piece to the texts of each state."""
    following: dict[State, _Kept] = {}
    for state, kept in states.items():
        for choice, option in enumerate(texts):
            after = automaton.run(option.text, state)
            if after is None or not option.weight > 0:
                continue
            ways = [after]
            if gap:
                spaced = automaton.step(after, " ")
                if spaced is not None and spaced != after:
                    ways.append(spaced)
            for way in ways:
                following.setdefault(way, _Kept()).add_all(kept, option.text, option.weight, choice)
    # What is much lighter than MIN_ALLOWED in all can be neither allowed nor the best.
    heavy = {state: kept for state, kept in following.items() if kept.weight() >= MIN_STATE}
    for kept in heavy.values():
        kept.drop()
    return heavy

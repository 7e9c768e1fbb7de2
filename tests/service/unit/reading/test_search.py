"""The search over cuttings: texts and their weights against all cuttings tried one by one."""

from collections import defaultdict
from itertools import pairwise, product
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.reading import search
from digitserve.reading.patterns import LineAutomaton
from digitserve.reading.search import LineText, PieceText, best_cutting, read_line, read_piece

MAX_DIGITS = 3


def _lattice(seed: int, num_nodes: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return starts, ends, weights of two labels, and links of a random piece."""
    generator = np.random.default_rng(seed)
    pairs = [(start, end) for start in range(num_nodes) for end in range(start + 1, num_nodes)]
    pairs = [pair for pair in pairs if pair != (0, num_nodes - 1) and generator.random() < 0.8]
    weights = np.zeros((len(pairs), 10))
    weights[:, :2] = generator.random((len(pairs), 2))
    links = np.diag(generator.random(num_nodes))
    links[1:-1, 1:-1] += generator.random((num_nodes - 2, num_nodes - 2)) * 0.3
    starts, ends = np.array(pairs, np.int64).reshape(-1, 2).T
    return starts, ends, weights, links


def _all_cuttings(
    starts: np.ndarray, ends: np.ndarray, weights: np.ndarray, links: np.ndarray
) -> dict[str, list[tuple[float, tuple[int, ...]]]]:
    """Return for each text the weights of all its cuttings."""
    last = len(links) - 1
    found: dict[str, list[tuple[float, tuple[int, ...]]]] = defaultdict(list)
    for length in range(2, MAX_DIGITS + 1):
        for parts in product(range(len(starts)), repeat=length):
            if starts[parts[0]] or ends[parts[-1]] != last or any(ends[part] == last for part in parts[:-1]):
                continue
            weight = np.prod([links[ends[one], starts[two]] for one, two in pairwise(parts)])
            for labels in product((0, 1), repeat=length):
                total = weight * np.prod([weights[part, label] for part, label in zip(parts, labels, strict=True)])
                if total > 0:
                    found["".join(map(str, labels))].append((float(total), parts))
    return found


@given(st.integers(0, 10_000), st.integers(3, 4))
def test_weights_are_sums_over_all_cuttings(seed: int, num_nodes: int) -> None:
    """Each text has the weight of all cuttings that give it, and its best cutting is the heaviest of them."""
    starts, ends, weights, links = _lattice(seed, num_nodes)
    expected = _all_cuttings(starts, ends, weights, links)
    found = read_piece(starts, ends, weights, links, MAX_DIGITS)
    assert {text for text, _ in found} == set(expected)
    assert [weight for _, weight in found] == sorted((weight for _, weight in found), reverse=True)
    for text, found_weight in found:
        cuttings = expected[text]
        assert found_weight == pytest.approx(sum(weight for weight, _ in cuttings))
        best = best_cutting(text, starts, ends, weights, links)
        assert {parts: weight for weight, parts in cuttings}[best] == pytest.approx(max(cuttings)[0])


def _read_line(pieces: Any, gaps: list[bool], automaton: LineAutomaton | None) -> LineText | None:
    """Run all steps of ``read_line``."""
    steps = read_line(pieces, gaps, automaton)
    while True:
        try:
            next(steps)
        except StopIteration as stop:
            found: LineText | None = stop.value
            return found


AUTOMATA = {pattern: LineAutomaton(pattern, 0) for pattern in (r"\d{2}", r"1?7?/\d", r"\d(/\d)?", r"\d{1,9}")}
"""Built once: that takes longer than reading a line."""

_TEXTS = st.lists(
    st.tuples(st.sampled_from(["1", "7", "17", "/", ""]), st.floats(0.01, 1)),
    min_size=1,
    max_size=3,
    unique_by=lambda text: text[0],
)


@given(st.lists(_TEXTS, min_size=1, max_size=3), st.sampled_from(sorted(AUTOMATA)))
def test_line_has_the_allowed_text_with_the_highest_weight(pieces: list[list[tuple[str, float]]], pattern: str) -> None:
    """The chosen text is the heaviest of those that the pattern allows, and its probability is its share of them.

    That holds while no text is dropped, so the limit is raised above the number of texts.
    """
    automaton = AUTOMATA[pattern]
    expected: dict[str, float] = defaultdict(float)
    for choice in product(*pieces):
        text = "".join(one for one, _ in choice)
        state = automaton.run(text)
        if state is not None and automaton.accepts(state):
            expected[text] += float(np.prod([weight for _, weight in choice]))
    options = [[PieceText(*text) for text in sorted(piece, key=lambda text: -text[1])] for piece in pieces]
    with mock.patch.multiple(search, MAX_LINE_TEXTS=1000, MIN_ALLOWED=0, MIN_STATE=0):
        found = _read_line(options, [False] * len(pieces), automaton)
    if not expected:
        assert found is None
        return
    assert found is not None
    chosen = "".join(piece[choice].text for piece, choice in zip(options, found.choices, strict=True))
    assert expected[chosen] == pytest.approx(max(expected.values()))
    assert found.probability == pytest.approx(max(expected.values()) / sum(expected.values()))


@given(st.lists(_TEXTS, min_size=1, max_size=3), st.sampled_from(sorted(AUTOMATA)))
def test_dropped_texts_lower_the_probability(pieces: list[list[tuple[str, float]]], pattern: str) -> None:
    """Texts that are dropped on the way count as others: a probability is at most the share of all cuttings that give the text."""
    automaton = AUTOMATA[pattern]
    options = [[PieceText(*text) for text in sorted(piece, key=lambda text: -text[1])] for piece in pieces]
    found = {}
    for most in (1, 1000):
        with mock.patch.multiple(search, MAX_LINE_TEXTS=most, MIN_ALLOWED=0, MIN_STATE=0):
            found[most] = _read_line(options, [False] * len(pieces), automaton)
    few, all_texts = found[1], found[1000]
    assert (few is None) == (all_texts is None)
    if few is not None and all_texts is not None:
        assert few.probability <= all_texts.probability + 1e-9


def test_pattern_decides_only_between_texts_that_are_likely() -> None:
    """The pattern chooses a label that is about as likely as the best; a clear one is never changed to fit, whole or cut."""
    for is_cut in (False, True):
        for probability, choices in ((0.4, (1,)), (0.01, None)):
            piece = [PieceText("1", 1 - probability), PieceText("7", probability, is_cut)]
            found = _read_line([piece], [False], LineAutomaton("7", 0))
            assert (None if found is None else found.choices) == choices


def test_line_of_many_pieces_is_read_in_small_steps() -> None:
    """One step adds one piece, so that no line keeps others waiting; unlikely ways are forgotten, so that the steps stay small."""
    pieces = [[PieceText("", 0.9), PieceText("1", 0.06), PieceText("7", 0.04)]] * 300
    automaton = LineAutomaton(r"\d{1,256}", 0)
    sizes = []
    extend = search._extend

    def measured(*args: Any, **options: Any) -> Any:
        states = extend(*args, **options)
        sizes.append(len(states))
        return states

    with mock.patch.object(search, "_extend", measured):
        steps = list(read_line(pieces, [False] * 300, automaton))
    assert len(steps) == len(sizes) == 300
    assert max(sizes) < 100


def test_space_of_a_pattern_needs_a_wide_gap() -> None:
    """A space matches only where a wide gap is; a wide gap needs no space in the pattern."""
    pieces = [[PieceText("1", 1.0)], [PieceText("2", 1.0)]]
    assert _read_line(pieces, [True, False], LineAutomaton("1 2", 0)) is not None
    assert _read_line(pieces, [False, False], LineAutomaton("1 2", 0)) is None
    assert _read_line(pieces, [True, False], LineAutomaton("12", 0)) is not None

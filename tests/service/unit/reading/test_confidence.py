"""From scores to probabilities and confidences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.reading.confidence import FITTED, LABEL_WIDTHS, digit_probability, unknown_odds

SCORES = st.floats(-20, 20)


@given(SCORES, SCORES)
def test_higher_scores_are_less_probable(one: float, other: float) -> None:
    """The probability of a digit falls with its score, and is a half where "no digit" is as probable."""
    assert digit_probability(0) == 0.5
    low, high = sorted((one, other))
    assert 0 < digit_probability(high) <= digit_probability(low) < 1


@given(st.integers(1, 50), st.data())
def test_familiar_neighbours_make_a_digit_more_probable(num_others: int, data: st.DataObject) -> None:
    """Each further digit beside it lowers the odds that a mark is none; alone they are even, among letters they rise."""
    num_familiar = data.draw(st.integers(0, num_others - 1))
    assert unknown_odds(num_familiar + 1, num_others) < unknown_odds(num_familiar, num_others)
    assert unknown_odds(num_others, num_others) < unknown_odds(0, 0) == 1 < unknown_odds(0, num_others)


def test_wide_ink_is_not_one_shape() -> None:
    """The weight of a piece as one shape falls with its width, whatever the network says; it never is zero."""
    assert FITTED.whole(-9.0, 0.8, 1.0) > 0.9
    for score in (-9.0, 0.0, 9.0):
        weights = [FITTED.whole(score, width, 1.0) for width in (0.8, 1.6, 2.4, 3.2)]
        assert weights == sorted(weights, reverse=True)
        assert 0 < weights[-1] < 1e-4
        assert FITTED.whole(score, 1.0, 0.2) < FITTED.whole(score, 1.0, 5.0)


@given(st.floats(0.1, 2.0))
def test_parts_weigh_most_at_the_width_of_their_label(width: float) -> None:
    """Of two labels that the network finds equally probable, the one whose usual width is nearer weighs more."""
    even = np.full((1, 10), 0.1, np.float32)
    weights = FITTED.parts(even, np.zeros(1, np.float32), np.ones(1), np.array([width]))
    assert weights.argmax() == np.abs(LABEL_WIDTHS - width).argmin()


@given(st.integers(1, 30), st.floats(0, 3))
def test_near_cuts_count_as_one(number: int, cost: float) -> None:
    """A boundary weighs about the same however many cuts find it, and less the more ink is on them."""
    distances = np.zeros((number, number), np.float32)
    free = FITTED.links(distances, np.zeros(number, np.float32)).sum()
    assert 0.5 <= free <= 1
    assert FITTED.links(distances, np.full(number, cost, np.float32)).sum() == pytest.approx(
        free * np.exp(-FITTED.cut_cost * cost)
    )

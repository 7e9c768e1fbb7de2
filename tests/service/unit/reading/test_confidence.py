"""From scores to probabilities and confidences."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.reading.confidence import FITTED, LABEL_WIDTHS, digit_probability, score_in_line

SCORES = st.floats(-20, 20)


@given(SCORES, SCORES)
def test_higher_scores_are_less_probable(one: float, other: float) -> None:
    """The probability of a digit falls with its score, and is a half where "no digit" is as probable."""
    assert digit_probability(0) == 0.5
    low, high = sorted((one, other))
    assert 0 < digit_probability(high) <= digit_probability(low) < 1


@given(SCORES)
def test_one_digit_alone_is_judged_as_a_single_image(score: float) -> None:
    """Beside no other digit, the score is that of ``Classify``."""
    assert score_in_line(score, 0, 0) == score


@given(SCORES, st.integers(1, 50), st.data())
def test_familiar_neighbours_make_a_digit_more_probable(score: float, num_others: int, data: st.DataObject) -> None:
    """Each further digit that is familiar lowers the score; among letters it rises."""
    num_familiar = data.draw(st.integers(0, num_others - 1))
    assert score_in_line(score, num_familiar + 1, num_others) < score_in_line(score, num_familiar, num_others)
    assert score_in_line(score, num_others, num_others) < score < score_in_line(score, 0, num_others)


def test_wide_ink_is_not_one_digit() -> None:
    """What is as wide as several digits is one digit with less weight than any cutting, whatever the network says of it."""
    assert FITTED.whole(-9.0, 0.8) == pytest.approx(1, abs=1e-3)
    assert FITTED.whole(-9.0, 3.0) < 1e-6
    assert FITTED.whole(5.0, 3.0) < 1e-18


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

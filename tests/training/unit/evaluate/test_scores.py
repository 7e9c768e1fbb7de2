"""What is promised about figures of merit: their bounds, and their values where those are known beforehand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve_training.evaluate import scores
from digitserve_training.evaluate.scores import Floats

few = settings(max_examples=10)
"""For what libraries take milliseconds to compute."""

seeds = st.integers(0, 2**32 - 1)


def answers(seed: int, num_images: int, num_labels: int = 10) -> tuple[Floats, np.ndarray]:
    """Return probabilities of any shape, float64[N,labels], and labels that are drawn from just these probabilities."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(num_labels, generator.uniform(0.05, 2)), num_images)
    drawn = (generator.random((num_images, 1)) > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return probabilities, drawn.astype(np.int64)


@few
@given(seed=seeds)
def test_what_is_calibrated_has_a_small_error(seed: int) -> None:
    """Where labels come up just as often as their probabilities say, only chance is left of the calibration error."""
    probabilities, labels = answers(seed, 6_000)

    # A bin of 400 answers has a standard deviation of at most 0.025, and their mean over 15 bins much less.
    assert scores.reliability(probabilities, labels).error < 0.05


@given(seed=seeds, num_images=st.integers(1, 60), num_bins=st.integers(1, 20))
def test_calibration_error_is_a_share(seed: int, num_images: int, num_bins: int) -> None:
    """However few answers there are, each lies in one bin, bins rise in confidence, and the error is from 0 to 1."""
    found = scores.reliability(*answers(seed, num_images), num_bins)

    assert int(found.num_images.sum()) == num_images
    assert np.ptp(found.num_images) <= 1
    assert np.all(np.diff(found.confidence) >= 0)
    assert 0 <= found.error <= 1


def test_calibration_error_of_known_answers() -> None:
    """Sure and always wrong is an error of 1, sure and always right one of 0, 0.8 sure and half right one of 0.3."""
    sure, half = np.eye(2)[[0, 1, 0, 1]], np.array([[0.8, 0.2]] * 4)

    assert scores.reliability(sure, np.array([1, 0, 1, 0])).error == 1
    assert scores.reliability(sure, np.array([0, 1, 0, 1])).error == 0
    assert scores.reliability(half, np.array([0, 1, 0, 1]), num_bins=1).error == pytest.approx(0.3)


def test_cross_entropy_of_known_answers() -> None:
    """Evenly spread is the logarithm of the number of labels, certain and right is 0, certain and wrong is finite."""
    labels = np.array([0, 3])

    assert scores.cross_entropy(np.full((2, 4), 0.25), labels) == pytest.approx(np.log(4))
    assert scores.cross_entropy(np.eye(4)[labels], labels) == 0
    assert 80 < scores.cross_entropy(np.eye(4)[[1, 1]], labels) < 90


@given(seed=seeds, num_images=st.integers(1, 80))
def test_rejection_curve_is_bounded(seed: int, num_images: int) -> None:
    """The share refused rises from 0 and stays below 1; the error starts at that of all answers and is a share."""
    probabilities, labels = answers(seed, num_images)
    refused, wrong = scores.rejection_curve(probabilities, labels)

    assert len(refused) == len(wrong) == num_images
    assert refused[0] == 0
    assert np.all(np.diff(refused) > 0)
    assert refused[-1] < 1
    assert wrong[0] == pytest.approx(np.mean(probabilities.argmax(axis=1) != labels))
    assert np.all((wrong >= 0) & (wrong <= 1))
    # One refusal more cannot take away more than one mistake.
    assert np.all(np.diff(np.round(wrong * np.arange(num_images, 0, -1))) <= 0)


def test_rejection_curve_refuses_the_unsure_first() -> None:
    """Where only the least confident answers are wrong, refusing them leaves no mistake."""
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.55, 0.45]])

    refused, wrong = scores.rejection_curve(probabilities, np.array([0, 0, 0, 1]))

    assert refused.tolist() == [0, 0.25, 0.5, 0.75]
    assert wrong.tolist() == pytest.approx([0.5, 1 / 3, 0, 0])


@few
@given(num_images=st.integers(1, 20_000), share=st.floats(0, 1))
def test_interval_holds_the_share(num_images: int, share: float) -> None:
    """The interval lies within 0 to 1 and around the share that was found, and never has no width."""
    num_right = round(share * num_images)
    low, high = scores.interval(num_right, num_images)

    assert 0 <= low <= num_right / num_images + 1e-12
    assert num_right / num_images - 1e-12 <= high <= 1
    assert low < high


def test_interval_of_known_shares() -> None:
    """Wilson's interval of 9 950 in 10 000, and of 10 in 10, computed by hand from his formula."""
    assert scores.interval(9_950, 10_000) == pytest.approx((0.99342, 0.99620), abs=1e-5)
    assert scores.interval(10, 10) == pytest.approx((0.72246, 1.0), abs=1e-5)


@few
@given(scores_=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_auroc_of_equal_and_separated_scores(scores_: list[float]) -> None:
    """Scores that strangers and digits have alike tell nothing, 0.5; scores wholly above or below tell all, 1 or 0."""
    digits = np.array(scores_)

    assert scores.auroc(digits, digits) == pytest.approx(0.5)
    assert scores.auroc(digits, digits.max() + 1 + np.arange(5)) == pytest.approx(1)
    assert scores.auroc(digits, digits.min() - 1 - np.arange(5)) == pytest.approx(0, abs=1e-12)


def test_auroc_counts_pairs() -> None:
    """It is the share of pairs in which the stranger scores higher, ties counting half."""
    assert scores.auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == pytest.approx(3.5 / 4)

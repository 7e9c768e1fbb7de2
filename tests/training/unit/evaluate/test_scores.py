"""Metrics: their bounds, and their values in cases with a known result."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve_training.evaluate import scores
from digitserve_training.evaluate.scores import Floats

few = settings(max_examples=10)
"""For functions that take milliseconds per call."""

seeds = st.integers(0, 2**32 - 1)


def predictions(seed: int, num_images: int, num_labels: int = 10) -> tuple[Floats, np.ndarray]:
    """Return random probabilities, float64[N,labels], and labels drawn from these probabilities, int64[N]."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(num_labels, generator.uniform(0.05, 2)), num_images)
    drawn = (generator.random((num_images, 1)) > probabilities.cumsum(axis=1)[:, :-1]).sum(axis=1)
    return probabilities, drawn.astype(np.int64)


@few
@given(seed=seeds)
def test_calibrated_predictions_have_a_small_error(seed: int) -> None:
    """If labels occur as often as their probabilities say, the calibration error is only random noise."""
    probabilities, labels = predictions(seed, 6_000)

    # A bin of 400 predictions has a standard deviation of at most 0.025, and their mean over 15 bins much less.
    assert scores.reliability(probabilities, labels).error < 0.05


@given(seed=seeds, num_images=st.integers(1, 60), num_bins=st.integers(1, 20))
def test_calibration_error_is_a_share(seed: int, num_images: int, num_bins: int) -> None:
    """For any number of predictions, each is in one bin, bins have ascending confidence, and the error is between 0 and 1."""
    found = scores.reliability(*predictions(seed, num_images), num_bins)

    assert int(found.num_images.sum()) == num_images
    assert np.ptp(found.num_images) <= 1
    assert np.all(np.diff(found.confidence) >= 0)
    assert 0 <= found.error <= 1


def test_calibration_error_in_known_cases() -> None:
    """Confidence 1: the error is 1 if all are wrong, 0 if all are right. Confidence 0.8 and half right: 0.3."""
    confident, half = np.eye(2)[[0, 1, 0, 1]], np.array([[0.8, 0.2]] * 4)

    assert scores.reliability(confident, np.array([1, 0, 1, 0])).error == 1
    assert scores.reliability(confident, np.array([0, 1, 0, 1])).error == 0
    assert scores.reliability(half, np.array([0, 1, 0, 1]), num_bins=1).error == pytest.approx(0.3)


def test_cross_entropy_in_known_cases() -> None:
    """Uniform probabilities give log(number of labels), certain and right gives 0, certain and wrong is finite."""
    labels = np.array([0, 3])

    assert scores.cross_entropy(np.full((2, 4), 0.25), labels) == pytest.approx(np.log(4))
    assert scores.cross_entropy(np.eye(4)[labels], labels) == 0
    assert 80 < scores.cross_entropy(np.eye(4)[[1, 1]], labels) < 90


@given(seed=seeds, num_images=st.integers(1, 80))
def test_rejection_curve_is_bounded(seed: int, num_images: int) -> None:
    """The rejected share rises from 0 and stays below 1; the error starts at the error of all predictions."""
    probabilities, labels = predictions(seed, num_images)
    rejected, wrong = scores.rejection_curve(probabilities, labels)

    assert len(rejected) == len(wrong) == num_images
    assert rejected[0] == 0
    assert np.all(np.diff(rejected) > 0)
    assert rejected[-1] < 1
    assert wrong[0] == pytest.approx(np.mean(probabilities.argmax(axis=1) != labels))
    assert np.all((wrong >= 0) & (wrong <= 1))
    # Rejecting one more prediction removes at most one mistake.
    assert np.all(np.diff(np.round(wrong * np.arange(num_images, 0, -1))) <= 0)


def test_rejection_starts_with_the_least_confident() -> None:
    """If only the least confident predictions are wrong, rejecting them leaves no mistake."""
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.55, 0.45]])

    rejected, wrong = scores.rejection_curve(probabilities, np.array([0, 0, 0, 1]))

    assert rejected.tolist() == [0, 0.25, 0.5, 0.75]
    assert wrong.tolist() == pytest.approx([0.5, 1 / 3, 0, 0])


@few
@given(num_images=st.integers(1, 20_000), share=st.floats(0, 1))
def test_interval_contains_the_share(num_images: int, share: float) -> None:
    """The interval is between 0 and 1, contains the observed share, and is never empty."""
    num_right = round(share * num_images)
    low, high = scores.interval(num_right, num_images)

    assert 0 <= low <= num_right / num_images + 1e-12
    assert num_right / num_images - 1e-12 <= high <= 1
    assert low < high


def test_interval_of_known_shares() -> None:
    """Wilson intervals of 9,950 in 10,000 and of 10 in 10, computed by hand from the formula."""
    assert scores.interval(9_950, 10_000) == pytest.approx((0.99342, 0.99620), abs=1e-5)
    assert scores.interval(10, 10) == pytest.approx((0.72246, 1.0), abs=1e-5)


@few
@given(scores_=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_auroc_of_equal_and_separated_scores(scores_: list[float]) -> None:
    """Equal scores of digits and non-digits give 0.5; scores of non-digits all above or all below give 1 or 0."""
    digits = np.array(scores_)

    assert scores.auroc(digits, digits) == pytest.approx(0.5)
    assert scores.auroc(digits, digits.max() + 1 + np.arange(5)) == pytest.approx(1)
    assert scores.auroc(digits, digits.min() - 1 - np.arange(5)) == pytest.approx(0, abs=1e-12)


def test_auroc_counts_pairs() -> None:
    """AUROC is the share of pairs in which the non-digit has the higher score; ties count half."""
    assert scores.auroc(np.array([0.0, 1.0]), np.array([1.0, 2.0])) == pytest.approx(3.5 / 4)

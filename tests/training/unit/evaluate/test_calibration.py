"""Temperature and OOD threshold."""

import numpy as np
import pytest

from digitserve_training.evaluate.calibration import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature, ood_threshold


@pytest.mark.parametrize("num_images", [5, 199, 200, 1000, 5000])
def test_threshold_accepts_the_given_share(num_images: int) -> None:
    """At least 99.5 % of the scores do not exceed the threshold, and it is the lowest such score."""
    scores = np.random.default_rng(1).normal(size=num_images).astype(np.float32)

    threshold = ood_threshold(scores)

    assert np.mean(scores <= threshold) >= 0.995
    assert np.mean(scores < threshold) < 0.995
    assert threshold in scores


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_is_recovered(temperature: float) -> None:
    """From labels drawn from softmax(logits / T), the fit recovers T to the precision that 20,000 labels allow."""
    generator = np.random.default_rng(2)
    logits = generator.normal(0, 3, (20_000, 10)).astype(np.float32)
    gumbel = -np.log(-np.log(generator.random(logits.shape)))
    labels = (logits / temperature + gumbel).argmax(axis=1)

    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.05)


def test_temperature_stays_within_bounds() -> None:
    """Perfect predictions need a temperature of 0 and useless ones infinity: the results are the bounds."""
    logits = np.eye(10, dtype=np.float32)

    assert fit_temperature(logits * 2, np.arange(10)) == pytest.approx(MIN_TEMPERATURE, rel=0.05)
    assert fit_temperature(logits * 2, (np.arange(10) + 1) % 10) == pytest.approx(MAX_TEMPERATURE, rel=0.05)

"""What the network's scores mean: the temperature of its probabilities, and when an image is no digit at all.

Both are fitted on validation images only. The OOD score is minus the log-sum-exp of the logits, the energy of Liu et al.
2020, "Energy-based Out-of-distribution Detection". Needs no TensorFlow.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

ACCEPTED = 0.995
"""Share of validation images that must not be called unfamiliar."""

COLDEST, HOTTEST = 0.25, 4.0
"""Bounds of the temperature: beyond them the network is broken rather than badly calibrated."""


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Choose the temperature under which softmax(logits / temperature) gives the labels the highest likelihood.

    Args:
        logits: float32[N,labels] of validation images.
        labels: int64[N].

    Returns:
        Between ``COLDEST`` and ``HOTTEST``.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    of_label = np.take_along_axis(logits, labels[:, np.newaxis], axis=1)[:, 0].astype(np.float64)

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float(np.mean(logsumexp(logits.astype(np.float64) * scale, axis=1) - of_label * scale))

    found = minimize_scalar(loss, bounds=(np.log(COLDEST), np.log(HOTTEST)), method="bounded")
    # Three digits: whoever exports the same run twice gets the same bytes, though a last bit of a logit may differ.
    return round(float(np.exp(found.x)), 3)


def ood_threshold(scores: NDArray[np.float32], accepted: float = ACCEPTED) -> float:
    """Choose the score above which an image is called unfamiliar.

    Args:
        scores: float32[N], OOD scores of validation images; higher is stranger.
        accepted: share of them that must lie at or below the threshold.

    Returns:
        The smallest of the scores that does.
    """
    return float(np.quantile(scores, accepted, method="inverted_cdf"))

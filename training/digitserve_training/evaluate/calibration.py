"""Calibration on validation images: the temperature of the probabilities and the threshold of the OOD score.

The OOD score is the negative log-sum-exp of the logits: the energy of Liu et al. 2020, "Energy-based Out-of-distribution
Detection". Does not import TensorFlow.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

ACCEPTED_SHARE = 0.995
"""Share of validation images that must not be reported as unfamiliar."""

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.25, 4.0
"""Bounds of the temperature: outside them the network is broken and not just badly calibrated."""


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Return the temperature for which softmax(logits / temperature) gives the labels the highest likelihood.

    Args:
        logits: float32[N,labels] of validation images.
        labels: int64[N].

    Returns:
        A number between ``MIN_TEMPERATURE`` and ``MAX_TEMPERATURE``, rounded to three decimals.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks".
    """
    of_label = np.take_along_axis(logits, labels[:, np.newaxis], axis=1)[:, 0].astype(np.float64)

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        return float(np.mean(logsumexp(logits.astype(np.float64) * scale, axis=1) - of_label * scale))

    found = minimize_scalar(loss, bounds=(np.log(MIN_TEMPERATURE), np.log(MAX_TEMPERATURE)), method="bounded")
    # Rounded so that exporting a run twice gives the same bytes, even if the last bits of some logits differ.
    return round(float(np.exp(found.x)), 3)


def ood_threshold(scores: NDArray[np.float32], accepted: float = ACCEPTED_SHARE) -> float:
    """Return the OOD score above which an image is reported as unfamiliar.

    Args:
        scores: float32[N], OOD scores of validation images; higher means less like the training data.
        accepted: share of these scores that must not exceed the threshold.

    Returns:
        The smallest of the scores that satisfies this.
    """
    return float(np.quantile(scores, accepted, method="inverted_cdf"))

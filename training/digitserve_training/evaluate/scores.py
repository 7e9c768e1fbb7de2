"""Metrics of predictions: calibration, cross-entropy, rejection curve, confidence interval, AUROC. No TensorFlow."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

NUM_BINS = 15
"""Number of equal-mass bins: the usual number according to Nixon et al. 2019, "Measuring Calibration in Deep Learning"."""


@dataclass(frozen=True)
class Reliability:
    """Confidence and accuracy in bins of equally many predictions, the least confident bin first.

    Attributes:
        confidence: float64[bins], mean confidence of each bin.
        accuracy: float64[bins], share of right predictions in each bin.
        num_images: int64[bins], number of predictions in each bin.
    """

    confidence: Floats = field(repr=False)
    accuracy: Floats = field(repr=False)
    num_images: NDArray[np.int64] = field(repr=False)

    @property
    def error(self) -> float:
        """Adaptive calibration error: mean of abs(confidence - accuracy), weighted by the number of predictions."""
        return float(np.average(np.abs(self.confidence - self.accuracy), weights=self.num_images))


def reliability(probabilities: Floats, labels: NDArray[np.int64], num_bins: int = NUM_BINS) -> Reliability:
    """Sort predictions by confidence, the probability of the most probable label, and compare them in bins.

    Args:
        probabilities: float[N,labels].
        labels: int64[N].
        num_bins: number of bins; at most N are used.
    """
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.array_split(np.argsort(confidence, kind="stable"), min(num_bins, len(labels)))
    return Reliability(
        np.array([confidence[bin_].mean() for bin_ in bins]),
        np.array([right[bin_].mean() for bin_ in bins]),
        np.array([len(bin_) for bin_ in bins]),
    )


def cross_entropy(probabilities: Floats, labels: NDArray[np.int64]) -> float:
    """Return the mean of -log(probability of the true label), in nats.

    Args:
        probabilities: float[N,labels]; zeros are replaced by the smallest normal float32.
        labels: int64[N].
    """
    of_label = np.take_along_axis(probabilities, labels[:, np.newaxis], axis=1).astype(np.float64)
    return float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean())


def rejection_curve(probabilities: Floats, labels: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Compute the error rate that is left when more and more of the least confident predictions are rejected.

    Returns:
        Shares of rejected predictions, float64[N] in ascending order from 0, and the share of wrong predictions among
        the others, float64[N].
    """
    order = np.argsort(probabilities.max(axis=1), kind="stable")
    wrong = (probabilities.argmax(axis=1) != labels)[order]
    num_kept = np.arange(len(wrong), 0, -1)
    return 1 - num_kept / len(wrong), wrong[::-1].cumsum()[::-1] / num_kept


def interval(num_right: int, num_images: int) -> tuple[float, float]:
    """Return the 95 % Wilson confidence interval of an accuracy (Wilson 1927); it is valid near 1, too.

    Args:
        num_right: number of right predictions, at most ``num_images``.
        num_images: number of predictions, at least 1.
    """
    from scipy.stats import binomtest  # noqa: PLC0415 - takes a second; only evaluation needs it

    low, high = binomtest(num_right, num_images).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def auroc(digits: Floats, non_digits: Floats) -> float:
    """Return the probability that a non-digit has a higher score than a digit; ties count half.

    Args:
        digits: float[N], OOD scores of images that should be accepted.
        non_digits: float[M], OOD scores of images that should be rejected.
    """
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415 - takes a second; only evaluation needs it

    truth = np.concatenate([np.zeros(len(digits)), np.ones(len(non_digits))])
    return float(roc_auc_score(truth, np.concatenate([digits, non_digits])))

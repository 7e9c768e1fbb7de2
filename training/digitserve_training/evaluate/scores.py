"""Figures of merit, computed from answers and labels: calibration, rejection, separation. Needs no TensorFlow."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

NUM_BINS = 15
"""Bins of equal numbers of answers. Nixon et al. 2019, "Measuring Calibration in Deep Learning", found 15 usual."""


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy, in bins of equally many answers, least confident first.

    Attributes:
        confidence: float64[bins], mean confidence of each bin.
        accuracy: float64[bins], share of right answers in each bin.
        num_images: int64[bins].
    """

    confidence: Floats = field(repr=False)
    accuracy: Floats = field(repr=False)
    num_images: NDArray[np.int64] = field(repr=False)

    @property
    def error(self) -> float:
        """Adaptive calibration error: mean gap between confidence and accuracy, weighted by answers."""
        return float(np.average(np.abs(self.confidence - self.accuracy), weights=self.num_images))


def reliability(probabilities: Floats, labels: NDArray[np.int64], num_bins: int = NUM_BINS) -> Reliability:
    """Sort answers by the confidence of their best label and compare in bins.

    Args:
        probabilities: float[N,labels].
        labels: int64[N].
        num_bins: at most N of them are made.
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
        probabilities: float[N,labels]; zeros count as the smallest float32 that is not zero.
        labels: int64[N].
    """
    of_label = np.take_along_axis(probabilities, labels[:, np.newaxis], axis=1).astype(np.float64)
    return float(-np.log(np.maximum(of_label, np.finfo(np.float32).tiny)).mean())


def rejection_curve(probabilities: Floats, labels: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Follow the error rate as ever more of the least confident answers are refused.

    Returns:
        Shares refused, float64[N] from 0 upwards, and the share of wrong answers among the others, float64[N].
    """
    order = np.argsort(probabilities.max(axis=1), kind="stable")
    wrong = (probabilities.argmax(axis=1) != labels)[order]
    num_kept = np.arange(len(wrong), 0, -1)
    return 1 - num_kept / len(wrong), wrong[::-1].cumsum()[::-1] / num_kept


def interval(num_right: int, num_images: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of right answers, as Wilson 1927 has it: sound at shares near 1 as well.

    Args:
        num_right: at most ``num_images``.
        num_images: at least 1.
    """
    from scipy.stats import binomtest  # noqa: PLC0415 - a second, and only evaluation needs it

    low, high = binomtest(num_right, num_images).proportion_ci(0.95, method="wilson")
    return float(low), float(high)


def auroc(digits: Floats, strangers: Floats) -> float:
    """Return the probability that a stranger's score lies above a digit's, ties counting half.

    Args:
        digits: float[N], OOD scores of what should be accepted.
        strangers: float[M], of what should be refused.
    """
    from sklearn.metrics import roc_auc_score  # noqa: PLC0415 - a second, and only evaluation needs it

    truth = np.concatenate([np.zeros(len(digits)), np.ones(len(strangers))])
    return float(roc_auc_score(truth, np.concatenate([digits, strangers])))

"""From the network's scores to probabilities, and from the search's to calibrated confidences.

    probabilities, ood_score ──▶ weight that a part is one digit ──search──▶ posterior ──▶ confidence of a line

``reader`` calls it on a worker's thread; no state is kept. The constants were fitted by a random search for the highest likelihood of the true
texts of 397 doubtful pieces (304 single digits, 81 pairs, 12 of three) of synthetic fields of five of MNIST's training digits, of
which 20 % overlap their neighbour by 0 to 3 pixels.
"""

import math

import numpy as np
from numpy.typing import NDArray

WHOLE_SLOPE, WHOLE_OFFSET, WHOLE_WIDTH = 2.0, 1.8, 15.0
"""Logistic of the network's score that a piece is one digit and not several, and of the width beyond a usual digit's."""

PART_SLOPE, PART_OFFSET, PART_POWER = 0.8, 6.2, 2.6
"""Logistic of the network's score that a part between two cuts is one digit, and its power: the best cuttings count most."""

USUAL_WIDTH = 0.9
"""Width of a digit, against the height of the line's digits, that few digits have."""

LINK_COST = 10.0
"""Cost of a distance between two cuts, per height of digits, in natural logarithms."""

CUT_COST = 1.4
"""Cost of ink on a cut, per height of digits."""

DIGIT_COST = -0.6
"""Cost of each digit of a piece with several; below 0, because the power lowers the weight of parts."""

HEIGHT_COST = 25.0
"""Cost of a part that is lower than 0.7 digits, per square of the difference."""

LINE_SLOPE, LINE_OFFSET = 0.65, -0.33
"""Logistic calibration of the posterior of a line.

Fitted by ``digitserve_training.evaluate.numbers.fit`` with the network digits/5, to 180 fields of five digits held out from MNIST's
training set, with 0, 20 and 50 % touching. On 161 fields of other held-out digits, 83 % of the texts are right; the mean confidence
is 86 % (posterior: 92 %), the calibration error 3 % (9 %).
"""


def digit_probability(ood_score: float) -> float:
    """Return the probability that an image shows one digit.

    The network is trained with one more outcome, "no digit", whose logit is 0; ``ood_score`` is minus the logarithm of the sum
    of the exponentials of the others.
    """
    return 1 / (1 + math.exp(max(-30.0, min(ood_score, 30.0))))


def whole_weight(ood_score: float, width: float) -> float:
    """Return the weight of a piece as one digit, from 0 to 1.

    Args:
        ood_score: of the piece.
        width: of the piece, against the height of digits.
    """
    return digit_probability(WHOLE_SLOPE * (ood_score + WHOLE_OFFSET) + WHOLE_WIDTH * max(0.0, width - USUAL_WIDTH))


def part_weights(
    probabilities: NDArray[np.float32], ood_score: NDArray[np.float32], heights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the weights of parts as digits: float64[S, 10].

    Args:
        probabilities: float32[S, 10].
        ood_score: float32[S].
        heights: float64[S], of the parts, against the height of digits.
    """
    low = np.clip(0.7 - heights, 0, None)
    geometry = np.exp(-HEIGHT_COST * low * low - DIGIT_COST)
    score = np.clip(PART_SLOPE * (ood_score.astype(np.float64) + PART_OFFSET), -30, 30)
    weights: NDArray[np.float64] = (geometry / (1 + np.exp(score)) ** PART_POWER)[:, None] * probabilities
    return weights


def link_weights(distances: NDArray[np.float32], costs: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the weights of two cuts for one boundary, that at which a digit ends and that at which the next one starts.

    Many cuts that are near each other count as much as a single one.

    Args:
        distances: float32[N, N], of ``candidates.Parts``.
        costs: float32[N], ink on each.

    Returns:
        float64[N, N]; a row sums to at most 1 for any number of cuts.
    """
    # A digit never starts right of where the one before it ends: the ink between them would be part of neither.
    near = np.tril(np.exp(-LINK_COST * distances.astype(np.float64)))
    share = 1 / near.sum(axis=1)
    cost = np.exp(-CUT_COST * costs.astype(np.float64) / 2)
    weights: NDArray[np.float64] = near * (share * cost)[:, None] * (share * cost)
    return weights


def calibrate_line(probability: float) -> float:
    """Return the calibrated probability that a line's text is right, from its posterior."""
    clipped = min(max(probability, 1e-6), 1 - 1e-6)
    return 1 / (1 + math.exp(-(LINE_OFFSET + LINE_SLOPE * math.log(clipped / (1 - clipped)))))

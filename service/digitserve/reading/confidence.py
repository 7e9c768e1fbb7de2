"""From the network's scores to the weights of texts, and to the probabilities of marks.

    probabilities, ood_score ──TextModel──▶ weight that a part is one digit ──search──▶ posterior of a text

``reader`` calls it on a worker's thread; no state is kept. ``digitserve_training.evaluate.numbers.fit`` fits the constants of
``FITTED``. The posterior of a line needs no calibration of its own: of 535 lines of synthetic fields of digits held out from
MNIST's training set, with 0, 20 and 50 % touching, 88 % are right, and the mean posterior is 86 % (calibration error 3 %).
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LABEL_WIDTHS = np.array([0.89, 0.42, 0.90, 0.83, 0.79, 0.88, 0.71, 0.79, 0.76, 0.66])
"""Mean width of the digits 0 to 9, in heights of a digit, of 3 897 separate digits of fields; standard deviations are about 0.16."""

LOWEST_DIGIT = 0.7
"""Height of a part below which it is less likely to be a digit."""

MAX_LOG = 100.0
"""Log-odds, at most, so that exponentials stay finite."""

Weights = NDArray[np.float64]


class TextModel(NamedTuple):
    """How much each way to cut a piece weighs.

    Lengths are in heights of a digit, costs in natural logarithms. Near cuts may both be used, as the end of one digit and the start
    of the next.

    Attributes:
        whole_slope: of the logistic of the network's score that a piece is one digit and not several.
        whole_offset: of the same.
        usual_width: width of a piece that few digits have.
        whole_width_cost: of width beyond that.
        unknown_cost: of a piece that is neither one digit nor several.
        unknown_width_cost: of its width: the wider, the more likely is any text.
        part_slope: of the logistic of the network's score that a part between two cuts is one digit.
        part_offset: of the same.
        part_power: of the logistic: the best cuttings count most.
        width_cost: of a part that is not as wide as its label, per square of the difference.
        height_cost: of a part that is lower than ``LOWEST_DIGIT``, per square of the difference.
        digit_cost: of each digit of a piece with several; below 0, because the power lowers the weight of parts.
        link_cost: of a distance between the two cuts of one boundary.
        cut_cost: of full ink on a cut.
    """

    whole_slope: float
    whole_offset: float
    usual_width: float
    whole_width_cost: float
    unknown_cost: float
    unknown_width_cost: float
    part_slope: float
    part_offset: float
    part_power: float
    width_cost: float
    height_cost: float
    digit_cost: float
    link_cost: float
    cut_cost: float

    def whole(self, ood_score: float, width: float, unknown_odds: float) -> float:
        """Return the weight of a piece as one shape: a digit, or what is no digit and must not be cut into some.

        Args:
            ood_score: of the piece.
            width: of the piece.
            unknown_odds: that a mark of its line is no digit, of ``unknown_odds``.
        """
        wider = self.whole_width_cost * max(0.0, width - self.usual_width)
        digit = digit_probability(self.whole_slope * (ood_score + self.whole_offset) + wider)
        return digit + unknown_odds * math.exp(-self.unknown_cost - self.unknown_width_cost * width)

    def parts(
        self, probabilities: NDArray[np.float32], ood_score: NDArray[np.float32], heights: Weights, widths: Weights
    ) -> Weights:
        """Return the weights of parts as digits: float64[S, 10].

        Args:
            probabilities: float32[S, 10].
            ood_score: float32[S].
            heights: float64[S], of the parts.
            widths: float64[S].
        """
        lower = np.clip(LOWEST_DIGIT - heights, 0, None)[:, None]
        other_width = widths[:, None] - LABEL_WIDTHS
        geometry = np.exp(-self.height_cost * lower**2 - self.width_cost * other_width**2 - self.digit_cost)
        score = np.clip(self.part_slope * (ood_score.astype(np.float64) + self.part_offset), -MAX_LOG, MAX_LOG)
        weights: Weights = geometry * probabilities / ((1 + np.exp(score)) ** self.part_power)[:, None]
        return weights

    def links(self, distances: NDArray[np.float32], costs: NDArray[np.float32]) -> Weights:
        """Return the weights of two cuts for one boundary, that at which a digit ends and that at which the next one starts.

        Many cuts that are near each other count as much as a single one.

        Args:
            distances: float32[N, N], of ``candidates.Parts``.
            costs: float32[N], ink on each.

        Returns:
            float64[N, N]; a row sums to at most 1 for any number of cuts.
        """
        near = np.exp(-self.link_cost * distances.astype(np.float64))
        share = np.exp(-self.cut_cost * costs.astype(np.float64) / 2) / near.sum(axis=1)
        # A digit never starts right of where the one before it ends: the ink between them would be part of neither.
        weights: Weights = np.tril(near) * share[:, None] * share
        return weights


FITTED = TextModel(
    whole_slope=1.59,
    whole_offset=2.87,
    usual_width=1.07,
    whole_width_cost=20.8,
    unknown_cost=-0.454,
    unknown_width_cost=4.7,
    part_slope=0.372,
    part_offset=5.78,
    part_power=2.73,
    width_cost=8.38,
    height_cost=30.7,
    digit_cost=-2.25,
    link_cost=10.8,
    cut_cost=4.7,
)
"""Of digits/5, with 575 doubtful pieces. Of 575 others, 81 % are right: of those that show no digit, 84 % are not cut."""


def digit_probability(ood_score: float) -> float:
    """Return the probability that an image shows one digit.

    The network is trained with one more outcome, "no digit", whose logit is 0; ``ood_score`` is minus the logarithm of the sum
    of the exponentials of the others.
    """
    return 1 / (1 + math.exp(max(-MAX_LOG, min(ood_score, MAX_LOG))))


def unknown_odds(num_familiar: int, num_others: int) -> float:
    """Return the odds that one more mark of a line is no digit.

    Args:
        num_familiar: other marks that are digits.
        num_others: other marks.

    Source: Laplace's rule of succession: the probability of a digit is (familiar + 1) / (others + 2).
    """
    return (num_others - num_familiar + 1) / (num_familiar + 1)

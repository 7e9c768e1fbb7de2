"""From the network's scores to the weights of texts, and to the probabilities of marks.

    probabilities, ood_score ──TextModel──▶ weight that a part is one digit ──search──▶ posterior of a text

``reader`` calls it on a worker's thread; no state is kept. ``digitserve_training.evaluate.numbers.fit`` fits the constants of
``FITTED``. The posterior of a line needs no calibration of its own: of 278 lines of synthetic fields of other digits held out from
MNIST's training set, with 0, 20 and 50 % touching, 84 % are right, and the mean posterior is 84 %.
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
"""Log-odds, at most: exponentials stay finite, and a piece as wide as five digits as one digit stays less likely than any cutting."""

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
    part_slope: float
    part_offset: float
    part_power: float
    width_cost: float
    height_cost: float
    digit_cost: float
    link_cost: float
    cut_cost: float

    def whole(self, ood_score: float, width: float) -> float:
        """Return the weight of a piece as one digit, from 0 to 1.

        Args:
            ood_score: of the piece.
            width: of the piece.
        """
        wider = self.whole_width_cost * max(0.0, width - self.usual_width)
        return digit_probability(self.whole_slope * (ood_score + self.whole_offset) + wider)

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
    whole_slope=1.72,
    whole_offset=3.12,
    usual_width=1.11,
    whole_width_cost=18.6,
    part_slope=0.487,
    part_offset=5.02,
    part_power=3.55,
    width_cost=10.7,
    height_cost=43.6,
    digit_cost=-2.35,
    link_cost=10.6,
    cut_cost=3.92,
)
"""Of digits/5, with 585 doubtful pieces. Of 584 others, 85 % have the right text, and its mean log-likelihood is -0.69."""


def digit_probability(ood_score: float) -> float:
    """Return the probability that an image shows one digit.

    The network is trained with one more outcome, "no digit", whose logit is 0; ``ood_score`` is minus the logarithm of the sum
    of the exponentials of the others.
    """
    return 1 / (1 + math.exp(max(-MAX_LOG, min(ood_score, MAX_LOG))))


def score_in_line(ood_score: float, num_familiar: int, num_others: int) -> float:
    """Return the ``ood_score`` of a digit of a line, beside the others.

    It falls by the logarithm of the odds that one more mark beside the others is a digit. Beside four clear digits a badly written
    one is read; among letters a letter that resembles a digit is not.

    Args:
        ood_score: of the image alone.
        num_familiar: other digits of the line that are familiar by themselves.
        num_others: other digits of the line.

    Source: Laplace's rule of succession, with probability (familiar + 1) / (others + 2).
    """
    return ood_score - math.log((num_familiar + 1) / (num_others - num_familiar + 1))

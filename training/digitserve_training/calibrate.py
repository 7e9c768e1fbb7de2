"""What the network's scores mean: the temperature of its probabilities, and when an image is no digit at all.

Called by ``export``, with validation images only. The OOD score is minus the log-sum-exp of the logits, the energy of
Liu et al. 2020, "Energy-based Out-of-distribution Detection". Needs no TensorFlow.
"""

import numpy as np
from numpy.typing import NDArray

TEMPERATURE = 1.0
"""Probabilities are softmax(logits / temperature); 1 leaves them as the network was trained to give them."""

ACCEPTED = 0.995
"""Share of validation images that must not be called unfamiliar."""


def ood_threshold(scores: NDArray[np.float32], accepted: float = ACCEPTED) -> float:
    """Choose the score above which an image is called unfamiliar.

    Args:
        scores: float32[N], OOD scores of validation images; higher is stranger.
        accepted: share of them that must lie at or below the threshold.

    Returns:
        The smallest of the scores that does.
    """
    return float(np.quantile(scores, accepted, method="inverted_cdf"))

"""What the OOD threshold promises."""

import numpy as np
import pytest

from digitserve_training.calibrate import ood_threshold


@pytest.mark.parametrize("num_images", [5, 199, 200, 1000, 5000])
def test_threshold_accepts_the_share_it_is_set_for(num_images: int) -> None:
    """At least 99.5 % of validation images score at or below the threshold, and no lower score would do."""
    scores = np.random.default_rng(1).normal(size=num_images).astype(np.float32)

    threshold = ood_threshold(scores)

    assert np.mean(scores <= threshold) >= 0.995
    assert np.mean(scores < threshold) < 0.995
    assert threshold in scores

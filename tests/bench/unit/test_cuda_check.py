"""The CUDA check notices what its tables of single batch sizes do not show."""

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks import cuda_check


class Planner:
    """A session that takes 1 ms per batch, and more after a batch of another size, as onnxruntime's CUDA provider did."""

    def __init__(self, plan_s: float) -> None:
        self._plan_s = plan_s
        self._size = 0

    def run(self, images: NDArray[np.uint8]) -> None:
        changed, self._size = len(images) != self._size, len(images)
        time.sleep(0.001 + changed * self._plan_s)


@pytest.mark.parametrize(("plan_s", "highest"), [(0.009, 0.1), (0.0, 1.0)])
def test_the_cost_of_a_changed_size_is_measured(plan_s: float, highest: float) -> None:
    """A session that plans again for each new size is at most as fast as its planning allows."""
    session: Any = Planner(plan_s)
    images = np.zeros((4, 28, 28, 1), np.uint8)
    unchanged = {size: (size / 0.001, 0.0) for size in (1, 2, 4)}
    assert 0 < cuda_check.measure_changes(session, images, unchanged, 0.05) <= highest

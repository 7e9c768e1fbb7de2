"""Time of a network before it is trained: a batch in onnxruntime on one thread, relative to a reference network.

Called by ``search`` for each trial whose time counts. Weights do not change the time, so the graph that would be served
is exported with new weights.
"""

from collections.abc import Callable, Sequence
from statistics import median
from time import thread_time

import numpy as np

from digitserve.inference import providers
from digitserve.inference.io_binding import DirectRun
from digitserve_training.model.layers import INPUT_SHAPE, Layer
from digitserve_training.model.networks import build
from digitserve_training.model.onnx_graph import ServingFunction, convert

BATCH_SIZE = 64
"""The service's default for its largest batch."""

MEASURE_S = 1.0
"""CPU time of one measurement. On a busy machine, repeated measurements then differ by one to three percent."""

MIN_ROUNDS = 9
"""Rounds of a measurement, however long a round takes."""


class Reference:
    """The network that times are relative to; lives for one search."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        """Export the reference.

        Args:
            layers: all layers of the network; the last outputs one logit per label.
        """
        self._batch_s = _export(layers)

    def relative_time(self, layers: Sequence[Layer]) -> float:
        """Return the time of a network per batch as a multiple of the reference's, with two decimals.

        Args:
            layers: all layers of the network; the last outputs one logit per label.
        """
        return round(median_ratio(_export(layers), self._batch_s, MEASURE_S), 2)


def median_ratio(first_s: Callable[[], float], second_s: Callable[[], float], measure_s: float) -> float:
    """Return the median of ``first_s() / second_s()`` over rounds that call both.

    Rounds are interleaved, so that other activity of the machine affects both.

    Args:
        first_s: returns a duration in seconds.
        second_s: likewise.
        measure_s: no further round starts once all durations add up to this, if there were ``MIN_ROUNDS``.
    """
    # The first calls allocate memory.
    first_s(), second_s()
    spent_s, ratios = 0.0, list[float]()
    while spent_s < measure_s or len(ratios) < MIN_ROUNDS:
        first, second = first_s(), second_s()
        spent_s += first + second
        ratios.append(first / second)
    return median(ratios)


def _export(layers: Sequence[Layer]) -> Callable[[], float]:
    """Export a network with new weights, and return a function that runs a batch and returns its CPU time in seconds."""
    run = DirectRun(providers.open_session(convert(ServingFunction(build(layers), 1.0)), "cpu", 1))
    images = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, *INPUT_SHAPE), dtype=np.uint8)

    def batch_s() -> float:
        # CPU time of this thread, which runs the whole graph: it does not include the time of other processes.
        started = thread_time()
        run(images)
        return thread_time() - started

    return batch_s

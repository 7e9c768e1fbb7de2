"""Parity check: the exported graph must give the outputs of the trained Keras network.

``export`` calls it before it writes anything.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digitserve.inference.bundle import GOLDEN_TOLERANCE
from digitserve.inference.session import Session
from digitserve_training.errors import ParityError
from digitserve_training.evaluate.evaluation import run
from digitserve_training.model.onnx_graph import ServingFunction, run_keras

BATCH_SIZES = (1, 2, 3, 7, 64, 129)
"""Batch sizes that a service may form; the network was not trained or evaluated with any of them."""

OOD_TOLERANCE = 1e-3
"""Largest allowed difference between OOD scores; they have the size of logits, and thresholds differ by some units."""


@dataclass(frozen=True)
class Parity:
    """Differences between a graph's outputs and those of its network.

    Attributes:
        largest_difference: of any probability of any image.
        largest_ood_difference: of any OOD score.
        num_other_labels: number of images whose most probable label differs.
        num_images: number of images compared.
    """

    largest_difference: float
    largest_ood_difference: float
    num_other_labels: int
    num_images: int

    def __str__(self) -> str:
        return (
            f"largest difference of a probability {self.largest_difference:.2g}, allowed {GOLDEN_TOLERANCE:g}; "
            f"of an OOD score {self.largest_ood_difference:.2g}, allowed {OOD_TOLERANCE:g}; "
            f"{self.num_other_labels} of {self.num_images} labels differ, allowed 0"
        )

    @property
    def holds(self) -> bool:
        """Whether all differences are allowed; a NaN is not."""
        return (
            self.largest_difference <= GOLDEN_TOLERANCE
            and self.largest_ood_difference <= OOD_TOLERANCE
            and self.num_other_labels == 0
        )


def compare(function: ServingFunction, session: Session, images: NDArray[np.uint8]) -> Parity:
    """Compare onnxruntime's outputs with Keras's, in batches of ``BATCH_SIZES``.

    Args:
        function: the network.
        session: of the graph that was converted from it.
        images: uint8[N,28,28,1], N at least 1.
    """
    expected, got = run_keras(function, images), run(session, images, BATCH_SIZES)
    return Parity(
        float(np.max(np.abs(expected.probabilities - got.probabilities))),
        float(np.max(np.abs(expected.ood_score - got.ood_score))),
        int(np.sum(expected.probabilities.argmax(axis=1) != got.probabilities.argmax(axis=1))),
        len(images),
    )


def require(parity: Parity) -> None:
    """Reject a graph that does not give its network's outputs.

    Raises:
        ParityError: with all differences.
    """
    if not parity.holds:
        raise ParityError(f"the exported graph does not give the outputs of the trained network: {parity}")

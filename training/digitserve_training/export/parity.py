"""Parity: whether the graph that is served gives the answers of the network that was trained.

``export`` asks before it writes anything.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from digitserve.inference.bundle import GOLDEN_TOLERANCE
from digitserve.inference.session import Session
from digitserve_training.errors import ParityError
from digitserve_training.evaluate.evaluation import run
from digitserve_training.model.onnx_graph import Answering, reference

BATCH_SIZES = (1, 2, 3, 7, 64, 129)
"""Sizes that a service may form, none of them what the network was trained or measured with."""

OOD_TOLERANCE = 1e-3
"""Largest difference allowed between OOD scores: they are as large as logits, and thresholds stand some units apart."""


@dataclass(frozen=True)
class Parity:
    """How far a graph is from the network that it was made of.

    Attributes:
        largest_difference: of any probability of any image.
        largest_ood_difference: of any OOD score.
        num_other_labels: images whose most probable label differs.
        num_images: images compared.
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
        """Whether all figures are as allowed; written so that a NaN is not."""
        return (
            self.largest_difference <= GOLDEN_TOLERANCE
            and self.largest_ood_difference <= OOD_TOLERANCE
            and self.num_other_labels == 0
        )


def compare(answer: Answering, session: Session, images: NDArray[np.uint8]) -> Parity:
    """Hold onnxruntime's answers against Keras's, in batches of odd sizes.

    Args:
        answer: as ``graph.answering`` gives it.
        session: over the graph that was made of it.
        images: uint8[N,28,28,1], N at least 1.
    """
    expected, got = reference(answer, images), run(session, images, BATCH_SIZES)
    return Parity(
        float(np.max(np.abs(expected.probabilities - got.probabilities))),
        float(np.max(np.abs(expected.ood_score - got.ood_score))),
        int(np.sum(expected.probabilities.argmax(axis=1) != got.probabilities.argmax(axis=1))),
        len(images),
    )


def require(parity: Parity) -> None:
    """Refuse a graph that gives other answers than its network.

    Raises:
        ParityError: with the figures.
    """
    if not parity.holds:
        raise ParityError(f"the exported graph is not the trained network: {parity}")

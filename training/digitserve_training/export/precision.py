"""What a bundle computes in: float32, as the network was trained, or int8, if that costs next to nothing.

``export`` comes here once the float32 graph has passed its parity check. What int8 costs is measured against that graph,
and decided on validation images; test images are measured for the record.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from digitserve.inference.bundle import Golden
from digitserve.inference.session import Outputs, Session, run_unverified
from digitserve_training.data.splits import Labelled
from digitserve_training.errors import ParityError
from digitserve_training.evaluate.candidate import Candidate, open_session
from digitserve_training.evaluate.evaluation import run
from digitserve_training.export.parity import BATCH_SIZES
from digitserve_training.export.quantize import quantize

Precision = Literal["float32", "int8"]

NUM_CALIBRATION = 500
"""Training images that ranges are taken from; the first ones, in which the split gives each label its share."""

INT8_GOLDEN_TOLERANCE = 2e-3
"""As ``Manifest.golden_tolerance``: other kernels may round a value the other way, and then it is a whole step off.
Between optimised and plain kernels one step moved a probability of 1 000 test images by up to 6e-4 (with weights of eight
bits; 7e-6 with seven), so some times that is allowed."""

ACCURACY_LOSS = 5e-4
"""Largest loss of accuracy on validation images: 0.05 percentage points."""

MEAN_DIFFERENCE = 5e-3
"""Of probabilities; some times what sound graphs show."""

LARGEST_DIFFERENCE = 0.5
"""Of any probability; where two labels are close, a step of rounding moves it far, but not to another answer."""

OTHER_LABELS = 0.005
"""Largest share of images whose most probable label may differ, whether for better or for worse."""


@dataclass(frozen=True)
class Difference:
    """How far an int8 graph is from its float32 graph on labelled images.

    Attributes:
        float32_accuracy: share of images that the float32 graph labels right.
        int8_accuracy: the same of the int8 graph.
        largest_difference: of any probability of any image.
        mean_difference: of all probabilities of all images.
        num_other_labels: images whose most probable label differs.
        num_images: images compared.
    """

    float32_accuracy: float
    int8_accuracy: float
    largest_difference: float
    mean_difference: float
    num_other_labels: int
    num_images: int

    def __str__(self) -> str:
        return (
            f"accuracy {self.int8_accuracy:.2%}, float32 {self.float32_accuracy:.2%}, allowed loss {ACCURACY_LOSS:.2%}; "
            f"mean difference of a probability {self.mean_difference:.2g}, allowed {MEAN_DIFFERENCE:g}, "
            f"largest {self.largest_difference:.2g}, allowed {LARGEST_DIFFERENCE:g}; "
            f"{self.num_other_labels} of {self.num_images} labels differ, allowed {OTHER_LABELS:.1%}"
        )

    @property
    def is_small(self) -> bool:
        """Whether all figures are as allowed; written so that a NaN is not."""
        return (
            # 1e-9 for shares that are not what they are in decimals.
            self.float32_accuracy - self.int8_accuracy <= ACCURACY_LOSS + 1e-9
            and self.mean_difference <= MEAN_DIFFERENCE
            and self.largest_difference <= LARGEST_DIFFERENCE
            and self.num_other_labels <= OTHER_LABELS * self.num_images
        )


@dataclass(frozen=True)
class Int8:
    """A candidate in int8, and what that costs.

    Attributes:
        candidate: the int8 graph in place of the float32 one; its golden answers are the int8 graph's own.
        num_calibration: training images that ranges were taken from.
        validation: what the refusal was decided on.
        test: for the record.
    """

    candidate: Candidate
    num_calibration: int
    validation: Difference
    test: Difference

    def described(self) -> dict[str, Any]:
        """Return what goes into a manifest's ``training``."""
        return {"calibration_images": self.num_calibration, "quantized": "all layers but the first and the last"}

    def figures(self) -> dict[str, float]:
        """Return what goes into a manifest's ``quality``."""
        told: dict[str, float] = {}
        for part, difference in (("validation", self.validation), ("test", self.test)):
            told |= {
                f"float32_{part}_accuracy": difference.float32_accuracy,
                f"int8_{part}_largest_difference": difference.largest_difference,
                f"int8_{part}_mean_difference": difference.mean_difference,
                f"int8_{part}_other_labels": difference.num_other_labels,
            }
        return told


def to_int8(candidate: Candidate, test: Labelled) -> Int8:
    """Make an int8 candidate of a float32 one.

    Args:
        candidate: as ``open_candidate`` gives it.
        test: its test images.

    Raises:
        ParityError: the int8 graph is too far from the float32 one; the message gives figures.
    """
    calibration = candidate.split.training.images[:NUM_CALIBRATION]
    graph = quantize(candidate.graph, calibration)
    images = candidate.golden.images
    # Nothing but the graph itself can say what its golden answers are: Keras's are further off than a damage may be.
    answers = run_unverified(graph, images)
    golden = Golden(images, answers.probabilities, answers.ood_score)
    session = open_session(graph, golden, candidate.state.settings.labels)
    validation = compare(candidate.session, session, candidate.split.validation)
    require(validation)
    return Int8(
        replace(candidate, graph=graph, golden=golden, session=session),
        len(calibration),
        validation,
        compare(candidate.session, session, test),
    )


def compare(float32: Session, int8: Session, labelled: Labelled) -> Difference:
    """Hold the answers of an int8 graph against those of its float32 graph, in batches of odd sizes.

    Args:
        float32: over the graph that was quantised.
        int8: over what came of it.
        labelled: at least one image.
    """
    expected, got = (run(session, labelled.images, BATCH_SIZES) for session in (float32, int8))
    differences = np.abs(expected.probabilities - got.probabilities)
    return Difference(
        _accuracy(expected, labelled),
        _accuracy(got, labelled),
        float(differences.max()),
        float(differences.mean()),
        int(np.sum(expected.probabilities.argmax(axis=1) != got.probabilities.argmax(axis=1))),
        len(labelled),
    )


def require(difference: Difference) -> None:
    """Refuse a graph that lost too much.

    Raises:
        ParityError: with the figures.
    """
    if not difference.is_small:
        raise ParityError(
            f"the int8 graph is too far from the float32 one on validation images: {difference}; "
            "nothing was written: export with --precision float32"
        )


def _accuracy(outputs: Outputs, labelled: Labelled) -> float:
    return float(np.mean(outputs.probabilities.argmax(axis=1) == labelled.labels))

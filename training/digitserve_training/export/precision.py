"""Precision of a bundle: float32, or int8 if the int8 graph differs little enough from the float32 one.

``export`` calls ``to_int8`` after the parity check of the float32 graph. The int8 graph is compared with that graph.
The comparison on validation images decides; the one on test images is only recorded.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from digitserve.inference.bundle import Golden
from digitserve.inference.session import Outputs, Session, run_unverified
from digitserve_training.data.splits import Labelled
from digitserve_training.errors import ParityError
from digitserve_training.evaluate.converted_model import ConvertedModel, open_session
from digitserve_training.evaluate.evaluation import run
from digitserve_training.export.parity import BATCH_SIZES
from digitserve_training.export.quantize import quantize

Precision = Literal["float32", "int8"]

NUM_CALIBRATION = 500
"""Number of training images for calibration: the first ones, because the split orders images so that any first part has
each label in its share."""

INT8_GOLDEN_TOLERANCE = 2e-3
"""The ``Manifest.golden_tolerance`` of int8 bundles. Other kernels may round a value the other way, which is a
difference of one quantisation step. Between optimised and plain kernels one step changed a probability of 1,000 test
images by up to 6e-4 (with weights of eight bits; 7e-6 with seven), so about three times that is allowed."""

MAX_ACCURACY_LOSS = 5e-4
"""Largest allowed loss of accuracy on validation images: 0.05 percentage points."""

MAX_MEAN_DIFFERENCE = 5e-3
"""Largest allowed mean difference of probabilities: a few times that of valid graphs."""

MAX_DIFFERENCE = 0.5
"""Largest allowed difference of any probability. If two labels are close, one rounding step changes their
probabilities a lot, but rarely the label."""

MAX_OTHER_LABELS = 0.005
"""Largest allowed share of images whose most probable label differs, correct or not."""


@dataclass(frozen=True)
class Difference:
    """Differences between an int8 graph and its float32 graph on labelled images.

    Attributes:
        float32_accuracy: accuracy of the float32 graph.
        int8_accuracy: accuracy of the int8 graph.
        largest_difference: of any probability of any image.
        mean_difference: of all probabilities of all images.
        num_other_labels: number of images whose most probable label differs.
        num_images: number of images compared.
    """

    float32_accuracy: float
    int8_accuracy: float
    largest_difference: float
    mean_difference: float
    num_other_labels: int
    num_images: int

    def __str__(self) -> str:
        return (
            f"accuracy {self.int8_accuracy:.2%}, float32 {self.float32_accuracy:.2%}, "
            f"allowed loss {MAX_ACCURACY_LOSS:.2%}; "
            f"mean difference of a probability {self.mean_difference:.2g}, allowed {MAX_MEAN_DIFFERENCE:g}, "
            f"largest {self.largest_difference:.2g}, allowed {MAX_DIFFERENCE:g}; "
            f"{self.num_other_labels} of {self.num_images} labels differ, allowed {MAX_OTHER_LABELS:.1%}"
        )

    @property
    def is_small(self) -> bool:
        """Whether all differences are allowed; a NaN is not."""
        return (
            # 1e-9 because accuracies such as 0.9895 are not exact in binary.
            self.float32_accuracy - self.int8_accuracy <= MAX_ACCURACY_LOSS + 1e-9
            and self.mean_difference <= MAX_MEAN_DIFFERENCE
            and self.largest_difference <= MAX_DIFFERENCE
            and self.num_other_labels <= MAX_OTHER_LABELS * self.num_images
        )


@dataclass(frozen=True)
class Int8Candidate:
    """A candidate with an int8 graph, and its differences from the float32 one.

    Attributes:
        candidate: with the int8 graph and that graph's own golden outputs.
        num_calibration: number of training images used for calibration.
        validation: differences on validation images, which decided that the graph is accepted.
        test: differences on test images, only recorded.
    """

    candidate: ConvertedModel
    num_calibration: int
    validation: Difference
    test: Difference

    def description(self) -> dict[str, Any]:
        """Return the entry ``quantization`` of a manifest's ``training``."""
        return {"calibration_images": self.num_calibration, "quantized": "all layers but the first and the last"}

    def quality(self) -> dict[str, float]:
        """Return the entries for a manifest's ``quality``."""
        entries: dict[str, float] = {}
        for part, difference in (("validation", self.validation), ("test", self.test)):
            entries |= {
                f"float32_{part}_accuracy": difference.float32_accuracy,
                f"int8_{part}_largest_difference": difference.largest_difference,
                f"int8_{part}_mean_difference": difference.mean_difference,
                f"int8_{part}_other_labels": difference.num_other_labels,
            }
        return entries


def to_int8(candidate: ConvertedModel, test: Labelled) -> Int8Candidate:
    """Quantise a candidate's graph and compare it with the float32 one.

    Args:
        candidate: from ``convert_run``.
        test: test images of its dataset.

    Raises:
        ParityError: the int8 graph differs too much; the message has all differences.
    """
    calibration = candidate.split.training.images[:NUM_CALIBRATION]
    graph = quantize(candidate.graph, calibration)
    images = candidate.golden.images
    # Golden outputs come from the graph itself: Keras's would need a tolerance that hides a damaged graph.
    outputs = run_unverified(graph, images)
    golden = Golden(images, outputs.probabilities, outputs.ood_score)
    session = open_session(graph, golden, candidate.state.settings.labels)
    validation = compare(candidate.session, session, candidate.split.validation)
    require(validation)
    return Int8Candidate(
        replace(candidate, graph=graph, golden=golden, session=session),
        len(calibration),
        validation,
        compare(candidate.session, session, test),
    )


def compare(float32: Session, int8: Session, labelled: Labelled) -> Difference:
    """Compare the outputs of an int8 graph with those of its float32 graph, in batches of ``BATCH_SIZES``.

    Args:
        float32: session of the graph that was quantised.
        int8: session of the quantised graph.
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
    """Reject an int8 graph that differs too much.

    Raises:
        ParityError: with all differences.
    """
    if not difference.is_small:
        raise ParityError(
            f"the int8 graph differs too much from the float32 one on validation images: {difference}; "
            "nothing was written: export with --precision float32"
        )


def _accuracy(outputs: Outputs, labelled: Labelled) -> float:
    return float(np.mean(outputs.probabilities.argmax(axis=1) == labelled.labels))

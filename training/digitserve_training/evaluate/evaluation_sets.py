"""The images that trained networks are evaluated on. They are never used in training.

``report`` builds the sets once per dataset and evaluates any number of networks on them. All sets contain images as the
network receives them, uint8[N,28,28,1]. To evaluate on further images, add an ``EvaluationSet`` in ``build``. Does not
import TensorFlow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from digitserve.batching.prepare import prepare_gray
from digitserve.progress import track
from digitserve.types import Framing, Gray, Ink
from digitserve.vision.framing import frame
from digitserve_training.data.splits import Labelled
from digitserve_training.evaluate import corruption_suite
from digitserve_training.evaluate.corruption_suite import CORRUPTIONS, Corruption
from digitserve_training.synth import non_digits
from digitserve_training.synth.scans import ScanParameters, scan_and_frame

SEED = 7
"""Seed of all synthetic images, so that all networks are evaluated on the same images."""

NUM_NON_DIGITS = 1_000
"""Images per kind of non-digit."""

EVALUATION_SCANS = ScanParameters(min_side_px=16, max_side_px=400, clean_share=0.0)
"""Dark on light, off-centre, with uneven light and noise, 16 to 400 pixels."""


@dataclass(frozen=True)
class EvaluationSet:
    """Labelled images from one source.

    Attributes:
        name: shown in tables.
        labelled: the images as the network receives them, with their labels.
        corruption: the corruption applied to the test images; None for images from another source.
    """

    name: str
    labelled: Labelled = field(repr=False)
    corruption: Corruption | None = None


@dataclass(frozen=True)
class EvaluationSets:
    """Everything that the networks for one dataset are evaluated on, except the validation images.

    Attributes:
        test: the test images.
        labelled: further sets of labelled images.
        non_digits: images that show no digit, uint8[N,28,28,1] by kind; empty if the dataset is not about digits.
        mistaken_verdicts: share of test images that the service would call blank or several shapes.
    """

    test: Labelled
    labelled: tuple[EvaluationSet, ...] = field(repr=False)
    non_digits: Mapping[str, Gray] = field(repr=False)
    mistaken_verdicts: float


def build(test: Labelled, *, digits: bool) -> EvaluationSets:
    """Build all sets for a dataset.

    Args:
        test: the dataset's test images.
        digits: whether they show digits; only then scans, other digits and non-digits are added.
    """
    sets = [
        EvaluationSet(
            one.name, Labelled(corruption_suite.corrupt_images(test.images, one, SEED), test.labels, test.names), one
        )
        for one in track(CORRUPTIONS, "draw corruption")
    ]
    if digits:
        small, labels = _load_digits()
        sets += [
            EvaluationSet(
                "test images as simulated scans",
                Labelled(scan_and_frame(test.images, EVALUATION_SCANS, SEED), test.labels),
            ),
            EvaluationSet("load_digits, light on dark", Labelled(_frame_all(small), labels)),
            EvaluationSet("load_digits, dark on light", Labelled(_frame_all(255 - small), labels)),
        ]
    outliers = non_digits.for_evaluation(NUM_NON_DIGITS, SEED) if digits else {}
    return EvaluationSets(test, tuple(sets), outliers, _mistaken_verdicts(test))


def _mistaken_verdicts(test: Labelled) -> float:
    """Return the share of images called blank or several, with or without framing, whichever is larger."""
    images = test.images[..., 0]
    prepared = [prepare_gray(images, Ink.LIGHT_ON_DARK, framing) for framing in (Framing.AS_IS, Framing.MNIST)]
    return max(float(np.mean(one.blank | one.several)) for one in prepared)


def _load_digits() -> tuple[Gray, NDArray[np.int64]]:
    """Return scikit-learn's digits, light on dark: uint8[1797,8,8] and int64[1797]."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - takes a second; only evaluation needs it

    images, labels = load_digits(return_X_y=True)
    return np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels.astype(np.int64)


def _frame_all(images: Gray) -> Gray:
    return np.stack([frame(image, Ink.AUTO).pixels for image in images])[..., np.newaxis]

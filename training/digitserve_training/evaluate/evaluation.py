"""How well a trained network does, measured on the ONNX graph by onnxruntime: what is reported is what is served.

``digitserve-train evaluate`` writes a report into the run's folder; ``export`` puts the figures into the manifest. Only
these two look at test images, and at all that is made of them: drawings on paper, corruptions, strangers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitserve.batching.prepare import prepare_gray
from digitserve.inference.session import Outputs, Session
from digitserve.types import Framing, Ink
from digitserve.vision.framing import frame
from digitserve_training.data.splits import Labelled
from digitserve_training.evaluate import corruption_suite, scores
from digitserve_training.evaluate.calibration import ood_threshold
from digitserve_training.evaluate.scores import Reliability
from digitserve_training.model.presets import Augmentation
from digitserve_training.synth import non_digits
from digitserve_training.synth.scans import Paper, readings

BATCH_SIZE = 256

SEED = 7
"""Of everything that is drawn for judging, so that every network is judged by the same images."""

NUM_STRANGERS = 1_000
"""Pictures of each kind that are no digit."""

NUM_EXAMPLES = 10
"""Images of each kind of changed digits that are kept to be shown."""

JUDGED_PAPER = Paper(smallest=16, largest=400, plain=0.0)
"""Dark on light, off-centre, uneven and grainy, 16 to 400 pixels."""


@dataclass(frozen=True)
class Measurement:
    """What a graph makes of labelled images.

    Attributes:
        labelled: the images.
        outputs: the graph's answers to them.
    """

    labelled: Labelled = field(repr=False)
    outputs: Outputs = field(repr=False)

    @property
    def ood_score(self) -> NDArray[np.float32]:
        """OOD score of each image: float32[N]."""
        return self.outputs.ood_score

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Index of each image's most probable label: int64[N]."""
        predicted: NDArray[np.int64] = self.outputs.probabilities.argmax(axis=1)
        return predicted

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable label is theirs."""
        return float(np.mean(self.predicted == self.labelled.labels))

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return scores.cross_entropy(self.outputs.probabilities, self.labelled.labels)

    @property
    def reliability(self) -> Reliability:
        """Confidence against accuracy."""
        return scores.reliability(self.outputs.probabilities, self.labelled.labels)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Images by true label (row) and predicted label (column): int64[labels,labels]."""
        num_labels = len(self.labelled.names)
        confusion = np.zeros((num_labels, num_labels), np.int64)
        np.add.at(confusion, (self.labelled.labels, self.predicted), 1)
        return confusion


@dataclass(frozen=True)
class Robustness:
    """Answers to one set of digits that were changed, or come from elsewhere.

    Attributes:
        name: for tables.
        accuracy: share of right labels.
        examples: uint8[N,28,28,1], the first few images, so the same digits whatever was done to them.
        trained: whether training saw changes of this nature; None where the question makes no sense.
    """

    name: str
    accuracy: float
    examples: NDArray[np.uint8] = field(repr=False)
    trained: bool | None = None


@dataclass(frozen=True)
class Strangers:
    """How well one kind of pictures is told from digits.

    Attributes:
        name: of the kind.
        auroc: probability that such a picture is stranger to the network than a test digit.
        rejected: share above the threshold, and so called unfamiliar.
        images: uint8[N,28,28,1], the pictures.
        ood_score: float32[N], of each picture.
    """

    name: str
    auroc: float
    rejected: float
    images: NDArray[np.uint8] = field(repr=False)
    ood_score: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True)
class Evaluation:
    """All that is measured of one graph.

    Attributes:
        validation: the images that were held out of training.
        test: the test images.
        threshold: OOD score above which images are called unfamiliar, of validation images.
        corruptions: the suite, on the test images.
        corrupted_reliability: confidence against accuracy over the whole suite; None without it.
        ink: digits through the service's framing; empty for sets that are no digits.
        strangers: pictures that are no digits, all together first; empty for sets that are no digits.
        mistaken_verdicts: share of test digits that the service would call blank or several.
        graph_sha256: of the ONNX file that was measured, hexadecimal.
    """

    validation: Measurement
    test: Measurement
    threshold: float
    corruptions: tuple[Robustness, ...]
    corrupted_reliability: Reliability | None
    ink: tuple[Robustness, ...]
    strangers: tuple[Strangers, ...]
    mistaken_verdicts: float
    graph_sha256: str

    @property
    def corruption_accuracy(self) -> float:
        """Mean accuracy over the suite."""
        return float(np.mean([corruption.accuracy for corruption in self.corruptions]))


class Exam:
    """The images that networks are judged by; made once, for any number of networks.

    Attributes:
        test: the test images.
        digits: whether they are digits, so that paper and strangers make sense.
    """

    def __init__(self, test: Labelled, *, digits: bool) -> None:
        """Keep the test images; everything else is drawn when it is first asked for."""
        self.test, self.digits = test, digits

    @cached_property
    def corrupted(self) -> dict[str, Labelled]:
        """The test images under each corruption of the suite."""
        return {
            corruption.name: Labelled(
                corruption_suite.corrupted(self.test.images, corruption, SEED), self.test.labels, self.test.names
            )
            for corruption in corruption_suite.CORRUPTIONS
        }

    @cached_property
    def ink(self) -> dict[str, Labelled]:
        """Digits from elsewhere, each through the service's framing."""
        if not self.digits:
            return {}
        small, labels = _scanned_digits()
        return {
            "test images drawn on paper": Labelled(readings(self.test.images, JUDGED_PAPER, SEED), self.test.labels),
            "load_digits, light on dark": Labelled(_framed(small), labels),
            "load_digits, dark on light": Labelled(_framed(255 - small), labels),
        }

    @cached_property
    def strangers(self) -> dict[str, NDArray[np.uint8]]:
        """Pictures that are no digits, by kind."""
        return non_digits.judged(NUM_STRANGERS, SEED) if self.digits else {}

    @cached_property
    def mistaken_verdicts(self) -> float:
        """Share of test images that the service would call blank or several, as they are or framed: the larger."""
        images = self.test.images[..., 0]
        prepared = [prepare_gray(images, Ink.LIGHT_ON_DARK, framing) for framing in Framing]
        return max(float(np.mean(one.blank | one.several)) for one in prepared)


def measure(session: Session, labelled: Labelled) -> Measurement:
    """Run a graph on labelled images.

    Args:
        session: as ``candidate.open_session`` gives it.
        labelled: at least one image.
    """
    return Measurement(labelled, run(session, labelled.images))


def run(session: Session, images: NDArray[np.uint8], batch_sizes: Sequence[int] = (BATCH_SIZE,)) -> Outputs:
    """Run a graph on images, in batches of these sizes in turn, the last one as large as what is left."""
    parts: list[Outputs] = []
    start = 0
    for size in cycle(batch_sizes):
        if start >= len(images):
            break
        parts.append(session.run(np.ascontiguousarray(images[start : start + size])))
        start += size
    probabilities = np.concatenate([part.probabilities for part in parts])
    return Outputs(probabilities, np.concatenate([part.ood_score for part in parts]))


def evaluate(
    session: Session, validation: Labelled, exam: Exam, augmentation: Augmentation, graph_sha256: str
) -> Evaluation:
    """Measure a graph on everything.

    Args:
        session: as ``candidate.open_session`` gives it.
        validation: images that were held out of training.
        exam: what it is judged by.
        augmentation: of its training; tells which corruptions it has seen the like of.
        graph_sha256: of the graph, so that a report can be told from another graph's.
    """
    held_out, test = measure(session, validation), measure(session, exam.test)
    threshold = ood_threshold(held_out.ood_score)
    suite = {name: measure(session, labelled) for name, labelled in exam.corrupted.items()}
    trained = {corruption.name: corruption.trained(augmentation) for corruption in corruption_suite.CORRUPTIONS}
    return Evaluation(
        validation=held_out,
        test=test,
        threshold=threshold,
        corruptions=tuple(_robustness(name, one, trained[name]) for name, one in suite.items()),
        corrupted_reliability=_pooled([*suite.values()]),
        ink=tuple(_robustness(name, measure(session, labelled)) for name, labelled in exam.ink.items()),
        strangers=_strangers(session, exam.strangers, test.ood_score, threshold),
        mistaken_verdicts=exam.mistaken_verdicts,
        graph_sha256=graph_sha256,
    )


def described(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as JSON has it, without the answers to single images."""
    return {
        "graph_sha256": evaluation.graph_sha256,
        "validation": _described(evaluation.validation),
        "test": _described(evaluation.test),
        "corruptions": {
            "mean_accuracy": evaluation.corruption_accuracy,
            "calibration_error": None
            if evaluation.corrupted_reliability is None
            else evaluation.corrupted_reliability.error,
            "accuracy": {one.name: one.accuracy for one in evaluation.corruptions},
            "trained": {one.name: one.trained for one in evaluation.corruptions},
        },
        "ink": {one.name: one.accuracy for one in evaluation.ink},
        "strangers": {one.name: {"auroc": one.auroc, "rejected": one.rejected} for one in evaluation.strangers},
        "ood_threshold": evaluation.threshold,
        "mistaken_verdicts": evaluation.mistaken_verdicts,
    }


def _described(measurement: Measurement) -> dict[str, Any]:
    return {
        "num_images": len(measurement.labelled),
        "labels": measurement.labelled.names,
        "accuracy": measurement.accuracy,
        "loss": measurement.loss,
        "calibration_error": measurement.reliability.error,
        "confusion": measurement.confusion.tolist(),
    }


def _robustness(name: str, measurement: Measurement, trained: bool | None = None) -> Robustness:  # noqa: FBT001 - a fact
    return Robustness(name, measurement.accuracy, measurement.labelled.images[:NUM_EXAMPLES], trained)


def _pooled(measurements: Sequence[Measurement]) -> Reliability | None:
    if not measurements:
        return None
    probabilities = np.concatenate([measurement.outputs.probabilities for measurement in measurements])
    return scores.reliability(
        probabilities, np.concatenate([measurement.labelled.labels for measurement in measurements])
    )


def _strangers(
    session: Session, pictures: Mapping[str, NDArray[np.uint8]], digits: NDArray[np.float32], threshold: float
) -> tuple[Strangers, ...]:
    if not pictures:
        return ()
    by_kind = {name: (images, run(session, images).ood_score) for name, images in pictures.items()}
    images, found = zip(*by_kind.values(), strict=True)
    by_kind = {"all together": (np.concatenate(images), np.concatenate(found))} | by_kind
    return tuple(
        Strangers(name, scores.auroc(digits, found), float(np.mean(found > threshold)), images, found)
        for name, (images, found) in by_kind.items()
    )


def _scanned_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return scikit-learn's digits, light on dark: uint8[1797,8,8] and int64[1797]."""
    from sklearn.datasets import load_digits  # noqa: PLC0415 - a second, and only evaluation needs it

    images, labels = load_digits(return_X_y=True)
    return np.round(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8), labels.astype(np.int64)


def _framed(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.stack([frame(image, Ink.AUTO).pixels for image in images])[..., np.newaxis]

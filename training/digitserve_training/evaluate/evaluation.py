"""Measures a trained network: onnxruntime runs the ONNX graph, so the reported figures hold for what is served.

``report`` calls ``evaluate``; ``export`` calls ``measure`` for the manifest and ``run`` for its parity checks. Nothing
else uses test images or images derived from them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitserve.inference.session import Outputs, Session
from digitserve.progress import track
from digitserve.types import Gray
from digitserve_training.data.splits import Labelled
from digitserve_training.evaluate import scores
from digitserve_training.evaluate.calibration import ood_threshold
from digitserve_training.evaluate.evaluation_sets import EvaluationSet, EvaluationSets
from digitserve_training.evaluate.scores import Reliability
from digitserve_training.model.presets import Augmentation

BATCH_SIZE = 256

NUM_EXAMPLES = 10
"""Images of each labelled set that are kept for the report."""

ALL_KINDS = "all kinds"
"""Name of the result over all kinds of non-digits together."""


@dataclass(frozen=True)
class Measurement:
    """The outputs of a graph for labelled images.

    Attributes:
        labelled: the images.
        outputs: the outputs of the graph for these images.
    """

    labelled: Labelled = field(repr=False)
    outputs: Outputs = field(repr=False)

    @property
    def ood_score(self) -> NDArray[np.float32]:
        """OOD score of each image: float32[N]."""
        return self.outputs.ood_score

    @cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Index of the most probable label of each image: int64[N]."""
        predicted: NDArray[np.int64] = self.outputs.probabilities.argmax(axis=1)
        return predicted

    @property
    def num_wrong(self) -> int:
        """Number of images whose most probable label is wrong."""
        return int(np.sum(self.predicted != self.labelled.labels))

    @property
    def accuracy(self) -> float:
        """Share of images whose most probable label is right."""
        return float(np.mean(self.predicted == self.labelled.labels))

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return scores.cross_entropy(self.outputs.probabilities, self.labelled.labels)

    @property
    def reliability(self) -> Reliability:
        """Confidence and accuracy in bins."""
        return scores.reliability(self.outputs.probabilities, self.labelled.labels)

    @cached_property
    def confusion(self) -> NDArray[np.int64]:
        """Number of images by true label (row) and predicted label (column): int64[labels,labels]."""
        num_labels = len(self.labelled.names)
        confusion = np.zeros((num_labels, num_labels), np.int64)
        np.add.at(confusion, (self.labelled.labels, self.predicted), 1)
        return confusion


@dataclass(frozen=True)
class SetResult:
    """Accuracy on one ``EvaluationSet``.

    Attributes:
        name: name of the set.
        accuracy: share of right labels.
        examples: uint8[N,28,28,1], the first few images: the same digits for each corruption.
        trained: whether the augmentation of training contains similar corruptions; None if the set is not a corruption.
    """

    name: str
    accuracy: float
    examples: Gray = field(repr=False)
    trained: bool | None = None


@dataclass(frozen=True)
class OodResult:
    """Out-of-distribution detection on one kind of non-digits.

    Attributes:
        name: name of the kind.
        auroc: probability that such an image has a higher OOD score than a test digit.
        rejected: share of images above the threshold, which the service reports as unfamiliar.
        images: uint8[N,28,28,1].
        ood_score: float32[N], the score of each image.
    """

    name: str
    auroc: float
    rejected: float
    images: Gray = field(repr=False)
    ood_score: NDArray[np.float32] = field(repr=False)


@dataclass(frozen=True)
class Evaluation:
    """All measurements of one graph.

    Attributes:
        validation: on the images that were held out of training.
        test: on the test images.
        threshold: OOD score above which an image is unfamiliar, from the validation images.
        corruptions: accuracy on the corruption suite.
        corrupted_reliability: confidence and accuracy over the whole suite; None without a suite.
        framed: accuracy on scanned digits after the service's framing; empty if the dataset is not about digits.
        non_digits: results for images that show no digit, first for all kinds together; empty if the dataset is not
            about digits.
        mistaken_verdicts: share of test digits that the service would call blank or several shapes.
        temperature: divisor of the logits, fitted on the validation images.
        graph_sha256: sha256 of the measured ONNX file, hexadecimal.
    """

    validation: Measurement
    test: Measurement
    threshold: float
    corruptions: tuple[SetResult, ...]
    corrupted_reliability: Reliability | None
    framed: tuple[SetResult, ...]
    non_digits: tuple[OodResult, ...]
    mistaken_verdicts: float
    temperature: float
    graph_sha256: str

    @property
    def corruption_accuracy(self) -> float:
        """Mean accuracy over the corruption suite."""
        return float(np.mean([corruption.accuracy for corruption in self.corruptions]))


def measure(session: Session, labelled: Labelled) -> Measurement:
    """Run a graph on labelled images.

    Args:
        session: a result of ``converted_model.open_session``.
        labelled: at least one image.
    """
    return Measurement(labelled, run(session, labelled.images))


def run(session: Session, images: Gray, batch_sizes: Sequence[int] = (BATCH_SIZE,)) -> Outputs:
    """Run a graph on images in batches; the sizes repeat in a cycle, and the last batch may be smaller.

    Args:
        session: a result of ``converted_model.open_session``.
        images: uint8[N,28,28,1], N at least 1.
        batch_sizes: sizes of successive batches.
    """
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
    session: Session,
    validation: Labelled,
    sets: EvaluationSets,
    augmentation: Augmentation,
    temperature: float,
    graph_sha256: str,
) -> Evaluation:
    """Measure a graph on all images.

    Args:
        session: a result of ``converted_model.open_session``.
        validation: images that were held out of training.
        sets: the sets to evaluate on.
        augmentation: augmentation used in training; decides which corruptions count as seen in training.
        temperature: divisor of the logits in the graph; stored in the report, as the fingerprint.
        graph_sha256: fingerprint of the graph; stored in the report, to find out later whether it matches a graph.
    """
    held_out, test = measure(session, validation), measure(session, sets.test)
    threshold = ood_threshold(held_out.ood_score)
    measured = [(one, measure(session, one.labelled)) for one in track(sets.labelled, "evaluate set")]
    return Evaluation(
        validation=held_out,
        test=test,
        threshold=threshold,
        corruptions=tuple(_set_result(one, got, augmentation) for one, got in measured if one.corruption),
        corrupted_reliability=_pooled_reliability([got for one, got in measured if one.corruption]),
        framed=tuple(_set_result(one, got, augmentation) for one, got in measured if not one.corruption),
        non_digits=tuple(_ood_results(session, sets.non_digits, test.ood_score, threshold)),
        mistaken_verdicts=sets.mistaken_verdicts,
        temperature=temperature,
        graph_sha256=graph_sha256,
    )


def as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation as a JSON object, without the outputs for single images."""
    reliability = evaluation.corrupted_reliability
    return {
        "graph_sha256": evaluation.graph_sha256,
        "validation": _measurement_as_json(evaluation.validation),
        "test": _measurement_as_json(evaluation.test),
        "corruptions": {
            "mean_accuracy": evaluation.corruption_accuracy,
            "calibration_error": None if reliability is None else reliability.error,
            "accuracy": {one.name: one.accuracy for one in evaluation.corruptions},
            "trained": {one.name: one.trained for one in evaluation.corruptions},
        },
        "framed": {one.name: one.accuracy for one in evaluation.framed},
        "non_digits": {one.name: {"auroc": one.auroc, "rejected": one.rejected} for one in evaluation.non_digits},
        "temperature": evaluation.temperature,
        "ood_threshold": evaluation.threshold,
        "mistaken_verdicts": evaluation.mistaken_verdicts,
    }


def _measurement_as_json(measurement: Measurement) -> dict[str, Any]:
    return {
        "num_images": len(measurement.labelled),
        "labels": measurement.labelled.names,
        "accuracy": measurement.accuracy,
        "loss": measurement.loss,
        "calibration_error": measurement.reliability.error,
        "confusion": measurement.confusion.tolist(),
    }


def _set_result(evaluation_set: EvaluationSet, measurement: Measurement, augmentation: Augmentation) -> SetResult:
    corruption = evaluation_set.corruption
    return SetResult(
        evaluation_set.name,
        measurement.accuracy,
        measurement.labelled.images[:NUM_EXAMPLES],
        None if corruption is None else corruption.is_in(augmentation),
    )


def _pooled_reliability(measurements: Sequence[Measurement]) -> Reliability | None:
    if not measurements:
        return None
    probabilities = np.concatenate([measurement.outputs.probabilities for measurement in measurements])
    return scores.reliability(
        probabilities, np.concatenate([measurement.labelled.labels for measurement in measurements])
    )


def _ood_results(
    session: Session, non_digits: Mapping[str, Gray], digit_scores: NDArray[np.float32], threshold: float
) -> Iterator[OodResult]:
    """Yield the result over all kinds, then the result of each kind."""
    if not non_digits:
        return
    kinds = {name: (images, run(session, images).ood_score) for name, images in non_digits.items()}
    all_images, all_scores = (np.concatenate(arrays) for arrays in zip(*kinds.values(), strict=True))
    for name, (images, found) in {ALL_KINDS: (all_images, all_scores), **kinds}.items():
        auroc = scores.auroc(digit_scores, found)
        yield OodResult(name, auroc, float(np.mean(found > threshold)), images, found)

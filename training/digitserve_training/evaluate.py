"""How well a trained network does, measured on the ONNX graph by onnxruntime: what is reported is what is served.

``digitserve-train evaluate`` writes a report into the run's folder; ``export`` measures once more and puts the figures
into the manifest. Only these two look at test images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitserve.session import Outputs, Session
from digitserve_training import data
from digitserve_training.candidate import Candidate
from digitserve_training.data import Labelled

BATCH_SIZE = 256


@dataclass(frozen=True)
class Measurement:
    """What a graph makes of labelled images.

    Attributes:
        accuracy: share of images whose most probable label is theirs.
        loss: mean cross-entropy in nats.
        confusion: int64[labels,labels], images by true label (row) and predicted label (column).
        ood_score: float32[N].
        names: of the labels.
    """

    accuracy: float
    loss: float
    confusion: NDArray[np.int64] = field(repr=False)
    ood_score: NDArray[np.float32] = field(repr=False)
    names: tuple[str, ...]


def measure(session: Session, labelled: Labelled) -> Measurement:
    """Run a graph on labelled images.

    Args:
        session: as ``open_session`` gives it.
        labelled: at least one image.
    """
    outputs = run(session, labelled.images, (BATCH_SIZE,))
    predicted = outputs.probabilities.argmax(axis=1)
    confusion = np.zeros((len(labelled.names), len(labelled.names)), np.int64)
    np.add.at(confusion, (labelled.labels, predicted), 1)
    of_label = np.take_along_axis(outputs.probabilities, labelled.labels[:, np.newaxis], axis=1)
    loss = -np.log(np.maximum(of_label.astype(np.float64), np.finfo(np.float32).tiny))
    accuracy = float(np.mean(predicted == labelled.labels))
    return Measurement(accuracy, float(loss.mean()), confusion, outputs.ood_score, labelled.names)


def run(session: Session, images: NDArray[np.uint8], batch_sizes: Sequence[int]) -> Outputs:
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


def evaluate(candidate: Candidate, data_path: Path | None) -> dict[str, Measurement]:
    """Measure a run's network on the validation images and on the test images, which are read from ``data_path``."""
    return {
        "validation": measure(candidate.session, candidate.split.validation),
        "test": measure(candidate.session, data.read_test(data_path, candidate.state.settings.dataset)),
    }


def described(measurements: dict[str, Measurement]) -> dict[str, Any]:
    """Return measurements as JSON has them, without the scores of single images."""
    return {
        part: {
            "num_images": int(measurement.confusion.sum()),
            "accuracy": measurement.accuracy,
            "loss": measurement.loss,
            "labels": measurement.names,
            "confusion": measurement.confusion.tolist(),
        }
        for part, measurement in measurements.items()
    }

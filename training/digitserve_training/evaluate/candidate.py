"""A trained network made ready to be measured: restored, converted to ONNX, and opened as a service would open it.

``evaluate`` and ``export`` both start here, so both speak of the same graph.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from digitserve.errors import BundleError
from digitserve.inference.bundle import GOLDEN_TOLERANCE, Bundle, Golden, Manifest, graph_signature
from digitserve.inference.session import Session, run_unverified
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled, Split
from digitserve_training.errors import DataError, ParityError
from digitserve_training.evaluate.calibration import fit_temperature
from digitserve_training.fit import checkpoint
from digitserve_training.fit.checkpoint import Checkpoint
from digitserve_training.fit.settings import preset_of
from digitserve_training.fit.weights import restore
from digitserve_training.model.onnx_graph import Answering, answering, convert, reference

NUM_GOLDEN = 14
"""Validation images in ``golden.npz``; a blank image and noise come on top."""


@dataclass(frozen=True)
class Candidate:
    """A trained network, converted and opened: all that is measured and may become a bundle.

    Attributes:
        state: the checkpoint that it comes from.
        split: the images that it was trained and validated on.
        answer: Keras's answers.
        graph: the ONNX file's bytes.
        temperature: that probabilities were divided by, fitted on the validation images.
        golden: inputs with Keras's answers.
        session: onnxruntime over ``graph``, which gave the golden answers too.
    """

    state: Checkpoint
    split: Split
    answer: Answering = field(repr=False)
    graph: bytes = field(repr=False)
    temperature: float
    golden: Golden = field(repr=False)
    session: Session

    @property
    def sha256(self) -> str:
        """Fingerprint of the graph: equal weights give equal graphs."""
        return hashlib.sha256(self.graph).hexdigest()


def open_candidate(run_dir: Path, data_path: Path | None) -> Candidate:
    """Restore a run's network, convert it and open the graph.

    Args:
        run_dir: a run's folder.
        data_path: as ``splits.read_training`` takes it.

    Raises:
        RunError: there is no run.
        DataError: these are not the images that the run was trained on.
        ParityError: the graph does not give the network's answers.
    """
    state = checkpoint.load(run_dir)
    split = splits.split(
        _read_same(state, data_path), state.settings.limit, preset_of(state.settings).recipe.validation
    )
    network = restore(state)
    # Logits but for a constant, by onnxruntime on one thread: TensorFlow's last bits differ from time to time, and with
    # them the temperature's last digit.
    untempered = run_unverified(convert(answering(network, 1.0)), split.validation.images).probabilities
    temperature = fit_temperature(np.log(np.maximum(untempered, np.finfo(np.float32).tiny)), split.validation.labels)
    answer = answering(network, temperature)
    graph, golden = convert(answer), make_golden(answer, split.validation)
    session = open_session(graph, golden, state.settings.labels)
    return Candidate(state, split, answer, graph, temperature, golden, session)


def make_golden(answer: Answering, validation: Labelled) -> Golden:
    """Choose a few images, a blank and noise among them, and note Keras's answers."""
    noise = np.random.default_rng(0).integers(0, 256, (1, *validation.images.shape[1:]), dtype=np.uint8)
    images = np.concatenate([validation.images[:NUM_GOLDEN], np.zeros_like(noise), noise])
    outputs = reference(answer, images)
    return Golden(images, outputs.probabilities, outputs.ood_score)


def open_session(graph: bytes, golden: Golden, labels: tuple[str, ...]) -> Session:
    """Open a graph that is no bundle yet, by the checks that a service opens bundles with.

    Raises:
        ParityError: its signature is wrong, or its golden answers differ; the message gives figures.
    """
    inputs, outputs = graph_signature(len(labels))
    manifest = Manifest("unpublished", 0, "", inputs, outputs, labels, 0.0, {}, {})
    try:
        return Session(Bundle(Path(), manifest, graph, golden))
    except BundleError as error:
        raise ParityError(
            f"the exported graph is not the trained network (tolerance {GOLDEN_TOLERANCE:g}): {error}"
        ) from None


def _read_same(state: Checkpoint, data_path: Path | None) -> Labelled:
    labelled = splits.read_training(data_path, state.settings.dataset)
    got, expected = splits.fingerprint(labelled), state.settings.data_sha256
    if got != expected:
        raise DataError(
            f"these training images have sha256 {got}; the run was trained on {expected}: name the same file with --data"
        )
    if labelled.names != state.settings.labels:
        raise DataError(
            f"these images are labelled {', '.join(labelled.names)}; "
            f"the run was trained on {', '.join(state.settings.labels)}: name the same folder with --data"
        )
    return labelled

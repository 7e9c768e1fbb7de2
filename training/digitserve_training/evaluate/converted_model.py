"""A trained network restored from its run, converted to ONNX, calibrated, and opened as the service opens a bundle.

``report`` and ``export`` both start with ``convert_run``, so both use the same graph. ``pictures`` uses ``restore_session``
for a run that has a report.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from digitserve.errors import BundleError
from digitserve.inference.bundle import GOLDEN_TOLERANCE, Bundle, Golden, Manifest, graph_signature
from digitserve.inference.session import Session, run_unverified
from digitserve.types import Gray
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled, Split
from digitserve_training.errors import DataError, ParityError
from digitserve_training.evaluate.calibration import fit_temperature
from digitserve_training.fit import checkpoint
from digitserve_training.fit.checkpoint import Checkpoint
from digitserve_training.fit.weights import restore_network
from digitserve_training.model.layers import INPUT_SHAPE
from digitserve_training.model.onnx_graph import ServingFunction, convert, run_keras

NUM_GOLDEN = 14
"""Validation images in ``golden.npz``; a blank image and a noise image are added."""


@dataclass(frozen=True)
class ConvertedModel:
    """A trained network, converted to ONNX and opened: it can be measured, and exported as a bundle.

    Attributes:
        state: checkpoint that the network was restored from.
        split: the dataset's images for training and validation, without pen digits.
        keras_function: the Keras network with the outputs of the graph.
        graph: the bytes of the ONNX file.
        temperature: divisor of the logits, fitted on the validation images.
        golden: inputs with the outputs of the Keras network.
        session: onnxruntime session of ``graph``; it was verified against ``golden``.
    """

    state: Checkpoint
    split: Split
    keras_function: ServingFunction = field(repr=False)
    graph: bytes = field(repr=False)
    temperature: float
    golden: Golden = field(repr=False)
    session: Session

    @property
    def sha256(self) -> str:
        """Sha256 of the graph, hexadecimal; equal weights give equal graphs."""
        return hashlib.sha256(self.graph).hexdigest()


def convert_run(run_dir: Path, data_path: Path | None) -> ConvertedModel:
    """Restore a run's network, convert it to ONNX, fit its temperature and open the graph.

    Temperature and OOD threshold come from the dataset's validation images alone: held-out pen digits are drawn with every
    pen, some hardly legible, and would make the network too modest about ordinary images.

    Args:
        run_dir: the run's folder.
        data_path: path of the dataset, see ``splits.read_training``.

    Raises:
        RunError: the folder contains no run.
        DataError: the images differ from the ones that the run was trained on.
        ParityError: the outputs of the graph differ from those of the network.
    """
    state = checkpoint.load(run_dir)
    split = splits.split(_read_same(state, data_path), state.settings.limit, state.settings.recipe.validation)
    network = restore_network(state)
    # The logarithms of these probabilities equal the logits up to a constant. onnxruntime computes them on one thread:
    # TensorFlow's results vary in the last bits, which would change the last digit of the temperature.
    untempered = run_unverified(convert(ServingFunction(network, 1.0)), split.validation.images).probabilities
    temperature = fit_temperature(np.log(np.maximum(untempered, np.finfo(np.float32).tiny)), split.validation.labels)
    keras_function = ServingFunction(network, temperature)
    graph, golden = convert(keras_function), make_golden(keras_function, split.validation.images)
    session = open_session(graph, golden, state.settings.labels)
    return ConvertedModel(state, split, keras_function, graph, temperature, golden, session)


def restore_session(run_dir: Path, temperature: float) -> tuple[Session, str, Checkpoint]:
    """Open a run's network with a temperature that is known already; this needs no dataset.

    Returns:
        The session, the sha256 of its graph, and the checkpoint.

    Raises:
        RunError: the folder contains no run.
        ParityError: the outputs of the graph differ from those of the network.
    """
    state = checkpoint.load(run_dir)
    keras_function = ServingFunction(restore_network(state), temperature)
    graph, golden = convert(keras_function), make_golden(keras_function, np.zeros((0, *INPUT_SHAPE), np.uint8))
    return open_session(graph, golden, state.settings.labels), hashlib.sha256(graph).hexdigest(), state


def make_golden(keras_function: ServingFunction, images: Gray) -> Golden:
    """Return a few of the images, a blank image and a noise image with the outputs of the Keras network.

    Args:
        keras_function: the network.
        images: uint8[N,28,28,1], validation images.
    """
    noise = np.random.default_rng(0).integers(0, 256, (1, *INPUT_SHAPE), dtype=np.uint8)
    images = np.concatenate([images[:NUM_GOLDEN], np.zeros_like(noise), noise])
    outputs = run_keras(keras_function, images)
    return Golden(images, outputs.probabilities, outputs.ood_score)


def open_session(graph: bytes, golden: Golden, labels: tuple[str, ...]) -> Session:
    """Open a graph before it is part of a bundle, with the checks that the service applies to bundles.

    Raises:
        ParityError: the signature is wrong, or the outputs for the golden inputs differ; the message gives figures.
    """
    inputs, outputs = graph_signature(len(labels))
    manifest = Manifest("unpublished", 0, "", inputs, outputs, labels, 0.0, {}, {})
    try:
        return Session(Bundle(Path(), manifest, graph, golden))
    except BundleError as error:
        raise ParityError(
            f"the exported graph differs from the trained network (tolerance {GOLDEN_TOLERANCE:g}): {error}"
        ) from None


def _read_same(state: Checkpoint, data_path: Path | None) -> Labelled:
    labelled = splits.read_training(data_path, state.settings.dataset)
    got, expected = splits.fingerprint(labelled), state.settings.data_sha256
    if got != expected:
        raise DataError(
            f"these training images have sha256 {got}; the run was trained on {expected}: give the same file with --data"
        )
    if labelled.names != state.settings.labels:
        raise DataError(
            f"the labels of these images are {', '.join(labelled.names)}; "
            f"the run was trained on {', '.join(state.settings.labels)}: give the same folder with --data"
        )
    return labelled

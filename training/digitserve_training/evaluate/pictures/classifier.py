"""What answers for an image: a run, a bundle, or a running service.

For a run and a bundle, the image goes the way of the service, on one thread of this process: ``prepare_image``,
``Session.run``, ``decide_verdicts``. TensorFlow is imported only to restore a run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from digitserve.batching.prepare import decide_verdicts, prepare_image
from digitserve.client import Client, ClientError, RequestRejected
from digitserve.errors import BundleError, ImageFileError
from digitserve.inference.bundle import read_bundle
from digitserve.inference.session import Session
from digitserve.protocol.names import Verdict
from digitserve.types import native_framing
from digitserve.vision.reduction import MAX_SIDE, Reduction, reduce_by_block_means
from digitserve_training.errors import RunError
from digitserve_training.evaluate import page
from digitserve_training.fit import checkpoint

Pixels = NDArray[np.uint8]

MANIFEST_NAME = "manifest.json"

TIMEOUT_S = 30.0
"""Longest wait for the answer to one image."""


class Answer(NamedTuple):
    """The answer for one image.

    Attributes:
        label: the most probable label; empty for a blank image.
        confidence: its calibrated probability; 0 for a blank image.
        verdict: whether to believe it.
        ood_score: higher means less like the training data.
    """

    label: str
    confidence: float
    verdict: Verdict
    ood_score: float


class Classifier(Protocol):
    """Answers for one image at a time."""

    @property
    def name(self) -> str:
        """The model, for titles."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that the model knows."""

    def classify(self, pixels: Pixels) -> Answer:
        """Classify one image.

        Args:
            pixels: uint8[H,W,C] with C of 1, 3 or 4.

        Raises:
            ImageFileError: this image gets no answer.
            RunError: no image gets an answer.
        """


class Network(NamedTuple):
    """A network in this process.

    Attributes:
        name: of the model, for titles.
        labels: that the network knows.
        session: that runs it, calibrated.
        threshold: OOD score above which an image is unfamiliar.
    """

    name: str
    labels: tuple[str, ...]
    session: Session
    threshold: float


class LocalClassifier:
    """Answers with a network in this process."""

    def __init__(self, network: Network) -> None:
        """Answer with ``network``."""
        self.name = network.name
        self.labels = network.labels
        self._session = network.session
        self._threshold = network.threshold

    def classify(self, pixels: Pixels) -> Answer:
        """Reduce the image as the client does, prepare it as the service does, run the network and decide the verdict."""
        prepared = prepare_image(reduce_as_client(pixels), native_framing(self.labels))
        outputs = self._session.run(prepared.images)
        ood_score = float(outputs.ood_score[0])
        (verdict,) = decide_verdicts([ood_score], self._threshold, prepared)
        if verdict is Verdict.BLANK:
            return Answer("", 0.0, verdict, ood_score)
        index = int(outputs.probabilities[0].argmax())
        return Answer(self.labels[index], float(outputs.probabilities[0, index]), verdict, ood_score)


def reduce_as_client(pixels: Pixels) -> Pixels:
    """Reduce an image with a side over ``MAX_SIDE`` pixels as the client does; others are returned unchanged.

    Args:
        pixels: uint8[H,W,C].
    """
    height, width, _ = pixels.shape
    factor = Reduction.to_side(height, width, MAX_SIDE).factor
    return reduce_by_block_means(pixels, factor) if factor > 1 else pixels


class ServiceClassifier:
    """A running service."""

    def __init__(self, client: Client, address: str) -> None:
        """Send images with ``client``, which is connected to ``address``."""
        model = client.model()
        self.name = f"{model.name}/{model.version} at {address}"
        self.labels = model.labels
        self._client = client
        self._address = address

    def classify(self, pixels: Pixels) -> Answer:
        """Send one image; the request states neither ink nor framing."""
        try:
            (answer,) = self._client.classify(pixels[np.newaxis])
        except RequestRejected as error:
            raise ImageFileError(str(error)) from None
        except ClientError as error:
            raise RunError(f"{self._address}: {error}") from None
        return Answer(answer.label, answer.confidence, answer.verdict, answer.ood_score)


@contextmanager
def connect(address: str) -> Iterator[Classifier]:
    """Connect to a running service for the duration of a ``with`` block.

    Raises:
        RunError: no service answers at the address.
    """
    try:
        client = Client(address, num_connections=1, timeout_s=TIMEOUT_S)
    except ClientError as error:
        raise RunError(str(error)) from None
    with client:
        try:
            classifier = ServiceClassifier(client, address)
        except ClientError as error:
            raise RunError(f"{address}: {error}") from None
        yield classifier


def open_model(folder: Path, data_path: Path | None) -> Classifier:
    """Open a run or a bundle to classify images; see ``open_network``."""
    return LocalClassifier(open_network(folder, data_path))


def open_network(folder: Path, data_path: Path | None) -> Network:
    """Open a run or a bundle.

    Args:
        folder: of a run or of a bundle.
        data_path: path of the dataset; used only for a run that has no report of its present state.

    Raises:
        RunError: the folder contains neither, or a bundle that fails a check.
        DataError: the run has no report, and its dataset cannot be read.
    """
    if checkpoint.exists(folder):
        return _open_run(folder, data_path)
    if not (folder / MANIFEST_NAME).is_file():
        raise RunError(
            f"{folder} contains neither a run ({checkpoint.FILE_NAME}) nor a bundle ({MANIFEST_NAME}); expected a folder "
            "such as runs/compact or models/digits/5"
        )
    try:
        bundle = read_bundle(folder.resolve())
        session = Session(bundle)
    except BundleError as error:
        raise RunError(f"the bundle {folder} cannot be used: {error}") from None
    manifest = bundle.manifest
    return Network(f"{manifest.name}/{manifest.version}", manifest.labels, session, manifest.ood_threshold)


def _open_run(run_dir: Path, data_path: Path | None) -> Network:
    """Open a run with the calibration of its report, or else of its validation images."""
    from digitserve_training.evaluate import converted_model  # noqa: PLC0415 - TensorFlow
    from digitserve_training.evaluate.calibration import ood_threshold  # noqa: PLC0415 - only here
    from digitserve_training.evaluate.evaluation import measure  # noqa: PLC0415 - only here

    name = str(run_dir)
    if calibration := page.reported_calibration(run_dir / page.FOLDER):
        session, sha256, state = converted_model.restore_session(run_dir, calibration.temperature)
        # Another graph: the run was continued after the report.
        if sha256 == calibration.graph_sha256:
            return Network(name, state.settings.labels, session, calibration.threshold)
    model = converted_model.convert_run(run_dir, data_path)
    threshold = ood_threshold(measure(model.session, model.split.validation).ood_score)
    return Network(name, model.state.settings.labels, model.session, threshold)

"""Export: a finished run in, a verified bundle out, or nothing at all.

The graph is held against Keras on every test image, in batches of odd sizes, before anything is written; its quality is
what onnxruntime measured. The bundle holds no time and no path, so the same run gives the same files again.
"""

from dataclasses import asdict, dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import numpy as np
from digitserve import bundle
from digitserve.bundle import GOLDEN_TOLERANCE, Manifest, signature
from digitserve.session import Session
from numpy.typing import NDArray

from digitserve_training import data
from digitserve_training._tensorflow import tf
from digitserve_training.calibrate import TEMPERATURE, ood_threshold
from digitserve_training.checkpoint import Checkpoint, Settings
from digitserve_training.data import Labelled
from digitserve_training.errors import ParityError, RunError
from digitserve_training.evaluate import Candidate, Measurement, measure, open_candidate, run
from digitserve_training.graph import Answering, reference
from digitserve_training.layers import count_multiply_adds, count_parameters
from digitserve_training.presets import LABELS
from digitserve_training.report import FOLDER
from digitserve_training.train import preset_of

PARITY_BATCH_SIZES = (1, 2, 3, 7, 64, 129)
"""Sizes that a service may form, none of them what the network was trained or measured with."""


@dataclass(frozen=True)
class Parity:
    """How far a graph is from the network that it was made of.

    Attributes:
        largest_difference: of any probability of any image.
        num_other_labels: images whose most probable label differs.
        num_images: images compared.
    """

    largest_difference: float
    num_other_labels: int
    num_images: int

    def __str__(self) -> str:
        return (
            f"largest difference of a probability {self.largest_difference:.2g}, allowed {GOLDEN_TOLERANCE:g}; "
            f"{self.num_other_labels} of {self.num_images} labels differ, allowed 0"
        )


@dataclass(frozen=True)
class Exported:
    """A bundle that was written.

    Attributes:
        path: its folder.
        manifest: as it was written, but for the sha256.
        parity: how far its graph is from the network.
        graph_bytes: size of ``model.onnx``.
    """

    path: Path
    manifest: Manifest
    parity: Parity
    graph_bytes: int

    def figures(self) -> dict[str, str]:
        """Return what is worth telling, by name."""
        quality, training = self.manifest.quality, self.manifest.training
        return {
            "bundle": str(self.path),
            "test": f"accuracy {quality['test_accuracy']:.2%}, loss {quality['test_loss']:.4f}",
            "validation": f"accuracy {quality['validation_accuracy']:.2%}, loss {quality['validation_loss']:.4f}",
            "parity": str(self.parity),
            "size": f"{training['parameters']:,} parameters, {training['multiply_adds']:,} multiply-adds, "
            f"{self.graph_bytes:,} bytes as ONNX",
            "OOD": f"threshold {self.manifest.ood_threshold:.4f}",
        }


def export(run_dir: Path, data_path: Path | None, models: Path, name: str, version: int | None) -> Exported:
    """Turn a finished run into a bundle.

    Args:
        run_dir: the run's folder.
        data_path: as ``data.read_training`` takes it.
        models: folder of all models.
        name: the model's.
        version: the bundle's, None for one above the highest there is.

    Raises:
        RunError: there is no run, it is not finished, or the version exists.
        DataError: these are not the images that the run was trained on.
        ParityError: the graph does not give the network's answers; nothing was written.
    """
    number = _free_version(models, name, version)
    candidate = open_candidate(run_dir, data_path)
    _require_finished(candidate.state, run_dir)
    report = run_dir / FOLDER
    return publish(candidate, data.read_test(data_path), models, name, number, report if report.is_dir() else None)


def publish(candidate: Candidate, test: Labelled, models: Path, name: str, version: int, report: Path | None) -> Exported:
    """Check a candidate's parity on the test images, measure it, and write its bundle.

    Raises:
        ParityError: nothing was written.
    """
    parity = compare(candidate.answer, candidate.session, test.images)
    require_parity(parity)
    validation = measure(candidate.session, candidate.split.validation)
    inputs, outputs = signature(len(LABELS))
    manifest = Manifest(
        name=name,
        version=version,
        sha256="",  # set by bundle.write
        inputs=inputs,
        outputs=outputs,
        labels=LABELS,
        ood_threshold=ood_threshold(validation.ood_score),
        training=_training(candidate, test),
        quality=_quality(measure(candidate.session, test), validation, parity),
    )
    path = bundle.write(models, manifest, candidate.graph, candidate.golden, report)
    return Exported(path, manifest, parity, len(candidate.graph))


def compare(answer: Answering, session: Session, images: NDArray[np.uint8]) -> Parity:
    """Hold onnxruntime's answers against Keras's.

    Args:
        answer: as ``graph.answering`` gives it.
        session: over the graph that was made of it.
        images: uint8[N,28,28,1], N at least 1.
    """
    expected, got = reference(answer, images).probabilities, run(session, images, PARITY_BATCH_SIZES).probabilities
    return Parity(
        float(np.max(np.abs(expected - got))),
        int(np.sum(expected.argmax(axis=1) != got.argmax(axis=1))),
        len(images),
    )


def require_parity(parity: Parity) -> None:
    """Refuse a graph that gives other answers than its network.

    Raises:
        ParityError: with the figures.
    """
    # Written so that a NaN fails too.
    if not (parity.largest_difference <= GOLDEN_TOLERANCE and parity.num_other_labels == 0):
        raise ParityError(f"the exported graph is not the trained network: {parity}; nothing was written")


def _free_version(models: Path, name: str, version: int | None) -> int:
    """Find this out first: it would be a pity to learn it after minutes of measuring."""
    taken = bundle.versions(models, name)
    if version is None:
        return max(taken, default=0) + 1
    if version in taken:
        raise RunError(f"{models / name / str(version)} exists, and bundles are never overwritten: choose another --version")
    return version


def _require_finished(state: Checkpoint, run_dir: Path) -> None:
    if not state.finished:
        raise RunError(
            f"the run stopped after {state.epoch} of {state.settings.epochs} epochs; "
            f"finish it with digitserve-train train --resume --run-dir {run_dir}"
        )


def _training(candidate: Candidate, test: Labelled) -> dict[str, Any]:
    settings, preset = candidate.state.settings, preset_of(candidate.state.settings)
    return {
        "preset": preset.name,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "command": _command(settings),
        "recipe": asdict(preset.recipe) | {"epochs": settings.epochs, "learning_rate": settings.learning_rate},
        "augmentation": asdict(preset.augmentation),
        "split": {
            "training_images": len(candidate.split.training),
            "validation_images": len(candidate.split.validation),
            "stratified": True,
            "seed": data.SPLIT_SEED,
            "limit": settings.limit,
        },
        "data_sha256": {"training": settings.data_sha256, "test": data.fingerprint(test)},
        "versions": _versions(),
        "parameters": count_parameters(preset.layers),
        "multiply_adds": count_multiply_adds(preset.layers),
        "temperature": TEMPERATURE,
    }


def _versions() -> dict[str, str]:
    # TensorFlow's package is called tensorflow-cpu or tensorflow, so the module is asked.
    asked = {package: installed_version(package) for package in ("keras", "tf2onnx", "onnx")}
    return {"tensorflow": tf.__version__, **asked}


def _quality(test: Measurement, validation: Measurement, parity: Parity) -> dict[str, float]:
    return {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "validation_accuracy": validation.accuracy,
        "validation_loss": validation.loss,
        "test_images": parity.num_images,
        "parity_largest_difference": parity.largest_difference,
    }


def _command(settings: Settings) -> str:
    limit = f" --limit {settings.limit}" if settings.limit is not None else ""
    return (
        f"digitserve-train train --preset {settings.preset} --epochs {settings.epochs} --seed {settings.seed} "
        f"--learning-rate {settings.learning_rate:g}{limit}"
    )

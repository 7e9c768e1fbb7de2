"""Export: a finished run in, a verified bundle out, or nothing at all.

The graph is held against Keras on every test image, in batches of odd sizes, before anything is written, and an int8
graph against that one by ``precision``; its quality is what onnxruntime measured. The bundle holds no time and no path, so the same run gives the same files again.
"""

import re
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from digitserve.inference import bundle
from digitserve.inference.bundle import Manifest, graph_signature
from digitserve_training._tensorflow import tf
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled
from digitserve_training.errors import RunError
from digitserve_training.evaluate import page
from digitserve_training.evaluate.calibration import ood_threshold
from digitserve_training.evaluate.candidate import Candidate, open_candidate
from digitserve_training.evaluate.evaluation import Measurement, measure
from digitserve_training.evaluate.report import FOLDER
from digitserve_training.export import parity
from digitserve_training.export.parity import Parity
from digitserve_training.export.precision import INT8_GOLDEN_TOLERANCE, Int8, Precision, to_int8
from digitserve_training.fit import checkpoint
from digitserve_training.fit.checkpoint import Checkpoint
from digitserve_training.fit.settings import Settings, preset_of
from digitserve_training.model.layers import count_multiply_adds, count_parameters
from digitserve_training.model.preset_files import described


@dataclass(frozen=True)
class Destination:
    """Where a bundle goes.

    Attributes:
        models: folder of all models.
        name: the model's, None for the dataset's: "digits" for MNIST and its like.
        version: the bundle's, None for one above the highest there is.
    """

    models: Path
    name: str | None = None
    version: int | None = None


@dataclass(frozen=True)
class Exported:
    """A bundle that was written.

    Attributes:
        path: its folder.
        manifest: as it was written, but for the sha256.
        parity: how far its graph is from the network.
        graph_bytes: size of ``model.onnx``.
        int8: what int8 cost, where it was asked for.
    """

    path: Path
    manifest: Manifest
    parity: Parity
    graph_bytes: int
    int8: Int8 | None = None

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
            "calibration": f"error {quality['test_calibration_error']:.3%}, temperature {training['temperature']:.3f}",
            "OOD": f"threshold {self.manifest.ood_threshold:.4f}",
            "precision": training["precision"] if self.int8 is None else f"int8 on validation: {self.int8.validation}",
        }


def export(
    run_dir: Path, data_path: Path | None, destination: Destination, precision: Precision = "float32"
) -> Exported:
    """Turn a finished run into a bundle; the run's report goes with it if it is of this very graph.

    Args:
        run_dir: the run's folder.
        data_path: as ``splits.read_training`` takes it.
        destination: where the bundle goes.
        precision: what its graph computes in.

    Raises:
        RunError: there is no run, it is not finished, or the bundle cannot be written.
        DataError: these are not the images that the run was trained on.
        ParityError: the graph does not give the network's answers, or int8 loses too much; nothing was written.
    """
    # All that is cheap to know comes before minutes of measuring.
    state = checkpoint.load(run_dir)
    settled = settle(destination, state.settings)
    _require_finished(state, run_dir)
    candidate = open_candidate(run_dir, data_path)
    test = splits.read_test(data_path, candidate.state.settings.dataset)
    shown = run_dir / FOLDER if precision == "float32" and page.reported(run_dir / FOLDER) == candidate.sha256 else None
    return publish(candidate, test, settled, shown, precision)


def publish(
    candidate: Candidate,
    test: Labelled,
    destination: Destination,
    report: Path | None = None,
    precision: Precision = "float32",
) -> Exported:
    """Check a candidate's parity on the test images, measure it, and write its bundle.

    Raises:
        ParityError: nothing was written.
        RunError: the bundle cannot be written.
    """
    measured = parity.compare(candidate.answer, candidate.session, test.images)
    parity.require(measured)
    int8 = to_int8(candidate, test) if precision == "int8" else None
    candidate = candidate if int8 is None else int8.candidate
    manifest = _with_precision(
        _manifest(candidate, test, settle(destination, candidate.state.settings), measured), int8
    )
    try:
        path = bundle.write_bundle(destination.models, manifest, candidate.graph, candidate.golden, report)
    except OSError as error:
        raise RunError(f"no bundle was written in {destination.models}: {error}") from None
    return Exported(path, manifest, measured, len(candidate.graph), int8)


def settle(destination: Destination, settings: Settings) -> Destination:
    """Fill in name and version.

    Raises:
        RunError: that version exists, or the name is no folder's name.
    """
    models, version = destination.models, destination.version
    default = "digits" if settings.digits else settings.dataset
    name = default if destination.name is None else destination.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RunError(f"'{name}' is no name for a model; expected a plain name such as digits")
    taken = bundle.list_versions(models, name)
    if version in taken:
        raise RunError(
            f"{models / name / str(version)} exists, and a bundle is never overwritten: choose another version"
        )
    return Destination(models, name, max(taken, default=0) + 1 if version is None else version)


def _manifest(candidate: Candidate, test: Labelled, destination: Destination, measured: Parity) -> Manifest:
    held_out = measure(candidate.session, candidate.split.validation)
    labels = candidate.state.settings.labels
    inputs, outputs = graph_signature(len(labels))
    return Manifest(
        name=destination.name or "",
        version=destination.version or 1,
        sha256="",  # set by write_bundle
        inputs=inputs,
        outputs=outputs,
        labels=labels,
        ood_threshold=ood_threshold(held_out.ood_score),
        training=_training(candidate, test),
        quality=_quality(measure(candidate.session, test), held_out, measured),
    )


def _with_precision(manifest: Manifest, int8: Int8 | None) -> Manifest:
    if int8 is None:
        return replace(manifest, training={**manifest.training, "precision": "float32"})
    return replace(
        manifest,
        training={**manifest.training, "precision": "int8", "quantization": int8.described()},
        quality={**manifest.quality, **int8.figures()},
        golden_tolerance=INT8_GOLDEN_TOLERANCE,
    )


def _require_finished(state: Checkpoint, run_dir: Path) -> None:
    if not state.finished:
        raise RunError(
            f"the run stopped after {state.epoch} of {state.settings.epochs} epochs; "
            f"finish it with digitserve-train train --resume --run-dir {run_dir}"
        )


def _training(candidate: Candidate, test: Labelled) -> dict[str, Any]:
    settings, preset = candidate.state.settings, preset_of(candidate.state.settings)
    layers = preset.network(len(settings.labels))
    return {
        "preset": preset.name,
        "definition": described(preset),
        "dataset": settings.dataset,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "command": settings.command,
        "teachers": [asdict(teacher) for teacher in settings.teachers],
        "recipe": asdict(preset.recipe) | {"epochs": settings.epochs, "learning_rate": settings.learning_rate},
        "augmentation": asdict(preset.augmentation),
        "split": {
            "training_images": len(candidate.split.training),
            "validation_images": len(candidate.split.validation),
            "stratified": True,
            "seed": splits.SPLIT_SEED,
            "limit": settings.limit,
        },
        "data_sha256": {"training": settings.data_sha256, "test": splits.fingerprint(test)},
        "versions": _versions(),
        "parameters": count_parameters(layers),
        "multiply_adds": count_multiply_adds(layers),
        "temperature": candidate.temperature,
    }


def _versions() -> dict[str, str]:
    # TensorFlow's package is called tensorflow-cpu or tensorflow, so the module is asked.
    asked = {package: installed_version(package) for package in ("keras", "tf2onnx", "onnx")}
    return {"tensorflow": tf.__version__, **asked}


def _quality(test: Measurement, validation: Measurement, measured: Parity) -> dict[str, float]:
    return {
        "test_accuracy": test.accuracy,
        "test_loss": test.loss,
        "test_calibration_error": test.reliability.error,
        "validation_accuracy": validation.accuracy,
        "validation_loss": validation.loss,
        "test_images": measured.num_images,
        "parity_largest_difference": measured.largest_difference,
    }

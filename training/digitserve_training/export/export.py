"""Export: a finished run in, a verified bundle out.

Called by ``cli``. Before anything is written, ``parity`` compares the graph with Keras on every test image, and
``precision`` compares an int8 graph with the float32 one. The quality in the manifest is measured with onnxruntime. A
bundle holds no time and no path, so exporting a run again gives the same files.
"""

import re
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

from digitserve.inference import bundle, model_folder
from digitserve.inference.bundle import Manifest, graph_signature
from digitserve_training._tensorflow import tf
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled
from digitserve_training.data.unipen import CREDIT
from digitserve_training.errors import RunError
from digitserve_training.evaluate import page
from digitserve_training.evaluate.calibration import ood_threshold
from digitserve_training.evaluate.converted_model import ConvertedModel, convert_run
from digitserve_training.evaluate.evaluation import Measurement, measure
from digitserve_training.export import parity
from digitserve_training.export.parity import Parity
from digitserve_training.export.precision import INT8_GOLDEN_TOLERANCE, Int8Candidate, Precision, to_int8
from digitserve_training.fit import checkpoint
from digitserve_training.fit.checkpoint import Checkpoint
from digitserve_training.fit.settings import Settings
from digitserve_training.model.layers import count_multiply_adds, count_parameters
from digitserve_training.model.preset_files import preset_to_dict


@dataclass(frozen=True)
class Destination:
    """Where a bundle is written.

    Attributes:
        models: folder of all models.
        name: of the model; None for "digits" if the dataset holds digits, else for the dataset's name.
        version: of the bundle; None for the highest existing version plus 1.
    """

    models: Path
    name: str | None = None
    version: int | None = None


@dataclass(frozen=True)
class ExportedBundle:
    """A bundle that was written.

    Attributes:
        path: its folder.
        manifest: as written, except for the sha256.
        parity: differences between the graph and the network.
        graph_bytes: size of ``model.onnx``.
        int8: the int8 graph and its differences from the float32 one; None for a float32 bundle.
    """

    path: Path
    manifest: Manifest
    parity: Parity
    graph_bytes: int
    int8: Int8Candidate | None = None

    def summary(self) -> dict[str, str]:
        """Return the lines that the command prints, by title."""
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
    run_dir: Path,
    data_path: Path | None,
    destination: Destination,
    precision: Precision = "float32",
) -> ExportedBundle:
    """Export a finished run as a bundle, with the run's report if that was made from the same graph.

    Args:
        run_dir: the run's folder.
        data_path: as for ``splits.read_training``.
        destination: where the bundle is written.
        precision: what its graph computes in.

    Raises:
        RunError: there is no run, it is not finished, or the bundle cannot be written.
        DataError: these are not the images that the run was trained on.
        ParityError: the graph does not give the network's outputs, or int8 differs too much; nothing was written.
    """
    # Quick checks first: measuring takes minutes.
    state = checkpoint.load(run_dir)
    resolved = resolve_destination(destination, state.settings)
    _require_finished(state, run_dir)
    converted = convert_run(run_dir, data_path)
    test = splits.read_test(data_path, converted.state.settings.dataset)
    report: Path | None = run_dir / page.FOLDER
    if precision != "float32" or page.reported_sha256(run_dir / page.FOLDER) != converted.sha256:
        report = None
    return publish(converted, test, resolved, report, precision)


def publish(
    converted: ConvertedModel,
    test: Labelled,
    destination: Destination,
    report: Path | None = None,
    precision: Precision = "float32",
) -> ExportedBundle:
    """Check a converted model's parity on the test images, measure it, and write its bundle.

    Raises:
        ParityError: nothing was written.
        RunError: the bundle cannot be written.
    """
    measured = parity.compare(converted.keras_function, converted.session, test.images)
    parity.require(measured)
    int8 = to_int8(converted, test) if precision == "int8" else None
    converted = converted if int8 is None else int8.candidate
    manifest = _with_precision(
        _manifest(converted, test, resolve_destination(destination, converted.state.settings), measured), int8
    )
    try:
        path = bundle.write_bundle(destination.models, manifest, converted.graph, converted.golden, report)
    except OSError as error:
        raise RunError(f"no bundle was written in {destination.models}: {error}") from None
    return ExportedBundle(path, manifest, measured, len(converted.graph), int8)


def resolve_destination(destination: Destination, settings: Settings) -> Destination:
    """Fill in the default name and version.

    Raises:
        RunError: the version exists, or the name is not a plain name.
    """
    models, version = destination.models, destination.version
    default = "digits" if settings.digits else settings.dataset
    name = default if destination.name is None else destination.name
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise RunError(f"'{name}' is not a valid model name; expected a plain name such as digits")
    taken = model_folder.list_versions(models, name)
    if version in taken:
        raise RunError(
            f"{models / name / str(version)} exists, and a bundle is never overwritten: choose another version"
        )
    return Destination(models, name, max(taken, default=0) + 1 if version is None else version)


def _manifest(converted: ConvertedModel, test: Labelled, destination: Destination, measured: Parity) -> Manifest:
    held_out = measure(converted.session, converted.split.validation)
    labels = converted.state.settings.labels
    inputs, outputs = graph_signature(len(labels))
    return Manifest(
        name=destination.name or "",
        version=destination.version or 1,
        sha256="",  # set by write_bundle
        inputs=inputs,
        outputs=outputs,
        labels=labels,
        ood_threshold=ood_threshold(held_out.ood_score),
        training=_training(converted, test),
        quality=_quality(measure(converted.session, test), held_out, measured),
    )


def _with_precision(manifest: Manifest, int8: Int8Candidate | None) -> Manifest:
    if int8 is None:
        return replace(manifest, training={**manifest.training, "precision": "float32"})
    return replace(
        manifest,
        training={**manifest.training, "precision": "int8", "quantization": int8.description()},
        quality={**manifest.quality, **int8.quality()},
        golden_tolerance=INT8_GOLDEN_TOLERANCE,
    )


def _require_finished(state: Checkpoint, run_dir: Path) -> None:
    if not state.finished:
        raise RunError(
            f"the run stopped after {state.epoch} of {state.settings.epochs} epochs; "
            f"continue it with digitserve-train train --resume --run-dir {run_dir}"
        )


def _training(converted: ConvertedModel, test: Labelled) -> dict[str, Any]:
    settings = converted.state.settings
    strokes = settings.strokes_sha256
    return {
        "preset": settings.preset.name,
        "definition": preset_to_dict(settings.preset),
        "dataset": settings.dataset,
        "seed": settings.seed,
        "epochs": settings.epochs,
        "command": settings.command,
        "teachers": [asdict(teacher) for teacher in settings.teachers],
        "recipe": asdict(settings.recipe) | {"epochs": settings.epochs, "learning_rate": settings.learning_rate},
        "augmentation": asdict(settings.preset.augmentation),
        "split": {
            "training_images": len(converted.split.training),
            "validation_images": len(converted.split.validation),
            "stratified": True,
            "seed": splits.SPLIT_SEED,
            "limit": settings.limit,
        },
        "data_sha256": {"training": settings.data_sha256, "test": splits.fingerprint(test)},
        "strokes": None if strokes is None else {"sha256": strokes, "credit": CREDIT},
        "versions": _versions(),
        "parameters": count_parameters(settings.layers),
        "multiply_adds": count_multiply_adds(settings.layers),
        "temperature": converted.temperature,
    }


def _versions() -> dict[str, str]:
    # TensorFlow's package may be tensorflow or tensorflow-cpu, so its version comes from the module.
    return {"tensorflow": tf.__version__} | {name: installed_version(name) for name in ("keras", "tf2onnx", "onnx")}


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

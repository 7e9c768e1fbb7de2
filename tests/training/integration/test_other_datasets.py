"""Datasets other than MNIST from end to end: train, resume, evaluate, export and serve, with their own labels."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from digitserve.inference import bundle
from digitserve.inference.session import Session
from digitserve.v1 import digits_pb2 as pb
from digitserve_training.cli import main
from digitserve_training.data import splits
from digitserve_training.errors import DataError, RunError
from digitserve_training.fit import checkpoint, settings
from digitserve_training.fit.settings import Options
from support.dataset_files import labelled_shapes, write_emnist_letters, write_pictures
from support.serving import run_worker

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
SHAPES = ("narrow", "square", "tall $and$ thin")


def invoke(command: str, *options: object) -> Result:
    """Run ``digitserve-train`` in this process; exceptions other than an exit propagate to the test."""
    return CliRunner().invoke(main, [command, *map(str, options)], catch_exceptions=False)


def write_letters(folder: Path) -> Path:
    """Write 312 letters for training and 52 for testing."""
    write_emnist_letters(folder, labelled_shapes(312, 26), labelled_shapes(52, 26, seed=1))
    return folder


def write_shapes(folder: Path) -> Path:
    """Write 216 images of 42x42, some of which become the test part."""
    write_pictures(folder, *labelled_shapes(216, 3, side=42), SHAPES)
    return folder


@pytest.mark.parametrize(
    ("name", "write_set", "labels", "num_test"),
    [("emnist-letters", write_letters, LETTERS, 52), ("folder", write_shapes, SHAPES, 36)],
)
def test_train_resume_evaluate_export_serve(
    tmp_path: Path, name: str, write_set: Callable[[Path], Path], labels: tuple[str, ...], num_test: int
) -> None:
    """Only the first command names the dataset; resume, evaluate and export know it, and it is served with its labels."""
    source, run_dir, models = write_set(tmp_path / "set"), tmp_path / "run", tmp_path / "models"
    for command, *options in (
        ("train", "--dataset", name, "--preset", "compact", "--run-dir", run_dir, "--epochs", 1, "--data", source),
        ("train", "--resume", "--run-dir", run_dir, "--data", source),
        ("evaluate", run_dir, "--data", source),
        ("export", run_dir, "--data", source, "--models", models),
    ):
        ended = invoke(command, *options)
        assert ended.exit_code == 0, ended.output

    exported, test = bundle.read_bundle(models / name / "1"), splits.read_test(source, name)
    assert exported.manifest.labels == test.names == labels
    assert (exported.manifest.training["dataset"], len(test)) == (name, num_test)
    assert (exported.manifest.training["recipe"]["scanned"], exported.manifest.training["recipe"]["outliers"]) == (0, 0)
    assert f"--dataset {name}" in exported.manifest.training["command"]
    report = json.loads((exported.path / "report" / "evaluation.json").read_text())
    assert (report["test"]["labels"], np.shape(report["test"]["confusion"])) == (list(labels), (len(labels),) * 2)

    probabilities = Session(exported).run(test.images).probabilities
    assert probabilities.shape == (num_test, len(labels))
    with run_worker(models, model=name) as worker:
        answered = worker.classify(pb.ClassifyRequest(pixels=test.images.tobytes(), top_k=len(labels)))
    for prediction, row in zip(answered.predictions, probabilities, strict=True):
        assert prediction.label == labels[row.argmax()]
        listed = {score.label: score.confidence for score in prediction.top}
        assert [listed[label] for label in labels] == pytest.approx(row.tolist(), abs=1e-5)


def start_run(run_dir: Path, name: str, source: Path) -> Path:
    """Write the checkpoint of a run before its first epoch; the tests do not need its weights."""
    training = splits.read_training(source, name)
    chosen = settings.resolve(Options(dataset=name), training.names, splits.fingerprint(training))
    checkpoint.save(run_dir, checkpoint.Checkpoint(chosen, 0, (), {}))
    return run_dir


def test_resume_with_another_dataset(tmp_path: Path) -> None:
    """Resuming a run with another dataset is rejected; the message names both."""
    run_dir = start_run(tmp_path / "run", "emnist-letters", write_letters(tmp_path / "set"))
    shapes = write_shapes(tmp_path / "shapes")

    ended = invoke("train", "--resume", "--dataset", "folder", "--run-dir", run_dir, "--data", shapes)

    assert (ended.exit_code, "dataset was emnist-letters, now folder" in ended.stderr) == (RunError.exit_code, True)


def test_renamed_classes_are_another_dataset(tmp_path: Path) -> None:
    """A network is not evaluated with class names that it was not trained with, even if all pixels are equal."""
    source = write_shapes(tmp_path / "set")
    run_dir = start_run(tmp_path / "run", "folder", source)
    (source / "square").rename(source / "quadratic")

    ended = invoke("evaluate", run_dir, "--data", source)

    assert ended.exit_code == DataError.exit_code
    assert (
        "the labels of these images are narrow, quadratic, tall $and$ thin; the run was trained on narrow, square"
        in ended.stderr
    )


@pytest.mark.parametrize("name", ["kmnist", "emnist-digits", "emnist-letters", "folder"])
def test_missing_data_ends_with_a_message(tmp_path: Path, name: str) -> None:
    """Without --data the command states where to get the dataset, exits with status 3, and starts no run."""
    ended = invoke("train", "--dataset", name, "--run-dir", tmp_path / "run")

    assert ended.exit_code == DataError.exit_code
    assert f"{name} cannot be downloaded automatically. Get it from" in ended.stderr
    assert not (tmp_path / "run").exists()

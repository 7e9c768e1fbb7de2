"""Other images than MNIST's, all the way: train, resume, evaluate, export, open and serve, with labels of their own."""

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
from digitserve_training.fit.settings import Asked
from support.published import figures, write_emnist_letters, write_pictures
from support.serving import run_worker

LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
SHAPES = ("narrow", "square", "tall $and$ thin")


def invoke(command: str, *options: object) -> Result:
    """Run ``digitserve-train`` in this process; an exception other than an exit is the test's."""
    return CliRunner().invoke(main, [command, *map(str, options)], catch_exceptions=False)


def write_letters(folder: Path) -> Path:
    """Write 312 letters to train with and 52 to test with."""
    write_emnist_letters(folder, figures(312, 26), figures(52, 26, seed=1))
    return folder


def write_shapes(folder: Path) -> Path:
    """Write 216 pictures of 42x42, some of them for the test."""
    write_pictures(folder, *figures(216, 3, side=42), SHAPES)
    return folder


@pytest.mark.parametrize(
    ("name", "write_set", "labels", "num_test"),
    [("emnist-letters", write_letters, LETTERS, 52), ("folder", write_shapes, SHAPES, 36)],
)
def test_the_whole_way(
    tmp_path: Path, name: str, write_set: Callable[[Path], Path], labels: tuple[str, ...], num_test: int
) -> None:
    """A set is trained on, gone on with, evaluated and exported by naming it once, and served with its own labels."""
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
    assert (exported.manifest.training["recipe"]["paper"], exported.manifest.training["recipe"]["outliers"]) == (0, 0)
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


def begun(run_dir: Path, name: str, source: Path) -> Path:
    """Leave a run as it stands once its settings are known; its weights are never asked for."""
    training = splits.read_training(source, name)
    chosen = settings.start(Asked(dataset=name), training.names, splits.fingerprint(training))
    checkpoint.save(run_dir, checkpoint.Checkpoint(chosen, 0, (), {}))
    return run_dir


def test_resuming_as_another_dataset(tmp_path: Path) -> None:
    """A run goes on with the set that it was started with, or says that it was another."""
    run_dir = begun(tmp_path / "run", "emnist-letters", write_letters(tmp_path / "set"))
    shapes = write_shapes(tmp_path / "shapes")

    ended = invoke("train", "--resume", "--dataset", "folder", "--run-dir", run_dir, "--data", shapes)

    assert (ended.exit_code, "dataset was emnist-letters, now folder" in ended.stderr) == (RunError.exit_code, True)


def test_renamed_classes_are_other_images(tmp_path: Path) -> None:
    """A network is not measured under names that it was not trained with, even where every pixel is the same."""
    source = write_shapes(tmp_path / "set")
    run_dir = begun(tmp_path / "run", "folder", source)
    (source / "square").rename(source / "quadratic")

    ended = invoke("evaluate", run_dir, "--data", source)

    assert ended.exit_code == DataError.exit_code
    assert "labelled narrow, quadratic, tall $and$ thin; the run was trained on narrow, square" in ended.stderr


@pytest.mark.parametrize("name", ["kmnist", "emnist-digits", "emnist-letters", "folder"])
def test_missing_data_ends_with_a_message(tmp_path: Path, name: str) -> None:
    """Without --data the command says where to get the set and what to name, with status 3, and starts no run."""
    ended = invoke("train", "--dataset", name, "--run-dir", tmp_path / "run")

    assert ended.exit_code == DataError.exit_code
    assert f"{name} is not fetched by itself. Get it from" in ended.stderr
    assert not (tmp_path / "run").exists()

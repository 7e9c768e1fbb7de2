"""Trainings with pen strokes: train, resume, evaluate, export, tune and distil, on a small generated archive."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from digitserve.inference import bundle
from digitserve_training.cli import main
from digitserve_training.data import pen_split, splits, unipen
from digitserve_training.fit import checkpoint, pen_images, settings
from digitserve_training.fit.settings import Options
from digitserve_training.fit.train import Training, train
from digitserve_training.model.layers import Conv, Flatten
from digitserve_training.model.preset_files import preset_to_json
from digitserve_training.model.presets import Augmentation, Preset, Recipe
from digitserve_training.synth.digits import synthetic_digits
from support.pen_archive import NUM_WRITERS, write_archive

NUM_IMAGES = 240
NUM_VALIDATION = NUM_IMAGES // 12
NUM_PEN_VALIDATION = 10 * (NUM_WRITERS // 8)
SMALL = Preset(
    name="small",
    summary="for tests",
    layers=(Conv(4, kernel=5, stride=4), Flatten()),
    recipe=Recipe(epochs=2, learning_rate=0.01, batch_size=64, scanned=0.25, outliers=0.125, pen=0.3),
    augmentation=Augmentation(),
)

Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write digits in MNIST's layout, two archives of pen strokes, and a preset that uses pen strokes."""
    folder: Path = tmp_path_factory.mktemp("strokes")
    images, labels = synthetic_digits(2 * NUM_IMAGES, seed=5)
    arrays = {"x_train": images[:NUM_IMAGES, ..., 0], "y_train": labels[:NUM_IMAGES]}
    arrays |= {"x_test": images[NUM_IMAGES:, ..., 0], "y_test": labels[NUM_IMAGES:]}
    np.savez(folder / "digits.npz", allow_pickle=False, **arrays)
    write_archive(folder / "strokes.tar.xz")
    write_archive(folder / "other.tar.xz", seed=2)
    (folder / "small.json").write_text(preset_to_json(SMALL))
    return folder


@pytest.fixture(scope="module")
def invoke(folder: Path) -> Invoke:
    """Run ``digitserve-train`` in this process, on these digits."""
    return lambda command, *options: CliRunner().invoke(
        main, [command, *map(str, options), "--data", str(folder / "digits.npz")], catch_exceptions=False
    )


@pytest.fixture(scope="module")
def run_dir(folder: Path, invoke: Invoke) -> Path:
    """Train for two epochs with pen strokes."""
    run_dir = folder / "runs" / "finished"
    ended = invoke(
        "train", "--preset", folder / "small.json", "--strokes", folder / "strokes.tar.xz", "--run-dir", run_dir
    )
    assert ended.exit_code == 0, ended.output
    return run_dir


def metrics(run_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run_dir / checkpoint.METRICS_NAME).read_text().splitlines()]


def test_a_run_stores_its_pen_strokes(run_dir: Path, folder: Path) -> None:
    """The checkpoint has the fingerprint of the pen strokes; the command names the option without a path."""
    stored = checkpoint.load(run_dir).settings

    assert stored.strokes_sha256 == pen_split.read(folder / "strokes.tar.xz").fingerprint
    assert " --strokes $DIGITSERVE_STROKES" in stored.command
    assert str(folder) not in stored.command


def test_validation_is_measured_on_both_parts(run_dir: Path) -> None:
    """Each epoch has the accuracy on validation images of the dataset, on pen digits, and on both together."""
    for record in metrics(run_dir):
        dataset, pen = record["dataset_accuracy"] * NUM_VALIDATION, record["pen_accuracy"] * NUM_PEN_VALIDATION
        assert dataset == pytest.approx(round(dataset)) and pen == pytest.approx(round(pen))
        assert record["validation_accuracy"] * (NUM_VALIDATION + NUM_PEN_VALIDATION) == pytest.approx(dataset + pen)


def test_training_without_pen_strokes_says_what_is_missing(folder: Path, invoke: Invoke, tmp_path: Path) -> None:
    """Without pen strokes the preset trains on the dataset alone, and one line says where to get them."""
    ended = invoke("train", "--preset", folder / "small.json", "--run-dir", tmp_path / "run", "--epochs", 1)

    assert ended.exit_code == 0, ended.output
    lines = [line for line in ended.stdout.splitlines() if "pen strokes" in line]
    assert len(lines) == 1
    assert "Zenodo, doi 10.5281/zenodo.1195803" in lines[0] and "--strokes or DIGITSERVE_STROKES" in lines[0]
    assert checkpoint.load(tmp_path / "run").settings.strokes_sha256 is None
    assert not {"dataset_accuracy", "pen_accuracy"} & metrics(tmp_path / "run")[0].keys()


def test_presets_without_pen_digits_do_not_use_strokes(folder: Path, invoke: Invoke, tmp_path: Path) -> None:
    """With --strokes, a preset without pen digits trains as always, and one line says so."""
    strokes = folder / "strokes.tar.xz"
    ended = invoke(
        "train", "--preset", "lenet5", "--strokes", strokes, "--run-dir", tmp_path / "run", "--epochs", 1
    )  # fmt: skip

    assert ended.exit_code == 0, ended.output
    assert "--strokes is not used: the recipe of 'lenet5' on mnist has no pen digits" in ended.stdout
    assert checkpoint.load(tmp_path / "run").settings.strokes_sha256 is None


def test_the_environment_variable_names_the_archive(
    folder: Path, run_dir: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DIGITSERVE_STROKES gives the same training as --strokes."""
    monkeypatch.setenv(pen_split.ENVIRONMENT, str(folder / "strokes.tar.xz"))

    ended = invoke("train", "--preset", folder / "small.json", "--run-dir", tmp_path / "run")

    assert ended.exit_code == 0, ended.output
    assert "without pen strokes" not in ended.output
    expected, got = checkpoint.load(run_dir), checkpoint.load(tmp_path / "run")
    assert got.settings == expected.settings
    assert all(np.array_equal(got.arrays[name], expected.arrays[name]) for name in expected.arrays)


def test_a_missing_archive_is_rejected(folder: Path, invoke: Invoke, tmp_path: Path) -> None:
    """A path that does not exist ends the command with exit code 3, and creates no run."""
    missing = tmp_path / "missing.tar.xz"
    ended = invoke(
        "train", "--preset", folder / "small.json", "--strokes", missing, "--run-dir", tmp_path / "run"
    )  # fmt: skip

    assert ended.exit_code == 3
    assert str(missing) in ended.stderr
    assert not (tmp_path / "run").exists()


def test_resumed_training_is_the_same_training(folder: Path, run_dir: Path, tmp_path: Path) -> None:
    """A run with pen strokes that is stopped and resumed ends with the weights of a run that was not stopped."""
    expected = checkpoint.load(run_dir)
    pen = pen_split.read(folder / "strokes.tar.xz")
    labelled = splits.read_training(folder / "digits.npz")
    resolved = settings.resolve(
        Options(preset=str(folder / "small.json")), labelled.names, splits.fingerprint(labelled), pen.fingerprint
    )
    split = pen_images.add_pen(splits.split(labelled), pen)

    stopped = Training(resolved, split)
    record = stopped.run_epoch(1)
    checkpoint.save(tmp_path, checkpoint.Checkpoint(resolved, 1, (record,), stopped.arrays()))
    resumed = train(resolved, split, tmp_path, resume=True)

    assert resumed.settings == expected.settings
    assert all(np.array_equal(resumed.arrays[name], expected.arrays[name]) for name in expected.arrays)


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        ("strokes.tar.xz", None),
        ("other.tar.xz", "strokes_sha256 was"),
        (None, "started with pen strokes"),
    ],
)
def test_a_run_is_resumed_with_its_own_pen_strokes(
    folder: Path, run_dir: Path, invoke: Invoke, archive: str | None, message: str | None
) -> None:
    """A run with pen strokes can be resumed with the same ones; with others or none, exit code 4 and the reason."""
    strokes = () if archive is None else ("--strokes", folder / archive)

    ended = invoke("train", "--run-dir", run_dir, "--resume", *strokes)

    assert ended.exit_code == (0 if message is None else 4), ended.output
    assert message is None or message in ended.stderr


def test_a_run_is_evaluated_and_exported_without_its_pen_strokes(
    run_dir: Path, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Report and bundle need the dataset only, which decides temperature and threshold; both credit UniPen."""
    monkeypatch.delenv(pen_split.ENVIRONMENT, raising=False)

    evaluated = invoke("evaluate", run_dir)
    exported = invoke("export", run_dir, "--models", tmp_path)

    assert (evaluated.exit_code, exported.exit_code) == (0, 0), evaluated.output + exported.output
    (line,) = (line for line in evaluated.stdout.splitlines() if line.startswith("validation: "))
    assert f" of {NUM_VALIDATION} wrong)" in line
    assert unipen.CREDIT.rpartition("data: ")[2] in (run_dir / "report" / "index.html").read_text()
    training = bundle.read_bundle(tmp_path / "digits" / "1").manifest.training
    assert training["strokes"] == {"sha256": checkpoint.load(run_dir).settings.strokes_sha256, "credit": unipen.CREDIT}
    assert all(part in unipen.CREDIT for part in ("Guyon", "ICPR 1994", "train_r01_v07", "CC BY 4.0"))
    assert training["split"]["validation_images"] == NUM_VALIDATION


def test_a_teacher_with_pen_strokes_may_have_a_student_without(
    folder: Path, run_dir: Path, invoke: Invoke, tmp_path: Path
) -> None:
    """A student without pen strokes can learn from a teacher that was trained with them."""
    ended = invoke(
        "train", "--preset", folder / "small.json", "--teacher", run_dir, "--run-dir", tmp_path / "run", "--epochs", 1
    )

    assert ended.exit_code == 0, ended.output


def test_tune_uses_pen_strokes(folder: Path, invoke: Invoke, tmp_path: Path) -> None:
    """A search with pen strokes can only be continued with the same pen strokes."""
    options = ("--preset", folder / "small.json", "--study-dir", tmp_path / "study", "--epochs", 1)

    first = invoke("tune", *options, "--trials", 1, "--strokes", folder / "strokes.tar.xz")
    other = invoke("tune", *options, "--trials", 2, "--strokes", folder / "other.tar.xz")

    assert first.exit_code == 0, first.output
    assert other.exit_code == 4
    assert "strokes_sha256 was" in other.stderr

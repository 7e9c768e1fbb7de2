"""Hyperparameter search on a few scanned digits: run, stopped, continued, pruned, and written as a preset.

All studies read a file whose test images are damaged, so a study that read test images would fail.
"""

import csv
import fcntl
import os
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import optuna
import pytest
from click.testing import CliRunner, Result

from digitserve_training.cli import main
from digitserve_training.data import splits
from digitserve_training.errors import DataError, DivergedError, ParityError, RunError
from digitserve_training.fit import checkpoint
from digitserve_training.model.layers import Conv, Dropout, Flatten, Layer
from digitserve_training.model.preset_files import find_preset, preset_to_json
from digitserve_training.model.presets import Augmentation, Preset, Recipe
from digitserve_training.tune import results, search, timing
from support.digits import scanned_digits

NUM_IMAGES = 300
SMALL = Preset(
    name="small",
    summary="for tests",
    layers=(Conv(4, kernel=5, stride=4), Dropout(0.25), Flatten()),
    recipe=Recipe(
        epochs=2, learning_rate=0.01, batch_size=32, warmup_epochs=0.0, ema_momentum=0.0, schedule="constant"
    ),
    augmentation=Augmentation(),
)


@pytest.fixture(scope="module")
def digits_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write scanned digits as an npz file with damaged test images."""
    images, labels = scanned_digits()
    large = np.pad(np.kron(images[:NUM_IMAGES], np.ones((1, 3, 3), np.uint8)), ((0, 0), (2, 2), (2, 2)))
    path: Path = tmp_path_factory.mktemp("digits") / "digits.npz"
    parts = {f"{kind}_{part}": array for part in ("train", "test") for kind, array in (("x", large), ("y", labels))}
    parts = {name: array[:NUM_IMAGES] for name, array in parts.items()}
    np.savez(path, allow_pickle=False, **parts)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("x_test.npy").header_offset
    with path.open("r+b") as file:
        file.seek(start + 1_000)
        file.write(b"damaged" * 100)
    return path


@pytest.fixture(scope="module")
def preset_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the small preset as a file."""
    path: Path = tmp_path_factory.mktemp("presets") / "small.json"
    path.write_text(preset_to_json(SMALL))
    return path


Invoke = Callable[..., Result]


@pytest.fixture(scope="module")
def invoke(digits_path: Path, preset_path: Path) -> Invoke:
    """Run ``digitserve-train tune`` in this process, on the scanned digits, by default on the small preset."""

    def run(folder: Path, *options: object, preset: Path = preset_path) -> Result:
        given = ["--study-dir", folder, "--preset", preset, "--data", digits_path, "--epochs", 1, *options]
        return CliRunner().invoke(main, ["tune", *map(str, given)], catch_exceptions=False)

    return run


@pytest.fixture(scope="module")
def study_dir(tmp_path_factory: pytest.TempPathFactory, invoke: Invoke) -> Path:
    """Search with three trials."""
    folder: Path = tmp_path_factory.mktemp("studies") / "three"
    ended = invoke(folder, "--trials", 3)
    assert ended.exit_code == 0, ended.output
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a study's table."""
    with (folder / results.TABLE_NAME).open(newline="") as file:
        return list(csv.DictReader(file))


@contextmanager
def opened(folder: Path) -> Iterator[optuna.Study]:
    """Open a study with Optuna directly."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / search.STUDY_NAME}")
    try:
        yield optuna.load_study(study_name="tune", storage=storage)
    finally:
        storage.remove_session()
        storage.engine.dispose()


def test_the_test_images_are_never_read(digits_path: Path, study_dir: Path) -> None:
    """A study succeeds with a file whose test images cannot be read."""
    with pytest.raises(DataError, match="cannot be read"):
        splits.read_test(digits_path)

    assert [row["state"] for row in table(study_dir)] == ["complete"] * 3


def test_the_first_trial_is_the_base_preset(study_dir: Path) -> None:
    """The first trial trains the base preset unchanged, so every study compares the others with it."""
    first = table(study_dir)[0]

    names = ("learning_rate", "weight_decay", "width", "dropout_1")
    assert [float(first[name]) for name in names] == [0.01, 0.0, 1.0, 0.25]


def test_the_best_trial_becomes_a_preset_that_trains(study_dir: Path, digits_path: Path, tmp_path: Path) -> None:
    """The preset file has the values of the trial with the lowest loss, and ``train --preset`` accepts it."""
    lowest = min(table(study_dir), key=lambda row: float(row["validation_loss"]))
    best = find_preset(str(study_dir / results.PRESET_NAME))
    run_dir = tmp_path / "run"

    options = ["--preset", study_dir / results.PRESET_NAME, "--data", digits_path, "--epochs", 1, "--run-dir", run_dir]
    trained = CliRunner().invoke(main, ["train", *map(str, options)], catch_exceptions=False)

    assert trained.exit_code == 0, trained.output
    assert best.recipe.learning_rate == pytest.approx(float(lowest["learning_rate"]), rel=0.01)
    assert (best.name, best.recipe.epochs) == ("small-tuned", SMALL.recipe.epochs)
    state = checkpoint.load(run_dir)
    assert state.settings.preset == best
    # Equal preset, seed, epochs and images give exactly the loss of the trial.
    assert state.history[-1]["validation_loss"] == float(lowest["validation_loss"])


def test_a_continued_study_equals_an_uninterrupted_one(study_dir: Path, tmp_path: Path, invoke: Invoke) -> None:
    """A continued study draws the same values, trains no trial twice, and prints a table sorted by loss."""
    first = invoke(tmp_path, "--trials", 2)
    before = table(tmp_path)
    second = invoke(tmp_path, "--trials", 3)

    assert (first.exit_code, second.exit_code, len(before)) == (0, 0, 2)
    assert table(tmp_path) == table(study_dir)
    losses = [float(row["validation_loss"]) for row in table(tmp_path)]
    shown = [line.split()[:2] for line in second.stdout.splitlines() if " complete " in line]
    assert shown == [[str(number), "complete"] for number in np.argsort(losses)]
    assert f"next: digitserve-train train --preset {tmp_path / results.PRESET_NAME}" in second.stdout


def test_a_finished_study_is_unchanged(study_dir: Path, invoke: Invoke) -> None:
    """If the study already has enough trials, the command prints them and trains nothing."""
    before = table(study_dir)

    ended = invoke(study_dir, "--trials", 2)

    assert ended.exit_code == 0
    assert table(study_dir) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", 2], "epochs was 1, now 2"),
        (["--limit", 100, "--seed", 9], "seed was 1, now 9; limit was None, now 100"),
        (["--preset", "tiny"], "preset was small, now tiny"),
        (["--vary", "width"], r"vary was ['learning-rate', "),
        (["--max-parameters", 10], "max_parameters was None, now 10"),
        (["--objectives", "loss,time"], "objectives was ['loss'], now ['loss', 'time']"),
    ],
)
def test_another_search_is_rejected(study_dir: Path, invoke: Invoke, options: list[object], message: str) -> None:
    """A study can only be continued with its own settings; the error names each difference, and nothing is changed."""
    before = table(study_dir)

    ended = invoke(study_dir, *options, "--trials", 9)

    assert (ended.exit_code, message in ended.stderr) == (RunError.exit_code, True), ended.output
    assert table(study_dir) == before


def test_an_edited_preset_is_rejected(study_dir: Path, tmp_path: Path, invoke: Invoke) -> None:
    """A preset with the same name and another definition cannot continue a study."""
    path = tmp_path / "small.json"
    path.write_text(preset_to_json(replace(SMALL, recipe=replace(SMALL.recipe, label_smoothing=0.1))))

    ended = invoke(study_dir, preset=path)

    assert (ended.exit_code, "preset 'small' was edited" in ended.stderr) == (RunError.exit_code, True)


@pytest.mark.parametrize("limit", ["--max-parameters", "--max-multiply-adds"])
def test_networks_beyond_the_limits_are_not_trained(tmp_path: Path, invoke: Invoke, limit: str) -> None:
    """Trials with too large networks are pruned before their first epoch; a study with no other trials is an error."""
    ended = invoke(tmp_path, "--trials", 2, limit, 100)

    assert ended.exit_code == RunError.exit_code
    assert "no trial is complete" in ended.stderr
    rows = table(tmp_path)
    assert [(row["state"], row["validation_loss"]) for row in rows] == [("pruned", "")] * 2
    assert all("at most 100 allowed: not trained" in row["why"] for row in rows)
    assert not (tmp_path / results.PRESET_NAME).exists()


def test_trials_worse_than_the_median_are_pruned(
    tmp_path: Path, invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial whose loss after an epoch is above the median of the others is pruned."""
    monkeypatch.setattr(search, "STARTUP_TRIALS", 1)
    common = ("--epochs", 2, "--vary", "learning-rate")
    assert invoke(tmp_path, "--trials", 1, *common).exit_code == 0
    with opened(tmp_path) as study:
        # A tenth of the base's learning rate learns almost nothing in an epoch.
        study.enqueue_trial({"learning_rate": 0.001})

    assert invoke(tmp_path, "--trials", 2, *common).exit_code == 0

    assert [(row["state"], row["why"]) for row in table(tmp_path)] == [
        ("complete", ""),
        ("pruned", "worse than the median after 1 of 2 epochs"),
    ]


def test_a_diverged_trial_is_pruned(tmp_path: Path, invoke: Invoke) -> None:
    """Divergence ends a trial as pruned, and does not end the study."""
    path = tmp_path / "wild.json"
    path.write_text(preset_to_json(replace(SMALL, recipe=replace(SMALL.recipe, learning_rate=1e30))))

    ended = invoke(tmp_path, "--trials", 1, "--vary", "dropout", preset=path)

    assert ended.exit_code == RunError.exit_code != DivergedError.exit_code
    assert [(row["state"], row["why"]) for row in table(tmp_path)] == [("pruned", "diverged")]


def test_a_crashed_trial_is_repeated(tmp_path: Path, invoke: Invoke) -> None:
    """A trial that was running when the process crashed is marked as failed, and its values are tried again."""
    assert invoke(tmp_path, "--trials", 1, "--vary", "dropout").exit_code == 0
    with opened(tmp_path) as study:
        study.ask({"dropout_1": optuna.distributions.FloatDistribution(0.0, 0.7)})

    assert invoke(tmp_path, "--trials", 2, "--vary", "dropout").exit_code == 0

    _, failed, again = table(tmp_path)
    assert (failed["state"], again["state"]) == ("fail", "complete")
    assert failed["dropout_1"] == again["dropout_1"]


def test_one_search_at_a_time(tmp_path: Path, invoke: Invoke) -> None:
    """While a search has locked the folder, a second one is rejected."""
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        ended = invoke(tmp_path)
    finally:
        os.close(descriptor)

    assert (ended.exit_code, "another search is running" in ended.stderr) == (RunError.exit_code, True)


def test_a_damaged_study_is_rejected(tmp_path: Path, invoke: Invoke) -> None:
    """A file that is not a study is rejected and not changed."""
    (tmp_path / search.STUDY_NAME).write_text("no database" * 100)

    ended = invoke(tmp_path)

    assert (ended.exit_code, "study.db cannot be used as a study" in ended.stderr) == (RunError.exit_code, True)
    assert (tmp_path / search.STUDY_NAME).read_text() == "no database" * 100


SHAPED = replace(
    SMALL,
    layers=(
        Conv(16, kernel=5, stride=4, batch_norm=True),
        Conv(16, batch_norm=True),
        Conv(16, kernel=7, padding="valid", batch_norm=True),
        Flatten(),
    ),
)
TIMED = ("--objectives", "loss,time", "--limit", 150)


@pytest.fixture(scope="module")
def shaped_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a preset of three convolutions as a file."""
    path: Path = tmp_path_factory.mktemp("presets") / "shaped.json"
    path.write_text(preset_to_json(SHAPED))
    return path


def test_the_pareto_front_of_loss_and_measured_time(
    tmp_path: Path, invoke: Invoke, shaped_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search of shapes measures each network in onnxruntime and writes a valid preset for each trial that no other one
    surpasses in loss and time. A preset that is not on the front, as from an earlier trial, is removed.
    """
    monkeypatch.setattr(timing, "MEASURE_S", 0.0)
    (tmp_path / "preset-99.json").touch()

    ended = invoke(tmp_path, *TIMED, "--trials", 3, preset=shaped_path)

    assert ended.exit_code == 0, ended.output
    rows = table(tmp_path)
    assert [row["state"] for row in rows] == ["complete"] * 3
    assert rows[0]["convolutions"] == "16 5x5/4, 16 3x3, 16 7x7 v"
    found = [(float(row["validation_loss"]), float(row["relative_time"])) for row in rows]
    surpassed = [any(x <= a and y <= b and (x, y) != (a, b) for x, y in found) for a, b in found]
    front = [number for number, row in enumerate(rows) if row["front"] == "*"]
    assert front == [number for number in range(3) if not surpassed[number]]
    assert {path.name for path in tmp_path.glob("preset*")} == {f"preset-{number}.json" for number in front}
    for number in front:
        path = tmp_path / f"preset-{number}.json"
        preset = find_preset(str(path))
        assert preset.name == f"small-tuned-{number}"
        assert results.describe_convolutions(preset.layers) == rows[number]["convolutions"]
        assert f"next: digitserve-train train --preset {path}" in ended.stdout
    first = [line.split()[0] for line in ended.stdout.splitlines() if " complete " in line]
    assert first[: len(front)] == [str(number) for number in sorted(front, key=lambda number: found[number])]
    assert "filters_1" not in ended.stdout


class ScriptedReference:
    """In place of ``timing.Reference``: the time is the share of filters of the base, without a measurement."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        """Count the filters of the base."""
        self._filters = self._count(layers)

    def relative_time(self, layers: tuple[Layer, ...]) -> float:
        """Return the share of filters."""
        return self._count(layers) / self._filters

    def _count(self, layers: tuple[Layer, ...]) -> int:
        return sum(layer.filters for layer in layers if isinstance(layer, Conv))


def test_networks_beyond_the_time_limit_are_not_trained(
    tmp_path: Path, invoke: Invoke, shaped_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial that takes too long is pruned before its first epoch, with any objectives."""
    monkeypatch.setattr(search, "Reference", ScriptedReference)
    common = ("--vary", "shape", "--max-relative-time", 0.9, "--limit", 150)

    ended = invoke(tmp_path, *common, "--trials", 1, preset=shaped_path)

    assert ended.exit_code == RunError.exit_code
    (row,) = table(tmp_path)
    assert (row["state"], row["validation_loss"], row["front"]) == ("pruned", "", "")
    assert row["why"] == "1.0 relative_time, at most 0.9 allowed: not trained"


def test_a_repeated_network_is_not_trained(tmp_path: Path, invoke: Invoke, shaped_path: Path) -> None:
    """A trial with other values that give the network of an earlier trial is pruned."""
    common = ("--vary", "shape", "--limit", 150)
    assert invoke(tmp_path, *common, "--trials", 1, preset=shaped_path).exit_code == 0
    with opened(tmp_path) as study:
        # Without the second convolution, its kernel does not matter.
        base = study.trials[0].params | {"depth_2": 0.0}
        study.enqueue_trial(base)
        study.enqueue_trial(base | {"kernel_2": 2.0})

    assert invoke(tmp_path, *common, "--trials", 3, preset=shaped_path).exit_code == 0

    assert [row["why"] for row in table(tmp_path)] == ["", "", "equal to trial 1: not trained"]


def test_a_network_that_cannot_be_exported_is_pruned(
    tmp_path: Path, invoke: Invoke, shaped_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed export ends the trial before training, and not the study."""

    def relative_time(_: object, layers: tuple[Layer, ...]) -> float:
        raise ParityError(f"no graph of {len(layers)} layers\n(op_type:Conv)")

    monkeypatch.setattr(ScriptedReference, "relative_time", relative_time)
    monkeypatch.setattr(search, "Reference", ScriptedReference)

    ended = invoke(tmp_path, *TIMED, "--trials", 1, preset=shaped_path)

    assert ended.exit_code == RunError.exit_code
    assert [(row["state"], row["why"]) for row in table(tmp_path)] == [("pruned", "no graph of 5 layers")]

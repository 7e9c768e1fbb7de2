"""Checkpoints and settings: a failed write keeps the last checkpoint, and a run resumes with its own settings."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from digitserve_training.data.splits import LABELS
from digitserve_training.errors import RunError
from digitserve_training.fit import checkpoint, settings
from digitserve_training.fit.checkpoint import Checkpoint
from digitserve_training.fit.settings import Options, Settings
from digitserve_training.model.layers import Flatten
from digitserve_training.model.preset_files import preset_to_json
from digitserve_training.model.presets import DEFAULT_PRESET, PRESETS
from support.limits import largest_file

TEACHERS = Path(__file__).parents[4] / "training" / "teachers"
STARTED = settings.resolve(Options(seed=5, limit=600), LABELS, data_sha256="abc")


def make(epoch: int, size: int = 4) -> Checkpoint:
    """Return a checkpoint with one array, whose values are the epoch."""
    history = tuple({"epoch": done, "training_loss": 1 / done} for done in range(1, epoch + 1))
    return Checkpoint(STARTED, epoch, history, {"network/0": np.full(size, epoch, np.float32)})


def test_round_trip(tmp_path: Path) -> None:
    """``load`` returns what ``save`` wrote: settings, epoch, history and every array."""
    run_dir = tmp_path / "runs" / "first"
    checkpoint.save(run_dir, make(2))

    loaded = checkpoint.load(run_dir)

    assert (loaded.settings, loaded.epoch, loaded.history) == (STARTED, 2, make(2).history)
    assert loaded.arrays["network/0"].tolist() == [2, 2, 2, 2]
    assert not loaded.finished


def test_metrics_are_json_lines(tmp_path: Path) -> None:
    """``metrics.jsonl`` has exactly one JSON line per finished epoch of the last saved checkpoint."""
    for epoch in (1, 2, 3, 2):
        checkpoint.save(tmp_path, make(epoch))

    lines = (tmp_path / checkpoint.METRICS_NAME).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """If a checkpoint cannot be written, an error is raised, no partial file is left, and the last one is unchanged."""
    checkpoint.save(tmp_path, make(1))

    with (
        largest_file(10_000),
        pytest.raises(RunError, match=r"epoch 2 cannot be written .* is intact: free some space"),
    ):
        checkpoint.save(tmp_path, make(2, size=100_000))

    assert checkpoint.load(tmp_path).epoch == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.FILE_NAME, checkpoint.METRICS_NAME]


def test_interrupted_write_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a checkpoint is written keeps the one before it."""
    checkpoint.save(tmp_path, make(1))

    def interrupted(file: object, **_: object) -> None:
        file.write(b"half a che")  # type: ignore[attr-defined]
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, make(2))

    assert checkpoint.load(tmp_path).epoch == 1
    assert not list(tmp_path.glob("*.partial"))


def test_nothing_to_load(tmp_path: Path) -> None:
    """Loading from a folder without a run raises an error that states this."""
    assert not checkpoint.exists(tmp_path)
    with pytest.raises(RunError, match="no run in"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 and so on"])
def test_damaged_checkpoint_is_rejected(tmp_path: Path, content: bytes) -> None:
    """A damaged checkpoint raises ``RunError`` with the file's name."""
    (tmp_path / checkpoint.FILE_NAME).write_bytes(content)

    with pytest.raises(RunError, match=r"checkpoint\.npz is not a checkpoint"):
        checkpoint.load(tmp_path)


def test_truncated_checkpoint_is_rejected(tmp_path: Path) -> None:
    """A checkpoint truncated at any length is rejected."""
    checkpoint.save(tmp_path, make(1, size=1000))
    whole = (tmp_path / checkpoint.FILE_NAME).read_bytes()

    for length in range(0, len(whole) - 1, max(1, len(whole) // 60)):
        (tmp_path / checkpoint.FILE_NAME).write_bytes(whole[:length])
        with pytest.raises(RunError, match=r"checkpoint\.npz is not a checkpoint"):
            checkpoint.load(tmp_path)


def test_other_npz_is_rejected(tmp_path: Path) -> None:
    """An npz file with other content is rejected."""
    np.savez(tmp_path / checkpoint.FILE_NAME, weights=np.zeros(3))

    with pytest.raises(RunError, match="is not a checkpoint"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("name", ["large-pen-1", "large-pen-2"])
def test_the_shipped_teachers_load(name: str) -> None:
    """The teachers are finished runs of the built-in preset ``large`` with pen strokes."""
    state = checkpoint.load(TEACHERS / name)

    assert state.finished
    assert state.settings.strokes_sha256 is not None
    assert state.settings.recipe == settings.resolve(Options(preset="large"), LABELS, "abc", "def").recipe
    assert state.settings.command.startswith("digitserve-train train --preset large --epochs 36 --seed ")


def test_settings_of_earlier_versions_load() -> None:
    """Settings that were stored without precision, teachers and pen strokes have the values that were fixed then."""
    stored = STARTED.to_dict()
    del stored["precision"], stored["teachers"], stored["strokes_sha256"]

    restored = Settings.from_dict(json.loads(json.dumps(stored)), "checkpoint.npz")

    assert restored == STARTED
    assert (restored.precision, restored.teachers, restored.strokes_sha256) == ("float32", (), None)


def test_new_run_has_the_presets_values() -> None:
    """Options that are not given have the preset's values or the defaults."""
    recipe = PRESETS[DEFAULT_PRESET].recipe

    assert (STARTED.preset, STARTED.seed, STARTED.limit) == (PRESETS[DEFAULT_PRESET], 5, 600)
    assert (STARTED.epochs, STARTED.learning_rate) == (recipe.epochs, recipe.learning_rate)


def test_unknown_preset() -> None:
    """An unknown preset is rejected with a list of all presets."""
    with pytest.raises(RunError, match=r"no preset 'nix'; presets: .*conv2-dense256"):
        settings.resolve(Options(preset="nix"), LABELS, "abc")


def test_resuming_needs_no_options() -> None:
    """A run is resumed with its own settings, whether the options repeat them or not."""
    assert settings.resolve_resumed(Options(), STARTED, "abc") == STARTED
    assert settings.resolve_resumed(Options(seed=5, limit=600), STARTED, "abc") == STARTED


@pytest.mark.parametrize(
    ("options", "sha256", "message"),
    [
        (Options(preset="conv2-dense256"), "abc", f"preset was {DEFAULT_PRESET}, now conv2-dense256"),
        (Options(seed=6), "abc", "seed was 5, now 6"),
        (Options(epochs=7, limit=60), "abc", "epochs was .*, now 7; limit was 600, now 60"),
        (Options(learning_rate=1.0), "abc", "learning_rate was"),
        (Options(), "def", "data_sha256 was abc, now def"),
    ],
)
def test_resuming_with_other_settings_is_rejected(options: Options, sha256: str, message: str) -> None:
    """Another preset, seed, number of epochs, learning rate, limit or data: the error names each difference."""
    with pytest.raises(RunError, match=message):
        settings.resolve_resumed(options, STARTED, sha256)


WITH_STROKES = settings.resolve(Options(seed=5), LABELS, "abc", strokes_sha256="123")


def test_a_run_keeps_its_pen_strokes(tmp_path: Path) -> None:
    """The fingerprint of pen strokes is stored, and a run is resumed with pen strokes of the same fingerprint."""
    checkpoint.save(tmp_path, replace(make(1), settings=WITH_STROKES))

    stored = checkpoint.load(tmp_path).settings

    assert stored == WITH_STROKES
    assert settings.resolve_resumed(Options(preset=DEFAULT_PRESET), stored, "abc", "123") == stored


@pytest.mark.parametrize(
    ("stored", "strokes_sha256", "message"),
    [
        (WITH_STROKES, "456", "strokes_sha256 was 123, now 456"),
        (
            WITH_STROKES,
            None,
            r"started with pen strokes \(sha256 123\): resume it with --strokes or DIGITSERVE_STROKES",
        ),
        (STARTED, "123", "started without pen strokes: resume it without --strokes and DIGITSERVE_STROKES"),
    ],
)
def test_resuming_with_other_pen_strokes_is_rejected(
    stored: Settings, strokes_sha256: str | None, message: str
) -> None:
    """Other pen strokes, none, or pen strokes for a run without: the error says what the run was started with."""
    with pytest.raises(RunError, match=message):
        settings.resolve_resumed(Options(), stored, "abc", strokes_sha256)


def test_pen_digits_need_pen_strokes() -> None:
    """The recipe that is applied has pen digits only with pen strokes and on a dataset of digits."""
    assert WITH_STROKES.recipe.pen == PRESETS[DEFAULT_PRESET].recipe.pen == 0.3
    assert STARTED.recipe.pen == 0
    assert replace(WITH_STROKES, dataset="kmnist").recipe.pen == 0


def test_runs_without_pen_strokes_equal_runs_of_earlier_versions() -> None:
    """A run whose preset had no pen digits yet has the built-in preset's name, and can be resumed with it."""
    preset = PRESETS[DEFAULT_PRESET]
    stored = replace(STARTED, preset=replace(preset, recipe=replace(preset.recipe, pen=0.0)))

    assert " --preset compact --epochs" in stored.command
    assert settings.resolve_resumed(Options(preset=DEFAULT_PRESET), stored, "abc") == stored


def test_command_names_the_variable_of_pen_strokes() -> None:
    """With pen strokes the command has the option with the environment variable, never a path; without, it has none."""
    assert " --strokes $DIGITSERVE_STROKES" in WITH_STROKES.command
    assert "strokes" not in STARTED.command


def edited(**changes: float) -> Settings:
    """Return settings of a run whose preset had another recipe and other layers than the built-in preset has now."""
    preset = PRESETS[DEFAULT_PRESET]
    return replace(STARTED, preset=replace(preset, recipe=replace(preset.recipe, **changes), layers=(Flatten(),)))


def test_a_run_keeps_its_preset() -> None:
    """A run can be resumed after its preset was edited, and continues with the preset that it was started with."""
    stored = edited(weight_decay=0.7)

    assert settings.resolve_resumed(Options(), stored, "abc") == stored
    assert stored.recipe.weight_decay == 0.7


def test_edited_preset_is_rejected_if_named() -> None:
    """If the options name a preset that was edited since the run started, the error states what was edited."""
    message = r"recipe\.weight_decay of preset 'compact' was 0\.7, now .*; the layers of preset 'compact' have changed"
    with pytest.raises(RunError, match=message):
        settings.resolve_resumed(Options(preset=DEFAULT_PRESET), edited(weight_decay=0.7), "abc")


def test_command_names_built_in_presets_and_files() -> None:
    """The command has the name of a built-in preset, with any summary, and NAME.json for a preset that differs."""
    described = replace(STARTED, preset=replace(STARTED.preset, summary="another text"))

    assert " --preset compact --epochs" in described.command
    assert " --preset compact.json --epochs" in edited(weight_decay=0.7).command


def test_a_preset_from_a_file_stays_with_its_run(tmp_path: Path) -> None:
    """A run can be resumed without the file that its preset was read from."""
    path = tmp_path / "mine.json"
    mine = replace(PRESETS[DEFAULT_PRESET], name="mine")
    path.write_text(preset_to_json(mine))
    stored = settings.resolve(Options(preset=str(path)), LABELS, "abc")
    path.unlink()

    assert stored.preset == mine
    assert settings.resolve_resumed(Options(), stored, "abc") == stored


def test_checkpoint_with_an_invalid_preset_is_rejected() -> None:
    """Stored settings whose preset is invalid raise an error that states this."""
    with pytest.raises(RunError, match="the preset in checkpoint.npz is not a preset: it is not JSON"):
        Settings.from_dict(STARTED.to_dict() | {"definition": "(Conv(16),)"}, "checkpoint.npz")

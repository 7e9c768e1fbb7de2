"""What is promised about checkpoints and the settings in them: the last good one stays, and only its own run goes on."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from digitserve_training.data.splits import LABELS
from digitserve_training.errors import RunError
from digitserve_training.fit import checkpoint, settings
from digitserve_training.fit.checkpoint import Checkpoint
from digitserve_training.fit.settings import Asked, Settings
from digitserve_training.model.layers import Flatten
from digitserve_training.model.preset_files import preset_to_json
from digitserve_training.model.presets import DEFAULT_PRESET, PRESETS
from support.limits import largest_file

STARTED = settings.start(Asked(seed=5, limit=600), LABELS, data_sha256="abc")


def make(epoch: int, size: int = 4) -> Checkpoint:
    """Return a checkpoint whose array holds its epoch."""
    history = tuple({"epoch": done, "training_loss": 1 / done} for done in range(1, epoch + 1))
    return Checkpoint(STARTED, epoch, history, {"network/0": np.full(size, epoch, np.float32)})


def test_round_trip(tmp_path: Path) -> None:
    """What is saved is loaded: settings, epoch, history and every array."""
    run_dir = tmp_path / "runs" / "first"
    checkpoint.save(run_dir, make(2))

    loaded = checkpoint.load(run_dir)

    assert (loaded.settings, loaded.epoch, loaded.history) == (STARTED, 2, make(2).history)
    assert loaded.arrays["network/0"].tolist() == [2, 2, 2, 2]
    assert not loaded.finished


def test_metrics_are_json_lines(tmp_path: Path) -> None:
    """Beside the checkpoint stands one line of JSON for each epoch done, no more and no less."""
    for epoch in (1, 2, 3, 2):
        checkpoint.save(tmp_path, make(epoch))

    lines = (tmp_path / checkpoint.METRICS_NAME).read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    """A checkpoint that cannot be written whole is told of, leaves nothing behind, and the one before it stays."""
    checkpoint.save(tmp_path, make(1))

    with largest_file(10_000), pytest.raises(RunError, match=r"epoch 2 cannot be written .* is intact: make room"):
        checkpoint.save(tmp_path, make(2, size=100_000))

    assert checkpoint.load(tmp_path).epoch == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [checkpoint.FILE_NAME, checkpoint.METRICS_NAME]


def test_interrupted_write_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of writing costs that checkpoint only."""
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
    """A folder without a run is said to be one."""
    assert not checkpoint.exists(tmp_path)
    with pytest.raises(RunError, match="no run in"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 and so on"])
def test_damaged_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    """A checkpoint that is none is refused by name, not with a traceback."""
    (tmp_path / checkpoint.FILE_NAME).write_bytes(content)

    with pytest.raises(RunError, match=r"checkpoint\.npz is no checkpoint"):
        checkpoint.load(tmp_path)


def test_checkpoint_cut_short_is_refused(tmp_path: Path) -> None:
    """However much of a checkpoint is left, it is refused rather than gone on with."""
    checkpoint.save(tmp_path, make(1, size=1000))
    whole = (tmp_path / checkpoint.FILE_NAME).read_bytes()

    for length in range(0, len(whole) - 1, max(1, len(whole) // 60)):
        (tmp_path / checkpoint.FILE_NAME).write_bytes(whole[:length])
        with pytest.raises(RunError, match=r"checkpoint\.npz is no checkpoint"):
            checkpoint.load(tmp_path)


def test_foreign_npz_is_refused(tmp_path: Path) -> None:
    """An npz file of something else is no checkpoint."""
    np.savez(tmp_path / checkpoint.FILE_NAME, weights=np.zeros(3))

    with pytest.raises(RunError, match="is no checkpoint"):
        checkpoint.load(tmp_path)


def test_new_run_takes_the_presets_values() -> None:
    """What was not asked for comes from the preset."""
    recipe = PRESETS[DEFAULT_PRESET].recipe

    assert (STARTED.preset, STARTED.seed, STARTED.limit) == (DEFAULT_PRESET, 5, 600)
    assert (STARTED.epochs, STARTED.learning_rate) == (recipe.epochs, recipe.learning_rate)


def test_unknown_preset() -> None:
    """A preset that does not exist is refused with a list of those that do."""
    with pytest.raises(RunError, match=r"no preset 'nix'; presets: .*conv2-dense256"):
        settings.start(Asked(preset="nix"), LABELS, "abc")


def test_resume_needs_nothing_repeated() -> None:
    """A run is resumed with its own settings, asked for again or not."""
    assert settings.resume(Asked(), STARTED, "abc") == STARTED
    assert settings.resume(Asked(seed=5, limit=600), STARTED, "abc") == STARTED


@pytest.mark.parametrize(
    ("asked", "sha256", "message"),
    [
        (Asked(preset="conv2-dense256"), "abc", f"preset was {DEFAULT_PRESET}, now conv2-dense256"),
        (Asked(seed=6), "abc", "seed was 5, now 6"),
        (Asked(epochs=7, limit=60), "abc", "epochs was .*, now 7; limit was 600, now 60"),
        (Asked(learning_rate=1.0), "abc", "learning_rate was"),
        (Asked(), "def", "data_sha256 was abc, now def"),
    ],
)
def test_resume_with_other_settings_is_refused(asked: Asked, sha256: str, message: str) -> None:
    """Another preset, seed, length, rate, subset or set of images is refused, and each difference named."""
    with pytest.raises(RunError, match=message):
        settings.resume(asked, STARTED, sha256)


def edited(**changes: float) -> Settings:
    """Return settings of a run whose preset had another recipe than it has now."""
    preset = PRESETS[DEFAULT_PRESET]
    return replace(
        STARTED,
        definition=preset_to_json(replace(preset, recipe=replace(preset.recipe, **changes), layers=(Flatten(),))),
    )


def test_a_run_keeps_its_preset() -> None:
    """A preset that was edited since makes no old run useless: it goes on as it was started."""
    stored = edited(weight_decay=0.7)

    assert settings.resume(Asked(), stored, "abc") == stored
    assert settings.preset_of(stored).recipe.weight_decay == 0.7


def test_edited_preset_is_noticed_when_it_is_asked_for() -> None:
    """Who names a preset that means something else than when the run was started is told what was edited."""
    told = r"recipe\.weight_decay of preset 'compact' was 0\.7, now .*; the layers of preset 'compact' were others"
    with pytest.raises(RunError, match=told):
        settings.resume(Asked(preset=DEFAULT_PRESET), edited(weight_decay=0.7), "abc")


def test_a_preset_from_a_file_stays_with_its_run(tmp_path: Path) -> None:
    """A run whose preset came from a file needs the file no more."""
    path = tmp_path / "mine.json"
    mine = replace(PRESETS[DEFAULT_PRESET], name="mine")
    path.write_text(preset_to_json(mine))
    stored = settings.start(Asked(preset=str(path)), LABELS, "abc")
    path.unlink()

    assert (stored.preset, settings.preset_of(stored)) == ("mine", mine)
    assert settings.resume(Asked(), stored, "abc") == stored


def test_checkpoint_without_a_preset_is_refused() -> None:
    """Where a preset should be and something else is, the message says so."""
    with pytest.raises(RunError, match="what the checkpoint keeps is no preset: it is not JSON"):
        settings.preset_of(replace(STARTED, definition="(Conv(16),)"))

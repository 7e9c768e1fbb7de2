"""Learning from teachers: what they say is learned, who they were is kept, and none that knows too much is taken."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from digitserve_training._tensorflow import tf
from digitserve_training.cli import main
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled
from digitserve_training.errors import RunError
from digitserve_training.fit import checkpoint, settings, teachers
from digitserve_training.fit.settings import Options, Settings, TeacherRun
from digitserve_training.fit.train import Training, train
from digitserve_training.fit.weights import restore_network
from digitserve_training.model.presets import Recipe


def bars(number: int, seed: int) -> Labelled:
    """Draw ten things that are easily told apart: a level bar at one of ten heights."""
    labels = np.arange(number) % 10
    images = np.random.default_rng(seed).integers(0, 60, (number, 28, 28, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 2 * label : 6 + 2 * label, 4:24] = 255
    return Labelled(images, labels.astype(np.int64))


IMAGES = bars(240, 1)
SPLIT = splits.split(IMAGES)


def start(**asked: object) -> Settings:
    """Complete settings of a run on the bars."""
    return settings.resolve(
        Options(**{"preset": "lenet5", "epochs": 1, **asked}), IMAGES.names, splits.fingerprint(IMAGES)
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a teacher until it knows the bars."""
    folder: Path = tmp_path_factory.mktemp("runs") / "teacher"
    train(start(epochs=12, seed=3), SPLIT, folder)
    return folder


def test_a_student_learns_what_its_teacher_says(teacher_dir: Path, tmp_path: Path) -> None:
    """Where labels are wrong and teachers give all of the target, the student learns what the teacher says."""
    wrong = splits.Split(dataclasses.replace(SPLIT.training, labels=(SPLIT.training.labels + 1) % 10), SPLIT.validation)
    chosen = start(epochs=12, teachers=teachers.identify([str(teacher_dir)]))
    preset = settings.preset_of(chosen)
    recipe = dataclasses.replace(preset.recipe, distillation=1.0)
    chosen = dataclasses.replace(chosen, definition=settings.preset_to_json(dataclasses.replace(preset, recipe=recipe)))

    state = train(chosen, wrong, tmp_path / "student")

    said = restore_network(state)(SPLIT.validation.images, training=False).numpy().argmax(axis=1)
    taught = (
        restore_network(checkpoint.load(teacher_dir))(SPLIT.validation.images, training=False).numpy().argmax(axis=1)
    )
    assert np.mean(said == taught) > 0.9
    assert np.mean(taught == SPLIT.validation.labels) > 0.9


def test_several_teachers_are_asked_for_their_mean(teacher_dir: Path) -> None:
    """The answer is the mean of what each network thinks probable, and sums to one."""
    first = restore_network(checkpoint.load(teacher_dir))
    second = restore_network(checkpoint.Checkpoint(start(), 0, (), Training(start(seed=9), SPLIT).arrays()))
    images, recipe = tf.constant(SPLIT.validation.images), Recipe(epochs=1, outliers=0.1)

    both = teachers.soft_targets([first, second], images, recipe).numpy()

    alone = [teachers.soft_targets([network], images, recipe).numpy() for network in (first, second)]
    assert both == pytest.approx(np.mean(alone, axis=0), abs=1e-6)
    assert both.shape == (len(SPLIT.validation), 11)
    assert both.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_checkpoints_keep_who_taught(teacher_dir: Path, tmp_path: Path) -> None:
    """A student's checkpoint names its teachers, its command repeats them, and it is resumed with no other."""
    chosen = start(teachers=teachers.identify([str(teacher_dir)]))
    train(chosen, SPLIT, tmp_path / "student")

    stored = checkpoint.load(tmp_path / "student").settings

    assert stored == chosen
    assert stored.command.endswith(f" --teacher {teacher_dir}")
    assert settings.resolve_resumed(Options(), stored, stored.data_sha256) == chosen
    with pytest.raises(RunError, match="teachers was"):
        settings.resolve_resumed(Options(teachers=(TeacherRun("elsewhere", "abc"),)), stored, stored.data_sha256)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"data_sha256": "abc"}, "data_sha256 .*, the student abc"),
        ({"limit": 120}, "limit None, the student 120"),
        ({"definition": start(preset="vgg-bn").definition}, "validation .*, the student 0.2"),
        ({"definition": start(preset="compact").definition}, "what is no digit False, the student True"),
    ],
)
def test_no_teacher_that_may_have_seen_what_the_student_is_judged_by(
    teacher_dir: Path, changes: dict[str, object], told: str
) -> None:
    """A teacher of other images, another split or other outcomes is refused, with both values."""
    chosen = start(teachers=teachers.identify([str(teacher_dir)]))

    with pytest.raises(RunError, match=told):
        teachers.load_networks(dataclasses.replace(chosen, **changes))  # type: ignore[arg-type]


def test_a_teacher_must_be_finished_and_the_same(teacher_dir: Path, tmp_path: Path) -> None:
    """Unfinished teachers, and ones whose weights have changed since, are refused."""
    state = checkpoint.load(teacher_dir)
    checkpoint.save(tmp_path / "unfinished", dataclasses.replace(state, epoch=3))
    with pytest.raises(RunError, match="has done 3 of 12 epochs"):
        teachers.load_networks(start(teachers=teachers.identify([str(tmp_path / "unfinished")])))

    with pytest.raises(RunError, match="is not the one that this run learned from"):
        teachers.load_networks(start(teachers=(TeacherRun(str(teacher_dir), "abc"),)))


def test_what_is_kept_of_a_run_teaches_the_same(teacher_dir: Path, tmp_path: Path) -> None:
    """What ``keep`` writes is a fraction of the run, answers as the run does but for half precision, and is a teacher; it
    is kept once, and only of a finished run.
    """
    kept = tmp_path / "kept"
    ended = CliRunner().invoke(main, ["keep", str(teacher_dir), str(kept)])
    assert ended.exit_code == 0, ended.output
    file = checkpoint.FILE_NAME
    assert (kept / file).stat().st_size < (teacher_dir / file).stat().st_size / 4

    recipe = Recipe(epochs=1)
    images = tf.constant(SPLIT.validation.images)
    whole, half = (
        teachers.soft_targets(
            teachers.load_networks(start(teachers=teachers.identify([str(folder)]))), images, recipe
        ).numpy()
        for folder in (teacher_dir, kept)
    )
    assert half == pytest.approx(whole, abs=0.01)

    again = CliRunner().invoke(main, ["keep", str(teacher_dir), str(kept)])
    assert again.exit_code == 4
    assert "holds a run already" in again.output


def test_the_command_names_what_is_no_teacher(tmp_path: Path) -> None:
    """A folder without a run is no teacher: one line, status 4, nothing begun."""
    ended = CliRunner().invoke(
        main, ["train", "--teacher", str(tmp_path / "nobody"), "--run-dir", str(tmp_path / "student")]
    )

    assert ended.exit_code == 4
    assert "no run in" in ended.output
    assert not (tmp_path / "student").exists()

"""Knowledge distillation: students learn from teachers, runs store their teachers, and unfit teachers are rejected."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from digitserve_training._tensorflow import tf
from digitserve_training.cli import main
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled
from digitserve_training.errors import RunError
from digitserve_training.fit import checkpoint, settings, teachers
from digitserve_training.fit.pool import CERTAIN_OUTLIER, Pool
from digitserve_training.fit.settings import Options, Settings, TeacherRun
from digitserve_training.fit.train import Training, hard_targets, train
from digitserve_training.fit.weights import restore_network
from digitserve_training.model.presets import PRESETS, Recipe


def bars(number: int, seed: int) -> Labelled:
    """Draw ten classes of images that are easy to learn: a horizontal bar at one of ten heights."""
    labels = np.arange(number) % 10
    images = np.random.default_rng(seed).integers(0, 60, (number, 28, 28, 1)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 2 * label : 6 + 2 * label, 4:24] = 255
    return Labelled(images, labels.astype(np.int64))


IMAGES = bars(240, 1)
SPLIT = splits.split(IMAGES)


def resolve(**options: object) -> Settings:
    """Resolve the settings of a run on the bars."""
    return settings.resolve(
        Options(**{"preset": "lenet5", "epochs": 1, **options}), IMAGES.names, splits.fingerprint(IMAGES)
    )  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train a teacher until it classifies the bars correctly."""
    folder: Path = tmp_path_factory.mktemp("runs") / "teacher"
    train(resolve(epochs=12, seed=3), SPLIT, folder)
    return folder


def test_a_student_learns_from_its_teacher(teacher_dir: Path, tmp_path: Path) -> None:
    """With a distillation weight of 1 and wrong labels, the student learns the teacher's predictions."""
    wrong = splits.Split(dataclasses.replace(SPLIT.training, labels=(SPLIT.training.labels + 1) % 10), SPLIT.validation)
    student = resolve(epochs=12, teachers=teachers.identify([str(teacher_dir)]))
    recipe = dataclasses.replace(student.recipe, distillation=1.0)
    student = dataclasses.replace(student, preset=dataclasses.replace(student.preset, recipe=recipe))

    state = train(student, wrong, tmp_path / "student")

    predicted = restore_network(state)(SPLIT.validation.images, training=False).numpy().argmax(axis=1)
    expected = (
        restore_network(checkpoint.load(teacher_dir))(SPLIT.validation.images, training=False).numpy().argmax(axis=1)
    )
    assert np.mean(predicted == expected) > 0.9
    assert np.mean(expected == SPLIT.validation.labels) > 0.9


def test_several_teachers_are_averaged(teacher_dir: Path) -> None:
    """The soft targets are the mean of the teachers' probabilities, and sum to 1."""
    first = restore_network(checkpoint.load(teacher_dir))
    second = restore_network(checkpoint.Checkpoint(resolve(), 0, (), Training(resolve(seed=9), SPLIT).arrays()))
    images, recipe = tf.constant(SPLIT.validation.images), Recipe(epochs=1, outliers=0.1)

    both = teachers.soft_targets([first, second], images, recipe).numpy()

    alone = [teachers.soft_targets([network], images, recipe).numpy() for network in (first, second)]
    assert both == pytest.approx(np.mean(alone, axis=0), abs=1e-6)
    assert both.shape == (len(SPLIT.validation), 11)
    assert both.sum(axis=1) == pytest.approx(1, abs=1e-5)


def test_certain_images_keep_their_target(teacher_dir: Path) -> None:
    """Certain images keep pixels and target; of the others, blended ones get the teachers' target, the rest a mean."""
    networks = [restore_network(checkpoint.load(teacher_dir))]
    images, recipe = tf.constant(SPLIT.validation.images), Recipe(1, outliers=0.1, distillation=0.75, mixup=0.5)
    targets = hard_targets(tf.fill([len(SPLIT.validation)], CERTAIN_OUTLIER), 10, recipe).numpy()
    certain = np.arange(len(SPLIT.validation)) % 3 == 0

    pixels, mixed = (
        tensor.numpy() for tensor in teachers.distil(networks, images, targets, certain, tf.constant([1, 2]), recipe)
    )

    blended = (pixels != images.numpy()).any(axis=(1, 2, 3))
    soft = teachers.soft_targets(networks, tf.constant(pixels), recipe).numpy()
    assert not blended[certain].any() and blended.any() and not blended[~certain].all()
    assert np.array_equal(mixed[certain], targets[certain])
    assert mixed[blended] == pytest.approx(soft[blended], abs=1e-6)
    rest = ~certain & ~blended
    assert mixed[rest] == pytest.approx(0.25 * targets[rest] + 0.75 * soft[rest], abs=1e-6)


def test_certain_outliers_are_used_in_the_second_half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three epochs, the last two have certain outliers."""
    used = []

    class RecordingPool(Pool):
        """A pool that records whether certain outliers were asked for."""

        def batches(self, epoch: int, *, certain_outliers: bool = True) -> Iterator[NDArray[np.int64]]:
            """Record, then yield one batch."""
            used.append((epoch, certain_outliers))
            yield np.arange(8)

    monkeypatch.setattr("digitserve_training.fit.train.Pool", RecordingPool)
    training = Training(resolve(epochs=3), SPLIT)
    for epoch in (1, 2, 3):
        training.run_epoch(epoch)

    assert used == [(1, False), (2, True), (3, True)]


def test_checkpoints_store_teachers(teacher_dir: Path, tmp_path: Path) -> None:
    """A student's checkpoint and command name its teachers, and it cannot be resumed with others."""
    student = resolve(teachers=teachers.identify([str(teacher_dir)]))
    train(student, SPLIT, tmp_path / "student")

    stored = checkpoint.load(tmp_path / "student").settings

    assert stored == student
    assert stored.command.endswith(f" --teacher {teacher_dir}")
    assert settings.resolve_resumed(Options(), stored, stored.data_sha256) == student
    with pytest.raises(RunError, match="teachers was"):
        settings.resolve_resumed(Options(teachers=(TeacherRun("elsewhere", "abc"),)), stored, stored.data_sha256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_sha256": "abc"}, "data_sha256 .*, the student has abc"),
        ({"limit": 120}, "limit None, the student has 120"),
        ({"preset": PRESETS["vgg-bn"]}, "validation .*, the student has 0.2"),
        ({"preset": PRESETS["compact"]}, "outliers False, the student has True"),
    ],
)
def test_teachers_of_another_task_are_rejected(teacher_dir: Path, changes: dict[str, object], message: str) -> None:
    """A teacher with other images, another split or other outcomes is rejected, with both values.

    It may have been trained on the student's validation images.
    """
    student = resolve(teachers=teachers.identify([str(teacher_dir)]))

    with pytest.raises(RunError, match=message):
        teachers.load_networks(dataclasses.replace(student, **changes))  # type: ignore[arg-type]


def test_a_teacher_must_be_finished_and_the_same(teacher_dir: Path, tmp_path: Path) -> None:
    """A teacher that is not finished, or whose weights have changed, is rejected."""
    state = checkpoint.load(teacher_dir)
    checkpoint.save(tmp_path / "unfinished", dataclasses.replace(state, epoch=3))
    with pytest.raises(RunError, match="has finished 3 of 12 epochs"):
        teachers.load_networks(resolve(teachers=teachers.identify([str(tmp_path / "unfinished")])))

    with pytest.raises(RunError, match="is not the one that this run was started with"):
        teachers.load_networks(resolve(teachers=(TeacherRun(str(teacher_dir), "abc"),)))


def test_keep_writes_a_small_teacher(teacher_dir: Path, tmp_path: Path) -> None:
    """``keep`` writes a copy of a quarter of the run's size or less. As a teacher it gives the same soft targets,
    except for the rounding to float16. A folder that already holds a run is rejected.
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
            teachers.load_networks(resolve(teachers=teachers.identify([str(folder)]))), images, recipe
        ).numpy()
        for folder in (teacher_dir, kept)
    )
    assert half == pytest.approx(whole, abs=0.01)

    again = CliRunner().invoke(main, ["keep", str(teacher_dir), str(kept)])
    assert again.exit_code == 4
    assert "already holds a run" in again.output


def test_a_folder_without_a_run_is_not_a_teacher(tmp_path: Path) -> None:
    """With such a folder the command prints one line, ends with exit code 4, and creates no run."""
    ended = CliRunner().invoke(
        main, ["train", "--teacher", str(tmp_path / "missing"), "--run-dir", str(tmp_path / "student")]
    )

    assert ended.exit_code == 4
    assert "no run in" in ended.output
    assert not (tmp_path / "student").exists()

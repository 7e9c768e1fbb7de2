"""Knowledge distillation: teachers are finished runs whose networks give soft targets to the trained network.

``train`` computes the targets inside its compiled step, from the same augmented images that the student gets (Beyer
et al. 2022, "Knowledge distillation: A good teacher is patient and consistent"). The mean of several teachers is
better than the best of them (Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network").
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from digitserve_training._tensorflow import keras, tf
from digitserve_training.augment.augmentation import mix
from digitserve_training.errors import RunError
from digitserve_training.fit import checkpoint
from digitserve_training.fit.checkpoint import Checkpoint
from digitserve_training.fit.settings import Settings, TeacherRun
from digitserve_training.fit.weights import AVERAGE, restore_network, weights_sha256
from digitserve_training.model.presets import Recipe


def identify(run_dirs: Sequence[str]) -> tuple[TeacherRun, ...]:
    """Return the teachers in folders of runs, with the fingerprints of their weights.

    Raises:
        RunError: a folder does not hold a run.
    """
    return tuple(TeacherRun(run_dir, weights_sha256(checkpoint.load(Path(run_dir)))) for run_dir in run_dirs)


def load_networks(settings: Settings) -> tuple[keras.Model, ...]:
    """Restore the networks of a student's teachers.

    Raises:
        RunError: a teacher is missing, has other weights than before, is not finished, or was trained on other images,
            another split or other outcomes than the student.
    """
    return tuple(restore_network(_load_teacher(teacher, settings)) for teacher in settings.teachers)


def save_teacher(run_dir: Path, folder: Path) -> None:
    """Write a small copy of a run that is usable only as a teacher: its averaged weights in float16.

    Raises:
        RunError: the run is missing or not finished, or the folder already holds a run.
    """
    state = _load_finished(run_dir)
    if checkpoint.exists(folder):
        raise RunError(f"{folder} already holds a run; choose another folder")
    arrays = {name: array.astype(np.float16) for name, array in state.arrays.items() if name.startswith(f"{AVERAGE}/")}
    checkpoint.save(folder, replace(state, arrays=arrays))


def distil(
    networks: Sequence[keras.Model],
    images: tf.Tensor,
    targets: tf.Tensor,
    certain: tf.Tensor,
    seed: tf.Tensor,
    recipe: Recipe,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Blend images and add the teachers' probabilities to the targets, as the recipe says.

    Args:
        networks: at least one.
        images: uint8[N,28,28,1].
        targets: float32[N,outcomes], as ``train.hard_targets`` returns them.
        certain: bool[N]: images that keep their pixels and their target.
        seed: int32[2].
        recipe: the student's.

    Returns:
        Images and targets, of the same shapes. The target of a blended image comes from the teachers alone.
    """
    images, blended = mix(images, seed, recipe.mixup, unmixed=certain)
    weight = tf.where(certain, 0.0, tf.where(blended, 1.0, recipe.distillation))[:, tf.newaxis]
    return images, targets + weight * (soft_targets(networks, images, recipe) - targets)


def soft_targets(networks: Sequence[keras.Model], images: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """Return the mean of the probabilities that the networks give, in the format of ``train.hard_targets``.

    Args:
        networks: at least one.
        images: uint8[N,28,28,1].
        recipe: the student's; decides whether "not a digit" is an outcome.

    Returns:
        float32[N,labels], or float32[N,labels+1].
    """
    probabilities = [tf.nn.softmax(outcome_logits(network(images, training=False), recipe)) for network in networks]
    return tf.stop_gradient(tf.add_n(probabilities) / len(probabilities))


def outcome_logits(logits: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """Append the outcome "not a digit", whose logit is 0 by definition, if the recipe has outliers."""
    logits = tf.cast(logits, tf.float32)
    return tf.pad(logits, [[0, 0], [0, 1]]) if recipe.outliers else logits


def _load_teacher(teacher: TeacherRun, settings: Settings) -> Checkpoint:
    state = _load_finished(Path(teacher.run_dir))
    if weights_sha256(state) != teacher.sha256:
        raise RunError(
            f"the network in {teacher.run_dir} is not the one that this run was started with; restore that one"
        )
    # A student's validation images must not be among its teacher's training images.
    theirs, ours = _task(state.settings), _task(settings)
    conflicts = [f"{name} {theirs[name]}, the student has {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if conflicts:
        raise RunError(f"the teacher in {teacher.run_dir} was trained on another task: {'; '.join(conflicts)}")
    return state


def _load_finished(run_dir: Path) -> Checkpoint:
    state = checkpoint.load(run_dir)
    if not state.finished:
        raise RunError(
            f"the teacher in {run_dir} has finished {state.epoch} of {state.settings.epochs} epochs; "
            f"continue it with digitserve-train train --resume --run-dir {run_dir}"
        )
    return state


def _task(settings: Settings) -> dict[str, object]:
    """Return what a teacher and its student must have in common."""
    recipe = settings.recipe
    return {
        "labels": ", ".join(settings.labels),
        "data_sha256": settings.data_sha256,
        "limit": settings.limit,
        "validation": recipe.validation,
        "outliers": bool(recipe.outliers),
    }

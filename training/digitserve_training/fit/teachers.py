"""Teachers: finished runs whose networks tell a student, image by image, how sure one can be.

``train`` asks them inside its compiled step about the very images that the student sees, however augmentation bent
them (Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent"). The mean of several is a
better teacher than the best of them (Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network").
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from digitserve_training._tensorflow import keras, tf
from digitserve_training.errors import RunError
from digitserve_training.fit import checkpoint
from digitserve_training.fit.checkpoint import Checkpoint
from digitserve_training.fit.settings import Settings, Teacher, preset_of
from digitserve_training.fit.weights import AVERAGE, fingerprint, restore
from digitserve_training.model.presets import Recipe


def find(run_dirs: Sequence[str]) -> tuple[Teacher, ...]:
    """Name the networks that runs hold.

    Raises:
        RunError: there is no run.
    """
    return tuple(Teacher(run_dir, fingerprint(checkpoint.load(Path(run_dir)))) for run_dir in run_dirs)


def load(settings: Settings) -> tuple[keras.Model, ...]:
    """Restore a student's teachers; none for a run without.

    Raises:
        RunError: a teacher is gone, is not the network that it was, is not finished, or learned something else.
    """
    return tuple(restore(_checked(teacher, settings)) for teacher in settings.teachers)


def keep(run_dir: Path, folder: Path) -> None:
    """Write what a run can teach, and nothing else of it: its averaged weights, in half precision.

    Raises:
        RunError: there is no finished run, or the folder holds a run already.
    """
    state = _finished(run_dir)
    if checkpoint.exists(folder):
        raise RunError(f"{folder} holds a run already; choose another folder")
    arrays = {name: array.astype(np.float16) for name, array in state.arrays.items() if name.startswith(f"{AVERAGE}/")}
    checkpoint.save(folder, replace(state, arrays=arrays))


def answer(networks: Sequence[keras.Model], images: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """Return the mean of what the networks think, as ``train.targets_of`` gives targets.

    Args:
        networks: at least one.
        images: uint8[N,28,28,1].
        recipe: the student's; tells whether "none of these" is an outcome.

    Returns:
        float32[N,labels], or float32[N,labels+1].
    """
    opinions = [tf.nn.softmax(outcomes(network(images, training=False), recipe)) for network in networks]
    return tf.stop_gradient(tf.add_n(opinions) / len(opinions))


def outcomes(logits: tf.Tensor, recipe: Recipe) -> tf.Tensor:
    """Add the outcome "none of these", whose logit is 0 by definition, where there are outliers."""
    logits = tf.cast(logits, tf.float32)
    return tf.pad(logits, [[0, 0], [0, 1]]) if recipe.outliers else logits


def _checked(teacher: Teacher, settings: Settings) -> Checkpoint:
    state = _finished(Path(teacher.run_dir))
    if fingerprint(state) != teacher.sha256:
        raise RunError(f"the network in {teacher.run_dir} is not the one that this run learned from; put that one back")
    # What a teacher was trained on must not be what its student is validated on.
    theirs, ours = _learned(state.settings), _learned(settings)
    told = [f"{name} {theirs[name]}, the student {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if told:
        raise RunError(f"the teacher in {teacher.run_dir} learned something else: {'; '.join(told)}")
    return state


def _finished(run_dir: Path) -> Checkpoint:
    state = checkpoint.load(run_dir)
    if not state.finished:
        raise RunError(
            f"the teacher in {run_dir} has done {state.epoch} of {state.settings.epochs} epochs; "
            f"finish it with digitserve-train train --resume --run-dir {run_dir}"
        )
    return state


def _learned(settings: Settings) -> dict[str, object]:
    recipe = preset_of(settings).recipe
    return {
        "labels": ", ".join(settings.labels),
        "data_sha256": settings.data_sha256,
        "limit": settings.limit,
        "validation": recipe.validation,
        "to tell what is no digit": bool(recipe.outliers),
    }

"""Checkpoints: everything that a stopped training needs to continue as if it had not stopped.

``train`` saves one after each epoch; ``cli``, ``teachers``, ``evaluate`` and ``export`` load it. One file holds
settings, history and all arrays and is replaced atomically. So the folder of a run always holds one valid checkpoint,
and an interrupt, a crash or a full disk loses at most the current epoch. Needs no TensorFlow.
"""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitserve_training.atomic import replace_file
from digitserve_training.errors import RunError
from digitserve_training.fit.settings import Settings

FILE_NAME = "checkpoint.npz"
METRICS_NAME = "metrics.jsonl"
_DESCRIPTION = "description"


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after an epoch.

    Attributes:
        settings: of the run.
        epoch: number of finished epochs.
        history: one record of metrics per epoch.
        arrays: every variable by name: ``network/<n>``, ``average/<n>``, ``optimizer/<n>``.
    """

    settings: Settings
    epoch: int
    history: tuple[Mapping[str, float], ...]
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)

    @property
    def finished(self) -> bool:
        """Whether all epochs are finished."""
        return self.epoch >= self.settings.epochs


def exists(run_dir: Path) -> bool:
    """Whether the folder holds a run."""
    return (run_dir / FILE_NAME).exists()


def save(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Replace the run's checkpoint, and write its history as JSON lines beside it.

    Raises:
        RunError: the files cannot be written, for example because the disk is full; the last checkpoint is unchanged.
    """
    description = json.dumps(
        {"settings": checkpoint.settings.to_dict(), "epoch": checkpoint.epoch, "history": checkpoint.history}
    )
    lines = "".join(json.dumps(record) + "\n" for record in checkpoint.history)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with replace_file(run_dir / FILE_NAME) as file:
            np.savez(file, allow_pickle=False, **{_DESCRIPTION: np.array(description), **checkpoint.arrays})
        with replace_file(run_dir / METRICS_NAME) as file:
            file.write(lines.encode())
    except OSError as error:
        raise RunError(
            f"the checkpoint of epoch {checkpoint.epoch} cannot be written to {run_dir}: {error.strerror or error}; "
            "the one before it is intact: free some space, then resume"
        ) from None


def load(run_dir: Path) -> Checkpoint:
    """Load a run's checkpoint.

    Raises:
        RunError: there is no checkpoint, or it is invalid.
    """
    path = run_dir / FILE_NAME
    if not path.is_file():
        raise RunError(f"no run in {run_dir}: {FILE_NAME} is missing; start one with digitserve-train train")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        description = json.loads(str(arrays.pop(_DESCRIPTION)))
        settings = Settings.from_dict(description["settings"], str(path))
        return Checkpoint(settings, int(description["epoch"]), tuple(description["history"]), arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(
            f"{path} is not a checkpoint that this version can read: {error}; start again in another folder"
        ) from None

"""Checkpoints: all that a stopped training needs to go on as if it had not been stopped.

One file holds the settings, the history and every array, and it is replaced whole, so at any moment the folder of a run
holds one good checkpoint: an interrupt, a crash or a full disk costs at most the epoch under way. Needs no TensorFlow.
"""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from digitserve_training.errors import RunError
from digitserve_training.fit.settings import Settings, Teacher

FILE_NAME = "checkpoint.npz"
METRICS_NAME = "metrics.jsonl"
_DESCRIPTION = "description"


@dataclass(frozen=True)
class Checkpoint:
    """A training as it stood after an epoch.

    Attributes:
        settings: what was asked for.
        epoch: epochs done.
        history: one record of metrics an epoch.
        arrays: every variable by name: ``network/<n>``, ``average/<n>``, ``optimizer/<n>``.
    """

    settings: Settings
    epoch: int
    history: tuple[Mapping[str, float], ...]
    arrays: Mapping[str, NDArray[Any]] = field(repr=False)

    @property
    def finished(self) -> bool:
        """Whether all epochs are done."""
        return self.epoch >= self.settings.epochs


def exists(run_dir: Path) -> bool:
    """Whether a run was started in this folder."""
    return (run_dir / FILE_NAME).exists()


def save(run_dir: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint in place of the last one, and the metrics so far as JSON lines beside it.

    Raises:
        RunError: it could not be written, for want of space for example; the last checkpoint is untouched.
    """
    description = json.dumps(
        {"settings": asdict(checkpoint.settings), "epoch": checkpoint.epoch, "history": checkpoint.history}
    )
    lines = "".join(json.dumps(record) + "\n" for record in checkpoint.history)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with replacing(run_dir / FILE_NAME) as file:
            np.savez(file, allow_pickle=False, **{_DESCRIPTION: np.array(description), **checkpoint.arrays})
        with replacing(run_dir / METRICS_NAME) as file:
            file.write(lines.encode())
    except OSError as error:
        raise RunError(
            f"the checkpoint of epoch {checkpoint.epoch} cannot be written to {run_dir}: {error.strerror or error}; "
            "the one before it is intact: make room, then resume"
        ) from None


def load(run_dir: Path) -> Checkpoint:
    """Read a run's checkpoint.

    Raises:
        RunError: there is none, or it cannot be read.
    """
    path = run_dir / FILE_NAME
    if not path.is_file():
        raise RunError(f"no run in {run_dir}: {FILE_NAME} is missing; start one with digitserve-train train")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        description = json.loads(str(arrays.pop(_DESCRIPTION)))
        described = description["settings"]
        # Runs from before there were teachers name none.
        teachers = tuple(Teacher(**teacher) for teacher in described.get("teachers", ()))
        settings = Settings(**described | {"labels": tuple(described["labels"]), "teachers": teachers})
        return Checkpoint(settings, int(description["epoch"]), tuple(description["history"]), arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} is no checkpoint of this version: {error}; start again in another folder") from None


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of ``path`` once it is whole and on disk, and otherwise leaves no trace."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise

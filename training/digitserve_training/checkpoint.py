"""Checkpoints: all that a stopped training needs to go on as if it had not been stopped.

One file holds the settings, the history and every array, and it is replaced whole, so at any moment the folder of a run
holds one good checkpoint: an interrupt, a crash or a full disk costs at most the epoch under way. Needs no TensorFlow.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from digitserve_training.errors import RunError

FILE_NAME = "checkpoint.npz"
METRICS_NAME = "metrics.jsonl"
_DESCRIPTION = "description"


@dataclass(frozen=True)
class Settings:
    """What decides a training: on one machine, equal settings end in equal weights.

    Attributes:
        preset: its name.
        definition: its ``repr``, so that a preset that was edited since is noticed.
        seed: of weights, order of images, augmentation and dropout.
        epochs: to be trained in all; the learning rate follows it.
        learning_rate: the peak.
        limit: images used of the training set, None for all.
        data_sha256: fingerprint of the whole training set.
    """

    preset: str
    definition: str
    seed: int
    epochs: int
    learning_rate: float
    limit: int | None
    data_sha256: str


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
        with _Replacement(run_dir / FILE_NAME) as file:
            np.savez(file, **{_DESCRIPTION: np.array(description)}, **checkpoint.arrays)
        with _Replacement(run_dir / METRICS_NAME) as file:
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
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        description = json.loads(str(arrays.pop(_DESCRIPTION)))
        settings = Settings(**description["settings"])
        return Checkpoint(settings, int(description["epoch"]), tuple(description["history"]), arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise RunError(f"{path} is no checkpoint of this version: {error}; start again in another folder") from None


def require_same(stored: Settings, asked: Settings) -> None:
    """Refuse to resume with other settings than the run was started with.

    Raises:
        RunError: names each setting that differs, with both values.
    """
    differing = [f.name for f in fields(Settings) if getattr(stored, f.name) != getattr(asked, f.name)]
    if differing:
        told = "; ".join(f"{name} was {getattr(stored, name)!r}, now {getattr(asked, name)!r}" for name in differing)
        raise RunError(f"this run cannot be resumed with other settings: {told}; start again in another folder")


class _Replacement:
    """A file that takes the place of ``path`` once it is written whole and on disk, and otherwise leaves no trace."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(path.name + ".partial")

    def __enter__(self) -> Any:  # noqa: ANN401 - the binary file that open returns; np.savez wants more than BinaryIO
        self._file = self._partial.open("wb")
        return self._file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
            if kind is not None:
                self._partial.unlink(missing_ok=True)
        self._partial.replace(self._path) if kind is None else None

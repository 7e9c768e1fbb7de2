"""TensorBoard events of a run: each epoch's metrics as scalars, and some augmented training images.

Written by ``train`` on the chief into RUN/tensorboard, under the names that ``metrics.jsonl`` has.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from digitserve_training._tensorflow import tf
from digitserve_training.errors import RunError
from digitserve_training.fit import distribute

FOLDER = "tensorboard"
NUM_IMAGES = 32


class TensorBoardWriter:
    """Writer of a run's event file; lives for one call of ``train``. Only the chief writes.

    A resumed run writes the file again from the checkpoint's history, as it does with ``metrics.jsonl``, so each epoch
    occurs exactly once, whenever the run was stopped.
    """

    def __init__(self, run_dir: Path, history: Iterable[Mapping[str, float]], examples: NDArray[np.uint8]) -> None:
        """Start the file.

        Args:
            run_dir: the run's folder.
            history: metrics of the epochs that are finished.
            examples: uint8[N,28,28,1], augmented training images.

        Raises:
            RunError: the file cannot be written.
        """
        self._folder = run_dir / FOLDER
        with _convert_errors(self._folder):
            self._writer = _create_writer(self._folder) if distribute.is_chief() else tf.summary.create_noop_writer()
            with self._writer.as_default(step=0):
                tf.summary.image("augmented", examples, max_outputs=NUM_IMAGES)
        for metrics in history:
            self.write(metrics)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with _convert_errors(self._folder):
                self._writer.close()
        except RunError:
            # An exception from the block is more informative than the failure to close the file.
            if error is None:
                raise

    def write(self, metrics: Mapping[str, float]) -> None:
        """Write an epoch's metrics and flush them.

        Raises:
            RunError: they cannot be written; the epoch's checkpoint is already saved.
        """
        with _convert_errors(self._folder), self._writer.as_default(step=int(metrics["epoch"])):
            for name, value in metrics.items():
                if name != "epoch":
                    tf.summary.scalar(name, value)
            self._writer.flush()


def _create_writer(folder: Path) -> tf.summary.SummaryWriter:
    for stale in folder.glob("events.out.tfevents.*"):
        stale.unlink()
    return tf.summary.create_file_writer(str(folder))


@contextmanager
def _convert_errors(folder: Path) -> Iterator[None]:
    """Raise errors of writing as ``RunError``."""
    try:
        yield
    except (OSError, tf.errors.OpError) as error:
        raise RunError(
            f"TensorBoard's file cannot be written to {folder}: {error}; the checkpoint is intact: free some space, "
            "then resume"
        ) from None

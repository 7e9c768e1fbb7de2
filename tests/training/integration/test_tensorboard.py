"""The event file in RUN/tensorboard, read with TensorBoard's own reader."""

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from digitserve_training._tensorflow import tf
from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled, Split
from digitserve_training.errors import RunError
from digitserve_training.fit import checkpoint, settings
from digitserve_training.fit.settings import Options
from digitserve_training.fit.tensorboard import FOLDER, NUM_IMAGES, TensorBoardWriter
from digitserve_training.fit.train import train
from support.limits import largest_file

EXAMPLES = np.zeros((2, 28, 28, 1), np.uint8)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Split]:
    """Train for two epochs on noise; the quality of the network does not matter here."""
    run_dir: Path = tmp_path_factory.mktemp("run")
    generator = np.random.default_rng(1)
    images = Labelled(generator.integers(0, 256, (150, 28, 28, 1), np.uint8), generator.integers(0, 10, 150))
    split = splits.split(images)
    train(
        settings.resolve(Options(preset="lenet5", epochs=2), images.names, splits.fingerprint(images)), split, run_dir
    )
    return run_dir, split


def read(run_dir: Path) -> EventAccumulator:
    """Read all events of a run."""
    events = EventAccumulator(str(run_dir / FOLDER), size_guidance={"tensors": 0})
    events.Reload()
    return events


def scalars(events: EventAccumulator) -> dict[int, dict[str, float]]:
    """Return scalars by epoch and name, and fail if a value occurs twice."""
    found: dict[int, dict[str, float]] = {}
    for tag in events.Tags()["tensors"]:
        for event in events.Tensors(tag) if tag != "augmented" else ():
            assert tag not in found.setdefault(event.step, {}), f"{tag} of epoch {event.step} occurs twice"
            found[event.step][tag] = float(make_ndarray(event.tensor_proto))
    return found


def recorded(run_dir: Path) -> dict[int, Any]:
    """Return the values of ``metrics.jsonl`` by epoch and name, to float32 precision as in TensorBoard."""
    records = map(json.loads, (run_dir / checkpoint.METRICS_NAME).read_text().splitlines())
    return {record.pop("epoch"): pytest.approx(record, rel=1e-6) for record in records}


def test_every_metric_of_every_epoch(trained: tuple[Path, Split]) -> None:
    """The scalars are exactly the values of metrics.jsonl, including learning rate and images per second."""
    run_dir, _ = trained

    found = scalars(read(run_dir))
    assert found == recorded(run_dir)
    assert found[1].keys() >= {"training_loss", "validation_accuracy", "learning_rate", "images_per_s"}
    assert found[1]["images_per_s"] > 0


def test_training_images_are_shown(trained: tuple[Path, Split]) -> None:
    """The event file has training images as PNG after augmentation; lenet5 has none, so they are unchanged."""
    run_dir, split = trained

    (event,) = read(run_dir).Tensors("augmented")
    width, height, *pictures = make_ndarray(event.tensor_proto)
    assert (width, height) == (b"28", b"28")
    shown = {tf.io.decode_png(picture).numpy().tobytes() for picture in pictures}
    assert len(shown) == NUM_IMAGES
    assert shown <= {image.tobytes() for image in split.training.images}


def test_resumed_run_has_no_epoch_twice(tmp_path: Path) -> None:
    """A run that was stopped before or after an epoch was written, and then resumed, has each epoch once."""
    records = [{"epoch": epoch, "training_loss": 1 / epoch} for epoch in range(1, 6)]
    for num_finished, epochs in ((0, records[:3]), (2, records[2:3]), (4, records[4:])):
        with TensorBoardWriter(tmp_path, records[:num_finished], EXAMPLES) as writer:
            for metrics in epochs:
                writer.write(metrics)

    assert scalars(read(tmp_path)) == {
        epoch: pytest.approx({"training_loss": 1 / epoch}, rel=1e-6) for epoch in range(1, 6)
    }


def test_folder_that_cannot_be_created(tmp_path: Path) -> None:
    """If the folder cannot be created, an error is raised before the first step."""
    (tmp_path / FOLDER).write_text("a file where the folder should be")

    with pytest.raises(RunError, match="TensorBoard's file cannot be written to"):
        TensorBoardWriter(tmp_path, (), EXAMPLES)


def test_full_disk_is_reported(tmp_path: Path) -> None:
    """If the disk is full, the error states that the checkpoint is intact, and a failure to close does not replace it."""
    with ExitStack() as limited, pytest.raises(RunError, match="the checkpoint is intact: free some space"):  # noqa: PT012, SIM117
        with TensorBoardWriter(tmp_path, (), EXAMPLES) as writer:
            size = max(path.stat().st_size for path in (tmp_path / FOLDER).iterdir())
            limited.enter_context(largest_file(size + 10))
            writer.write({"epoch": 1, "training_loss": 0.5, "validation_loss": 0.5})

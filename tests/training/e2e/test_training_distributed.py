"""Training on several devices and workers, in separate processes: TensorFlow configures devices once per process."""

import json
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from digitserve_training.data import splits
from digitserve_training.data.splits import Labelled, Split
from digitserve_training.errors import RunError, WorkerError
from digitserve_training.fit import checkpoint, settings
from digitserve_training.fit.settings import Options, Settings
from digitserve_training.fit.train import train

EPOCHS = 3

MIRRORED = """
import sys
import numpy as np
from digitserve_training._tensorflow import tf
from digitserve_training.fit.train import Training
from test_training_distributed import start

cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
single = Training(*start("lenet5"))
with mirrored.scope():
    double, regular = Training(*start("lenet5")), Training(*start("convpool2-bn"))
metrics = [training.run_epoch(1) for training in (single, double)]
assert np.isclose(metrics[0]["training_loss"], metrics[1]["training_loss"], rtol=1e-5), metrics
for name, array in single.arrays().items():
    np.testing.assert_allclose(double.arrays()[name], array, atol=2e-5, err_msg=name)

regular.run_epoch(1)
for variable in regular._network.weights + regular._average.weights + regular._optimizer.variables:
    first, second = (part.numpy() for part in mirrored.experimental_local_results(variable.value))
    assert np.isfinite(first).all() and np.array_equal(first, second), variable.path
for layer in regular._network.layers:
    if hasattr(layer, "seed_generator"):
        first, second = (part.numpy() for part in mirrored.experimental_local_results(layer.seed_generator.state.value))
        assert second[0] == first[0] + 1 and second[1] == first[1] > 0, layer.name
"""

WORKER = f"""
import os, signal, sys
from pathlib import Path
import numpy as np
from digitserve_training.fit import distribute
from digitserve_training._tensorflow import use_threads
from digitserve_training.errors import TrainingError
from digitserve_training.fit.train import Training, train
from test_training_distributed import start

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
use_threads(1)
strategy = distribute.choose_strategy()
run_epoch = Training.run_epoch

def until_killed(training, epoch, on_step):
    if epoch == {EPOCHS} and not distribute.is_chief():
        np.savez(folder / "other.npz", **training.arrays())
        os.kill(os.getpid(), signal.SIGKILL)
    return run_epoch(training, epoch, on_step)

Training.run_epoch = until_killed
try:
    with strategy.scope():
        train(*start("lenet5", seed), folder / ("run" if distribute.is_chief() else "nothing"))
except TrainingError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def start(preset: str, seed: int = 1) -> tuple[Settings, Split]:
    """Return settings and images: bars at ten heights, 129 for training, so that the last batch has one image."""
    generator = np.random.default_rng(1)
    labels = np.arange(140) % 10
    images = generator.integers(0, 64, (len(labels), 28, 28, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 2 * label : 6 + 2 * label] = 255
    labelled = Labelled(images, labels)
    options = Options(preset=preset, epochs=EPOCHS, seed=seed)
    return settings.resolve(options, labelled.names, splits.fingerprint(labelled)), splits.split(labelled)


def run_workers(folder: Path, seeds: tuple[int, int]) -> list[tuple[int, str]]:
    """Run two workers on free ports until both have ended; return exit code and standard error of each."""
    with ExitStack() as reserved:
        listeners = [reserved.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in seeds]
        addresses = [f"127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(seed)],
            env=environment(
                TF_CONFIG=json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})
            ),
            stderr=subprocess.PIPE,
            text=True,
        )
        for index, seed in enumerate(seeds)
    ]
    try:
        errors = [process.communicate(timeout=150)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, errors, strict=True)]


def environment(**added: str) -> dict[str, str]:
    """Return the environment of a process that can import this file."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])} | added


def test_two_devices_train_like_one() -> None:
    """Without dropout, batch norm and augmentation, two replicas take the same steps as one device, even for a batch
    of a single image. With them, replicas stay equal, except that their dropout differs.
    """
    ended = subprocess.run(
        [sys.executable, "-c", MIRRORED], env=environment(), capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stderr


@pytest.mark.timeout(300)
def test_two_workers_then_one(tmp_path: Path) -> None:
    """Two workers in a TF_CONFIG cluster have equal weights after two epochs, and only the chief writes files. If one
    is killed, the other ends with an error, and one process can resume from its checkpoint.
    """
    (code, error), (killed, _) = run_workers(tmp_path, (1, 1))

    assert (code, killed) == (1, -9), error
    assert "WorkerError: another worker was lost" in error
    assert "start every worker again with --resume" in error
    assert not (tmp_path / "nothing").exists()
    state = checkpoint.load(tmp_path / "run")
    with np.load(tmp_path / "other.npz") as other:
        assert all(np.array_equal(other[name], array) for name, array in state.arrays.items())
    losses = [record["training_loss"] for record in state.history]
    assert len(losses) == EPOCHS - 1 and losses[1] < losses[0]

    finished = train(*start("lenet5"), tmp_path / "run", resume=True)
    assert finished.finished and finished.history[-1]["training_loss"] < losses[1]
    with pytest.raises(RunError, match="already holds a run"):
        train(*start("lenet5"), tmp_path / "run")


@pytest.mark.timeout(300)
def test_workers_must_have_the_same_settings(tmp_path: Path) -> None:
    """Workers that were started with different settings all end with an error before the first step."""
    ended = run_workers(tmp_path, (1, 2))

    assert [code for code, _ in ended] == [1, 1]
    assert all(f"{WorkerError.__name__}: the workers have different settings" in error for _, error in ended)
    assert "seed=1" in ended[0][1] and "seed=2" in ended[1][1]

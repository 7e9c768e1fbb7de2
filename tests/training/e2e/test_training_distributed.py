"""Training on more than one device, in processes of their own: TensorFlow settles its devices and its cluster once."""

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
from test_training_distributed import begin

cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
single = Training(*begin("lenet5"))
with mirrored.scope():
    double, regular = Training(*begin("lenet5")), Training(*begin("convpool2-bn"))
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
from test_training_distributed import begin

folder, seed = Path(sys.argv[1]), int(sys.argv[2])
use_threads(1)
strategy = distribute.strategy()
run_epoch = Training.run_epoch

def until_killed(training, epoch):
    if epoch == {EPOCHS} and not distribute.is_chief():
        np.savez(folder / "other.npz", **training.arrays())
        os.kill(os.getpid(), signal.SIGKILL)
    return run_epoch(training, epoch)

Training.run_epoch = until_killed
try:
    with strategy.scope():
        train(*begin("lenet5", seed), folder / ("run" if distribute.is_chief() else "nothing"))
except TrainingError as error:
    sys.exit(f"{{type(error).__name__}}: {{error}}")
"""


def begin(preset: str, seed: int = 1) -> tuple[Settings, Split]:
    """Return settings and images: bars at ten heights, 129 for training, so that the last batch has only one."""
    generator = np.random.default_rng(1)
    labels = np.arange(140) % 10
    images = generator.integers(0, 64, (len(labels), 28, 28, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 2 * label : 6 + 2 * label] = 255
    labelled = Labelled(images, labels)
    asked = Options(preset=preset, epochs=EPOCHS, seed=seed)
    return settings.resolve(asked, labelled.names, splits.fingerprint(labelled)), splits.split(labelled)


def run_workers(folder: Path, seeds: tuple[int, int]) -> list[tuple[int, str]]:
    """Run two workers on free ports until both have ended: the status and the errors of each."""
    with ExitStack() as taken:
        listeners = [taken.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in seeds]
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
        told = [process.communicate(timeout=150)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, told, strict=True)]


def environment(**added: str) -> dict[str, str]:
    """Return the environment of a process that can import this file."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])} | added


def test_two_devices_train_like_one() -> None:
    """Without dropout, batch norm and augmentation two replicas take the steps of one, the last over a single image;
    with them, replicas stay equal but for their dropout.
    """
    ended = subprocess.run(
        [sys.executable, "-c", MIRRORED], env=environment(), capture_output=True, text=True, check=False
    )

    assert ended.returncode == 0, ended.stderr


@pytest.mark.timeout(300)
def test_two_workers_then_one(tmp_path: Path) -> None:
    """Two workers by TF_CONFIG have the same weights after two epochs, and only the chief writes. When one is killed
    the other says so and ends, and its checkpoint is taken up again by one process.
    """
    (status, told), (killed, _) = run_workers(tmp_path, (1, 1))

    assert (status, killed) == (1, -9), told
    assert "WorkerError: another worker is gone" in told
    assert "start every worker again with --resume" in told
    assert not (tmp_path / "nothing").exists()
    kept = checkpoint.load(tmp_path / "run")
    with np.load(tmp_path / "other.npz") as other:
        assert all(np.array_equal(other[name], array) for name, array in kept.arrays.items())
    losses = [record["training_loss"] for record in kept.history]
    assert len(losses) == EPOCHS - 1 and losses[1] < losses[0]

    finished = train(*begin("lenet5"), tmp_path / "run", resume=True)
    assert finished.finished and finished.history[-1]["training_loss"] < losses[1]
    with pytest.raises(RunError, match="holds a run already"):
        train(*begin("lenet5"), tmp_path / "run")


@pytest.mark.timeout(300)
def test_workers_must_do_the_same(tmp_path: Path) -> None:
    """Workers that were started with different settings all refuse, before the first step."""
    ended = run_workers(tmp_path, (1, 2))

    assert [status for status, _ in ended] == [1, 1]
    assert all(f"{WorkerError.__name__}: the workers do not do the same" in told for _, told in ended)
    assert "seed=1" in ended[0][1] and "seed=2" in ended[1][1]

"""Ctrl-C on the real command."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from digitserve_training import checkpoint

EPOCHS = 10_000
"""More than can be trained before the signal comes."""


@pytest.fixture
def noise_path(tmp_path: Path) -> Path:
    """Images of noise laid out like MNIST: what is learned does not matter here."""
    generator = np.random.default_rng(1)
    arrays = {
        f"{kind}_{part}": generator.integers(0, top, shape, dtype=np.uint8)
        for part in ("train", "test")
        for kind, top, shape in (("x", 256, (144, 28, 28)), ("y", 10, (144,)))
    }
    path = tmp_path / "noise.npz"
    np.savez(path, allow_pickle=False, **arrays)
    return path


def test_interrupt_keeps_the_last_checkpoint(tmp_path: Path, noise_path: Path) -> None:
    """Interrupted at any time, training ends with status 130, keeps whole epochs, and says how to go on."""
    program = "from digitserve_training.cli import main; main(prog_name='digitserve-train')"
    options = ["--data", str(noise_path), "--run-dir", str(tmp_path / "run"), "--epochs", str(EPOCHS), "--threads", "1"]
    process = subprocess.Popen([sys.executable, "-c", program, "train", *options], stderr=subprocess.PIPE, text=True)
    try:
        wait_for_epochs(tmp_path / "run", process)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 130
    assert "Traceback" not in told
    kept = checkpoint.load(tmp_path / "run")
    assert kept.epoch == len(kept.history) >= 1
    assert f"{kept.epoch} of {EPOCHS} epochs are kept" in told
    assert f"go on with: digitserve-train train --resume --run-dir {tmp_path / 'run'}" in told


def wait_for_epochs(run_dir: Path, process: subprocess.Popen[str]) -> None:
    """Wait until an epoch is done; a process that ended before says why."""
    metrics = run_dir / checkpoint.METRICS_NAME
    for _ in range(1_200):
        if metrics.exists() and metrics.stat().st_size:
            return
        if process.poll() is not None:
            pytest.fail(f"it ended with status {process.returncode}: {process.communicate()[1]}")
        time.sleep(0.1)
    pytest.fail("no epoch within two minutes")

"""Ctrl-C on the real command."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from digitserve_training.fit import checkpoint
from digitserve_training.model.layers import Conv, Flatten
from digitserve_training.model.preset_files import preset_to_json
from digitserve_training.model.presets import PRESETS

COMMAND = [sys.executable, "-c", "from digitserve_training.cli import main; main(prog_name='digitserve-train')"]

EPOCHS = 10_000
"""More epochs, and more trials, than can be trained before the signal comes."""


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
    options = ["--data", str(noise_path), "--run-dir", str(tmp_path / "run"), "--epochs", str(EPOCHS), "--threads", "1"]
    process = subprocess.Popen([*COMMAND, "train", *options], stderr=subprocess.PIPE, text=True)
    try:
        metrics = tmp_path / "run" / checkpoint.METRICS_NAME
        wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0, process)
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


def test_interrupted_search_keeps_its_trials(tmp_path: Path, noise_path: Path) -> None:
    """Interrupted, a search ends with status 130, keeps what is done, marks the trial under way as failed, and will try
    its values again.
    """
    preset = replace(PRESETS["lenet5"], name="small", layers=(Conv(2, stride=4), Flatten()))
    (tmp_path / "small.json").write_text(preset_to_json(preset))
    options = ["--data", str(noise_path), "--study-dir", "study", "--preset", "small.json", "--epochs", "25"]
    with (tmp_path / "errors").open("w+") as errors:
        process = subprocess.Popen(
            [*COMMAND, "tune", *options, "--trials", str(EPOCHS), "--threads", "1", "--vary", "learning-rate"],
            stdout=subprocess.PIPE, stderr=errors, text=True, cwd=tmp_path, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        try:
            read_until("trial 1", process)
            read_until("epoch 1 ", process)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
        finally:
            process.kill()
        errors.seek(0)
        told = errors.read()

    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert f"interrupted; 1 of {EPOCHS} trials are done; go on with the same command" in told
    with (tmp_path / "study" / "trials.csv").open(newline="") as file:
        done, failed, waiting = csv.DictReader(file)
    assert [trial["state"] for trial in (done, failed, waiting)] == ["complete", "fail", "waiting"]
    assert failed["learning_rate"] != done["learning_rate"]


def read_until(start: str, process: subprocess.Popen[str]) -> None:
    """Read lines of a process until one starts so."""
    for line in process.stdout or ():
        if line.startswith(start):
            return
    pytest.fail(f"it ended without a line '{start}...'")


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until something was done; a process that ended before says why."""
    for _ in range(1_200):
        if holds():
            return
        if process.poll() is not None:
            pytest.fail(f"it ended with status {process.returncode}: {process.communicate()[1]}")
        time.sleep(0.1)
    pytest.fail("nothing was done within two minutes")

"""Ctrl-C during the real command."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from digitserve_training.fit import checkpoint
from digitserve_training.model.layers import Conv, Flatten
from digitserve_training.model.preset_files import preset_to_json
from digitserve_training.model.presets import PRESETS

COMMAND = [sys.executable, "-m", "digitserve_training.cli"]

EPOCHS = 10_000
"""More epochs, and more trials, than can finish before the signal."""


def test_interrupt_keeps_the_last_checkpoint(tmp_path: Path, noise_path: Path) -> None:
    """Ctrl-C ends training with exit code 130 and no traceback, keeps the finished epochs, and prints how to resume."""
    options = ["--data", str(noise_path), "--run-dir", str(tmp_path / "run"), "--epochs", str(EPOCHS), "--threads", "1"]
    process = subprocess.Popen([*COMMAND, "train", *options], stderr=subprocess.PIPE, text=True)
    try:
        metrics = tmp_path / "run" / checkpoint.METRICS_NAME
        wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0, process)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()

    assert process.returncode == 130
    state = checkpoint.load(tmp_path / "run")
    assert state.epoch == len(state.history) >= 1
    assert error == (
        f"\ninterrupted; {state.epoch} of {EPOCHS} epochs are saved; "
        f"continue with: digitserve-train train --resume --run-dir {tmp_path / 'run'}\n"
    )


def test_interrupted_search_keeps_its_trials(tmp_path: Path, noise_path: Path) -> None:
    """Ctrl-C ends a search with exit code 130 and no traceback, keeps finished trials, marks the current one as
    failed, and enqueues its values again.
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
        error = errors.read()

    assert process.returncode == 130, error
    assert "Traceback" not in error
    assert f"interrupted; 1 of {EPOCHS} trials are finished; continue with the same command" in error
    with (tmp_path / "study" / "trials.csv").open(newline="") as file:
        complete, failed, waiting = csv.DictReader(file)
    assert [trial["state"] for trial in (complete, failed, waiting)] == ["complete", "fail", "waiting"]
    assert failed["learning_rate"] != complete["learning_rate"]


def read_until(start: str, process: subprocess.Popen[str]) -> None:
    """Read standard output of a process until a line starts with ``start``."""
    for line in process.stdout or ():
        if line.startswith(start):
            return
    pytest.fail(f"the process ended without a line '{start}...'")


def wait_until(holds: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until a condition holds, for two minutes at most; fail with standard error if the process ends first."""
    for _ in range(1_200):
        if holds():
            return
        if process.poll() is not None:
            pytest.fail(f"the process ended with exit code {process.returncode}: {process.communicate()[1]}")
        time.sleep(0.1)
    pytest.fail("the condition did not hold within two minutes")

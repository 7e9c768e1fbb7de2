"""Ctrl-C during the real command."""

import csv
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from digitserve_training.fit import checkpoint
from digitserve_training.model.layers import Conv, Flatten
from digitserve_training.model.preset_files import preset_to_json
from digitserve_training.model.presets import PRESETS
from support.terminal import run_on_terminal

COMMAND = [sys.executable, "-m", "digitserve_training.cli"]

EPOCHS = 10_000
"""More epochs, and more trials, than can finish before the signal."""


def test_interrupt_keeps_the_last_checkpoint(tmp_path: Path, noise_path: Path) -> None:
    """Ctrl-C ends training with exit code 130 and no traceback, keeps the finished epochs, and prints how to resume. Until then the
    terminal shows the progress in a line that is gone afterwards.
    """
    run_dir = tmp_path / "run"
    options = ["--data", noise_path, "--run-dir", run_dir, "--epochs", str(EPOCHS), "--threads", "1"]
    with run_on_terminal([*COMMAND, "train", *options], columns=100) as terminal:
        terminal.read_until(
            lambda shown: re.search(r"epoch [2-9]/10000, loss [0-9.]+$", shown) and " left" in shown, "a second epoch"
        )
        assert "training_loss" in terminal.text
        terminal.press("\x03")
        error = terminal.read_to_end()

    assert terminal.process.returncode == 130
    state = checkpoint.load(run_dir)
    assert state.epoch == len(state.history) >= 1
    # The terminal's echo of Ctrl-C comes before or after the line is removed.
    last = error.replace("\r\n", "\n").rpartition("\r\x1b[2K")[2].removeprefix("^C")
    assert last == (
        f"\ninterrupted; {state.epoch} of {EPOCHS} epochs are saved; "
        f"continue with: digitserve-train train --resume --run-dir {run_dir}\n"
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

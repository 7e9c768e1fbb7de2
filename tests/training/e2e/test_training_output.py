"""Standard error of the real command: errors and nothing else."""

import subprocess
import sys
from pathlib import Path

from digitserve_training.errors import DataError

NOISY_IMPORT = """
import os, sys

class LogsAndFails:
    def find_spec(self, name, path=None, target=None):
        if name == "keras":
            os.write(2, b"I0000 00:00:1 port.cc:153] oneDNN custom operations are on. You may see ...\\n")
            os.write(2, b"F0000 00:00:1 cpu_feature_guard.cc:1] the processor lacks AVX\\n")
            os.abort()

sys.meta_path.insert(0, LogsAndFails())
import digitserve_training._tensorflow
"""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``digitserve-train`` in a separate process."""
    command = [sys.executable, "-m", "digitserve_training.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_errors_are_visible(tmp_path: Path) -> None:
    """An error that occurs after TensorFlow was imported is the only line on standard error."""
    failed = run("train", "--data", tmp_path / "missing.npz", "--run-dir", tmp_path / "run")

    assert failed.returncode == DataError.exit_code
    assert failed.stderr.startswith("digitserve-train: ") and failed.stderr.count("\n") == 1


def test_a_crash_at_import_is_visible() -> None:
    """If TensorFlow aborts the process while it is imported, its last message is printed; start-up messages are not."""
    crashed = subprocess.run([sys.executable, "-c", NOISY_IMPORT], capture_output=True, text=True, check=False)

    assert crashed.returncode < 0
    assert crashed.stderr == "F0000 00:00:1 cpu_feature_guard.cc:1] the processor lacks AVX\n"

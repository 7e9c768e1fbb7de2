"""What ``digitserve-train`` promises before any training starts."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from digitserve_training.cli import main


@pytest.mark.parametrize("command", [["train"], ["evaluate", "runs/x"], ["export", "runs/x"], ["tune"]])
def test_missing_extra_is_explained(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TensorFlow each command says what to install and ends with status 2."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)

    outcome = CliRunner().invoke(main, command)

    assert outcome.exit_code == 2
    assert "needs tensorflow" in outcome.stderr
    assert "pip install 'digitserve[training]'" in outcome.stderr


def test_help_needs_no_tensorflow() -> None:
    """Help and the list of presets come without importing TensorFlow, so they are instant."""
    program = (
        "import sys; from digitserve_training.cli import main; main(['train', '--help'], standalone_mode=False); "
        "assert not {'tensorflow', 'keras', 'tf2onnx'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert "conv2-dense256" in ended.stdout


@pytest.mark.parametrize(
    "options", [["--preset", "nix"], ["--epochs", "0"], ["--seed", "-1"], ["--learning-rate", "0"], ["--limit", "x"]]
)
def test_bad_options_are_usage_errors(options: list[str], tmp_path: Path) -> None:
    """A value that cannot be is refused with status 2 before anything is read or written."""
    outcome = CliRunner().invoke(main, ["train", "--run-dir", str(tmp_path / "run"), *options])

    assert outcome.exit_code == 2
    assert options[0] in outcome.stderr
    assert not (tmp_path / "run").exists()

"""``digitserve-train`` before any training starts: help, the missing extra, wrong options."""

import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from digitserve_training import errors
from digitserve_training.cli import main
from digitserve_training.cli.options import EXIT_CODES

COMMANDS = ["train", "keep", "evaluate", "export", "tune"]


@pytest.mark.parametrize(
    "command", [["train"], ["keep", "runs/x", "y"], ["evaluate", "runs/x"], ["export", "runs/x"], ["tune"]]
)
def test_missing_extra_is_explained(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without TensorFlow each command states what to install and ends with exit code 2."""
    monkeypatch.setitem(sys.modules, "tensorflow", None)

    outcome = CliRunner().invoke(main, command)

    assert outcome.exit_code == 2
    assert "needs tensorflow" in outcome.stderr
    assert "pip install 'digitserve[training]'" in outcome.stderr


def test_help_needs_no_tensorflow() -> None:
    """Help, with the list of presets, is printed without importing TensorFlow, so it is fast."""
    program = (
        "import sys; from digitserve_training.cli import main; main(['train', '--help'], standalone_mode=False); "
        "assert not {'tensorflow', 'keras', 'tf2onnx'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert "conv2-dense256" in ended.stdout


@pytest.mark.parametrize("arguments", [["-h"], *([command, "-h"] for command in COMMANDS)])
def test_help_lists_the_exit_codes(arguments: list[str]) -> None:
    """Help of the command and of each subcommand ends with the exit codes."""
    outcome = CliRunner().invoke(main, arguments, terminal_width=200)

    assert outcome.exit_code == 0
    assert outcome.stdout.split()[-len(EXIT_CODES.split()) :] == EXIT_CODES.split()


def test_every_error_has_an_exit_code() -> None:
    """The codes of all errors differ, and help lists each of them."""
    codes = [kind.exit_code for kind in errors.TrainingError.__subclasses__()]

    assert sorted(codes) == [3, 4, 5, 6, 7]
    assert all(f"; {code} " in f"; {EXIT_CODES}" for code in codes)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_options_in_groups(command: str) -> None:
    """Each option is in a group with a heading; only the help option is in the last group, ``Other``."""
    outcome = CliRunner().invoke(main, [command, "--help"])

    *groups, other = outcome.stdout.split("Exit codes:")[0].split(":\n  -")[1:]
    assert other.split()[:2] == ["h,", "--help"]
    assert len(groups) >= (0 if command == "keep" else 3)


@pytest.mark.parametrize(
    "options", [["--preset", "nix"], ["--epochs", "0"], ["--seed", "-1"], ["--learning-rate", "0"], ["--limit", "x"]]
)
def test_invalid_options_are_usage_errors(options: list[str], tmp_path: Path) -> None:
    """An invalid value is rejected with exit code 2 before anything is read or written."""
    outcome = CliRunner().invoke(main, ["train", "--run-dir", str(tmp_path / "run"), *options])

    assert outcome.exit_code == 2
    assert options[0] in outcome.stderr
    assert not (tmp_path / "run").exists()

"""``digitserve models``: a version is verified before it is activated, and all versions are listed."""

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from digitserve.cli import main
from digitserve.cli.exit_codes import ExitCode
from digitserve.inference.bundle import write_bundle
from support.bundles import echo_golden, echo_graph, manifest, write_echo_bundle


def run(models: Path, *arguments: str) -> Result:
    """Run ``digitserve models``."""
    return CliRunner().invoke(main, ["models", *arguments, "--models", str(models)])


def test_activate_replaces_the_active_file(tmp_path: Path) -> None:
    """The version is in the file, and the command prints its path. A roll-back is the same command."""
    for version in (1, 2):
        write_echo_bundle(tmp_path, version)
    for version in (2, 1):
        result = run(tmp_path, "activate", f"digits/{version}")
        path = tmp_path / "digits" / "active"
        assert (result.exit_code, result.stdout) == (ExitCode.OK, f"digits/{version} is active: {path}\n")
        assert path.read_text() == f"{version}\n"


@pytest.mark.parametrize("fault", ["missing", "damaged", "golden"])
def test_a_version_that_cannot_be_served_is_not_activated(tmp_path: Path, fault: str) -> None:
    """The checks are those of a worker that starts, also those that run the network; the message names the check, and the exit
    code is 1.
    """
    write_echo_bundle(tmp_path, 1)
    assert run(tmp_path, "activate", "digits/1").exit_code == ExitCode.OK
    if fault == "damaged":
        (write_echo_bundle(tmp_path, 2) / "model.onnx").write_bytes(b"damaged")
    if fault == "golden":
        golden = echo_golden()
        write_bundle(tmp_path, manifest(2), echo_graph(), replace(golden, ood_score=golden.ood_score + 5))
    result = run(tmp_path, "activate", "digits/2")
    assert result.exit_code == ExitCode.NEGATIVE
    check = {"missing": "files", "damaged": "sha256", "golden": "golden"}[fault]
    assert f"check '{check}' failed" in result.stderr
    assert (tmp_path / "digits" / "active").read_text() == "1\n"


@pytest.mark.parametrize(
    "model",
    [
        "digits",
        "digits/",
        "/1",
        "../1",
        "digits/x",
        "digits/0",
        "digits/1/2",
        "digits/-1",
        f"digits/{'9' * 5000}",
        "digits/²",
    ],
)
def test_a_wrong_version_is_wrong_usage(tmp_path: Path, model: str) -> None:
    """Anything but a name and a version has exit code 2 and a message that shows an example."""
    result = run(tmp_path, "activate", "--", model)
    assert result.exit_code == ExitCode.USAGE
    assert "such as digits/4" in result.stderr


def test_list_shows_all_versions(tmp_path: Path) -> None:
    """Each version has its precision and accuracy, or the check that failed; the served one of each model is marked."""
    write_echo_bundle(tmp_path, 1, training={"precision": "float32"}, quality={"test_accuracy": 0.9971})
    write_echo_bundle(tmp_path, 2, training={}, quality={})
    (write_echo_bundle(tmp_path, 3) / "model.onnx").unlink()
    write_echo_bundle(tmp_path, 7, name="letters")
    (tmp_path / "digits" / "active").write_text("1")
    result = run(tmp_path, "list")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert result.exit_code == ExitCode.OK
    assert lines[1:3] == ["* digits/1 float32 99.71%", "digits/2 - -"]
    assert lines[3].startswith("digits/3 check 'files' failed")
    assert lines[4:] == ["* letters/7 - 100.00%"]


def test_list_of_a_folder_without_models(tmp_path: Path) -> None:
    """The message says what is expected, and the exit code is 1."""
    result = run(tmp_path, "list")
    assert (result.exit_code, "no model in" in result.stderr) == (ExitCode.NEGATIVE, True)

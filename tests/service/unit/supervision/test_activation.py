"""``digitserve models``: a version is verified before it is activated; all versions are listed and verified."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from digitserve.cli import main
from digitserve.cli.exit_codes import ExitCode
from digitserve.errors import StartupError
from digitserve.inference.bundle import write_bundle
from digitserve.supervision.verification import verify
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
    """The checks are the start-up checks of a worker, also those that run the network; the message names the check, and the exit
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


def test_the_int8_bundle_is_verified_before_activation(tmp_path: Path) -> None:
    """With --precision, services may serve the int8 bundle of the version: if it fails a check, the version is not activated."""
    write_echo_bundle(tmp_path, 1)
    path = write_echo_bundle(tmp_path, 1, name="digits-int8") / "model.onnx"
    graph = path.read_bytes()
    path.write_bytes(b"damaged")
    result = run(tmp_path, "activate", "digits/1")
    assert result.exit_code == ExitCode.NEGATIVE
    assert f"check 'sha256' failed: model.onnx in {path.parent}" in result.stderr
    path.write_bytes(graph)
    assert run(tmp_path, "activate", "digits/1").exit_code == ExitCode.OK


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
    """Each version has its checksum, precision and quality, or the check that failed; the served one of each model is marked."""
    quality = {"test_accuracy": 0.9971, "test_calibration_error": 0.0004}
    write_echo_bundle(tmp_path, 1, training={"precision": "float32"}, quality=quality)
    write_echo_bundle(tmp_path, 2, training={}, quality={})
    (write_echo_bundle(tmp_path, 3) / "model.onnx").unlink()
    write_echo_bundle(tmp_path, 7, name="letters")
    (tmp_path / "digits" / "active").write_text("1")
    result = run(tmp_path, "list")
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    sha256 = hashlib.sha256(echo_graph()).hexdigest()
    assert result.exit_code == ExitCode.OK
    assert lines[1:3] == [f"* digits/1 {sha256[:12]} float32 99.71% 0.04%", f"digits/2 {sha256[:12]} - - -"]
    assert lines[3].startswith("digits/3 check 'files' failed")
    assert lines[4:] == [f"* letters/7 {sha256[:12]} - 100.00% -"]

    described = [json.loads(line) for line in run(tmp_path, "list", "--json").stdout.splitlines()]
    assert described[0] == {
        "name": "digits", "version": 1, "active": True, "problem": None, "sha256": sha256, "precision": "float32",
        "quality": quality,
    }  # fmt: skip
    assert described[2]["problem"].startswith("check 'files' failed")
    assert [(one["name"], one["version"], one["active"]) for one in described[1:]] == [
        ("digits", 2, False),
        ("digits", 3, False),
        ("letters", 7, True),
    ]


def test_verify_runs_all_checks_of_all_versions(tmp_path: Path) -> None:
    """Each version gets a line with 'ok' or the failed check, also of a check that runs the network; one failure is exit code
    1. Versions can be chosen.
    """
    write_echo_bundle(tmp_path, 1)
    write_bundle(tmp_path, manifest(2), echo_graph(), replace(echo_golden(), ood_score=echo_golden().ood_score + 5))
    (write_echo_bundle(tmp_path, 3) / "model.onnx").write_bytes(b"damaged")
    result = run(tmp_path, "verify")
    one, two, three = (" ".join(line.split()) for line in result.stdout.splitlines())
    assert result.exit_code == ExitCode.NEGATIVE
    assert one == "digits/1 ok"
    assert two.startswith("digits/2 check 'golden' failed")
    assert three.startswith("digits/3 check 'sha256' failed")

    chosen = run(tmp_path, "verify", "digits/1", "--json")
    assert (chosen.exit_code, json.loads(chosen.stdout)["problem"]) == (ExitCode.OK, None)
    missing = run(tmp_path, "verify", "digits/9")
    assert (missing.exit_code, "no version 9; available: 1, 2, 3" in missing.stdout) == (ExitCode.NEGATIVE, True)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        ("import os; os.abort()", "ended: SIGABRT"),
        ("import os; os._exit(3)", "ended: exit code 3"),
        ("import threading; threading.Event().wait()", "did not run within"),
    ],
)
def test_a_network_that_ends_its_process_or_never_ends_fails_verification(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, expected: str
) -> None:
    """The network runs in a child process. If the process ends or takes too long, this is reported as the problem of the version."""
    folder = write_echo_bundle(tmp_path / "models")
    # Instead of a network that exploits onnxruntime: onnxruntime itself ends the process, or never returns.
    (tmp_path / "onnxruntime.py").write_text(fault)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with pytest.raises(StartupError, match=expected):
        verify(folder, timeout_s=2.0 if "within" in expected else 60.0)


HARMLESS = {
    "training is a list": ["precision"],
    "precision is an object": {"precision": {}},
    "precision controls the terminal": {"precision": "\x1b[2J\n"},
}
"""Contents of ``training`` in a manifest. The format of bundles does not define it, so they are no fault."""


def damage(name: str, folder: Path) -> None:
    """Change a bundle, or something beside it, as an attacker or a failing disk could."""
    manifest_file, model = folder / "manifest.json", folder / "model.onnx"
    match name:
        case "manifest is deeply nested":
            manifest_file.write_text("[" * 100_000)
        case "model is a pipe":
            model.unlink()
            os.mkfifo(model)
        case "folder is empty":
            shutil.rmtree(folder)
            folder.mkdir()
        case "active file is a folder":
            (folder.parent / "active").mkdir()
        case "active file is not a version":
            (folder.parent / "active").write_text("\x1b[2J")
        case "active version is missing":
            (folder.parent / "active").write_text("9")
        case "name is not UTF-8":
            folder.parent.rename(os.fsdecode(bytes(folder.parent.parent) + b"/\xff\n"))
        case _:
            described = json.loads(manifest_file.read_text())
            manifest_file.write_text(json.dumps(described | {"training": HARMLESS[name]}))


@pytest.mark.parametrize(
    "name",
    [
        *sorted(HARMLESS),
        "manifest is deeply nested",
        "model is a pipe",
        "folder is empty",
        "active file is a folder",
        "active file is not a version",
        "active version is missing",
        "name is not UTF-8",
    ],
)
def test_hostile_bundles_are_lines_of_text(tmp_path: Path, name: str) -> None:
    """Whatever a folder contains, list and verify print lines of printable characters, and verify exits with 1 unless the
    fault is only in what is shown; the other versions are listed too.
    """
    damage(name, write_echo_bundle(tmp_path, 1))
    write_echo_bundle(tmp_path, 1, name="letters")
    for command, expected in (
        ("list", ExitCode.OK),
        ("verify", ExitCode.OK if name in HARMLESS else ExitCode.NEGATIVE),
    ):
        result = run(tmp_path, command)
        assert isinstance(result.exception, SystemExit | None)
        assert result.exit_code == expected
        assert all(line.isprintable() for line in result.stdout.splitlines())
        assert any("letters/1" in line and "failed" not in line for line in result.stdout.splitlines())
        assert len([json.loads(line) for line in run(tmp_path, command, "--json").stdout.splitlines()]) >= 2


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_folder_that_is_one_bundle(tmp_path: Path, command: str) -> None:
    """A single bundle is listed and verified with the name and version of its manifest, as ``serve`` does; its line has its problem."""
    folder = write_echo_bundle(tmp_path, 3)
    result = run(folder, command, "--json")
    described = json.loads(result.stdout)
    assert result.exit_code == ExitCode.OK
    assert [described[key] for key in ("name", "version", "active", "problem")] == ["digits", 3, True, None]
    (folder / "model.onnx").write_bytes(b"damaged")
    damaged = run(folder, command)
    assert damaged.exit_code == (ExitCode.NEGATIVE if command == "verify" else ExitCode.OK)
    assert "check 'sha256' failed" in damaged.stdout


@pytest.mark.parametrize("command", ["list", "verify"])
@pytest.mark.parametrize("kind", ["missing", "empty", "file"])
def test_a_folder_without_models(tmp_path: Path, command: str, kind: str) -> None:
    """The message says where the command looked and how to get a model, and the exit code is 1."""
    folder = tmp_path / "models"
    if kind == "empty":
        folder.mkdir()
    if kind == "file":
        folder.write_text("")
    result = run(folder, command)
    assert result.exit_code == ExitCode.NEGATIVE
    assert f"no model in {folder}" in result.stderr
    assert ("no such folder" in result.stderr) == (kind != "empty")
    assert "digitserve-train export" in result.stderr

"""A folder of models that is one bundle itself, and the name of the model for clients."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from digitserve.cli import main
from digitserve.errors import BundleError, StartupError
from digitserve.inference import bundle, model_folder
from digitserve.inference.selection import Int8Speed, Selection
from digitserve.settings import Settings
from support.bundles import write_echo_bundle


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a valid bundle."""
    return write_echo_bundle(tmp_path)


def failed_check(path: Path) -> tuple[str, str]:
    """Return the check that fails when the bundle is read, and the error's text."""
    with pytest.raises(BundleError) as caught:
        bundle.read_bundle(path)
    return caught.value.check, str(caught.value)


def copied(path: Path, folder: Path, **changes: object) -> Path:
    """Copy a bundle to a folder of any name, as tools for deployments do, and change its manifest."""
    shutil.copytree(path, folder)
    described = json.loads((folder / "manifest.json").read_text()) | changes
    (folder / "manifest.json").write_text(json.dumps(described))
    return folder


def selection(**settings: Any) -> Selection:
    """Return the selection of a service with these settings."""
    return Selection(Settings(**settings), Int8Speed(is_fast=True, reason="VNNI"))


def test_the_folder_of_the_models_may_be_one_bundle(path: Path, tmp_path: Path) -> None:
    """KServe copies a bundle to /mnt/models: its name and version come from the manifest, whatever --model is."""
    folder = copied(path, tmp_path / "mnt" / "models")
    found = model_folder.find_bundle(folder, "letters")
    assert found == folder
    manifest = bundle.read_bundle(found).manifest
    assert (manifest.name, manifest.version) == ("digits", 1)
    served = selection(models=folder, model="letters").served()
    assert served.manifest == manifest


def test_one_bundle_has_no_versions_to_select(path: Path, tmp_path: Path) -> None:
    """A version that is selected in any way is refused, because the folder cannot have another one."""
    folder = copied(path, tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"got version 2 .* one bundle itself, without other versions"):
        selection(models=folder, model_version=2).served()
    (tmp_path / "active").write_text("1")
    with pytest.raises(BundleError, match=r"got version 1 .* one bundle itself"):
        selection(models=folder, active_file=tmp_path / "active").served()
    with pytest.raises(StartupError, match=r"--shadow: .* one bundle itself"):
        selection(models=folder, shadow="3").shadow()


def run(folder: Path, *arguments: str) -> Result:
    """Run ``digitserve models``."""
    return CliRunner().invoke(main, ["models", *arguments, "--models", str(folder)])


def test_one_bundle_is_listed_and_verified(path: Path, tmp_path: Path) -> None:
    """``digitserve models`` shows the only version, which is served, or its problem; activating a version is refused."""
    folder = copied(path, tmp_path / "bundle")
    assert " * digits/1 " in run(folder, "list").stdout
    assert run(folder, "verify").stdout.split() == ["digits/1", "ok"]
    for arguments in (("activate", "digits/1"), ("verify", "digits/1")):
        refused = run(folder, *arguments)
        assert refused.exit_code == 1 and "one bundle itself" in refused.output
    (folder / "model.onnx").write_bytes(b"damaged")
    assert "check 'sha256' failed" in run(folder, "list").stdout
    assert run(folder, "verify").exit_code == 1


@pytest.mark.parametrize("name", ["", " ", "a/b", "a\nb", "x" * 257, 5, None])
def test_the_name_in_a_manifest_is_checked(path: Path, tmp_path: Path, name: object) -> None:
    """If the folder does not state the name, the name in the manifest must be valid: it is part of answers and metrics."""
    check, message = failed_check(copied(path, tmp_path / "bundle", name=name))
    assert check == "manifest" and "expected 1 to 256 printable characters" in message


def test_the_version_in_a_manifest_is_checked(path: Path, tmp_path: Path) -> None:
    """If the folder does not state the version, the version in the manifest must be valid."""
    for version in (0, -1, 1.0, True, "1", 10**9):
        check, message = failed_check(copied(path, tmp_path / f"bundle-{version!r}", version=version))
        assert check == "manifest" and "expected a positive integer" in message


def test_a_folder_without_permission_is_no_bundle(tmp_path: Path) -> None:
    """``is_bundle`` never raises: a folder that is missing, wrong or has an impossible name is not a bundle."""
    assert not model_folder.is_bundle(tmp_path / "missing")
    (tmp_path / "manifest.json").mkdir()
    assert not model_folder.is_bundle(tmp_path)
    assert not model_folder.is_bundle(Path("a" * 5000))


def test_clients_may_see_another_name(path: Path) -> None:
    """The served name replaces only the name of the model."""
    read = bundle.read_bundle(path)
    assert read.served_as(None) is read
    assert read.served_as("mine").manifest == replace(read.manifest, name="mine")

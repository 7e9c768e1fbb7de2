"""The active file: reading any kind of file gives a version or an error, without blocking."""

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digitserve.errors import BundleError
from digitserve.inference.active_file import active_path, read_active, signature, write_active
from digitserve.inference.selection import Int8Speed, Selection
from digitserve.settings import Settings
from support.bundles import write_echo_bundle


def test_a_written_version_is_read(tmp_path: Path) -> None:
    """The file is replaced: readers of the old one still have it, its mode lets the service read it, and no other file is left."""
    path = tmp_path / "active"
    write_active(path, 3)
    with path.open() as old:
        write_active(path, 12)
        assert old.read() == "3\n"
    assert read_active(path) == 12
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_file_there_is_no_version(tmp_path: Path) -> None:
    """Neither a missing file nor a missing folder is an error."""
    assert read_active(tmp_path / "active") is None
    assert read_active(tmp_path / "none" / "active") is None
    assert signature(tmp_path / "active") == ()


@pytest.mark.parametrize("content", [b"4", b"4\n", b" 4 \r\n"])
def test_space_around_a_version_is_ignored(tmp_path: Path, content: bytes) -> None:
    """Editors and ConfigMaps end files differently."""
    (tmp_path / "active").write_bytes(content)
    assert read_active(tmp_path / "active") == 4


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"0", b"-1", b"04", b"1.5", b"../4", b"digits/4", b"4 5", b"\xd9\xa4", b"4\0", b"9" * 10, b"4" + b" " * 100],
)  # fmt: skip
def test_other_contents_are_refused(tmp_path: Path, content: bytes) -> None:
    """Only a version is accepted; the message is one short line that says what is expected."""
    (tmp_path / "active").write_bytes(content)
    with pytest.raises(BundleError, match="expected a version such as 3") as refused:
        read_active(tmp_path / "active")
    assert "\n" not in str(refused.value)


@given(content=st.binary(max_size=100))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_version_or_an_error(tmp_path: Path, content: bytes) -> None:
    """Random bytes cause no other exception."""
    (tmp_path / "active").write_bytes(content)
    with contextlib.suppress(BundleError):
        assert str(read_active(tmp_path / "active")) == content.decode().strip()


def test_special_files_are_refused_at_once(tmp_path: Path) -> None:
    """A FIFO without a writer, an endless device, a folder, a huge sparse file and a loop of links neither block nor fill the memory."""
    path = tmp_path / "active"
    for make, message in (
        (lambda: os.mkfifo(path), "not a regular file"),
        (lambda: path.symlink_to("/dev/zero"), "not a regular file"),
        (path.mkdir, "cannot be read: Is a directory"),
        (lambda: path.symlink_to(path), "cannot be read"),
        (lambda: (path.touch(), os.truncate(path, 1 << 40)), "expected a version"),
    ):
        make()
        with pytest.raises(BundleError, match=message):
            read_active(path)
        path.rmdir() if path.is_dir() else path.unlink()


def test_an_unwritable_folder_is_an_error(tmp_path: Path) -> None:
    """The message names the file and the reason."""
    with pytest.raises(BundleError, match=r"none/active cannot be written: No such file or directory"):
        write_active(tmp_path / "none" / "active", 1)


def test_every_replacement_changes_the_signature(tmp_path: Path) -> None:
    """Writing the same version again, and replacing a link as Kubernetes does for a ConfigMap, are changes; reading is none."""
    path = tmp_path / "active"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "active").write_text("1\n")
    write_active(path, 1)
    first = signature(path)
    assert (read_active(path), signature(path)) == (1, first)
    write_active(path, 1)
    assert signature(path) != first

    (tmp_path / "current").symlink_to("one")
    path.unlink()
    path.symlink_to("current/active")
    linked = signature(path)
    (tmp_path / "next").symlink_to("two")
    (tmp_path / "next").rename(tmp_path / "current")
    assert signature(path) != linked


def served(settings: Settings) -> str:
    """Return name and version of the bundle that a service serves at first."""
    return str(Selection(settings, Int8Speed(is_fast=True, reason="")).served())


def test_the_choice_of_the_served_version(tmp_path: Path) -> None:
    """``model_version`` precedes the active file, which precedes the highest version; a missing active version is an error."""
    for version in (1, 2, 3):
        write_echo_bundle(tmp_path, version)
    assert served(Settings(models=tmp_path)) == "digits/3"
    write_active(active_path(tmp_path, "digits"), 2)
    assert served(Settings(models=tmp_path)) == "digits/2"
    assert served(Settings(models=tmp_path, model_version=1)) == "digits/1"
    elsewhere = tmp_path / "elsewhere"
    write_active(elsewhere, 1)
    assert served(Settings(models=tmp_path, active_file=elsewhere)) == "digits/1"
    write_active(elsewhere, 9)
    with pytest.raises(BundleError, match="has no version 9; available: 1, 2, 3"):
        served(Settings(models=tmp_path, active_file=elsewhere))

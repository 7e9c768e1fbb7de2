"""Files of a bundle: only regular files of limited size are read, and their contents reach workers unchanged."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from digitserve.errors import BundleError
from digitserve.inference import bundle_files
from digitserve.inference.bundle import parse_bundle
from digitserve.inference.bundle_files import BundleFiles
from support.bundles import echo_graph, write_echo_bundle

NAMES = ("manifest.json", "model.onnx", "golden.npz")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Write a valid bundle."""
    return write_echo_bundle(tmp_path)


def bind(path: Path) -> None:
    """Create a socket."""
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(os.fspath(path))


REPLACEMENTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "FIFO": (os.mkfifo, "is not a regular file"),
    "socket": (bind, "cannot be read"),
    "folder": (Path.mkdir, "cannot be read|is not a regular file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "it is a symbolic link; copy the file"),
    "loop": (lambda path: path.symlink_to(path), "it is a symbolic link; copy the file"),
    "link": (lambda path: path.symlink_to(path.with_name("original")), "it is a symbolic link; copy the file"),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_anything_but_a_regular_file_is_refused(path: Path, name: str, kind: str) -> None:
    """Reading does not wait for the writer of a FIFO, and follows no link."""
    create, message = REPLACEMENTS[kind]
    (path / name).rename(path / "original")
    create(path / name)
    with pytest.raises(BundleError, match=message) as caught:
        BundleFiles.read(path)
    assert caught.value.check == "files"
    assert name in str(caught.value)


def test_a_device_is_refused() -> None:
    """/dev/zero is opened, but not read."""
    with pytest.raises(BundleError, match="zero in /dev is not a regular file"):
        bundle_files._read_file(Path("/dev"), "zero")


@pytest.fixture
def while_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return a function that makes something happen once, between opening a file and reading it."""

    def arrange(happen: Callable[[], object]) -> None:
        fstat, events = os.fstat, [happen]

        def fstat_then_happen(fd: int) -> os.stat_result:
            status = fstat(fd)
            while events:
                events.pop()()
            return status

        monkeypatch.setattr(bundle_files.os, "fstat", fstat_then_happen)

    return arrange


@pytest.mark.parametrize("kind", REPLACEMENTS)
def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(
    path: Path, while_reading: Callable[[Callable[[], object]], None], kind: str
) -> None:
    """The bytes are those of the file that was opened and checked."""
    create, _ = REPLACEMENTS[kind]
    expected = BundleFiles.read(path)

    def replace() -> None:
        (path / "manifest.json").rename(path / "original")
        create(path / "manifest.json")

    while_reading(replace)
    assert BundleFiles.read(path) == expected


def test_a_file_that_grows_while_it_is_read_is_refused(
    path: Path, while_reading: Callable[[Callable[[], object]], None]
) -> None:
    """At most one byte over the limit is read."""
    while_reading(lambda: os.truncate(path / "manifest.json", 1 << 40))
    with pytest.raises(BundleError, match="manifest.json in .* is too large"):
        BundleFiles.read(path)


def test_files_of_two_versions_are_refused(path: Path, while_reading: Callable[[Callable[[], object]], None]) -> None:
    """A folder that is replaced while it is read gives a manifest and a graph that do not agree."""
    while_reading(lambda: (path / "model.onnx").write_bytes(echo_graph(7)))
    with pytest.raises(BundleError, match="check 'sha256' failed"):
        parse_bundle(BundleFiles.read(path))


@pytest.mark.parametrize("name", NAMES)
def test_a_huge_file_is_refused_without_reading_it(path: Path, name: str) -> None:
    """A sparse file of a terabyte costs no memory; the error states the limit."""
    with (path / name).open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(BundleError, match=f"{name} in .* is too large; expected at most [0-9,]+ bytes"):
        BundleFiles.read(path)


def test_a_file_of_the_largest_size_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit itself is allowed."""
    size = (path / "model.onnx").stat().st_size
    monkeypatch.setitem(bundle_files.MAX_BYTES, "model.onnx", size)
    assert len(BundleFiles.read(path).graph) == size
    monkeypatch.setitem(bundle_files.MAX_BYTES, "model.onnx", size - 1)
    with pytest.raises(BundleError, match="too large"):
        BundleFiles.read(path)


def test_sealed_files_are_what_was_read(path: Path) -> None:
    """Also when the folder has changed, and however often they are unsealed."""
    files = BundleFiles.read(path)
    fd = files.seal()
    try:
        for name in NAMES:
            (path / name).write_bytes(b"changed")
        assert BundleFiles.unseal(fd) == BundleFiles.unseal(fd) == files
    finally:
        os.close(fd)


def test_sealed_files_cannot_be_changed(path: Path) -> None:
    """Neither written, nor shortened, nor extended, by any process that has the descriptor."""
    fd = BundleFiles.read(path).seal()
    try:
        for change in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 1), lambda: os.ftruncate(fd, 1 << 24)):
            with pytest.raises(PermissionError):
                change()
    finally:
        os.close(fd)

"""Values that are read from files again when these change."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.errors import SettingsError
from digitserve.file_watch import FileWatch, WatchedValue
from support.log_lines import capture_logs
from support.serving import wait_until


class Files:
    """Two files whose value is their joined content; valid if it has the same text twice."""

    def __init__(self, folder: Path, *, logs: bool = True) -> None:
        self.paths = [folder / "first", folder / "second"]
        self.write("a", "a")
        self.reloaded = WatchedValue("things", self.paths, self.read, logs=logs)

    def write(self, *contents: str) -> None:
        for path, content in zip(self.paths, contents, strict=True):
            path.write_text(content)

    def read(self) -> str:
        try:
            first, second = [path.read_text() for path in self.paths]
        except OSError as error:
            raise SettingsError("cannot be read") from error
        if first != second:
            raise SettingsError("are different")
        return first


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_new_content_is_used_at_the_next_check(files: Files) -> None:
    """A valid change replaces the value at the next check; without a change the value stays the same object."""
    value = files.reloaded.value
    files.reloaded.check()
    assert files.reloaded.value is value
    files.write("b", "b")
    files.reloaded.check()
    assert files.reloaded.value == "b"


def test_invalid_files_are_reported_once_per_change(files: Files) -> None:
    """The old value stays in use. A change to invalid content is counted and logged once; the old content is valid again."""
    with capture_logs() as lines:
        for number, contents in enumerate([("b", "c"), ("b", "d")], 1):
            files.write(*contents)
            for _ in range(5):
                files.reloaded.check()
            assert (files.reloaded.value, files.reloaded.num_failures) == ("a", number)
    assert [line["event"] for line in lines] == ["new files are invalid, the old ones stay in use"] * 2
    files.paths[0].unlink()
    for _ in range(5):
        files.reloaded.check()
    assert (files.reloaded.value, files.reloaded.num_failures) == ("a", 3)
    files.write("a", "a")
    files.reloaded.check()
    assert (files.reloaded.value, files.reloaded.num_failures) == ("a", 3)


def test_half_written_files_are_not_reported(files: Files) -> None:
    """If the files become valid before the next check, they are used, and no failure is counted."""
    files.write("b", "a")
    files.reloaded.check()
    files.write("b", "b")
    files.reloaded.check()
    assert (files.reloaded.value, files.reloaded.num_failures) == ("b", 0)


def test_symbolic_links_are_followed(tmp_path: Path) -> None:
    """A folder that is a link may be replaced as a whole, as Kubernetes does."""
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    link = tmp_path / "link"
    link.symlink_to("old")
    reloaded = WatchedValue("things", [link / "file"], (link / "file").read_text)
    (tmp_path / "next").symlink_to("new")
    (tmp_path / "next").rename(link)
    reloaded.check()
    assert reloaded.value == "new"


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), max_size=12))
def test_the_value_is_always_the_newest_valid_one(history: list[tuple[str, str]]) -> None:
    """Whatever the history of the files, the value is that of the newest valid content that a check has seen."""
    with tempfile.TemporaryDirectory() as folder:
        files, expected = Files(Path(folder), logs=False), "a"
        for contents in history:
            files.write(*contents)
            files.reloaded.check()
            if contents[0] == contents[1]:
                expected = contents[0]
            assert files.reloaded.value == expected


def test_a_fault_does_not_end_the_thread(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an exception of any kind the thread checks the files again."""
    monkeypatch.setattr("digitserve.file_watch.INTERVAL_S", 0.001)
    faults = [RuntimeError("fault")]
    read = files.read

    def fail_once() -> str:
        if faults:
            raise faults.pop()
        return read()

    monkeypatch.setattr(files.reloaded, "_read", fail_once)
    files.write("b", "b")
    watch = FileWatch([files.reloaded, None])
    with capture_logs() as lines:
        watch.start()
        wait_until(lambda: files.reloaded.value == "b", "the files are read")
        watch.stop()
    assert "files could not be checked" in [line["event"] for line in lines]

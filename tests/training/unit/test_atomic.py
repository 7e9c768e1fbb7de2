"""Atomic file writing: a file has its old or its new content, and no temporary file is left."""

from pathlib import Path

import pytest

from digitserve_training.atomic import replace_file


def test_content_is_replaced(tmp_path: Path) -> None:
    """After the block the file has the new content, and the folder has no other file."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    with replace_file(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"

    assert path.read_bytes() == b"new"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_exception_keeps_the_old_content(tmp_path: Path, error: type[BaseException]) -> None:
    """If the block raises, the file is unchanged, the temporary file is deleted, and the exception is passed on."""
    path = tmp_path / "file"
    path.write_bytes(b"old")

    with pytest.raises(error), replace_file(path) as file:  # noqa: PT012 - the block must write before it raises
        file.write(b"new")
        raise error

    assert path.read_bytes() == b"old"
    assert [*tmp_path.iterdir()] == [path]

"""UniPen archives are read as published, and split by writer."""

import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve_training.data import pen_split, unipen
from digitserve_training.errors import DataError

PEN = """.VERSION 1.0
.COORD X Y T
.WRITER_ID {writer}
.PEN_DOWN
 10 20 0
 11 30 1
.PEN_UP
 99 99 9
.PEN_DOWN
 5 5 2
.DT 10
.PEN_DOWN
 1 2 0
 3 4 1
 5 6 2
"""


def archive(folder: Path, segments: dict[str, str], writer: str = "ann") -> Path:
    """Write a folder of segment files, each with an included file of three components."""
    for place, text in segments.items():
        category, source, name = place.split("/")
        included = f"{source}/data/{category}-{name}"
        target = folder / "unipen" / "data" / category / source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f".INCLUDE {source}/missing.doc\n.INCLUDE {included}\n{text}")
        pen = folder / "unipen" / "include" / included
        pen.parent.mkdir(parents=True, exist_ok=True)
        pen.write_text(PEN.format(writer=writer))
    return folder


def pack(folder: Path, path: Path) -> Path:
    """Pack a folder as the published archive is packed."""
    with tarfile.open(path, "w:xz") as packed:
        packed.add(folder / "unipen", "unipen")
    return path


def positions(strokes: tuple[unipen.Stroke, ...]) -> list[list[list[float]]]:
    return [stroke.tolist() for stroke in strokes]


def test_segments_name_components(tmp_path: Path) -> None:
    """A segment's numbers count the pen-down components of the included file from 0; y points down afterwards."""
    folder = archive(tmp_path, {"1a/abc/x.dat": '.SEGMENT CHARACTER 0 ? "7"\n.SEGMENT CHARACTER 1-2 OK "4"\n'})

    seven, four = unipen.read(folder)

    assert (seven.label, seven.writer, seven.file) == ("7", "abc/ann", "abc/x.dat")
    assert positions(seven.strokes) == [[[10, -20], [11, -30]]]
    assert positions(four.strokes) == [[[5, -5]], [[1, -2], [3, -4], [5, -6]]]


@pytest.mark.parametrize(
    ("delineation", "expected"),
    [
        ("2:1-2:2", [[[3, -4], [5, -6]]]),
        ("0:1-2:0", [[[11, -30]], [[5, -5]], [[1, -2]]]),
        ("0,2", [[[10, -20], [11, -30]], [[1, -2], [3, -4], [5, -6]]]),
    ],
)
def test_parts_of_components(tmp_path: Path, delineation: str, expected: list[list[list[float]]]) -> None:
    """A segment may begin and end within a component, and may list components."""
    folder = archive(tmp_path, {"1a/abc/x.dat": f'.SEGMENT CHARACTER {delineation} ? "1"\n'})

    assert positions(unipen.read(folder)[0].strokes) == expected


@pytest.mark.parametrize("delineation", ["3", "2-3", "2-1", "x", "1-"])
def test_segments_without_components_are_left_out(tmp_path: Path, delineation: str) -> None:
    """A segment that names what its file does not have is left out; the others of the file stay."""
    folder = archive(
        tmp_path, {"1a/abc/x.dat": f'.SEGMENT CHARACTER {delineation} ? "1"\n.SEGMENT CHARACTER 0 ? "2"\n'}
    )

    assert [character.label for character in unipen.read(folder)] == ["2"]


def test_archive_and_folder_are_equal(tmp_path: Path) -> None:
    """The archive as published and the folder that it unpacks into give the same characters in the same order."""
    segments = {f"1a/abc/{name}.dat": '.SEGMENT CHARACTER 0-2 ? "8"\n' for name in "cab"}
    folder = archive(tmp_path / "folder", segments)

    packed = unipen.read(pack(folder, tmp_path / "unipen.tar.xz"))

    assert [one.file for one in packed] == ["abc/a.dat", "abc/b.dat", "abc/c.dat"]
    assert [positions(one.strokes) for one in packed] == [positions(one.strokes) for one in unipen.read(folder)]


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\xfd7zXZ\x00 damaged"])
def test_damaged_archives_are_refused(tmp_path: Path, content: bytes) -> None:
    """A file that is no archive is an error that names it, not a traceback."""
    path = tmp_path / "strokes.tar.xz"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"strokes\.tar\.xz"):
        unipen.read(path)


def test_missing_files_and_categories_are_refused(tmp_path: Path) -> None:
    """A path that does not exist, and one without digits, are errors that say so."""
    with pytest.raises(DataError, match="nothing"):
        unipen.read(tmp_path / "nothing")
    folder = archive(tmp_path, {"1b/abc/x.dat": '.SEGMENT CHARACTER 0 ? "A"\n'})
    with pytest.raises(DataError, match="no UniPen characters under data/1a/"):
        unipen.read(folder)


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    """Whatever a file holds, reading it gives characters with at least one pen position each, or none."""
    files = {"data/1a/abc/x.dat": f".INCLUDE abc/y.dat\n{text}", "include/abc/y.dat": f".PEN_DOWN\n1 1\n{text}"}
    read = list(unipen.characters(files, "1a"))
    assert all(len(stroke) for character in read for stroke in character.strokes)


def test_writers_are_split(tmp_path: Path) -> None:
    """Each writer's digits are all trained on or all held out, the same ones every time, about an eighth of the writers."""
    for number in range(40):
        archive(tmp_path, {f"1a/abc/{number}.dat": '.SEGMENT CHARACTER 0 ? "3"\n'}, writer=f"w{number}")
    archive(tmp_path, {"1c/abc/letters.dat": '.SEGMENT CHARACTER 0 ? "k"\n.SEGMENT CHARACTER 0 ? "l"\n'}, writer="zoe")
    for category in ("1b", "1d"):
        archive(tmp_path, {f"{category}/abc/x.dat": '.SEGMENT CHARACTER 0 ? "%"\n'}, writer="zoe")

    split = pen_split.read(tmp_path)

    training, validation = ({one.writer for one in part} for part in (split.training, split.validation))
    assert not training & validation
    assert (len(training), len(validation)) == (35, 5)
    assert [one.label for one in split.non_digits] == ["%", "k", "%"]
    assert pen_split.read(tmp_path).fingerprint == split.fingerprint

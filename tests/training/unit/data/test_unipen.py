"""UniPen archives: read in the published format, and split by writer."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve_training.data import pen_split, unipen
from digitserve_training.data.unipen import DIGITS, LETTERS_AND_SYMBOLS
from digitserve_training.errors import DataError
from support.pen_archive import pack, write_archive

# Read when the file is imported: a fixture unsets the variable while tests run.
REAL_ARCHIVE = os.environ.get(pen_split.ENVIRONMENT)

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


def write_folder(folder: Path, segments: dict[str, str], writer: str = "ann", pen: str = PEN) -> Path:
    """Write a folder of segment files, each with an included file of three components."""
    for place, text in segments.items():
        category, source, name = place.split("/")
        included = f"{source}/data/{category}-{name}"
        target = folder / "unipen" / "data" / category / source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(f".INCLUDE {source}/missing.doc\n.INCLUDE {included}\n{text}")
        path = folder / "unipen" / "include" / included
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(pen.format(writer=writer))
    return folder


def read_digits(path: Path) -> list[unipen.PenCharacter]:
    return unipen.read(path)[DIGITS]


def positions(strokes: tuple[unipen.Stroke, ...]) -> list[list[list[float]]]:
    return [stroke.tolist() for stroke in strokes]


def test_segments_name_components(tmp_path: Path) -> None:
    """A segment's numbers count the pen-down components of the included file from 0. In the result, y points down."""
    folder = write_folder(tmp_path, {"1a/abc/x.dat": '.SEGMENT CHARACTER 0 ? "7"\n.SEGMENT CHARACTER 1-2 OK "4"\n'})

    seven, four = read_digits(folder)

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
    folder = write_folder(tmp_path, {"1a/abc/x.dat": f'.SEGMENT CHARACTER {delineation} ? "1"\n'})

    assert positions(read_digits(folder)[0].strokes) == expected


@pytest.mark.parametrize("delineation", ["3", "2-3", "2-1", "x", "1-"])
def test_segments_without_components_are_omitted(tmp_path: Path, delineation: str) -> None:
    """A segment that names missing components is omitted; other segments of the file are read."""
    folder = write_folder(
        tmp_path, {"1a/abc/x.dat": f'.SEGMENT CHARACTER {delineation} ? "1"\n.SEGMENT CHARACTER 0 ? "2"\n'}
    )

    assert [character.label for character in read_digits(folder)] == ["2"]


@pytest.mark.parametrize("coordinates", ["nan 5", "5 inf", "1e30 5", "5", "x y"])
def test_damaged_components_are_omitted(tmp_path: Path, coordinates: str) -> None:
    """A segment whose only component has a coordinate that is missing, not finite or absurdly large is omitted."""
    text = '.SEGMENT CHARACTER 0 ? "1"\n.SEGMENT CHARACTER 1 ? "2"\n'
    folder = write_folder(tmp_path, {"1a/abc/x.dat": text}, pen=PEN.replace("11 30 1", coordinates))

    assert [character.label for character in read_digits(folder)] == ["2"]


def test_archive_and_folder_are_equal(tmp_path: Path) -> None:
    """The archive as published and its unpacked folder give the same characters in the same order."""
    segments = {f"1a/abc/{name}.dat": '.SEGMENT CHARACTER 0-2 ? "8"\n' for name in "cab"}
    folder = write_folder(tmp_path / "folder", segments)

    packed = read_digits(pack(folder, tmp_path / "unipen.tar.xz"))

    assert [one.file for one in packed] == ["abc/a.dat", "abc/b.dat", "abc/c.dat"]
    assert [positions(one.strokes) for one in packed] == [positions(one.strokes) for one in read_digits(folder)]


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\xfd7zXZ\x00 damaged"])
def test_damaged_archives_are_rejected(tmp_path: Path, content: bytes) -> None:
    """A file that is not an archive raises ``DataError`` with its name."""
    path = tmp_path / "strokes.tar.xz"
    path.write_bytes(content)

    with pytest.raises(DataError, match=r"strokes\.tar\.xz"):
        unipen.read(path)


def test_truncated_archives_are_rejected(tmp_path: Path) -> None:
    """An archive whose end is missing raises ``DataError``."""
    path = write_archive(tmp_path / "strokes.tar.xz")
    path.write_bytes(path.read_bytes()[:-500])

    with pytest.raises(DataError, match=r"strokes\.tar\.xz cannot be read"):
        unipen.read(path)


def test_missing_files_and_categories_are_rejected(tmp_path: Path) -> None:
    """A missing path, and an archive without digits, raise errors that say so and name the source of the data."""
    with pytest.raises(DataError, match="nothing"):
        unipen.read(tmp_path / "nothing")
    folder = write_folder(tmp_path, {"1b/abc/x.dat": '.SEGMENT CHARACTER 0 ? "A"\n'})
    with pytest.raises(DataError, match="no UniPen characters under data/1a/; expected .*10.5281/zenodo.1195803"):
        unipen.read(folder)


@given(st.text(max_size=200))
def test_any_text_is_read(text: str) -> None:
    """Any file gives characters with at least one stroke, each with at least one finite position; or none."""
    files = {"data/1a/abc/x.dat": f".INCLUDE abc/y.dat\n{text}", "include/abc/y.dat": f".PEN_DOWN\n1 1\n{text}"}
    for character in unipen.characters(files, DIGITS):
        assert character.strokes
        assert all(len(stroke) and np.isfinite(stroke).all() for stroke in character.strokes)


def test_writers_are_split(tmp_path: Path) -> None:
    """All digits of a writer are in the same part, the same one every time; an eighth of the writers is held out."""
    for number in range(40):
        write_folder(tmp_path, {f"1a/abc/{number}.dat": '.SEGMENT CHARACTER 0 ? "3"\n'}, writer=f"w{number}")
    write_folder(tmp_path, {"1c/abc/letters.dat": '.SEGMENT CHARACTER 0 ? "k"\n.SEGMENT CHARACTER 0 ? "l"\n'}, "zoe")
    for category in ("1b", "1d"):
        write_folder(tmp_path, {f"{category}/abc/x.dat": '.SEGMENT CHARACTER 0 ? "%"\n'}, writer="zoe")

    split = pen_split.read(tmp_path)

    training, validation = ({one.writer for one in part} for part in (split.training, split.validation))
    assert not training & validation
    assert (len(training), len(validation)) == (35, 5)
    assert [one.label for one in split.non_digits] == ["%", "k", "%"], "l is written like 1"
    assert {one.writer for one in pen_split.read(tmp_path).validation} == validation


def test_letters_of_held_out_writers_are_not_trained_on(tmp_path: Path) -> None:
    """No character of a held-out writer is in a part that is trained on."""
    split = pen_split.read(write_archive(tmp_path / "strokes.tar.xz"))

    held_out = {digit.writer for digit in split.validation}
    assert len(held_out) == 2
    assert not held_out & {character.writer for character in (*split.training, *split.non_digits)}


def test_misaligned_files_are_omitted(tmp_path: Path) -> None:
    """Files that are listed as misaligned, and letters of misaligned contributors, are not used."""
    listed = next(iter(sorted(pen_split.misaligned_files())))
    folder = tmp_path / "unipen" / "data" / "1a"
    archive = write_archive(tmp_path / "strokes.tar.xz")
    whole = pen_split.read(archive)
    unpacked = archive.with_name(f"{archive.name}.unpacked") / "unipen" / "data"

    (unpacked / "1a" / listed).parent.mkdir(parents=True)
    (unpacked / "1a" / "abc" / "3.dat").rename(unpacked / "1a" / listed)
    (unpacked / "1b" / "tos").mkdir()
    (unpacked / "1b" / "abc" / "3.dat").rename(unpacked / "1b" / "tos" / "3.dat")
    split = pen_split.read(unpacked.parents[1])

    assert not folder.exists()
    assert len(split.training) + len(split.validation) == len(whole.training) + len(whole.validation) - 10
    assert "tos" not in {character.writer.partition("/")[0] for character in split.non_digits}


def test_fingerprint_depends_on_every_position(tmp_path: Path) -> None:
    """Archives whose labels or pen positions differ have different fingerprints."""
    one, same, other = (
        pen_split.read(write_archive(tmp_path / f"{number}.tar.xz", seed=seed)) for number, seed in enumerate((1, 1, 2))
    )

    assert one.fingerprint == same.fingerprint
    assert one.fingerprint != other.fingerprint


def test_too_few_writers_are_rejected(tmp_path: Path) -> None:
    """An archive from whose writers none can be held out is rejected: its validation would be empty."""
    with pytest.raises(DataError, match="too few writers of digits"):
        pen_split.read(write_archive(tmp_path / "strokes.tar.xz", num_writers=7))


@pytest.mark.skipif(REAL_ARCHIVE is None, reason="DIGITSERVE_STROKES does not name the archive of UniPen")
def test_the_published_archive() -> None:
    """The published archive has about 15 300 aligned digits by 205 writers, and more than 50 000 non-digits."""
    assert REAL_ARCHIVE is not None
    split = pen_split.read(Path(REAL_ARCHIVE))

    writers, held_out = ({digit.writer for digit in part} for part in (split.training, split.validation))
    assert (len(split.training), len(split.validation)) == (14_034, 1_279)
    assert (len(writers), len(held_out)) == (180, 25)
    assert not writers & held_out
    assert not held_out & {character.writer for character in split.non_digits}
    assert {digit.label for digit in split.validation} == set("0123456789")
    assert len(split.non_digits) > 50_000
    assert not {character.label for character in split.non_digits} & (pen_split.AMBIGUOUS | pen_split.LABELS)
    assert set(LETTERS_AND_SYMBOLS) == {"1b", "1c", "1d"}

"""Folders of labelled image files: both layouts, what is skipped, and the errors that say what to correct."""

from pathlib import Path

import pytest

from digitserve_training.errors import DataError
from digitserve_training.evaluate.pictures.listing import Picture, list_pictures

LABELS = tuple("0123456789")


def touch(folder: Path, *names: str) -> None:
    """Create empty files; listing opens none of them."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_table(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    """Write labels.csv and return its folder."""
    (folder / "labels.csv").write_bytes(text.encode(encoding))
    return folder


def test_table(tmp_path: Path) -> None:
    """labels.csv gives files, labels and sets in its order; other columns are ignored, an empty label is no digit."""
    touch(tmp_path, "b/1.png", "a, 2.png", "ä.png", "not listed.png")
    write_table(tmp_path, 'writer,file,set,label\nx,b/1.png,scans, 7 \ny,"a, 2.png",,\nz,ä.png,scans,0\n')

    assert list_pictures(tmp_path, LABELS) == [
        Picture("b/1.png", "7", "scans"),
        Picture("a, 2.png", "", ""),
        Picture("ä.png", "0", "scans"),
    ]


def test_table_of_a_spreadsheet(tmp_path: Path) -> None:
    """A byte order mark and Windows line ends are accepted; the column set is optional."""
    touch(tmp_path, "1.png")

    assert list_pictures(write_table(tmp_path, "file,label\r\n1.png,3\r\n", "utf-8-sig"), LABELS) == [
        Picture("1.png", "3", "")
    ]


def test_sub_folders(tmp_path: Path) -> None:
    """Folders named after labels are classes; each other folder is a set of images that are no digit. Hidden files, strays
    of file managers and files next to the folders are skipped.
    """
    touch(tmp_path, "7/b.png", "7/a.jpg", "0/x.png", "letters/q.png", "readme.txt")
    touch(tmp_path, "7/Thumbs.db", "7/.DS_Store", "7/desktop.ini", ".git/config", "__MACOSX/7.png")

    assert list_pictures(tmp_path, LABELS) == [
        Picture("0/x.png", "0", ""),
        Picture("7/a.jpg", "7", ""),
        Picture("7/b.png", "7", ""),
        Picture("letters/q.png", "", "letters"),
    ]


def test_an_earlier_report_is_no_class(tmp_path: Path) -> None:
    """The default folder of a report may lie beside the classes: it is skipped."""
    touch(tmp_path, "7/1.png", "pictures/pictures.json", "pictures/mistakes-01.png")

    assert [picture.file for picture in list_pictures(tmp_path, LABELS)] == ["7/1.png"]


def test_selection_of_sets(tmp_path: Path) -> None:
    """Only the files of the named sets are listed."""
    touch(tmp_path, "1", "2", "3")
    write_table(tmp_path, "file,label,set\n1,1,a\n2,2,b\n3,3,c\n")

    assert [picture.file for picture in list_pictures(tmp_path, LABELS, ["c", "a"])] == ["1", "3"]


def missing_folder(folder: Path) -> None:
    folder.rmdir()


def neither_table_nor_folders(folder: Path) -> None:
    touch(folder, "1.png")


def empty_folders(folder: Path) -> None:
    (folder / "7").mkdir()


def nested(folder: Path) -> None:
    touch(folder, "train/7/1.png")


def no_columns(folder: Path) -> None:
    write_table(folder, "")


def other_columns(folder: Path) -> None:
    write_table(folder, "file;label\n1.png;1\n")


def no_rows(folder: Path) -> None:
    write_table(folder, "file,label\n")


def short_row(folder: Path) -> None:
    touch(folder, "1.png")
    write_table(folder, "file,label\n1.png,1\n1.png\n")


def no_file_name(folder: Path) -> None:
    write_table(folder, "file,label\n,1\n")


def unknown_label(folder: Path) -> None:
    touch(folder, "1.png")
    write_table(folder, "file,label\n1.png,seven\n")


def missing_files(folder: Path) -> None:
    write_table(folder, "file,label\n" + "".join(f"{number}.png,1\n" for number in range(7)))


def listed_twice(folder: Path) -> None:
    touch(folder, "1.png")
    write_table(folder, "file,label\n1.png,1\n1.png,1\n")


def other_encoding(folder: Path) -> None:
    write_table(folder, "file,label\nä.png,1\n", "latin-1")


@pytest.mark.parametrize(
    ("lay_out", "message"),
    [
        (missing_folder, "is not a folder; expected a folder with labels.csv or one sub-folder per class"),
        (
            neither_table_nor_folders,
            "has neither labels.csv nor sub-folders; expected a table with the columns file and",
        ),
        (empty_folders, "contains no image file; expected image files in its sub-folders"),
        (nested, "train/7 is a folder; expected only image files"),
        (no_columns, "labels.csv has the columns none; expected file and label"),
        (other_columns, "has the columns file;label; expected file and label, separated by commas"),
        (no_rows, "labels.csv lists no file"),
        (short_row, "line 3: got no label; expected a file and a label"),
        (no_file_name, "line 2: got no file; expected a file and a label"),
        (unknown_label, "line 2: the label is 'seven'; expected one of the model's labels, 0, 1, 2"),
        (missing_files, "lists 7 files that do not exist in .*: 0.png, 1.png, 2.png, 3.png, 4.png and 2 more; correct"),
        (listed_twice, "lists 1.png twice"),
        (other_encoding, "cannot be read: .*; expected comma-separated values in UTF-8"),
    ],
)
def test_unusable_folders(tmp_path: Path, lay_out, message: str) -> None:  # noqa: ANN001
    """A folder that cannot be used is rejected with what was found and what was expected."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    lay_out(folder)

    with pytest.raises(DataError, match=message):
        list_pictures(folder, LABELS)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("file,label,set\n1,1,a\n2,2,b\n", "has no set c, d; its sets are: a, b"),
        ("file,label\n1,1\n2,2\n", "its sets are: none, because labels.csv has no column set"),
    ],
)
def test_unknown_sets(tmp_path: Path, table: str, message: str) -> None:
    """A set that does not exist is an error, which names the sets that do."""
    touch(tmp_path, "1", "2")

    with pytest.raises(DataError, match=message):
        list_pictures(write_table(tmp_path, table), LABELS, ["d", "c"])

"""Labelled image files in a folder: which files there are, and what they show.

    DIR/labels.csv          columns file, label and optionally set; an empty label is an image that is not a single digit
    DIR/<class>/<file>      without labels.csv; a folder that is not named after a label holds images of something else

``report`` calls ``list_pictures``. No image is opened here. Does not import TensorFlow.
"""

import csv
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeVar

from digitserve_training.data.picture_folder import list_entries
from digitserve_training.errors import DataError

LABELS_NAME = "labels.csv"
FIGURES_NAME = "pictures.json"
"""File that marks the folder of a report: it may lie beside the classes, and is not one of them."""

MAX_NAMED = 5
"""Most files that an error message names."""


@dataclass(frozen=True)
class Picture:
    """One image file.

    Attributes:
        file: path relative to the folder, with forward slashes.
        label: what it shows; empty if it is not a single digit and should not be ACCEPTED.
        set: name of the set that it belongs to; empty if it belongs to none.
    """

    file: str
    label: str
    set: str


class Row(NamedTuple):
    """One line of a table of image files.

    Attributes:
        file: path relative to the folder of the table, with forward slashes.
        shown: what it shows.
        set: name of the set that it belongs to; empty if it belongs to none.
        where: the line, for messages.
    """

    file: str
    shown: str
    set: str
    where: str


Listed = TypeVar("Listed", Picture, Row)


def list_pictures(folder: Path, labels: Collection[str], sets: Collection[str] = ()) -> list[Picture]:
    """List the image files of a folder with their labels.

    Args:
        folder: laid out as described above.
        labels: names of the labels that the model knows.
        sets: names of the sets to list; all files if there are none.

    Returns:
        The files in the order of labels.csv, or sorted by class and name; at least one.

    Raises:
        DataError: the layout is different, a label is unknown, a file is missing, or nothing is found.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder; expected a folder with {LABELS_NAME} or one sub-folder per class")
    has_table = (folder / LABELS_NAME).is_file()
    found = _from_table(folder, labels) if has_table else [*_from_folders(folder, labels)]
    no_sets = f"{LABELS_NAME} has no column set" if has_table else "each sub-folder is named after a label"
    selected = select_sets(found, sets, folder, no_sets)
    if not selected:
        raise DataError(f"{folder} contains no image file; expected image files in its sub-folders")
    return selected


def select_sets(found: Sequence[Listed], sets: Collection[str], source: Path, no_sets: str) -> list[Listed]:
    """Select the files of some sets; all files if no set is named.

    Args:
        found: the files.
        sets: names of the sets.
        source: of the files, for the message.
        no_sets: why there may be no sets, for the message.

    Raises:
        DataError: no file is in one of the sets.
    """
    if unknown := sorted(set(sets) - {one.set for one in found}):
        names = sorted({one.set for one in found if one.set})
        raise DataError(
            f"{source} has no set {', '.join(unknown)}; its sets are: {', '.join(names) or 'none, because ' + no_sets}"
        )
    return [one for one in found if not sets or one.set in sets]


def _from_folders(folder: Path, labels: Collection[str]) -> Iterator[Picture]:
    classes = [entry for entry in list_entries(folder) if entry.is_dir() and not (entry / FIGURES_NAME).exists()]
    if not classes:
        raise DataError(
            f"{folder} has neither {LABELS_NAME} nor sub-folders; expected a table with the columns file and label, or "
            f"one sub-folder of images per label: {', '.join(labels)}"
        )
    for of_class in classes:
        for path in list_entries(of_class):
            if path.is_dir():
                raise DataError(
                    f"{path} is a folder; expected only image files in {of_class}: give the folder that holds the "
                    f"classes, or write {LABELS_NAME}"
                )
            file = f"{of_class.name}/{path.name}"
            # Other images form a set per folder: letters and empty pages are different questions.
            yield Picture(file, of_class.name, "") if of_class.name in labels else Picture(file, "", of_class.name)


def _from_table(folder: Path, labels: Collection[str]) -> list[Picture]:
    return [Picture(row.file, _check_label(row, labels), row.set) for row in read_table(folder / LABELS_NAME, "label")]


def read_table(path: Path, column: str) -> list[Row]:
    """Read a table of image files.

    Args:
        path: of a file with comma-separated values; files are relative to its folder.
        column: name of the column that says what a file shows.

    Raises:
        DataError: the layout is different, or a file is missing.
    """
    try:
        # Spreadsheets write a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in ("file", column) if name not in (rows.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path} has the columns {', '.join(rows.fieldnames or ['none'])}; expected file and {column}, "
                    "separated by commas"
                )
            listed = [_to_row(row, column, f"{path}, line {rows.line_num}") for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}; expected comma-separated values in UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; make it readable") from None
    if not listed:
        raise DataError(f"{path} lists no file; expected one line per image file")
    _require_different(path, listed)
    if absent := [row.file for row in listed if not (path.parent / row.file).is_file()]:
        raise DataError(
            f"{path} lists {len(absent)} files that do not exist in {path.parent}: {_name_some(absent)}; "
            "correct the names or remove the lines"
        )
    return listed


def _to_row(row: dict[str, str | None], column: str, where: str) -> Row:
    file, shown = row["file"], row[column]
    if not file or shown is None:
        raise DataError(f"{where}: got no {'file' if not file else column}; expected a file and a {column}")
    return Row(file, shown.strip(), (row.get("set") or "").strip(), where)


def _check_label(row: Row, labels: Collection[str]) -> str:
    if row.shown and row.shown not in labels:
        raise DataError(
            f"{row.where}: the label is {row.shown!r}; expected one of the model's labels, {', '.join(labels)}, or "
            "nothing if the image should not be accepted"
        )
    return row.shown


def _require_different(path: Path, rows: Iterable[Row]) -> None:
    seen: set[str] = set()
    for row in rows:
        if row.file in seen:
            raise DataError(f"{path} lists {row.file} twice; expected one line per file")
        seen.add(row.file)


def _name_some(names: list[str]) -> str:
    num_unnamed = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {num_unnamed} more" if num_unnamed > 0 else "")

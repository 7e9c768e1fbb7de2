"""Labelled image files in a folder: which files there are, and what they show.

    DIR/labels.csv          columns file, label and optionally set; an empty label is an image that is not a single digit
    DIR/<class>/<file>      without labels.csv; a folder that is not named after a label holds images of something else

``report`` calls ``list_pictures``. No image is opened here. Does not import TensorFlow.
"""

import csv
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

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
    found = _from_csv(folder, labels) if has_table else [*_from_folders(folder, labels)]
    selected = [picture for picture in found if not sets or picture.set in sets]
    if unknown := sorted(set(sets) - {picture.set for picture in found}):
        names = sorted({picture.set for picture in found if picture.set})
        raise DataError(
            f"{folder} has no set {', '.join(unknown)}; its sets are: {', '.join(names) or 'none, ' + _no_sets(folder)}"
        )
    if not selected:
        raise DataError(f"{folder} contains no image file; expected image files in its sub-folders")
    return selected


def _no_sets(folder: Path) -> str:
    if (folder / LABELS_NAME).is_file():
        return f"because {LABELS_NAME} has no column set"
    return "because each sub-folder is named after a label"


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


def _from_csv(folder: Path, labels: Collection[str]) -> list[Picture]:
    path = folder / LABELS_NAME
    try:
        # Spreadsheets write a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            missing = [name for name in ("file", "label") if name not in (rows.fieldnames or ())]
            if missing:
                raise DataError(
                    f"{path} has the columns {', '.join(rows.fieldnames or ['none'])}; expected file and label, "
                    "separated by commas"
                )
            pictures = [_to_picture(row, f"{path}, line {rows.line_num}", labels) for row in rows]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}; expected comma-separated values in UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}; make it readable") from None
    if not pictures:
        raise DataError(f"{path} lists no file; expected one line per image file")
    _require_different(path, pictures)
    if absent := [picture.file for picture in pictures if not (folder / picture.file).is_file()]:
        raise DataError(
            f"{path} lists {len(absent)} files that do not exist in {folder}: {_name_some(absent)}; "
            "correct the names or remove the lines"
        )
    return pictures


def _to_picture(row: dict[str, str | None], where: str, labels: Collection[str]) -> Picture:
    file, label = row["file"], row["label"]
    if not file or label is None:
        raise DataError(f"{where}: got {'no file' if not file else 'no label'}; expected a file and a label")
    label = label.strip()
    if label and label not in labels:
        raise DataError(
            f"{where}: the label is {label!r}; expected one of the model's labels, {', '.join(labels)}, or nothing if "
            "the image should not be accepted"
        )
    return Picture(file, label, (row.get("set") or "").strip())


def _require_different(path: Path, pictures: Iterable[Picture]) -> None:
    seen: set[str] = set()
    for picture in pictures:
        if picture.file in seen:
            raise DataError(f"{path} lists {picture.file} twice; expected one line per file")
        seen.add(picture.file)


def _name_some(names: list[str]) -> str:
    num_unnamed = len(names) - MAX_NAMED
    return ", ".join(names[:MAX_NAMED]) + (f" and {num_unnamed} more" if num_unnamed > 0 else "")

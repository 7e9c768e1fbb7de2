"""Image files of numbers with their text, listed in a table: columns file, text and optionally set.

``report`` calls ``list_samples``. No image is opened here, only when a sample is loaded.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from digitserve.protocol.readings import ReadOptions
from digitserve.vision.image_files import read_image_file
from digitserve_training.errors import DataError
from digitserve_training.evaluate.numbers.samples import Sample, Shown
from digitserve_training.evaluate.pictures.classifier import reduce_as_client
from digitserve_training.evaluate.pictures.listing import read_table, select_sets

TABLE_NAME = "numbers.csv"


def list_samples(path: Path, sets: Sequence[str] = ()) -> list[Sample]:
    """List the image files of a table.

    Args:
        path: of the table, or of a folder that contains it as ``TABLE_NAME``. Files are relative to the table.
        sets: names of the sets to list; all files if there are none.

    Returns:
        The files in the order of the table; at least one.

    Raises:
        DataError: there is no table, it has another layout, or a file is missing.
    """
    table = path / TABLE_NAME if path.is_dir() else path
    if not table.is_file():
        raise DataError(
            f"{table} does not exist; expected a folder with {TABLE_NAME}, or a table with the columns file and text"
        )
    rows = select_sets(read_table(table, "text"), sets, table, f"{table.name} has no column set")
    return [Sample(row.file, row.set, ReadOptions(), partial(_load, table.parent, row.file, row.shown)) for row in rows]


def _load(folder: Path, file: str, text: str) -> Shown:
    return Shown(reduce_as_client(read_image_file(folder / file, file)), text)

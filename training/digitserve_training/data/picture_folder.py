"""A folder of image files as a dataset: one sub-folder per class.

    DIR/<class>/<file>                 one sixth of each class is the test part
    DIR/{train,test}/<class>/<file>    the parts are given

Called by ``datasets``. Files are decoded as ``digitserve classify`` decodes them, and framed as the service frames
images, so that training and serving see the same input. The file name alone decides the part, so reading one part opens
no file of the other part. Does not import TensorFlow.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digitserve.batching.prepare import prepare_image
from digitserve.errors import ImageFileError
from digitserve.types import Framing, Gray, default_framing, native_framing
from digitserve.vision.image_files import read_image_file
from digitserve_training.errors import DataError

TRAIN, TEST = "train", "test"

STRAY_FILES = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
"""Files and folders that file managers add, in lower case; hidden ones are recognised by the dot."""

TEST_SHARE = 1 / 6
"""Share of each class that becomes the test part if none is given; MNIST has 10,000 test and 60,000 training images."""

TEST_SEED = 2024
"""Seed of the choice of test images: every run is tested on the same files."""


def read(folder: Path, part: str) -> tuple[Gray, NDArray[np.int64], tuple[str, ...]]:
    """Read one part of a folder of image files.

    Args:
        folder: laid out as described above. Hidden files, strays of file managers, and files next to the
            class folders, are ignored.
        part: "train" or "test".

    Returns:
        Images uint8[N,28,28], labels int64[N], and the sorted names of the classes; labels are indices into them.

    Raises:
        DataError: the layout is different, a class has too few images, or a file is not an image.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder with one sub-folder of image files per class")
    is_split = {entry.name for entry in _folders(folder)} == {TRAIN, TEST}
    names = _class_names(folder / TRAIN if is_split else folder)
    if is_split and _class_names(folder / TEST) != names:
        raise DataError(
            f"{folder / TEST} has the classes {', '.join(_class_names(folder / TEST))}; "
            f"expected the classes of {folder / TRAIN}: {', '.join(names)}"
        )
    classes = [_paths(folder / part / name) if is_split else _select_part(folder / name, part) for name in names]
    labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(paths) for paths in classes])
    native = native_framing(names)
    return np.stack([read_picture(path, native) for paths in classes for path in paths]), labels, names


def read_picture(path: Path, native: Framing) -> Gray:
    """Read one image file as the network would receive it from the service.

    Args:
        path: of the file.
        native: framing of images of 28x28 pixels, see ``types.native_framing``.

    Returns:
        uint8[28,28], light ink on dark.

    Raises:
        DataError: the file is not an image, is damaged or too large, or shows no ink.
    """
    try:
        pixels = read_image_file(path)
    except ImageFileError as error:
        raise DataError(f"{error}; put only image files into the folder of a class") from None
    prepared = prepare_image(pixels, native)
    height, width = pixels.shape[:2]
    if prepared.blank[0] and default_framing(height, width, native) is Framing.MNIST:
        raise DataError(f"{path} shows no ink; expected one shape on an even background: remove it from the folder")
    image: Gray = prepared.images[0, ..., 0]
    return image


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(entry.name for entry in _folders(folder))
    if len(names) < 2:
        raise DataError(f"{folder} has {len(names)} sub-folders; expected two or more, each named after its class")
    for name in names:
        # Labels are sent in protobuf and JSON and become Prometheus labels: all of these need valid text.
        if not name.isprintable():
            raise DataError(f"{folder}: the class name {name!r} is not printable text: rename the folder")
    return names


def _select_part(folder: Path, part: str) -> list[Path]:
    """Return the files of one class that belong to one part, for a folder without train/ and test/."""
    paths = _paths(folder)
    if len(paths) < 2:
        raise DataError(
            f"{folder} has 1 image file; expected two or more: a sixth, at least one, is held out for testing"
        )
    num_test = max(1, round(len(paths) * TEST_SHARE))
    order = np.random.default_rng(TEST_SEED).permutation(len(paths))
    return _at(paths, order[:num_test] if part == TEST else order[num_test:])


def _at(paths: Sequence[Path], indices: NDArray[np.int64]) -> list[Path]:
    return [paths[index] for index in sorted(indices.tolist())]


def _paths(folder: Path) -> list[Path]:
    paths = list_entries(folder)
    if not paths:
        raise DataError(
            f"{folder} contains no image file; expected image files of this class: fill or remove the folder"
        )
    return paths


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in list_entries(folder) if entry.is_dir()]


def list_entries(folder: Path) -> list[Path]:
    """Return the files and folders in a folder, sorted by name, without hidden ones and strays of file managers.

    Raises:
        DataError: the folder cannot be listed.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}; make it readable") from None
    return [entry for entry in entries if not entry.name.startswith(".") and entry.name.lower() not in STRAY_FILES]

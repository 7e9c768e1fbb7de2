"""A folder of pictures as a set of labelled images: one sub-folder a class, files of any format that Pillow reads.

    DIR/<class>/<picture>                 a sixth of each class is the test part
    DIR/{train,test}/<class>/<picture>    the parts are given

Read for ``datasets``. Pictures are framed as the service frames them, so that what is learned is what will be asked.
Which part a picture belongs to is decided by its name alone: reading one part opens no picture of the other. Needs no
TensorFlow.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from digitserve.types import IMAGE_SIZE, Ink
from digitserve.vision.framing import frame
from digitserve.vision.gray import to_gray
from digitserve_training.errors import DataError

Gray = NDArray[np.uint8]

TRAIN, TEST = "train", "test"

TEST_SHARE = 1 / 6
"""Of each class, where no test part is given: there are 60 000 training images to 10 000 test images in MNIST."""

TEST_SEED = 2024
"""Of the choice of that sixth: every run is tested on the same pictures."""

MAX_PIXELS = 4096 * 4096
"""Of one picture, as the service takes them; looked at before anything is decoded."""


def read(folder: Path, part: str) -> tuple[Gray, NDArray[np.int64], tuple[str, ...]]:
    """Read one part of a folder of pictures.

    Args:
        folder: laid out as above. Hidden files, and files beside the folders of classes, are passed over.
        part: "train" or "test".

    Returns:
        Images uint8[N,28,28], labels int64[N], and the names of the classes, sorted, into which labels are indices.

    Raises:
        DataError: the folder is laid out in another way, a class has too few pictures, or a file is no picture.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected a folder with one sub-folder of pictures a class")
    is_split = {entry.name for entry in _folders(folder)} == {TRAIN, TEST}
    names = _class_names(folder / TRAIN if is_split else folder)
    if is_split and _class_names(folder / TEST) != names:
        raise DataError(
            f"{folder / TEST} has the classes {', '.join(_class_names(folder / TEST))}; "
            f"expected those of {folder / TRAIN}: {', '.join(names)}"
        )
    classes = [_paths(folder / part / name) if is_split else _share(folder / name, part) for name in names]
    labels = np.repeat(np.arange(len(names), dtype=np.int64), [len(paths) for paths in classes])
    return np.stack([read_picture(path) for paths in classes for path in paths]), labels, names


def read_picture(path: Path) -> Gray:
    """Read one picture as the network would see it.

    Args:
        path: of a file that Pillow reads. A picture without colour that has the network's size is taken as it is; any
            other is laid on white where it is transparent, turned to grey and framed, whichever side its ink is on.

    Returns:
        uint8[28,28], light ink on dark.

    Raises:
        DataError: the file is no picture, is damaged or too large, or shows no ink.
    """
    gray, colourless = _decode(path)
    if colourless and gray.shape == (IMAGE_SIZE, IMAGE_SIZE):
        return gray
    framed = frame(gray, Ink.AUTO)
    if framed.blank:
        raise DataError(f"{path} shows no ink; expected a figure on an even background: take it out of the folder")
    return framed.pixels


def _decode(path: Path) -> tuple[Gray, bool]:
    """Return uint8[H,W], and whether the file was grey to begin with."""
    try:
        # Pillow warns of damaged remarks in a file whose picture is whole.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
            _require_size(path, image.height, image.width)
            return _to_gray(ImageOps.exif_transpose(image))
    except DataError:
        raise
    except Exception as error:  # a boundary: Pillow's decoders meet damage with whatever it makes them trip over
        raise DataError(
            f"{path} cannot be read as a picture: {error}; expected pictures alone in the folder of a class"
        ) from None


def _require_size(path: Path, height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise DataError(f"{path} has {height}x{width} pixels; expected at most {MAX_PIXELS} in all: reduce it")


def _to_gray(image: Image.Image) -> tuple[Gray, bool]:
    if image.mode.startswith("I"):
        # 16 bits a pixel, as scanners write; Pillow would turn all above 255 into white.
        return (np.asarray(image) >> 8).astype(np.uint8), True
    if image.mode in {"1", "L"} and "transparency" not in image.info:
        return np.asarray(image.convert("L")), True
    coloured = image.convert("RGBA")
    return to_gray(coloured.tobytes(), 1, coloured.height, coloured.width, 4)[0], False


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(entry.name for entry in _folders(folder))
    if len(names) < 2:
        raise DataError(
            f"{folder} has {len(names)} sub-folders; expected two or more, each a class named by its folder"
        )
    for name in names:
        # A label travels through protobuf, JSON and Prometheus; bytes that are no text would not.
        if not name.isprintable():
            raise DataError(f"{folder}: the class {name!r} has no printable name; expected text: rename the folder")
    return names


def _share(folder: Path, part: str) -> list[Path]:
    """Return a class's pictures that belong to one part, where the folder does not say which do."""
    paths = _paths(folder)
    if len(paths) < 2:
        raise DataError(f"{folder} has 1 picture; expected two or more: a sixth, at least one, is kept for the test")
    num_test = max(1, round(len(paths) * TEST_SHARE))
    order = np.random.default_rng(TEST_SEED).permutation(len(paths))
    return _chosen(paths, order[:num_test] if part == TEST else order[num_test:])


def _chosen(paths: Sequence[Path], indices: NDArray[np.int64]) -> list[Path]:
    return [paths[index] for index in sorted(indices.tolist())]


def _paths(folder: Path) -> list[Path]:
    paths = [path for path in _entries(folder) if not path.name.startswith(".")]
    if not paths:
        raise DataError(f"{folder} holds no picture; expected some of this class: fill the folder, or take it away")
    return paths


def _folders(folder: Path) -> list[Path]:
    return [entry for entry in _entries(folder) if entry.is_dir() and not entry.name.startswith(".")]


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}; make it readable") from None

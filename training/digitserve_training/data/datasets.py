"""The datasets that can be trained on: their labels, and how to read the files that their authors publish.

    --dataset ──find──▶ Dataset ──read──▶ Arrays of one part ──checked by splits──▶ Labelled

``splits`` calls ``read`` and checks the arrays. ``cli`` lists the names. ``fit.settings`` uses ``Dataset.digits``.
Imports TensorFlow only when Keras has to download a dataset.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve_training.data import idx, picture_folder
from digitserve_training.errors import DataError

Part = Literal["train", "test"]

ENVIRONMENT = "DIGITSERVE_MNIST"
"""Environment variable with the path of MNIST's file or folder; used if ``--data`` is not given."""

MNIST = "mnist"
DIGITS = tuple("0123456789")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
HIRAGANA = tuple("おきすつなはまやれを")

KERAS_KEYS = ("x_train", "y_train", "x_test", "y_test")
_IDX_PREFIXES = {"train": "train", "test": "t10k"}


class Arrays(NamedTuple):
    """One part of a dataset as stored in its files; not checked yet.

    Attributes:
        images: expected to be uint8[N,28,28].
        labels: expected to be integers[N]; the smallest one is ``first_label``.
        names: names of the labels; empty means ``Dataset.labels``.
        first_label: the label that ``names[0]`` belongs to.
    """

    images: NDArray[np.generic]
    labels: NDArray[np.generic]
    names: tuple[str, ...] = ()
    first_label: int = 0


@dataclass(frozen=True)
class Dataset:
    """A dataset of labelled images with a training part and a test part.

    Attributes:
        name: value of ``--dataset``.
        labels: names of the labels; empty if the names of the class folders are the labels.
        expected_files: description of the file or folder that ``--data`` must point to.
        origin: where to get these files.
        read: reads one part from an existing path.
        keras_name: name in ``keras.datasets``; None if Keras cannot download the dataset.
        path_variable: environment variable with the path, used if ``--data`` is not given.
        digits: whether the images show the ten digits. Only digits are trained with simulated scans and with non-digit
            images as outliers: in another dataset a letter may be a valid label. See ``Settings.recipe``.
    """

    name: str
    labels: tuple[str, ...]
    expected_files: str
    origin: str
    read: Callable[[Path, Part], Arrays]
    keras_name: str | None = None
    path_variable: str | None = None
    digits: bool = False


def find(name: str) -> Dataset:
    """Return the dataset with this name.

    Raises:
        DataError: no dataset has this name; the message lists the names.
    """
    if name not in DATASETS:
        raise DataError(f"no dataset '{name}'; datasets: {', '.join(DATASETS)}")
    return DATASETS[name]


def read(dataset: Dataset, path: Path | None, part: Part) -> Arrays:
    """Read one part of a dataset.

    Args:
        dataset: a result of ``find``.
        path: file or folder that ``Dataset.expected_files`` describes; None to let Keras download the dataset.
        part: the part to read. The other part is not read; only the names of its files are listed.

    Raises:
        DataError: the files are missing or cannot be read; the message states what to do.
    """
    if path is None:
        return _download(dataset, part)
    if not path.exists():
        raise DataError(f"no file or folder {path}. {_instructions(dataset)}")
    arrays = dataset.read(path, part)
    return arrays._replace(names=arrays.names or dataset.labels)


def _download(dataset: Dataset, part: Part) -> Arrays:
    if dataset.keras_name is None:
        raise DataError(f"{dataset.name} cannot be downloaded automatically. {_instructions(dataset)}")
    from digitserve_training._tensorflow import keras  # noqa: PLC0415 - takes seconds; only a download needs it

    try:
        training, test = getattr(keras.datasets, dataset.keras_name).load_data()
    except Exception as error:
        raise DataError(f"Keras could not download {dataset.name}: {error}. {_instructions(dataset)}") from None
    images, labels = training if part == "train" else test
    return Arrays(images, labels, dataset.labels)


def _instructions(dataset: Dataset) -> str:
    option = "--data PATH" + (f" or {dataset.path_variable}" if dataset.path_variable else "")
    return f"Get it from {dataset.origin}, and give its path with {option}: {dataset.expected_files}"


def _read_keras_or_idx(path: Path, part: Part) -> Arrays:
    """Read an npz file with the arrays of ``keras.datasets.mnist``, or a folder of idx files named as MNIST's."""
    if path.is_dir():
        return _read_idx(path, _IDX_PREFIXES[part])
    images, labels = _load_npz(path, KERAS_KEYS, (f"x_{part}", f"y_{part}"))
    return Arrays(images, labels)


def _read_kmnist(path: Path, part: Part) -> Arrays:
    """Read a folder of npz files with one array each, or of idx files named as MNIST's."""
    images, labels = (path / f"kmnist-{part}-{kind}.npz" for kind in ("imgs", "labels"))
    if not images.exists() and not labels.exists():
        return _read_idx(path, _IDX_PREFIXES[part])
    key = ("arr_0",)
    return Arrays(_load_npz(images, key, key)[0], _load_npz(labels, key, key)[0])


def _read_emnist(path: Path, part: Part, *, kind: str, first_label: int) -> Arrays:
    """Read a folder of idx files with images in column-major order, which EMNIST's conversion from MATLAB produced."""
    arrays = _read_idx(path, f"emnist-{kind}-{part}")
    upright = np.ascontiguousarray(arrays.images.transpose(0, 2, 1))
    return Arrays(upright, arrays.labels, first_label=first_label)


def _read_pictures(path: Path, part: Part) -> Arrays:
    return Arrays(*picture_folder.read(path, part))


def _read_idx(folder: Path, prefix: str) -> Arrays:
    images = _find_file(folder, f"{prefix}-images-idx3-ubyte")
    labels = _find_file(folder, f"{prefix}-labels-idx1-ubyte")
    return Arrays(idx.read(images, num_axes=3), idx.read(labels, num_axes=1))


def _find_file(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise DataError(f"{folder} is a file; expected the folder that contains {name} or {name}.gz")
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(f"{folder} does not contain {name} or {name}.gz; give the folder that contains it")


def _load_npz(path: Path, expected: tuple[str, ...], keys: tuple[str, ...]) -> list[NDArray[np.generic]]:
    """Read the arrays ``keys`` from an npz file that must contain at least the arrays ``expected``."""
    if not path.is_file():
        raise DataError(f"no file {path}; give the folder that contains it")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            _require_keys(path, expected, stored.files)
            # numpy returns a member that is not an array as bytes: the check of the dtype rejects it later.
            return [np.asarray(stored[key]) for key in keys]
    except DataError:
        raise
    except Exception as error:  # zipfile and numpy raise many kinds of exceptions for a damaged file
        raise DataError(f"{path} cannot be read as an npz file, it may be truncated: {error}") from None


def _require_keys(path: Path, expected: tuple[str, ...], got: list[str]) -> None:
    missing = sorted(set(expected) - set(got))
    if missing:
        raise DataError(f"{path} does not contain {', '.join(missing)}; it contains {', '.join(got) or 'nothing'}")


def _or_idx_folder(first: str) -> str:
    return f"{first}, or a folder with the files train-images-idx3-ubyte.gz, t10k-images-idx3-ubyte.gz and their labels"


def _emnist_folder(kind: str) -> str:
    return (
        f"the folder with the files emnist-{kind}-train-images-idx3-ubyte.gz, emnist-{kind}-test-... and their labels"
    )


_EMNIST_ORIGIN = "NIST's page of the EMNIST dataset (gzip.zip, unpacked)"

DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name=MNIST,
            labels=DIGITS,
            expected_files=_or_idx_folder("an npz file with the arrays of keras.datasets.mnist"),
            origin="Keras or the MNIST database",
            read=_read_keras_or_idx,
            keras_name="mnist",
            path_variable=ENVIRONMENT,
            digits=True,
        ),
        Dataset(
            name="fashion-mnist",
            labels=CLOTHES,
            expected_files=_or_idx_folder("an npz file with the arrays of keras.datasets.fashion_mnist"),
            origin="Keras or zalandoresearch/fashion-mnist on GitHub",
            read=_read_keras_or_idx,
            keras_name="fashion_mnist",
        ),
        Dataset(
            name="kmnist",
            labels=HIRAGANA,
            expected_files=_or_idx_folder(
                "the folder with kmnist-train-imgs.npz, kmnist-test-imgs.npz and their labels"
            ),
            origin="rois-codh/kmnist on GitHub",
            read=_read_kmnist,
        ),
        Dataset(
            name="emnist-digits",
            labels=DIGITS,
            expected_files=_emnist_folder("digits"),
            origin=_EMNIST_ORIGIN,
            read=partial(_read_emnist, kind="digits", first_label=0),
            digits=True,
        ),
        Dataset(
            name="emnist-letters",
            labels=LETTERS,
            expected_files=_emnist_folder("letters"),
            origin=_EMNIST_ORIGIN,
            read=partial(_read_emnist, kind="letters", first_label=1),
        ),
        Dataset(
            name="folder",
            labels=(),
            expected_files="a folder with one sub-folder of image files per class, or with such sub-folders in train/ and test/",
            origin="your own image files",
            read=_read_pictures,
        ),
    )
}

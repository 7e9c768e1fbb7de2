"""The sets of images that can be learned: their labels, and their files as those who made them publish them.

    --dataset ──find──▶ Dataset ──read──▶ Arrays of one part ──checked by data──▶ Labelled

Called by ``data``, which checks what comes; ``cli`` lists the names, ``settings`` asks whether they are digits. Needs no TensorFlow unless
Keras has to fetch a set.
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
"""Environment variable that names MNIST's file or folder where ``--data`` does not."""

MNIST = "mnist"
DIGITS = tuple("0123456789")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
CLOTHES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
HIRAGANA = tuple("おきすつなはまやれを")

KERAS_KEYS = ("x_train", "y_train", "x_test", "y_test")
_IDX_NAMES = {"train": "train", "test": "t10k"}


class Arrays(NamedTuple):
    """One part of a set as it was stored, not checked yet.

    Attributes:
        images: should be uint8[N,28,28].
        labels: should be integers[N], counted from ``first_label``.
        names: of the labels; empty for the dataset's own.
        first_label: the label of ``names[0]``.
    """

    images: NDArray[np.generic]
    labels: NDArray[np.generic]
    names: tuple[str, ...] = ()
    first_label: int = 0


@dataclass(frozen=True)
class Dataset:
    """A set of labelled images, in a training part and a test part.

    Attributes:
        name: what ``--dataset`` takes.
        labels: their names; empty where the folders of classes give them.
        holds: what ``--data`` names.
        origin: where to get that.
        read: reads one part from an existing path.
        keras: its name in ``keras.datasets`` if Keras can fetch it.
        environment: variable that names the path where ``--data`` does not.
        digits: whether it shows the ten digits. Only then is a letter no label, and paper what they are read off: see
            ``Settings.recipe``.
    """

    name: str
    labels: tuple[str, ...]
    holds: str
    origin: str
    read: Callable[[Path, Part], Arrays]
    keras: str | None = None
    environment: str | None = None
    digits: bool = False


def find(name: str) -> Dataset:
    """Return the dataset of that name.

    Raises:
        DataError: there is none; the message lists those there are.
    """
    if name not in DATASETS:
        raise DataError(f"no dataset '{name}'; datasets: {', '.join(DATASETS)}")
    return DATASETS[name]


def read(dataset: Dataset, path: Path | None, part: Part) -> Arrays:
    """Read one part of a dataset.

    Args:
        dataset: as ``find`` gives it.
        path: a file or folder as the dataset has it; None for what Keras fetches.
        part: which one; the other is not looked at, but for names of files.

    Raises:
        DataError: there is nothing to read, or it cannot be read; the message says what to do.
    """
    if path is None:
        return _fetch(dataset, part)
    if not path.exists():
        raise DataError(f"no file or folder {path}. {_remedy(dataset)}")
    arrays = dataset.read(path, part)
    return arrays._replace(names=arrays.names or dataset.labels)


def _fetch(dataset: Dataset, part: Part) -> Arrays:
    if dataset.keras is None:
        raise DataError(f"{dataset.name} is not fetched by itself. {_remedy(dataset)}")
    from digitserve_training._tensorflow import keras  # noqa: PLC0415 - seconds, and only this path needs it

    try:
        training, test = getattr(keras.datasets, dataset.keras).load_data()
    except Exception as error:
        raise DataError(f"Keras could not fetch {dataset.name}: {error}. {_remedy(dataset)}") from None
    images, labels = training if part == "train" else test
    return Arrays(images, labels, dataset.labels)


def _remedy(dataset: Dataset) -> str:
    named = "--data PATH" + (f" or {dataset.environment}" if dataset.environment else "")
    return f"Get it from {dataset.origin}, and name it with {named}: {dataset.holds}"


def _read_keras_or_idx(path: Path, part: Part) -> Arrays:
    """Read an npz file laid out like ``keras.datasets.mnist``, or a folder of idx files with MNIST's names."""
    if path.is_dir():
        return _read_idx(path, _IDX_NAMES[part])
    images, labels = _load_npz(path, KERAS_KEYS, (f"x_{part}", f"y_{part}"))
    return Arrays(images, labels)


def _read_kmnist(path: Path, part: Part) -> Arrays:
    """Read a folder of npz files with one array each, or of idx files with MNIST's names."""
    images, labels = (path / f"kmnist-{part}-{kind}.npz" for kind in ("imgs", "labels"))
    if not images.exists() and not labels.exists():
        return _read_idx(path, _IDX_NAMES[part])
    key = ("arr_0",)
    return Arrays(_load_npz(images, key, key)[0], _load_npz(labels, key, key)[0])


def _read_emnist(path: Path, part: Part, *, kind: str, first_label: int) -> Arrays:
    """Read a folder of idx files whose images lie column by column, as EMNIST's conversion from MATLAB left them."""
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
        raise DataError(f"{folder} is a file; expected the folder that holds {name}, plain or .gz")
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise DataError(f"{folder} lacks {name}, plain or .gz; name the folder that holds it")


def _load_npz(path: Path, expected: tuple[str, ...], keys: tuple[str, ...]) -> list[NDArray[np.generic]]:
    """Read the arrays of ``keys`` from an npz file that holds at least those of ``expected``."""
    if not path.is_file():
        raise DataError(f"no file {path}; name the folder that holds it")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            _require_keys(path, expected, stored.files)
            # A member that is no array comes as its bytes: as an array it is refused for its dtype.
            return [np.asarray(stored[key]) for key in keys]
    except DataError:
        raise
    except Exception as error:  # a boundary: zipfile and numpy meet damage with whatever it makes them trip over
        raise DataError(f"{path} cannot be read as npz, it may be cut short: {error}") from None


def _require_keys(path: Path, expected: tuple[str, ...], got: list[str]) -> None:
    missing = sorted(set(expected) - set(got))
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}; it has {', '.join(got) or 'nothing'}")


def _with_idx(first: str) -> str:
    return f"{first}, or a folder with the files train-images-idx3-ubyte.gz, t10k-images-idx3-ubyte.gz and their labels"


def _emnist(kind: str) -> str:
    return (
        f"the folder with the files emnist-{kind}-train-images-idx3-ubyte.gz, emnist-{kind}-test-... and their labels"
    )


_EMNIST_ORIGIN = "NIST's page of the EMNIST dataset, as gzip.zip, unpacked"

DATASETS = {
    dataset.name: dataset
    for dataset in (
        Dataset(
            name=MNIST,
            labels=DIGITS,
            holds=_with_idx("an npz file laid out like keras.datasets.mnist"),
            origin="Keras or the MNIST database",
            read=_read_keras_or_idx,
            keras="mnist",
            environment=ENVIRONMENT,
            digits=True,
        ),
        Dataset(
            name="fashion-mnist",
            labels=CLOTHES,
            holds=_with_idx("an npz file laid out like keras.datasets.fashion_mnist"),
            origin="Keras or zalandoresearch/fashion-mnist on GitHub",
            read=_read_keras_or_idx,
            keras="fashion_mnist",
        ),
        Dataset(
            name="kmnist",
            labels=HIRAGANA,
            holds=_with_idx("the folder with kmnist-train-imgs.npz, kmnist-test-imgs.npz and their labels"),
            origin="rois-codh/kmnist on GitHub",
            read=_read_kmnist,
        ),
        Dataset(
            name="emnist-digits",
            labels=DIGITS,
            holds=_emnist("digits"),
            origin=_EMNIST_ORIGIN,
            read=partial(_read_emnist, kind="digits", first_label=0),
            digits=True,
        ),
        Dataset(
            name="emnist-letters",
            labels=LETTERS,
            holds=_emnist("letters"),
            origin=_EMNIST_ORIGIN,
            read=partial(_read_emnist, kind="letters", first_label=1),
        ),
        Dataset(
            name="folder",
            labels=(),
            holds="a folder with one sub-folder of pictures a class, or with such sub-folders in train/ and test/",
            origin="wherever your pictures are",
            read=_read_pictures,
        ),
    )
}

"""A set of labelled images: read through ``datasets``, checked, split and fingerprinted.

Training images and test images are read by different functions, so what trains cannot see a test image by accident:
``read_training`` is for ``train`` and for validation, ``read_test`` for ``evaluate`` and for the parity check of
``export`` alone. Needs no TensorFlow unless Keras has to fetch a set.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digitserve_training.data import datasets
from digitserve_training.data.datasets import Arrays, Part
from digitserve_training.errors import DataError

ENVIRONMENT = datasets.ENVIRONMENT
LABELS = datasets.DIGITS
MNIST = datasets.MNIST

SPLIT_SEED = 2024
"""Seed of the split and of subsets: not the training's, so that every run is validated on the same images."""

VALIDATION_SHARE = 1 / 12
"""Of the training set, held out: 5 000 of MNIST's 60 000."""


@dataclass(frozen=True)
class Labelled:
    """Images with their labels.

    Attributes:
        images: uint8[N,28,28,1]; 0 = background, 255 = full ink.
        labels: int64[N], indices into ``names``.
        names: of the labels.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...] = LABELS

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> "Labelled":
        """Return the images at ``indices`` (int64[M]), in that order."""
        return Labelled(self.images[indices], self.labels[indices], self.names)


@dataclass(frozen=True)
class Split:
    """The training set, parted: what is trained on, and what is only looked at."""

    training: Labelled
    validation: Labelled


def read_training(path: Path | None = None, dataset: str = MNIST) -> Labelled:
    """Read a training set.

    Args:
        path: a file or folder as the dataset is published; else, for MNIST, the one that ``DIGITSERVE_MNIST`` names;
            else Keras's own cache, which is filled by a download, of the sets that Keras knows.
        dataset: its name, see ``datasets``.

    Raises:
        DataError: the file is missing, damaged, or holds something else; the message says what.
    """
    return _read(path, dataset, "train")


def read_test(path: Path | None = None, dataset: str = MNIST) -> Labelled:
    """Read a test set, from where ``read_training`` reads; never for training or for choosing anything."""
    return _read(path, dataset, "test")


def fingerprint(labelled: Labelled) -> str:
    """Return the sha256 (hexadecimal) of labels and pixels, in order: equal fingerprints are equal sets."""
    digest = hashlib.sha256(f"{labelled.images.shape}".encode())
    digest.update(labelled.labels.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(labelled.images).tobytes())
    return digest.hexdigest()


def split(labelled: Labelled, limit: int | None = None, validation: float = VALIDATION_SHARE) -> Split:
    """Hold out a stratified validation set; the same one every time.

    Args:
        labelled: a training set.
        limit: use only so many images in all, chosen so that labels keep their shares.
        validation: share of them that is held out.

    Raises:
        DataError: too few images to hold any out.
    """
    order = _stratified_order(labelled.labels)[:limit]
    # As near below the share as whole images come; 1e-9 keeps 1/12 of 60 000 from becoming 4 999.
    num_validation = int(len(order) * validation + 1e-9)
    if num_validation == 0:
        raise DataError(
            f"{len(order)} training images; expected at least {round(1 / validation)}, so that one can be held out"
        )
    return Split(labelled.take(order[num_validation:]), labelled.take(order[:num_validation]))


def _stratified_order(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Order all indices at random so that every leading part has each label in its share of the whole.

    Each image gets its rank within its label, moved by a random fraction and divided by the label's count: sorted by
    that, labels interleave evenly.
    """
    generator = np.random.default_rng(SPLIT_SEED)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        position[members] = (generator.permutation(len(members)) + generator.random()) / len(members)
    return np.argsort(position, kind="stable")


def _read(path: Path | None, dataset: str, part: Part) -> Labelled:
    found = datasets.find(dataset)
    stated = os.environ.get(found.environment) if found.environment else None
    named = path or (Path(stated) if stated else None)
    return _check(datasets.read(found, named, part), f"{named or 'Keras'}, {dataset}, part '{part}'")


def _check(arrays: Arrays, source: str) -> Labelled:
    images, labels, names, first = arrays
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28) or len(images) == 0:
        raise DataError(f"{source}: images are {images.dtype}{list(images.shape)}; expected uint8[N, 28, 28], N > 0")
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(
            f"{source}: labels are {labels.dtype}{list(labels.shape)}; expected one integer for each of {len(images)} images"
        )
    wide, last = labels.astype(np.int64), first + len(names) - 1
    if wide.min() < first or wide.max() > last:
        raise DataError(f"{source}: labels run from {wide.min()} to {wide.max()}; expected {first} to {last}")
    return Labelled(images.astype(np.uint8, copy=False)[..., np.newaxis], wide - first, names)

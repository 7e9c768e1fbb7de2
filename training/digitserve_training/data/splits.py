"""Labelled images: read with ``datasets``, checked, split into training and validation, and fingerprinted.

Different functions read training images and test images, so that training cannot use a test image by accident.
``read_training`` is for training and validation. ``read_test`` is only for ``evaluate`` and for the parity check in
``export``. Imports TensorFlow only when Keras has to download a dataset.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digitserve_training.data import datasets
from digitserve_training.data.datasets import Arrays, Part
from digitserve_training.data.pen_split import PenSplit
from digitserve_training.errors import DataError

ENVIRONMENT = datasets.ENVIRONMENT
LABELS = datasets.DIGITS
MNIST = datasets.MNIST

SPLIT_SEED = 2024
"""Seed of the split and of subsets. It differs from the seed of the run, so that all runs use the same validation images."""

VALIDATION_SHARE = 1 / 12
"""Share of the training set that is held out for validation: 5,000 of MNIST's 60,000 images."""


@dataclass(frozen=True)
class Labelled:
    """Images with their labels.

    Attributes:
        images: uint8[N,28,28,1]; 0 = background, 255 = full ink.
        labels: int64[N], indices into ``names``.
        names: names of the labels.
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
    """Images for training and images for validation only.

    Attributes:
        training: images of the training set.
        validation: held-out images of the training set.
        pen: characters that ``fit.pool`` draws more training images of; None in a run without pen strokes.
        pen_validation: images of held-out pen digits; None in a run without pen strokes.
    """

    training: Labelled
    validation: Labelled
    pen: PenSplit | None = None
    pen_validation: Labelled | None = None

    @property
    def held_out(self) -> Labelled:
        """``validation``, then ``pen_validation``: the images of the validation loss."""
        if self.pen_validation is None:
            return self.validation
        return Labelled(
            np.concatenate([self.validation.images, self.pen_validation.images]),
            np.concatenate([self.validation.labels, self.pen_validation.labels]),
            self.validation.names,
        )


def read_training(path: Path | None = None, dataset: str = MNIST) -> Labelled:
    """Read a training set.

    Args:
        path: file or folder of the dataset as published. If None: for MNIST, the path in ``DIGITSERVE_MNIST``;
            otherwise Keras's cache, filled by a download, if Keras has the dataset.
        dataset: name of the dataset, see ``datasets``.

    Raises:
        DataError: the files are missing, damaged or in another format; the message states what was found.
    """
    return _read(path, dataset, "train")


def read_test(path: Path | None = None, dataset: str = MNIST) -> Labelled:
    """Read the test set from the same place as ``read_training``; never use it to train or to choose anything."""
    return _read(path, dataset, "test")


def fingerprint(labelled: Labelled) -> str:
    """Return the sha256 (hexadecimal) of labels and pixels, in order; equal fingerprints mean equal datasets."""
    digest = hashlib.sha256(f"{labelled.images.shape}".encode())
    digest.update(labelled.labels.astype("<i8").tobytes())
    digest.update(np.ascontiguousarray(labelled.images).tobytes())
    return digest.hexdigest()


def split(labelled: Labelled, limit: int | None = None, validation: float = VALIDATION_SHARE) -> Split:
    """Hold out a stratified validation set; the same images every time.

    Args:
        labelled: a training set.
        limit: total number of images to use, a stratified subset; None for all.
        validation: share of these images that is held out.

    Raises:
        DataError: there are too few images to hold one out.
    """
    order = _stratified_order(labelled.labels)[:limit]
    # Rounded down; 1e-9 prevents a rounding error that makes 1/12 of 60,000 become 4,999.
    num_validation = int(len(order) * validation + 1e-9)
    if num_validation == 0:
        raise DataError(
            f"{len(order)} training images; expected at least {round(1 / validation)}, so that one can be held out for validation"
        )
    return Split(labelled.take(order[num_validation:]), labelled.take(order[:num_validation]))


def _stratified_order(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return all indices in a random order in which every prefix is stratified: int64[N].

    The sort key of an image is its random rank within its label, plus a random offset per label, divided by the number
    of images with that label. Sorting by this key interleaves the labels evenly.
    """
    generator = np.random.default_rng(SPLIT_SEED)
    position = np.empty(len(labels))
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        position[members] = (generator.permutation(len(members)) + generator.random()) / len(members)
    return np.argsort(position, kind="stable")


def _read(path: Path | None, dataset: str, part: Part) -> Labelled:
    found = datasets.find(dataset)
    variable = os.environ.get(found.path_variable) if found.path_variable else None
    source = path or (Path(variable) if variable else None)
    return _check(datasets.read(found, source, part), f"{source or 'Keras'}, {dataset}, part '{part}'")


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

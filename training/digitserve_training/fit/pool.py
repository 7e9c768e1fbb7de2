"""The pool of images that a training draws its batches from: digits, scans of digits, pen digits and non-digits.

Created by ``train``. Everything but the digits themselves is drawn from the seed whenever a training starts or resumes,
so it is not stored. Needs no TensorFlow.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from digitserve_training.data.pen_split import PenSplit
from digitserve_training.data.splits import Labelled, Split
from digitserve_training.fit import pen_images
from digitserve_training.model.presets import Recipe
from digitserve_training.synth import non_digits
from digitserve_training.synth.digits import synthetic_digits
from digitserve_training.synth.scans import ScanParameters, scan_and_frame

NO_LABEL = -1
"""Label of an image that is not a digit."""

SCANS = ScanParameters(min_side_px=8, max_side_px=64, clean_share=0.4, coarse_share=0.25)
"""Smaller and cleaner than the scans for evaluation: large drawings look like MNIST after framing, small ones do not."""

OTHER_WRITING = 0.3
"""Share of the scans that do not show MNIST's digits but digits in other handwriting, or printed."""

MAX_OUTLIERS = 16_384
"""Limit for each of the two sources of outliers: ``synth.non_digits`` and pen characters."""


class Pool:
    """All images of one training, and the order in which they are used; lives as long as the training.

    Attributes:
        images: uint8[M,28,28,1]: first the N training images, then one scan of each if the recipe has scans, then pen
            digits if the split has pen characters and the recipe uses them, then outliers.
        labels: int64[M]; ``NO_LABEL`` for outliers.
    """

    def __init__(self, split: Split, recipe: Recipe, seed: int) -> None:
        """Draw the scans, pen digits and outliers that the recipe needs."""
        training, pen = split.training, split.pen if recipe.pen else None
        self._recipe, self._seed, self._num_training = recipe, seed, len(training)
        parts = [training]
        if recipe.scanned:
            parts.append(_scans(training, seed))
        self._num_pen = self._num_outliers = 0
        if pen:
            parts.append(pen_images.training_digits(pen, len(training), seed))
            self._num_pen = len(parts[-1])
        if recipe.outliers:
            parts.append(_outliers(min(MAX_OUTLIERS, len(training)), pen, seed))
            self._num_outliers = len(parts[-1])
        self.images = np.concatenate([part.images for part in parts])
        self.labels = np.concatenate([part.labels for part in parts])

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training images."""
        return -(-self._num_training // self._recipe.batch_size)

    def batches(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Yield one pass over the training images in random order, as indices into ``images``.

        Each training image occurs once, either itself or its scan. Pen digits and outliers are drawn at random for each
        batch and added at random places.

        Args:
            epoch: counted from 1; equal epochs give equal batches.
        """
        generator = np.random.default_rng((self._seed, epoch))
        order = generator.permutation(self._num_training)
        if self._recipe.scanned:
            order += self._num_training * (generator.random(len(order)) < self._recipe.scanned)
        first_outlier = len(self.images) - self._num_outliers
        first_pen = first_outlier - self._num_pen
        for start in range(0, len(order), self._recipe.batch_size):
            batch = order[start : start + self._recipe.batch_size]
            num_pen = round(len(batch) * self._recipe.pen) if self._num_pen else 0
            num_outliers = round(len(batch) * self._recipe.outliers)
            if num_pen:
                batch = np.concatenate([batch, first_pen + generator.integers(0, self._num_pen, num_pen)])
            if num_outliers:
                batch = np.concatenate([batch, first_outlier + generator.integers(0, self._num_outliers, num_outliers)])
            if num_pen or num_outliers:
                generator.shuffle(batch)
            yield batch


def _scans(training: Labelled, seed: int) -> Labelled:
    images, labels = training.images.copy(), training.labels.copy()
    replaced = np.random.default_rng(seed).permutation(len(labels))[: round(OTHER_WRITING * len(labels))]
    images[replaced], labels[replaced] = synthetic_digits(len(replaced), seed)
    scans = scan_and_frame(images, SCANS, seed)
    # A few digits of 8 pixels come out empty; those stay unscanned.
    return Labelled(np.where(scans.any(axis=(1, 2, 3), keepdims=True), scans, images), labels)


def _outliers(num_images: int, pen: PenSplit | None, seed: int) -> Labelled:
    """Draw ``num_images`` images of ``synth.non_digits`` and, with pen characters, the same number of these."""
    images = non_digits.for_training(num_images, seed)
    if pen:
        images = np.concatenate([images, pen_images.training_non_digits(pen, num_images, seed)])
    return Labelled(images, np.full(len(images), NO_LABEL))

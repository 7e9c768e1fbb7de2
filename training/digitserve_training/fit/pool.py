"""The pool of images that a training draws its batches from: digits, scans of digits, pen digits and two sorts of outliers.

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
from digitserve_training.synth.touching import touching_digits

NO_LABEL = -1
"""Label of an image that is not a digit. It may resemble one; teachers give its target."""

CERTAIN_OUTLIER = -2
"""Label of an image that is certainly not one digit; its target does not come from teachers."""

SCANS = ScanParameters(min_side_px=8, max_side_px=64, clean_share=0.4, coarse_share=0.25)
"""Smaller and cleaner than the scans for evaluation: large drawings look like MNIST after framing, small ones do not."""

OTHER_WRITING = 0.3
"""Share of the scans that do not show MNIST's digits but digits in other handwriting, or printed."""

MAX_OUTLIERS = 16_384
"""Limit for each source of outliers: ``synth.non_digits`` for the one sort, pen characters, and the certain outliers."""


class Pool:
    """All images of one training, and the order in which they are used; lives as long as the training.

    Attributes:
        images: uint8[M,28,28,1]: first the N training images, then one scan of each if the recipe has scans, then pen
            digits if the split has pen characters and the recipe uses them, then outliers, then certain outliers.
        labels: int64[M]; ``NO_LABEL`` for outliers, ``CERTAIN_OUTLIER`` for certain outliers.
    """

    def __init__(self, split: Split, recipe: Recipe, seed: int) -> None:
        """Draw the scans, pen digits and outliers that the recipe needs."""
        training, pen = split.training, split.pen if recipe.pen else None
        self._recipe, self._seed, self._num_training = recipe, seed, len(training)
        parts = [training]
        if recipe.scanned:
            parts.append(_scans(training, seed))
        # What is added to each batch: how many per training image, and where in ``images`` they are.
        self._added: list[tuple[float, range]] = []
        self._added_late: list[tuple[float, range]] = []
        if pen:
            _add(self._added, parts, recipe.pen, pen_images.training_digits(pen, len(training), seed))
        if recipe.outliers:
            _add(self._added, parts, recipe.outliers, _outliers(min(MAX_OUTLIERS, len(training)), pen, seed))
        if recipe.certain_outliers:
            certain = _certain_outliers(min(MAX_OUTLIERS, len(training)), training, seed)
            _add(self._added_late, parts, recipe.certain_outliers, certain)
        self.images = np.concatenate([part.images for part in parts])
        self.labels = np.concatenate([part.labels for part in parts])

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training images."""
        return -(-self._num_training // self._recipe.batch_size)

    def batches(self, epoch: int, *, certain_outliers: bool = True) -> Iterator[NDArray[np.int64]]:
        """Yield one pass over the training images in random order, as indices into ``images``.

        Each training image occurs once, either itself or its scan. Pen digits and outliers are drawn at random for each
        batch and added at random places.

        Args:
            epoch: counted from 1; equal epochs give equal batches.
            certain_outliers: whether to add them. Without them, batches are those of a recipe without certain outliers.
        """
        generator = np.random.default_rng((self._seed, epoch))
        order = generator.permutation(self._num_training)
        if self._recipe.scanned:
            order += self._num_training * (generator.random(len(order)) < self._recipe.scanned)
        added = self._added + self._added_late if certain_outliers else self._added
        for start in range(0, len(order), self._recipe.batch_size):
            digits = order[start : start + self._recipe.batch_size]
            batch = np.concatenate(
                [digits]
                + [
                    generator.integers(images.start, images.stop, round(len(digits) * per_training_image))
                    for per_training_image, images in added
                ]
            )
            if added:
                generator.shuffle(batch)
            yield batch


def _add(added: list[tuple[float, range]], parts: list[Labelled], per_training_image: float, part: Labelled) -> None:
    start = sum(map(len, parts))
    parts.append(part)
    added.append((per_training_image, range(start, start + len(part))))


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


def _certain_outliers(num_images: int, training: Labelled, seed: int) -> Labelled:
    """Draw patterns and tangles, and as many images of touching training digits: ``num_images`` in all, or one less."""
    images = np.concatenate(
        [non_digits.certain(num_images // 2, seed), touching_digits(training.images, num_images // 2, seed)]
    )
    return Labelled(images, np.full(len(images), CERTAIN_OUTLIER))

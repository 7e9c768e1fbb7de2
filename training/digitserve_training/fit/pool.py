"""What a training draws its batches from: digits as they are, digits read off paper, and pictures of no digit.

Everything but the digits themselves is drawn anew from the seed when a training starts, resumed or not, so nothing of it
needs to be kept. Needs no TensorFlow.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from digitserve_training.data.splits import Labelled
from digitserve_training.model.presets import Recipe
from digitserve_training.synth import non_digits
from digitserve_training.synth.digits import synthetic_digits
from digitserve_training.synth.scans import ScanParameters, scan_and_frame

NO_LABEL = -1
"""Label of an image that is no digit."""

PAPER = ScanParameters(min_side_px=8, max_side_px=64, clean_share=0.4, coarse_share=0.25)
"""Smaller and cleaner than what is judged: large drawings come out like MNIST, small ones are the hard ones."""

OTHER_HANDS = 0.3
"""Share of the images read off paper that are not MNIST's, but written as its writers did not write, or printed."""

LARGEST_OUTLIERS = 16_384


class Pool:
    """All images of one training, and the order in which they are taken; lives as long as the training.

    Attributes:
        images: uint8[M,28,28,1]: first the N training images, then as many readings, then outliers.
        labels: int64[M]; ``NO_LABEL`` for outliers.
    """

    def __init__(self, training: Labelled, recipe: Recipe, seed: int) -> None:
        """Draw what the recipe asks for beyond the training images."""
        self._recipe, self._seed, self._num_training = recipe, seed, len(training)
        parts = [training]
        if recipe.paper:
            parts.append(_read_off_paper(training, seed))
        if recipe.outliers:
            parts.append(_outliers(min(LARGEST_OUTLIERS, len(training)), seed))
        self._num_outliers = len(parts[-1]) if recipe.outliers else 0
        self.images = np.concatenate([part.images for part in parts])
        self.labels = np.concatenate([part.labels for part in parts])

    @property
    def steps_per_epoch(self) -> int:
        """Batches in one pass over the training images."""
        return -(-self._num_training // self._recipe.batch_size)

    def batches(self, epoch: int) -> Iterator[NDArray[np.int64]]:
        """Give one pass over the training images in random order, as indices into ``images``.

        Each training image comes once, as it is or with its reading in its place; each batch has its share of outliers on top,
        at random places in it.

        Args:
            epoch: counted from 1; equal epochs give equal batches.
        """
        generator = np.random.default_rng((self._seed, epoch))
        order = generator.permutation(self._num_training)
        if self._recipe.paper:
            order += self._num_training * (generator.random(len(order)) < self._recipe.paper)
        first_outlier = len(self.images) - self._num_outliers
        for start in range(0, len(order), self._recipe.batch_size):
            batch = order[start : start + self._recipe.batch_size]
            added = round(len(batch) * self._recipe.outliers)
            if added:
                batch = np.concatenate([batch, first_outlier + generator.integers(0, self._num_outliers, added)])
                generator.shuffle(batch)
            yield batch


def _read_off_paper(training: Labelled, seed: int) -> Labelled:
    images, labels = training.images.copy(), training.labels.copy()
    replaced = np.random.default_rng(seed).permutation(len(labels))[: round(OTHER_HANDS * len(labels))]
    images[replaced], labels[replaced] = synthetic_digits(len(replaced), seed)
    read = scan_and_frame(images, PAPER, seed)
    # Now and then nothing is left of a digit of 8 pixels.
    return Labelled(np.where(read.any(axis=(1, 2, 3), keepdims=True), read, images), labels)


def _outliers(number: int, seed: int) -> Labelled:
    return Labelled(non_digits.for_training(number, seed), np.full(number, NO_LABEL))

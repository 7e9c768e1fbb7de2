"""Images of pen characters: drawn for training from the run's seed, and for validation from a fixed one.

    archive ──data.pen_split──▶ PenSplit ─┬─ training, non_digits ─▶ Pool
                                          └─ validation ──▶ Split.pen_validation: part of the validation loss

``cli`` adds the validation images to a split. ``pool`` draws the training images. Needs no TensorFlow.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from digitserve.types import Gray
from digitserve_training.data import datasets
from digitserve_training.data.pen_split import PenSplit
from digitserve_training.data.splits import SPLIT_SEED, Labelled, Split
from digitserve_training.data.unipen import PenCharacter
from digitserve_training.model.presets import Preset
from digitserve_training.synth import pen_ink

DRAWINGS = 4
"""Drawings of each training digit, each with another pen and background."""


def used_by(preset: Preset, dataset: str) -> bool:
    """Whether a training of this preset on this dataset uses pen strokes if it has them.

    Raises:
        DataError: the dataset is unknown.
    """
    return bool(preset.recipe.pen) and datasets.find(dataset).digits


def add_pen(split: Split, pen: PenSplit | None) -> Split:
    """Add pen characters to a split of digits: one drawing of each validation digit, the same in all runs.

    Returns:
        The split itself if ``pen`` is None.
    """
    if pen is None:
        return split
    drawn = _draw(pen.validation, np.random.default_rng(SPLIT_SEED))
    return replace(split, pen=pen, pen_validation=Labelled(drawn, _labels(pen.validation), split.validation.names))


def training_digits(pen: PenSplit, max_images: int, seed: int) -> Labelled:
    """Draw each training digit four times, or fewer times if that would be more than ``max_images``."""
    generator = np.random.default_rng((seed, 1))
    order = generator.permutation(len(pen.training))
    chosen = [pen.training[index] for index in np.resize(order, min(DRAWINGS * len(order), max_images))]
    return Labelled(_draw(chosen, generator), _labels(chosen))


def training_non_digits(pen: PenSplit, num_images: int, seed: int) -> Gray:
    """Draw letters and symbols, each character equally often: uint8[num_images,28,28,1].

    UniPen has a thousand drawings of some characters and few of others.
    """
    generator = np.random.default_rng((seed, 2))
    _, kinds, counts = np.unique(
        [character.label for character in pen.non_digits], return_inverse=True, return_counts=True
    )
    shares = 1 / (len(counts) * counts[kinds])
    return _draw([pen.non_digits[index] for index in generator.choice(len(kinds), num_images, p=shares)], generator)


def _draw(characters: Sequence[PenCharacter], generator: np.random.Generator) -> Gray:
    return pen_ink.draw_and_frame([character.strokes for character in characters], generator)


def _labels(digits: Sequence[PenCharacter]) -> NDArray[np.int64]:
    return np.array([int(digit.label) for digit in digits], np.int64)

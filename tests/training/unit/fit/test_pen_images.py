"""Pen digits and letters in the pool of a training, and pen digits in its validation images."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from digitserve_training.data import pen_split
from digitserve_training.data.pen_split import PenSplit
from digitserve_training.data.splits import Labelled, Split
from digitserve_training.fit import pen_images
from digitserve_training.fit.pool import CERTAIN_OUTLIER, NO_LABEL, Pool
from digitserve_training.model.presets import PRESETS, Recipe
from digitserve_training.synth.digits import synthetic_digits
from support.pen_archive import NUM_WRITERS, write_archive

NUM_TRAINING = 640
RECIPE = Recipe(epochs=1, batch_size=128, scanned=0.25, outliers=0.125, certain_outliers=0.25, pen=0.3)
NUM_HELD_OUT = NUM_WRITERS // 8


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an archive of pen strokes."""
    folder: Path = tmp_path_factory.mktemp("strokes")
    return write_archive(folder / "strokes.tar.xz")


@pytest.fixture(scope="module")
def pen(archive: Path) -> PenSplit:
    """Read the archive."""
    return pen_split.read(archive)


@pytest.fixture(scope="module")
def split() -> Split:
    """Return a split of synthetic digits."""
    images, labels = synthetic_digits(NUM_TRAINING, seed=5)
    return Split(Labelled(images, labels), Labelled(images[:10], labels[:10]))


def test_batches_have_their_shares(split: Split, pen: PenSplit) -> None:
    """Each batch has 128 images of the training set or their scans, 38 pen digits, 16 outliers and 32
    certain outliers.

    Each training image or its scan occurs once per epoch.
    """
    pool = Pool(pen_images.add_pen(split, pen), RECIPE, seed=1)

    batches = [*pool.batches(1)]

    first_pen, num_pen = 2 * NUM_TRAINING, pen_images.DRAWINGS * len(pen.training)
    for batch in batches:
        assert np.sum(batch < first_pen) == 128
        assert np.sum((batch >= first_pen) & (batch < first_pen + num_pen)) == 38
        assert np.sum(pool.labels[batch] == NO_LABEL) == 16
        assert np.sum(pool.labels[batch] == CERTAIN_OUTLIER) == 32
        assert np.sum(batch >= first_pen + num_pen) == 48
    taken = np.concatenate(batches)
    assert sorted((taken[taken < first_pen] % NUM_TRAINING).tolist()) == list(range(NUM_TRAINING))
    assert not np.array_equal(batches[0], np.sort(batches[0])), "the kinds are mixed within a batch"


def test_batches_without_certain_outliers(split: Split, pen: PenSplit) -> None:
    """Batches without certain outliers are those of the same recipe without them."""
    with_pen = pen_images.add_pen(split, pen)
    plain = Pool(with_pen, dataclasses.replace(RECIPE, certain_outliers=0.0), seed=1)

    without = [*Pool(with_pen, RECIPE, seed=1).batches(2, certain_outliers=False)]

    assert all(np.array_equal(one, other) for one, other in zip(without, plain.batches(2), strict=True))


def test_half_of_the_outliers_are_pen_characters(split: Split, pen: PenSplit) -> None:
    """With pen strokes, the pool has twice the outliers: those of a pool without, and as many pen characters."""
    without, with_pen = Pool(split, RECIPE, 1), Pool(pen_images.add_pen(split, pen), RECIPE, 1)

    outliers = [pool.images[pool.labels == NO_LABEL] for pool in (without, with_pen)]

    assert [len(images) for images in outliers] == [NUM_TRAINING, 2 * NUM_TRAINING]
    assert np.array_equal(outliers[1][:NUM_TRAINING], outliers[0])
    assert np.array_equal(
        outliers[1][NUM_TRAINING:], pen_images.training_non_digits(pen, num_images=NUM_TRAINING, seed=1)
    )


def test_pool_without_pen_is_unchanged(split: Split, pen: PenSplit) -> None:
    """A recipe without pen digits ignores pen strokes; a split without pen strokes ignores the recipe's pen digits."""
    no_pen = dataclasses.replace(RECIPE, pen=0.0)
    plain, *others = (
        Pool(split, no_pen, 1), Pool(split, RECIPE, 1), Pool(pen_images.add_pen(split, pen), no_pen, 1),
    )  # fmt: skip

    for pool in others:
        assert np.array_equal(pool.images, plain.images)
        assert np.array_equal(np.concatenate([*pool.batches(2)]), np.concatenate([*plain.batches(2)]))


def test_training_images_come_from_the_seed(pen: PenSplit) -> None:
    """Equal seeds give equal drawings of digits and non-digits; different seeds give different ones."""
    for draw in (
        lambda seed: pen_images.training_digits(pen, 50, seed).images,
        lambda seed: pen_images.training_non_digits(pen, 50, seed),
    ):
        assert np.array_equal(draw(1), draw(1))
        assert not np.array_equal(draw(1), draw(2))


def test_each_training_digit_is_drawn_four_times(pen: PenSplit) -> None:
    """Each digit is drawn four times, each time differently; never more images than the limit."""
    drawn = pen_images.training_digits(pen, 10_000, seed=1)

    num_digits = len(pen.training)
    assert len(drawn) == 4 * num_digits
    assert np.bincount(drawn.labels).tolist() == [4 * num_digits // 10] * 10
    assert len(np.unique(drawn.images, axis=0)) > 3.9 * num_digits
    assert len(pen_images.training_digits(pen, 25, seed=1)) == 25


def test_rare_characters_are_drawn_as_often_as_frequent_ones(pen: PenSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Non-digits are balanced by character: one A among many other letters is a quarter of the images."""
    frequent = [character for character in pen.non_digits if character.label in "k%"]
    rare = [character for character in pen.non_digits if character.label == "A"][:1]
    chosen: list[str] = []
    skewed = dataclasses.replace(pen, non_digits=(*frequent, *rare))
    monkeypatch.setattr(
        pen_images, "_draw", lambda characters, _: chosen.extend(character.label for character in characters)
    )

    pen_images.training_non_digits(skewed, num_images=3_000, seed=1)

    assert all(900 < chosen.count(label) < 1_100 for label in "kA%")


def test_validation_has_held_out_writers(split: Split, pen: PenSplit) -> None:
    """One drawing of each held-out digit is held out beside the dataset's images, which are unchanged."""
    added = pen_images.add_pen(split, pen)

    assert added.training is split.training
    assert added.validation is split.validation
    assert added.pen_validation is not None
    assert len(added.pen_validation) == len(pen.validation) == 10 * NUM_HELD_OUT
    assert added.held_out.labels[10:].tolist() == [int(digit.label) for digit in pen.validation]
    assert np.array_equal(added.held_out.images[:10], split.validation.images)
    assert np.array_equal(added.held_out.images, pen_images.add_pen(split, pen).held_out.images)


def test_a_split_without_pen_strokes_is_unchanged(split: Split) -> None:
    """Without pen strokes the validation images are those of the dataset alone, as in runs of earlier versions."""
    assert pen_images.add_pen(split, None) is split


@pytest.mark.parametrize(
    ("preset", "dataset", "expected"),
    [("compact", "mnist", True), ("large", "emnist-digits", True), ("compact", "kmnist", False), ("tiny", "mnist", False)],
)  # fmt: skip
def test_only_trainings_on_digits_use_pen_strokes(preset: str, dataset: str, expected: bool) -> None:
    """Pen strokes are for presets whose recipe has pen digits, on datasets of digits."""
    assert pen_images.used_by(PRESETS[preset], dataset) == expected

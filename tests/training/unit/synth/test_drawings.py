"""What is promised about pictures that are drawn: readings off paper, other hands, strangers, and the pool of them all."""

import dataclasses

import numpy as np
import pytest

from digitserve.batching.prepare import prepare_gray
from digitserve.types import Framing, Ink
from digitserve_training.data.splits import Labelled
from digitserve_training.fit.pool import NO_LABEL, Pool
from digitserve_training.model.presets import PRESETS
from digitserve_training.synth import non_digits, scans, strokes
from digitserve_training.synth.scans import Paper

CLASSIC = PRESETS["conv2-dense256"].recipe
REAL_INK = dataclasses.replace(CLASSIC, batch_size=32, paper=0.25, outliers=0.125)


def digits(number: int = 96) -> Labelled:
    """Return digits that a pen wrote."""
    images, labels = non_digits.digits_of_other_hands(number, seed=5)
    return Labelled(images, labels)


@pytest.mark.parametrize("plain", [0.0, 1.0])
def test_drawings_keep_their_sizes(plain: float) -> None:
    """The shorter side of each drawing lies within the paper's sizes; plain ones are light on black."""
    generator = np.random.default_rng(1)
    drawn = [scans.draw(digit[..., 0], Paper(16, 64, plain), generator) for digit in digits(40).images]

    assert all(16 <= min(drawing.shape) <= 64 and max(drawing.shape) <= 96 for drawing in drawn)
    assert len({min(drawing.shape) for drawing in drawn}) > 10
    assert all((np.median(drawing) == 0) == bool(plain) for drawing in drawn)


def test_scans_count_black_dots() -> None:
    """A coarse scan has 8 to 16 pixels a side, seventeen shades at most, ink from edge to edge, and the digit's shape."""
    generator = np.random.default_rng(1)
    written = digits(60).images
    dotted = [scans.draw(digit[..., 0], Paper(scanned=1.0), generator) for digit in written]

    assert {len(scan) for scan in dotted} == set(range(8, 17))
    assert all(scan.shape == (len(scan), len(scan)) for scan in dotted)
    assert len(np.unique(np.concatenate([scan.ravel() for scan in dotted]))) <= scans.DOTS**2 + 1
    rows = [np.count_nonzero(scan.any(axis=1)) / len(scan) for scan in dotted]
    assert np.mean(rows) > 0.9
    read = scans.readings(written, Paper(scanned=1.0), seed=1)
    likeness = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(read, written, strict=True)]
    assert np.median(likeness) > 0.75


def test_readings_are_like_what_was_written() -> None:
    """A digit of 100 pixels and more, read off paper, is the digit again: framed as MNIST is, nearly the same pixels."""
    written = digits(24).images
    read = scans.readings(written, Paper(100, 200, plain=0.0, unevenness=20, noise=3), seed=1)

    assert (read.shape, read.dtype) == (written.shape, np.dtype(np.uint8))
    likeness = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(read, written, strict=True)]
    assert np.median(likeness) > 0.9


def test_drawings_come_from_the_seed() -> None:
    """The same seed draws the same; another draws something else."""
    for draw in (
        lambda seed: non_digits.drawn_for_training(30, seed),
        lambda seed: non_digits.digits_of_other_hands(30, seed)[0],
        lambda seed: np.concatenate([*non_digits.judged(6, seed).values()]),
        lambda seed: scans.readings(digits(10).images, Paper(), seed),
    ):
        assert np.array_equal(draw(1), draw(1))
        assert not np.array_equal(draw(1), draw(2))


def test_judged_typefaces_strokes_and_signs_are_never_trained_on() -> None:
    """No typeface serves both training and judging, and no letter is drawn with a pen for training."""
    assert not set(non_digits.TRAINING_TYPEFACES) & set(non_digits.JUDGED_TYPEFACES)
    assert not non_digits.LOOKALIKES & set(non_digits.LETTERS)
    assert not set(strokes.LETTER_STROKES) & non_digits.LOOKALIKES


def test_every_kind_of_stranger_has_ink() -> None:
    """No picture that is to be refused is blank, or it would be refused for that."""
    for pictures in non_digits.judged(50, seed=1).values():
        assert pictures.shape == (50, 28, 28, 1)
        assert np.all(pictures.max(axis=(1, 2, 3)) > 96)


def test_digits_of_other_hands_are_single_figures() -> None:
    """Digits that a pen wrote, and printed ones, are neither blank nor several for the service."""
    written = digits(400)
    prepared = prepare_gray(written.images[..., 0], Ink.LIGHT_ON_DARK, Framing.AS_IS)

    assert not prepared.blank.any()
    assert prepared.several.mean() < 0.01
    assert set(written.labels.tolist()) == set(range(10))


def test_pool_without_extras_is_the_training_set() -> None:
    """A classic recipe sees each training image once an epoch, and nothing else."""
    training = digits(70)
    pool = Pool(training, dataclasses.replace(CLASSIC, batch_size=32), seed=1)

    taken = np.concatenate([*pool.batches(1)])

    assert np.array_equal(pool.images, training.images)
    assert sorted(taken.tolist()) == list(range(70))
    assert pool.steps_per_epoch == 3 == len([*pool.batches(1)])


def test_pool_takes_each_image_or_its_reading() -> None:
    """With paper and outliers, an epoch takes each training image once, some as readings, and outliers on top."""
    training = digits(96)
    pool = Pool(training, REAL_INK, seed=1)

    batches = [*pool.batches(1)]
    taken = np.concatenate(batches)
    of_digits = taken[taken < 2 * 96]

    assert sorted((of_digits % 96).tolist()) == list(range(96))
    assert 0.1 < np.mean(of_digits >= 96) < 0.4
    assert all(len(batch) == 36 and np.sum(pool.labels[batch] == NO_LABEL) == 4 for batch in batches)
    own = of_digits[of_digits < 96]
    assert np.array_equal(pool.labels[own], training.labels[own])
    assert pool.images[96:].max(axis=(1, 2, 3)).min() > 0, "nothing is blank"


def test_pool_comes_from_seed_and_epoch() -> None:
    """The same seed gives the same pool and the same batches in each epoch; epochs differ."""
    one, same, other = (Pool(digits(64), REAL_INK, seed) for seed in (1, 1, 2))

    assert np.array_equal(one.images, same.images)
    assert not np.array_equal(one.images, other.images)
    first, again, second = (np.concatenate([*pool.batches(epoch)]) for pool, epoch in ((one, 1), (same, 1), (one, 2)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)

"""Synthetic images: simulated scans, synthetic digits, non-digits, and the pool that training draws from."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.batching.prepare import prepare_gray
from digitserve.types import Framing, Gray, Ink
from digitserve_training.data.splits import Labelled, Split
from digitserve_training.fit.pool import NO_LABEL, Pool
from digitserve_training.model.presets import PRESETS
from digitserve_training.synth import glyphs, non_digits, scans, strokes
from digitserve_training.synth.digits import synthetic_digits
from digitserve_training.synth.scans import ScanParameters

CLASSIC = PRESETS["conv2-dense256"].recipe
REAL_INK = dataclasses.replace(CLASSIC, batch_size=32, scanned=0.25, outliers=0.125)


def digits(number: int = 96) -> Labelled:
    """Return synthetic digits."""
    images, labels = synthetic_digits(number, seed=5)
    return Labelled(images, labels)


@pytest.mark.parametrize("clean_share", [0.0, 1.0])
def test_scans_have_the_requested_sizes(clean_share: float) -> None:
    """The shorter side of each scan is within the given limits; clean scans have a black background."""
    generator = np.random.default_rng(1)
    parameters = ScanParameters(16, 64, clean_share)
    simulated = [scans.simulate_scan(digit[..., 0], parameters, generator) for digit in digits(40).images]

    assert all(16 <= min(scan.shape) <= 64 and max(scan.shape) <= 96 for scan in simulated)
    assert len({min(scan.shape) for scan in simulated}) > 10
    assert all((np.median(scan) == 0) == bool(clean_share) for scan in simulated)


def test_coarse_scans_count_black_dots() -> None:
    """A coarse scan has 8 to 16 pixels per side and at most 17 grey levels; its ink fills it and has the digit's shape."""
    generator = np.random.default_rng(1)
    images = digits(60).images
    parameters = ScanParameters(coarse_share=1.0)
    coarse = [scans.simulate_scan(digit[..., 0], parameters, generator) for digit in images]

    assert {len(scan) for scan in coarse} == set(range(8, 17))
    assert all(scan.shape == (len(scan), len(scan)) for scan in coarse)
    assert len(np.unique(np.concatenate([scan.ravel() for scan in coarse]))) <= scans.DOTS_PER_PIXEL**2 + 1
    rows = [np.count_nonzero(scan.any(axis=1)) / len(scan) for scan in coarse]
    assert np.mean(rows) > 0.9
    framed = scans.scan_and_frame(images, parameters, seed=1)
    correlation = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(framed, images, strict=True)]
    assert np.median(correlation) > 0.75


def test_framed_scans_resemble_the_original_digits() -> None:
    """Scanning a digit at 100 pixels or more and framing the scan gives nearly the original pixels."""
    images = digits(24).images
    framed = scans.scan_and_frame(images, ScanParameters(100, 200, max_shading=20, max_noise=3), seed=1)

    assert (framed.shape, framed.dtype) == (images.shape, np.dtype(np.uint8))
    correlation = [np.corrcoef(one.ravel(), other.ravel())[0, 1] for one, other in zip(framed, images, strict=True)]
    assert np.median(correlation) > 0.9


def test_seed_determines_the_images() -> None:
    """Equal seeds give equal images; different seeds give different ones."""
    for draw in (
        lambda seed: non_digits.for_training(30, seed),
        lambda seed: non_digits.certain(30, seed),
        lambda seed: synthetic_digits(30, seed)[0],
        lambda seed: np.concatenate([*non_digits.for_evaluation(6, seed).values()]),
        lambda seed: scans.scan_and_frame(digits(10).images, ScanParameters(), seed),
    ):
        assert np.array_equal(draw(1), draw(1))
        assert not np.array_equal(draw(1), draw(2))


def test_aileron_has_a_one_without_a_foot() -> None:
    """The 1 of Aileron has no foot, unlike the 1 of DejaVu Sans. A bold digit has more ink than a regular one."""

    def width_of_last_row(typeface: str) -> int:
        image = glyphs.draw_glyph("1", typeface) > 127
        return int(np.count_nonzero(image[np.flatnonzero(image.any(axis=1))[-1]]))

    assert 2 * width_of_last_row(glyphs.AILERON) < width_of_last_row("DejaVuSans")
    ink = [int(glyphs.draw_glyph("1", glyphs.AILERON, bold_px).sum()) for bold_px in (0, 1, 2)]
    assert ink == sorted(set(ink))


def test_training_and_evaluation_share_no_typefaces() -> None:
    """Training and evaluation use different typefaces, and no non-digit letter looks like a digit."""
    assert not set(glyphs.TRAINING_TYPEFACES) & set(glyphs.EVALUATION_TYPEFACES)
    assert not glyphs.LOOKALIKES & set(glyphs.LETTERS)
    assert not set(strokes.LETTER_STROKES) & glyphs.LOOKALIKES


def test_every_non_digit_has_ink() -> None:
    """No non-digit for evaluation is blank: a blank image would be rejected for another reason."""
    for images in non_digits.for_evaluation(50, seed=1).values():
        assert images.shape == (50, 28, 28, 1)
        assert np.all(images.max(axis=(1, 2, 3)) > 96)


def test_training_and_evaluation_share_no_kinds() -> None:
    """No function draws non-digits both for training and for evaluation, and none draws two kinds of training."""
    kinds = [draw for draw, _ in (*non_digits.TRAINING_KINDS, *non_digits.CERTAIN_KINDS)]

    assert not {*kinds} & {*non_digits.EVALUATION_KINDS.values()}
    assert len({*kinds}) == len(kinds)
    for some in (non_digits.TRAINING_KINDS, non_digits.CERTAIN_KINDS):
        assert sum(share for _, share in some) == pytest.approx(1)


@given(st.sampled_from([draw for draw, _ in non_digits.CERTAIN_KINDS]), st.integers(0, 2**32 - 1))
def test_certain_non_digits_use_all_shades(draw: Callable[[np.random.Generator], Gray], seed: int) -> None:
    """Each kind gives an image of 28x28 or 64x64, from black to white, with at least a hundredth of either half."""
    drawn = draw(np.random.default_rng(seed))

    assert drawn.dtype == np.uint8
    assert drawn.shape in {(28, 28), (64, 64)}
    assert (drawn.min(), drawn.max()) == (0, 255)
    assert 0.01 <= np.mean(drawn > 127) <= 0.99


def test_synthetic_digits_are_single_shapes() -> None:
    """The service finds synthetic digits, handwritten or printed, neither blank nor several shapes."""
    synthetic = digits(400)
    prepared = prepare_gray(synthetic.images[..., 0], Ink.LIGHT_ON_DARK, Framing.AS_IS)

    assert not prepared.blank.any()
    assert prepared.several.mean() < 0.01
    assert set(synthetic.labels.tolist()) == set(range(10))


def test_pool_without_extras_is_the_training_set() -> None:
    """Without scans and outliers, an epoch contains each training image once and nothing else."""
    training = digits(70)
    pool = Pool(Split(training, training), dataclasses.replace(CLASSIC, batch_size=32), seed=1)

    taken = np.concatenate([*pool.batches(1)])

    assert np.array_equal(pool.images, training.images)
    assert sorted(taken.tolist()) == list(range(70))
    assert pool.steps_per_epoch == 3 == len([*pool.batches(1)])


def test_pool_takes_each_image_or_its_scan() -> None:
    """With scans and outliers, an epoch contains each training image or its scan once, and outliers in addition."""
    training = digits(96)
    pool = Pool(Split(training, training), REAL_INK, seed=1)

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
    """Equal seeds give equal pools and equal batches in each epoch; different epochs give different batches."""
    split = Split(digits(64), digits(64))
    one, same, other = (Pool(split, REAL_INK, seed) for seed in (1, 1, 2))

    assert np.array_equal(one.images, same.images)
    assert not np.array_equal(one.images, other.images)
    first, again, second = (np.concatenate([*pool.batches(epoch)]) for pool, epoch in ((one, 1), (same, 1), (one, 2)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)

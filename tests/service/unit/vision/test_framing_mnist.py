"""Framing, polarity and verdicts on MNIST's test images: the error rates that the service promises on real digits."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from digitserve.batching.prepare import prepare_gray
from digitserve.types import Framing, Gray, Ink
from digitserve.vision.batch_checks import verdicts
from digitserve.vision.framing import frame
from digitserve.vision.polarity import find_ink

NUM_DIGITS = 2000
"""Number of test images for tests that process one image at a time."""


@pytest.fixture(scope="module")
def digits() -> Gray:
    """MNIST's 10 000 test images: uint8[N, 28, 28]."""
    path = os.environ.get("DIGITSERVE_MNIST")
    if not path or not Path(path).is_file():
        pytest.skip("DIGITSERVE_MNIST is not the path of a file; set it to the path of MNIST as .npz with x_test")
    with np.load(path) as stored:
        return np.asarray(stored["x_test"])


def cropped(digit: Gray) -> Gray:
    """Crop a digit to its ink."""
    rows, columns = np.flatnonzero(digit.any(axis=1)), np.flatnonzero(digit.any(axis=0))
    return digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def enlarged(digit: Gray) -> Gray:
    """Scale a digit to three times its size."""
    return np.kron(digit, np.ones((3, 3), np.uint8))


def side_by_side(left: Gray, right: Gray) -> Gray:
    """Put two digits side by side with a gap of 3 pixels."""
    height = max(len(left), len(right))
    level = [np.pad(digit, ((0, height - len(digit)), (0, 0))) for digit in (left, right)]
    return np.pad(np.hstack([level[0], np.zeros((height, 3), np.uint8), level[1]]), 4)


def stacked(upper: Gray, lower: Gray) -> Gray:
    """Put one digit above another with a gap of 3 pixels."""
    return side_by_side(upper.T, lower.T).T


def diagonal(upper: Gray, lower: Gray) -> Gray:
    """Put a digit to the lower right of another, with a gap of 3 pixels along both axes."""
    field = np.zeros((len(upper) + len(lower) + 3, upper.shape[1] + lower.shape[1] + 3), np.uint8)
    field[: len(upper), : upper.shape[1]] = upper
    field[-len(lower) :, -lower.shape[1] :] = lower
    return np.pad(field, 4)


def test_framing_hardly_changes_mnist_images(digits: Gray) -> None:
    """Framing leaves at least half of MNIST's images unchanged to the byte, and 99 of 100 nearly unchanged."""
    again = prepare_gray(digits[:NUM_DIGITS], Ink.LIGHT_ON_DARK, Framing.MNIST).images[..., 0].astype(float)
    distance = np.sqrt(((again - digits[:NUM_DIGITS]) ** 2).sum(axis=(1, 2)))
    assert np.median(distance) == 0
    assert np.percentile(distance, 99) < 60
    assert np.abs(again - digits[:NUM_DIGITS]).mean() < 0.1


@pytest.mark.parametrize(
    "change",
    [np.copy, cropped, enlarged, lambda digit: np.pad(digit, 20)],
    ids=["whole", "cropped", "enlarged", "margin"],
)
def test_polarity_is_found(digits: Gray, change: Callable[[Gray], Gray]) -> None:
    """The polarity is right for 99.95 % of digits and of their negatives."""
    changed = [change(digit) for digit in digits[:NUM_DIGITS]]
    assert np.mean([find_ink(image) is Ink.LIGHT_ON_DARK for image in changed]) >= 0.9995
    assert np.mean([find_ink(255 - image) is Ink.DARK_ON_LIGHT for image in changed]) >= 0.9995


def test_no_digit_is_blank_and_at_most_one_in_1000_several(digits: Gray) -> None:
    """Of all test digits used as they are, none is blank and at most 0.1 % are several."""
    blank, several = verdicts(digits)
    assert not blank.any()
    assert several.mean() <= 0.001


def test_no_framed_digit_is_blank_and_at_most_one_in_1000_several(digits: Gray) -> None:
    """Of framed digits, with and without sensor noise, none is blank and at most 0.1 % are several."""
    noise = np.random.default_rng(0).normal(0, 15, digits[:NUM_DIGITS].shape)
    for images in (digits[:NUM_DIGITS], (digits[:NUM_DIGITS] + noise).clip(0, 255).astype(np.uint8)):
        framed = [frame(image, Ink.AUTO) for image in images]
        assert not any(one.blank for one in framed)
        assert np.mean([one.several for one in framed]) <= 0.001


@pytest.mark.parametrize("place", [side_by_side, stacked, diagonal])
def test_two_digits_are_several(digits: Gray, place: Callable[[Gray, Gray], Gray]) -> None:
    """At least 97 % of pairs of digits with a gap of 3 pixels are several: side by side, stacked or diagonal."""
    inks = [cropped(digit) for digit in digits[:1000]]
    pairs = [place(one, other) for one, other in zip(inks[::2], inks[1::2], strict=True)]
    assert np.mean([frame(pair, Ink.LIGHT_ON_DARK).several for pair in pairs]) >= 0.97


def noisy(digits: Gray) -> Gray:
    """Add sensor noise of 10 grey levels."""
    return (digits + np.random.default_rng(0).normal(0, 10, digits.shape)).clip(0, 255).astype(np.uint8)


def blurred(digits: Gray) -> Gray:
    """Blur by a kernel of 1, 2, 1 along both axes."""
    padded = np.pad(digits.astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    blurred_digits: Gray = ((rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 16).astype(np.uint8)
    return blurred_digits


@pytest.mark.parametrize(
    "change",
    [
        np.copy,
        noisy,
        blurred,
        lambda digits: np.roll(digits, 1, axis=1),
        lambda digits: np.roll(digits, -1, axis=2),
    ],
    ids=["unchanged", "noisy", "blurred", "moved down", "moved left"],
)
def test_mnist_reaches_the_network_byte_for_byte(digits: Gray, change: Callable[[Gray], Gray]) -> None:
    """With unspecified framing all 10 000 test images are used as they are, also noisy, blurred and moved by a pixel."""
    images = change(digits)
    for size in (1, 64):
        for start in range(0, len(images) if size > 1 else 500, size):
            batch = images[start : start + size]
            prepared = prepare_gray(batch, Ink.AUTO, Framing.AUTO)
            assert prepared.images.tobytes() == batch.tobytes()
            assert not prepared.blank.any()
            assert not prepared.spans_image.any()

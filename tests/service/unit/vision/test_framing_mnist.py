"""Preparing pixels, measured on MNIST's own test images: what the service promises about real digits."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from digitserve.batching.prepare import prepare_gray
from digitserve.types import Framing, Ink
from digitserve.vision.framing import find_ink, frame, verdicts

Gray = NDArray[np.uint8]

NUM_DIGITS = 2000
"""As many test images as a test takes that goes through them one by one."""


@pytest.fixture(scope="module")
def digits() -> Gray:
    """MNIST's 10 000 test images: uint8[N, 28, 28]."""
    path = os.environ.get("DIGITSERVE_MNIST")
    if not path or not Path(path).is_file():
        pytest.skip("DIGITSERVE_MNIST names no file; set it to MNIST as an .npz with x_test")
    with np.load(path) as stored:
        return np.asarray(stored["x_test"])


def cropped(digit: Gray) -> Gray:
    """Cut a digit down to its ink."""
    rows, columns = np.flatnonzero(digit.any(axis=1)), np.flatnonzero(digit.any(axis=0))
    return digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def enlarged(digit: Gray) -> Gray:
    """Draw a digit three times as large."""
    return np.kron(digit, np.ones((3, 3), np.uint8))


def side_by_side(left: Gray, right: Gray) -> Gray:
    """Put two digits beside each other with 3 empty pixels between."""
    height = max(len(left), len(right))
    level = [np.pad(digit, ((0, height - len(digit)), (0, 0))) for digit in (left, right)]
    return np.pad(np.hstack([level[0], np.zeros((height, 3), np.uint8), level[1]]), 4)


def stacked(upper: Gray, lower: Gray) -> Gray:
    """Put two digits above each other with 3 empty pixels between."""
    return side_by_side(upper.T, lower.T).T


def diagonal(upper: Gray, lower: Gray) -> Gray:
    """Put a digit to the lower right of another, 3 empty pixels away along both axes."""
    field = np.zeros((len(upper) + len(lower) + 3, upper.shape[1] + lower.shape[1] + 3), np.uint8)
    field[: len(upper), : upper.shape[1]] = upper
    field[-len(lower) :, -lower.shape[1] :] = lower
    return np.pad(field, 4)


def test_framing_again_changes_hardly_anything(digits: Gray) -> None:
    """MNIST's images framed once more are themselves: the median image to the byte, 99 of 100 nearly so."""
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
def test_ink_is_found_out(digits: Gray, change: Callable[[Gray], Gray]) -> None:
    """Which side ink is on is right for 99.95 % of digits and of their negatives."""
    changed = [change(digit) for digit in digits[:NUM_DIGITS]]
    assert np.mean([find_ink(image) is Ink.LIGHT_ON_DARK for image in changed]) >= 0.9995
    assert np.mean([find_ink(255 - image) is Ink.DARK_ON_LIGHT for image in changed]) >= 0.9995


def test_no_digit_is_blank_and_hardly_any_several(digits: Gray) -> None:
    """Of all test digits as they are, none is blank and at most 0.1 % are several."""
    blank, several = verdicts(digits)
    assert not blank.any()
    assert several.mean() <= 0.001


def test_no_framed_digit_is_blank_and_hardly_any_several(digits: Gray) -> None:
    """The same of digits that are framed, and of those in sensor noise."""
    noise = np.random.default_rng(0).normal(0, 15, digits[:NUM_DIGITS].shape)
    for images in (digits[:NUM_DIGITS], (digits[:NUM_DIGITS] + noise).clip(0, 255).astype(np.uint8)):
        framed = [frame(image, Ink.AUTO) for image in images]
        assert not any(one.blank for one in framed)
        assert np.mean([one.several for one in framed]) <= 0.001


@pytest.mark.parametrize("place", [side_by_side, stacked, diagonal])
def test_two_digits_are_several(digits: Gray, place: Callable[[Gray, Gray], Gray]) -> None:
    """Two digits with 3 pixels between them are several in 97 % of cases or more, however they stand to each other."""
    inks = [cropped(digit) for digit in digits[:1000]]
    pairs = [place(one, other) for one, other in zip(inks[::2], inks[1::2], strict=True)]
    assert np.mean([frame(pair, Ink.LIGHT_ON_DARK).several for pair in pairs]) >= 0.97

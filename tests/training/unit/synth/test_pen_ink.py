"""Pen strokes drawn as images."""

import numpy as np
import pytest

from digitserve.batching.prepare import prepare_gray
from digitserve.types import Framing, Ink
from digitserve_training.synth import pen_ink
from digitserve_training.synth.strokes import DIGIT_STROKES

SEVEN = [np.array(stroke, np.float32) for stroke in DIGIT_STROKES["7"][1]]


def draw(number: int, seed: int) -> np.ndarray:
    return pen_ink.draw_and_frame([SEVEN] * number, np.random.default_rng(seed))


def test_images_are_framed_and_come_from_the_seed() -> None:
    """Images are uint8[N,28,28,1]. Equal seeds give equal images; each drawing of a character looks different."""
    images = draw(40, 1)

    assert (images.shape, images.dtype) == ((40, 28, 28, 1), np.dtype(np.uint8))
    assert np.array_equal(images, draw(40, 1))
    assert not np.array_equal(images, draw(40, 2))
    assert len(np.unique(images, axis=0)) == 40


def test_images_show_ink() -> None:
    """No image is blank, and most of them show a single shape."""
    prepared = prepare_gray(draw(200, 3)[..., 0], Ink.LIGHT_ON_DARK, Framing.AS_IS)

    assert not prepared.blank.any()
    assert prepared.several.mean() < 0.05


def test_no_characters_give_no_images() -> None:
    """Without characters the result is empty and has the shape of images."""
    assert pen_ink.draw_and_frame([], np.random.default_rng(1)).shape == (0, 28, 28, 1)


@pytest.mark.parametrize("positions", [[[5, 5]], [[5, 5], [5, 5]], [[0, 0], [1e6, 0]], [[0, 0], [0, 1e-3]]])
def test_any_stroke_can_be_drawn(positions: list[list[float]]) -> None:
    """A dot, a line, and coordinates of any scale give an image with ink."""
    images = pen_ink.draw_and_frame([[np.array(positions, np.float32)]] * 8, np.random.default_rng(1))

    assert images.max(axis=(1, 2, 3)).min() > 0


def test_pens_are_thin_and_thick() -> None:
    """The share of ink in drawings of one character differs by more than a factor of four, as pens do."""
    generator = np.random.default_rng(1)
    drawn = [pen_ink.draw_ink(SEVEN, generator) for _ in range(60)]

    shares = [np.mean(ink > 127) for ink in drawn]
    assert max(shares) > 4 * min(shares)
    assert all(max(ink.shape) <= 2 * pen_ink.INK_SIDE_PX for ink in drawn)


def test_plain_drawings_are_fixed_and_upright() -> None:
    """A plain drawing is the same every time, and shows the strokes with x to the right and y down."""
    images = pen_ink.draw_plain([SEVEN, SEVEN])[..., 0]

    assert np.array_equal(images[0], images[1])
    rows, columns = np.nonzero(images[0])
    top, bottom = columns[rows == rows.min()], columns[rows == rows.max()]
    assert np.ptp(top) > 2 * np.ptp(bottom), "the bar of a 7 is at its top"
    assert bottom.mean() < top.max() - 4, "its stem goes down to the left"


def test_some_bitmaps_are_stretched_to_a_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such bitmaps have two levels and 12 to 24 pixels a side; ink as narrow as a 1 is stretched three times at most."""
    monkeypatch.setattr(pen_ink, "SQUARE_SHARE", 1.0)
    generator = np.random.default_rng(1)
    wide = [pen_ink._bitmap(pen_ink.draw_ink(SEVEN, generator), generator) for _ in range(60)]
    one = [np.array([[0, 0], [0.2, 9]], np.float32)]
    narrow = [pen_ink._bitmap(pen_ink.draw_ink(one, generator), generator) for _ in range(60)]

    assert {len(np.unique(image)) for image in wide} == {2}
    assert all(12 <= max(image.shape) <= 24 for image in wide + narrow)
    assert sum(image.shape[0] == image.shape[1] for image in wide) > 50
    assert min(image.shape[1] / image.shape[0] for image in narrow) < 0.9

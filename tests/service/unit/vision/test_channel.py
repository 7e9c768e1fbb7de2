"""The channel in which the ink of a colour image is seen."""

import numpy as np
import pytest

from digitserve.types import Gray, Ink
from digitserve.vision.channel import select_channel
from digitserve.vision.gray import to_gray
from support.framing_cases import colors

WHITE = (255, 255, 255)


def luma(pixels: Gray) -> Gray:
    """Return the luma of one image."""
    return to_gray(pixels.tobytes(), 1, *pixels.shape)[0]


@pytest.mark.parametrize(("paper", "pen"), [(WHITE, (20, 30, 120)), ((0, 0, 0), WHITE), (WHITE, (200, 40, 40))])
def test_visible_ink_is_read_from_the_luma(paper: tuple[int, ...], pen: tuple[int, ...]) -> None:
    """Ink that the luma shows is read from the luma, with the caller's polarity."""
    pixels = colors(paper, pen)
    gray, ink = select_channel(pixels, Ink.DARK_ON_LIGHT)
    assert (gray == luma(pixels)).all()
    assert ink is Ink.DARK_ON_LIGHT


@pytest.mark.parametrize(
    ("paper", "pen", "channel"),
    [
        ((0, 150, 0), (255, 22, 0), 0),
        (WHITE, (255, 255, 60), 2),
        ((*WHITE, 0), (*WHITE, 255), 3),
    ],
)
def test_ink_as_light_as_its_paper_is_read_from_the_channel_with_most_contrast(
    paper: tuple[int, ...], pen: tuple[int, ...], channel: int
) -> None:
    """Red on green, yellow on white and white on transparent are read from red, blue and alpha, polarity open."""
    pixels = colors(paper, pen)
    gray, ink = select_channel(pixels, Ink.DARK_ON_LIGHT)
    assert (gray == pixels[..., channel]).all()
    assert ink is Ink.AUTO


def test_noise_is_no_reason_for_a_channel() -> None:
    """An empty photo keeps its luma although one channel is noisier."""
    noise = np.random.default_rng(0).normal(200, (4, 4, 8), (100, 100, 3)).clip(0, 255).astype(np.uint8)
    assert (select_channel(noise, Ink.AUTO)[0] == luma(noise)).all()


def test_a_grey_image_is_its_only_channel() -> None:
    """An image with one channel is returned as it is."""
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    assert (select_channel(gray, Ink.AUTO)[0] == gray[..., 0]).all()

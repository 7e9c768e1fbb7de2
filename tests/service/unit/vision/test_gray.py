"""Colour pixels to grey, as the protocol defines it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays

from digitserve.types import Gray
from digitserve.vision.gray import to_gray


@given(arrays(np.uint8, (2, 5, 7, 3)))
def test_rgb_is_bt601_luma(rgb: Gray) -> None:
    """RGB becomes 0.299 R + 0.587 G + 0.114 B, rounded to nearest."""
    reference = rgb @ np.array([0.299, 0.587, 0.114])
    gray = to_gray(rgb.tobytes(), 2, 5, 7, 3)
    assert gray.dtype == np.uint8
    assert np.abs(gray - reference).max() <= 0.5 + 1e-9


@given(arrays(np.uint8, (2, 5, 7, 4)))
def test_rgba_is_composited_on_white(rgba: Gray) -> None:
    """Straight alpha blends the colour with white before luma is computed; rounding may be off by one grey level."""
    alpha = rgba[..., 3:] / 255
    reference = (rgba[..., :3] * alpha + 255 * (1 - alpha)) @ np.array([0.299, 0.587, 0.114])
    assert np.abs(to_gray(rgba.tobytes(), 2, 5, 7, 4) - reference).max() <= 0.502


def test_black_white_and_transparent_are_exact() -> None:
    """White is 255, black is 0, and a transparent pixel of any colour is white."""
    colours = np.array([[255, 255, 255, 255], [0, 0, 0, 255], [9, 99, 199, 0]], np.uint8)
    assert to_gray(colours.tobytes(), 1, 1, 3, 4).tolist() == [[[255, 0, 255]]]


@pytest.mark.parametrize("channels", [3, 4])
def test_pixels_are_converted_independently(channels: int) -> None:
    """A pixel of an image of any size has the grey level that it has alone: the conversion in chunks loses nothing."""
    colours = np.random.default_rng(0).integers(0, 256, (123, 157, channels), np.uint8)
    gray = to_gray(colours.tobytes(), 1, 123, 157, channels)[0]
    for y, x in ((0, 0), (52, 28), (122, 156)):
        assert gray[y, x] == to_gray(colours[y, x].tobytes(), 1, 1, 1, channels)
    tall = to_gray(colours.tobytes(), 123, 1, 157, channels)
    assert (tall[:, 0] == gray).all()
    assert (to_gray(colours[100:].tobytes(), 1, 23, 157, channels)[0] == gray[100:]).all()


def test_gray_is_not_copied() -> None:
    """The result for grey pixels is a view of the caller's bytes."""
    pixels = bytes(range(24))
    gray = to_gray(memoryview(pixels), 2, 3, 4, 1)
    assert np.shares_memory(gray, np.frombuffer(pixels, np.uint8))
    assert gray.tobytes() == pixels

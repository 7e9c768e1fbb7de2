"""Reduction of large images by block means."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from digitserve.settings import Settings
from digitserve.types import Box
from digitserve.vision.gray import to_gray
from digitserve.vision.reduction import MAX_SIDE, Reduction, reduce_by_block_means

SHAPES = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])),
)


def naive_means(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Return the means as Python computes them, block by block and channel by channel."""
    channels = image.reshape(*image.shape[:2], -1)
    rows, columns = (range(0, length, factor) for length in image.shape[:2])
    means = np.empty((len(rows), len(columns), channels.shape[2]), np.uint8)
    for y, top in enumerate(rows):
        for x, left in enumerate(columns):
            block = [
                [int(number) for number in pixel]
                for pixel in channels[top : top + factor, left : left + factor].reshape(-1, channels.shape[2])
            ]
            alphas = [pixel[3] if len(pixel) == 4 else 1 for pixel in block]
            for channel in range(channels.shape[2]):
                weights = alphas if channel < 3 and any(alphas) else [1] * len(block)
                total = sum(pixel[channel] * weight for pixel, weight in zip(block, weights, strict=True))
                means[y, x, channel] = (total + sum(weights) // 2) // sum(weights)
    return means.reshape(*means.shape[:2], *image.shape[2:])


@given(image=SHAPES.flatmap(lambda shape: arrays(np.uint8, shape)), factor=st.integers(1, 45))
@settings(max_examples=150, deadline=None)
def test_every_pixel_is_the_exact_mean_of_its_block(image: NDArray[np.uint8], factor: int) -> None:
    """Means are those of a naive version, for odd sizes, cut-off blocks at the border and blocks larger than the image."""
    reduced = reduce_by_block_means(image, factor)

    assert reduced.dtype == np.uint8
    assert (reduced == naive_means(image, factor)).all()


@pytest.mark.parametrize("factor", [2, 3, 17, 300])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_sums_do_not_overflow(factor: int, channels: int) -> None:
    """White stays white with blocks of any size, and over several bands of rows."""
    image = np.full((factor * 40 + 1, factor * 2 - 1, channels), 255, np.uint8)

    assert (reduce_by_block_means(image, factor) == 255).all()


def test_white_on_transparent_keeps_its_colour_at_edges() -> None:
    """Transparent black pixels do not darken the white ink beside them: compositing first gives the same image."""
    image = np.zeros((40, 40, 4), np.uint8)
    image[11:30, 13:28] = 255
    reduced = reduce_by_block_means(image, 2)

    assert (to_gray(reduced.tobytes(), 1, 20, 20, 4) == 255).all()


@given(height=st.integers(1, 9000), width=st.integers(1, 9000), max_side=st.integers(1, 9000))
def test_the_smallest_factor_is_chosen(height: int, width: int, max_side: int) -> None:
    """No side is longer than the maximum, and with a smaller factor one would be."""
    reduction = Reduction.to_side(height, width, max_side)

    assert max(reduction.size) <= max_side
    assert reduction.factor == 1 or max(reduction._replace(factor=reduction.factor - 1).size) > max_side
    assert min(reduction.size) >= 1


@given(height=st.integers(1, 99), width=st.integers(1, 99), factor=st.integers(1, 12))
def test_a_box_covers_the_same_part_of_the_original(height: int, width: int, factor: int) -> None:
    """The box of the whole reduced image is that of the whole original; the first block is the first block."""
    reduction = Reduction(factor, height, width)

    assert reduction.to_original(Box(0, reduction.size[0], 0, reduction.size[1])) == (0, height, 0, width)
    assert reduction.to_original(Box(0, 1, 0, 1)) == (0, min(factor, height), 0, min(factor, width))


def test_an_image_of_the_longest_side_fits_into_the_default_limit() -> None:
    """In every format, with room for the other fields of the request."""
    assert Settings().max_request_bytes >= 4 * MAX_SIDE**2 + 1024

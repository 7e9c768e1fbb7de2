"""Drawings of digits that touch."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from digitserve.batching.prepare import prepare_gray
from digitserve.types import Framing, Ink
from digitserve_training.synth import touching
from digitserve_training.synth.digits import synthetic_digits

HEIGHT = 6
INK = st.sampled_from([0, touching.INK_LEVEL - 1, touching.INK_LEVEL, 255])


def drawings() -> st.SearchStrategy[NDArray[np.uint8]]:
    """Return small drawings of one height."""
    shapes = st.tuples(st.just(HEIGHT), st.integers(1, 8))
    return shapes.flatmap(lambda shape: arrays.arrays(np.uint8, shape, elements=INK))


@given(drawings(), drawings(), st.integers(0, touching.MAX_OVERLAP_PX))
def test_joined_drawings_are_complete_and_as_close_as_asked(
    left: NDArray[np.uint8], right: NDArray[np.uint8], overlap_px: int
) -> None:
    """Both drawings are in the result, which adds no ink, and the smallest distance of their ink is the one asked for."""
    joined = touching.join(left, right, overlap_px)

    def places(start: int) -> NDArray[np.uint8]:
        """Draw the result again with the right drawing ``start`` columns from the left one."""
        width = max(-start, 0)
        canvas = np.zeros((HEIGHT, max(width + left.shape[1], width + start + right.shape[1])), np.uint8)
        canvas[:, width : width + left.shape[1]] = left
        part = canvas[:, width + start : width + start + right.shape[1]]
        part[:] = np.maximum(part, right)
        return canvas

    def distance(start: int) -> int | None:
        """Return the number of columns between the ink in the row where it is smallest; negative if it overlaps."""
        columns = [[np.flatnonzero(row >= touching.INK_LEVEL) for row in drawing] for drawing in (left, right)]
        free = [start + two[0] - one[-1] - 1 for one, two in zip(*columns, strict=True) if one.size and two.size]
        return min(free, default=None)

    matching = [start for start in range(-20, left.shape[1] + 1) if np.array_equal(joined, places(start))]
    assert matching
    distances = [distance(start) for start in matching]
    assert distances[0] is None or -overlap_px in distances


def test_touching_digits_are_one_shape() -> None:
    """The service finds no image blank, and nearly none to be several shapes: their verdict depends on the network."""
    digits, _ = synthetic_digits(60, seed=5)

    images = touching.touching_digits(digits, 200, seed=1)

    prepared = prepare_gray(images[..., 0], Ink.LIGHT_ON_DARK, Framing.AS_IS)
    assert images.shape == (200, 28, 28, 1)
    assert not prepared.blank.any()
    assert prepared.several.mean() < 0.05
    widths, heights = _extents(images)
    assert np.mean(widths > heights) > 0.4, "most digits are higher than wide"


def test_two_upright_strokes_are_not_used() -> None:
    """Upright strokes touch digits, but not each other: such a pair looks like a stroke of a thick pen."""
    stroke = np.zeros((30, 28, 28, 1), np.uint8)
    stroke[:, 4:24, 13:15] = 255
    ring = np.zeros((1, 28, 28, 1), np.uint8)
    ring[0, 4:24, 8:20] = 255
    ring[0, 6:22, 10:18] = 0

    widths, heights = _extents(touching.touching_digits(np.concatenate([stroke, ring]), 60, seed=1))

    assert np.all(widths > 0.3 * heights)
    assert touching.touching_digits(stroke, 3, seed=1).shape == (3, 28, 28, 1), "used if there is nothing else"


def _extents(images: NDArray[np.uint8]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return width and height of the ink of each image."""
    ink = images[..., 0] > 60
    return np.count_nonzero(ink.any(axis=1), axis=1), np.count_nonzero(ink.any(axis=2), axis=1)


def test_seed_determines_touching_digits() -> None:
    """Equal seeds give equal images; different seeds give different ones."""
    digits, _ = synthetic_digits(10, seed=5)

    one, same, other = (touching.touching_digits(digits, 20, seed) for seed in (1, 1, 2))

    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)

"""Candidates of parts are placed as framing places digits, and lie between their cuts."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.reading.candidates import FAINTEST, cut
from digitserve.types import Box
from digitserve.vision.placement import place, place_many


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60)), min_size=1, max_size=6))
def test_many_are_placed_as_one_by_one(seed: int, sizes: list[tuple[int, int]]) -> None:
    """Inks of any size are placed together exactly as each by itself."""
    generator = np.random.default_rng(seed)
    inks = [generator.random(size, np.float32) * np.float32(0.9) + np.float32(0.1) for size in sizes]
    together = place_many(inks)
    for ink, image in zip(inks, together, strict=True):
        np.testing.assert_array_equal(image, place(ink, Box(0, len(ink), 0, ink.shape[1]), FAINTEST))


def test_symmetric_ink_is_placed_as_one_by_one() -> None:
    """A centre of mass on the border of two pixels is rounded to the same side."""
    inks = [np.ones((side, 20), np.float32) for side in range(1, 21)]
    for ink, image in zip(inks, place_many(inks), strict=True):
        np.testing.assert_array_equal(image, place(ink, Box(0, len(ink), 0, 20), FAINTEST))


@settings(max_examples=25)
@given(st.integers(0, 1000), st.integers(12, 30), st.integers(20, 80))
def test_parts_lie_in_the_piece(seed: int, height: int, width: int) -> None:
    """Each part has ink in its box, its box lies in the piece's, it goes from left to right, and none is the whole piece."""
    strength = np.random.default_rng(seed).random((height + 2, width + 2), np.float32)
    box = Box(10, 10 + height, 5, 5 + width)
    parts = cut(strength, box, float(height))
    if parts is None:
        return
    assert len(parts.starts) == len(parts.ends) == len(parts.boxes) == len(parts.images)
    assert np.all(parts.starts < parts.ends)
    assert not np.any((parts.starts == 0) & (parts.ends == len(parts.costs) - 1))
    assert parts.images.max(axis=(1, 2)).min() == 255
    for part in parts.boxes:
        assert box.top - 1 <= part.top < part.bottom <= box.bottom
        assert box.left - 1 <= part.left < part.right <= box.right

"""Cuts of touching digits go where little ink is, and leave parts on both sides."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from digitserve.reading.cuts import find_cuts


def _rings(distance: int) -> np.ndarray:
    """Draw two rings of 24 pixels that are joined by a thin bar."""
    y, x = np.mgrid[:24, : 24 + distance]
    rings = [np.abs(np.hypot(y - 11.5, x - center) - 10) < 1.5 for center in (11.5, 11.5 + distance)]
    bar = (np.abs(y - 11.5) < 1) & (x > 20) & (x < distance + 3)
    return (rings[0] | rings[1] | bar).astype(np.float32)


def test_ligature_is_cut() -> None:
    """Of the cuts through two rings that a bar joins, one crosses the bar only, between the rings."""
    cuts = find_cuts(_rings(30), 24.0, 10, 0.06)
    middles = cuts.paths.mean(axis=1)
    assert np.any((cuts.costs <= 3) & (middles > 20) & (middles < 34))


@given(st.integers(0, 1000), st.integers(8, 40), st.integers(4, 80))
def test_paths_stay_inside_and_differ(seed: int, height: int, width: int) -> None:
    """Paths through any ink stay inside, are in order, and are as far apart as asked for."""
    strength = np.random.default_rng(seed).random((height, width), np.float32)
    cuts = find_cuts(strength, height, 12, 0.08)
    assert len(cuts.paths) == len(cuts.costs) == len(cuts.ranks) <= 12
    if len(cuts.paths):
        assert cuts.paths.min() >= 0
        assert cuts.paths.max() < width
    assert np.all(np.diff(cuts.paths.mean(axis=1)) >= 0)
    for index, path in enumerate(cuts.paths):
        others = np.delete(cuts.paths, index, axis=0)
        assert np.all(np.abs(others - path).mean(axis=1) > 0.08 * height)

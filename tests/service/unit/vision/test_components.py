"""Telling figures apart, against scipy's labelling and against shadows cast pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from digitserve.vision.components import MAX_SIDE, MIN_KEPT_RATIO, Box, look, may_be_several

Mask = NDArray[np.bool_]

EIGHT_WAYS = np.ones((3, 3))


def blobs(height: int, width: int, seed: int) -> Mask:
    """Return random smooth blobs, a few or many."""
    generator = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(generator.random((height, width)), generator.uniform(0.3, 4))
    mask: Mask = field > np.quantile(field, generator.uniform(0.3, 0.98))
    return mask


masks = st.builds(blobs, st.integers(1, MAX_SIDE), st.integers(1, MAX_SIDE), st.integers(0, 2**32 - 1))


def has_gap(mask: Mask) -> bool:
    """Cast a mask's shadow along rows, columns and both diagonals, and say whether light passes within one of them."""
    y, x = np.nonzero(mask)
    return any(
        len(np.unique(places)) < np.ptp(places) + 1
        for places in (y, x, x + y, x - y)
    )  # fmt: skip


def box_of(mask: Mask) -> Box:
    """Return the box of all pixels."""
    y, x = np.nonzero(mask)
    return Box(int(y.min()), int(y.max()) + 1, int(x.min()), int(x.max()) + 1)


@given(masks)
def test_box_is_around_all_figures_but_specks(mask: Mask) -> None:
    """Where light passes, figures are those of scipy, and only specks are left out; elsewhere all is one figure."""
    seen = look(mask)
    if not mask.any():
        assert seen is None
        return
    assert seen is not None
    if has_gap(mask):
        labelled, _ = ndimage.label(mask, EIGHT_WAYS)
        sizes = np.bincount(labelled.ravel())
        sizes[0] = 0
        mask = np.isin(labelled, np.flatnonzero(sizes >= MIN_KEPT_RATIO * sizes.max()))
        mask &= labelled > 0
    else:
        assert not seen.several
    assert seen.box == box_of(mask)


@given(st.lists(st.builds(blobs, st.just(28), st.just(28), st.integers(0, 2**32 - 1)), min_size=1, max_size=5))
def test_gaps_are_seen_in_every_mask_of_a_batch(batch: list[Mask]) -> None:
    """A mask may show several figures exactly if light passes within one of its shadows, whatever stands beside it."""
    assert may_be_several(np.stack(batch)).tolist() == [has_gap(mask) for mask in batch]


@pytest.mark.parametrize("side", [28, MAX_SIDE])
def test_a_full_mask_is_one_figure(side: int) -> None:
    """Shadows as wide as they can be are whole."""
    seen = look(np.ones((side, side), np.bool_))
    assert seen is not None
    assert not seen.several
    assert seen.box == Box(0, side, 0, side)


@pytest.mark.parametrize("turned", [False, True])
def test_figures_at_opposite_sides_are_not_neighbours(turned: bool) -> None:
    """A figure at the left edge and one at the right are far apart, though one row ends where the next begins."""
    mask = np.zeros((MAX_SIDE, MAX_SIDE), np.bool_)
    mask[10:40, :6] = mask[20:50, -6:] = True
    seen = look(mask.T if turned else mask)
    assert seen is not None
    assert seen.several

"""Connected components, against scipy's labelling and against projections computed pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from digitserve.types import Box
from digitserve.vision.components import MAX_SIDE, MIN_KEPT_RATIO, find_gaps, project, segment, segment_rows

Mask = NDArray[np.bool_]

EIGHT_CONNECTED = np.ones((3, 3))


def blobs(height: int, width: int, seed: int) -> Mask:
    """Return random smooth blobs, few or many."""
    generator = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(generator.random((height, width)), generator.uniform(0.3, 4))
    mask: Mask = field > np.quantile(field, generator.uniform(0.3, 0.98))
    return mask


masks = st.builds(blobs, st.integers(1, MAX_SIDE), st.integers(1, MAX_SIDE), st.integers(0, 2**32 - 1))


def has_gap(mask: Mask) -> bool:
    """Return whether a mask's projection along rows, columns or one of the diagonals has a gap.

    On diagonals a gap of one is none: pixels that touch at a corner are two diagonals apart.
    """
    y, x = np.nonzero(mask)
    return any(
        bool((np.diff(np.unique(places)) > step).any())
        for places, step in ((y, 1), (x, 1), (x + y, 2), (x - y, 2))
    )  # fmt: skip


def bounding_box(mask: Mask) -> Box:
    """Return the bounding box of all pixels."""
    y, x = np.nonzero(mask)
    return Box(int(y.min()), int(y.max()) + 1, int(x.min()), int(x.max()) + 1)


@given(masks)
def test_the_box_encloses_all_components_but_specks(mask: Mask) -> None:
    """With a gap in a projection, the components are scipy's and only specks are left out; otherwise there is one component."""
    found = segment(mask)
    if not mask.any():
        assert found is None
        return
    assert found is not None
    if has_gap(mask):
        labels, _ = ndimage.label(mask, EIGHT_CONNECTED)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        mask = np.isin(labels, np.flatnonzero(sizes >= MIN_KEPT_RATIO * sizes.max()))
        mask &= labels > 0
    else:
        assert not found.several
    assert found.box == bounding_box(mask)


small_masks = st.builds(blobs, st.just(28), st.just(28), st.integers(0, 2**32 - 1))


def row_integers(mask: Mask) -> NDArray[np.uint64]:
    """Return the rows of a mask as integers whose lowest bit is the first pixel: uint64[H]."""
    return mask @ (np.uint64(1) << np.arange(mask.shape[1], dtype=np.uint64))


@given(small_masks)
def test_rows_as_integers_are_segmented_as_their_mask(mask: Mask) -> None:
    """A mask with a gap has the same box and the same verdict on several shapes in both representations."""
    if has_gap(mask):
        found = segment(mask)
        assert found is not None
        assert segment_rows(row_integers(mask)) == (found.box, found.several)


@given(st.lists(small_masks, min_size=1, max_size=5))
def test_gaps_are_found_for_each_mask_of_a_batch(batch: list[Mask]) -> None:
    """A mask has a gap if and only if one of its projections has one, whatever the other masks of the batch are."""
    rows = np.stack([row_integers(mask) for mask in batch], axis=1)
    assert find_gaps(project(rows)).tolist() == [has_gap(mask) for mask in batch]


@pytest.mark.parametrize("side", [28, MAX_SIDE])
def test_a_full_mask_is_one_component(side: int) -> None:
    """Projections of the largest possible width have no gap."""
    found = segment(np.ones((side, side), np.bool_))
    assert found is not None
    assert not found.several
    assert found.box == Box(0, side, 0, side)


@pytest.mark.parametrize("transposed", [False, True])
def test_shapes_at_opposite_edges_are_not_connected(transposed: bool) -> None:
    """Shapes at the left and the right edge are separate, although one row's last bit is near the next row's first."""
    mask = np.zeros((MAX_SIDE, MAX_SIDE), np.bool_)
    mask[10:40, :6] = mask[20:50, -6:] = True
    found = segment(mask.T if transposed else mask)
    assert found is not None
    assert found.several

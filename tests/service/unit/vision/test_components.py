"""Connected components, against scipy's labelling and against projections computed pixel by pixel."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from digitserve.types import Box, Ink
from digitserve.vision import packed_masks
from digitserve.vision.components import (
    MAX_FILL_STEPS,
    MAX_SIDE,
    MIN_KEPT_RATIO,
    count_components,
    find_components,
    find_gaps,
    project,
    segment,
    segment_rows,
)
from digitserve.vision.framing import frame

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
    if not found.num_components:
        return
    if has_gap(mask):
        labels, _ = ndimage.label(mask, EIGHT_CONNECTED)
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        mask = np.isin(labels, np.flatnonzero(sizes >= MIN_KEPT_RATIO * sizes.max()))
        mask &= labels > 0
    else:
        assert not found.several
    assert found.box == bounding_box(mask)


@given(masks)
def test_components_are_those_of_scipy(mask: Mask) -> None:
    """Areas and boxes, unless the mask is a texture, for which there are none."""
    found = find_components(mask)
    labels, number = ndimage.label(mask, EIGHT_CONNECTED)
    assert count_components(mask, 5) == min(number, 5)
    if not found:
        assert number != 1
        return
    places = ndimage.find_objects(labels)
    areas = np.bincount(labels.ravel())[1:]
    expected = sorted(
        (int(area), *(end for one in place for end in (one.start, one.stop)))
        for area, place in zip(areas, places, strict=True)
    )
    assert sorted((one.area, *one.box) for one in found) == [
        one for one in expected if len(found) == number or one[0] > 1
    ]


def pattern(height: int, width: int, code: int) -> Mask:
    """Return a mask in which one of some hostile patterns repeats every few pixels."""
    y, x = np.mgrid[:height, :width]
    step, kind = 2 + code // 8 % 7, code % 8
    ring = np.minimum(np.minimum(y, height - 1 - y), np.minimum(x, width - 1 - x))
    winding = np.where(y % step, x == np.where(y // step % 2, 0, width - 1), True)
    mask: Mask = (
        (y % step == 0) & (x % step == 0), y % step == 0, x % step == 0, (x % step == 0) | (y == 0), winding,
        (x + y) % step == 0, ring % step == 0, (y + np.abs(x % (2 * step) - step)) % step == 0,
    )[kind]  # fmt: skip
    return mask


@pytest.mark.parametrize("side", [28, MAX_SIDE])
def test_the_work_on_any_mask_is_bounded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dots, lines, combs, mazes and zigzags take no more steps of flood fills than a page of digits may."""
    steps = 0
    dilate = packed_masks.dilate

    def counting(bits: int, stride: int) -> int:
        nonlocal steps
        steps += 1
        return dilate(bits, stride)

    monkeypatch.setattr(packed_masks, "dilate", counting)
    for mask in (pattern(side, side, code) for code in range(56)):
        for turned in (mask, mask.T, mask[::-1], ~mask):
            for search in (find_components, lambda one: count_components(one, 16)):
                steps = 0
                search(turned)
                assert steps <= MAX_FILL_STEPS + 1


@pytest.mark.parametrize("code", [0, 8, 1, 2, 9, 13])
def test_a_regular_texture_is_several_shapes(code: int) -> None:
    """The verdict of an image of dots or lines is decided without all of its components."""
    texture = np.where(pattern(60, 60, code), 255, 0).astype(np.uint8)
    assert frame(texture, Ink.LIGHT_ON_DARK).several


@pytest.mark.parametrize("share", [0.01, 0.03, 0.06])
def test_a_shape_in_noise_is_found(share: float) -> None:
    """The box is that of the thick shape, not that of all specks."""
    mask = np.random.default_rng(0).random((60, 60)) < share
    mask[15:45, 25:35] = True
    found = segment(mask)
    assert found is not None
    assert not found.several
    assert found.box.height <= 34
    assert found.box.width <= 16


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

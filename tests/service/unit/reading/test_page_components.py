"""Runs and components of large masks, against scipy's labelling."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from digitserve.errors import InvalidRequest
from digitserve.reading import runs as runs_module
from digitserve.reading.components import fill_runs, find_components, to_pieces
from digitserve.reading.runs import find_pixels, find_runs, label_runs

Mask = NDArray[np.bool_]

EIGHT_CONNECTED = np.ones((3, 3))


def noise(height: int, width: int, share: float, seed: int) -> Mask:
    """Return a mask of random pixels."""
    return np.random.default_rng(seed).random((height, width)) < share


masks = st.builds(noise, st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))


@given(masks)
def test_runs_restore_the_mask(mask: Mask) -> None:
    """The runs of a mask hold all of its pixels and no others."""
    assert np.array_equal(fill_runs(mask.shape, find_runs(mask)), mask)


@given(masks)
def test_components_are_those_of_a_flood_fill(mask: Mask) -> None:
    """Two runs have one label exactly if scipy's labelling connects them."""
    runs = find_runs(mask)
    labels, count = label_runs(runs)
    expected, expected_count = ndimage.label(mask, EIGHT_CONNECTED)
    pairs = set(zip(labels.tolist(), expected[runs.row, runs.start].tolist(), strict=True))
    assert count == expected_count == len(pairs)


@given(masks)
def test_pieces_have_the_pixels_of_their_components(mask: Mask) -> None:
    """Boxes are tight, areas count pixels, and all pieces together are the mask."""
    components = find_components(mask)
    restored = np.zeros_like(mask)
    for piece in to_pieces(components, np.arange(len(components.areas)), mask):
        box = piece.box
        restored[box.top : box.bottom, box.left : box.right] |= piece.mask
        assert piece.area == np.count_nonzero(piece.mask)
        assert piece.mask[0].any() and piece.mask[-1].any() and piece.mask[:, 0].any() and piece.mask[:, -1].any()
    assert np.array_equal(restored, mask)


@given(masks)
def test_pixels_are_found_in_their_runs(mask: Mask) -> None:
    """Every pixel of the mask is found in a run of its row; background is left out."""
    rows, columns = np.nonzero(np.ones_like(mask))
    runs = find_runs(mask)
    found = find_pixels(runs, rows, columns)
    assert len(found) == np.count_nonzero(mask)
    assert np.array_equal(runs.row[found], np.nonzero(mask)[0])


@pytest.mark.parametrize("comb", ["down", "up"])
def test_a_comb_with_many_teeth_is_one_component(comb: str) -> None:
    """The worst order of runs, in which all teeth are joined by the last row or the first, is labelled correctly."""
    mask = np.zeros((40, 2001), np.bool_)
    mask[:, ::2] = True
    mask[-1 if comb == "down" else 0] = True
    assert label_runs(find_runs(mask))[1] == 1


def test_noise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask with more runs than a page of numbers can have is refused before its components are searched for."""
    monkeypatch.setattr(runs_module, "MAX_RUNS", 10)
    with pytest.raises(InvalidRequest, match="looks like noise"):
        find_runs(noise(20, 20, 0.5, 0))

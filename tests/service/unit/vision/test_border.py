"""Border artefacts of masks: page edges, lines, bands, and what must stay."""

import numpy as np
import pytest
from numpy.typing import NDArray

from digitserve.types import Box
from digitserve.vision.border import clean, crop_around, dilate, find_page
from digitserve.vision.components import segment

Mask = NDArray[np.bool_]


def blank(height: int = 60, width: int = 50) -> Mask:
    """Return an empty mask."""
    return np.zeros((height, width), np.bool_)


def with_digit(mask: Mask) -> Mask:
    """Add a shape clear of the border."""
    mask = mask.copy()
    mask[20:40, 22:26] = mask[20:24, 16:30] = True
    return mask


DIGIT = with_digit(blank())


def cleaned(mask: Mask) -> Mask:
    """Return a mask after ``clean``."""
    segmentation = segment(mask)
    assert segmentation is not None
    return clean(mask, segmentation).mask


@pytest.mark.parametrize("turns", range(4))
def test_a_region_that_fills_a_side_is_outside_the_page(turns: int) -> None:
    """A region of at most 0.4 of the image along any one side is cut off; the rest is the page."""
    mask = blank(60, 60)
    mask[:15] = True
    mask[30:50, 25:35] = True
    page = find_page(np.rot90(mask, turns).copy())
    assert page == [(15, 60, 0, 60), (0, 60, 15, 60), (0, 45, 0, 60), (0, 60, 0, 45)][turns]


def test_a_deep_region_is_no_page_edge() -> None:
    """More than 0.4 of the image may be the page itself, and an image without full sides has no page edge."""
    mask = blank()
    mask[:30] = True
    assert find_page(mask) is None
    assert find_page(DIGIT) is None


def test_lines_near_the_border_are_removed() -> None:
    """Lines from border to border, at the border or a little inside, alone or crossing, are removed with their stubs."""
    for rows, columns in (((0,), ()), ((3, 4), ()), ((), (2, 46)), ((1, 57), (3, 45)), ((0, 59), (0, 49))):
        mask = DIGIT.copy()
        mask[list(rows)] = True
        mask[:, list(columns)] = True
        assert (cleaned(mask) == DIGIT).all()


def test_a_slanted_band_beside_a_shape_is_removed() -> None:
    """A straight band from border to border is removed also where it crosses rows, if a shape is left."""
    y, x = np.mgrid[:60, :50]
    band = np.abs(x - 40 - (y - 30) * 0.1) < 3
    assert (cleaned(DIGIT | band) == DIGIT).all()


def test_a_remnant_along_a_side_is_removed() -> None:
    """A flat remnant of a page edge along a part of a side is removed."""
    mask = DIGIT.copy()
    mask[:2, 5:20] = True
    assert (cleaned(mask) == DIGIT).all()


def test_a_shape_that_reaches_the_border_stays() -> None:
    """A digit cut off at one side, and one that reaches all sides in a tight crop, are unchanged."""
    tight = DIGIT[20:40, 16:30]
    for mask in (DIGIT[22:], DIGIT[:, 18:], tight, np.pad(tight, ((0, 0), (9, 9)))):
        assert (cleaned(mask) == mask).all()


def test_a_band_alone_spans_the_image() -> None:
    """A band of even width that is all there is stays in the mask and is reported; one with narrow ends is a stroke."""
    band = blank()
    band[:, 20:26] = True
    segmentation = segment(band)
    assert segmentation is not None
    assert clean(band, segmentation).spans_image
    band[0, 20:24] = band[-1, 22:26] = False
    band[0, 20] = band[-1, 21] = True
    stroke = segment(band)
    assert stroke is not None
    assert not clean(band, stroke).spans_image


def test_the_crop_leaves_out_what_was_dropped() -> None:
    """The box holds all that is kept and nothing of what is dropped, and a line beside the digit costs no height."""
    dropped = blank()
    dropped[:, 3:5] = dropped[50:52] = True
    box = crop_around(DIGIT, dropped)
    assert box == Box(0, 49, 6, 50)
    assert not dilate(dropped)[box.top : box.bottom, box.left : box.right].any()


def test_no_crop_separates_what_is_interlocked() -> None:
    """There is no box if something was dropped inside the extent of what is kept, or if nothing is kept."""
    dropped = blank()
    dropped[30:33, 18:20] = True
    ring = DIGIT | blank()
    ring[38:40, 16:30] = True
    assert crop_around(ring, dropped) is None
    assert crop_around(blank(), dropped) is None

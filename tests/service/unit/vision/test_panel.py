"""Rectangles that hold a shape, solid or drawn as a frame."""

import numpy as np
from numpy.typing import NDArray

from digitserve.vision.components import segment
from digitserve.vision.panel import Panel, find_panel, may_hold_panel


def solid() -> NDArray[np.bool_]:
    """Return a filled rectangle with a hole of the form of an L, in a margin."""
    mask = np.zeros((60, 60), np.bool_)
    mask[10:50, 8:52] = True
    mask[18:42, 26:30] = mask[38:42, 26:38] = False
    return mask


def outline(held: bool) -> NDArray[np.bool_]:
    """Return a frame in a margin, around a shape or empty."""
    mask = np.zeros((60, 60), np.bool_)
    mask[8:52, 8:52] = True
    mask[10:50, 10:50] = False
    mask[20:40, 28:32] = held
    return mask


def test_the_inside_of_a_rectangle_is_found() -> None:
    """The inside of a solid rectangle is smaller by a pixel, that of a frame by its lines."""
    panel, frame = find_panel(solid()), find_panel(outline(held=True))
    assert panel is not None
    assert (panel.solid, *panel.inside) == (True, 11, 49, 9, 51)
    assert frame is not None
    assert (frame.solid, *frame.inside) == (False, 10, 50, 10, 50)


def test_the_quick_test_passes_rectangles() -> None:
    """``may_hold_panel`` does not reject what ``find_panel`` finds."""
    for mask in (solid(), outline(held=True)):
        segmentation = segment(mask)
        assert segmentation is not None
        assert may_hold_panel(segmentation, mask.shape)


def test_other_shapes_are_no_panels() -> None:
    """An empty frame, a solid rectangle without a hole, a rectangle as large as the image and a ring are none."""
    full = np.zeros((60, 60), np.bool_)
    full[10:50, 8:52] = True
    y, x = np.mgrid[-1:1:60j, -1:1:60j]
    ring = np.abs(np.hypot(y, x) - 0.6) < 0.15
    found: list[Panel | None] = [
        find_panel(mask) for mask in (outline(held=False), full, ~solid()[10:50, 8:52], ring, 0 * full)
    ]
    assert found == [None] * 5

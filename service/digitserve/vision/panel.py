"""A rectangle that holds a shape: a plot inside its margin, a sheet on a table, a screenshot, a frame with space around it.

``framing`` calls it on the worker's thread, only for masks that may hold one; no state is kept.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.types import Box
from digitserve.vision.components import Component, Segmentation, find_components

Mask = NDArray[np.bool_]

MIN_SIDE = 0.4
"""Shortest sides of a rectangle, as shares of the image's height and width."""

MIN_EDGE_FILL = 0.8
"""Smallest share of each of its four edges that is filled."""

MIN_SOLID_FILL = 0.55
"""Smallest share of a solid rectangle that is filled; what it holds is the rest."""

MAX_RAGGED = 0.2
"""Largest share of its height or width that rows or columns outside its edges have: a shadow, a label."""

MIN_HELD_AREA = 0.01
"""Smallest area of what it holds, as a share of the rectangle's."""

MIN_HELD_SIDE = 0.25
"""Smallest longest side of what a frame holds, as a share of the frame's longest side."""


class Panel(NamedTuple):
    """A rectangle that holds a shape.

    Attributes:
        inside: the part inside its edges, in pixels of the mask.
        solid: it is filled but for the shape, which therefore has the opposite polarity; otherwise it is an outline.
    """

    inside: Box
    solid: bool


def may_hold_panel(segmentation: Segmentation, shape: tuple[int, ...]) -> bool:
    """Return whether a mask may hold a rectangle; a test that costs almost nothing.

    Args:
        segmentation: of the mask.
        shape: of the mask.
    """
    top, bottom, left, right = segmentation.box
    return (
        segmentation.edge_width >= MIN_EDGE_FILL * (right - left)
        and bottom - top >= MIN_SIDE * shape[0]
        and right - left >= MIN_SIDE * shape[1]
    )


def find_panel(mask: Mask, components: Sequence[Component] = ()) -> Panel | None:
    """Find a rectangle that holds a shape.

    Args:
        mask: bool[H, W], at most 64 a side.
        components: of the mask, if they are known.

    Returns:
        None if there is no such rectangle, or if it is the whole image.
    """
    height, width = mask.shape
    components = components or find_components(mask)
    if not components:
        return None
    panel = max(components, key=lambda component: component.box.height * component.box.width)
    box = panel.box
    if box.height < MIN_SIDE * height or box.width < MIN_SIDE * width:
        return None
    if box.height >= 0.97 * height and box.width >= 0.97 * width:
        return None
    pixels = panel.pixels()
    solid = bool(pixels.mean() >= MIN_SOLID_FILL)
    inside = _solid_rectangle(pixels, box) if solid else _inside_frame(pixels, box, components)
    return None if inside is None else Panel(inside, solid)


def _solid_rectangle(pixels: Mask, box: Box) -> Box | None:
    """Return the inside of a rectangle that a component fills but for a shape clear of its edges.

    Args:
        pixels: of the component, cropped to its box.
        box: of the component.
    """
    # Corners that stick out, and ragged edges, are not part of it.
    rows = np.flatnonzero(pixels.mean(axis=1) >= MIN_EDGE_FILL)
    columns = np.flatnonzero(pixels.mean(axis=0) >= MIN_EDGE_FILL)
    if not len(rows) or not len(columns):
        return None
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    if bottom - top < (1 - MAX_RAGGED) * len(pixels) or right - left < (1 - MAX_RAGGED) * pixels.shape[1]:
        return None
    inside = pixels[top:bottom, left:right]
    edge = max(1, min(inside.shape) // 12)
    edges = (inside[:edge], inside[-edge:], inside[:, :edge], inside[:, -edge:])
    if min(float(side.mean()) for side in edges) < MIN_EDGE_FILL:
        return None
    held = ~inside[edge:-edge, edge:-edge]
    if np.count_nonzero(held) < MIN_HELD_AREA * inside.size:
        return None
    # One pixel less on all sides: at the edge a pixel of the mask is partly outside.
    return Box(box.top + top + 1, box.top + bottom - 1, box.left + left + 1, box.left + right - 1)


def _inside_frame(pixels: Mask, box: Box, components: Sequence[Component]) -> Box | None:
    """Return the inside of a component that is a frame around another component."""
    if min(float(side.any(axis=axis).mean()) for side, axis in (
        (pixels[:2], 0), (pixels[-2:], 0), (pixels[:, :2], 1), (pixels[:, -2:], 1)
    )) < MIN_EDGE_FILL:  # fmt: skip
        return None
    rows, columns = pixels.mean(axis=1) < MIN_EDGE_FILL / 2, pixels.mean(axis=0) < MIN_EDGE_FILL / 2
    if not rows.any() or not columns.any():
        return None
    inside = Box(
        box.top + int(rows.argmax()),
        box.bottom - int(rows[::-1].argmax()),
        box.left + int(columns.argmax()),
        box.right - int(columns[::-1].argmax()),
    )
    for component in components:
        held = component.box
        if (
            held.top >= inside.top and held.bottom <= inside.bottom
            and held.left >= inside.left and held.right <= inside.right
            and held.longest >= MIN_HELD_SIDE * inside.longest
        ):  # fmt: skip
            return inside
    return None

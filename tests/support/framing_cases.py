"""Generated images of one digit with what surrounds digits in scans, forms, photos and screenshots.

Used by the tests of framing and by ``scripts/draw_framing.py``.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]

SEVEN = ((0.12, 0.15), (0.12, 0.85), (0.92, 0.4))
"""Corners of a 7, as y and x from 0 to 1."""

THREE = ((0.1, 0.2), (0.08, 0.6), (0.25, 0.78), (0.46, 0.5), (0.65, 0.82), (0.88, 0.6), (0.9, 0.2))


def draw_strokes(
    size: int, corners: tuple[tuple[float, float], ...] = SEVEN, width: float = 0.1
) -> NDArray[np.float32]:
    """Draw a polyline with soft edges: float32[size, size], 1 is full ink."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    distance = np.full((size, size), np.inf)
    for (y0, x0), (y1, x1) in pairwise(corners):
        dy, dx = y1 - y0, x1 - x0
        along = (((y - y0) * dy + (x - x0) * dx) / (dy * dy + dx * dx)).clip(0, 1)
        distance = np.minimum(distance, np.hypot(y - y0 - along * dy, x - x0 - along * dx))
    ink: NDArray[np.float32] = ((width / 2 - distance) * size + 0.5).clip(0, 1).astype(np.float32)
    return ink


def sheet(
    height: int = 200, width: int = 200, size: int = 110, *, paper: float = 245, pen: float = 25, stroke: float = 0.1
) -> NDArray[np.float64]:
    """Return a digit in the middle of white paper, as grey levels."""
    image = np.full((height, width), float(paper))
    top, left = (height - size) // 2, (width - size) // 2
    image[top : top + size, left : left + size] += draw_strokes(size, width=stroke) * (pen - paper)
    return image


def gray(image: NDArray[np.floating]) -> Pixels:
    """Return grey levels as uint8[H, W, 1]."""
    levels: Pixels = image.clip(0, 255).round().astype(np.uint8)[..., None]
    return levels


def framed(thickness: int, side: int = 200) -> Pixels:
    """Return a digit in a black frame at the edge of the image."""
    image = sheet(side, side, side * 55 // 100)
    inner = image[thickness:-thickness, thickness:-thickness].copy()
    image[:] = 0
    image[thickness:-thickness, thickness:-thickness] = inner
    return gray(image)


def two_edges(thickness: int = 3) -> Pixels:
    """Return a digit with the top and the left line of its form cell."""
    image = sheet()
    image[:thickness] = image[:, :thickness] = 0
    return gray(image)


def ruled_cell() -> Pixels:
    """Return a digit in a form cell whose lines cross near the edges of the image."""
    image = sheet(120, 150, 60)
    image[8:11] = image[-9:-6] = image[:, 6:9] = image[:, -12:-9] = 60
    return gray(image)


def top_bar() -> Pixels:
    """Return a screenshot with a dark bar across the top."""
    image = sheet(380, 240, 150)
    image[:40] = 60
    return gray(image)


def page_edge() -> Pixels:
    """Return a scan with the dark surroundings of the page at its left."""
    image = sheet(260, 200, 90)
    image[:, :30] = 40
    return gray(image)


def gutter() -> Pixels:
    """Return a scan that darkens towards the fold of a book."""
    image = sheet(220, 260, 90)
    return gray(image * np.linspace(0.15, 2.5, 260).clip(0, 1))


def plot() -> Pixels:
    """Return a white digit on a black square inside a white margin."""
    image = np.full((300, 400), 255.0)
    image[40:260, 90:310] = 255 - sheet(220, 220, 150)
    return gray(image)


def sheet_on_table() -> Pixels:
    """Return a sheet of paper on a darker table."""
    image = 110 + np.random.default_rng(0).normal(0, 5, (400, 400))
    image[80:330, 70:320] = sheet(250, 250, 140)
    return gray(image)


def frame_in_margin() -> Pixels:
    """Return a digit in a box drawn with a thin line, with space around the box."""
    image = sheet()
    line = np.zeros(image.shape, np.bool_)
    line[20:180, 20:180] = True
    line[22:178, 22:178] = False
    image[line] = 0
    return gray(image)


def shadow() -> Pixels:
    """Return a sheet with a hard shadow over half of it."""
    image = sheet(300, 300, 150, pen=40)
    y, x = np.mgrid[:300, :300]
    image[x + 0.3 * y < 180] *= 0.55
    return gray(image)


def thin_strokes() -> Pixels:
    """Return a digit of 150 pixels drawn with a pen of 2 pixels."""
    return gray(sheet(280, 280, 150, stroke=0.014))


def pale() -> Pixels:
    """Return a digit in pale pencil."""
    return gray(sheet(paper=235, pen=185))


def colors(paper: tuple[int, ...], pen: tuple[int, ...]) -> Pixels:
    """Return a digit in one colour on another: uint8[200, 200, 3 or 4]."""
    ink = (245 - sheet())[..., None] / 220
    levels: Pixels = (np.array(paper) * (1 - ink) + np.array(pen) * ink).clip(0, 255).round().astype(np.uint8)
    return levels


CASES: dict[str, Callable[[], Pixels]] = {
    "clean sheet": lambda: gray(sheet()),
    "frame of 1 px": lambda: framed(1),
    "frame of 4 px": lambda: framed(4),
    "two edges of a cell": two_edges,
    "ruled cell": ruled_cell,
    "bar across the top": top_bar,
    "page edge": page_edge,
    "gutter": gutter,
    "plot with margin": plot,
    "sheet on a table": sheet_on_table,
    "frame in a margin": frame_in_margin,
    "hard shadow": shadow,
    "thin strokes": thin_strokes,
    "pale pencil": pale,
    "red on green": lambda: colors((0, 150, 0), (255, 22, 0)),
    "highlighter": lambda: colors((255, 255, 255), (255, 255, 60)),
    "white on transparent": lambda: colors((255, 255, 255, 0), (255, 255, 255, 255)),
}
"""Images of the same digit, by what surrounds it."""


def bands() -> list[Pixels]:
    """Return images that show only a band from border to border: gutters and page edges without a digit."""
    images = []
    for position, thickness, slant in ((60, 8, 0.0), (100, 14, 0.05), (140, 5, -0.08), (90, 30, 0.02)):
        y, x = np.mgrid[:200, :200]
        image = np.where(np.abs(x - position - slant * (y - 100)) < thickness / 2, 30.0, 240.0)
        images += [gray(image), gray(image.T)]
    return images

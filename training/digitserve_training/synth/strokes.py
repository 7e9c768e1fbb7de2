"""Characters drawn as pen strokes: polylines with random jitter and rounded corners.

``digits`` and ``non_digits`` draw with it. Does not import TensorFlow.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digitserve.types import Gray

Stroke = Sequence[tuple[float, float]]

CANVAS_SIZE = 64
"""Side of the square canvas in pixels; drawings are framed to 28x28 afterwards."""

GRID_SIZE = 4
"""Side of the square grid of the coordinates in ``LETTER_STROKES`` and ``DIGIT_STROKES``; x to the right, y down."""

_OVERSAMPLING = 4


def draw_character(strokes: Sequence[Stroke], generator: np.random.Generator) -> Gray:
    """Draw a character with jittered points, rounded corners, and a random slant, aspect ratio and stroke width.

    Args:
        strokes: in grid coordinates.
        generator: source of all random values.

    Returns:
        uint8[64,64], light ink on dark.
    """
    slant, width = generator.uniform(-0.2, 0.2), generator.uniform(0.6, 1.1)
    jittered = []
    for stroke in strokes:
        points = np.array(stroke, np.float64) / GRID_SIZE + generator.normal(0, 0.025, (len(stroke), 2))
        points[:, 0] = 0.5 + width * (points[:, 0] - 0.5) + slant * (0.5 - points[:, 1])
        jittered.append(round_corners(0.2 + 0.6 * points))
    return draw_lines(jittered, generator.uniform(2.5, 7.5))


def draw_lines(lines: Sequence[Stroke], width_px: float) -> Gray:
    """Draw polylines with round ends: uint8[64,64], light ink on dark.

    Args:
        lines: coordinates as fractions of the canvas, 0 to 1.
        width_px: stroke width.
    """
    side = CANVAS_SIZE * _OVERSAMPLING
    image = Image.new("L", (side, side))
    draw, radius = ImageDraw.Draw(image), width_px * _OVERSAMPLING / 2
    for line in lines:
        points = [(x * side, y * side) for x, y in line]
        draw.line(points, 255, round(2 * radius), joint="curve")
        for x, y in (points[0], points[-1]):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    return np.asarray(image.resize((CANVAS_SIZE, CANVAS_SIZE), Image.Resampling.BOX))


def round_corners(points: NDArray[np.float64]) -> Stroke:
    """Round the corners of a polyline by three rounds of corner cutting (Chaikin 1974)."""
    for _ in range(3):
        near, far = 0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]
        points = np.concatenate([points[:1], np.stack([near, far], axis=1).reshape(-1, 2), points[-1:]])
    return [(float(x), float(y)) for x, y in points]


LETTER_STROKES: dict[str, tuple[Stroke, ...]] = {
    "A": (((0, 4), (1, 2), (2, 0), (3, 2), (4, 4)), ((1, 2.5), (3, 2.5))),
    "C": (((4, 0.7), (3, 0), (1, 0), (0, 1.3), (0, 2.7), (1, 4), (3, 4), (4, 3.3)),),
    "E": (((4, 0), (0.5, 0), (0.5, 2), (0.5, 4), (4, 4)), ((0.5, 2), (3, 2))),
    "F": (((4, 0), (0.5, 0), (0.5, 2), (0.5, 4)), ((0.5, 2), (3, 2))),
    "H": (((0.5, 0), (0.5, 4)), ((3.5, 0), (3.5, 4)), ((0.5, 2), (3.5, 2))),
    "K": (((0.5, 0), (0.5, 4)), ((3.5, 0), (0.5, 2.2)), ((1.3, 1.8), (3.7, 4))),
    "L": (((0.5, 0), (0.5, 2), (0.5, 4), (3.5, 4)),),
    "M": (((0, 4), (0.3, 0), (2, 3), (3.7, 0), (4, 4)),),
    "N": (((0.5, 4), (0.5, 0), (3.5, 4), (3.5, 0)),),
    "P": (((0.5, 4), (0.5, 0), (3, 0), (3.7, 1), (3, 2.1), (0.5, 2.1)),),
    "R": (((0.5, 4), (0.5, 0), (3, 0), (3.6, 1), (3, 2), (0.5, 2)), ((1.8, 2), (3.8, 4))),
    "T": (((0, 0), (4, 0)), ((2, 0), (2, 4))),
    "U": (((0.5, 0), (0.5, 3), (1.2, 4), (2.8, 4), (3.5, 3), (3.5, 0)),),
    "V": (((0.2, 0), (2, 4), (3.8, 0)),),
    "W": (((0, 0), (1, 4), (2, 1), (3, 4), (4, 0)),),
    "X": (((0.3, 0), (3.7, 4)), ((3.7, 0), (0.3, 4))),
    "Y": (((0.3, 0), (2, 2), (3.7, 0)), ((2, 2), (2, 4))),
    "a": (((3.3, 0.6), (2, 0), (0.6, 1), (0.6, 3), (2, 4), (3.3, 3)), ((3.4, 0), (3.4, 3), (4, 4))),
    "d": (((3.3, 2.3), (2, 1.6), (0.6, 2.4), (0.8, 3.6), (2, 4), (3.3, 3.2)), ((3.4, -0.5), (3.4, 3.2), (4, 4))),
    "e": (((0.6, 2.1), (3.5, 2), (3.2, 0.6), (1.8, 0), (0.6, 1.2), (0.6, 3), (2, 4), (3.6, 3.4)),),
    "f": (((3.5, 0.3), (2.6, 0), (1.9, 0.8), (1.9, 4)), ((0.7, 1.6), (3.2, 1.6))),
    "h": (((0.6, 0), (0.6, 4)), ((0.6, 2.4), (1.8, 1.6), (3, 2), (3.2, 4))),
    "k": (((0.6, 0), (0.6, 4)), ((3, 1.5), (0.7, 2.8)), ((1.4, 2.5), (3.2, 4))),
    "m": (((0.2, 4), (0.2, 1)), ((0.2, 2), (1.1, 1), (2, 2), (2, 4)), ((2, 2), (3, 1), (3.9, 2), (3.9, 4))),
    "n": (((0.6, 4), (0.6, 1)), ((0.6, 2), (2, 1), (3.3, 2), (3.4, 4))),
    "t": (((2, 0), (2, 3.4), (2.7, 4), (3.5, 3.6)), ((0.6, 1.2), (3.3, 1.2))),
    "w": (((0, 1), (0.9, 4), (2, 1.8), (3.1, 4), (4, 1)),),
    "x": (((0.6, 1), (3.4, 4)), ((3.4, 1), (0.6, 4))),
}

# Each digit in the styles of several countries: a 1 with a long flag or a base line, a crossed 7, an open 4, a curled 9.
DIGIT_STROKES: dict[str, tuple[tuple[Stroke, ...], ...]] = {
    "0": ((((2, 0), (0.7, 0.8), (0.5, 2), (0.7, 3.2), (2, 4), (3.3, 3.2), (3.5, 2), (3.3, 0.8), (2, 0)),),),
    "1": (
        (((0.8, 1.4), (2.4, 0), (2.4, 4)),),
        (((0, 2.2), (2.5, 0), (2.4, 4)),),
        (((0.6, 1.6), (2.2, 0), (2.2, 4)), ((1, 4), (3.4, 4))),
        (((2.2, 0), (1.8, 4)),),
    ),
    "2": (
        (((0.5, 1), (1.2, 0), (2.8, 0), (3.2, 1.2), (1.5, 3), (0.3, 4), (3.6, 4)),),
        (((0.5, 0.8), (2, 0), (3.2, 1), (2, 2.8), (0.6, 4), (0.4, 3.2), (1.4, 3.2), (3.6, 4)),),
    ),
    "3": (
        (((0.5, 0.4), (2, 0), (3.2, 0.8), (1.6, 1.9), (3.4, 2.8), (2, 4), (0.4, 3.5)),),
        (((0.5, 0), (3.3, 0), (1.8, 1.6), (3.3, 2.6), (2, 4), (0.4, 3.4)),),
    ),
    "4": (
        (((1, 0), (0.4, 2.4), (3.6, 2.4)), ((2.8, 1.2), (2.6, 4))),
        (((2.8, 4), (2.8, 0), (0.2, 2.8), (3.8, 2.8)),),
        (((2.2, 0), (0.4, 2.8), (3.6, 2.5)), ((3, 1.6), (2, 4))),
        (((0.6, 0), (0.7, 2), (3.3, 2)), ((3.3, 0), (3.3, 4))),
    ),
    "5": (
        (((3.4, 0), (0.9, 0), (0.7, 1.7), (2.4, 1.5), (3.4, 2.7), (2, 4), (0.4, 3.6)),),
        (((0.9, 0), (0.7, 1.7), (2.4, 1.5), (3.4, 2.7), (2, 4), (0.4, 3.6)), ((0.9, 0), (3.6, 0))),
    ),
    "6": (
        (((2.8, 0), (1, 1.6), (0.6, 3), (1.8, 4), (3.2, 3.1), (2.2, 2.1), (0.8, 2.8)),),
        (((1.6, 0), (0.7, 2), (0.7, 3.4), (2, 4), (3.4, 3.2), (2.4, 2.2), (0.8, 3)),),
    ),
    "7": (
        (((0.4, 0), (3.5, 0), (1.6, 4)),),
        (((0.4, 0), (3.5, 0), (1.6, 4)), ((1, 2), (3.4, 2))),
        (((0.5, 0.8), (0.5, 0), (3.5, 0), (2.2, 2), (1.8, 4)), ((1, 2.1), (3.4, 1.9))),
    ),
    "8": (
        (((2, 2), (0.8, 1), (2, 0), (3.2, 1), (2, 2), (0.6, 3), (2, 4), (3.4, 3), (2, 2)),),
        (((3.2, 0.5), (2, 0), (0.8, 0.9), (2, 1.8), (3.4, 3), (2, 4), (0.7, 3.1), (2, 2), (3.2, 0.6)),),
    ),
    "9": (
        (((3.2, 1), (2, 0), (0.8, 1), (1.8, 2), (3.2, 1), (2.8, 4)),),
        (((3.2, 1), (2, 0), (0.8, 1), (1.8, 2), (3.2, 1), (3.2, 3), (2, 4), (0.6, 3.6)),),
        (((3, 0.4), (1.6, 0), (0.8, 1), (2, 1.9), (3.1, 0.8), (3.3, 2.6), (2.4, 4), (0.6, 3.8)),),
    ),
}

"""Characters written with a pen: strokes as points, made uneven, rounded and drawn.

``outliers`` draws letters and scribbles by it, and digits in ways that MNIST's writers did not use. Needs no TensorFlow.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Gray = NDArray[np.uint8]
Stroke = Sequence[tuple[float, float]]

FIELD = 64
"""Side of the square that figures are drawn on, in pixels, before they are framed."""

GRID = 4
"""Characters stand on a grid of so many units along each side, x to the right, y down."""


def written(strokes: Sequence[Stroke], generator: np.random.Generator) -> Gray:
    """Write a character: each point off by some, corners rounded, the whole leaning, wide or narrow.

    Args:
        strokes: on the grid.
        generator: draws everything.

    Returns:
        uint8[64,64], light ink on dark.
    """
    lean, width = generator.uniform(-0.2, 0.2), generator.uniform(0.6, 1.1)
    uneven = []
    for stroke in strokes:
        points = np.array(stroke, np.float64) / GRID + generator.normal(0, 0.025, (len(stroke), 2))
        points[:, 0] = 0.5 + width * (points[:, 0] - 0.5) + lean * (0.5 - points[:, 1])
        uneven.append(smoothed(0.2 + 0.6 * points))
    return stroked(uneven, generator.uniform(2.5, 7.5))


def stroked(strokes: Sequence[Stroke], width: float) -> Gray:
    """Draw polylines, given in units of the field, with a round pen ``width`` pixels wide."""
    scale = 4
    picture = Image.new("L", (FIELD * scale, FIELD * scale))
    tip, radius = ImageDraw.Draw(picture), width * scale / 2
    for stroke in strokes:
        points = [(x * FIELD * scale, y * FIELD * scale) for x, y in stroke]
        tip.line(points, 255, round(2 * radius), joint="curve")
        for x, y in (points[0], points[-1]):
            tip.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    return np.asarray(picture.resize((FIELD, FIELD), Image.Resampling.BOX))


def smoothed(points: NDArray[np.float64]) -> Stroke:
    """Round a polyline's corners by cutting them three times (Chaikin 1974)."""
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

# Each digit in the ways of several countries: a 1 with a long flag or a foot, a barred 7, an open 4, a 9 that curls.
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

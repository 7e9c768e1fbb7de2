"""Digits as pen strokes: polylines that tests draw on the page, in several styles of handwriting."""

import math

Point = tuple[float, float]
"""x to the right, y downwards, each from 0 to 1 in a square."""

Stroke = list[Point]
Drawing = list[Stroke]


def arc(x: float, y: float, width: float, height: float, start: float, end: float) -> Stroke:
    """Return a part of an ellipse.

    Args:
        x: centre.
        y: centre.
        width: half of it.
        height: half of it.
        start: angle in degrees; 0 points to the right, 90 downwards.
        end: angle in degrees; less than ``start`` for a counter-clockwise arc.
    """
    num_parts = max(2, round(abs(end - start) / 20))
    angles = [math.radians(start + (end - start) * part / num_parts) for part in range(num_parts + 1)]
    return [(x + width * math.cos(angle), y + height * math.sin(angle)) for angle in angles]


DIGITS: dict[str, list[Drawing]] = {
    "0": [[arc(0.5, 0.5, 0.22, 0.35, -90, -450)], [arc(0.5, 0.5, 0.3, 0.33, -60, 310)]],
    "1": [[[(0.5, 0.15), (0.5, 0.85)]], [[(0.4, 0.28), (0.52, 0.15), (0.5, 0.85)]]],
    "2": [[[*arc(0.5, 0.36, 0.22, 0.2, 200, 380), (0.28, 0.85), (0.75, 0.85)]]],
    "3": [
        [[*arc(0.47, 0.33, 0.2, 0.17, 200, 450), *arc(0.47, 0.67, 0.23, 0.18, -90, 160)]],
        [[(0.3, 0.16), (0.68, 0.16), (0.48, 0.43), *arc(0.48, 0.64, 0.22, 0.21, -90, 150)]],
    ],
    "4": [[[(0.38, 0.15), (0.27, 0.55), (0.75, 0.55)], [(0.62, 0.3), (0.6, 0.88)]]],
    "5": [[[(0.34, 0.16), (0.32, 0.45), *arc(0.48, 0.63, 0.22, 0.22, -130, 150)], [(0.34, 0.16), (0.7, 0.16)]]],
    "6": [[[(0.62, 0.13), (0.42, 0.36), *arc(0.5, 0.65, 0.19, 0.2, -170, -530)]]],
    "7": [
        [[(0.28, 0.17), (0.72, 0.17), (0.42, 0.86)]],
        [[(0.28, 0.17), (0.72, 0.17), (0.42, 0.86)], [(0.38, 0.5), (0.68, 0.5)]],
    ],
    "8": [
        [[*arc(0.5, 0.32, 0.17, 0.17, 80, -265), *arc(0.5, 0.67, 0.21, 0.18, -90, 270)]],
        [arc(0.5, 0.32, 0.16, 0.16, -90, 270), arc(0.5, 0.67, 0.2, 0.19, -90, 270)],
    ],
    "9": [[[*arc(0.48, 0.34, 0.19, 0.19, 0, -360), (0.64, 0.6), (0.58, 0.87)]]],
}
"""Styles of each digit."""

LETTER: Drawing = [[(0.2, 0.85), (0.2, 0.15), (0.5, 0.6), (0.8, 0.15), (0.8, 0.85)]]
"""An M, which is no digit."""

SCRIBBLE: Drawing = [[(0.2 + 0.06 * (n % 11), 0.2 + 0.6 * ((n * 7) % 10) / 9) for n in range(40)]]

TWO_DIGITS: Drawing = [
    [(0.4 * x, 0.25 + 0.5 * y) for x, y in DIGITS["1"][0][0]],
    [(0.55 + 0.4 * x, 0.25 + 0.5 * y) for x, y in DIGITS["0"][0][0]],
]
"""1 and 0 side by side."""


def number(digits: str, top: float = 0.25, height: float = 0.5) -> Drawing:
    """Return digits side by side, centred on the wide pad of the mode "Numbers", where x is from -0.5 to 1.5.

    Args:
        digits: at most five fit.
        top: of the square of a digit.
        height: of the square of a digit.
    """
    step = 0.72 * height
    left = 0.5 - step * len(digits) / 2 - (height - step) / 2
    return [
        [(left + step * place + height * x, top + height * y) for x, y in stroke]
        for place, digit in enumerate(digits)
        for stroke in DIGITS[digit][0]
    ]


STEP = 0.1
"""Distance of the points that a hand of usual speed leaves."""


def scaled(drawing: Drawing, left: float, top: float, side: float) -> Drawing:
    """Return a drawing in pixels, in the square with this corner and side, with points as dense as those of a hand."""
    return [[(left + side * x, top + side * y) for x, y in dense(stroke)] for stroke in drawing]


def dense(stroke: Stroke) -> Stroke:
    """Return a stroke with more points on its long lines."""
    points = stroke[:1]
    for end in stroke[1:]:
        start = points[-1]
        num_parts = max(1, round(math.dist(start, end) / STEP))
        points += [
            (start[0] + (end[0] - start[0]) * part / num_parts, start[1] + (end[1] - start[1]) * part / num_parts)
            for part in range(1, num_parts + 1)
        ]
    return points

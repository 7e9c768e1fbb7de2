"""Images of characters that people wrote with a pen: pen coordinates drawn with many pens on many backgrounds.

    strokes ──draw──▶ ink uint8[H,W] ──▶ bitmap, scan or unchanged ──frame──▶ uint8[28,28]

``fit.pen_images`` draws training and validation images with it. Does not import TensorFlow.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digitserve.types import IMAGE_SIZE, Gray, Ink
from digitserve.vision.framing import frame
from digitserve_training.synth.scans import ScanParameters, crop, simulate_scan

PenStroke = NDArray[np.float32]
"""Pen positions float32[P,2], P at least 1; x to the right, y down, in any unit."""

INK_SIDE_PX = 96
"""Longest side of the drawn ink without the pen's width; bitmaps and scans scale it."""

_OVERSAMPLING = 2

PEN_WIDTHS = (0.02, 0.2)
"""Thinnest and thickest pen as shares of the character's longest side; uniformly distributed on a logarithmic scale."""

PLAIN_PEN_WIDTH = 0.08

BITMAP_SHARE = 0.25
"""Share of images that are small bitmaps of two levels, as from paint programs and old scanners."""

BITMAP_SIDES_PX = (10, 40)

SQUARE_SHARE = 0.4
"""Share of bitmaps whose ink is stretched to a whole square of 12 to 24 pixels, as in data sets of old scanners."""

SQUARE_SIDES_PX = (12, 24)

MAX_STRETCH = 3
"""Narrow ink, such as an upright 1, is stretched no more than this."""

SCAN_SHARE = 0.45
"""Share of images that are simulated scans; the others show the ink on black."""

SCANS = ScanParameters(min_side_px=12, max_side_px=96, clean_share=0.3, coarse_share=0.1)


def draw_and_frame(characters: Sequence[Sequence[PenStroke]], generator: np.random.Generator) -> Gray:
    """Draw each character once, each with its own pen and background, and frame it as the service frames images.

    Args:
        characters: strokes of each character, at least one.
        generator: source of all random values.

    Returns:
        uint8[N,28,28,1], light ink on dark.
    """
    return _stack([_draw_one(strokes, generator) for strokes in characters])


def draw_plain(characters: Sequence[Sequence[PenStroke]]) -> Gray:
    """Draw each character once with a pen of medium width on black, without any change, and frame it.

    Returns:
        uint8[N,28,28,1], light ink on dark.
    """
    generator = np.random.default_rng(0)
    drawn = (_draw(strokes, PLAIN_PEN_WIDTH * INK_SIDE_PX, 0.0, generator) for strokes in characters)
    return _stack([frame(ink, Ink.LIGHT_ON_DARK).pixels for ink in drawn])


def draw_ink(strokes: Sequence[PenStroke], generator: np.random.Generator) -> Gray:
    """Draw strokes with a random pen width and pressure, slightly stretched and slanted.

    Returns:
        uint8[H,W], light ink on dark, with a margin of the pen's width.
    """
    stretch, slant = np.exp(generator.uniform(-0.25, 0.25)), generator.uniform(-0.2, 0.2)
    width_px = float(np.exp(generator.uniform(*np.log(PEN_WIDTHS)))) * INK_SIDE_PX
    pressure = generator.uniform(0, 0.5)
    shape = np.array([[stretch, 0], [-slant, 1]], np.float32)
    return _draw([stroke @ shape for stroke in strokes], width_px, pressure, generator)


def _stack(framed: list[Gray]) -> Gray:
    return np.stack(framed)[..., np.newaxis] if framed else np.zeros((0, IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)


def _draw_one(strokes: Sequence[PenStroke], generator: np.random.Generator) -> Gray:
    ink = draw_ink(strokes, generator)
    kind = generator.random()
    if kind < BITMAP_SHARE:
        pixels = frame(_bitmap(ink, generator), Ink.LIGHT_ON_DARK).pixels
    elif kind < BITMAP_SHARE + SCAN_SHARE:
        pixels = frame(simulate_scan(ink, SCANS, generator), Ink.AUTO).pixels
    else:
        pixels = frame(ink, Ink.LIGHT_ON_DARK).pixels
    # Noise hides the ink of a few small scans.
    return pixels if pixels.any() else frame(ink, Ink.LIGHT_ON_DARK).pixels


def _draw(strokes: Sequence[PenStroke], width_px: float, pressure: float, generator: np.random.Generator) -> Gray:
    positions = np.concatenate(strokes)
    low, extent = positions.min(axis=0), np.ptp(positions, axis=0)
    side = float(extent.max())
    # A dot has no extent; it is drawn as large as the pen is wide.
    scale = _OVERSAMPLING * INK_SIDE_PX / side if side > 0 else 1.0
    margin = _OVERSAMPLING * (width_px + 1)
    columns, rows = (int(length) for length in np.ceil(extent * scale + 2 * margin))
    image = Image.new("L", (columns, rows))
    pen = ImageDraw.Draw(image)
    for stroke in strokes:
        _draw_stroke(pen, (stroke - low) * scale + margin, _OVERSAMPLING * width_px, pressure, generator)
    return np.asarray(image.reduce(_OVERSAMPLING))


def _draw_stroke(
    pen: ImageDraw.ImageDraw,
    positions: PenStroke,
    width_px: float,
    pressure: float,
    generator: np.random.Generator,
) -> None:
    """Draw a polyline with round ends, whose width varies smoothly along it, at most by the share ``pressure``."""
    knots = 1 + pressure * generator.uniform(-1, 1, 4)
    widths = width_px * np.interp(np.linspace(0, 3, len(positions)), np.arange(4), knots)
    points = [(float(x), float(y)) for x, y in positions]
    for segment, width in zip(pairwise(points), widths, strict=False):
        pen.line(segment, 255, max(1, round(width)))
    for (x, y), width in zip(points, widths, strict=True):
        radius = width / 2
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), 255)


def _bitmap(ink: Gray, generator: np.random.Generator) -> Gray:
    """Reduce ink to two levels and 10 to 40 pixels, at a random aspect ratio, often cropped to the ink."""
    if generator.random() < SQUARE_SHARE:
        ink, side = crop(ink), int(generator.integers(*SQUARE_SIDES_PX, endpoint=True))
        height, width = (min(side, round(MAX_STRETCH * side * length / max(ink.shape))) for length in ink.shape)
        return _two_levels(ink, (width, height), generator)
    side = int(np.exp(generator.uniform(*np.log(BITMAP_SIDES_PX))))
    scale = side / max(ink.shape)
    stretch = np.exp(generator.uniform(-0.3, 0.6))
    width = min(side, max(3, round(ink.shape[1] * scale * stretch)))
    bitmap = _two_levels(ink, (width, max(3, round(ink.shape[0] * scale))), generator)
    return np.pad(bitmap, int(generator.integers(0, 5))) if generator.random() < 0.7 else bitmap


def _two_levels(ink: Gray, size: tuple[int, int], generator: np.random.Generator) -> Gray:
    """Reduce ink to ``size`` (width, height) and to the values 0 and 255."""
    small = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BOX))
    # Thin ink may be below any level after the reduction.
    bitmap: Gray = ((small > min(generator.uniform(40, 140), 0.4 * small.max())) * 255).astype(np.uint8)
    return bitmap

"""Images of characters that people wrote with a pen: pen coordinates drawn with any pen, on anything, and framed.

    PenCharacter.strokes ──draw──▶ ink uint8[H,W] ──▶ paper, bitmap or plain ──frame──▶ uint8[28,28]

``fit.pool`` mixes such images into a training. Needs no TensorFlow.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digitserve.types import IMAGE_SIZE, Gray, Ink
from digitserve.vision.framing import frame
from digitserve_training.data.unipen import PenCharacter, Stroke
from digitserve_training.synth.scans import Paper, draw

INK_SIDE = 96
"""Longest side of drawn ink, in pixels, without the pen's width: scans are scaled down or up from it."""

OVERSAMPLING = 2
"""Ink is drawn larger by this factor and reduced, so that its edges are smooth."""

PEN_WIDTHS = (0.02, 0.2)
"""Thinnest and thickest pen, as shares of the character's longest side, spread evenly on a logarithmic scale."""

BITMAP_SHARE = 0.15
"""Share of images that come as bitmaps of two levels and few pixels, as from paint programs and old scanners."""

PAPER_SHARE = 0.45
"""Share of images that come on paper; the others are clean."""

PAPER = Paper(smallest=12, largest=96, plain=0.3, scanned=0.1)


def images(characters: Sequence[PenCharacter], seed: int) -> NDArray[np.uint8]:
    """Draw each character once, each with a pen and on a ground of its own.

    Args:
        characters: what to draw.
        seed: of everything random.

    Returns:
        uint8[N,28,28,1], light ink on dark, framed as the service frames images.
    """
    generator = np.random.default_rng(seed)
    framed = [_image(character.strokes, generator) for character in characters]
    return np.stack(framed)[..., np.newaxis] if framed else np.zeros((0, IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)


def _image(strokes: Sequence[Stroke], generator: np.random.Generator) -> Gray:
    ink = draw_ink(strokes, generator)
    kind = generator.random()
    if kind < BITMAP_SHARE:
        pixels = frame(_bitmap(ink, generator), Ink.LIGHT_ON_DARK).pixels
    elif kind < BITMAP_SHARE + PAPER_SHARE:
        pixels = frame(draw(ink, PAPER, generator), Ink.AUTO).pixels
    else:
        pixels = frame(ink, Ink.LIGHT_ON_DARK).pixels
    # Now and then noise hides thin ink on a small drawing.
    return pixels if pixels.any() else frame(ink, Ink.LIGHT_ON_DARK).pixels


def clean_images(characters: Sequence[PenCharacter]) -> NDArray[np.uint8]:
    """Draw each character once with a pen of middling width, unchanged: uint8[N,28,28,1], light ink on dark, framed."""
    generator = np.random.default_rng(0)
    width = 0.08 * INK_SIDE
    drawn = [_drawn(character.strokes, width, 0.0, generator) for character in characters]
    return np.stack([frame(ink, Ink.LIGHT_ON_DARK).pixels for ink in drawn])[..., np.newaxis]


def draw_ink(strokes: Sequence[Stroke], generator: np.random.Generator) -> Gray:
    """Draw strokes with a pen whose width and pressure are drawn at random, slightly stretched and slanted.

    Returns:
        uint8[H,W], light ink on dark, with a margin of the pen's width.
    """
    stretch, slant = np.exp(generator.uniform(-0.25, 0.25)), generator.uniform(-0.2, 0.2)
    width = float(np.exp(generator.uniform(*np.log(PEN_WIDTHS)))) * INK_SIDE
    pressure = generator.uniform(0, 0.5)
    shape = np.array([[stretch, 0], [-slant, 1]], np.float32)
    return _drawn([stroke @ shape for stroke in strokes], width, pressure, generator)


def _drawn(points: Sequence[Stroke], width: float, pressure: float, generator: np.random.Generator) -> Gray:
    everything = np.concatenate(points)
    low, side = everything.min(axis=0), float(np.ptp(everything, axis=0).max())
    # A dot has no side: it is drawn as large as the pen is wide.
    scale = OVERSAMPLING * INK_SIDE / side if side > 0 else 1.0
    margin = OVERSAMPLING * (width + 1)
    size = np.ceil(np.ptp(everything, axis=0) * scale + 2 * margin).astype(int)
    picture = Image.new("L", (int(size[0]), int(size[1])))
    pen = ImageDraw.Draw(picture)
    for stroke in points:
        _draw_stroke(pen, (stroke - low) * scale + margin, OVERSAMPLING * width, pressure, generator)
    return np.asarray(picture.reduce(OVERSAMPLING))


def _draw_stroke(
    pen: ImageDraw.ImageDraw, points: NDArray[np.float32], width: float, pressure: float, generator: np.random.Generator
) -> None:
    """Draw a polyline whose width varies smoothly along it, by the share ``pressure`` at most, with round ends."""
    knots = 1 + pressure * generator.uniform(-1, 1, 4)
    widths = width * np.interp(np.linspace(0, 3, len(points)), np.arange(4), knots)
    places = [(float(x), float(y)) for x, y in points]
    for (start, stop), across in zip(pairwise(places), widths, strict=False):
        pen.line((start, stop), 255, max(1, round(across)))
    for (x, y), across in zip(places, widths, strict=True):
        radius = across / 2
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), 255)


def _bitmap(ink: Gray, generator: np.random.Generator) -> Gray:
    """Reduce ink to two levels at 12 to 40 pixels, often cropped to the ink."""
    side = int(generator.integers(12, 41))
    scale = side / max(ink.shape)
    size = (max(3, round(ink.shape[1] * scale)), max(3, round(ink.shape[0] * scale)))
    small = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BOX))
    level = generator.uniform(40, 140)
    # Thin ink may fade below any level when it is reduced.
    bitmap: Gray = ((small > min(level, 0.6 * small.max())) * 255).astype(np.uint8)
    return np.pad(bitmap, int(generator.integers(0, 5))) if generator.random() < 0.7 else bitmap

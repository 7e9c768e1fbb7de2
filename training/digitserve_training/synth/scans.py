"""Digits as cameras and scanners bring them: drawn at any size, anywhere on uneven, grainy paper.

``readings`` sends such drawings through the service's own framing; ``train`` mixes some into its images, ``evaluate``
measures on others. Needs no TensorFlow.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from digitserve.types import Ink
from digitserve.vision.framing import frame

Gray = NDArray[np.uint8]

DOTS = 4
"""Dots along each side of a pixel of a coarse scan."""


@dataclass(frozen=True)
class Paper:
    """Bounds within which drawings differ, each drawn on its own.

    Attributes:
        smallest: shorter side of the smallest drawing, in pixels.
        largest: of the largest; sizes are spread evenly on a logarithmic scale.
        plain: share of drawings that are clean: light ink on black, no unevenness, no noise.
        unevenness: largest difference of the paper's lightness across the drawing, of 255.
        noise: largest standard deviation of the grain, of 255.
        scanned: share of drawings that come as a coarse scanner of black and white gives them, small and filling the
            picture, whatever the other bounds say.
    """

    smallest: int = 16
    largest: int = 400
    plain: float = 0.0
    unevenness: float = 60.0
    noise: float = 10.0
    scanned: float = 0.0


def readings(digits: Gray, paper: Paper, seed: int) -> Gray:
    """Draw each digit once on paper and frame the drawing as the service does.

    Args:
        digits: uint8[N,28,28,1], light ink on dark.
        paper: how drawings differ.
        seed: of everything random.

    Returns:
        uint8[N,28,28,1].
    """
    generator = np.random.default_rng(seed)
    return np.stack([frame(draw(digit[..., 0], paper, generator), Ink.AUTO).pixels for digit in digits])[..., None]


def draw(digit: Gray, paper: Paper, generator: np.random.Generator) -> Gray:
    """Draw a digit, dark ink on light paper unless it comes out plain.

    Args:
        digit: uint8[28,28], light ink on dark; without ink the paper stays empty.
        paper: how drawings differ.
        generator: draws everything.

    Returns:
        uint8[height,width], the shorter side within the paper's sizes.
    """
    if generator.random() < paper.scanned:
        return _scan(_cropped(digit), generator)
    shorter = float(np.exp(generator.uniform(np.log(paper.smallest), np.log(paper.largest + 1))))
    height, width = (int(shorter * stretch) for stretch in _stretches(generator))
    ink = _placed(_cropped(digit), height, width, generator)
    if generator.random() < paper.plain:
        return (ink * 255).round().astype(np.uint8)
    lightness = generator.uniform(190, 255)
    sheet = lightness - paper.unevenness * generator.random() * _shade(height, width, generator)
    pen = generator.uniform(0, 90)
    drawing = sheet + ink * (np.minimum(pen, sheet) - sheet)
    drawing += generator.normal(0, paper.noise * generator.random(), drawing.shape)
    finished: Gray = drawing.clip(0, 255).round().astype(np.uint8)
    return finished


def _scan(ink: Gray, generator: np.random.Generator) -> Gray:
    """Scan ink in black and white, then count the black dots of each square: uint8[side,side], 8 to 16 pixels.

    So were scikit-learn's ``load_digits`` made, from 32x32 dots (Kaynak 1995). Pens differ in width.
    """
    side = int(np.exp(generator.uniform(np.log(8), np.log(17))))
    num_dots = side * DOTS
    scale = generator.uniform(0.9, 1.0) * num_dots / max(ink.shape)
    width, height = (max(DOTS, round(length * scale)) for length in reversed(ink.shape))
    dots = Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC)
    dots = dots.point((np.arange(256) > generator.uniform(60, 170)).astype(np.uint8) * 255)
    if generator.random() < 0.5:
        dots = dots.filter(ImageFilter.MaxFilter(int(generator.choice((3, 5)))))
    sheet = Image.new("L", (num_dots, num_dots))
    left, top = (int(generator.integers(0, num_dots - length + 1)) for length in dots.size)
    sheet.paste(dots, (left, top))
    return np.asarray(sheet.reduce(DOTS))


def _stretches(generator: np.random.Generator) -> tuple[float, float]:
    longer = generator.uniform(1, 1.5)
    return (1.0, longer) if generator.random() < 0.5 else (longer, 1.0)


def _cropped(digit: Gray) -> Gray:
    rows, columns = np.flatnonzero(digit.any(axis=1)), np.flatnonzero(digit.any(axis=0))
    if len(rows) == 0:
        return digit
    return digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _placed(ink: Gray, height: int, width: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Scale ink to between half and nine tenths of the field and lay it down anywhere: float32[height,width], 0 to 1."""
    scale = generator.uniform(0.5, 0.9) * min(height / ink.shape[0], width / ink.shape[1])
    size = (max(2, round(ink.shape[1] * scale)), max(3, round(ink.shape[0] * scale)))
    scaled = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC), np.float32) / 255
    # Bicubic lines look soft when enlarged: a pen's edge is sharp at every size.
    scaled = ((scaled - 0.5) * max(1.0, scale / 2) + 0.5).clip(0, 1) if scale > 2 else scaled
    field = np.zeros((height, width), np.float32)
    top = generator.integers(0, height - scaled.shape[0] + 1)
    left = generator.integers(0, width - scaled.shape[1] + 1)
    field[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return field


def _shade(height: int, width: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Draw light that falls off smoothly: float32[height,width], 0 to 1."""
    coarse = generator.random((3, 3), np.float32)
    coarse = (coarse - coarse.min()) / max(float(np.ptp(coarse)), 1e-6)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32).clip(0, 1)

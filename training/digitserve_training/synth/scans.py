"""Simulated scans and photos of digits: any size, any position, on unevenly lit, noisy paper.

``scan_and_frame`` passes each simulated scan through the service's own framing. ``fit.pool`` adds such images to the
training set; ``evaluate`` measures on others; ``pen_ink`` draws pen strokes on the same paper. Does not import
TensorFlow.
"""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from digitserve.types import FloatImage, Gray, Ink
from digitserve.vision.framing import frame

Drawing = TypeVar("Drawing", Gray, FloatImage)

WHITE = np.float32(255)

DOTS_PER_PIXEL = 4
"""Black-and-white dots along each side of one pixel of a coarse scan."""


@dataclass(frozen=True)
class ScanParameters:
    """Ranges of the random properties of simulated scans; each scan draws its own values.

    Attributes:
        min_side_px: smallest length of the shorter side; lengths are uniformly distributed on a logarithmic scale.
        max_side_px: largest length of the shorter side.
        clean_share: share of scans with light ink on pure black, without shading and noise.
        max_shading: largest difference in the paper's brightness across a scan, in grey levels.
        max_noise: largest standard deviation of the Gaussian noise, in grey levels.
        coarse_share: share of scans by a coarse black-and-white scanner: 8 to 16 pixels, filled by the digit. The other
            parameters do not apply to them.
    """

    min_side_px: int = 16
    max_side_px: int = 400
    clean_share: float = 0.0
    max_shading: float = 60.0
    max_noise: float = 10.0
    coarse_share: float = 0.0


def scan_and_frame(digits: Gray, parameters: ScanParameters, seed: int) -> Gray:
    """Simulate one scan of each digit, and frame it as the service frames images.

    Args:
        digits: uint8[N,28,28,1], light ink on dark.
        parameters: ranges of the scans' properties.
        seed: seed of all random values.

    Returns:
        uint8[N,28,28,1], light ink on dark.
    """
    generator = np.random.default_rng(seed)
    scans = (simulate_scan(digit[..., 0], parameters, generator) for digit in digits)
    return np.stack([frame(scan, Ink.AUTO).pixels for scan in scans])[..., np.newaxis]


def simulate_scan(digit: Gray, parameters: ScanParameters, generator: np.random.Generator) -> Gray:
    """Simulate a scan of a digit: dark ink on light paper, unless the scan is a clean or a coarse one.

    Args:
        digit: uint8[height,width], light ink on dark; without ink the paper stays empty.
        parameters: ranges of the scan's properties.
        generator: source of all random values.

    Returns:
        uint8[height,width].
    """
    if generator.random() < parameters.coarse_share:
        return _coarse_scan(crop(digit), generator)
    side = float(np.exp(generator.uniform(np.log(parameters.min_side_px), np.log(parameters.max_side_px + 1))))
    height, width = (int(side * factor) for factor in _aspect_factors(generator))
    ink = _place(crop(digit), height, width, generator)
    if generator.random() < parameters.clean_share:
        return (ink * 255).round().astype(np.uint8)
    return put_on_paper(ink, parameters, generator)


def put_on_paper(ink: FloatImage, parameters: ScanParameters, generator: np.random.Generator) -> Gray:
    """Draw dark ink on light, unevenly lit, noisy paper.

    Args:
        ink: float32[height,width], 0 for paper to 1 for ink.
        parameters: only shading and noise are used.
        generator: source of all random values.

    Returns:
        uint8[height,width].
    """
    brightness = generator.uniform(190, 255)
    paper = brightness - parameters.max_shading * generator.random() * shade(ink.shape, generator)
    ink_level = generator.uniform(0, 90)
    scan = paper + ink * (np.minimum(ink_level, paper) - paper)
    scan += generator.normal(0, parameters.max_noise * generator.random(), scan.shape)
    finished: Gray = scan.clip(0, 255).round().astype(np.uint8)
    return finished


def _coarse_scan(ink: Gray, generator: np.random.Generator) -> Gray:
    """Scan ink in black and white, then count the black dots of each square: uint8[side,side], side 8 to 16.

    scikit-learn's ``load_digits`` was made in this way from 32x32 dots (Kaynak 1995). Stroke widths vary.
    """
    side = int(np.exp(generator.uniform(np.log(8), np.log(17))))
    num_dots = side * DOTS_PER_PIXEL
    scale = generator.uniform(0.9, 1.0) * num_dots / max(ink.shape)
    width, height = (max(DOTS_PER_PIXEL, round(length * scale)) for length in reversed(ink.shape))
    dots = Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC)
    dots = dots.point((np.arange(256) > generator.uniform(60, 170)).astype(np.uint8) * 255)
    if generator.random() < 0.5:
        dots = dots.filter(ImageFilter.MaxFilter(int(generator.choice((3, 5)))))
    page = Image.new("L", (num_dots, num_dots))
    left, top = (int(generator.integers(0, num_dots - length + 1)) for length in dots.size)
    page.paste(dots, (left, top))
    return np.asarray(page.reduce(DOTS_PER_PIXEL))


def _aspect_factors(generator: np.random.Generator) -> tuple[float, float]:
    """Draw factors for height and width; one is 1, the other 1 to 1.5."""
    longer = generator.uniform(1, 1.5)
    return (1.0, longer) if generator.random() < 0.5 else (longer, 1.0)


def crop(digit: Drawing) -> Drawing:
    """Crop to the bounding box of the ink."""
    rows, columns = np.flatnonzero(digit.any(axis=1)), np.flatnonzero(digit.any(axis=0))
    if len(rows) == 0:
        return digit
    return digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _place(ink: Gray, height: int, width: int, generator: np.random.Generator) -> NDArray[np.float32]:
    """Scale ink to 50 to 90 % of the page and put it at a random position: float32[height,width], 0 to 1."""
    scale = generator.uniform(0.5, 0.9) * min(height / ink.shape[0], width / ink.shape[1])
    size = (max(2, round(ink.shape[1] * scale)), max(3, round(ink.shape[0] * scale)))
    scaled = np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC), np.float32)
    scaled = sharpen(scaled / WHITE, scale)
    page = np.zeros((height, width), np.float32)
    top = generator.integers(0, height - scaled.shape[0] + 1)
    left = generator.integers(0, width - scaled.shape[1] + 1)
    page[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return page


def sharpen(ink: FloatImage, scale: float) -> FloatImage:
    """Make the edges of enlarged strokes sharp, as those of real strokes are at every size: interpolation blurs them.

    Args:
        ink: float32[height,width], 0 to 1.
        scale: by which it was enlarged.
    """
    if scale <= 2:
        return ink
    sharp: FloatImage = ((ink - 0.5) * (scale / 2) + 0.5).clip(0, 1)
    return sharp


def shade(shape: tuple[int, ...], generator: np.random.Generator) -> FloatImage:
    """Draw a smooth brightness gradient: float32[height,width], 0 to 1."""
    coarse = generator.random((3, 3), np.float32)
    coarse = (coarse - coarse.min()) / max(float(np.ptp(coarse)), 1e-6)
    smooth = Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32).clip(0, 1)

"""Backgrounds for drawn ink: none, scanned paper, and a photo of paper.

``numbers`` and ``number_pages`` draw on them. Does not import TensorFlow.
"""

import io
from enum import Enum

import numpy as np
from PIL import Image, ImageFilter

from digitserve.types import FloatImage, Gray
from digitserve_training.synth.scans import WHITE, ScanParameters, put_on_paper, shade

SCAN_BLUR_PX = 0.8
"""Largest standard deviation of the blur of a scan; more would close gaps of 2 pixels."""

PHOTO_BLUR_PX = 1.2

JPEG_QUALITY = (50, 95)

SCAN = ScanParameters(max_shading=60.0, max_noise=10.0)

PHOTO = ScanParameters(max_shading=80.0, max_noise=8.0)

SHADOW_SHARE = 0.5
"""Share of photos with the shadow of something that is not in the picture."""

MAX_SHADOW = 0.45
"""Largest share of the light that a shadow takes."""

MAX_TEXTURE = 6.0
"""Largest standard deviation of each of two layers of paper fibres, in grey levels."""


class Paper(Enum):
    """A background."""

    CLEAN = "clean"
    SCAN = "scan"
    PHOTO = "photo"


def draw_on(paper: Paper, ink: FloatImage, generator: np.random.Generator, *, light_ink: bool = False) -> Gray:
    """Draw ink on a background.

    Args:
        paper: the background.
        ink: float32[H,W], 0 for paper to 1 for ink.
        generator: source of all random values.
        light_ink: light ink on a dark background.

    Returns:
        uint8[H,W].
    """
    match paper:
        case Paper.CLEAN:
            pixels = (255 - 255 * generator.uniform(0.6, 1.0) * ink).round().astype(np.uint8)
        case Paper.SCAN:
            pixels = put_on_paper(_blur(ink, generator.uniform(0, SCAN_BLUR_PX)), SCAN, generator)
        case Paper.PHOTO:
            pixels = _photo(ink, generator)
    return 255 - pixels if light_ink else pixels


def _photo(ink: FloatImage, generator: np.random.Generator) -> Gray:
    """Draw uneven ink on paper with fibres, light from one side, often a shadow, blur, noise, and JPEG's traces."""
    uneven = ink * (1 - 0.3 * shade(ink.shape, generator))
    pixels = put_on_paper(_blur(uneven, generator.uniform(0.3, PHOTO_BLUR_PX)), PHOTO, generator)
    lit = pixels.astype(np.float32) + sum(_fibres(ink.shape, grain, generator) for grain in (2, 6))
    if generator.random() < SHADOW_SHARE:
        lit *= 1 - generator.uniform(0.1, MAX_SHADOW) * _shadow(ink.shape, generator)
    file = io.BytesIO()
    Image.fromarray(lit.clip(0, 255).astype(np.uint8)).save(
        file, "JPEG", quality=int(generator.integers(*JPEG_QUALITY))
    )
    return np.asarray(Image.open(file))


def _blur(ink: FloatImage, sigma_px: float) -> FloatImage:
    image = Image.fromarray((ink * 255).round().astype(np.uint8)).filter(ImageFilter.GaussianBlur(sigma_px))
    return np.asarray(image, np.float32) / WHITE


def _fibres(shape: tuple[int, ...], grain_px: int, generator: np.random.Generator) -> FloatImage:
    """Draw smooth noise with grains of a few pixels: float32[H,W], mean 0."""
    height, width = shape
    coarse = generator.normal(0, generator.uniform(0, MAX_TEXTURE), (height // grain_px + 2, width // grain_px + 2))
    image = Image.fromarray(coarse.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def _shadow(shape: tuple[int, ...], generator: np.random.Generator) -> FloatImage:
    """Draw a half-plane with a soft edge at a random angle: float32[H,W], 0 for full light to 1."""
    height, width = shape
    angle = generator.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    along = (columns / width - 0.5) * np.cos(angle) + (rows / height - 0.5) * np.sin(angle)
    softness = generator.uniform(0.02, 0.2)
    shadow: FloatImage = ((along - generator.uniform(-0.3, 0.3)) / softness).clip(0, 1).astype(np.float32)
    return shadow

"""The corruption suite for evaluation: 23 kinds of corruption of images of 28x28.

Follows Mu and Gilmer 2019, "MNIST-C: A Robustness Benchmark for Computer Vision", implemented here in numpy with some
additional kinds. Training uses other code (``augment.corrupt``); ``Corruption.is_in`` tells whether a preset's
augmentation contains similar corruptions. Called by ``evaluation_sets``. Does not import TensorFlow.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from digitserve_training.model.presets import Augmentation

Pixels = NDArray[np.floating]
"""One image, float[28,28] from 0 (background) to 1 (full ink)."""

Apply = Callable[[Pixels, np.random.Generator], Pixels]

SIZE = 28
_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.float32)


@dataclass(frozen=True)
class Corruption:
    """One kind of corruption.

    Attributes:
        name: shown in tables.
        apply: corrupts one image; the caller clips the result to 0 to 1.
        similar: fields of ``Augmentation`` that produce similar corruptions in training.
    """

    name: str
    apply: Apply
    similar: tuple[str, ...] = ()

    def is_in(self, augmentation: Augmentation) -> bool:
        """Whether this augmentation produces similar corruptions."""
        return any(getattr(augmentation, name) for name in self.similar)


def corrupt_images(images: NDArray[np.uint8], corruption: Corruption, seed: int) -> NDArray[np.uint8]:
    """Corrupt each image with its own random values.

    Args:
        images: uint8[N,28,28,1].
        corruption: the kind of corruption.
        seed: seed of all random values.

    Returns:
        uint8[N,28,28,1].
    """
    generator = np.random.default_rng(seed)
    corrupted = [corruption.apply(image, generator) for image in images[..., 0].astype(np.float32) / 255]
    return (np.stack(corrupted).clip(0, 1) * 255).round().astype(np.uint8)[..., np.newaxis]


def _shot_noise(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    return np.asarray(generator.poisson(pixels * 8 + 0.3) / 8)


def _gaussian_noise(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    return pixels + generator.normal(0, 0.25, pixels.shape)


def _impulse_noise(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    chance = generator.random(pixels.shape)
    return np.where(chance < 0.08, 0.0, np.where(chance > 0.92, 1.0, pixels))


def _glass_blur(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Swap pixels with near ones, then blur slightly."""
    for _ in range(2):
        y, x = _Y + generator.integers(-1, 2, pixels.shape), _X + generator.integers(-1, 2, pixels.shape)
        pixels = pixels[y.clip(0, SIZE - 1).astype(int), x.clip(0, SIZE - 1).astype(int)]
    return _filter(pixels, ImageFilter.GaussianBlur(0.7))


def _defocus_blur(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    return _filter(pixels, ImageFilter.GaussianBlur(generator.uniform(1.2, 2.0)))


def _motion_blur(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    angle, reach = generator.uniform(0, np.pi), 4
    steps = [_affine(pixels, shift=(part * np.cos(angle), part * np.sin(angle))) for part in range(-reach, reach + 1)]
    return np.asarray(np.mean(steps, axis=0))


def _shear(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    return _affine(pixels, matrix=((1, _sign(generator) * generator.uniform(0.3, 0.6)), (0, 1)))


def _scale(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    return _affine(pixels, matrix=((1 / generator.uniform(0.55, 0.75), 0), (0, 1 / generator.uniform(0.55, 0.75))))


def _rotate(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    angle = _sign(generator) * np.radians(generator.uniform(20, 35))
    return _affine(pixels, matrix=((np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))))


def _translate(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    return _affine(
        pixels, shift=(_sign(generator) * generator.uniform(2, 5), _sign(generator) * generator.uniform(2, 5))
    )


def _wave(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Displace rows and columns along a sine wave."""
    first, second = generator.uniform(0, 2 * np.pi, 2)
    x = _X + 2 * np.sin(2 * np.pi * _Y / 14 + first)
    y = _Y + 1.5 * np.sin(2 * np.pi * _X / 14 + second)
    return _sample(pixels, y, x)


def _brightness(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    return pixels + generator.uniform(0.3, 0.6)


def _contrast(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    return (pixels - 0.5) * generator.uniform(0.15, 0.3) + 0.5


def _stripe(pixels: Pixels, _: np.random.Generator) -> Pixels:
    """Invert the left and the right quarter."""
    return np.where((_X < 7) | (_X >= 21), 1 - pixels, pixels)


def _fog(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Blend with plasma noise (Fournier, Fussell, Carpenter 1982)."""
    cloud = np.zeros(pixels.shape)
    for points in (2, 4, 8, 16):
        cloud += _enlarge(generator.random((points, points), np.float32)) / points
    cloud = (cloud - cloud.min()) / np.ptp(cloud)
    return np.asarray(pixels * 0.6 + cloud * 0.6)


def _spatter(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Add round drops of ink, or erase ink in round drops."""
    value = float(generator.random() < 0.5)
    for _ in range(int(generator.integers(6, 13))):
        y, x, radius = generator.uniform(0, SIZE), generator.uniform(0, SIZE), generator.uniform(0.8, 2.2)
        pixels = np.where((_Y - y) ** 2 + (_X - x) ** 2 < radius**2, value, pixels).astype(np.float32)
    return pixels


def _dotted_line(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    ends = generator.uniform(0, SIZE, (2, 2)) * ((0, 1), (0, 1)) + ((0, 0), (SIZE - 1, 0))

    def draw(canvas: ImageDraw.ImageDraw) -> None:
        for x, y in np.linspace(ends[0], ends[1], 10):
            canvas.rectangle((x, y, x + 1, y + 1), 255)

    return np.maximum(pixels, _draw_mask(draw))


def _zigzag(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    middle, height = generator.uniform(6, 22), generator.uniform(2, 4)
    x = np.linspace(0, SIZE - 1, 8)
    y = middle + height * np.where(np.arange(8) % 2, 1, -1)
    if generator.random() < 0.5:
        x, y = y, x
    return np.maximum(pixels, _draw_mask(lambda canvas: canvas.line([*zip(x.tolist(), y.tolist(), strict=True)], 255)))


def _grid(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Add squared paper: pale lines at equal distances."""
    period, shift = int(generator.integers(6, 10)), generator.integers(0, 6, 2)
    lines = ((_Y + shift[0]) % period == 0) | ((_X + shift[1]) % period == 0)
    return np.where(lines, np.maximum(pixels, generator.uniform(0.3, 0.6)), pixels)


def _edges(pixels: Pixels, _: np.random.Generator) -> Pixels:
    """Keep only the edges of strokes: threshold the gradient magnitude."""
    down, across = np.gradient(_filter(pixels, ImageFilter.GaussianBlur(0.8)))
    edges: Pixels = (np.hypot(down, across) > 0.18).astype(np.float32)
    return edges


def _pixelate(pixels: Pixels, _: np.random.Generator) -> Pixels:
    image = _to_pil(pixels).resize((9, 9), Image.Resampling.BOX)
    return _from_pil(image.resize((SIZE, SIZE), Image.Resampling.NEAREST))


def _jpeg(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    buffer = io.BytesIO()
    _to_pil(pixels).save(buffer, "JPEG", quality=int(generator.integers(3, 9)))
    return _from_pil(Image.open(buffer))


def _occlusion(pixels: Pixels, generator: np.random.Generator) -> Pixels:
    """Cover part of the digit with a square of background."""
    top, left = generator.integers(5, 17, 2)
    hidden = pixels.copy()
    hidden[top : top + 6, left : left + 6] = 0
    return hidden


def _sign(generator: np.random.Generator) -> int:
    return 1 if generator.random() < 0.5 else -1


def _affine(
    pixels: Pixels, matrix: tuple[tuple[float, float], ...] = ((1, 0), (0, 1)), shift: tuple[float, float] = (0, 0)
) -> Pixels:
    """Sample each output pixel at ``matrix`` times its position (x, y) relative to the centre, minus ``shift``."""
    centre = (SIZE - 1) / 2
    x, y = _X - centre, _Y - centre
    (a, b), (c, d) = matrix
    return _sample(pixels, c * x + d * y + centre - shift[1], a * x + b * y + centre - shift[0])


def _sample(pixels: Pixels, y: Pixels, x: Pixels) -> Pixels:
    """Sample with bilinear interpolation; outside the image is background."""
    padded = np.pad(pixels, 1)
    y, x = (y + 1).clip(0, SIZE + 0.999), (x + 1).clip(0, SIZE + 0.999)
    top, left = y.astype(int), x.astype(int)
    down, across = y - top, x - left
    upper = padded[top, left] * (1 - across) + padded[top, left + 1] * across
    lower = padded[top + 1, left] * (1 - across) + padded[top + 1, left + 1] * across
    result: Pixels = upper * (1 - down) + lower * down
    return result


def _filter(pixels: Pixels, blur: ImageFilter.GaussianBlur) -> Pixels:
    return _from_pil(_to_pil(pixels).filter(blur))


def _enlarge(coarse: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC), np.float32)


def _draw_mask(draw: Callable[[ImageDraw.ImageDraw], None]) -> Pixels:
    image = Image.new("L", (SIZE, SIZE))
    draw(ImageDraw.Draw(image))
    return _from_pil(image)


def _to_pil(pixels: Pixels) -> Image.Image:
    return Image.fromarray((pixels * 255).round().astype(np.uint8))


def _from_pil(image: Image.Image) -> Pixels:
    return np.asarray(image, np.float32) / 255


CORRUPTIONS = (
    Corruption("shot noise", _shot_noise, similar=("noise", "corrupted")),
    Corruption("Gaussian noise", _gaussian_noise, similar=("noise", "corrupted")),
    Corruption("impulse noise", _impulse_noise, similar=("corrupted",)),
    Corruption("glass blur", _glass_blur),
    Corruption("defocus blur", _defocus_blur, similar=("blur", "corrupted")),
    Corruption("motion blur", _motion_blur, similar=("corrupted",)),
    Corruption("shear", _shear, similar=("shear", "corrupted")),
    Corruption("scale", _scale, similar=("scale", "zoom", "corrupted")),
    Corruption("rotate", _rotate, similar=("rotation_deg", "corrupted")),
    Corruption("translate", _translate, similar=("shift_px", "corrupted")),
    Corruption("wave", _wave, similar=("elastic_px", "corrupted")),
    Corruption("brightness", _brightness, similar=("corrupted",)),
    Corruption("contrast", _contrast, similar=("contrast", "corrupted")),
    Corruption("stripe", _stripe, similar=("corrupted",)),
    Corruption("fog", _fog, similar=("corrupted",)),
    Corruption("spatter", _spatter, similar=("corrupted",)),
    Corruption("dotted line", _dotted_line, similar=("corrupted",)),
    Corruption("zigzag", _zigzag, similar=("corrupted",)),
    Corruption("squared paper", _grid, similar=("corrupted",)),
    Corruption("edges only", _edges, similar=("corrupted",)),
    Corruption("pixelate", _pixelate, similar=("corrupted",)),
    Corruption("JPEG", _jpeg),
    Corruption("occlusion", _occlusion, similar=("corrupted",)),
)

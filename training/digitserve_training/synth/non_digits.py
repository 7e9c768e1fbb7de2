"""Images that show no digit: those that training uses as outliers, and different ones for evaluation.

``fit.pool`` mixes ``for_training`` and ``certain`` into the batches (Hendrycks, Mazeika, Dietterich 2019, "Deep Anomaly
Detection with Outlier Exposure"). ``evaluate`` measures on ``for_evaluation``: training uses none of its typefaces,
strokes and textures, but it does use noise of the same nature. Characters and scribbles are framed as the service frames
images; patterns fill the whole image, because framing would find no ink in them. Does not import TensorFlow.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digitserve.types import IMAGE_SIZE, Gray, Ink
from digitserve.vision.framing import frame
from digitserve_training.synth import strokes
from digitserve_training.synth.glyphs import EVALUATION_TYPEFACES, LETTERS, TRAINING_TYPEFACES, draw_glyph, symbols
from digitserve_training.synth.strokes import LETTER_STROKES

Draw = Callable[[np.random.Generator], Gray]
"""Draws one image: uint8[64,64], which is framed afterwards, or uint8[28,28], which is used unchanged."""


def for_training(number: int, seed: int) -> Gray:
    """Draw images that show no digit: letters, symbols of many scripts, scribbles and patterns.

    Returns:
        uint8[number,28,28,1], light ink on dark.
    """
    return _draw_kinds(TRAINING_KINDS, number, seed)


def certain(number: int, seed: int) -> Gray:
    """Draw images that nobody takes for a digit: patterns and tangles of strokes.

    Returns:
        uint8[number,28,28,1], light ink on dark.
    """
    return _draw_kinds(CERTAIN_KINDS, number, seed)


def for_evaluation(number: int, seed: int) -> dict[str, Gray]:
    """Draw the images of evaluation: ``number`` of each kind, uint8[number,28,28,1], by the name of the kind."""
    return {name: _frame_all(_repeat(draw, number, seed)) for name, draw in EVALUATION_KINDS.items()}


def _draw_kinds(kinds: Sequence[tuple[Draw, float]], number: int, seed: int) -> Gray:
    generator = np.random.default_rng(seed)
    draws, shares = zip(*kinds, strict=True)
    return _frame_all(draws[kind](generator) for kind in generator.choice(len(draws), number, p=shares))


def _repeat(draw: Draw, number: int, seed: int) -> list[Gray]:
    generator = np.random.default_rng(seed)
    return [draw(generator) for _ in range(number)]


def _frame_all(drawings: Iterable[Gray]) -> Gray:
    """Frame each drawing that does not have the network's size yet: uint8[N,28,28,1]."""
    sized = [
        drawing if len(drawing) == IMAGE_SIZE else frame(drawing, Ink.LIGHT_ON_DARK).pixels for drawing in drawings
    ]
    return np.stack(sized)[..., np.newaxis]


def _choose(options: Sequence[str], generator: np.random.Generator) -> str:
    return options[int(generator.integers(len(options)))]


# -- Kinds for training ------------------------------------------------------------------------------------------------


def _letter(generator: np.random.Generator) -> Gray:
    return draw_glyph(_choose(LETTERS, generator), _choose(TRAINING_TYPEFACES, generator))


def _symbol(generator: np.random.Generator) -> Gray:
    return draw_glyph(_choose(symbols("DejaVuSans"), generator), "DejaVuSans")


def _scribble(generator: np.random.Generator) -> Gray:
    """Draw one to three curves through random points; each curve changes direction several times."""
    lines = [
        # With fewer points a curve sometimes looks like a 1, a 2 or a 7.
        strokes.round_corners(generator.uniform(0.15, 0.85, (int(generator.integers(6, 12)), 2)))
        for _ in range(int(generator.integers(1, 4)))
    ]
    return strokes.draw_lines(lines, generator.uniform(2, 6))


def _grating(generator: np.random.Generator) -> Gray:
    """Draw one sinusoidal grating, or the sum of two."""
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] / IMAGE_SIZE
    field = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    for _ in range(int(generator.integers(1, 3))):
        angle, cycles = generator.uniform(0, np.pi), generator.uniform(1.5, 10)
        field += np.sin(2 * np.pi * (cycles * (x * np.cos(angle) + y * np.sin(angle)) + generator.random()))
    return _to_full_range(field)


def _smooth_noise(generator: np.random.Generator) -> Gray:
    """Draw noise at a random scale."""
    size = int(generator.integers(4, IMAGE_SIZE + 1))
    coarse = Image.fromarray(generator.random((size, size), np.float32))
    return _to_full_range(np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)))


def _to_full_range(field: NDArray[np.floating]) -> Gray:
    low, high = field.min(), field.max()
    # A field without differences becomes black.
    stretched: Gray = ((field - low) / max(high - low, 1e-9) * 255).astype(np.uint8)
    return stretched


TRAINING_KINDS: tuple[tuple[Draw, float], ...] = (
    (_letter, 0.4),
    (_symbol, 0.2),
    (_scribble, 0.2),
    (_grating, 0.1),
    (_smooth_noise, 0.1),
)
"""What ``for_training`` draws, each kind with its share of the images."""


def _dead_leaves(generator: np.random.Generator) -> Gray:
    """Cover the image with shapes in random shades (Baradad et al. 2021, "Learning to See by Looking at Noise")."""
    side = IMAGE_SIZE * _OVERSAMPLING
    image = Image.new("L", (side, side))
    pen = ImageDraw.Draw(image)
    largest = _log_uniform(generator, 3, 14) * _OVERSAMPLING
    two_shades = generator.random() < 0.5
    for _ in range(int(generator.integers(20, 200))):
        radius, (x, y) = largest * generator.uniform(0.2, 1), generator.uniform(0, side, 2)
        shade = 255 * int(generator.integers(2)) if two_shades else int(generator.integers(256))
        num_corners = int(generator.integers(2, 5))
        if num_corners == 2:
            width, height = radius * generator.uniform(0.3, 1, 2)
            pen.ellipse((x - width, y - height, x + width, y + height), shade)
        else:
            angles = np.sort(generator.uniform(0, 2 * np.pi, num_corners))
            pen.polygon([(x + radius * np.cos(angle), y + radius * np.sin(angle)) for angle in angles], shade)
    return _to_full_range(np.asarray(image.reduce(_OVERSAMPLING), np.float64))


def _blotches(generator: np.random.Generator) -> Gray:
    """Draw stretched noise with soft or hard edges between light and dark."""
    height, width = (round(_log_uniform(generator, 3, IMAGE_SIZE)) for _ in range(2))
    # Large enough that a rotated square of the image's size fits.
    size = (2 * IMAGE_SIZE, 2 * IMAGE_SIZE)
    coarse = Image.fromarray(generator.random((height, width), np.float32)).resize(size, Image.Resampling.BICUBIC)
    rotated = coarse.rotate(generator.uniform(0, 180), Image.Resampling.BILINEAR)
    start = IMAGE_SIZE // 2
    field = np.asarray(rotated)[start : start + IMAGE_SIZE, start : start + IMAGE_SIZE]
    middle = np.quantile(field, generator.uniform(0.25, 0.75))
    return _to_full_range(np.tanh(_log_uniform(generator, 1.5, 30) * (field - middle)))


def _mosaic(generator: np.random.Generator) -> Gray:
    """Draw the Voronoi cells of random points in random shades."""
    num_cells = round(_log_uniform(generator, 8, 200))
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE][..., np.newaxis]
    centre_y, centre_x = generator.uniform(0, IMAGE_SIZE, (2, num_cells))
    shades = generator.random(num_cells)
    if generator.random() < 0.5:
        shades = np.round(shades)
    return _to_full_range(shades[np.argmin((y - centre_y) ** 2 + (x - centre_x) ** 2, axis=-1)])


def _scratches(generator: np.random.Generator) -> Gray:
    """Draw 4 to 30 straight lines across the image, light on dark or dark on light."""
    num_lines = round(_log_uniform(generator, 4, 30))
    ends = generator.uniform(-0.2, 1.2, (num_lines, 2, 2))
    lines = [[(float(x), float(y)) for x, y in line] for line in ends]
    drawn = Image.fromarray(strokes.draw_lines(lines, generator.uniform(2, 6)))
    pixels = _to_full_range(np.asarray(drawn.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BOX), np.float64))
    return pixels if generator.random() < 0.7 else 255 - pixels


def _tangle(generator: np.random.Generator) -> Gray:
    """Draw five to nine straight lines and elliptic arcs across each other."""
    lines: list[strokes.Stroke] = []
    # With fewer lines, one that is hidden or cut off leaves a shape like a 6, a 9 or an 11.
    for _ in range(int(generator.integers(5, 10))):
        if generator.random() < 0.4:
            points = generator.uniform(0.12, 0.88, (2, 2))
        else:
            angles = generator.uniform(0, 2 * np.pi) + np.linspace(0, generator.uniform(0.5, 7), 24)
            circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
            points = generator.uniform(0.2, 0.8, 2) + generator.uniform(0.08, 0.3, 2) * circle
        lines.append([(float(x), float(y)) for x, y in points])
    return strokes.draw_lines(lines, generator.uniform(2, 5))


def _log_uniform(generator: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(generator.uniform(np.log(low), np.log(high))))


_OVERSAMPLING = 4

CERTAIN_KINDS: tuple[tuple[Draw, float], ...] = (
    (_dead_leaves, 0.15),
    (_blotches, 0.15),
    (_mosaic, 0.15),
    (_scratches, 0.15),
    (_tangle, 0.4),
)
"""What ``certain`` draws, each kind with its share of the images."""


# -- Kinds for evaluation ----------------------------------------------------------------------------------------------


def _unseen_letter(generator: np.random.Generator) -> Gray:
    return draw_glyph(_choose(LETTERS, generator), _choose(EVALUATION_TYPEFACES, generator))


def _handwritten_letter(generator: np.random.Generator) -> Gray:
    return strokes.draw_character(LETTER_STROKES[_choose(tuple(LETTER_STROKES), generator)], generator)


def _spiral(generator: np.random.Generator) -> Gray:
    """Draw loops around a moving centre: a scribble of another kind than ``_scribble`` draws."""
    time = np.linspace(0, 1, 80)
    turns, drift = generator.uniform(4, 8), generator.uniform(-0.3, 0.3, 2)
    radius = generator.uniform(0.1, 0.3) * (1 + 0.5 * np.sin(2 * np.pi * generator.uniform(1, 4) * time))
    angle = 2 * np.pi * (turns * time + generator.random())
    x = 0.5 + radius * np.cos(angle) + drift[0] * (time - 0.5)
    y = 0.5 + radius * np.sin(angle) * generator.uniform(0.4, 1) + drift[1] * (time - 0.5)
    return strokes.draw_lines([list(zip(x.tolist(), y.tolist(), strict=True))], generator.uniform(2, 5))


def _texture(generator: np.random.Generator) -> Gray:
    """Draw a pattern of checks, dots, rings or bricks."""
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE]
    size = int(generator.integers(3, 8))
    patterns = (
        (x // size + y // size) % 2,
        np.hypot(x % size - size / 2, y % size - size / 2) < size / 3.5,
        np.hypot(x - IMAGE_SIZE / 2, y - IMAGE_SIZE / 2) // (size / 2) % 2,
        (x // size) % 2 * ((y // (size // 2)) % 2),
    )
    return (np.asarray(patterns[int(generator.integers(len(patterns)))]) * 255).astype(np.uint8)


def _white_noise(generator: np.random.Generator) -> Gray:
    """Draw independent pixels; values are uniformly distributed or mostly dark."""
    noise = generator.random((IMAGE_SIZE, IMAGE_SIZE)) ** generator.uniform(0.5, 4)
    return (noise * 255).astype(np.uint8)


EVALUATION_KINDS: dict[str, Draw] = {
    "letters in other typefaces": _unseen_letter,
    "letters drawn with a pen": _handwritten_letter,
    "scribbles": _spiral,
    "textures": _texture,
    "noise": _white_noise,
}

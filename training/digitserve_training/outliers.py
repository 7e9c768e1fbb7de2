"""Pictures that are no digits: what networks learn to refuse, and other ones by which they are judged.

``train`` mixes ``drawn_for_training`` into its batches (Hendrycks, Mazeika, Dietterich 2019, "Deep Anomaly Detection
with Outlier Exposure"); ``evaluate`` measures on the kinds of ``judged``, whose typefaces, strokes and patterns training
never sees. Typefaces come with matplotlib. Figures are framed as the service frames them; patterns fill the whole
image, for framed they would be blank. Needs no TensorFlow.
"""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from digitserve.bundle import IMAGE_SIZE
from digitserve.preprocess import Ink, frame

Gray = NDArray[np.uint8]
Drawing = Callable[[np.random.Generator], Gray]
Stroke = Sequence[tuple[float, float]]

TRAINING_TYPEFACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Oblique",
    "DejaVuSerif",
    "DejaVuSerif-Italic",
    "cmss10",
    "cmtt10",
    "cmmi10",
)
JUDGED_TYPEFACES = ("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "cmr10", "cmti10", "cmb10")

LOOKALIKES = frozenset("OoQDIlijJ|ZzSsBbGgqy")
"""Letters that some hands write as others write digits: refusing them would refuse digits."""

LETTERS = tuple(letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if letter not in LOOKALIKES)

FIELD = 64
"""Side of the square that figures are drawn on, in pixels, before they are framed."""


def drawn_for_training(number: int, seed: int) -> Gray:
    """Draw pictures that are no digits: letters, signs of many scripts, scribbles and patterns.

    Returns:
        uint8[number,28,28,1], light ink on dark.
    """
    generator = np.random.default_rng(seed)
    kinds: tuple[tuple[Drawing, float], ...] = (
        (lambda chance: _glyph(_chosen(LETTERS, chance), _chosen(TRAINING_TYPEFACES, chance)), 0.4),
        (lambda chance: _glyph(_chosen(_signs("DejaVuSans"), chance), "DejaVuSans"), 0.2),
        (_scribble, 0.2),
        (_grating, 0.1),
        (_grain, 0.1),
    )
    chosen = generator.choice(len(kinds), number, p=[share for _, share in kinds])
    return _framed(kinds[kind][0](generator) for kind in chosen)


def printed_digits(number: int, seed: int) -> tuple[Gray, NDArray[np.int64]]:
    """Draw digits in the typefaces that training knows, lest it take print itself for a sign of no digit.

    Returns:
        uint8[number,28,28,1], light ink on dark, and the labels int64[number].
    """
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, number)
    return _framed(_glyph(str(label), _chosen(TRAINING_TYPEFACES, generator)) for label in labels), labels


def judged(number: int, seed: int) -> dict[str, Gray]:
    """Draw what networks are judged by: ``number`` pictures of each kind, uint8[number,28,28,1], by the kind's name."""
    return {name: _framed(_repeat(drawing, number, seed)) for name, drawing in JUDGED.items()}


def _repeat(drawing: Drawing, number: int, seed: int) -> list[Gray]:
    generator = np.random.default_rng(seed)
    return [drawing(generator) for _ in range(number)]


def _framed(drawings: Iterable[Gray]) -> Gray:
    """Frame what was drawn on the field; what has the network's size already stays as it is."""
    sized = [
        drawing if len(drawing) == IMAGE_SIZE else frame(drawing, Ink.LIGHT_ON_DARK).pixels for drawing in drawings
    ]
    return np.stack(sized)[..., np.newaxis]


def _chosen(options: Sequence[str], generator: np.random.Generator) -> str:
    return options[int(generator.integers(len(options)))]


def _glyph(text: str, typeface: str) -> Gray:
    """Draw one character in the middle of the field."""
    picture = Image.new("L", (FIELD, FIELD))
    ImageDraw.Draw(picture).text((FIELD / 2, FIELD / 2), text, 255, _font(typeface), anchor="mm")
    return np.asarray(picture)


@lru_cache
def _font(typeface: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_path(typeface), 44)


def _path(typeface: str) -> Path:
    return Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{typeface}.ttf"


@lru_cache
def _signs(typeface: str) -> tuple[str, ...]:
    """Return a typeface's letters and signs of all scripts, but for numbers and what Latin look-alikes they show."""
    characters = [chr(code) for code in FT2Font(_path(typeface)).get_charmap() if code > 0xFF]
    return tuple(
        character
        for character in characters
        if unicodedata.category(character) in {"Lu", "Ll", "Lo", "Sm", "Sc"}
        and not LOOKALIKES & set(unicodedata.normalize("NFKD", character))
    )


def _stroked(strokes: Sequence[Stroke], width: float) -> Gray:
    """Draw polylines, given in units of the field, with a round pen ``width`` pixels wide."""
    scale = 4
    picture = Image.new("L", (FIELD * scale, FIELD * scale))
    pen, radius = ImageDraw.Draw(picture), width * scale / 2
    for stroke in strokes:
        points = [(x * FIELD * scale, y * FIELD * scale) for x, y in stroke]
        pen.line(points, 255, round(2 * radius), joint="curve")
        for x, y in (points[0], points[-1]):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    return np.asarray(picture.resize((FIELD, FIELD), Image.Resampling.BOX))


def _scribble(generator: np.random.Generator) -> Gray:
    """Draw one to three curves through random points, each turning back on itself a few times."""
    strokes = [
        # Fewer turns come out as a 1, a 2 or a 7 now and then.
        _smoothed(generator.uniform(0.15, 0.85, (int(generator.integers(6, 12)), 2)))
        for _ in range(int(generator.integers(1, 4)))
    ]
    return _stroked(strokes, generator.uniform(2, 6))


def _smoothed(points: NDArray[np.float64]) -> Stroke:
    """Round a polyline's corners by cutting them three times (Chaikin 1974)."""
    for _ in range(3):
        near, far = 0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]
        points = np.concatenate([points[:1], np.stack([near, far], axis=1).reshape(-1, 2), points[-1:]])
    return [(float(x), float(y)) for x, y in points]


def _grating(generator: np.random.Generator) -> Gray:
    """Draw parallel waves, or two sets of them across each other."""
    y, x = np.mgrid[:IMAGE_SIZE, :IMAGE_SIZE] / IMAGE_SIZE
    field = np.zeros((IMAGE_SIZE, IMAGE_SIZE))
    for _ in range(int(generator.integers(1, 3))):
        angle, cycles = generator.uniform(0, np.pi), generator.uniform(1.5, 10)
        field += np.sin(2 * np.pi * (cycles * (x * np.cos(angle) + y * np.sin(angle)) + generator.random()))
    return _stretched(field)


def _grain(generator: np.random.Generator) -> Gray:
    """Draw noise of any coarseness."""
    size = int(generator.integers(4, IMAGE_SIZE + 1))
    coarse = Image.fromarray(generator.random((size, size), np.float32))
    return _stretched(np.asarray(coarse.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)))


def _stretched(field: NDArray[np.floating]) -> Gray:
    low, high = field.min(), field.max()
    stretched: Gray = ((field - low) / (high - low) * 255).astype(np.uint8)
    return stretched


def _judged_letter(generator: np.random.Generator) -> Gray:
    return _glyph(_chosen(LETTERS, generator), _chosen(JUDGED_TYPEFACES, generator))


def _stroked_letter(generator: np.random.Generator) -> Gray:
    """Draw a letter with a pen: each point off by some, the corners rounded, the whole leaning."""
    letter = _chosen(tuple(LETTER_STROKES), generator)
    lean = generator.uniform(-0.2, 0.2)
    strokes = []
    for stroke in LETTER_STROKES[letter]:
        points = np.array(stroke, np.float64) / 4 + generator.normal(0, 0.025, (len(stroke), 2))
        points[:, 0] += lean * (0.5 - points[:, 1])
        strokes.append(_smoothed(0.2 + 0.6 * points))
    return _stroked(strokes, generator.uniform(2.5, 6.5))


def _spiral(generator: np.random.Generator) -> Gray:
    """Draw loops of a pen that goes round and wanders: a scribble, though none of ``_scribble``'s."""
    time = np.linspace(0, 1, 80)
    turns, drift = generator.uniform(4, 8), generator.uniform(-0.3, 0.3, 2)
    radius = generator.uniform(0.1, 0.3) * (1 + 0.5 * np.sin(2 * np.pi * generator.uniform(1, 4) * time))
    angle = 2 * np.pi * (turns * time + generator.random())
    x = 0.5 + radius * np.cos(angle) + drift[0] * (time - 0.5)
    y = 0.5 + radius * np.sin(angle) * generator.uniform(0.4, 1) + drift[1] * (time - 0.5)
    return _stroked([list(zip(x.tolist(), y.tolist(), strict=True))], generator.uniform(2, 5))


def _checks(generator: np.random.Generator) -> Gray:
    """Draw a chequered, dotted or ringed pattern."""
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
    """Draw independent pixels, evenly spread or nearly all dark."""
    noise = generator.random((IMAGE_SIZE, IMAGE_SIZE)) ** generator.uniform(0.5, 4)
    return (noise * 255).astype(np.uint8)


JUDGED: dict[str, Drawing] = {
    "letters in other typefaces": _judged_letter,
    "letters drawn with a pen": _stroked_letter,
    "scribbles": _spiral,
    "textures": _checks,
    "noise": _white_noise,
}

# Pen strokes of letters on a grid of 4 by 4, x to the right, y down.
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

"""Pictures that are no digits: what networks learn to refuse, and other ones by which they are judged.

``train`` mixes ``drawn_for_training`` into its batches (Hendrycks, Mazeika, Dietterich 2019, "Deep Anomaly Detection
with Outlier Exposure"); ``evaluate`` measures on the kinds of ``judged``: training sees neither their typefaces nor
their strokes nor their textures, but noise of the same nature. Typefaces come with matplotlib. Figures are framed as the service frames them; patterns fill the whole
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

from digitserve.types import IMAGE_SIZE, Ink
from digitserve.vision.framing import frame
from digitserve_training.synth import strokes
from digitserve_training.synth.strokes import DIGIT_STROKES, FIELD, LETTER_STROKES

Gray = NDArray[np.uint8]
Drawing = Callable[[np.random.Generator], Gray]

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


def digits_of_other_hands(number: int, seed: int) -> tuple[Gray, NDArray[np.int64]]:
    """Draw digits as MNIST's writers did not: most with a pen in the ways of many countries, a quarter in print.

    Print is there lest networks take it for a sign of no digit.

    Returns:
        uint8[number,28,28,1], light ink on dark, and the labels int64[number].
    """
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, number)
    return _framed(_digit(str(label), generator) for label in labels), labels


def _digit(label: str, generator: np.random.Generator) -> Gray:
    if generator.random() < 0.25:
        return _glyph(label, _chosen(TRAINING_TYPEFACES, generator))
    ways = DIGIT_STROKES[label]
    return strokes.written(ways[int(generator.integers(len(ways)))], generator)


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
    """Return a typeface's letters and signs of all scripts, but for numbers and accented Latin look-alikes.

    Some letters of other scripts look like a digit all the same: about one in fifty of these signs.
    """
    characters = [chr(code) for code in FT2Font(_path(typeface)).get_charmap() if code > 0xFF]
    return tuple(
        character
        for character in characters
        if unicodedata.category(character) in {"Lu", "Ll", "Lo", "Sm", "Sc"}
        and not LOOKALIKES & set(unicodedata.normalize("NFKD", character))
    )


def _scribble(generator: np.random.Generator) -> Gray:
    """Draw one to three curves through random points, each turning back on itself a few times."""
    lines = [
        # Fewer turns come out as a 1, a 2 or a 7 now and then.
        strokes.smoothed(generator.uniform(0.15, 0.85, (int(generator.integers(6, 12)), 2)))
        for _ in range(int(generator.integers(1, 4)))
    ]
    return strokes.stroked(lines, generator.uniform(2, 6))


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


def _penned_letter(generator: np.random.Generator) -> Gray:
    return strokes.written(LETTER_STROKES[_chosen(tuple(LETTER_STROKES), generator)], generator)


def _spiral(generator: np.random.Generator) -> Gray:
    """Draw loops of a pen that goes round and wanders: a scribble, though none of ``_scribble``'s."""
    time = np.linspace(0, 1, 80)
    turns, drift = generator.uniform(4, 8), generator.uniform(-0.3, 0.3, 2)
    radius = generator.uniform(0.1, 0.3) * (1 + 0.5 * np.sin(2 * np.pi * generator.uniform(1, 4) * time))
    angle = 2 * np.pi * (turns * time + generator.random())
    x = 0.5 + radius * np.cos(angle) + drift[0] * (time - 0.5)
    y = 0.5 + radius * np.sin(angle) * generator.uniform(0.4, 1) + drift[1] * (time - 0.5)
    return strokes.stroked([list(zip(x.tolist(), y.tolist(), strict=True))], generator.uniform(2, 5))


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
    "letters drawn with a pen": _penned_letter,
    "scribbles": _spiral,
    "textures": _checks,
    "noise": _white_noise,
}

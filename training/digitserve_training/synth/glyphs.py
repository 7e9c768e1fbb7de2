"""Characters rendered in the typefaces that come with matplotlib and Pillow. Does not import TensorFlow.

Used by ``digits`` and ``non_digits``. Training and evaluation use different typefaces for letters.
"""

import unicodedata
from functools import lru_cache
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from digitserve.types import Gray
from digitserve_training.synth.strokes import CANVAS_SIZE

AILERON = "Aileron"
"""Pillow's own typeface (CC0), similar to Helvetica and Arial: its 1 has no foot, unlike the 1 of matplotlib's."""

TRAINING_TYPEFACES = (
    AILERON,
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
EVALUATION_TYPEFACES = ("STIXGeneral", "STIXGeneralItalic", "STIXGeneralBol", "cmr10", "cmti10", "cmb10")

LOOKALIKES = frozenset("OoQDIlijJ|ZzSsBbGgqy")
"""Letters that some people write like a digit: a network that rejects them would also reject digits."""

LETTERS = tuple(letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if letter not in LOOKALIKES)

_FONT_SIZE_PX = 44


def draw_glyph(text: str, typeface: str, bold_px: int = 0) -> Gray:
    """Draw one character in the centre of the canvas: uint8[64,64], light ink on dark.

    Args:
        text: the character.
        typeface: one of ``TRAINING_TYPEFACES`` or ``EVALUATION_TYPEFACES``.
        bold_px: width that is added on each side of all strokes.
    """
    image = Image.new("L", (CANVAS_SIZE, CANVAS_SIZE))
    centre = (CANVAS_SIZE / 2, CANVAS_SIZE / 2)
    ImageDraw.Draw(image).text(centre, text, 255, _font(typeface), anchor="mm", stroke_width=bold_px)
    return np.asarray(image)


@lru_cache
def symbols(typeface: str) -> tuple[str, ...]:
    """Return a typeface's letters and symbols of all scripts, without numbers and accented look-alikes of Latin letters.

    About one in fifty of these characters still looks like a digit.
    """
    characters = [chr(code) for code in FT2Font(_path(typeface)).get_charmap() if code > 0xFF]
    return tuple(
        character
        for character in characters
        if unicodedata.category(character) in {"Lu", "Ll", "Lo", "Sm", "Sc"}
        and not LOOKALIKES & set(unicodedata.normalize("NFKD", character))
    )


@lru_cache
def _font(typeface: str) -> ImageFont.FreeTypeFont:
    if typeface == AILERON:
        font = ImageFont.load_default(_FONT_SIZE_PX)
        assert isinstance(font, ImageFont.FreeTypeFont)
        return font
    return ImageFont.truetype(_path(typeface), _FONT_SIZE_PX)


def _path(typeface: str) -> Path:
    return Path(mpl.get_data_path()) / "fonts" / "ttf" / f"{typeface}.ttf"

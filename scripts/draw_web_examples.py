"""Draw the example pictures of the page at ``/``, in ``service/digitserve/web/page/examples``.

    DIGITSERVE_MNIST=mnist.npz python -m scripts.draw_web_examples

Digits are test images of MNIST; all else is generated, the same in each run.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digitserve_training.data import splits
from digitserve_training.synth import strokes
from digitserve_training.synth.strokes import LETTER_STROKES
from scripts.draw_page_edges import FloatImage, enlarge

FOLDER = Path(__file__).parent.parent / "service" / "digitserve" / "web" / "page" / "examples"

Gray = NDArray[np.uint8]

MNIST, PAPER, EDGE, LEFT, RIGHT = 18, 4, 15, 84, 0
"""Numbers of the test images."""

FIRST = 40
"""Number of the test image from which on digits for numbers are taken."""

GAP = 5
"""Between the digits of a number, in pixels of MNIST."""

QUALITY = 80
"""Of the JPEG files."""


def paper(height: int, width: int, random: np.random.Generator) -> FloatImage:
    """Return an empty sheet in uneven light, with grain."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    light = 226 - 70 * (0.6 * x + 0.5 * y) ** 1.5
    return np.asarray(light + random.normal(0, 3.5, (height, width)), np.float64)


def write_on(sheet: FloatImage, ink: FloatImage, top: int, left: int, level: float = 45) -> None:
    """Write light ink (0 to 1) on a sheet, as dark grey."""
    window = sheet[top : top + ink.shape[0], left : left + ink.shape[1]]
    window += ink * (np.minimum(level, window) - window)


def middle(sheet: FloatImage, ink: FloatImage, level: float = 45) -> FloatImage:
    """Write ink in the middle of a sheet, and return the sheet."""
    write_on(sheet, ink, (sheet.shape[0] - ink.shape[0]) // 2, (sheet.shape[1] - ink.shape[1]) // 2, level)
    return sheet


def white(height: int, width: int) -> FloatImage:
    """Return a white image."""
    return np.full((height, width), 255.0)


def on_paper(digit: Gray, random: np.random.Generator) -> FloatImage:
    """Draw handwriting on paper in uneven light."""
    return middle(paper(220, 220, random), enlarge(digit, 5.5))


def page_edge(digit: Gray, random: np.random.Generator) -> FloatImage:
    """Draw a digit on a page that lies at an angle on a dark table."""
    sheet = paper(220, 220, random)
    write_on(sheet, enlarge(digit, 5), 66, 76)
    y, x = np.mgrid[:220, :220]
    on_page = (x + 0.06 * y - 40).clip(0, 1)
    return on_page * sheet + (1 - on_page) * random.normal(52, 4, sheet.shape)


def two_digits(left: Gray, right: Gray) -> FloatImage:
    """Draw two digits side by side."""
    image = white(160, 160)
    for digit, center in ((left, 46), (right, 114)):
        ink = enlarge(digit, 3)
        write_on(image, ink, (160 - ink.shape[0]) // 2, center - ink.shape[1] // 2, 30)
    return image


def scribble(random: np.random.Generator) -> FloatImage:
    """Draw a scribble."""
    line = strokes.round_corners(random.uniform(0.12, 0.88, (11, 2)))
    return middle(white(160, 160), enlarge(strokes.draw_lines([line], 3), 2.2), 30)


def letter(random: np.random.Generator) -> FloatImage:
    """Draw a handwritten letter."""
    return middle(white(160, 160), enlarge(strokes.draw_character(LETTER_STROKES["R"], random), 2.4), 30)


class Writer:
    """Writes texts with one image per digit; each image is used once."""

    def __init__(self, images: Gray, labels: NDArray[np.integer[Any]]) -> None:
        """Take the images of the digits.

        Args:
            images: uint8[N, 28, 28], light on dark.
            labels: of the images.
        """
        self._images = {str(digit): iter(images[labels == digit]) for digit in range(10)}

    def digit(self, character: str, scale: float) -> FloatImage:
        """Return the ink of a digit, 0 to 1."""
        return enlarge(next(self._images[character]), scale)

    def write(self, sheet: FloatImage, text: str, center: int, left: int, scale: float, level: float = 45) -> None:
        """Write a text from left to right around a row; a slash is the only separator."""
        for character in text:
            ink = slash(round(31 * scale), 2.4 * scale) if character == "/" else self.digit(character, scale)
            write_on(sheet, ink, center - ink.shape[0] // 2, left, level)
            left += ink.shape[1] + round(GAP * scale)


def slash(height: int, thickness: float) -> FloatImage:
    """Return the ink of a slash, 0 to 1."""
    width = round(0.55 * height)
    y, x = np.mgrid[:height, :width]
    distance = np.abs(width - 1 - x - y * (width - 1 - thickness) / (height - 1) - thickness / 2)
    return np.asarray((thickness / 2 + 0.5 - distance).clip(0, 1), np.float64)


def written(writer: Writer, text: str, width: int) -> FloatImage:
    """Draw a text on white."""
    image = white(120, width)
    writer.write(image, text, 60, 24, 2.6, 30)
    return image


def lines(writer: Writer, random: np.random.Generator) -> FloatImage:
    """Draw lines of numbers on paper in uneven light."""
    sheet = paper(168, 272, random)
    for center, text in ((32, "40718"), (84, "2569"), (136, "93350")):
        writer.write(sheet, text, center, 40, 1.6)
    return sheet


def cells(writer: Writer) -> FloatImage:
    """Draw a row of cells of a form; the last one is empty."""
    image = white(96, 336)
    side = 52
    for x in range(12, 12 + 6 * side + 1, side):
        image[20:74, x : x + 2] = 120
    for y in (20, 20 + side):
        image[y : y + 2, 12 : 14 + 6 * side] = 120
    for index, character in enumerate("80124"):
        ink = writer.digit(character, 1.7)
        write_on(image, ink, 47 - ink.shape[0] // 2, 39 + index * side - ink.shape[1] // 2, 30)
    return image


def main() -> None:
    """Write the pictures."""
    test = splits.read_test()
    images = test.images[..., 0]
    writer = Writer(images[FIRST:], test.labels[FIRST:])
    random = np.random.default_rng(7)
    pictures = {
        "mnist.png": images[MNIST].astype(np.float64),
        "paper.jpg": on_paper(images[PAPER], random),
        "edge.jpg": page_edge(images[EDGE], random),
        "two.png": two_digits(images[LEFT], images[RIGHT]),
        "letter.png": letter(random),
        "scribble.png": scribble(random),
        "empty.jpg": paper(220, 220, random),
        "number.png": written(writer, "28306", 340),
        "date.png": written(writer, "14/07/26", 460),
        "lines.jpg": lines(writer, random),
        "cells.png": cells(writer),
    }
    for name, pixels in pictures.items():
        image = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
        if name.endswith("png") and image.width > images.shape[-1]:
            image = image.quantize(16)
        image.save(FOLDER / name, optimize=True, quality=QUALITY)


if __name__ == "__main__":
    main()

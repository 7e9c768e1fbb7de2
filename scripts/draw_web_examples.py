"""Draw the example pictures of the page at ``/``, in ``service/digitserve/web/page/examples``.

    DIGITSERVE_MNIST=mnist.npz python -m scripts.draw_web_examples

Digits are test images of MNIST; all else is generated, the same in each run.
"""

from pathlib import Path

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


def main() -> None:
    """Write the pictures."""
    images = splits.read_test().images[..., 0]
    random = np.random.default_rng(7)
    pictures = {
        "mnist.png": images[MNIST].astype(np.float64),
        "paper.jpg": on_paper(images[PAPER], random),
        "edge.jpg": page_edge(images[EDGE], random),
        "two.png": two_digits(images[LEFT], images[RIGHT]),
        "letter.png": letter(random),
        "scribble.png": scribble(random),
        "empty.jpg": paper(220, 220, random),
    }
    for name, pixels in pictures.items():
        image = Image.fromarray(pixels.clip(0, 255).round().astype(np.uint8))
        if name.endswith("png") and image.width > images.shape[-1]:
            image = image.quantize(16)
        image.save(FOLDER / name, optimize=True, quality=QUALITY)


if __name__ == "__main__":
    main()

"""Count the images whose polarity is found wrong, among those whose border does not decide it and whose background is flat.

    python -m scripts.measure_polarity STROKES

The images are MNIST's test digits (``DIGITSERVE_MNIST``) and pen digits of UniPen (``STROKES``), light on dark: cropped to
the ink, as bitmaps, stretched to squares, with thick strokes. docs/decisions.md has the figures.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from digitserve.types import Ink
from digitserve.vision.background import residuals
from digitserve.vision.polarity import CLEAR_BORDER_LIGHTNESS, find_reduced_ink, measure_border
from digitserve_training.data import pen_split, splits
from digitserve_training.synth import pen_ink
from digitserve_training.synth.scans import crop

if TYPE_CHECKING:
    from collections.abc import Callable

Gray = NDArray[np.uint8]
NUM_DIGITS = 6_000
NUM_PEN_DIGITS = 3_000


def unclear(image: Gray) -> tuple[bool, bool] | None:
    """Return whether the polarity is wrong by the border alone, and as it is found; None if the border is clear."""
    gray = image.astype(np.float32)
    low, high = float(gray.min()), float(gray.max())
    if high == low or min(gray.shape) < pen_ink.SQUARE_SIDES_PX[0] // 4:
        return None
    border = measure_border(gray, low, high)
    if abs(border.lightness) >= CLEAR_BORDER_LIGHTNESS or residuals(gray[None], [low], [high])[0] is not None:
        return None
    return border.lightness > 0, find_reduced_ink(gray, low, high, border)[0] is Ink.DARK_ON_LIGHT


def main() -> None:
    """Print a line for each kind of image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("strokes", type=Path)
    random = np.random.default_rng(0)
    digits = [crop(image) for image in splits.read_test().images[:NUM_DIGITS, ..., 0]]
    pens = pen_split.read(parser.parse_args().strokes).training
    chosen = [pens[index].strokes for index in random.integers(0, len(pens), NUM_PEN_DIGITS)]
    inks = [pen_ink.draw_ink(strokes, random) for strokes in chosen]

    def square(ink: Gray) -> Gray:
        return bitmap(np.asarray(Image.fromarray(ink).resize((16, 16), Image.Resampling.BOX)))

    def bitmap(gray: Gray) -> Gray:
        levels: Gray = ((gray > 0.4 * gray.max()) * 255).astype(np.uint8)
        return levels

    def small(ink: Gray) -> Gray:
        factor = -(-max(ink.shape) // int(random.integers(10, 40)))
        return crop(bitmap(np.asarray(Image.fromarray(ink).reduce(factor))))

    def thick(digit: Gray) -> Gray:
        size = (2 * digit.shape[1], 2 * digit.shape[0])
        return np.asarray(Image.fromarray(digit).resize(size).filter(ImageFilter.MaxFilter(5)))

    kinds: tuple[tuple[str, list[Gray], Callable[[Gray], Gray]], ...] = (
        ("pen, cropped bitmaps", inks, small),
        ("pen, squares", [crop(ink) for ink in inks], square),
        ("MNIST, cropped", digits, np.asarray),
        ("MNIST, cropped bitmaps", digits, bitmap),
        ("MNIST, squares", digits, square),
        ("MNIST, thick", digits, thick),
    )
    for name, images, change in kinds:
        found = [result for image in images if (result := unclear(change(image))) is not None]
        by_border, final = np.array(found).sum(axis=0)
        print(f"{name}: {len(found)} unclear, {by_border} wrong by the border alone, {final} wrong")


if __name__ == "__main__":
    main()

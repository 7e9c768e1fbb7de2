"""Draw scans of digits beside page edges, folds and bands, as a folder for ``digitserve-train evaluate --pictures``.

    python -m scripts.draw_page_edges OUT [--seed 5] [--count 500]
    digitserve-train evaluate models/digits/5 --pictures OUT

The digits are MNIST's test images (``DIGITSERVE_MNIST``), enlarged, on grainy paper. Each scan has one artefact at one side.
"""

import argparse
import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from digitserve_training.data import splits
from digitserve_training.synth.scans import crop

FloatImage = NDArray[np.float64]
Artefact = Callable[[FloatImage, FloatImage, int, float, np.random.Generator], FloatImage]


def dark_outside(image: FloatImage, depth: FloatImage, side: int, dark: float, _: np.random.Generator) -> FloatImage:
    """Darken what is outside of the page."""
    return np.where(depth < 0, dark, image)


def gutter(image: FloatImage, depth: FloatImage, side: int, dark: float, random: np.random.Generator) -> FloatImage:
    """Darken the paper towards the fold of a book."""
    share = np.clip((depth - depth.min()) / max(-depth.min(), 1), 0, 1) ** random.uniform(0.5, 2)
    return np.minimum(image, dark + (image - dark) * share)


def bar(image: FloatImage, depth: FloatImage, side: int, dark: float, random: np.random.Generator) -> FloatImage:
    """Draw a band at some distance from the side."""
    return np.where(np.abs(depth) < random.uniform(0.01, 0.06) * side, dark, image)


def soft_fold(image: FloatImage, depth: FloatImage, side: int, dark: float, random: np.random.Generator) -> FloatImage:
    """Draw a fold with a soft shadow."""
    return image - (image - dark) * np.exp(-((depth / (random.uniform(0.01, 0.08) * side)) ** 2))


def pages_below(
    image: FloatImage, depth: FloatImage, side: int, dark: float, random: np.random.Generator
) -> FloatImage:
    """Show the edges of the pages below, and darkness beyond them."""
    visible = random.uniform(0.01, 0.03) * side
    return np.where(depth < 0, dark / 2, np.where(depth < visible, random.uniform(120, 170), image))


ARTEFACTS: tuple[Artefact, ...] = (dark_outside, gutter, bar, soft_fold, pages_below)


def draw(digit: NDArray[np.uint8], artefact: Artefact, random: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a digit on a page of 80 to 400 pixels with an artefact beside it: uint8[H, W]."""
    height = int(random.integers(80, 400))
    width = int(height * random.uniform(0.7, 1.4))
    ink = enlarge(digit, random.uniform(0.25, 0.6) * min(height, width) / max(digit.shape))
    image = np.full((height, width), random.uniform(180, 255))
    # The artefact is drawn at the top, and the page is turned.
    turns = int(random.integers(4))
    image = np.rot90(image, turns)
    side, length = image.shape
    position = random.uniform(0.03, 0.22) * side
    slope = random.uniform(-0.05, 0.05) * (np.arange(length) - length / 2)
    depth = np.arange(side)[:, None] - (position + slope)
    image = np.rot90(artefact(image, depth, side, random.uniform(0, 120), random), -turns).copy()
    clear = np.rot90(np.broadcast_to(np.arange(side)[:, None] > position + 0.09 * side, (side, length)), -turns)
    rows, columns = np.flatnonzero(clear.any(axis=1)), np.flatnonzero(clear.any(axis=0))
    top = int(random.integers(rows[0], max(rows[0] + 1, rows[-1] + 2 - len(ink))))
    left = int(random.integers(columns[0], max(columns[0] + 1, columns[-1] + 2 - ink.shape[1])))
    window = image[top : top + len(ink), left : left + ink.shape[1]]
    window += ink[: len(window), : window.shape[1]] * (np.minimum(random.uniform(0, 80), window) - window)
    image += random.normal(0, random.uniform(0, 6), image.shape)
    drawn: NDArray[np.uint8] = image.clip(0, 255).round().astype(np.uint8)
    return drawn


def enlarge(digit: NDArray[np.uint8], scale: float) -> FloatImage:
    """Crop a digit to its ink and scale it: float64[H, W], 0 to 1, with sharp edges."""
    cropped = Image.fromarray(crop(digit))
    size = (max(4, int(cropped.width * scale)), max(4, int(cropped.height * scale)))
    ink = np.asarray(cropped.resize(size, Image.Resampling.BICUBIC), np.float64) / 255
    return ((ink - 0.5) * max(1.0, scale / 2) + 0.5).clip(0, 1)


def main() -> None:
    """Write the images and ``labels.csv``, whose sets are the artefacts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--count", type=int, default=500)
    options = parser.parse_args()
    test, random = splits.read_test(), np.random.default_rng(options.seed)
    if options.output.exists():
        parser.error(f"{options.output} exists; expected a folder that does not")
    options.output.mkdir(parents=True)
    with (options.output / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "label", "set"))
        for number in range(options.count):
            index, artefact = int(random.integers(len(test))), ARTEFACTS[number % len(ARTEFACTS)]
            Image.fromarray(draw(test.images[index, ..., 0], artefact, random)).save(options.output / f"{number}.png")
            table.writerow((f"{number}.png", test.names[test.labels[index]], artefact.__name__))


if __name__ == "__main__":
    main()

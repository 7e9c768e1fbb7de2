"""Draw the picture of ``docs/how-to/read-numbers.md``: examples of the page, the boxes of their marks, and what is read.

    python scripts/draw_reading.py [BUNDLE]

Green boxes are digits, orange ones are less sure than 0.9, blue ones separators, and grey ones what is ignored.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from digitserve.inference.model_folder import find_bundle
from digitserve.protocol.names import Layout, MarkKind
from digitserve.protocol.readings import Mark, Reading, ReadOptions
from digitserve_training.evaluate.numbers.local_reader import open_reader

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs" / "how-to" / "read-numbers.png"
EXAMPLES = ROOT / "service" / "digitserve" / "web" / "page" / "examples"
LAYOUTS = {"number.png": Layout.LINE, "date.png": Layout.LINE, "cells.png": Layout.CELLS, "lines.jpg": Layout.PAGE}

WIDTH = 300
GAP = 12
TEXT_HEIGHT = 20
SURE = 0.9
GREEN, ORANGE, BLUE, GREY = "#18794e", "#c2410c", "#1d4ed8", "#9ca3af"


def color_of(mark: Mark) -> str:
    """Return the colour of a mark's box."""
    if mark.kind is MarkKind.SEPARATOR:
        return BLUE
    if mark.kind is MarkKind.EMPTY:
        return GREY
    return GREEN if mark.kind is MarkKind.DIGIT and mark.confidence >= SURE else ORANGE


def draw_example(image: Image.Image, reading: Reading) -> Image.Image:
    """Draw an image with its boxes, and below it a line of text for each line that is read."""
    scale = WIDTH / image.width
    shown = image.resize((WIDTH, round(image.height * scale)), Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (WIDTH, shown.height + TEXT_HEIGHT * max(1, len(reading.lines)) + 4), "white")
    cell.paste(shown)
    pen, font = ImageDraw.Draw(cell), ImageFont.load_default(15)
    boxes = [(mark.box, color_of(mark)) for line in reading.lines for mark in line.marks]
    for box, color in [(ignored.box, GREY) for ignored in reading.ignored] + boxes:
        corners = [round(side * scale) for side in (box.left, box.top, box.right, box.bottom)]
        pen.rectangle(corners, outline=color, width=2)
    for row, line in enumerate(reading.lines):
        pen.text((2, shown.height + 2 + row * TEXT_HEIGHT), f"{line.text}   {line.confidence:.0%}", "black", font)
    return cell


def main(folder: Path) -> None:
    """Read the examples with a bundle, and write the picture."""
    reader = open_reader(folder, None)
    drawn = []
    for name, layout in LAYOUTS.items():
        image = Image.open(EXAMPLES / name).convert("RGB")
        drawn.append(draw_example(image, reader.read(np.asarray(image), ReadOptions(layout))))
    halves = drawn[:3], drawn[3:]
    heights = [sum(cell.height + GAP for cell in half) for half in halves]
    picture = Image.new("RGB", (2 * WIDTH + 3 * GAP, max(heights) + GAP), "white")
    for column, half in enumerate(halves):
        top = GAP
        for cell in half:
            picture.paste(cell, (GAP + column * (WIDTH + GAP), top))
            top += cell.height + GAP
    picture.quantize(64).save(PICTURE, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else find_bundle(ROOT / "models", "digits"))

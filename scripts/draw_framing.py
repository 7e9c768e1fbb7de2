"""Draw the pictures of ``docs/explanation/framing.md``: what framing is given, where it found ink, what the network sees.

    PYTHONPATH=tests python scripts/draw_framing.py [--check]

The images are generated, the same in each run. With ``--check`` nothing is written, and the exit status is 1 if the picture
in the repository differs.
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from digitserve.types import Ink
from digitserve.vision.framing import frame_colors
from support.framing_cases import CASES, Pixels

PICTURE = Path(__file__).parent.parent / "docs" / "explanation" / "framing.png"

CELL = 112
COLUMNS = 6
GAP = 6


def draw_case(name: str, pixels: Pixels) -> Image.Image:
    """Draw one case: the image with the box of its ink, and below it the 28x28 pixels that the network sees."""
    seen = frame_colors(pixels, Ink.AUTO)
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGBA")
    checkered = Image.new("RGBA", image.size, "lightgray")
    checkered.alpha_composite(image)
    scale = CELL / max(image.size)
    shown = checkered.convert("RGB").resize((round(image.width * scale), round(image.height * scale)))
    if seen.box is not None:
        box = (seen.box.left, seen.box.top, seen.box.right, seen.box.bottom)
        ImageDraw.Draw(shown).rectangle([round(side * scale) for side in box], outline="red")
    cell = Image.new("RGB", (CELL, 2 * CELL + 16), "white")
    cell.paste(shown, ((CELL - shown.width) // 2, 14 + (CELL - shown.height) // 2))
    cell.paste(Image.fromarray(seen.pixels).resize((CELL, CELL), Image.Resampling.NEAREST), (0, CELL + 16))
    ImageDraw.Draw(cell).text((2, 1), name, fill="black")
    return cell


def draw() -> bytes:
    """Draw all cases as one PNG."""
    cells = [draw_case(name, case()) for name, case in CASES.items()]
    rows = -(-len(cells) // COLUMNS)
    width, height = cells[0].size
    picture = Image.new("RGB", (COLUMNS * (width + GAP) - GAP, rows * (height + GAP) - GAP), "white")
    for index, cell in enumerate(cells):
        picture.paste(cell, (index % COLUMNS * (width + GAP), index // COLUMNS * (height + GAP)))
    buffer = io.BytesIO()
    picture.quantize(64).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare with the picture in the repository")
    drawn = draw()
    if not parser.parse_args().check:
        PICTURE.write_bytes(drawn)
        return 0
    ours, theirs = (np.asarray(Image.open(io.BytesIO(png)).convert("L")) for png in (drawn, PICTURE.read_bytes()))
    return int(ours.shape != theirs.shape or bool((np.abs(ours.astype(int) - theirs) > 8).any()))


if __name__ == "__main__":
    sys.exit(main())

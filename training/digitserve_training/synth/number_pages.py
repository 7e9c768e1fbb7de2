"""Synthetic pages of digits in lines, and ruled rows of cells, with known text.

``evaluate.numbers`` measures the reader with them. See ``numbers``. Does not import TensorFlow.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digitserve.types import Box, FloatImage, Gray
from digitserve_training.synth.digit_lines import InkLine
from digitserve_training.synth.numbers import Number, draw_hand, shift_box, write_digit, write_line
from digitserve_training.synth.paper import Paper, draw_on
from digitserve_training.synth.scans import WHITE

MAX_ROTATION_DEGREES = 5.0

NUM_PAGE_DIGITS = (20, 100)
"""Smallest and largest number of digits of a page."""

NUM_LINE_DIGITS = (4, 12)
"""Smallest and largest number of digits of a line of a page; the last line may have fewer."""

PAGE_HEIGHTS_PX = (24, 56)
"""Smallest and largest height of digits on a page."""

WIDE_GAP_SHARE = 0.15
"""Probability that a new number begins between two digits of a line."""

MIN_GAP = 0.15
"""Smallest gap between digits of a page, in heights: the blur of a photo closes narrower ones."""

CELL_HEIGHTS_PX = (22, 56)
"""Smallest and largest height of digits in cells."""

EMPTY_SHARE = 0.15

MAX_ON_RULING_PX = 3.0
"""Most pixels by which a digit that touches a ruling crosses its edge."""

EMPTY = " "
"""Stands in the text for an empty cell."""


def page(
    generator: np.random.Generator,
    digits: Sequence[Gray] | Gray,
    labels: NDArray[np.integer],
    *,
    num_digits: int | None = None,
    max_rotation: float = MAX_ROTATION_DEGREES,
) -> Number:
    """Draw a photo of a page of separate digits in lines.

    Args:
        generator: source of all random values.
        digits: images of single digits, light ink on dark: uint8[N,28,28] or uint8[N,28,28,1], or a sequence of uint8[H,W].
        labels: integer[N], 0 to 9.
        num_digits: of the page; None for a random number.
        max_rotation: largest angle of the lines, in degrees.
    """
    hand = draw_hand(generator, PAGE_HEIGHTS_PX, 2 * MIN_GAP)
    hand = replace(hand, min_gap=MIN_GAP, wide_gap_share=WIDE_GAP_SHARE)
    left = num_digits or int(generator.integers(*NUM_PAGE_DIGITS, endpoint=True))
    per_line = int(generator.integers(*NUM_LINE_DIGITS, endpoint=True))
    lines: list[InkLine] = []
    chosen: list[int] = []
    while left > 0:
        line, of_line = write_line(generator, digits, labels, min(left, per_line), hand)
        lines.append(line)
        chosen += of_line
        left -= per_line
    ink, boxes = _arrange(lines, hand.height_px, generator)
    ink, boxes = _rotate(ink, boxes, generator.uniform(-max_rotation, max_rotation))
    pixels = draw_on(Paper.PHOTO, ink, generator)
    return Number(pixels, tuple(line.text for line in lines), tuple(boxes), tuple(chosen))


def _arrange(
    lines: Sequence[InkLine], height_px: float, generator: np.random.Generator
) -> tuple[FloatImage, list[Box]]:
    """Write lines below each other, with a margin."""
    margin = round(height_px * generator.uniform(0.5, 1.5))
    spacing = height_px * generator.uniform(1.5, 2.2)
    indents = [margin + int(generator.uniform(0, height_px)) for _ in lines]
    tops = [margin + round(spacing * index + height_px * 0.5) + round(height_px) for index in range(len(lines))]
    width = max(indent + line.ink.shape[1] for indent, line in zip(indents, lines, strict=True)) + margin
    height = tops[-1] + margin + round(height_px * 0.5)
    ink, boxes = np.zeros((height, width), np.float32), []
    for line, baseline, indent in zip(lines, tops, indents, strict=True):
        top = baseline - line.baseline
        place = ink[top : top + line.ink.shape[0], indent : indent + line.ink.shape[1]]
        np.maximum(place, line.ink, out=place)
        boxes += [shift_box(box, top, indent) for box in line.boxes]
    return ink, boxes


def _rotate(ink: FloatImage, boxes: Sequence[Box], degrees: float) -> tuple[FloatImage, list[Box]]:
    """Rotate a page around its centre; the page grows so that nothing is cut off."""
    image = Image.fromarray((ink * 255).round().astype(np.uint8))
    rotated = image.rotate(degrees, Image.Resampling.BICUBIC, expand=True)
    numbers = np.zeros(ink.shape, np.uint8)
    for number, box in enumerate(boxes, start=1):
        place = numbers[box.top : box.bottom, box.left : box.right]
        place[ink[box.top : box.bottom, box.left : box.right] > 0.1] = number
    turned = np.asarray(Image.fromarray(numbers).rotate(degrees, Image.Resampling.NEAREST, expand=True))
    return np.asarray(rotated, np.float32) / WHITE, _bounds(turned, len(boxes))


def _bounds(numbers: Gray, count: int) -> list[Box]:
    """Return the bounding boxes of the pixels with the numbers 1 to ``count``."""
    rows, columns = np.nonzero(numbers)
    found = numbers[rows, columns]
    low, high = np.full((count + 1, 2), max(numbers.shape)), np.zeros((count + 1, 2), np.int64)
    positions = np.stack([rows, columns], axis=1)
    np.minimum.at(low, found, positions)
    np.maximum.at(high, found, positions + 1)
    bounds = np.stack([low[1:, 0], high[1:, 0], low[1:, 1], high[1:, 1]], axis=1)
    return [Box(*map(int, one)) for one in bounds]


def cells(
    generator: np.random.Generator,
    digits: Sequence[Gray] | Gray,
    labels: NDArray[np.integer],
    *,
    num_rows: int | None = None,
    num_columns: int | None = None,
    touching_share: float = 0.1,
    empty_share: float = EMPTY_SHARE,
) -> Number:
    """Draw ruled rows of cells, each with one digit or empty.

    Args:
        generator: source of all random values.
        digits: images of single digits, light ink on dark: uint8[N,28,28] or uint8[N,28,28,1], or a sequence of uint8[H,W].
        labels: integer[N], 0 to 9.
        num_rows: None for 1 to 4.
        num_columns: None for 3 to 12.
        touching_share: probability that a digit touches a ruling of its cell.
        empty_share: probability that a cell is empty.

    Returns:
        The image; each line of the text is a row of cells, with a space for an empty one.
    """
    shape = (num_rows or int(generator.integers(1, 5)), num_columns or int(generator.integers(3, 13)))
    hand = draw_hand(generator, CELL_HEIGHTS_PX)
    thickness = int(generator.integers(1, 2 + round(hand.height_px / 16)))
    side = hand.height_px * generator.uniform(1.5, 1.9, 2) + thickness
    size = (int(side[0]), max(int(side[1] * 0.9), round(hand.height_px * 1.25) + thickness))
    apart = int(generator.integers(4, round(hand.height_px))) if generator.random() < 0.5 else 0
    margin = round(hand.height_px * generator.uniform(0.2, 1.0))
    tops = [margin + row * (size[0] + (thickness + apart if apart else 0)) for row in range(shape[0])]
    lefts = [margin + column * size[1] for column in range(shape[1])]
    rulings = _draw_rulings(tops, lefts, size, thickness, margin)
    ink, boxes, chosen, lines = np.zeros_like(rulings), [], [], []
    for top in tops:
        text = ""
        for left in lefts:
            if generator.random() < empty_share:
                text += EMPTY
                continue
            index = int(generator.integers(len(digits)))
            piece = write_digit(generator, digits[index], int(labels[index]), hand)
            room = (top + thickness, top + size[0], left + thickness, left + size[1])
            boxes.append(_put_into_cell(ink, piece.ink, room, generator.random() < touching_share, generator))
            chosen.append(int(labels[index]))
            text += piece.text
        lines.append(text)
    shown = np.maximum(ink, rulings * generator.uniform(0.25, 1.0)).astype(np.float32)
    paper = Paper.CLEAN if generator.random() < 0.3 else Paper.SCAN
    pixels = draw_on(paper, shown, generator, light_ink=generator.random() < 0.2)
    return Number(pixels, tuple(lines), tuple(boxes), tuple(chosen))


def _draw_rulings(
    tops: Sequence[int], lefts: Sequence[int], size: tuple[int, int], thickness: int, margin: int
) -> FloatImage:
    """Draw the rulings of all cells: float32[H,W]."""
    height, width = size
    shape = (tops[-1] + height + thickness + margin, lefts[-1] + width + thickness + margin)
    image = Image.new("L", (shape[1], shape[0]))
    pen = ImageDraw.Draw(image)
    for top in tops:
        for left in lefts:
            pen.rectangle(
                (left, top, left + width + thickness - 1, top + height + thickness - 1), outline=255, width=thickness
            )
    return np.asarray(image, np.float32) / WHITE


def _put_into_cell(
    page_ink: FloatImage,
    ink: FloatImage,
    room: tuple[int, int, int, int],
    touches: bool,  # noqa: FBT001 - a random choice of the caller
    generator: np.random.Generator,
) -> Box:
    """Draw a digit into the room between the rulings (top, bottom, left, right), or over the edge of one of them."""
    top, bottom, left, right = room
    ink = _fit(ink, bottom - top - 4, right - left - 4)
    height, width = ink.shape
    row = int(generator.integers(top + 2, bottom - 2 - height, endpoint=True))
    column = int(generator.integers(left + 2, right - 2 - width, endpoint=True))
    if touches:
        over = round(generator.uniform(0, MAX_ON_RULING_PX))
        match int(generator.integers(4)):
            case 0:
                row = top - over
            case 1:
                row = bottom - height + over
            case 2:
                column = left - over
            case _:
                column = right - width + over
    place = page_ink[row : row + height, column : column + width]
    np.maximum(place, ink, out=place)
    return Box(row, row + height, column, column + width)


def _fit(ink: FloatImage, height: int, width: int) -> FloatImage:
    """Reduce ink that is larger than its cell."""
    scale = min(height / ink.shape[0], width / ink.shape[1])
    if scale >= 1:
        return ink
    size = (max(1, int(ink.shape[1] * scale)), max(1, int(ink.shape[0] * scale)))
    return np.asarray(Image.fromarray(ink).resize(size, Image.Resampling.BICUBIC), np.float32).clip(0, 1)

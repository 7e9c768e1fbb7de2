"""Synthetic images of numbers with known text, from images of single digits: fields of one number.

    digit images ──digit_lines──▶ ink of a line ──rulings──▶ ink ──paper──▶ Number

``evaluate.numbers`` measures the reader with them; ``number_pages`` draws pages and cells. The caller chooses the digits, so
the same code serves training and test images. Does not import TensorFlow.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field as attribute

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from digitserve.types import Box, FloatImage, Gray
from digitserve_training.synth.digit_lines import (
    DIGIT_SIDE_PX,
    MAX_OVERLAP,
    MIN_GAP_PX,
    SEPARATORS,
    InkLine,
    Piece,
    compose,
    draw_digit,
    draw_separator,
)
from digitserve_training.synth.paper import Paper, draw_on
from digitserve_training.synth.scans import WHITE

HEIGHTS_PX = (20, 60)
"""Smallest and largest height of the digits of a field."""

CHARACTERS = "0123456789?"
"""What stands in the text for each label; the last one is of images that show no digit."""

MAX_GAP = 0.5
"""Largest gap between neighbours, in heights of a digit."""

MAX_SLANT = 0.25
"""Largest slant of a whole field, in columns per row."""

PEN = 0.1
"""Width of the pen that draws separators, in heights of a digit: about that of MNIST's strokes."""


@dataclass(frozen=True)
class Number:
    """An image of digits and what it shows.

    Attributes:
        pixels: uint8[H,W].
        lines: text of each line, without spaces.
        boxes: of the ink of each digit, in reading order.
        labels: of each digit.
    """

    pixels: Gray = attribute(repr=False)
    lines: tuple[str, ...]
    boxes: tuple[Box, ...]
    labels: tuple[int, ...]

    @property
    def text(self) -> str:
        """The lines, separated by line breaks."""
        return "\n".join(self.lines)


@dataclass(frozen=True)
class FieldStyle:
    """What the fields of a set look like; each field draws its own values.

    Attributes:
        separator_share: probability of a separator between neighbouring digits.
        light_ink_share: probability of light ink on a dark background.
        clean_share: probability of a background without noise and shading.
        underline_share: probability of a line under the number.
        frame_share: probability of a box around the number.
    """

    separator_share: float = 0.0
    light_ink_share: float = 0.5
    clean_share: float = 0.5
    underline_share: float = 0.0
    frame_share: float = 0.0


@dataclass(frozen=True)
class Hand:
    """How one writer writes one number.

    Attributes:
        height_px: of the digits on average.
        slant: of the digits on average.
        size_jitter: standard deviation of the height, as a share.
        slant_jitter: standard deviation of the slant.
        baseline_jitter: standard deviation of the lowest row of a digit, in heights.
        min_gap: smallest gap between neighbours, in heights; at least ``MIN_GAP_PX``.
        max_gap: largest gap between neighbours, in heights.
        wide_gap_share: probability of a gap of 1 to 2 heights, as between numbers.
    """

    height_px: float
    slant: float
    size_jitter: float = 0.07
    slant_jitter: float = 0.04
    baseline_jitter: float = 0.04
    min_gap: float = 0.0
    max_gap: float = MAX_GAP
    wide_gap_share: float = 0.0


def field(
    generator: np.random.Generator,
    digits: Sequence[Gray] | Gray,
    labels: NDArray[np.integer],
    *,
    num_digits: int = 5,
    touching_share: float = 0.0,
    style: FieldStyle = FieldStyle(),
) -> Number:
    """Draw one number on one line.

    Args:
        generator: source of all random values.
        digits: images of single digits, light ink on dark: uint8[N,28,28] or uint8[N,28,28,1], or a sequence of uint8[H,W].
        labels: integer[N], indices of ``CHARACTERS``.
        num_digits: of the number.
        touching_share: probability that neighbouring digits touch: their ink overlaps by 0 to 3 pixels at MNIST's scale.
            Others have a gap of at least 2 pixels.
        style: everything else.
    """
    hand = draw_hand(generator, HEIGHTS_PX)
    line, chosen = write_line(generator, digits, labels, num_digits, hand, touching_share, style.separator_share)
    margin_px = hand.height_px * generator.uniform(0.2, 0.8, 4)
    ink, boxes = _with_margin(line, margin_px)
    ink = _with_rulings(ink, boxes, margin_px, hand, style, generator)
    paper = Paper.CLEAN if generator.random() < style.clean_share else Paper.SCAN
    pixels = draw_on(paper, ink, generator, light_ink=generator.random() < style.light_ink_share)
    of_digits = tuple(box for box, character in zip(boxes, line.text, strict=True) if character not in SEPARATORS)
    return Number(pixels, (line.text,), of_digits, chosen)


def draw_hand(generator: np.random.Generator, heights_px: tuple[float, float], min_gap: float = 0.1) -> Hand:
    """Draw the size and slant of one writer's digits; heights are uniformly distributed."""
    slant = float(np.clip(generator.normal(0, MAX_SLANT / 2), -MAX_SLANT, MAX_SLANT))
    return Hand(generator.uniform(*heights_px), slant, max_gap=generator.uniform(min_gap, MAX_GAP))


def write_line(
    generator: np.random.Generator,
    digits: Sequence[Gray] | Gray,
    labels: NDArray[np.integer],
    num_digits: int,
    hand: Hand,
    touching_share: float = 0.0,
    separator_share: float = 0.0,
) -> tuple[InkLine, tuple[int, ...]]:
    """Write random digits on one line.

    Returns:
        The line and the labels of its digits.
    """
    chosen = generator.integers(len(digits), size=num_digits)
    pieces: list[Piece] = []
    for index in chosen:
        if pieces and generator.random() < separator_share:
            separator = SEPARATORS[int(generator.integers(len(SEPARATORS)))]
            pen_px = PEN * hand.height_px * generator.uniform(0.8, 1.4)
            pieces.append(draw_separator(separator, hand.height_px, pen_px, hand.slant, generator))
        pieces.append(write_digit(generator, digits[index], int(labels[index]), hand))
    touching = [
        left.text not in SEPARATORS and right.text not in SEPARATORS and bool(generator.random() < touching_share)
        for left, right in itertools.pairwise(pieces)
    ]
    overlap_px = MAX_OVERLAP * hand.height_px / DIGIT_SIDE_PX
    gaps_px = [generator.uniform(0, overlap_px) if touches else _gap_px(hand, generator) for touches in touching]
    return compose(pieces, gaps_px, touching), tuple(int(labels[index]) for index in chosen)


def _gap_px(hand: Hand, generator: np.random.Generator) -> float:
    if hand.wide_gap_share and generator.random() < hand.wide_gap_share:
        return generator.uniform(1, 2) * hand.height_px
    return generator.uniform(max(MIN_GAP_PX, hand.min_gap * hand.height_px), hand.max_gap * hand.height_px)


def write_digit(generator: np.random.Generator, image: Gray, label: int, hand: Hand) -> Piece:
    """Write one digit with the jitter of a hand."""
    height_px = hand.height_px * float(np.clip(generator.normal(1, hand.size_jitter), 0.8, 1.2))
    slant = hand.slant + generator.normal(0, hand.slant_jitter)
    lowest = round(generator.normal(0, hand.baseline_jitter) * hand.height_px)
    return draw_digit(CHARACTERS[label], image, height_px, slant, lowest)


def _with_margin(line: InkLine, margin_px: NDArray[np.float64]) -> tuple[FloatImage, tuple[Box, ...]]:
    """Add rows above and below and columns left and right."""
    top, bottom, left, right = (int(margin) for margin in margin_px)
    return np.pad(line.ink, ((top, bottom), (left, right))), tuple(shift_box(box, top, left) for box in line.boxes)


def shift_box(box: Box, rows: int, columns: int) -> Box:
    """Move a box."""
    return Box(box.top + rows, box.bottom + rows, box.left + columns, box.right + columns)


def _with_rulings(
    ink: FloatImage,
    boxes: Sequence[Box],
    margin_px: NDArray[np.float64],
    hand: Hand,
    style: FieldStyle,
    generator: np.random.Generator,
) -> FloatImage:
    """Draw a line under the number, or a box around it, between the ink and the border of the image."""
    underlined, framed = (generator.random() < share for share in (style.underline_share, style.frame_share))
    if not (underlined or framed):
        return ink
    top, bottom, left, right = margin_px * generator.uniform(0.3, 0.7, 4)
    low, right = max(box.bottom for box in boxes) + bottom, ink.shape[1] - right
    high = margin_px[0] - top
    thickness = max(1, round(hand.height_px * generator.uniform(0.03, 0.08)))
    drawn = Image.new("L", (ink.shape[1], ink.shape[0]))
    pen, level = ImageDraw.Draw(drawn), int(generator.uniform(100, 255))
    if framed:
        pen.rectangle((left, high, right, low), outline=level, width=thickness)
    else:
        pen.line((left, low, right, low), level, thickness)
    ruled: FloatImage = np.maximum(ink, np.asarray(drawn, np.float32) / WHITE)
    return ruled

"""Digits and separators side by side on a baseline, as ink without a background.

    digit images ──draw_digit──▶ Piece ┐
                  draw_separator ─▶ Piece ┴─compose──▶ InkLine ──numbers, number_pages──▶ image

Does not import TensorFlow.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image, ImageDraw

from digitserve.types import Box, FloatImage, Gray
from digitserve_training.synth.scans import WHITE, crop, sharpen
from digitserve_training.synth.touching import free_columns

DIGIT_SIDE_PX = 20
"""Longest side of a digit in an MNIST image of 28x28 pixels: lengths "at MNIST's scale" are in its pixels."""

MAX_OVERLAP = 3.0
"""Largest overlap of touching digits, at MNIST's scale."""

MIN_GAP_PX = 2
"""Smallest distance between the ink of digits that do not touch, in pixels of the drawing."""

MAX_NESTING = 0.4
"""Largest share of the narrower digit's width that may be under or over its neighbour, as a 4 beside a 7."""

MAX_SHIFT = 0.25
"""Largest shift up or down of a digit that would have to go further under its neighbour to touch it, in heights."""

TOUCH_LEVEL = 0.4
"""Ink strength from which pixels touch: the edge of a stroke."""

GAP_LEVEL = 0.1
"""Ink strength from which a pixel keeps its distance: also the faint side of an edge."""

FAINT = 0.05
"""Ink strength below which a pixel is empty."""

SEPARATORS = ".,/-"

_OVERSAMPLING = 4


@dataclass(frozen=True)
class Piece:
    """One character as ink.

    Attributes:
        text: a digit or a separator.
        ink: float32[H,W], 0 to 1, cropped.
        lowest: rows from the baseline down to its lowest row; negative above the baseline.
    """

    text: str
    ink: FloatImage = field(repr=False)
    lowest: int = 0


@dataclass(frozen=True)
class InkLine:
    """A line of characters.

    Attributes:
        text: its characters from left to right.
        ink: float32[H,W], 0 to 1, cropped.
        boxes: of the ink of each character.
        baseline: row below which descends only what hangs below the baseline.
    """

    text: str
    ink: FloatImage = field(repr=False)
    boxes: tuple[Box, ...] = ()
    baseline: int = 0


def draw_digit(text: str, image: Gray, longest_px: float, slant: float, lowest: int = 0) -> Piece:
    """Scale and slant the image of a digit.

    Args:
        text: the digit.
        image: uint8[H,W] or uint8[H,W,1], light ink on dark, any size.
        longest_px: longest side of the digit before it is slanted.
        slant: columns to the right per row upwards.
        lowest: rows from the baseline down to its lowest row.
    """
    digit = crop(image[..., 0] if image.ndim == 3 else image)
    scale = longest_px / max(digit.shape)
    height, width = (max(2, round(length * scale)) for length in digit.shape)
    room = int(np.ceil(abs(slant) * height)) + 1
    source = Image.fromarray(np.pad(digit, 1))
    # Maps pixels of the slanted image to those of the digit, which has a margin of 1 pixel.
    shift = slant * height / 2
    matrix = (1 / scale, slant / scale, 1 - (room + shift) / scale, 0.0, 1 / scale, 1.0)
    size = (width + 2 * room, height)
    slanted = np.asarray(source.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC), np.float32)
    ink = sharpen(slanted / WHITE, scale)
    # Interpolation leaves traces beside strokes.
    ink[ink < FAINT] = 0
    return Piece(text, crop(ink), lowest)


def draw_separator(text: str, height_px: float, pen_px: float, slant: float, generator: np.random.Generator) -> Piece:
    """Draw a point, comma, slash or hyphen with a pen.

    Args:
        text: one of ``SEPARATORS``.
        height_px: of the digits beside it.
        pen_px: stroke width.
        slant: of the digits beside it.
        generator: source of all random values.
    """
    # Coordinates in heights of a digit, y upwards from the baseline.
    match text:
        case ".":
            strokes, radius = [(0.0, 0.0), (generator.uniform(0, 0.02), 0.0)], generator.uniform(0.6, 0.9)
        case ",":
            strokes, radius = (
                [(0.0, 0.03), (0.0, 0.0), (-generator.uniform(0.05, 0.12), -generator.uniform(0.12, 0.22))],
                0.6,
            )
        case "/":
            lean = slant + generator.uniform(0.3, 0.5)
            strokes, radius = [(0.0, -0.1), (lean * 1.2, generator.uniform(1.0, 1.15))], 0.5
        case "-":
            rise, level = generator.uniform(-0.04, 0.04), generator.uniform(0.4, 0.55)
            strokes, radius = [(0.0, level), (generator.uniform(0.3, 0.45), level + rise)], 0.5
        case _:
            raise ValueError(f"got {text!r} as a separator; expected one of {SEPARATORS}")
    points = np.array(strokes) * height_px
    radius_px = max(0.6, radius * pen_px)
    low = points.min(axis=0) - radius_px - 1
    width, height = (int(length) for length in np.ceil(np.ptp(points, axis=0) + 2 * radius_px + 2))
    canvas = Image.new("L", (width * _OVERSAMPLING, height * _OVERSAMPLING))
    pen, reach = ImageDraw.Draw(canvas), radius_px * _OVERSAMPLING
    dots = [((x - low[0]) * _OVERSAMPLING, (height - (y - low[1])) * _OVERSAMPLING) for x, y in points]
    pen.line(dots, 255, max(1, round(2 * reach)), joint="curve")
    for x, y in dots:
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), 255)
    drawn = np.asarray(canvas.reduce(_OVERSAMPLING), np.float32) / WHITE
    ink = crop(drawn)
    return Piece(text, ink, round(-low[1]) - (len(drawn) - 1 - int(np.flatnonzero(drawn.any(axis=1))[-1])))


def compose(pieces: Sequence[Piece], gaps_px: Sequence[float], touching: Sequence[bool]) -> InkLine:
    """Place characters side by side.

    Args:
        pieces: from left to right, at least one.
        gaps_px: distance between the ink of each pair of neighbours that does not touch.
        touching: whether each pair of neighbours touches; then its gap is the overlap of the ink.

    Returns:
        The line. Ink that does not touch has a distance of at least ``MIN_GAP_PX`` in all directions.
    """
    pieces = [*pieces]
    reach = max(1, int(MAX_SHIFT * max(len(piece.ink) for piece in pieces)))
    above = max(len(piece.ink) - piece.lowest for piece in pieces) + reach
    height = above + max(0, *(piece.lowest for piece in pieces)) + reach
    line, lefts = _to_height(pieces[0], above, height), [0]
    for index, (gap, touches) in enumerate(zip(gaps_px, touching, strict=True), start=1):
        least = _least_start(line, pieces[index - 1], pieces[index])
        if touches:
            # Only the neighbour: an earlier character may reach over it.
            neighbour = np.zeros_like(line)
            neighbour[:, lefts[-1] :][:, : pieces[index - 1].ink.shape[1]] = _to_height(
                pieces[index - 1], above, height
            )
            pieces[index], start = _move_together(neighbour, pieces[index], above, gap, least)
            ink = _to_height(pieces[index], above, height)
        else:
            ink = _to_height(pieces[index], above, height)
            start = max(least, _separate_start(line, ink, max(MIN_GAP_PX, gap)))
        line = np.pad(line, ((0, 0), (0, max(0, start + ink.shape[1] - line.shape[1]))))
        np.maximum(line[:, start : start + ink.shape[1]], ink, out=line[:, start : start + ink.shape[1]])
        lefts.append(start)
    rows = np.flatnonzero(line.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    boxes = tuple(
        Box(above - top - len(piece.ink) + piece.lowest, above - top + piece.lowest, left, left + piece.ink.shape[1])
        for piece, left in zip(pieces, lefts, strict=True)
    )
    return InkLine("".join(piece.text for piece in pieces), line[top:bottom], boxes, above - top)


def _to_height(piece: Piece, above: int, height: int) -> FloatImage:
    top = above - len(piece.ink) + piece.lowest
    return np.pad(piece.ink, ((top, height - top - len(piece.ink)), (0, 0)))


def _least_start(line: FloatImage, left: Piece, right: Piece) -> int:
    """Return the first column of a character that is as far under or over its neighbour as allowed."""
    return max(0, int(line.shape[1] - MAX_NESTING * min(left.ink.shape[1], right.ink.shape[1])))


def _move_together(neighbour: FloatImage, piece: Piece, above: int, overlap_px: float, least: int) -> tuple[Piece, int]:
    """Move a character to the left until it touches its neighbour; if it would go too far under its neighbour, also up or down.

    Returns:
        The character at its height, and its first column.
    """
    best = piece, -1
    for shift in range(1 + 2 * int(MAX_SHIFT * len(piece.ink))):
        moved = replace(piece, lowest=piece.lowest + (-1) ** shift * ((shift + 1) // 2))
        ink = _to_height(moved, above, len(neighbour))
        start = neighbour.shape[1] - round(overlap_px) - free_columns(neighbour >= TOUCH_LEVEL, ink >= TOUCH_LEVEL)
        if start > best[1]:
            best = moved, start
        if start >= least:
            break
    return best[0], max(0, best[1])


def _separate_start(line: FloatImage, ink: FloatImage, gap_px: float) -> int:
    """Return the column from which all ink keeps a distance, in its own row and in the rows near it."""
    grown = np.pad(line >= GAP_LEVEL, ((MIN_GAP_PX, MIN_GAP_PX), (0, 0)))
    near = np.any([grown[shift : shift + len(line)] for shift in range(2 * MIN_GAP_PX + 1)], axis=0)
    return int(line.shape[1]) + round(gap_px) - free_columns(near, ink >= GAP_LEVEL)

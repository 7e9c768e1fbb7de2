"""What the modules of ``reading`` pass to each other: ink, pieces of ink, lines of pieces.

    page ──InkImage──▶ layout ──TextLine──▶ reader

Boxes are in working pixels: those of the image that ``page`` reduced or enlarged. No state is kept.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.protocol.readings import Ignored
from digitserve.types import Box, FloatImage, Ink

Mask = NDArray[np.bool_]
"""Pixels that are ink: bool[H, W]."""


class InkImage(NamedTuple):
    """An image at working resolution as ink.

    ``layout.lay_out`` removes ruled lines from both arrays in place.

    Attributes:
        strength: float32[H, W]; 0 is background, 1 is full ink.
        mask: bool[H, W]; pixels that are ink.
        ink: polarity of the image.
        scale: pixels of the request per working pixel; less than 1 for an enlarged image.
    """

    strength: FloatImage
    mask: Mask
    ink: Ink
    scale: float


@dataclass(slots=True)
class Piece:
    """Connected ink, or several strokes that were joined because they are parts of one digit.

    Attributes:
        box: of its ink, in working pixels.
        mask: bool[box height, box width]; its own pixels.
        area: number of its pixels.
    """

    box: Box
    mask: Mask
    area: int


@dataclass(slots=True)
class TextLine:
    """Pieces that stand on one line, or in one row of cells.

    Attributes:
        pieces: by the left edge of their boxes; digits, several touching digits, and separators.
        height: typical height of a digit, in working pixels.
        slope: of the baseline: rows downwards per column to the right.
        cells: with ``Layout.CELLS`` the cells from left to right, empty ones too; otherwise None.
    """

    pieces: list[Piece]
    height: float
    slope: float = 0.0
    cells: list[Box] | None = None


class Arrangement(NamedTuple):
    """What ``layout.lay_out`` returns.

    Attributes:
        lines: in reading order.
        ignored: ink that is part of no line; boxes in working pixels.
    """

    lines: list[TextLine]
    ignored: list[Ignored]

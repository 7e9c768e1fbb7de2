"""Candidates: images of pieces, and of parts of pieces between two cuts, as the network expects them.

    piece ──crop──▶ its own ink ──place──▶ candidate
                         └──cuts──▶ parts between two paths ──place──▶ candidates

``reader`` calls it on a worker's thread; no state is kept. Candidates are placed as framing places digits.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.reading.cuts import Cuts, find_cuts
from digitserve.reading.pieces import InkImage, Mask, Piece
from digitserve.types import Box, FloatImage, Gray
from digitserve.vision.placement import place

MAX_CUT_HEIGHT = 40
"""Height of digits, in pixels, above which ink is reduced before it is cut: the network sees 20."""

PAIR_WIDTH = 2.3
"""Width of a piece, against the height of digits, up to which it is cut everywhere; wider ones have too many parts."""

MAX_PAIR_CUTS, PAIR_DISTANCE = 40, 0.06
"""Cuts of a pair of digits, and their mean distance against the height of digits.

Measured on pairs of MNIST's training digits that overlap by 0 to 3 pixels: 99 % of them have a cut whose both sides the network
reads right. With 24 cuts, 95 % have one.
"""

CUTS_PER_HEIGHT, WIDE_DISTANCE = 14, 0.1
"""The same of wider pieces; cuts per height of digits of width."""

MAX_CUTS = 120
"""Cuts of the widest piece."""

MIN_PART_WIDTH, MAX_PART_WIDTH = 0.12, 1.25
"""Width of a part between two cuts against the height of digits."""

FAINTEST = np.full((), 0.02, np.float32)
"""Strength above which a pixel belongs to the box of the ink, as in ``vision.framing``."""

_INK = np.float32(0.35)


class Parts(NamedTuple):
    """Parts of a piece between two cuts, or between a cut and a side; all may be digits.

    Nodes are the left side, the cuts from left to right, and the right side.

    Attributes:
        starts: int64[S], node at the left of each part.
        ends: int64[S], node at its right.
        boxes: of the parts, in pixels of the image's ink.
        images: uint8[S, 28, 28].
        distances: float32[N, N], mean distance of the paths of two nodes, against the height of digits; infinite for a side
            and another node.
        costs: float32[N], ink on the path of each node, against the height of digits; 0 for the sides.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    boxes: list[Box]
    images: Gray
    distances: NDArray[np.float32]
    costs: NDArray[np.float32]


def crop(ink: InkImage, piece: Piece) -> FloatImage:
    """Return the piece's own ink with its soft edges: float32[box height + 2, box width + 2].

    The pixels around the mask belong to it too, unless another piece's ink is there.
    """
    box = piece.box
    height, width = ink.mask.shape
    top, left = max(box.top - 1, 0), max(box.left - 1, 0)
    window = np.s_[top : min(box.bottom + 1, height), left : min(box.right + 1, width)]
    own = np.zeros((box.height + 2, box.width + 2), np.bool_)
    own[1:-1, 1:-1] = piece.mask
    soft = grow(own)
    inside = np.s_[top - box.top + 1 :, left - box.left + 1 :]
    rows, columns = ink.mask[window].shape
    cropped = np.zeros(own.shape, np.float32)
    allowed = soft[inside][:rows, :columns] & (own[inside][:rows, :columns] | ~ink.mask[window])
    cropped[inside][:rows, :columns] = ink.strength[window] * allowed
    return cropped


def grow(mask: Mask) -> Mask:
    """Return the mask with the pixels around it, in all eight directions."""
    rows = mask.copy()
    rows[1:] |= mask[:-1]
    rows[:-1] |= mask[1:]
    grown = rows.copy()
    grown[:, 1:] |= rows[:, :-1]
    grown[:, :-1] |= rows[:, 1:]
    return grown


def place_whole(strength: FloatImage) -> Gray:
    """Place a piece as a candidate: uint8[28, 28]; all zero without ink."""
    if not strength.max() > FAINTEST:
        return np.zeros((28, 28), np.uint8)
    height, width = strength.shape
    return place(strength, Box(0, height, 0, width), FAINTEST)


def cut(strength: FloatImage, box: Box, height: float) -> Parts | None:
    """Cut a piece into parts that may be digits.

    Args:
        strength: of ``crop``.
        box: of the piece.
        height: of the digits of the line, in pixels.

    Returns:
        None if no path leaves digits on both sides.
    """
    factor = max(1, -(-int(height) // MAX_CUT_HEIGHT))
    if factor > 1:
        strength = _reduce(strength, factor)
        height = height / factor
    if strength.shape[1] <= PAIR_WIDTH * height:
        cuts = find_cuts(strength, height, MAX_PAIR_CUTS, PAIR_DISTANCE)
    else:
        most = min(MAX_CUTS, round(CUTS_PER_HEIGHT * strength.shape[1] / height))
        cuts = find_cuts(strength, height, most, WIDE_DISTANCE)
    if not len(cuts.paths):
        return None
    return _parts(strength, cuts, Box(box.top - 1, box.bottom + 1, box.left - 1, box.right + 1), height, factor)


def _reduce(strength: FloatImage, factor: int) -> FloatImage:
    rows, columns = strength.shape
    padded = np.pad(strength, ((0, -rows % factor), (0, -columns % factor)))
    means: FloatImage = padded.reshape(len(padded) // factor, factor, -1, factor).mean(axis=(1, 3), dtype=np.float32)
    return means


def _parts(strength: FloatImage, cuts: Cuts, box: Box, height: float, factor: int) -> Parts:
    rows, columns = strength.shape
    paths = np.concatenate([np.full((1, rows), -1), cuts.paths, np.full((1, rows), columns)])
    num_nodes = len(paths)
    apart = (paths[None] - paths[:, None]).mean(axis=2)
    least, most = MIN_PART_WIDTH * height, MAX_PART_WIDTH * height
    # The two sides of a pair may be wider: what is not ink at the other side of a slanted cut counts too.
    starts, ends = np.nonzero((apart >= least) & (apart <= most))
    columns_of = np.arange(columns)
    kept, boxes, images = [], [], []
    for index, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        if (start, end) == (0, num_nodes - 1):
            continue
        part = strength * ((columns_of >= paths[start][:, None]) & (columns_of <= paths[end][:, None]))
        where = _ink_box(part)
        if where is None:
            continue
        kept.append(index)
        images.append(place(part, Box(0, rows, 0, columns), FAINTEST))
        boxes.append(
            Box(
                box.top + where.top * factor,
                min(box.top + where.bottom * factor, box.bottom - 1),
                box.left + where.left * factor,
                min(box.left + where.right * factor, box.right - 1),
            )
        )
    distances = np.abs(paths[None] - paths[:, None]).mean(axis=2, dtype=np.float32) / np.float32(height)
    distances[[0, -1]] = distances[:, [0, -1]] = np.inf
    np.fill_diagonal(distances, 0)
    costs = np.concatenate([[0], cuts.costs / height, [0]]).astype(np.float32)
    return Parts(
        starts[kept],
        ends[kept],
        boxes,
        np.stack(images) if images else np.zeros((0, 28, 28), np.uint8),
        distances,
        costs,
    )


def _ink_box(part: FloatImage) -> Box | None:
    """Return the box of the pixels that are surely ink; None without any."""
    ink = part > _INK
    rows: Mask = np.logical_or.reduce(ink, axis=1)
    columns: Mask = np.logical_or.reduce(ink, axis=0)
    if not rows.any():
        return None
    return Box(
        int(rows.argmax()),
        len(rows) - int(rows[::-1].argmax()),
        int(columns.argmax()),
        len(columns) - int(columns[::-1].argmax()),
    )

"""Candidates: images of pieces, and of parts of pieces between two cuts, as the network expects them.

    piece ──crop──▶ its own ink ──place──▶ candidate
                         └──cuts──▶ parts between two paths ──place──▶ candidates

``reader`` calls it on a worker's thread; no state is kept. Candidates are placed as framing places digits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.reading.cuts import Cuts, find_cuts
from digitserve.reading.pieces import InkImage, Mask, Piece
from digitserve.types import Box, FloatImage, Gray
from digitserve.vision.placement import place_many

MAX_CUT_HEIGHT = 40
"""Height of digits, in pixels, above which ink is reduced before it is cut: the network sees 20."""

PAIR_WIDTH = 2.3
"""Width of a piece, against the height of digits, up to which it is cut everywhere; wider ones have too many parts."""

MAX_PAIR_CUTS, PAIR_DISTANCE = 40, 0.06
"""Cuts of a pair of digits, and their mean distance against the height of digits.

Measured on 300 pairs of digits held out from MNIST's training set that overlap by 0 to 3 pixels, with the network digits/4: 99 %
have a cut whose both sides the network reads right. With 24 cuts, 97 % have one.
"""

CUTS_PER_HEIGHT, WIDE_DISTANCE = 14, 0.1
"""The same of wider pieces; cuts per height of digits of width."""

MAX_CUTS = 120
"""Cuts of the widest piece."""

INNER_CUTS_PER_HEIGHT = 8
"""Cuts, the cheapest, between which digits in the middle of a piece may be; per height of digits of width."""

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


def place_pieces(strengths: Sequence[FloatImage]) -> Gray:
    """Place pieces as candidates: uint8[N, 28, 28, 1].

    Args:
        strengths: of ``crop`` each; all have ink.
    """
    return place_many([_trim(strength) for strength in strengths])[..., np.newaxis]


def _trim(strength: FloatImage) -> FloatImage:
    """Return the part of a piece that is above ``FAINTEST``."""
    visible = strength > FAINTEST
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    return strength[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


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
    starts, ends = _choose_parts(paths, cuts.ranks, height)
    columns_of = np.arange(columns)
    inside = (columns_of >= paths[starts][..., None]) & (columns_of <= paths[ends][..., None])
    parts = strength * inside
    visible, ink = parts > FAINTEST, parts > _INK
    kept = np.flatnonzero(ink.any(axis=(1, 2)))
    spans, boxes = _spans(visible[kept]), _spans(ink[kept])
    images = place_many(
        [
            parts[part, top:bottom, left:right]
            for part, (top, bottom, left, right) in zip(kept.tolist(), spans.tolist(), strict=True)
        ]
    )
    distances = np.abs(paths[None] - paths[:, None]).mean(axis=2, dtype=np.float32) / np.float32(height)
    distances[[0, -1]] = distances[:, [0, -1]] = np.inf
    np.fill_diagonal(distances, 0)
    costs = np.concatenate([[0], cuts.costs / height, [0]]).astype(np.float32)
    return Parts(
        starts[kept],
        ends[kept],
        [
            Box(
                box.top + top * factor,
                min(box.top + bottom * factor, box.bottom - 1),
                box.left + left * factor,
                min(box.left + right * factor, box.right - 1),
            )
            for top, bottom, left, right in boxes.tolist()
        ],
        images,
        distances,
        costs,
    )


def _choose_parts(
    paths: NDArray[np.integer], ranks: NDArray[np.int64], height: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the first and the last node of the parts that may be digits: intp[S] each."""
    apart = (paths[None] - paths[:, None]).mean(axis=2)
    fits = (apart >= MIN_PART_WIDTH * height) & (apart <= MAX_PART_WIDTH * height)
    width = int(paths[-1, 0])
    fits[0, -1] = False
    # Digits in the middle are rarer than those at the sides, and their parts are many.
    late = np.flatnonzero(ranks >= round(INNER_CUTS_PER_HEIGHT * width / height)) + 1
    fits[late, 1:-1] = fits[1:-1, late] = False
    starts, ends = np.nonzero(fits)
    return starts, ends


def _spans(inside: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the box of the pixels of each mask, none empty: top, bottom, left, right as int64[S, 4].

    Args:
        inside: bool[S, H, W].
    """
    rows: NDArray[np.bool_] = np.logical_or.reduce(inside, axis=2)
    columns: NDArray[np.bool_] = np.logical_or.reduce(inside, axis=1)
    return np.stack(
        [
            rows.argmax(axis=1),
            rows.shape[1] - rows[:, ::-1].argmax(axis=1),
            columns.argmax(axis=1),
            columns.shape[1] - columns[:, ::-1].argmax(axis=1),
        ],
        axis=1,
    )

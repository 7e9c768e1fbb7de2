"""Connected components of a foreground mask, and whether they are several shapes or one.

``framing`` calls it on the worker's thread; no state is kept. A mask whose projections along rows, columns and both
diagonals have no gap is taken as one component. This test needs one integer per row and settles most images. For the
others the mask is packed into one Python integer, one bit per pixel, so that a dilation by one pixel in all eight directions
is a dozen operations on the whole image.

    mask ──▶ projections without gap? ──yes──▶ one component
                    └ no ──▶ texture? ──yes──▶ several, bounding box of all
                                └ no ──▶ flood fill ──▶ components, largest first ──▶ bounding box of all but specks, several

The time of flood fills grows with the number of components and with the bends of each: dots and combs would take 200 times as
long as a digit. So a mask with more components or bends than any image of handwriting is a texture. Most textures are detected
without flood fills, by counting bits.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.types import Box
from digitserve.vision.packed_masks import (
    dilate,
    erode,
    flood_fill,
    min_components,
    neighbours,
    num_runs,
    project_columns,
)

MIN_AREA_RATIO = 0.12
"""Smallest area of a second shape against the largest component's, in pixels: a thin 1 beside a thick 0 has 0.13."""

MIN_HEIGHT_RATIO = 0.55
"""Smallest ratio of the heights of two shapes, lower to higher: the detached bar of a 5 is much lower."""

MIN_LENGTH_RATIO = 0.5
"""Smallest longest side of a second shape against the largest component's."""

MIN_GAP_RATIO = 0.11
"""Smallest gap between two shapes against the longest side of either: components closer than that are strokes of one digit.

These four were chosen on 40 000 MNIST digits, of which 0.05 % are then called several, and on pairs of digits with 3
pixels between them, of which 97 to 98 % are when squeezed into 28x28 together, and 99 % when framed.
"""

MIN_KEPT_RATIO = 0.04
"""Components with a smaller area than this share of the largest are specks: the bounding box of the ink ignores them."""

MAX_COMPONENTS = 60
"""Components above which a mask is a texture; those of a single pixel are left out if there are too many. 1 260 files
of handwritten digits have at most 18. MNIST digits in noise (the corruption suite) give the same results as without a limit.
"""

MAX_RUNS = 320
"""Runs of pixels, along rows or along columns, above which a mask is a texture; those files have at most 305."""

MAX_FILL_STEPS = 256
"""Steps of flood fills, over all components, above which a mask is a texture; those files need at most 104, pages 172."""

MIN_SHARE_IN_TEXTURE = 0.125
"""Smallest share of the pixels of a texture that its thickest component needs to count as a digit in noise."""

MAX_SIDE = 64
"""Largest mask, in pixels a side: a row is one unsigned integer of 64 bits."""


class Segmentation(NamedTuple):
    """The components of a mask in summary.

    Attributes:
        box: bounding box of all components but specks.
        several: some component is a separate shape beside the largest, neither a stroke of the same digit nor a speck; or the
            mask is a texture.
        edge_width: number of columns that are occupied in the first two rows of the box, or in the last two if less are.
        num_components: 1 for a mask whose projections have no gap, which is taken as one component; 0 for a texture.
        components: all of them, largest area first, if they were searched for; otherwise empty.
    """

    box: Box
    several: bool
    edge_width: int
    num_components: int
    components: "Sequence[Component]" = ()


class Component(NamedTuple):
    """One 8-connected set of pixels of a mask.

    Attributes:
        bits: the pixel (y, x) is the bit y * stride + x.
        stride: bits per row.
        area: in pixels.
        box: bounding box.
    """

    bits: int
    stride: int
    area: int
    box: Box

    def pixels(self) -> NDArray[np.bool_]:
        """Return the component cropped to its box: bool[box height, box width]."""
        top, bottom, left, right = self.box
        num_bytes = -(-(bottom - top) * self.stride // 8)
        rows = (self.bits >> top * self.stride).to_bytes(num_bytes + 1, "little")
        flags = np.unpackbits(np.frombuffer(rows, np.uint8), count=(bottom - top) * self.stride, bitorder="little")
        return flags.reshape(bottom - top, self.stride)[:, left:right].view(np.bool_)


def segment(mask: NDArray[np.bool_]) -> Segmentation | None:
    """Find the components of a mask.

    Components that interlock, so that no line along a row, a column or a diagonal separates them, may count as one.

    Args:
        mask: bool[H, W], at most 64 a side.

    Returns:
        None for an empty mask.
    """
    return segment_all(mask[None])[0]


def segment_all(masks: NDArray[np.bool_]) -> list[Segmentation | None]:
    """Find the components of masks of one size, as ``segment`` does: bool[N, H, W]."""
    num_masks, height, width = masks.shape
    rows = _row_bits(masks)
    near, far = _shears(height)
    sheared = np.zeros((num_masks, 5, height), np.uint64)
    each = rows[:, None]
    np.left_shift(each, near, sheared[:, :3])
    if height + width > MAX_SIDE:
        np.right_shift(each, far, sheared[:, 3:])
    projections = np.bitwise_or.reduce(sheared, axis=2).tolist()
    occupied = (rows != 0).tobytes()
    found: list[Segmentation | None] = []
    for index, (down, near_right, near_left, far_right, far_left) in enumerate(projections):
        if not down:
            found.append(None)
            continue
        right, left = near_right | far_right << MAX_SIDE, near_left | far_left << MAX_SIDE
        # Pixels that touch at a corner are two diagonals apart.
        right |= right << 1
        left |= left << 1
        start = index * height
        top, bottom = (
            occupied.find(1, start, start + height) - start,
            occupied.rfind(1, start, start + height) + 1 - start,
        )
        # The carry of an addition clears a projection that is a single run of ones.
        if (
            occupied.find(0, start + top, start + bottom) < 0
            and not down & (down + (down & -down))
            and not right & (right + (right & -right))
            and not left & (left + (left & -left))
        ):
            box = Box(top, bottom, (down & -down).bit_length() - 1, down.bit_length())
            found.append(Segmentation(box, False, _edge_width(rows[index], box), 1))  # noqa: FBT003 - keywords cost time
        else:
            found.append(_segment_parts(masks[index], rows[index]))
    return found


def _segment_parts(mask: NDArray[np.bool_], rows: NDArray[np.uint64]) -> Segmentation:
    """Find the components of a mask by flood fills.

    Args:
        mask: bool[H, W], not empty.
        rows: uint64[H], its rows as integers.
    """
    bits, stride = _pack(mask), _stride(mask)
    components = _search(bits, stride)
    box, several = _summarise(bits, stride, components)
    return Segmentation(box, several, _edge_width(rows, box), len(components), components)


def segment_rows(rows: NDArray[np.uint64]) -> tuple[Box, bool]:
    """Return the bounding box of all components but specks, and whether there are several shapes.

    Args:
        rows: uint64[28] of a mask that is not empty, each row as an integer of 28 bits.
    """
    # Rows of 32 bits: dilation by 4 pixels, the smallest gap between shapes of up to 28, does not reach another row.
    bits = int.from_bytes(rows.astype("<u4").tobytes(), "little")
    return _summarise(bits, 32, _search(bits, 32))


def _summarise(bits: int, stride: int, components: Sequence[Component]) -> tuple[Box, bool]:
    """Return the bounding box of all components but specks, and whether there are several shapes.

    Args:
        bits: the packed mask.
        stride: bits per row.
        components: of the mask, largest first.
    """
    if not components:
        return _summarise_texture(bits, stride)
    largest = components[0]
    kept = [component.box for component in components if component.area >= MIN_KEPT_RATIO * largest.area]
    tops, bottoms, lefts, rights = zip(*kept, strict=True)
    several = any(_is_separate_shape(other, largest) for other in components[1:])
    return Box(min(tops), max(bottoms), min(lefts), max(rights)), several


def _summarise_texture(bits: int, stride: int) -> tuple[Box, bool]:
    """Do the same for a texture: its thickest component may be a digit in noise, the others are specks."""
    rest = bits
    while thinner := erode(rest, stride):
        rest = thinner
    thickest, _ = flood_fill(rest & -rest, bits, stride, MAX_FILL_STEPS)
    several = thickest.bit_count() < MIN_SHARE_IN_TEXTURE * bits.bit_count()
    return _measure(bits if several else thickest, stride).box, several


def project(rows: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Project the masks of a batch along columns, rows and both diagonals.

    Args:
        rows: uint64[H, N], each row of each mask as an integer of W bits; H + W is at most 64.

    Returns:
        uint64[4, N]: bits that are set where a line holds any pixel: columns, rows, diagonals, other diagonals. Gaps of
        one diagonal are closed.
    """
    near, _ = _shears(len(rows))
    projections = np.empty((4, rows.shape[1]), np.uint64)
    np.bitwise_or.reduce(rows, axis=0, out=projections[0])
    np.bitwise_or.reduce((rows != 0) << near[1][:, None], axis=0, out=projections[1])
    diagonals = projections[2:]
    np.bitwise_or.reduce(rows[:, None] << near[1:].T[..., None], axis=0, out=diagonals)
    diagonals |= diagonals << np.uint64(1)  # pixels that touch at a corner are two diagonals apart
    return projections


def find_gaps(projections: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Find the masks that have a gap in some projection. Each of the others is one component.

    Args:
        projections: uint64[4, N] of ``project``.

    Returns:
        bool[N].
    """
    lowest = projections & np.negative(projections)
    # The carry of the addition clears a projection that is a single run of ones.
    gap: NDArray[np.bool_] = np.logical_or.reduce(projections & (projections + lowest), axis=0)
    return gap


def _edge_width(rows: NDArray[np.uint64], box: Box) -> int:
    """Return the number of columns that are occupied in the two outermost rows of a box, at the side where less are."""
    top, bottom, _, _ = box
    if bottom - top == 1:
        return 0
    first: int = rows.item(top) | rows.item(top + 1)
    last: int = rows.item(bottom - 2) | rows.item(bottom - 1)
    return min(first.bit_count(), last.bit_count())


def _row_bits(masks: NDArray[np.bool_]) -> NDArray[np.uint64]:
    """Turn each row of masks bool[..., W] into an integer whose lowest bit is the first pixel: uint64[...]."""
    *outer, width = masks.shape
    if width < MAX_SIDE:
        padded = np.zeros((*outer, MAX_SIDE), np.bool_)
        padded[..., :width] = masks
        masks = padded
    # All rows in one call: packing row by row takes 20 times as long.
    return np.packbits(masks, bitorder="little").view(np.uint64).reshape(outer)


@lru_cache(maxsize=MAX_SIDE)
def _shears(height: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return how far to shift each row so that the OR of all rows is a projection along columns or a diagonal.

    Returns:
        Bits to shift left, uint64[3, H], for columns and both diagonals; and bits to shift right, uint64[2, H], for the
        pixels that the diagonals shift beyond 64 bits.
    """
    down = np.arange(height, dtype=np.uint64)
    near = np.stack([0 * down, down, down[::-1]])
    return near, MAX_SIDE - near[1:]


def find_components(mask: NDArray[np.bool_]) -> list[Component]:
    """Split a mask into its 8-connected components, largest area first; none for an empty mask and for a texture.

    Components of a single pixel are left out if there would be too many components otherwise.
    """
    return _search(_pack(mask), _stride(mask))


def _search(bits: int, stride: int) -> list[Component]:
    """Do the same for a packed mask."""
    if min_components(bits, stride) > MAX_COMPONENTS:
        bits &= neighbours(bits, stride)
        if min_components(bits, stride) > MAX_COMPONENTS:
            return []
    if num_runs(bits, 1) > MAX_RUNS or num_runs(bits, stride) > MAX_RUNS:
        return []
    found: list[Component] = []
    steps = MAX_FILL_STEPS
    while bits:
        one, steps = flood_fill(bits & -bits, bits, stride, steps)
        if steps < 0 or len(found) == MAX_COMPONENTS:
            return []
        found.append(_measure(one, stride))
        bits &= ~one
    return sorted(found, key=lambda component: -component.area)


def count_components(mask: NDArray[np.bool_], at_most: int) -> int:
    """Count the 8-connected components of a mask, but no further than to ``at_most``, which is returned for a texture too."""
    stride = _stride(mask)
    bits = _pack(mask)
    if min_components(bits, stride) >= at_most:
        return at_most
    count, steps = 0, MAX_FILL_STEPS
    while bits and count < at_most:
        one, steps = flood_fill(bits & -bits, bits, stride, steps)
        if steps < 0:
            return at_most
        count += 1
        bits &= ~one
    return count


def _is_separate_shape(other: Component, largest: Component) -> bool:
    lower, higher = sorted((largest.box.bottom - largest.box.top, other.box.bottom - other.box.top))
    if other.area < MIN_AREA_RATIO * largest.area or lower < MIN_HEIGHT_RATIO * higher:
        return False
    if other.box.longest < MIN_LENGTH_RATIO * largest.box.longest:
        return False
    dilated = largest.bits
    for _ in range(_min_gap(max(largest.box.longest, other.box.longest))):
        dilated = dilate(dilated, largest.stride)
    return not dilated & other.bits


def _min_gap(longest: int) -> int:
    """Return the smallest gap between two shapes, in pixels, from the longest side of either."""
    return math.ceil(MIN_GAP_RATIO * longest)


def _stride(mask: NDArray[np.bool_]) -> int:
    """Return the bits from one row to the next, with enough padding that a dilated component does not reach another row."""
    height, width = mask.shape
    return int(width + 1 + _min_gap(max(height, width)))


def _pack(mask: NDArray[np.bool_]) -> int:
    """Turn a mask into an integer: the pixel (y, x) is the bit y * stride + x."""
    padded = np.zeros((mask.shape[0], _stride(mask)), np.bool_)
    padded[:, : mask.shape[1]] = mask
    return int.from_bytes(np.packbits(padded, bitorder="little").tobytes(), "little")


def _measure(bits: int, stride: int) -> Component:
    """Return a packed component with its area and bounding box."""
    top = ((bits & -bits).bit_length() - 1) // stride
    bottom = (bits.bit_length() - 1) // stride + 1
    columns = project_columns(bits >> top * stride, bottom - top, stride)
    box = Box(top, bottom, (columns & -columns).bit_length() - 1, columns.bit_length())
    return Component(bits, stride, bits.bit_count(), box)

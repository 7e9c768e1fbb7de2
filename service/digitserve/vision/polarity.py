"""Polarity of an image: whether its strokes are lighter or darker than their background.

``framing`` calls it for requests with ``Ink.AUTO``, on the worker's thread. A border that is clearly light or dark decides
alone. Otherwise a background is fitted for either polarity, and the residuals are weighed together with the border. Where
the background is flat, in a tight crop or a small bitmap, the number of separate parts is weighed instead: ink is mostly in
one piece, and cuts the background into several.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.types import FloatImage, Gray, Ink
from digitserve.vision.background import Residuals, residuals
from digitserve.vision.components import count_components
from digitserve.vision.gray import gray_range
from digitserve.vision.resample import reduce_by_block_means, sum_weights

CLEAR_BORDER_LIGHTNESS = 0.65
"""Absolute lightness of the border, from 0 to 1, above which the border alone decides the polarity."""

MIN_MEAN_AGAINST_BORDER = -0.3
"""Mean lightness of an image, seen from its border, from which the border may be a frame: cheap to know beforehand."""

MAX_SIDE_DEVIATION = 0.1
"""Largest standard deviation of a side of one colour, as a share of the image's range of grey levels."""

CLEAR_SHARE = 0.75
"""Share of pixels that are the background, whatever the border is, where two sides of the image are of one colour each."""

MAJORITY = 0.5
"""The same where all four sides are: a frame. A digit that leaves all sides free covers less than that."""

MEAN_WEIGHT, PARTS_WEIGHT = 0.47, 0.30
"""Weights of the mean lightness and of the logarithm of the ratio of dark to light parts, against the border's lightness.

Those of a logistic regression without a constant on MNIST's digits and pen strokes: cropped to the ink, with thin and thick
pens, as grey levels and as bitmaps, also stretched to a square (docs/decisions.md has the figures).
"""

MAX_PARTS = 16
"""Most parts that are counted; so many are noise or texture."""

MAX_COUNTED_SIDE = 32
"""Side to which an image is subsampled before its parts are counted, because winding parts cost time."""

MIN_SIDE_WITH_INTERIOR = 3
"""Shortest side, in pixels, of an image that has pixels inside its outermost ring."""


_LIGHT, _DARK = (Ink.LIGHT_ON_DARK, None), (Ink.DARK_ON_LIGHT, None)
"""Polarities without a residual."""


class Border(NamedTuple):
    """Lightness at the border of an image, from -1 (the image's lowest grey level) to 1 (its highest).

    Attributes:
        lightness: of the whole border, compared with the interior.
        lightest: mean of the lightest of the four sides.
        darkest: mean of the darkest of the four sides.
        mean: mean of the whole image.
    """

    lightness: float
    lightest: float
    darkest: float
    mean: float


def find_ink(gray: Gray) -> Ink:
    """Find the polarity of an image.

    Args:
        gray: uint8[H, W].

    Returns:
        LIGHT_ON_DARK or DARK_ON_LIGHT; LIGHT_ON_DARK for a constant image.
    """
    image = reduce_by_block_means(gray)
    low, high = gray_range(image)
    if high == low:
        return Ink.LIGHT_ON_DARK
    return find_reduced_ink(image, low, high, measure_border(image, low, high))[0]


def find_reduced_ink(image: FloatImage, low: float, high: float, border: Border) -> tuple[Ink, FloatImage | None]:
    """Find the polarity of an image that is reduced already.

    Ink covers less area than paper, so a background fitted with the right polarity leaves the smaller residual. For the
    same reason a border that contradicts a clear majority of the pixels is a frame, or the edge of something else.

    Args:
        image: float32[H, W], grey levels from 0 to 255.
        low: its lowest grey level.
        high: its highest grey level, above ``low``.
        border: of ``measure_border``.

    Returns:
        The polarity; and the residual of the background for that polarity if it had to be computed, for reuse by
        ``subtract_backgrounds``.
    """
    return find_reduced_inks(image[None], [low], [high], [border])[0]


def find_reduced_inks(
    images: FloatImage, lows: Sequence[float], highs: Sequence[float], borders: Sequence[Border]
) -> list[tuple[Ink, FloatImage | None]]:
    """Find the polarity of images of one size, as ``find_reduced_ink`` does."""
    found: list[tuple[Ink, FloatImage | None]] = []
    unclear = []
    for index, (lightness, _, _, mean) in enumerate(borders):
        # With half of the pixels light the mean is about 0; strokes on a background of their own lie well below.
        opposite = (mean if lightness < 0 else -mean) > MIN_MEAN_AGAINST_BORDER and _is_framed(
            images[index], lows[index], highs[index], lightness
        )
        found.append(_DARK if (lightness < 0 if opposite else lightness > 0) else _LIGHT)
        if not opposite and abs(lightness) < CLEAR_BORDER_LIGHTNESS:
            unclear.append(index)
    if unclear:
        chosen = images if len(unclear) == len(images) else images[unclear]
        both = residuals(chosen, [lows[index] for index in unclear], [highs[index] for index in unclear])
        for index, sides in zip(unclear, both, strict=True):
            found[index] = _weigh(images[index], lows[index], highs[index], borders[index], sides)
    return found


def _weigh(
    image: FloatImage, low: float, high: float, border: Border, sides: Residuals | None
) -> tuple[Ink, FloatImage | None]:
    lightness = border.lightness
    if sides is not None:
        excess = 2 * float(np.add.reduce(sides.light - sides.dark, axis=None)) / (image.size * (high - low))
        # Weight 2: 399 of 400 digits on vignetted paper are right; with weight 1 only 377.
        lightness += 2 * excess
        return (Ink.DARK_ON_LIGHT, sides.dark) if lightness > 0 else (Ink.LIGHT_ON_DARK, sides.light)
    lightness += MEAN_WEIGHT * border.mean - PARTS_WEIGHT * _ratio_of_parts(image > (low + high) / 2)
    return (Ink.DARK_ON_LIGHT if lightness > 0 else Ink.LIGHT_ON_DARK), None


def measure_border(image: FloatImage, low: float, high: float) -> Border:
    """Measure the lightness of an image's border, as ``measure_borders`` does."""
    return measure_borders(image[None], [low], [high])[0]


def measure_borders(images: FloatImage, lows: Sequence[float], highs: Sequence[float]) -> list[Border]:
    """Measure the lightness of the borders of images of one size.

    The outermost ring is compared with the interior, with extra weight on the corners. The weights are those of a logistic
    regression on MNIST digits cropped to their ink, the hardest case, with 2 errors in 20 000. There is no constant term,
    so that an image and its negative get opposite results.

    Args:
        images: float32[N, H, W], grey levels from 0 to 255.
        lows: lowest grey level of each.
        highs: highest grey level of each, above the lowest.
    """
    _, height, width = images.shape
    # Exact in float32 for an image that was not reduced: its grey levels are integers.
    if len(images) == 1:
        all_sums = [sum_weights(height).dot(images[0]).dot(sum_weights(width).T).tolist()]  # in half the time
    else:
        all_sums = np.matmul(np.matmul(sum_weights(height), images), sum_weights(width).T).tolist()
    num_pixels, num_outer, num_inner = height * width, 2 * (height + width), (height - 2) * (width - 2)
    has_inner = min(height, width) >= MIN_SIDE_WITH_INTERIOR
    borders = []
    for index, sums in enumerate(all_sums):
        (top_left, top_right, top), (bottom_left, bottom_right, bottom), (left, right, everything) = sums
        corners = top_left + top_right + bottom_left + bottom_right
        outer_rows, outer_columns = top + bottom, left + right
        ring = (outer_rows + outer_columns) / num_outer
        inner = (everything - outer_rows - outer_columns + corners) / num_inner if has_inner else ring
        sides = top / width, bottom / width, left / height, right / height
        low, high = lows[index], highs[index]
        middle, scale = (low + high) / 2, 2 / (high - low)
        borders.append(
            Border(
                ((2.5 * ring + 4.4 * (corners / 4) - inner) / 5.9 - middle) * scale,
                (max(sides) - middle) * scale,
                (min(sides) - middle) * scale,
                (everything / num_pixels - middle) * scale,
            )
        )
    return borders


def _ratio_of_parts(light: NDArray[np.bool_]) -> float:
    """Return the logarithm of the ratio of dark to light parts; 0 for noise and texture, of which it says nothing."""
    height, width = light.shape
    light = light[:: -(-height // MAX_COUNTED_SIDE), :: -(-width // MAX_COUNTED_SIDE)]
    num_light, num_dark = count_components(light, MAX_PARTS), count_components(~light, MAX_PARTS)
    # Subsampling may miss all light or all dark pixels.
    if not 0 < num_light < MAX_PARTS or not 0 < num_dark < MAX_PARTS:
        return 0.0
    return math.log(num_dark / num_light)


def _is_framed(image: FloatImage, low: float, high: float, lightness: float) -> bool:
    """Return whether the border contradicts the majority of the pixels because it is a frame or an edge, not background.

    In a tight crop of a thick stroke it does so too, but there the sides are not of one colour.
    """
    middle = (low + high) / 2
    share = np.count_nonzero(image > middle if lightness < 0 else image < middle) / image.size
    if share <= MAJORITY:
        return False
    sides = (image[0], image[-1], image[:, 0], image[:, -1])
    num_plain = sum(float(side.std()) < MAX_SIDE_DEVIATION * (high - low) for side in sides)
    return num_plain == len(sides) or bool(share > CLEAR_SHARE and num_plain > 1)

"""Pixels to ink: polarity, local background, strength of the ink at working resolution.

    pixels ──reduced to MAX_SIDE──▶ grey ──polarity──▶ lightness ──closing──▶ contrast ──components──▶ height of digits
           lightness ──reduced if digits are high──▶ closing ──▶ contrast ──local ink level──▶ strength
                                                                 ──enlarged if small──▶ InkImage

``reader`` calls it on a worker's thread; no state is kept. The background is a morphological closing: dark strokes narrower than
its window are filled, and the edges of larger dark areas, such as hard shadows, stay where they are. Ink is weighed against the
darkest ink nearby, so that a pencil is found beside a marker, and in a shadow. High digits are reduced, because means of pixels
have less noise: faint strokes stay whole.
"""

from collections.abc import Generator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.reading.components import find_components, run_pixels
from digitserve.reading.pieces import InkImage, Mask
from digitserve.reading.runs import find_pixels, find_runs, label_runs
from digitserve.types import FloatImage, Gray, Ink
from digitserve.vision.channel import select_channel
from digitserve.vision.polarity import find_ink
from digitserve.vision.reduction import reduce_by_block_means
from digitserve.vision.resample import resize

MAX_SIDE = 2048
"""Longest side of working resolution, in pixels: two megapixels at the usual ratio of sides."""

SMALL_SIDE = 64
"""Shortest side, in pixels, below which an image is enlarged: its digits are about 20 to 40 pixels high."""

MAX_ENLARGEMENT = 3
"""Digits of MNIST's size, 20 pixels, become 60: enough to cut between strokes."""

HALVED_SIDE = 1000
"""Longest side, in pixels, from which the background is computed at half resolution."""

INK_SHARE, REDUCED_INK_SHARE = 0.4, 0.3
"""Strength above which a pixel is ink. Near strokes stay apart; where the image was reduced, there is less noise, and faint
strokes stay whole, of the photos of pencil in real-ink.
"""

NOISE_DEVIATIONS, CERTAIN_DEVIATIONS = 3.5, 10
"""Standard deviations of the paper's noise below which nothing is ink; those that each component of ink must have somewhere."""

FAINT_SHARE, CERTAIN_SHARE = 0.06, 0.2
"""The same as shares of the contrast of the page's darkest ink: the other side of thin paper has less than the second."""

MOST_CERTAIN_SHARE = 0.6
"""Share of the contrast of the darkest ink that is enough in any noise: pale ink on noisy paper is not ten deviations strong."""

MIN_CONTRAST = 8
"""Grey levels of contrast below which nothing is ink."""

NUM_DARKEST = 30
"""The contrast of the darkest ink is that of the pixel with this rank; the darkest pixels may be dust."""

MIN_LIGHT = 0.35
"""Share of the paper's usual grey level below which a background is no paper in a shadow, but a table. Contrast of ink is in
proportion to the light that falls on the paper.
"""

TO_DEVIATION = 1.4826
"""Standard deviation of normal noise against the median of its absolute values."""

MAX_DIGIT_HEIGHT = 96
"""Height of digits, in pixels, from which the image is reduced, to half of that at least: the network sees 20 pixels."""

LEVEL_SHARE = 0.35
"""Side of the square in which ink is weighed against the darkest, as a share of the height of digits: strokes of one digit differ."""

BAND_ROWS = 256
"""Rows of which the strength is computed between two yields."""


class _Contrast(NamedTuple):
    """Contrast of dark ink to its background, in grey levels of paper in full light.

    Attributes:
        contrast: float32[h, w].
        background: uint8[h, w]; grey level of the paper.
        gain: float32[h, w]; contrast per grey level of difference.
        offset: mean contrast of the paper; subtracted already.
        faintest: contrast below which nothing is ink.
        certain: contrast that ink must have somewhere.
    """

    contrast: FloatImage
    background: Gray
    gain: FloatImage
    offset: np.float32
    faintest: np.float32
    certain: np.float32


def extract_ink(pixels: Gray, ink: Ink) -> Generator[None, None, InkImage]:
    """Find the ink of a page or a field; yield after at most about 10 ms.

    Args:
        pixels: uint8[H, W, C]; C is 1 for grey, 3 for RGB, 4 for RGBA with straight alpha.
        ink: polarity of the luma, or AUTO.

    Returns:
        The ink; all background for an image without contrast.

    Raises:
        InvalidRequest: noise or texture, see ``runs.find_runs``.
    """
    factor = -(-max(pixels.shape[:2]) // MAX_SIDE)
    if factor > 1:
        pixels = reduce_by_block_means(pixels, factor)
        yield
    gray, ink = select_channel(pixels, ink)
    yield
    if ink is Ink.AUTO:
        ink = find_ink(gray)
    of_reflection = ink is Ink.DARK_ON_LIGHT
    light = gray if of_reflection else 255 - gray
    strength, reduction = yield from _strength(light, of_reflection=of_reflection)
    height, width = strength.shape
    enlargement = min(-(-SMALL_SIDE // min(height, width)), MAX_ENLARGEMENT, max(MAX_SIDE // max(height, width), 1))
    if enlargement > 1 and reduction == 1:
        strength = resize(strength, height * enlargement, width * enlargement).clip(0, 1)
        return InkImage(strength, strength > INK_SHARE, ink, factor / enlargement)
    share = INK_SHARE if reduction == 1 else REDUCED_INK_SHARE
    return InkImage(strength, strength > share, ink, factor * reduction)


def _strength(light: Gray, *, of_reflection: bool) -> Generator[None, None, tuple[FloatImage, int]]:
    """Return the strength of dark ink, float32[h, w] from 0 to 1, and by which factor the image was reduced for it.

    Args:
        light: uint8[H, W]; the paper is lighter than the ink.
        of_reflection: whether the contrast of ink is in proportion to the light on the paper.
    """
    height, width = light.shape
    window = _window(height, width)
    factor = 2 if max(height, width) >= HALVED_SIDE else 1
    reduced = _reduce(light, factor)
    found = yield from _contrast(reduced, window // factor, of_reflection=of_reflection)
    levels = _levels(found, window // factor, INK_SHARE)
    yield
    components = find_components(found.contrast > INK_SHARE * levels)
    digits = components.digit_height(reduced.shape[0]) * factor
    yield
    reduction = max(int(2 * digits // MAX_DIGIT_HEIGHT), 1)
    if reduction > 1:
        light = _reduce(light, reduction)
        found = yield from _contrast(light, window // reduction, of_reflection=of_reflection)
        factor = 1
        height, width = light.shape
    share = INK_SHARE if reduction == 1 else REDUCED_INK_SHARE
    levels = _levels(found, round(LEVEL_SHARE * digits / (factor * reduction)), share)
    scale: FloatImage = 1 / levels
    level = (found.background * found.gain - found.offset) * scale
    scale *= found.gain
    yield
    if height % factor or width % factor:
        light = np.pad(light, ((0, height % factor), (0, width % factor)), "edge")
    strength = np.empty(light.shape, np.float32)
    for top in range(0, len(light), BAND_ROWS):
        rows, blocks = slice(top, top + BAND_ROWS), slice(top // factor, (top + BAND_ROWS) // factor)
        strength[rows] = _divide(light[rows], level[blocks], scale[blocks], factor)
        yield
    strength = strength[:height, :width]
    _clear_faint(strength, strength > share, found.contrast > found.certain, factor)
    yield
    return strength, reduction


def _clear_faint(strength: FloatImage, mask: Mask, certain: Mask, factor: int) -> None:
    """Clear ink in place that is faint everywhere: its component has no pixel that is certain.

    Args:
        strength: float32[H, W].
        mask: bool[H, W]; where it is ink.
        certain: bool[h, w]; reduced by ``factor``.
        factor: pixels of ``strength`` per pixel of ``certain``.
    """
    runs = find_runs(mask)
    labels, count = label_runs(runs)
    kept = np.zeros(count, np.bool_)
    rows, columns = np.nonzero(certain)
    for offset in range(factor):
        kept[labels[find_pixels(runs, rows * factor + offset, columns * factor + offset)]] = True
    faint = runs.select(~kept[labels])
    strength.reshape(-1)[run_pixels(faint, strength.shape[1])] = 0


def _reduce(light: Gray, factor: int) -> Gray:
    return reduce_by_block_means(light, factor) if factor > 1 else light


def _contrast(light: Gray, window: int, *, of_reflection: bool) -> Generator[None, None, _Contrast]:
    """Return the contrast of dark ink.

    Args:
        light: uint8[h, w].
        window: of the closing, in the same pixels.
        of_reflection: see ``_strength``.
    """
    background = _close(light, window)
    yield
    gain = _gain(background) if of_reflection else np.ones(background.shape, np.float32)
    contrast = (background - light) * gain
    samples = contrast[::4, ::4]
    offset = np.float32(np.median(samples))
    noise = TO_DEVIATION * float(np.median(np.abs(samples - offset)))
    contrast -= offset
    rank = min(NUM_DARKEST, contrast.size // NUM_DARKEST)
    darkest = -float(np.partition(-contrast.reshape(-1), rank)[rank])
    faintest = np.float32(max(NOISE_DEVIATIONS * noise, FAINT_SHARE * darkest, MIN_CONTRAST))
    certain_in_noise = max(min(CERTAIN_DEVIATIONS * noise, MOST_CERTAIN_SHARE * darkest), 1.5 * float(faintest))
    certain = np.float32(max(certain_in_noise, CERTAIN_SHARE * darkest, 2 * MIN_CONTRAST))
    yield
    return _Contrast(contrast, background, gain, offset, faintest, certain)


def _levels(found: _Contrast, window: int, share: float) -> FloatImage:
    """Return the contrast of the darkest ink around each pixel, at least what makes the faintest ink count: float32[h, w]."""
    levels = _spread(found.contrast.clip(0, 255).astype(np.uint8), window, np.maximum)
    at_least: FloatImage = np.maximum(levels, found.faintest / np.float32(share))
    return at_least


def _gain(background: Gray) -> FloatImage:
    """Return by how much to raise the contrast of ink where less light falls on the paper; 0 where there is no paper."""
    least = MIN_LIGHT * float(np.median(background[::8, ::8]))
    gain: FloatImage = 255 / np.maximum(background, np.float32(1))
    gain[background < least] = 0
    return gain


def _divide(light: Gray, level: FloatImage, scale: FloatImage, factor: int) -> FloatImage:
    """Return level - light * scale of a band, clipped to 0 and 1; all but ``light`` are reduced."""
    strength: FloatImage = light.reshape(len(level), factor, -1) * scale.repeat(factor, axis=1)[:, None]
    np.subtract(level.repeat(factor, axis=1)[:, None], strength, out=strength)
    np.clip(strength, 0, 1, out=strength)
    return strength.reshape(light.shape)


def _window(height: int, width: int) -> int:
    """Return the side of the closing's window, in pixels: strokes are narrower, shadows mostly wider."""
    shortest, longest = sorted((height, width))
    return max(min(shortest // 2, longest // 12), min(shortest, 32))


def _close(light: Gray, window: int) -> Gray:
    """Return the morphological closing of an image whose border is continued outwards."""
    padded = np.pad(light, window, "edge")
    closed = _spread(_spread(padded, window, np.maximum), window, np.minimum)
    return closed[window:-window, window:-window]


def _spread(image: Gray, window: int, extreme: np.ufunc) -> Gray:
    """Return the extreme of each window x window square around a pixel; squares are cut off at the border."""
    for axis in (0, 1):
        image = _spread_along(np.moveaxis(image, axis, 0), window // 2, extreme)
        image = np.moveaxis(image, 0, axis)
    return image


def _spread_along(image: NDArray[np.uint8], reach: int, extreme: np.ufunc) -> Gray:
    """Return the extreme of 2 * reach + 1 rows around each row, in steps of doubled size."""
    reach = min(reach, len(image) - 1)
    padded = np.pad(image, ((reach, reach), (0, 0)), "edge")
    span, rows = 2 * reach + 1, padded
    size = 1
    while 2 * size <= span:
        rows = extreme(rows[:-size], rows[size:])
        size *= 2
    return extreme(rows[: len(image)], rows[span - size : span - size + len(image)])

"""Telling ink from what it is written on: paper that is unevenly lit, sensor noise, or nothing at all.

Called by ``preprocess`` only, on the worker's thread, with an image of at most some 128 pixels a side whose strokes are
lighter than their background. Keeps no state but small tables.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MIN_CONTRAST = 24
"""Grey levels between background and ink below which an image is blank; MNIST has 254, pencil on paper 60 and more."""

MIN_CONTRAST_IN_NOISE = 4.5
"""The same in standard deviations of the background: a maximum over noise alone comes to 3 or 4."""

FLAT_SHARE = 0.2
"""Share of pixels at the darkest level from which a background counts as clean, so that nothing is taken off."""

NOISE_FLOOR = 2
"""Standard deviations above the background at which ink begins."""

PEAK_RANK = 0.98
"""Where the strongest ink is, by rank among the pixels that stand out of the background; above it is glare or dirt."""

GRID_SIZE = 12
"""Cells on each side of the grid that the background is fitted on: three or four across a stroke's surroundings."""

FIT_ROUNDS = 6
"""Fits of the background, one after another: 4 to 12 give the same accuracy on unevenly lit digits."""

_ONE = np.ones((), np.float32)
"""An array, for a number would be made one in each round."""


class Strength(NamedTuple):
    """How much ink there is at each pixel.

    Attributes:
        ink: float32[H, W], 0 = background, 1 = full ink.
        clean: the background was flat and without noise, so even the faintest pixel is ink.
    """

    ink: Floats
    clean: bool


class Residuals(NamedTuple):
    """What stands out of an unevenly lit or grainy background, whichever side ink is on.

    Attributes:
        light: float32[H, W], if ink is the lighter.
        dark: float32[H, W], if ink is the darker.
    """

    light: Floats
    dark: Floats


def residuals(work: Floats, low: float, high: float) -> Residuals | None:
    """Fit a background from either side.

    Args:
        work: float32[H, W], 0 to 255, strokes on either side.
        low: the darkest of it.
        high: the lightest.

    Returns:
        None for an image with a clean background.
    """
    if _is_flat(work <= low + 1) or _is_flat(work >= high - 1):
        return None
    return Residuals(_residual(work), _residual(255 - work))


def take_off_background(light: Floats, low: float, high: float, residual: Floats | None) -> Strength | None:
    """Find the ink of an image.

    Args:
        light: float32[H, W], 0 to 255, strokes lighter than the background.
        low: the darkest of it.
        high: the lightest.
        residual: of ``residuals``, if they were needed before; it is overwritten.

    Returns:
        None when there is no ink: less contrast than ``MIN_CONTRAST``, or than noise has by itself.
    """
    if residual is None:
        if _is_flat(light <= low + 1):
            ink = light - low
            ink *= 1 / (high - low)
            return Strength(ink, clean=True)
        residual = _residual(light)
    middle, noise, full = _levels(residual)
    if full - middle < max(MIN_CONTRAST, MIN_CONTRAST_IN_NOISE * noise):
        return None
    floor = middle + NOISE_FLOOR * noise
    residual -= floor
    residual *= 1 / (full - floor)
    return Strength(residual.clip(0, 1, out=residual), clean=False)


def _is_flat(extreme: NDArray[np.bool_]) -> bool:
    return bool(np.count_nonzero(extreme) > FLAT_SHARE * extreme.size)


def _levels(residual: Floats) -> tuple[float, float, float]:
    """Tell background, its noise (one standard deviation) and full ink from the distribution of grey.

    The background is the lower mode: what lies three deviations above its median is left out, again and again, and the
    deviation is taken from below the median, where there is no ink. Full ink is the median of what has at least half
    the peak: soft edges, and unevenness that the surface did not follow, have no say in it.
    """
    ordered = residual.ravel()[:: max(1, residual.size // 2048)].copy()
    ordered.sort()
    count, before = len(ordered), 0
    middle = noise = 0.0
    for _ in range(5):
        if count == before:
            break
        before = count
        middle = ordered.item(count // 2)
        noise = max(middle - ordered.item(int(count * 0.16)), 0.5)  # 16 % of a normal distribution: one deviation
        count = max(int(ordered.searchsorted(np.float32(middle + 3 * noise))), 1)
    ink = ordered[count:]
    if not len(ink):
        return middle, noise, middle
    peak = ink.item(int(len(ink) * PEAK_RANK))
    strong = ink[int(ink.searchsorted(np.float32((middle + peak) / 2))) :]
    return middle, noise, strong.item(len(strong) // 2)


def _residual(light: Floats) -> Floats:
    """Take a quadratic surface off an image.

    The darkest pixels of a grid of cells are fitted, and again with what stands out of the fit cut down to it, so that
    strokes lose their say. The surface comes out low by the noise that a cell's minimum has; ``_levels`` mends that.

    Source: Lieber and Mahadevan-Jansen, "Automated method for subtraction of fluorescence from biological Raman
        spectra", 2003, on baselines under peaks.
    """
    height, width = light.shape
    rows, columns = min(GRID_SIZE, height), min(GRID_SIZE, width)
    cells = _darkest_of_cells(light, rows, columns).ravel()
    solve, surface = _quadratic(rows, columns)
    coefficients, fit = solve.dot(cells), np.empty_like(cells)
    for _ in range(FIT_ROUNDS):
        surface.dot(coefficients, out=fit)
        fit += _ONE
        np.minimum(cells, fit, out=cells)
        solve.dot(cells, out=coefficients)
    background = _powers(height).dot(coefficients.reshape(3, 3)).dot(_powers(width).T)
    residual: Floats = np.subtract(light, background, out=background)
    return residual


def _darkest_of_cells(image: Floats, rows: int, columns: int) -> Floats:
    """Reduce an image to a grid of cells."""
    height, width = image.shape
    num_shifts = -(-height // rows)
    bands = image.take(_band_rows(height, rows), axis=0).reshape(num_shifts, rows * width)
    bands = np.minimum.reduce(bands, axis=0).reshape(rows, width)
    cells: Floats = np.minimum.reduceat(bands, _starts(width, columns), axis=1)
    return cells


@lru_cache(maxsize=256)
def _starts(size: int, num_cells: int) -> NDArray[np.intp]:
    """Where each cell of one axis begins."""
    return np.arange(num_cells) * size // num_cells


@lru_cache(maxsize=256)
def _band_rows(height: int, rows: int) -> NDArray[np.intp]:
    """First row of every band, second row of every band and so on; shorter bands repeat their last row."""
    starts = _starts(height, rows)
    lasts = np.append(starts[1:], height) - 1
    band_rows: NDArray[np.intp] = np.minimum(starts + np.arange(-(-height // rows))[:, None], lasts).ravel()
    return band_rows


@lru_cache(maxsize=256)
def _powers(size: int) -> Floats:
    """1, x and x squared at the centres of ``size`` cells between -1 and 1: float32[size, 3]."""
    x = (np.arange(size) * 2 + 1) / size - 1
    return np.stack([np.ones(size), x, x * x], axis=1).astype(np.float32)


@lru_cache(maxsize=64)
def _quadratic(rows: int, columns: int) -> tuple[Floats, Floats]:
    """Return what takes cells to the nine coefficients of y^i x^j, and those back; none where i + j is above 2."""
    terms = np.einsum("yi,xj->yxij", _powers(rows), _powers(columns)).reshape(rows * columns, 9)
    terms[:, [5, 7, 8]] = 0
    solve: Floats = np.linalg.pinv(terms.astype(np.float64)).astype(np.float32)
    return solve, terms

"""Separation of ink from its background: unevenly lit paper, sensor noise, or a blank image.

``polarity`` and ``framing`` call it on the worker's thread, with an image of at most 128 pixels a side. Caches small tables
per image size; keeps no other state.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.types import FloatImage
from digitserve.vision.resample import sum_weights

MIN_CONTRAST = 24
"""Grey levels between background and ink below which an image is blank; MNIST has 254, pencil on paper 60 and more."""

MIN_CONTRAST_IN_NOISE = 4.5
"""The same in standard deviations of the background: the maximum of noise alone is 3 or 4."""

FLAT_SHARE = 0.2
"""Share of pixels at the darkest level above which a background counts as clean and is not subtracted."""

NOISE_FLOOR = 2
"""Standard deviations above the background at which ink begins."""

PEAK_QUANTILE = 0.98
"""Quantile of the pixels above the background that is taken as the strongest ink; values above it are glare or dirt."""

GRID_SIZE = 12
"""Cells on each side of the grid that the background is fitted on: three or four across a stroke's surroundings."""

FIT_ROUNDS = 6
"""Iterations of the background fit: 4 to 12 give the same accuracy on unevenly lit digits."""

MAX_SIDE_DIFFERENCE = 0.06
"""Largest difference of the mean ink strengths along two sides of an image whose background is even."""

WINDOW_SHARE = 0.2
"""Width of the window of the local background as a share of the image's longest side: wider than the thickest strokes."""

MIN_WINDOW = 5
"""Its smallest width in pixels."""

_ONE = np.ones((), np.float32)
"""An array, because numpy would convert a Python number in each iteration."""


class InkStrength(NamedTuple):
    """How much ink each pixel has.

    Attributes:
        strength: float32[H, W], 0 = background, 1 = full ink.
        clean: the background was flat and free of noise, so that even the faintest pixel is ink.
    """

    strength: FloatImage
    clean: bool


class Residuals(NamedTuple):
    """An image minus its fitted background, for each polarity.

    Attributes:
        light: float32[H, W], for ink lighter than the background.
        dark: float32[H, W], of the negative image, for ink darker than the background.
    """

    light: FloatImage
    dark: FloatImage


def residuals(image: FloatImage, low: float, high: float) -> Residuals | None:
    """Fit the background for each polarity.

    Args:
        image: float32[H, W], grey levels from 0 to 255.
        low: its lowest grey level.
        high: its highest grey level.

    Returns:
        None for an image with a clean background.
    """
    if _is_flat(image <= low + 1) or _is_flat(image >= high - 1):
        return None
    return Residuals(_residual(image), _residual(255 - image))


def subtract_background(light: FloatImage, low: float, high: float, residual: FloatImage | None) -> InkStrength | None:
    """Find the ink of an image.

    Args:
        light: float32[H, W], grey levels from 0 to 255, strokes lighter than the background.
        low: its lowest grey level.
        high: its highest grey level.
        residual: of ``residuals``, if it was computed before; it is overwritten.

    Returns:
        None when there is no ink: less contrast than ``MIN_CONTRAST``, or not more than noise alone has.
    """
    if residual is None:
        if _is_flat(light <= low + 1):
            strength = light - low
            strength *= 1 / (high - low)
            return InkStrength(strength, clean=True)
        residual = _residual(light)
    return _strength(residual)


def subtract_local_background(light: FloatImage) -> InkStrength | None:
    """Find the ink of an image whose background has steps: the hard edge of a shadow.

    The background is a grey opening: what strokes narrower than a window leave. It follows steps exactly. Slower than
    ``subtract_background``, and blind to strokes as wide as the window.

    Args:
        light: float32[H, W], grey levels from 0 to 255, strokes lighter than the background.

    Returns:
        None when there is no ink.
    """
    size = max(MIN_WINDOW, int(WINDOW_SHARE * max(light.shape))) | 1
    eroded = _slide(np.minimum, light, size)
    return _strength(light - _slide(np.maximum, eroded, size))


def is_shaded(strength: FloatImage) -> bool:
    """Return whether the sides of an image differ so much in ink strength that its background may have a step."""
    height, width = strength.shape
    sums: list[list[float]] = sum_weights(height).dot(strength).dot(sum_weights(width).T).tolist()
    (_, _, top), (_, _, bottom), (left, right, _) = sums
    sides: tuple[float, ...] = (top / width, bottom / width, left / height, right / height)
    return max(sides) - min(sides) > MAX_SIDE_DIFFERENCE


def _slide(extreme: np.ufunc, image: FloatImage, size: int) -> FloatImage:
    """Return the lowest or highest grey level in a square window around each pixel. Each step doubles the window."""
    padded: FloatImage = np.pad(image, size // 2, mode="edge")
    for _ in range(2):
        span = 1
        while span < size:
            step = min(span, size - span)
            padded = extreme(padded[:-step], padded[step:])
            span += step
        padded = padded.T
    return padded


def _strength(residual: FloatImage) -> InkStrength | None:
    """Scale a residual to ink strength, in place; None when there is no ink."""
    background, noise, full = _estimate_levels(residual)
    if full - background < max(MIN_CONTRAST, MIN_CONTRAST_IN_NOISE * noise):
        return None
    floor = background + NOISE_FLOOR * noise
    residual -= floor
    residual *= 1 / (full - floor)
    return InkStrength(residual.clip(0, 1, out=residual), clean=False)


def _is_flat(extreme: NDArray[np.bool_]) -> bool:
    return bool(np.count_nonzero(extreme) > FLAT_SHARE * extreme.size)


def _estimate_levels(residual: FloatImage) -> tuple[float, float, float]:
    """Estimate the background, its noise (one standard deviation) and full ink from the distribution of grey levels.

    The background is the lower mode: its median, after values more than three deviations above it are removed, iterated.
    The deviation is estimated below the median, where there is no ink. Full ink is the median of the pixels that have at
    least half the peak, so that soft edges and uneven light that the fit left over do not affect it.
    """
    ordered = residual.ravel()[:: max(1, residual.size // 2048)].copy()
    ordered.sort()
    count, before = len(ordered), 0
    background = noise = 0.0
    for _ in range(5):
        if count == before:
            break
        before = count
        background = ordered.item(count // 2)
        # 16 % of a normal distribution lie below one standard deviation.
        noise = max(background - ordered.item(int(count * 0.16)), 0.5)
        count = max(int(ordered.searchsorted(np.float32(background + 3 * noise))), 1)
    ink = ordered[count:]
    if not len(ink):
        return background, noise, background
    peak = ink.item(int(len(ink) * PEAK_QUANTILE))
    strong = ink[int(ink.searchsorted(np.float32((background + peak) / 2))) :]
    return background, noise, strong.item(len(strong) // 2)


def _residual(light: FloatImage) -> FloatImage:
    """Subtract a quadratic background surface from an image whose ink is lighter than its background.

    The surface is fitted to the minima of a grid of cells. In each iteration, cells above the fit are lowered to it, so that
    strokes lose their influence. The minimum of a noisy cell is below its mean, so the surface is too low by as much;
    ``_estimate_levels`` corrects that.

    Source: Lieber and Mahadevan-Jansen, "Automated method for subtraction of fluorescence from biological Raman
        spectra", 2003, on baselines under peaks.
    """
    height, width = light.shape
    rows, columns = min(GRID_SIZE, height), min(GRID_SIZE, width)
    cells = _cell_minima(light, rows, columns).ravel()
    solve, surface = _quadratic(rows, columns)
    coefficients, fit = solve.dot(cells), np.empty_like(cells)
    for _ in range(FIT_ROUNDS):
        surface.dot(coefficients, out=fit)
        fit += _ONE
        np.minimum(cells, fit, out=cells)
        solve.dot(cells, out=coefficients)
    background = _powers(height).dot(coefficients.reshape(3, 3)).dot(_powers(width).T)
    residual: FloatImage = np.subtract(light, background, out=background)
    return residual


def _cell_minima(image: FloatImage, rows: int, columns: int) -> FloatImage:
    """Return the lowest grey level of each cell of a grid: float32[rows, columns]."""
    height, width = image.shape
    band_height = -(-height // rows)
    bands = image.take(_band_rows(height, rows), axis=0).reshape(band_height, rows * width)
    bands = np.minimum.reduce(bands, axis=0).reshape(rows, width)
    cells: FloatImage = np.minimum.reduceat(bands, _cell_starts(width, columns), axis=1)
    return cells


@lru_cache(maxsize=256)
def _cell_starts(size: int, num_cells: int) -> NDArray[np.intp]:
    """Return the first pixel of each cell along one axis."""
    return np.arange(num_cells) * size // num_cells


@lru_cache(maxsize=256)
def _band_rows(height: int, rows: int) -> NDArray[np.intp]:
    """Return the first row of every band, then the second row of every band and so on; short bands repeat their last row."""
    starts = _cell_starts(height, rows)
    lasts = np.append(starts[1:], height) - 1
    band_rows: NDArray[np.intp] = np.minimum(starts + np.arange(-(-height // rows))[:, None], lasts).ravel()
    return band_rows


@lru_cache(maxsize=256)
def _powers(size: int) -> FloatImage:
    """Return 1, x and x squared at the centres of ``size`` cells between -1 and 1: float32[size, 3]."""
    x = (np.arange(size) * 2 + 1) / size - 1
    return np.stack([np.ones(size), x, x * x], axis=1).astype(np.float32)


@lru_cache(maxsize=64)
def _quadratic(rows: int, columns: int) -> tuple[FloatImage, FloatImage]:
    """Return the matrix from cells to the nine coefficients of y^i x^j, and the one back; terms with i + j > 2 are zero."""
    terms = np.einsum("yi,xj->yxij", _powers(rows), _powers(columns)).reshape(rows * columns, 9)
    terms[:, [5, 7, 8]] = 0
    solve: FloatImage = np.linalg.pinv(terms.astype(np.float64)).astype(np.float32)
    return solve, terms

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


class Strength(NamedTuple):
    """How much ink there is at each pixel.

    Attributes:
        ink: float32[H, W], 0 = background, 1 = full ink.
        clean: the background was flat and without noise, so even the faintest pixel is ink.
    """

    ink: Floats
    clean: bool


def take_off_background(light: Floats) -> Strength | None:
    """Find the ink of an image.

    Args:
        light: float32[H, W], 0 to 255, strokes lighter than the background.

    Returns:
        None when there is no ink: less contrast than ``MIN_CONTRAST``, or than noise has by itself.
    """
    low, high = float(np.minimum.reduce(light, axis=None)), float(np.maximum.reduce(light, axis=None))
    if high - low < MIN_CONTRAST:
        return None
    if _is_flat(light <= low + 1):
        return Strength((light - np.float32(low)) * np.float32(1 / (high - low)), clean=True)
    residual = light - _background(light)
    middle, noise, full = _levels(residual)
    if full - middle < max(MIN_CONTRAST, MIN_CONTRAST_IN_NOISE * noise):
        return None
    floor = middle + NOISE_FLOOR * noise
    residual -= np.float32(floor)
    residual *= np.float32(1 / (full - floor))
    return Strength(residual.clip(0, 1, out=residual), clean=False)


def excess(work: Floats) -> float:
    """Compare what stands out below the paper with what stands out above it: ink's side, where light is uneven.

    Ink covers less than paper does, so a background fitted from the right side leaves less standing out of it.

    Args:
        work: float32[H, W], 0 to 255, strokes on either side.

    Returns:
        -2 to 2, above 0 for dark ink; 0 for an image with a clean background, which needs no such help.
    """
    low, high = float(np.minimum.reduce(work, axis=None)), float(np.maximum.reduce(work, axis=None))
    if _is_flat(work <= low + 1) or _is_flat(work >= high - 1):
        return 0.0
    light, dark = work - _background(work), 255 - work - _background(255 - work)
    return 2 * float(np.add.reduce(light - dark, axis=None)) / (work.size * (high - low))


def _is_flat(extreme: NDArray[np.bool_]) -> bool:
    return bool(np.count_nonzero(extreme) > FLAT_SHARE * extreme.size)


def _levels(residual: Floats) -> tuple[float, float, float]:
    """Tell background, its noise (one standard deviation) and full ink from the distribution of grey.

    The background is the lower mode: what lies three deviations above its median is left out, again and again, and the
    deviation is taken from below the median, where there is no ink. Full ink is the median of what has at least half
    the peak: soft edges, and unevenness that the surface did not follow, have no say in it.
    """
    ordered = np.sort(residual.ravel()[:: max(1, residual.size // 2048)])
    count = len(ordered)
    middle = noise = 0.0
    for _ in range(5):
        middle = float(ordered[count // 2])
        noise = max(middle - float(ordered[int(count * 0.16)]), 0.5)  # 16 % of a normal distribution: one deviation
        count = max(int(ordered.searchsorted(np.float32(middle + 3 * noise))), 1)
    ink = ordered[count:]
    if not len(ink):
        return middle, noise, middle
    peak = float(ink[int(len(ink) * PEAK_RANK)])
    strong = ink[int(ink.searchsorted(np.float32((middle + peak) / 2))) :]
    return middle, noise, float(strong[len(strong) // 2])


def _background(light: Floats) -> Floats:
    """Fit a quadratic surface under an image.

    The darkest pixels of a grid of cells are fitted, and again with what stands out of the fit cut down to it, so that
    strokes lose their say. The surface comes out low by the noise that a cell's minimum has; ``_levels`` mends that.

    Source: Lieber and Mahadevan-Jansen, "Automated method for subtraction of fluorescence from biological Raman
        spectra", 2003, on baselines under peaks.
    """
    rows, columns = (min(GRID_SIZE, side) for side in light.shape)
    cells = _reduce_cells(np.minimum, light, rows, columns).ravel()
    solve, surface = _quadratic(rows, columns)
    for _ in range(FIT_ROUNDS):
        cells = np.minimum(cells, surface @ (solve @ cells) + 1)
    return _surface(solve @ cells, light.shape)


def _reduce_cells(operation: np.ufunc, image: Floats, rows: int, columns: int) -> Floats:
    """Reduce an image to a grid of cells."""
    height, width = image.shape
    bands: Floats = operation.reduceat(image, np.arange(rows) * height // rows, axis=0)
    cells: Floats = operation.reduceat(bands, np.arange(columns) * width // columns, axis=1)
    return cells


def _surface(coefficients: Floats, shape: tuple[int, ...]) -> Floats:
    """Draw a quadratic surface at full size."""
    return np.asarray(_powers(shape[0]) @ coefficients.reshape(3, 3) @ _powers(shape[1]).T, np.float32)


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

"""Separation of ink from its background: unevenly lit paper, sensor noise, or a blank image.

``polarity`` and ``framing`` call it on the worker's thread, with an image of at most 128 pixels a side. Caches small tables
per image size; keeps no other state.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
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

_ZERO, _ONE, _WHITE = np.zeros((), np.float32), np.ones((), np.float32), np.full((), 255, np.float32)
"""Arrays, because numpy would convert a Python number in each call."""


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


def residuals(images: FloatImage, lows: Sequence[float], highs: Sequence[float]) -> list[Residuals | None]:
    """Fit the backgrounds of images of one size for each polarity.

    Args:
        images: float32[N, H, W], grey levels from 0 to 255.
        lows: lowest grey level of each.
        highs: highest grey level of each.

    Returns:
        None for each image with a clean background.
    """
    found: list[Residuals | None] = [None] * len(images)
    uneven = [
        index
        for index, (image, low, high) in enumerate(zip(images, lows, highs, strict=True))
        if not (_is_flat(image <= low + 1) or _is_flat(image >= high - 1))
    ]
    if uneven:
        both = np.empty((2, len(uneven), *images.shape[1:]), np.float32)
        both[0] = images if len(uneven) == len(images) else images[uneven]
        np.subtract(_WHITE, both[0], out=both[1])
        light, dark = _fit(both.reshape(-1, *images.shape[1:])).reshape(both.shape)
        for row, index in enumerate(uneven):
            found[index] = Residuals(light[row], dark[row])
    return found


def subtract_backgrounds(
    lights: FloatImage, lows: Sequence[float], highs: Sequence[float], fitted: Sequence[FloatImage | None]
) -> tuple[FloatImage, list[InkStrength | None]]:
    """Find the ink of images of one size.

    Args:
        lights: float32[N, H, W], grey levels from 0 to 255, strokes lighter than the background.
        lows: lowest grey level of each.
        highs: highest grey level of each.
        fitted: the residual of each, of ``residuals``, if it was computed before; it may be overwritten.

    Returns:
        Strengths of all, float32[N, H, W], 0 where there is no ink; and the ink of each, None for an image without: less
        contrast than ``MIN_CONTRAST``, or not more than noise alone has.
    """
    noisy = [
        index
        for index, residual in enumerate(fitted)
        if residual is not None or not _is_flat(lights[index] <= lows[index] + 1)
    ]
    if len(noisy) == len(lights):
        strengths, have_ink = _scale_noisy(_complete(lights, noisy, fitted))
        return strengths, [
            InkStrength(strength, False) if has_ink else None  # noqa: FBT003 - keywords cost time
            for strength, has_ink in zip(strengths, have_ink, strict=True)
        ]
    strengths = _scale_clean(lights, lows, highs)
    found: list[InkStrength | None] = [InkStrength(strength, True) for strength in strengths]  # noqa: FBT003
    if noisy:
        strengths[noisy], have_ink = _scale_noisy(_complete(lights, noisy, fitted))
        for index, has_ink in zip(noisy, have_ink, strict=True):
            found[index] = InkStrength(strengths[index], False) if has_ink else None  # noqa: FBT003
    return strengths, found


def subtract_local_background(light: FloatImage) -> InkStrength | None:
    """Find the ink of an image whose background has steps: the hard edge of a shadow.

    The background is a grey opening: what strokes narrower than a window leave. It follows steps exactly. Slower than
    ``subtract_backgrounds``, and blind to strokes as wide as the window.

    Args:
        light: float32[H, W], grey levels from 0 to 255, strokes lighter than the background.

    Returns:
        None when there is no ink.
    """
    size = max(MIN_WINDOW, int(WINDOW_SHARE * max(light.shape))) | 1
    eroded = _slide(np.minimum, light, size)
    (strength,), (has_ink,) = _scale_noisy((light - _slide(np.maximum, eroded, size))[None])
    return InkStrength(strength, clean=False) if has_ink else None


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


def _is_flat(extreme: NDArray[np.bool_]) -> bool:
    return bool(np.count_nonzero(extreme) > FLAT_SHARE * extreme.size)


def _column(numbers: Sequence[float]) -> FloatImage | np.float32:
    """Return a number for each image, to be broadcast over its pixels."""
    return np.float32(numbers[0]) if len(numbers) == 1 else np.array(numbers, np.float32)[:, None, None]


def _scale_clean(lights: FloatImage, lows: Sequence[float], highs: Sequence[float]) -> FloatImage:
    """Scale images to ink strength."""
    factors = _column([1 / (high - low) for low, high in zip(lows, highs, strict=True)])
    if not any(lows):
        return lights * factors
    strengths = lights - _column(lows)
    strengths *= factors
    return strengths


def _complete(lights: FloatImage, noisy: list[int], fitted: Sequence[FloatImage | None]) -> FloatImage:
    """Return the residuals of the noisy ones of all images: float32[len(noisy), H, W]."""
    to_fit = [index for index in noisy if fitted[index] is None]
    if len(to_fit) == len(lights):
        return _fit(lights)
    added = iter(_fit(lights[to_fit]) if to_fit else ())
    found = [next(added) if (residual := fitted[index]) is None else residual for index in noisy]
    return found[0][None] if len(found) == 1 else np.stack(found)


def _scale_noisy(residuals: FloatImage) -> tuple[FloatImage, list[bool]]:
    """Scale residuals of images to ink strength, in place; also return which of them have ink. The others become 0."""
    flat = residuals.reshape(len(residuals), -1)
    ordered = flat[:, :: max(1, flat.shape[1] // 2048)].copy()
    ordered.sort(axis=1)
    floors, factors, have_ink = [], [], []
    for levels in ordered:
        background, noise, full = _estimate_levels(levels)
        has_ink = full - background >= max(MIN_CONTRAST, MIN_CONTRAST_IN_NOISE * noise)
        floor = background + NOISE_FLOOR * noise
        floors.append(floor)
        factors.append(1 / (full - floor) if has_ink else 0.0)
        have_ink.append(has_ink)
    residuals -= _column(floors)
    residuals *= _column(factors)
    residuals.clip(_ZERO, _ONE, out=residuals)
    return residuals, have_ink


def _estimate_levels(ordered: FloatImage) -> tuple[float, float, float]:
    """Estimate the background, its noise (one standard deviation) and full ink from the distribution of grey levels.

    The background is the lower mode: its median, after values more than three deviations above it are removed, iterated.
    The deviation is estimated below the median, where there is no ink. Full ink is the median of the pixels that have at
    least half the peak, so that soft edges and uneven light that the fit left over do not affect it.

    Args:
        ordered: float32[N], sorted grey levels.
    """
    levels: Sequence[float] = ordered.data  # its items are Python's numbers, without a call into numpy
    num_levels = len(levels)
    count, before = num_levels, 0
    background = noise = 0.0
    for _ in range(5):
        if count == before:
            break
        before = count
        background = levels[count // 2]
        # 16 % of a normal distribution lie below one standard deviation.
        noise = max(background - levels[int(count * 0.16)], 0.5)
        count = max(bisect_left(levels, float(np.float32(background + 3 * noise))), 1)
    if count == num_levels:
        return background, noise, background
    peak = levels[count + int((num_levels - count) * PEAK_QUANTILE)]
    start = bisect_left(levels, float(np.float32((background + peak) / 2)), count)
    return background, noise, levels[start + (num_levels - start) // 2]


def _fit(lights: FloatImage) -> FloatImage:
    """Subtract a quadratic background surface from images of one size whose ink is lighter than their background.

    The surface is fitted to the minima of a grid of cells. In each iteration, cells above the fit are lowered to it, so that
    strokes lose their influence. The minimum of a noisy cell is below its mean, so the surface is too low by as much;
    ``_estimate_levels`` corrects that.

    Source: Lieber and Mahadevan-Jansen, "Automated method for subtraction of fluorescence from biological Raman
        spectra", 2003, on baselines under peaks.
    """
    num_images, height, width = lights.shape
    rows, columns = min(GRID_SIZE, height), min(GRID_SIZE, width)
    cells = _cell_minima(lights, rows, columns)
    solve, surface = _quadratic(rows, columns)
    # A product of stacks calls BLAS for each image, so the result does not depend on the other images. For a single image
    # ``dot`` makes the same call in a third of the time.
    fit_to, surface_of = (solve.dot, surface.dot) if num_images == 1 else (_each(solve), _each(surface))
    cells = cells.reshape(-1) if num_images == 1 else cells.reshape(num_images, -1, 1)
    coefficients, fit = fit_to(cells), np.empty_like(cells)
    for _ in range(FIT_ROUNDS):
        surface_of(coefficients, fit)
        np.add(fit, _ONE, fit)
        np.minimum(cells, fit, out=cells)
        fit_to(cells, coefficients)
    if num_images == 1:
        backgrounds = _powers(height).dot(coefficients.reshape(3, 3)).dot(_powers(width).T)[None]
    else:
        backgrounds = np.matmul(np.matmul(_powers(height), coefficients.reshape(-1, 3, 3)), _powers(width).T)
    residual: FloatImage = np.subtract(lights, backgrounds, out=backgrounds)
    return residual


def _each(matrix: FloatImage) -> Callable[..., FloatImage]:
    """Return the function that multiplies a matrix with each of a stack."""
    return partial(np.matmul, matrix)


def _cell_minima(images: FloatImage, rows: int, columns: int) -> FloatImage:
    """Return the lowest grey level of each cell of a grid on each image: float32[N, rows, columns]."""
    num_images, height, width = images.shape
    bands = images.take(_band_rows(height, rows), axis=1).reshape(num_images, -(-height // rows), rows * width)
    bands = np.minimum.reduce(bands, axis=1).reshape(num_images * rows, width)
    # Columns as rows: minima of contiguous numbers, which ``reduceat`` along the last axis is slower than.
    cells = bands.T.take(_band_rows(width, columns), axis=0).reshape(-(-width // columns), -1)
    minima: FloatImage = np.minimum.reduce(cells, axis=0).reshape(columns, num_images, rows).transpose(1, 2, 0)
    return minima


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

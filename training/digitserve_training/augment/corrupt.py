"""Corruptions of training images: noise, stains, bad lighting, bad optics.

``augmentation`` calls ``corrupt`` on whole batches, float32[N,28,28,1] from 0 to 1. Evaluation uses other code,
``evaluate.corruption_suite``; some of its kinds do not occur here.
"""

from collections.abc import Callable

from digitserve_training._tensorflow import tf
from digitserve_training.augment.pixels import dilate, erode, smooth, uniform
from digitserve_training.augment.warp import warp
from digitserve_training.model.presets import Augmentation

Corruption = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

STRONG_WARP = Augmentation(rotation_deg=30.0, scale=0.15, zoom=0.4, shear=0.4, shift_px=5.0, elastic_px=2.0)
"""Deformations of images that were not framed; with stronger ones a 6 becomes a 9 and ink leaves the image."""


def corrupt(pixels: tf.Tensor, seed: tf.Tensor, share: float) -> tf.Tensor:
    """Apply one corruption to each of the first images; all kinds get the same number of images.

    Args:
        pixels: float32[N,28,28,1], 0 to 1, in random order.
        seed: int32[2].
        share: share of the images to corrupt, 0 to 1.

    Returns:
        float32[N,28,28,1]; values may lie slightly outside 0 to 1.
    """
    if share == 0:
        return pixels
    # The random offset decides in each batch which kinds get one image more than others.
    seeds = tf.unstack(tf.random.split(seed, len(CORRUPTIONS) + 1))
    length = tf.cast(tf.shape(pixels)[0], tf.float32) * share / len(CORRUPTIONS)
    offset = tf.random.stateless_uniform([], seeds[-1])
    bounds = [tf.cast(tf.floor(offset + length * number), tf.int32) for number in range(len(CORRUPTIONS) + 1)]
    parts = [
        corruption(pixels[bounds[number] : bounds[number + 1]], seeds[number])
        for number, corruption in enumerate(CORRUPTIONS)
    ]
    return tf.concat([pixels[: bounds[0]], *parts, pixels[bounds[-1] :]], axis=0)


def _strong_warp(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Deform strongly: off-centre, too small, too large, rotated, sheared."""
    return warp(pixels, seed, STRONG_WARP)


def _noise(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Add Gaussian noise."""
    seeds = tf.unstack(tf.random.split(seed, 2))
    noise = tf.random.stateless_normal(tf.shape(pixels), seeds[0])
    return pixels + noise * uniform(seeds[1], pixels, 0.08, 0.4)


def _impulse_noise(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Set single pixels to black or to a light value."""
    seeds = tf.unstack(tf.random.split(seed, 4))
    hit = tf.random.stateless_uniform(tf.shape(pixels), seeds[0]) < uniform(seeds[1], pixels, 0.02, 0.3)
    value = tf.round(tf.random.stateless_uniform(tf.shape(pixels), seeds[2])) * uniform(seeds[3], pixels, 0.4, 1.0)
    return tf.where(hit, value, pixels)


def _defocus(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Apply several small blurs, then restore some of the contrast."""
    strong = smooth(smooth(smooth(pixels)))
    stronger = smooth(smooth(strong))
    blurred = strong + uniform(seed, pixels, 0.0, 1.0) * (stronger - strong)
    return tf.minimum(1.0, blurred * uniform(seed + 1, pixels, 1.0, 1.8))


def _motion_blur(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Average along a short straight path in a random direction."""
    seeds = tf.unstack(tf.random.split(seed, 2))
    angle = uniform(seeds[0], pixels, 0.0, 3.1416)[:, 0, 0, 0]
    reach = uniform(seeds[1], pixels, 1.0, 4.5)[:, 0, 0, 0]
    steps = [_shifted(pixels, reach * part * tf.cos(angle), reach * part * tf.sin(angle)) for part in _PATH]
    return tf.add_n(steps) / len(steps)


_PATH = (-1.0, -0.6, -0.2, 0.2, 0.6, 1.0)


def _shifted(pixels: tf.Tensor, right: tf.Tensor, down: tf.Tensor) -> tf.Tensor:
    one, zero = tf.ones_like(right), tf.zeros_like(right)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=tf.stack([one, zero, -right, zero, one, -down, zero, zero], axis=1),
        output_shape=pixels.shape[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def _brightness_and_contrast(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Raise the background, reduce the contrast, or both; sometimes saturate."""
    seeds = tf.unstack(tf.random.split(seed, 2))
    low = uniform(seeds[0], pixels, 0.0, 0.7)
    return tf.minimum(1.0, low + pixels * uniform(seeds[1], pixels, 0.15, 1.0))


def _fog(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Blend the image with smooth noise."""
    seeds = tf.unstack(tf.random.split(seed, 2))
    noise, density = _smooth_noise(pixels, seeds[0]), uniform(seeds[1], pixels, 0.2, 0.7)
    return pixels * (1 - 0.6 * density) + noise * density


def _stains(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Add stains of ink, or erase ink in stains."""
    seeds = tf.unstack(tf.random.split(seed, 4))
    stain = tf.sigmoid(30 * (_smooth_noise(pixels, seeds[0], 10) - uniform(seeds[1], pixels, 0.72, 0.85)))
    adds = uniform(seeds[2], pixels, 0.0, 1.0) < 0.5
    shade = uniform(seeds[3], pixels, 0.4, 1.0)
    return tf.where(adds, tf.maximum(pixels, shade * stain), pixels * (1 - stain))


def _smooth_noise(pixels: tf.Tensor, seed: tf.Tensor, size: int = 6) -> tf.Tensor:
    """Draw noise at two scales, interpolated from random grids: float32[N,28,28,1], 0 to 1."""
    seeds, num_images = tf.unstack(tf.random.split(seed, 2)), tf.shape(pixels)[0]
    layers = [
        tf.image.resize(
            tf.random.stateless_uniform([num_images, points, points, 1], part), pixels.shape[1:3], method="bicubic"
        )
        for points, part in zip((size, 2 * size), seeds, strict=True)
    ]
    return tf.clip_by_value(0.7 * layers[0] + 0.3 * layers[1], 0.0, 1.0)


def _inverted_bands(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Invert a vertical or horizontal band, or everything outside it."""
    seeds = tf.unstack(tf.random.split(seed, 4))
    width = uniform(seeds[0], pixels, 3.0, 16.0)
    middle = uniform(seeds[1], pixels, 2.0, 26.0)
    horizontal = uniform(seeds[2], pixels, 0.0, 1.0) < 0.5
    outside = uniform(seeds[3], pixels, 0.0, 1.0) < 0.5
    within = tf.abs(tf.where(horizontal, _rows(pixels), _columns(pixels)) - middle) < width / 2
    return tf.where(tf.not_equal(within, outside), 1 - pixels, pixels)


def _lines(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Draw one to three thin straight lines, solid or dashed, in ink or in background."""
    seeds = tf.unstack(tf.random.split(seed, 5))
    kind = uniform(seeds[3], pixels, 0.0, 1.0)
    strokes = tf.maximum(
        _line(pixels, seeds[0]),
        tf.maximum(
            tf.where(kind < 0.6, _line(pixels, seeds[1]), 0.0), tf.where(kind < 0.3, _line(pixels, seeds[2]), 0.0)
        ),
    )
    drawn = tf.maximum(pixels, strokes * uniform(seeds[4], pixels, 0.4, 1.0))
    return tf.where(kind < 0.85, drawn, pixels * (1 - strokes))


def _line(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    seeds = tf.unstack(tf.random.split(seed, 6))
    angle = uniform(seeds[0], pixels, 0.0, 3.1416)
    y, x = _rows(pixels) - uniform(seeds[1], pixels, 4.0, 24.0), _columns(pixels) - uniform(seeds[2], pixels, 4.0, 24.0)
    distance, along = tf.abs(y * tf.cos(angle) - x * tf.sin(angle)), x * tf.cos(angle) + y * tf.sin(angle)
    ink = tf.clip_by_value(uniform(seeds[3], pixels, 0.9, 1.7) - distance, 0.0, 1.0)
    period = uniform(seeds[4], pixels, 2.0, 7.0)
    dashed = uniform(seeds[5], pixels, 0.0, 1.0) < 0.5
    return tf.where(tf.logical_and(dashed, tf.math.floormod(along, period) > period / 2), 0.0, ink)


def _occlusion(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Cover a part of the image with a rectangle of background, ink or grey."""
    seeds = tf.unstack(tf.random.split(seed, 5))
    down = tf.abs(_rows(pixels) - uniform(seeds[0], pixels, 4.0, 24.0)) < uniform(seeds[1], pixels, 1.5, 5.0)
    across = tf.abs(_columns(pixels) - uniform(seeds[2], pixels, 4.0, 24.0)) < uniform(seeds[3], pixels, 1.5, 5.0)
    shade = tf.maximum(0.0, uniform(seeds[4], pixels, -1.0, 1.0))
    return tf.where(tf.logical_and(down, across), shade, pixels)


def _edges(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Keep mostly the edges of strokes."""
    share = uniform(seed, pixels, 0.6, 1.0)
    grown = tf.where(uniform(seed + 1, pixels, 0.0, 1.0) < 0.5, dilate(pixels), pixels)
    return tf.minimum(1.0, tf.maximum(grown - erode(pixels), (1 - share) * pixels) * (0.7 + 0.6 * share))


def _pixelate(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Reduce and enlarge again; the size is the same for the whole batch."""
    shape, sizes = pixels.shape[1:3], (7, 9, 11, 14)
    chosen = tf.random.stateless_uniform([], seed, 0, 2 * len(sizes), tf.int32)
    branches = [
        lambda size=size, method=method: tf.image.resize(
            tf.image.resize(pixels, [size, size], method="area"), shape, method=method
        )
        for size in sizes
        for method in ("nearest", "bicubic")
    ]
    coarse = tf.switch_case(chosen, branches)
    coarse.set_shape(pixels.shape)
    return coarse


def _rows(pixels: tf.Tensor) -> tf.Tensor:
    return tf.range(pixels.shape[1], dtype=tf.float32)[tf.newaxis, :, tf.newaxis, tf.newaxis]


def _columns(pixels: tf.Tensor) -> tf.Tensor:
    return tf.range(pixels.shape[2], dtype=tf.float32)[tf.newaxis, tf.newaxis, :, tf.newaxis]


CORRUPTIONS: tuple[Corruption, ...] = (
    _strong_warp,
    _noise,
    _impulse_noise,
    _defocus,
    _motion_blur,
    _brightness_and_contrast,
    _fog,
    _stains,
    _inverted_bands,
    _lines,
    _occlusion,
    _edges,
    _pixelate,
)

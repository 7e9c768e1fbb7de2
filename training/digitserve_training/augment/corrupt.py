"""What training does to a share of its images beyond bending them: noise, dirt, bad light, bad optics.

Called by ``augment`` on whole batches, float32[N,28,28,1] from 0 to 1. The suite that networks are judged by is another
one, ``corruptions``: its drawings are made differently, and some of its kinds are never seen here.
"""

from collections.abc import Callable

from digitserve_training._tensorflow import tf
from digitserve_training.augment.pixels import dilate, erode, smooth, uniform
from digitserve_training.augment.warp import warp
from digitserve_training.model.presets import Augmentation

Corruption = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

FAR = Augmentation(rotation_deg=30.0, scale=0.15, zoom=0.4, shear=0.4, shift_px=5.0, elastic_px=2.0)
"""As far as images without framing stray: beyond that a 6 becomes a 9 and ink leaves the image."""


def corrupt(pixels: tf.Tensor, seed: tf.Tensor, share: float) -> tf.Tensor:
    """Give the first ``share`` of the images one corruption each, every kind to equally many.

    Args:
        pixels: float32[N,28,28,1], 0 to 1, in random order.
        seed: int32[2].
        share: 0 to 1.

    Returns:
        float32[N,28,28,1]; may leave 0 to 1 a little.
    """
    if share == 0:
        return pixels
    # Rounded at random in effect: which kinds get the odd images is drawn anew each time.
    seeds = tf.unstack(tf.random.split(seed, len(CORRUPTIONS) + 1))
    length = tf.cast(tf.shape(pixels)[0], tf.float32) * share / len(CORRUPTIONS)
    offset = tf.random.stateless_uniform([], seeds[-1])
    bounds = [tf.cast(tf.floor(offset + length * number), tf.int32) for number in range(len(CORRUPTIONS) + 1)]
    parts = [
        corruption(pixels[bounds[number] : bounds[number + 1]], seeds[number])
        for number, corruption in enumerate(CORRUPTIONS)
    ]
    return tf.concat([pixels[: bounds[0]], *parts, pixels[bounds[-1] :]], axis=0)


def _strayed(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Off-centre, too small, too large, turned, leaning."""
    return warp(pixels, seed, FAR)


def _noise(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Gaussian noise."""
    seeds = tf.unstack(tf.random.split(seed, 2))
    noise = tf.random.stateless_normal(tf.shape(pixels), seeds[0])
    return pixels + noise * uniform(seeds[1], pixels, 0.08, 0.4)


def _impulses(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Single pixels turned black or white."""
    seeds = tf.unstack(tf.random.split(seed, 4))
    hit = tf.random.stateless_uniform(tf.shape(pixels), seeds[0]) < uniform(seeds[1], pixels, 0.02, 0.3)
    value = tf.round(tf.random.stateless_uniform(tf.shape(pixels), seeds[2])) * uniform(seeds[3], pixels, 0.4, 1.0)
    return tf.where(hit, value, pixels)


def _defocus(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Several small blurs on end, and some of the contrast restored."""
    strong = smooth(smooth(smooth(pixels)))
    stronger = smooth(smooth(strong))
    blurred = strong + uniform(seed, pixels, 0.0, 1.0) * (stronger - strong)
    return tf.minimum(1.0, blurred * uniform(seed + 1, pixels, 1.0, 1.8))


def _motion(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Mean along a short straight path in any direction."""
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


def _levels(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """A lifted background, little contrast, or both; sometimes driven into saturation."""
    seeds = tf.unstack(tf.random.split(seed, 2))
    low = uniform(seeds[0], pixels, 0.0, 0.7)
    return tf.minimum(1.0, low + pixels * uniform(seeds[1], pixels, 0.15, 1.0))


def _fog(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """A cloud laid over the image."""
    seeds = tf.unstack(tf.random.split(seed, 2))
    cloud, density = _cloud(pixels, seeds[0]), uniform(seeds[1], pixels, 0.2, 0.7)
    return pixels * (1 - 0.6 * density) + cloud * density


def _blots(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Splashes of ink, or of water that takes ink off."""
    seeds = tf.unstack(tf.random.split(seed, 4))
    blot = tf.sigmoid(30 * (_cloud(pixels, seeds[0], 10) - uniform(seeds[1], pixels, 0.72, 0.85)))
    adds = uniform(seeds[2], pixels, 0.0, 1.0) < 0.5
    shade = uniform(seeds[3], pixels, 0.4, 1.0)
    return tf.where(adds, tf.maximum(pixels, shade * blot), pixels * (1 - blot))


def _cloud(pixels: tf.Tensor, seed: tf.Tensor, size: int = 6) -> tf.Tensor:
    """Smooth random light, float32[N,28,28,1] from 0 to 1: random points interpolated, coarse ones over fine ones."""
    seeds, num_images = tf.unstack(tf.random.split(seed, 2)), tf.shape(pixels)[0]
    layers = [
        tf.image.resize(
            tf.random.stateless_uniform([num_images, points, points, 1], part), pixels.shape[1:3], method="bicubic"
        )
        for points, part in zip((size, 2 * size), seeds, strict=True)
    ]
    return tf.clip_by_value(0.7 * layers[0] + 0.3 * layers[1], 0.0, 1.0)


def _bands(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """A negative within a band, or outside of it; upright or level."""
    seeds = tf.unstack(tf.random.split(seed, 4))
    width = uniform(seeds[0], pixels, 3.0, 16.0)
    middle = uniform(seeds[1], pixels, 2.0, 26.0)
    level = uniform(seeds[2], pixels, 0.0, 1.0) < 0.5
    outside = uniform(seeds[3], pixels, 0.0, 1.0) < 0.5
    within = tf.abs(tf.where(level, _rows(pixels), _columns(pixels)) - middle) < width / 2
    return tf.where(tf.not_equal(within, outside), 1 - pixels, pixels)


def _lines(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """One to three thin straight strokes across the image, whole or broken, of ink or of background."""
    seeds = tf.unstack(tf.random.split(seed, 5))
    kinds = uniform(seeds[3], pixels, 0.0, 1.0)
    strokes = tf.maximum(
        _line(pixels, seeds[0]),
        tf.maximum(
            tf.where(kinds < 0.6, _line(pixels, seeds[1]), 0.0), tf.where(kinds < 0.3, _line(pixels, seeds[2]), 0.0)
        ),
    )
    drawn = tf.maximum(pixels, strokes * uniform(seeds[4], pixels, 0.4, 1.0))
    return tf.where(kinds < 0.85, drawn, pixels * (1 - strokes))


def _line(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    seeds = tf.unstack(tf.random.split(seed, 6))
    angle = uniform(seeds[0], pixels, 0.0, 3.1416)
    y, x = _rows(pixels) - uniform(seeds[1], pixels, 4.0, 24.0), _columns(pixels) - uniform(seeds[2], pixels, 4.0, 24.0)
    away, along = tf.abs(y * tf.cos(angle) - x * tf.sin(angle)), x * tf.cos(angle) + y * tf.sin(angle)
    ink = tf.clip_by_value(uniform(seeds[3], pixels, 0.9, 1.7) - away, 0.0, 1.0)
    period = uniform(seeds[4], pixels, 2.0, 7.0)
    broken = uniform(seeds[5], pixels, 0.0, 1.0) < 0.5
    return tf.where(tf.logical_and(broken, tf.math.floormod(along, period) > period / 2), 0.0, ink)


def _hidden(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """A rectangle of background, of ink or of grey over a part of the image."""
    seeds = tf.unstack(tf.random.split(seed, 5))
    down = tf.abs(_rows(pixels) - uniform(seeds[0], pixels, 4.0, 24.0)) < uniform(seeds[1], pixels, 1.5, 5.0)
    across = tf.abs(_columns(pixels) - uniform(seeds[2], pixels, 4.0, 24.0)) < uniform(seeds[3], pixels, 1.5, 5.0)
    shade = tf.maximum(0.0, uniform(seeds[4], pixels, -1.0, 1.0))
    return tf.where(tf.logical_and(down, across), shade, pixels)


def _outline(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Only the edges of strokes."""
    share = uniform(seed, pixels, 0.6, 1.0)
    grown = tf.where(uniform(seed + 1, pixels, 0.0, 1.0) < 0.5, dilate(pixels), pixels)
    return tf.minimum(1.0, tf.maximum(grown - erode(pixels), (1 - share) * pixels) * (0.7 + 0.6 * share))


def _coarse(pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Fewer pixels, as from a small picture: one size for all images of a step."""
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
    _strayed,
    _noise,
    _impulses,
    _defocus,
    _motion,
    _levels,
    _fog,
    _blots,
    _bands,
    _lines,
    _hidden,
    _outline,
    _coarse,
)

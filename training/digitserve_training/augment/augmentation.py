"""Random changes to training images, as TensorFlow operations on whole batches.

``fit.train`` calls ``augment`` inside its compiled training step. All random numbers come from stateless seeds, so a run
that is stopped and resumed sees the same images as a run without interruption.

    all images: warp        most images: stroke width ▶ blur ▶ contrast ▶ noise        a share of these: one corruption
"""

from digitserve_training._tensorflow import tf
from digitserve_training.augment.corrupt import corrupt
from digitserve_training.augment.pixels import dilate, erode, smooth, uniform
from digitserve_training.augment.warp import warp
from digitserve_training.model.networks import LARGEST_PIXEL
from digitserve_training.model.presets import Augmentation


def augment(images: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    """Change each image at random within ``bounds``; pixels from outside the image are background.

    Args:
        images: uint8[N,28,28,1] in random order: the first images are corrupted, the last ones are only warped.
        seed: int32[2]; the same seed gives the same images.
        bounds: upper limits of the changes.

    Returns:
        uint8[N,28,28,1].
    """
    seeds = tf.unstack(tf.random.split(seed, 2))
    warped = warp(tf.cast(images, tf.float32) / LARGEST_PIXEL, seeds[0], bounds)
    num_degraded = tf.cast(tf.math.ceil(tf.cast(tf.shape(images)[0], tf.float32) * (1 - bounds.clean)), tf.int32)
    pixels = tf.concat([_degrade(warped[:num_degraded], seeds[1], bounds), warped[num_degraded:]], axis=0)
    return tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 1.0) * LARGEST_PIXEL), tf.uint8)


def mix(images: tf.Tensor, seed: tf.Tensor, share: float, unmixed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Blend a share of the images, each with its neighbour in the batch and in a random proportion.

    This is mixup (Zhang et al. 2018) as Beyer et al. 2022 use it in distillation: it gives the teachers more different
    images to label.

    Args:
        images: uint8[N,28,28,1], in random order.
        seed: int32[2]; the same seed gives the same images.
        share: expected share of blended images, 0 to 1.
        unmixed: bool[N]: images that stay as they are. They are still blended into their neighbours.

    Returns:
        uint8[N,28,28,1], and bool[N]: which images are blended.
    """
    seeds = tf.unstack(tf.random.split(seed, 2))
    num_images = tf.shape(images)[:1]
    chosen = (tf.random.stateless_uniform(num_images, seeds[0]) < share) & ~unmixed
    own = tf.where(chosen, tf.random.stateless_uniform(num_images, seeds[1]), 1.0)[
        :, tf.newaxis, tf.newaxis, tf.newaxis
    ]
    pixels = tf.cast(images, tf.float32)
    return tf.cast(tf.round(own * pixels + (1 - own) * tf.roll(pixels, 1, axis=0)), tf.uint8), chosen


def _degrade(pixels: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    """Change everything except the geometry: stroke width, blur, contrast, noise, and one corruption for a share."""
    seeds = tf.unstack(tf.random.split(seed, 5))
    pixels = _stroke_width(pixels, seeds[0], bounds)
    pixels = _blur(pixels, seeds[1], bounds)
    pixels *= 1 - _for_half(seeds[2], pixels, bounds.contrast)
    pixels = _noise(pixels, seeds[3], bounds)
    return corrupt(tf.clip_by_value(pixels, 0.0, 1.0), seeds[4], bounds.corrupted)


def _stroke_width(pixels: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    """Make strokes thicker or thinner by blending in the 3x3 maximum or minimum."""
    share = uniform(seed, pixels, -bounds.thin, bounds.thicken)
    target = tf.where(share > 0, dilate(pixels), erode(pixels))
    return pixels + tf.abs(share) * (target - pixels)


def _blur(pixels: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    """Blend in the 3x3 binomial mean."""
    return pixels + _for_half(seed, pixels, bounds.blur) * (smooth(pixels) - pixels)


def _noise(pixels: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    seeds = tf.unstack(tf.random.split(seed, 2))
    deviation = _for_half(seeds[0], pixels, bounds.noise)
    return pixels + deviation * tf.random.stateless_normal(tf.shape(pixels), seeds[1])


def _for_half(seed: tf.Tensor, pixels: tf.Tensor, largest: float) -> tf.Tensor:
    """Draw one number per image, 0 for half of the images: float32[N,1,1,1].

    Unchanged images must be common. When nearly all training ink was pale, networks treated full black as dirt: they
    recognised 99 % of pale digits but only 97 % of clean ones.
    """
    return tf.nn.relu(uniform(seed, pixels, -largest, largest))

"""Random changes to training images, as TensorFlow operations on whole batches.

``train`` calls ``augment`` inside its compiled step. Everything is drawn from a stateless seed, so a run that was
stopped and resumed sees the same images as one that was not.

    every image: warp        most: stroke ▶ blur ▶ contrast ▶ noise        a share of these: one corruption each
"""

from digitserve_training._tensorflow import tf
from digitserve_training.augment.corrupt import corrupt
from digitserve_training.augment.pixels import dilate, erode, smooth, uniform
from digitserve_training.augment.warp import warp
from digitserve_training.model.networks import LARGEST_PIXEL
from digitserve_training.model.presets import Augmentation


def augment(images: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    """Change each image at random within ``bounds``; what comes in from beyond the border is background.

    Args:
        images: uint8[N,28,28,1], in random order: the first are corrupted, the last only bent.
        seed: int32[2]; the same seed gives the same images.
        bounds: how far each change may go.

    Returns:
        uint8[N,28,28,1].
    """
    seeds = tf.unstack(tf.random.split(seed, 2))
    bent = warp(tf.cast(images, tf.float32) / LARGEST_PIXEL, seeds[0], bounds)
    num_soiled = tf.cast(tf.math.ceil(tf.cast(tf.shape(images)[0], tf.float32) * (1 - bounds.clean)), tf.int32)
    pixels = tf.concat([_soil(bent[:num_soiled], seeds[1], bounds), bent[num_soiled:]], axis=0)
    return tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 1.0) * LARGEST_PIXEL), tf.uint8)


def mix(images: tf.Tensor, seed: tf.Tensor, share: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Blend a share of the images, each with its neighbour in the batch and in any proportion.

    Zhang et al. 2018, "mixup"; as Beyer et al. 2022 use it: only to ask teachers about more than there is.

    Args:
        images: uint8[N,28,28,1], in random order.
        seed: int32[2]; the same seed gives the same images.
        share: 0 to 1.

    Returns:
        uint8[N,28,28,1], and bool[N]: which are blended.
    """
    seeds = tf.unstack(tf.random.split(seed, 2))
    num_images = tf.shape(images)[:1]
    chosen = tf.random.stateless_uniform(num_images, seeds[0]) < share
    own = tf.where(chosen, tf.random.stateless_uniform(num_images, seeds[1]), 1.0)[
        :, tf.newaxis, tf.newaxis, tf.newaxis
    ]
    pixels = tf.cast(images, tf.float32)
    return tf.cast(tf.round(own * pixels + (1 - own) * tf.roll(pixels, 1, axis=0)), tf.uint8), chosen


def _soil(pixels: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    """Change what ink, paper and optics do to an image, but for its geometry."""
    seeds = tf.unstack(tf.random.split(seed, 5))
    pixels = _stroke(pixels, seeds[0], bounds)
    pixels = _blur(pixels, seeds[1], bounds)
    pixels *= 1 - _for_half(seeds[2], pixels, bounds.contrast)
    pixels = _noise(pixels, seeds[3], bounds)
    return corrupt(tf.clip_by_value(pixels, 0.0, 1.0), seeds[4], bounds.corrupted)


def _stroke(pixels: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
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
    """Draw one number an image, 0 for half of them: float32[N,1,1,1].

    Clean images must be common: where nearly all ink was pale, full black came to stand for dirt, and networks that
    read pale digits at 99 % read clean ones at 97 %.
    """
    return tf.nn.relu(uniform(seed, pixels, -largest, largest))

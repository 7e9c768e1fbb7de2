"""Random changes to training images, as TensorFlow operations on whole batches.

``train`` calls ``augment`` inside its compiled step. Everything is drawn from a stateless seed, so a run that was
stopped and resumed sees the same images as one that was not.
"""

from math import radians

from digitserve_training._tensorflow import tf
from digitserve_training.networks import LARGEST_PIXEL
from digitserve_training.presets import Augmentation


def augment(images: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    """Change each image at random within ``bounds``; what comes in from beyond the border is background.

    Args:
        images: uint8[N,28,28,1].
        seed: int32[2]; the same seed gives the same images.
        bounds: how far each change may go.

    Returns:
        uint8[N,28,28,1].
    """
    seeds = tf.unstack(tf.random.split(seed, 5))
    pixels = tf.cast(images, tf.float32) / LARGEST_PIXEL
    pixels = _affine(pixels, seeds[0], bounds)
    pixels = _stroke(pixels, seeds[1], bounds)
    pixels = _blur(pixels, seeds[2], bounds)
    pixels *= 1 - _uniform(seeds[3], tf.shape(pixels)[0], 0.0, bounds.contrast)
    pixels = _noise(pixels, seeds[4], bounds)
    return tf.cast(tf.round(tf.clip_by_value(pixels, 0.0, 1.0) * LARGEST_PIXEL), tf.uint8)


def _uniform(seed: tf.Tensor, num_images: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Draw one number an image: float32[N,1,1,1]."""
    return tf.random.stateless_uniform([num_images, 1, 1, 1], seed, low, high)


def _affine(pixels: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    """Turn, scale, shear and move about the centre, with bilinear interpolation."""
    height, width = pixels.shape[1], pixels.shape[2]
    transforms = _inverse_transforms(seed, tf.shape(pixels)[0], bounds, (height - 1) / 2)
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=pixels,
        transforms=transforms,
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )


def _inverse_transforms(seed: tf.Tensor, num_images: tf.Tensor, bounds: Augmentation, centre: float) -> tf.Tensor:
    """Draw the maps from output to input pixels that the operation takes: float32[N,8], rows of a 3x3 matrix."""
    draws = tf.unstack(tf.random.stateless_uniform([6, num_images], seed, -1.0, 1.0))
    angle = draws[0] * radians(bounds.rotation_deg)
    across, down = 1 / (1 + draws[1] * bounds.scale), 1 / (1 + draws[2] * bounds.scale)
    slant = draws[3] * bounds.shear
    cos, sin = tf.cos(angle), tf.sin(angle)
    # Scaling and shear after rotation: [[across, slant], [0, down]] @ [[cos, -sin], [sin, cos]].
    a, b = across * cos + slant * sin, slant * cos - across * sin
    c, d = down * sin, down * cos
    x = centre - a * centre - b * centre + draws[4] * bounds.shift_px
    y = centre - c * centre - d * centre + draws[5] * bounds.shift_px
    zero = tf.zeros_like(a)
    return tf.stack([a, b, x, c, d, y, zero, zero], axis=1)


def _stroke(pixels: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    """Make strokes thicker or thinner by blending in the 3x3 maximum or minimum."""
    share = _uniform(seed, tf.shape(pixels)[0], -bounds.thin, bounds.thicken)
    target = tf.where(share > 0, _dilate(pixels), 1 - _dilate(1 - pixels))
    return pixels + tf.abs(share) * (target - pixels)


def _dilate(pixels: tf.Tensor) -> tf.Tensor:
    """Take the 3x3 maximum, beyond the border 0; ten times as fast here as pooling one channel."""
    above, here, below = _neighbours(pixels, axis=1)
    left, here, right = _neighbours(tf.maximum(tf.maximum(above, here), below), axis=2)
    return tf.maximum(tf.maximum(left, here), right)


def _blur(pixels: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    """Blend in the 3x3 binomial mean (1 2 1 along each axis)."""
    share = _uniform(seed, tf.shape(pixels)[0], 0.0, bounds.blur)
    above, here, below = _neighbours(pixels, axis=1)
    left, here, right = _neighbours((above + 2 * here + below) / 4, axis=2)
    return pixels + share * ((left + 2 * here + right) / 4 - pixels)


def _neighbours(pixels: tf.Tensor, axis: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return each pixel's predecessor along axis 1 or 2, the pixel, and its successor; beyond the border is 0."""
    if axis == 1:
        padded = tf.pad(pixels, [[0, 0], [1, 1], [0, 0], [0, 0]])
        return padded[:, :-2], pixels, padded[:, 2:]
    padded = tf.pad(pixels, [[0, 0], [0, 0], [1, 1], [0, 0]])
    return padded[:, :, :-2], pixels, padded[:, :, 2:]


def _noise(pixels: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    seeds = tf.unstack(tf.random.split(seed, 2))
    deviation = _uniform(seeds[0], tf.shape(pixels)[0], 0.0, bounds.noise)
    return pixels + deviation * tf.random.stateless_normal(tf.shape(pixels), seeds[1])

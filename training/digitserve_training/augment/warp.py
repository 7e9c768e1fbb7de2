"""Random affine and elastic deformation of images, as TensorFlow operations on whole batches.

Called by ``augmentation`` and ``corrupt``.
"""

from math import radians

from digitserve_training._tensorflow import tf
from digitserve_training.model.presets import Augmentation

FIELD_SIZE = 5
"""Points along each side of the coarse grid of random displacements; interpolation gives the elastic field."""


def warp(pixels: tf.Tensor, seed: tf.Tensor, bounds: Augmentation) -> tf.Tensor:
    """Rotate, scale, shear, shift and deform elastically in one interpolation; outside the image is background.

    Args:
        pixels: float32[N,height,width,1], 0 = background.
        seed: int32[2].
        bounds: upper limits; only the geometric ones are used.

    Returns:
        float32[N,height,width,1].
    """
    seeds = tf.unstack(tf.random.split(seed, 2))
    height, width = pixels.shape[1], pixels.shape[2]
    matrices, offsets = _inverse_affine(seeds[0], tf.shape(pixels)[0], bounds)
    y, x = tf.meshgrid(tf.range(height, dtype=tf.float32), tf.range(width, dtype=tf.float32), indexing="ij")
    centre = tf.constant([(height - 1) / 2, (width - 1) / 2])
    points = tf.reshape(tf.stack([y, x], axis=-1) - centre, [1, height * width, 2])
    sources = tf.linalg.matmul(points, matrices) + offsets + centre
    sources = tf.reshape(sources, [-1, height, width, 2]) + _elastic_field(seeds[1], pixels, bounds.elastic_px)
    return _sample(pixels, sources)


def _inverse_affine(seed: tf.Tensor, num_images: tf.Tensor, bounds: Augmentation) -> tuple[tf.Tensor, tf.Tensor]:
    """Draw the maps from output to input points about the centre, for row vectors: float32[N,2,2] and offsets [N,1,2]."""
    draws = tf.unstack(tf.random.stateless_uniform([7, num_images], seed, -1.0, 1.0))
    angle = draws[0] * radians(bounds.rotation_deg)
    zoom = 1 + draws[6] * bounds.zoom
    across, down = 1 / zoom / (1 + draws[1] * bounds.scale), 1 / zoom / (1 + draws[2] * bounds.scale)
    slant = draws[3] * bounds.shear
    cos, sin = tf.cos(angle), tf.sin(angle)
    # Scaling and shear after rotation, for columns (x, y): [[across, slant], [0, down]] @ [[cos, -sin], [sin, cos]].
    x_of = tf.stack([slant * cos - across * sin, across * cos + slant * sin], axis=1)
    y_of = tf.stack([down * cos, down * sin], axis=1)
    return tf.stack([y_of, x_of], axis=2), bounds.shift_px * tf.stack([draws[5], draws[4]], axis=1)[:, tf.newaxis]


def _elastic_field(seed: tf.Tensor, pixels: tf.Tensor, max_px: float) -> tf.Tensor:
    """Draw a smooth displacement for each pixel: float32[N,height,width,2].

    Source: Simard, Steinkraus, Platt 2003, "Best Practices for Convolutional Neural Networks Applied to Visual Document
    Analysis"; this code interpolates a coarse grid where they apply a Gaussian filter.
    """
    shape = [tf.shape(pixels)[0], FIELD_SIZE, FIELD_SIZE, 2]
    grid = tf.random.stateless_uniform(shape, seed, -max_px, max_px)
    return tf.image.resize(grid, pixels.shape[1:3], method="bilinear")


def _sample(pixels: tf.Tensor, points: tf.Tensor) -> tf.Tensor:
    """Sample each image at ``points`` (float32[N,height,width,2], row and column) with bilinear interpolation."""
    height, width = pixels.shape[1], pixels.shape[2]
    # Points outside the image are clipped to this border of background.
    padded = tf.reshape(tf.pad(pixels, [[0, 0], [1, 1], [1, 1], [0, 0]]), [-1])
    limits = tf.constant([height, width], tf.float32)
    points = tf.clip_by_value(points, -1.0, limits) + 1
    corner = tf.minimum(tf.floor(points), limits)
    y_share, x_share = tf.unstack(points - corner, axis=-1)
    y, x = tf.unstack(tf.cast(corner, tf.int32), axis=-1)
    row = width + 2
    start = tf.range(tf.shape(pixels)[0])[:, tf.newaxis, tf.newaxis] * (row * (height + 2))
    upper_left = start + y * row + x
    upper = tf.gather(padded, upper_left) * (1 - x_share) + tf.gather(padded, upper_left + 1) * x_share
    lower = tf.gather(padded, upper_left + row) * (1 - x_share) + tf.gather(padded, upper_left + row + 1) * x_share
    return (upper * (1 - y_share) + lower * y_share)[..., tf.newaxis]

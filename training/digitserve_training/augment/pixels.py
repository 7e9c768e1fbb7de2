"""Image operations that ``augmentation`` and ``corrupt`` share; batches are float32[N,height,width,1], 0 to 1."""

from digitserve_training._tensorflow import tf


def uniform(seed: tf.Tensor, pixels: tf.Tensor, low: float, high: float) -> tf.Tensor:
    """Draw one number per image: float32[N,1,1,1]."""
    return tf.random.stateless_uniform([tf.shape(pixels)[0], 1, 1, 1], seed, low, high)


def dilate(pixels: tf.Tensor) -> tf.Tensor:
    """Return the 3x3 maximum, with 0 outside the image. Ten times as fast as max pooling with one channel."""
    above, here, below = _neighbours(pixels, axis=1)
    left, here, right = _neighbours(tf.maximum(tf.maximum(above, here), below), axis=2)
    return tf.maximum(tf.maximum(left, here), right)


def erode(pixels: tf.Tensor) -> tf.Tensor:
    """Return the 3x3 minimum, with 1 outside the image."""
    return 1 - dilate(1 - pixels)


def smooth(pixels: tf.Tensor) -> tf.Tensor:
    """Return the 3x3 binomial mean (weights 1 2 1 along each axis), with 0 outside the image."""
    above, here, below = _neighbours(pixels, axis=1)
    left, here, right = _neighbours((above + 2 * here + below) / 4, axis=2)
    return (left + 2 * here + right) / 4


def _neighbours(pixels: tf.Tensor, axis: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the previous pixel along axis 1 or 2, the pixel itself and the next one; 0 outside the image."""
    if axis == 1:
        padded = tf.pad(pixels, [[0, 0], [1, 1], [0, 0], [0, 0]])
        return padded[:, :-2], pixels, padded[:, 2:]
    padded = tf.pad(pixels, [[0, 0], [0, 0], [1, 1], [0, 0]])
    return padded[:, :, :-2], pixels, padded[:, :, 2:]

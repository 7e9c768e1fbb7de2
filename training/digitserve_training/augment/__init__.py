"""Random changes to training images, as TensorFlow operations on batches."""

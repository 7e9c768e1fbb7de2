"""The one place that imports TensorFlow and Keras, after saying how they are to behave.

Both read these variables at import and never again.
"""

import os

# Only errors: at its usual level TensorFlow greets every process with notes on the machine's instruction set.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# The networks are exported through tf.function, whatever backend keras.json asks for.
os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import tensorflow as tf

__all__ = ["keras", "tf", "use_threads"]


def use_threads(number: int) -> None:
    """Compute with so many threads; only before the first operation.

    TensorFlow otherwise takes every processor of the host, and knows no quota.
    """
    tf.config.threading.set_intra_op_parallelism_threads(number)
    tf.config.threading.set_inter_op_parallelism_threads(1)

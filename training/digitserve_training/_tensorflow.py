"""Imports TensorFlow and Keras for the whole package, configured and without their start-up messages.

Every module that needs either imports it from here, because both read their environment variables only at import.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Only errors. The default level logs the instruction set of the machine in every process.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Networks are exported through tf.function, so keras.json must not choose another backend.
os.environ["KERAS_BACKEND"] = "tensorflow"

STARTUP_MESSAGES = (
    "All log messages before absl::InitializeLog() is called",
    "oneDNN custom operations are on",
    "This TensorFlow binary is optimized to use available CPU instructions",
    "To enable the following instructions",
    "Unable to register cu",  # cuFFT, cuDNN and cuBLAS "factory: Attempting to register factory for plugin ..."
    "computation placer already registered",
    "Could not find cuda drivers on your machine",
    "TF-TRT Warning: Could not find TensorRT",
)
"""Parts of the lines that TensorFlow logs at import however it is configured: they bypass TF_CPP_MIN_LOG_LEVEL."""

_FILTER = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
for line in sys.stdin.buffer:
    if not any(message.encode() in line for message in sys.argv[1:]):
        os.write(2, line)
"""


@contextmanager
def _without_startup_messages() -> Iterator[None]:
    """Remove ``STARTUP_MESSAGES`` from standard error, which TensorFlow writes to by file descriptor.

    All other lines pass. The filter is a separate process, so that the last message of a crash passes too, for
    example that the processor lacks AVX.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    command = [sys.executable, "-I", "-S", "-c", _FILTER, *STARTUP_MESSAGES]
    try:
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            assert process.stdin is not None
            os.dup2(process.stdin.fileno(), 2)
            try:
                yield
            finally:
                sys.stderr.flush()
                os.dup2(stderr, 2)
    finally:
        os.close(stderr)


with _without_startup_messages():
    import keras
    import tensorflow as tf

__all__ = ["keras", "tf", "use_threads"]


def use_threads(num_threads: int) -> None:
    """Limit the threads that TensorFlow computes with; call it before the first operation.

    By default TensorFlow uses every processor of the host and ignores CPU quotas.
    """
    tf.config.threading.set_intra_op_parallelism_threads(num_threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)

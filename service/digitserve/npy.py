"""Reads ``.npy`` files that are not trusted, from memory. ``inference.bundle`` and ``vision.image_files`` call it, on any thread.

``numpy.load`` allocates as much memory as the header declares, before it reads the values.
"""

import io
import math
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAGIC = b"\x93NUMPY"

MAX_AXIS = 1 << 31
"""Longest axis, also of an array without values."""

_MAX_QUOTED = 64
"""Most characters of a type or shape in an error."""

_READ_HEADER = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
"""By version of the format. Version 3 is for arrays with named fields."""


def view_array(content: bytes) -> NDArray[Any]:
    """Return the array in a file as a view of its bytes, which is read-only. Pickled objects are never loaded.

    Args:
        content: of the file; bytes after the array are ignored.

    Raises:
        ValueError: it is no ``.npy`` file with numbers or texts, or does not have as many bytes as its header declares.
    """
    stream = io.BytesIO(content)
    try:
        with warnings.catch_warnings(action="ignore"):
            shape, columns_first, dtype = _READ_HEADER[np.lib.format.read_magic(stream)](stream)
    except Exception as error:  # a boundary: numpy's parser of damaged headers raises exceptions of many types
        raise ValueError(f"damaged header: {type(error).__name__}") from None
    start = stream.tell()
    num_values, available_bytes = math.prod(shape), len(content) - start
    declared = f"its header declares {str(dtype)[:_MAX_QUOTED]}{str(list(shape))[:_MAX_QUOTED]}"
    if dtype.hasobject or not dtype.itemsize or any(not 0 <= axis <= MAX_AXIS for axis in shape):
        raise ValueError(f"{declared}; expected numbers")
    if num_values * dtype.itemsize > available_bytes:
        raise ValueError(f"{declared}, more than the {available_bytes} bytes of its values")
    values: NDArray[Any] = np.frombuffer(content, dtype, num_values, start)
    return values.reshape(shape, order="F" if columns_first else "C")

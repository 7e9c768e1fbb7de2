"""Reader for the idx format of MNIST and similar datasets: a header with type and shape, then the values.

    0  0  type  number of axes | length of each axis: uint32, big-endian | values, row-major

Files are often compressed with gzip. Called by ``datasets``. Memory is allocated for the values that the file contains,
not for the number of values in the header. Does not import TensorFlow.
Source: LeCun, Cortes, Burges, "The MNIST database", section on file formats.
"""

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from digitserve_training.errors import DataError

UINT8 = 0x08
"""Type code of uint8, the only type used for labels and grey images; the format has five more types."""

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 20


def read(path: Path, num_axes: int) -> NDArray[np.uint8]:
    """Read an idx file of uint8 values.

    Args:
        path: the file, plain or compressed with gzip; its name does not matter.
        num_axes: expected number of axes: 3 for images, 1 for labels.

    Returns:
        uint8 with the shape in the header; no axis has length 0.

    Raises:
        DataError: the file is missing, damaged or in another format; the message states what was found.
    """
    try:
        with _open(path) as file:
            shape = _read_shape(file, path, num_axes)
            values = _read_values(file, path, shape)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read as an idx file, it may be truncated: {error}; download it again"
        ) from None
    return np.frombuffer(values, np.uint8).reshape(shape)


def _open(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as file:
        compressed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    return gzip.open(path) if compressed else path.open("rb")


def _read_shape(file: io.BufferedIOBase, path: Path, num_axes: int) -> tuple[int, ...]:
    magic, expected = file.read(4), bytes((0, 0, UINT8, num_axes))
    if magic != expected:
        raise DataError(
            f"{path} starts with the bytes {magic.hex(' ') or '(none)'}; expected {expected.hex(' ')}, "
            f"an idx file of uint8 values with {num_axes} axes: give the folder of the original files"
        )
    lengths = file.read(4 * num_axes)
    if len(lengths) != 4 * num_axes:
        raise DataError(
            f"{path} ends within its header of {4 + 4 * num_axes} bytes: it is truncated, download it again"
        )
    shape = tuple(np.frombuffer(lengths, ">u4").tolist())
    if 0 in shape:
        raise DataError(f"{path} has the shape {list(shape)}; expected at least one value: download it again")
    return shape


def _read_values(file: io.BufferedIOBase, path: Path, shape: tuple[int, ...]) -> bytearray:
    """Read to the end of the file, at most one byte more than the header announces.

    Reads in chunks because ``file.read(n)`` allocates n bytes before it reads.
    """
    values, num_expected = bytearray(), math.prod(shape)
    while chunk := file.read(min(_CHUNK_BYTES, num_expected + 1 - len(values))):
        values += chunk
    if len(values) != num_expected:
        found = f"more than {num_expected}" if len(values) > num_expected else f"{len(values)}"
        raise DataError(
            f"{path} contains {found} bytes after its header; expected {num_expected} for the shape {list(shape)} in "
            "the header: download it again"
        )
    return values

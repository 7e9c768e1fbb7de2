"""The idx format of MNIST and its kin: a header that says type and shape, then the values, often packed by gzip.

    0  0  type  number of axes | length of each axis: uint32, big-endian | values, row-major

Read for ``datasets``. A header is believed only as far as the file goes: no memory is taken for values that never come.
Source: LeCun, Cortes, Burges, "The MNIST database", on file formats. Needs no TensorFlow.
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
"""The only type that labels and grey images come in; the format has five more."""

_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK_BYTES = 1 << 20


def read(path: Path, num_axes: int) -> NDArray[np.uint8]:
    """Read a file of bytes.

    Args:
        path: the file, plain or packed by gzip, whatever its name says.
        num_axes: 3 for images, 1 for labels.

    Returns:
        uint8 of the shape that the header gives, no axis of which is 0.

    Raises:
        DataError: the file is missing, damaged, or holds something else; the message says what.
    """
    try:
        with _open(path) as file:
            shape = _read_shape(file, path, num_axes)
            values = _read_values(file, path, shape)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read as idx, it may be cut short: {error}; fetch it again") from None
    return np.frombuffer(values, np.uint8).reshape(shape)


def _open(path: Path) -> io.BufferedIOBase:
    with path.open("rb") as file:
        packed = file.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    return gzip.open(path) if packed else path.open("rb")


def _read_shape(file: io.BufferedIOBase, path: Path, num_axes: int) -> tuple[int, ...]:
    magic, expected = file.read(4), bytes((0, 0, UINT8, num_axes))
    if magic != expected:
        raise DataError(
            f"{path} begins with {magic.hex(' ') or 'nothing'}; expected {expected.hex(' ')}, "
            f"as an idx file of bytes with {num_axes} axes does: name the folder of the original files"
        )
    lengths = file.read(4 * num_axes)
    if len(lengths) != 4 * num_axes:
        raise DataError(f"{path} ends within its header of {4 + 4 * num_axes} bytes: it is cut short, fetch it again")
    shape = tuple(np.frombuffer(lengths, ">u4").tolist())
    if 0 in shape:
        raise DataError(f"{path} has the shape {list(shape)}; expected at least one value: fetch it again")
    return shape


def _read_values(file: io.BufferedIOBase, path: Path, shape: tuple[int, ...]) -> bytearray:
    """Read to the end, at most one byte beyond what the header says; piece by piece, for ``read`` allocates first."""
    values, num_expected = bytearray(), math.prod(shape)
    while chunk := file.read(min(_CHUNK_BYTES, num_expected + 1 - len(values))):
        values += chunk
    if len(values) != num_expected:
        held = "more" if len(values) > num_expected else f"{len(values)}"
        raise DataError(
            f"{path} holds {held} bytes after its header, whose shape {list(shape)} says {num_expected}: fetch it again"
        )
    return values

"""Functions of CUDA's runtime library that onnxruntime's Python interface lacks: device count and page-locked memory.

Experimental: not yet run on a GPU. ``providers`` calls it on the thread that opens a session, with ``--device cuda`` or
``auto`` only. It loads the library that onnxruntime's CUDA provider is linked to, so both share one CUDA context.
"""

import ctypes
import functools
import weakref

import numpy as np
from numpy.typing import NDArray


class CudaError(Exception):
    """The library is missing or a call failed; the text is that of the loader or of the library."""


def num_devices(major: str) -> int:
    """Return the number of devices that this process may use (CUDA_VISIBLE_DEVICES limits them).

    Args:
        major: major version of the CUDA release that onnxruntime was built for, such as ``13``.

    Raises:
        CudaError: the library, the driver or a device is missing.
    """
    library = _load(major)
    count = ctypes.c_int()
    _check(library, library.cudaGetDeviceCount(ctypes.byref(count)))
    return count.value


def page_locked(num_bytes: int, major: str) -> NDArray[np.uint8]:
    """Allocate memory that the device can copy from and to directly. It is freed with the last view of it.

    Args:
        num_bytes: at least 1.
        major: as in ``num_devices``.

    Returns:
        uint8[num_bytes], all zero.

    Raises:
        CudaError: the allocation failed.
    """
    library = _load(major)
    address = ctypes.c_void_p()
    _check(library, library.cudaHostAlloc(ctypes.byref(address), ctypes.c_size_t(num_bytes), ctypes.c_uint(0)))
    memory = (ctypes.c_uint8 * num_bytes).from_address(address.value or 0)
    # Not at exit: a view that still exists then would refer to freed memory, and the driver frees everything anyway.
    weakref.finalize(memory, library.cudaFreeHost, address).atexit = False
    array = np.frombuffer(memoryview(memory), np.uint8)
    array[:] = 0
    return array


@functools.cache
def _load(major: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(f"libcudart.so.{major}")
    except OSError as error:
        raise CudaError(str(error)) from None
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return library


def _check(library: ctypes.CDLL, code: int) -> None:
    if code:
        raise CudaError(f"{library.cudaGetErrorString(code).decode()} (CUDA error {code})")

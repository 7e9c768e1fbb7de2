"""CUDA's runtime library, as far as onnxruntime's Python interface does not reach: devices and page-locked memory.

``providers`` calls it on the thread that opens a session, and only where ``--device cuda`` or ``auto`` was asked for. It
talks to the library that onnxruntime's own provider is linked to, in the same process, so both use one CUDA context.
"""

import ctypes
import functools
import weakref

import numpy as np
from numpy.typing import NDArray


class CudaError(Exception):
    """The library is missing or says no; the text is the loader's or the library's own."""


def num_devices(major: str) -> int:
    """Count the devices that this process may use, after CUDA_VISIBLE_DEVICES.

    Args:
        major: of the CUDA version that onnxruntime was built for, such as ``13``.

    Raises:
        CudaError: there is no library, no driver, or no device.
    """
    library = _load(major)
    count = ctypes.c_int()
    _check(library, library.cudaGetDeviceCount(ctypes.byref(count)))
    return count.value


def page_locked(num_bytes: int, major: str) -> NDArray[np.uint8]:
    """Allocate memory that the device copies from and to directly; it is given back when the last view of it goes.

    Args:
        num_bytes: at least 1.
        major: as in ``num_devices``.

    Returns:
        uint8[num_bytes], all zero.

    Raises:
        CudaError: the library could not give it.
    """
    library = _load(major)
    address = ctypes.c_void_p()
    _check(library, library.cudaHostAlloc(ctypes.byref(address), ctypes.c_size_t(num_bytes), ctypes.c_uint(0)))
    memory = (ctypes.c_uint8 * num_bytes).from_address(address.value or 0)
    # Not at exit: whoever still holds a view then would hold freed memory, and the driver cleans up by itself.
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

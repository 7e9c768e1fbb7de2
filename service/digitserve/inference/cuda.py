"""The number of CUDA devices, which onnxruntime's Python interface does not report.

``providers`` calls it on the thread that opens a session, with ``--device cuda`` or ``auto`` only.
"""

import ctypes

_NO_DEVICE = 100
"""cudaErrorNoDevice."""


class CudaError(Exception):
    """The library is missing or a call failed; the text is that of the loader or of the library."""


def num_devices(major: str) -> int:
    """Return the number of devices that this process may use (CUDA_VISIBLE_DEVICES limits them).

    Args:
        major: major version of the CUDA release that onnxruntime was built for, such as ``13``.

    Raises:
        CudaError: the library or the driver is missing.
    """
    library = _load(major)
    count = ctypes.c_int()
    code = library.cudaGetDeviceCount(ctypes.byref(count))
    # Without a device, the library reports an error, not a count of zero.
    if code == _NO_DEVICE:
        return 0
    if code:
        raise CudaError(f"{library.cudaGetErrorString(code).decode()} (CUDA error {code})")
    return count.value


def _load(major: str) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(f"libcudart.so.{major}")
    except OSError as error:
        raise CudaError(str(error)) from None
    library.cudaGetErrorString.restype = ctypes.c_char_p
    return library

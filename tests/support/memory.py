"""Memory of this process: what is allocated, from the C library, because Python omits extension modules; and a limit."""

import contextlib
import ctypes
import resource
from collections.abc import Iterator
from pathlib import Path

_FIELDS = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"


class _Mallinfo2(ctypes.Structure):
    """``struct mallinfo2`` of glibc 2.33 and later."""

    _fields_ = [(name, ctypes.c_size_t) for name in _FIELDS.split()]


def allocated_bytes() -> int:
    """Return the bytes that all threads have allocated and not freed."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _Mallinfo2
    info = library.mallinfo2()
    return int(info.uordblks + info.hblkhd)


@contextlib.contextmanager
def limited_to(num_bytes: int) -> Iterator[None]:
    """Make allocations of this process fail beyond some new bytes, also those that are never touched."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    private_pages = int(Path("/proc/self/statm").read_text().split()[5])
    resource.setrlimit(resource.RLIMIT_DATA, (private_pages * resource.getpagesize() + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))

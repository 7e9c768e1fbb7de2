"""Limit of the memory that a network may allocate while it is verified and warmed up.

``session`` uses it in a worker. A graph of a few hundred bytes can declare outputs of many gigabytes. Without a limit the
kernel would kill the worker, or another process of the machine, and the log would have no reason.
"""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

MAX_NEW_BYTES = 1 << 30
"""Most bytes that loading, verifying and warming up may add; the shipped model adds 60 MB with batches of 1,024 images."""

THREAD_BYTES = 1 << 24
"""Added for each thread of onnxruntime: its stack, 8 MiB by default, and as much for its allocations."""


@contextlib.contextmanager
def limited_memory(num_threads: int) -> Iterator[None]:
    """Make allocations of the whole process fail beyond ``MAX_NEW_BYTES``, until the end of the ``with`` statement.

    Args:
        num_threads: threads that onnxruntime may start.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = _private_bytes() + MAX_NEW_BYTES + num_threads * THREAD_BYTES
    if soft != resource.RLIM_INFINITY:
        limit = min(limit, soft)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _private_bytes() -> int:
    """Return the size of this process's private writable memory, which is what RLIMIT_DATA limits, with its stack."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()

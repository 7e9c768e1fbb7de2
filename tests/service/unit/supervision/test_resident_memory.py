"""Resident memory of processes, for ``/metrics``."""

import mmap
import os
import subprocess
import sys

from digitserve.supervision.resident_memory import resident_bytes


def test_memory_that_is_used_is_counted() -> None:
    """Touched memory is counted, once for each process that is given."""
    size = 64 << 20
    before = resident_bytes([os.getpid()])
    with mmap.mmap(-1, size) as memory:
        memory.write(b"1" * size)
        assert resident_bytes([os.getpid()]) > before + size // 2
    assert resident_bytes([os.getpid(), os.getpid()]) > before


def test_ended_processes_use_no_memory() -> None:
    """A process that ended before it was reaped, or after, counts as 0 and does not fail the scrape."""
    with subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE) as process:
        process.stdout.read()  # type: ignore[union-attr]
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert resident_bytes([process.pid]) == 0
    assert resident_bytes([process.pid]) == 0

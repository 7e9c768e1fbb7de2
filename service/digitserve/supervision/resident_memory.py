"""Memory that processes of the service use, read when Prometheus requests ``/metrics``; used by ``supervisor``."""

import os
from collections.abc import Iterable
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes(pids: Iterable[int]) -> int:
    """Return the resident memory of processes together; pages that they share count for each, ended processes as 0.

    Source: proc(5), /proc/PID/statm, second field.
    """
    total = 0
    for pid in pids:
        # A worker may end at any time.
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            continue
    return total

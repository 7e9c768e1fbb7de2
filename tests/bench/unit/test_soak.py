"""The soak test finds what a million requests leave behind."""

from dataclasses import replace

import pytest

from benchmarks.servers import WorkerState
from benchmarks.soak import Allocated, Findings

STATE = WorkerState(100_000_000, 9, 3)
FIRST = Allocated(200_000, 24_000_000)
CLEAN = Findings(
    started=1_000_000,
    by_code={"OK": 700_000, "Canceled": 300_000},
    warm=STATE,
    loaded=replace(STATE, memory_bytes=104_000_000, num_descriptors=90),
    idle=STATE,
    settled=STATE,
    allocated=(FIRST, Allocated(200_400, 24_060_000)),
)


def test_a_worker_that_settles_has_no_faults() -> None:
    """Growth of resident memory by a few per cent, and open connections under load, are not reported as a leak."""
    assert not CLEAN.faults()


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"allocated": (FIRST, Allocated(204_000, 24_000_000))}, "4000 allocations remain"),
        ({"allocated": (FIRST, Allocated(200_000, 24_900_000))}, "900000 allocated bytes remain"),
        ({"loaded": replace(STATE, memory_bytes=106_000_000)}, "memory grew by 6.0%"),
        ({"settled": replace(STATE, num_descriptors=10)}, "num_descriptors: 9 before the load and 10 after it"),
        ({"settled": replace(STATE, num_threads=4)}, "num_threads: 3 before"),
        ({"started": 1_000_001}, "1000001 requests were started and 1000000 counted as handled"),
    ],
)
def test_what_remains_is_a_fault(changes: dict[str, object], fault: str) -> None:
    """One object per 225 requests, one byte per request, one descriptor, one thread, or one lost request."""
    (found,) = replace(CLEAN, **changes).faults()  # type: ignore[arg-type] # of each field
    assert found.startswith(fault)

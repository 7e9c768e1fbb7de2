"""Latencies, counted in logarithmic buckets: small, mergeable by addition, and right within half a percent.

Filled by ``load`` in each process, added up by ``fleet``; plain objects, one thread each.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

Buckets = NDArray[np.int64]

LOWEST_S = 1e-6
"""Everything shorter lands in the first bucket: no answer over a socket is that fast."""

GROWTH = 1.01
"""Each bucket's upper bound over its lower one."""

NUM_BUCKETS = 2100
"""From 1 us to about 1 200 s; longer waits land in the last bucket."""

RELATIVE_ERROR = math.sqrt(GROWTH) - 1
"""Largest error of a percentile between the bounds: buckets answer with their geometric middle."""


class Histogram:
    """Counts of latencies by bucket, with the exact largest.

    Attributes:
        counts: int64[NUM_BUCKETS].
        max_s: the largest latency, in seconds; 0 when there is none.
    """

    def __init__(self) -> None:
        self.counts: Buckets = np.zeros(NUM_BUCKETS, np.int64)
        self.max_s = 0.0

    @property
    def num(self) -> int:
        """How many latencies were counted."""
        return int(self.counts.sum())

    def record(self, latencies_s: Sequence[float]) -> None:
        """Count latencies, in seconds."""
        if not latencies_s:
            return
        latencies = np.maximum(np.asarray(latencies_s, np.float64), LOWEST_S)
        buckets = np.minimum(np.log(latencies / LOWEST_S) / math.log(GROWTH), NUM_BUCKETS - 1).astype(np.int64)
        self.counts += np.bincount(buckets, minlength=NUM_BUCKETS)
        self.max_s = max(self.max_s, float(max(latencies_s)))

    def add(self, other: Self) -> None:
        """Count what another histogram has counted."""
        self.counts += other.counts
        self.max_s = max(self.max_s, other.max_s)

    def percentile_s(self, share: float) -> float:
        """Return the smallest latency, in seconds, that at least a share of all did not exceed.

        Args:
            share: 0 to 1; 0.99 for p99.

        Returns:
            Right within ``RELATIVE_ERROR``; NaN when nothing was counted.
        """
        if not self.num:
            return math.nan
        cumulated = self.counts.cumsum()
        bucket = int(cumulated.searchsorted(max(1, math.ceil(share * cumulated[-1]))))
        # No percentile is above the largest latency, which is known exactly.
        return min(float(LOWEST_S * GROWTH ** (bucket + 0.5)), self.max_s)

    def num_within(self, limit_s: float) -> int:
        """Return how many latencies were at most a limit, right within ``RELATIVE_ERROR`` of the limit."""
        middles = LOWEST_S * GROWTH ** (np.arange(NUM_BUCKETS) + 0.5)
        return int(self.counts[np.minimum(middles, self.max_s) <= limit_s].sum())

    def to_json(self) -> dict[str, object]:
        """Return the buckets that hold something, for JSON."""
        filled = np.flatnonzero(self.counts)
        return {"max_s": self.max_s, "counts": {str(bucket): int(self.counts[bucket]) for bucket in filled}}

    @classmethod
    def from_json(cls, stored: Mapping[str, object]) -> Self:
        """Read what ``to_json`` returned."""
        histogram = cls()
        histogram.max_s = float(stored["max_s"])  # type: ignore[arg-type]
        for bucket, count in stored["counts"].items():  # type: ignore[attr-defined]
            histogram.counts[int(bucket)] = count
        return histogram

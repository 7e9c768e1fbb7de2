"""Latency histogram with logarithmic buckets: small, mergeable by addition, exact within half a percent.

Filled by ``counts.Recorder`` in each process, merged by ``coordinator``; plain objects, one thread each.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

Buckets = NDArray[np.int64]

MIN_S = 1e-6
"""Shorter latencies go into the first bucket; no answer over a socket is that fast."""

GROWTH = 1.01
"""Ratio of a bucket's upper bound to its lower bound."""

NUM_BUCKETS = 2100
"""From 1 us to about 1 200 s; longer latencies go into the last bucket."""

RELATIVE_ERROR = math.sqrt(GROWTH) - 1
"""Largest relative error of a percentile: each bucket is represented by its geometric mean."""


class Histogram:
    """Number of latencies per bucket, and the exact maximum.

    Attributes:
        counts: int64[NUM_BUCKETS].
        max_s: the largest latency in seconds; 0 without any.
    """

    def __init__(self) -> None:
        self.counts: Buckets = np.zeros(NUM_BUCKETS, np.int64)
        self.max_s = 0.0

    @property
    def num(self) -> int:
        """Number of latencies recorded."""
        return int(self.counts.sum())

    def record(self, latencies_s: Sequence[float]) -> None:
        """Record latencies, in seconds."""
        if not latencies_s:
            return
        latencies = np.maximum(np.asarray(latencies_s, np.float64), MIN_S)
        buckets = np.minimum(np.log(latencies / MIN_S) / math.log(GROWTH), NUM_BUCKETS - 1).astype(np.int64)
        self.counts += np.bincount(buckets, minlength=NUM_BUCKETS)
        self.max_s = max(self.max_s, float(max(latencies_s)))

    def add(self, other: Self) -> None:
        """Add the counts of another histogram."""
        self.counts += other.counts
        self.max_s = max(self.max_s, other.max_s)

    def percentile_s(self, fraction: float) -> float:
        """Return the smallest latency in seconds that at least this fraction of all latencies did not exceed.

        Args:
            fraction: 0 to 1; 0.99 for p99.

        Returns:
            Exact within ``RELATIVE_ERROR``; NaN when nothing was recorded.
        """
        if not self.num:
            return math.nan
        cumulative = self.counts.cumsum()
        bucket = int(cumulative.searchsorted(max(1, math.ceil(fraction * cumulative[-1]))))
        # No percentile exceeds the maximum, which is known exactly.
        return min(float(MIN_S * GROWTH ** (bucket + 0.5)), self.max_s)

    def num_within(self, limit_s: float) -> int:
        """Return how many latencies were at most ``limit_s``; the limit is exact within ``RELATIVE_ERROR``."""
        means = MIN_S * GROWTH ** (np.arange(NUM_BUCKETS) + 0.5)
        return int(self.counts[np.minimum(means, self.max_s) <= limit_s].sum())

    def to_json(self) -> dict[str, object]:
        """Return the non-empty buckets as a JSON object."""
        non_empty = np.flatnonzero(self.counts)
        return {"max_s": self.max_s, "counts": {str(bucket): int(self.counts[bucket]) for bucket in non_empty}}

    @classmethod
    def from_json(cls, stored: Mapping[str, object]) -> Self:
        """Read what ``to_json`` returned."""
        histogram = cls()
        histogram.max_s = float(stored["max_s"])  # type: ignore[arg-type]
        for bucket, count in stored["counts"].items():  # type: ignore[attr-defined]
            histogram.counts[int(bucket)] = count
        return histogram

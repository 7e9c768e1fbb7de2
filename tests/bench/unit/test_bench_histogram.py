"""Latencies in buckets: percentiles as exact as is promised, and merging that loses nothing."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.bench.histogram import LOWEST_S, NUM_BUCKETS, RELATIVE_ERROR, Histogram

latencies = st.lists(st.floats(LOWEST_S, 1000.0), min_size=1, max_size=300)


def histogram_of(values: list[float]) -> Histogram:
    histogram = Histogram()
    histogram.record(values)
    return histogram


@given(values=latencies, share=st.floats(0, 1))
def test_a_percentile_is_within_the_relative_error_of_the_exact_one(values: list[float], share: float) -> None:
    """The smallest value that at least this share does not exceed, right within half a percent."""
    exact = sorted(values)[max(1, math.ceil(share * len(values))) - 1]
    assert histogram_of(values).percentile_s(share) == pytest.approx(exact, rel=RELATIVE_ERROR * 1.001)


@given(first=latencies, second=latencies)
def test_merging_is_addition(first: list[float], second: list[float]) -> None:
    """Two processes' histograms added are the histogram of all latencies, also after a journey as JSON."""
    merged = Histogram.from_json(json.loads(json.dumps(histogram_of(first).to_json())))
    merged.add(histogram_of(second))
    together = histogram_of(first + second)
    assert np.array_equal(merged.counts, together.counts)
    assert merged.max_s == together.max_s == max(first + second)
    assert merged.num == len(first) + len(second)


@given(values=latencies, limit=st.floats(LOWEST_S, 1000.0))
def test_how_many_were_within_a_limit(values: list[float], limit: float) -> None:
    """The count lies between those for a limit one bucket lower and one bucket higher."""
    num = histogram_of(values).num_within(limit)
    assert sum(value <= limit / 1.0101 for value in values) <= num <= sum(value <= limit * 1.0101 for value in values)


def test_nothing_counted_has_no_percentile() -> None:
    """An empty histogram claims no latency."""
    assert math.isnan(Histogram().percentile_s(0.5))
    assert Histogram().num_within(1.0) == 0


def test_extremes_land_in_the_outer_buckets() -> None:
    """Nothing is lost at the ends, and the largest latency is known exactly."""
    histogram = histogram_of([0.0, 1e-9, 1e6])
    assert (histogram.counts[0], histogram.counts[NUM_BUCKETS - 1], histogram.max_s) == (2, 1, 1e6)

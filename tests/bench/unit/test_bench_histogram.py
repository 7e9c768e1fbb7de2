"""Latency histogram: percentiles within the documented error, and merging without loss."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.bench.histogram import MIN_S, NUM_BUCKETS, RELATIVE_ERROR, Histogram

latencies = st.lists(st.floats(MIN_S, 1000.0), min_size=1, max_size=300)


def histogram_of(values: list[float]) -> Histogram:
    histogram = Histogram()
    histogram.record(values)
    return histogram


@given(values=latencies, fraction=st.floats(0, 1))
def test_a_percentile_is_within_the_relative_error_of_the_exact_one(values: list[float], fraction: float) -> None:
    """A percentile is the smallest value that at least this fraction does not exceed, exact within half a percent."""
    exact = sorted(values)[max(1, math.ceil(fraction * len(values))) - 1]
    assert histogram_of(values).percentile_s(fraction) == pytest.approx(exact, rel=RELATIVE_ERROR * 1.001)


@given(first=latencies, second=latencies)
def test_merging_is_addition(first: list[float], second: list[float]) -> None:
    """The sum of two histograms is the histogram of all latencies, also after a round trip through JSON."""
    merged = Histogram.from_json(json.loads(json.dumps(histogram_of(first).to_json())))
    merged.add(histogram_of(second))
    together = histogram_of(first + second)
    assert np.array_equal(merged.counts, together.counts)
    assert merged.max_s == together.max_s == max(first + second)
    assert merged.num == len(first) + len(second)


@given(values=latencies, limit=st.floats(MIN_S, 1000.0))
def test_num_within_a_limit(values: list[float], limit: float) -> None:
    """The count is between the exact counts for a limit one bucket lower and one bucket higher."""
    num = histogram_of(values).num_within(limit)
    assert sum(value <= limit / 1.0101 for value in values) <= num <= sum(value <= limit * 1.0101 for value in values)


def test_an_empty_histogram_has_no_percentile() -> None:
    """The percentile of an empty histogram is NaN."""
    assert math.isnan(Histogram().percentile_s(0.5))
    assert Histogram().num_within(1.0) == 0


def test_extreme_latencies_go_into_the_outer_buckets() -> None:
    """No latency is lost below or above the range, and the maximum is exact."""
    histogram = histogram_of([0.0, 1e-9, 1e6])
    assert (histogram.counts[0], histogram.counts[NUM_BUCKETS - 1], histogram.max_s) == (2, 1, 1e6)

"""Search for the highest rate at which a service meets a latency limit. Pure, so tests can simulate any service."""

import math
from collections.abc import Generator

TOLERANCE = 0.03
"""The search ends when the highest rate that met the limit and the lowest that did not differ by at most this ratio."""

MIN_RATE = 1.0
MAX_RATE = 1e7


def search(first_rate: float) -> Generator[float, bool, float | None]:
    """Search for the highest rate that meets the limit: doubling or halving, then bisection.

    Yields rates in requests/s to measure; receives whether each met the limit.

    Args:
        first_rate: the first rate to measure.

    Returns:
        The highest rate that met the limit; None when even the lowest did not.
    """
    met = missed = None
    rate = first_rate
    while met is None or missed is None:
        if (yield rate):
            met, rate = rate, rate * 2
            if met >= MAX_RATE:
                return met
        else:
            missed, rate = rate, rate / 2
            if missed <= MIN_RATE:
                return None
    while missed / met > 1 + TOLERANCE:
        rate = math.sqrt(missed * met)
        if (yield rate):
            met = rate
        else:
            missed = rate
    return met

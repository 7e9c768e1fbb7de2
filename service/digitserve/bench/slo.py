"""The search for the highest rate that a service bears: pure, so that a test can give it any service."""

import math
from collections.abc import Generator

TOLERANCE = 0.03
"""The search ends when the highest rate that held and the lowest that did not are so near."""

LOWEST_RATE = 1.0
HIGHEST_RATE = 1e7


def search(first_rate: float) -> Generator[float, bool, float | None]:
    """Search for the highest rate that holds: doubling or halving, then bisection.

    Yields rates, in requests/s, to be measured; is sent whether each held.

    Args:
        first_rate: where to begin.

    Returns:
        The highest rate that held; None when even the lowest did not.
    """
    held = failed = None
    rate = first_rate
    while held is None or failed is None:
        if (yield rate):
            held, rate = rate, rate * 2
            if held >= HIGHEST_RATE:
                return held
        else:
            failed, rate = rate, rate / 2
            if failed <= LOWEST_RATE:
                return None
    while failed / held > 1 + TOLERANCE:
        rate = math.sqrt(failed * held)
        if (yield rate):
            held = rate
        else:
            failed = rate
    return held

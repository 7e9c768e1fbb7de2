"""Ratio of two durations that are measured in turn."""

from collections.abc import Callable
from itertools import chain, cycle, repeat

import pytest

from digitserve_training.tune import timing


def scripted(durations_s: list[float], calls: list[str], name: str) -> Callable[[], float]:
    """Return a function that returns the durations in turn, again and again, and notes its calls."""
    values = chain([100.0], cycle(durations_s))

    def duration_s() -> float:
        calls.append(name)
        return next(values)

    return duration_s


def test_outliers_do_not_change_the_ratio() -> None:
    """The slow first call and single slow batches of a busy machine change nothing; both are measured in turn."""
    calls: list[str] = []
    first = scripted([0.5, 0.5, 0.5, 0.5, 5.0], calls, "first")
    second = scripted([1.0, 1.0, 1.0, 7.0, 1.0, 1.0], calls, "second")

    assert timing.median_ratio(first, second, 30.0) == 0.5
    assert calls == ["first", "second"] * (len(calls) // 2)


@pytest.mark.parametrize(("batch_s", "rounds"), [(0.125, 16), (0.5, timing.MIN_ROUNDS)])
def test_a_measurement_ends(batch_s: float, rounds: int) -> None:
    """A measurement takes the given time, and a number of rounds at least, so a slow network is measured well too."""
    calls: list[str] = []
    durations = repeat(batch_s)

    def duration_s() -> float:
        calls.append("")
        return next(durations)

    timing.median_ratio(duration_s, duration_s, 4.0)

    # A first round is not measured.
    assert len(calls) == 2 * (rounds + 1)

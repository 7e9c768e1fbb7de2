"""The table of goodput under overload: bound, goal and floor."""

import pytest

from benchmarks.overload import FLOOR, SINGLE, Cell, table


def make_cell(multiple: float, num_ok: int, rejected_us: float = 4.0) -> Cell:
    """Make the result of two seconds at a capacity of 1,000 requests/s, S = 40 us."""
    report = {
        "seconds": 2.0, "cpu": 0.95, "p50_s": 0.01, "p99_s": 0.02, "outcomes": {"OK": num_ok, "DeadlineExceeded": 100},
        "after": {"OK": 90, "expired": 10},
    }  # fmt: skip
    return Cell("native", SINGLE, multiple, 50, 1000.0, 40.0, rejected_us, report, 90_000_000)


@pytest.mark.parametrize(("multiple", "bound"), [(1.0, 1.0), (2.0, 0.8 / 0.9), (5.0, 0.5 / 0.9), (10.0, FLOOR)])
def test_the_bound(multiple: float, bound: float) -> None:
    """What is left after rejecting the rest; the floor where rejections alone would take too much."""
    assert make_cell(multiple, 0).bound == pytest.approx(bound)


def test_goals() -> None:
    """Goodput counts as a share of the capacity. It must reach 90 % of the bound, and all of the floor."""
    assert make_cell(2.0, 1600).goodput == pytest.approx(0.8)
    assert make_cell(2.0, 1601).is_met and not make_cell(2.0, 1599).is_met
    assert make_cell(10.0, 401).is_met and not make_cell(10.0, 399).is_met


def test_a_row_states_the_outcomes_and_a_busy_load_generator() -> None:
    """Each row has the goodput, the bound, the recovery, and a warning if the load generator had no time to spare."""
    row = table([make_cell(2.0, 1600)]).splitlines()[-1]
    assert "| 80% | 89% | 90% | yes | 5% | 0% |" in row
    assert "| 90% | 90 MB | 95% (limit) |" in row

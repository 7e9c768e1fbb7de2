"""Comparison of two commits: the arithmetic of ratios, the order of runs, and when environments share packages."""

import pytest

from benchmarks import ratios
from benchmarks.installation import is_satisfied
from benchmarks.ratios import Spread


def round_of(this_rate: float, that_rate: float, load: str = "single") -> dict[str, float]:
    """Return the figures of a round: the rates, and equal values for the other metrics."""
    equal = {f"{side}/{load}/{metric}": 2.0 for side in ("this", "that") for metric in ("p50_s", "p99_s", "cpu_us")}
    return equal | {f"this/{load}/rate": this_rate, f"that/{load}/rate": that_rate}


def test_a_spread_has_median_minimum_and_maximum_of_the_ratios() -> None:
    """Each ratio is this/that within one round."""
    rounds = [round_of(110, 100), round_of(90, 100), round_of(104, 100)]

    assert ratios.spread(rounds, "single", "rate") == Spread(1.04, 0.9, 1.1)
    assert ratios.spread(rounds, "single", "p99_s") == Spread(1.0, 1.0, 1.0)


def test_a_drift_of_the_machine_does_not_change_the_ratio() -> None:
    """When the machine is four times slower in one round, on both sides, all ratios stay equal."""
    rounds = [round_of(200, 100), round_of(50, 25), round_of(200, 100)]

    assert ratios.spread(rounds, "single", "rate") == Spread(2.0, 2.0, 2.0)


def test_an_even_number_of_rounds_has_the_mean_of_the_middle_two_as_median() -> None:
    """Two of four ratios are below the median, two above."""
    rounds = [round_of(rate, 100) for rate in (80, 100, 110, 200)]

    assert ratios.spread(rounds, "single", "rate").median == pytest.approx(1.05)


def test_each_side_is_first_equally_often() -> None:
    """The order over four rounds is A B, B A, A B, B A."""
    assert [ratios.order(number)[0] for number in (1, 2, 3, 4)] == ["this", "that", "this", "that"]
    assert all(sorted(ratios.order(number)) == ["that", "this"] for number in (1, 2))


def test_the_table_has_a_row_per_load() -> None:
    """Each row has the ratios of requests/s, p50, p99 and CPU time, with their spread."""
    rounds = [round_of(110, 100) | round_of(50, 100, "idle"), round_of(90, 100) | round_of(100, 100, "idle")]

    lines = ratios.table(rounds, ["single", "idle"]).splitlines()

    assert lines[0] == "| load | requests/s | p50 | p99 | CPU per request |"
    unchanged = "1.00 (1.00 to 1.00)"
    assert lines[2:] == [
        f"| single | 1.00 (0.90 to 1.10) | {unchanged} | {unchanged} | {unchanged} |",
        f"| idle | 0.75 (0.50 to 1.00) | {unchanged} | {unchanged} | {unchanged} |",
    ]


LOCK = """\
numpy==2.2.1 \\
    --hash=sha256:00 \\
    --hash=sha256:01
    # via onnxruntime
click==8.5.1 ; sys_platform == 'linux' \\
    --hash=sha256:02
colorama==0.4.6 ; sys_platform == 'win32' \\
    --hash=sha256:03
"""


@pytest.mark.parametrize(
    ("installed", "satisfied"),
    [
        ({"numpy": "2.2.1", "click": "8.5.1", "pytest": "9.0"}, True),
        ({"numpy": "2.2.2", "click": "8.5.1"}, False),
        ({"numpy": "2.2.1"}, False),
    ],
    ids=["equal, and more packages", "another version", "a package is missing"],
)
def test_packages_are_shared_only_with_equal_versions(installed: dict[str, str], satisfied: bool) -> None:
    """Every package that the lock pins for this platform must be installed in exactly that version."""
    assert is_satisfied(LOCK, installed) is satisfied

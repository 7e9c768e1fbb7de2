"""What ``serve --tune`` weighs: the ways to part a CPU budget, and which trial is the best."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.supervision.autotune import GOOD_ENOUGH, Trial, best, proposal, table, ways

TRIALS = st.builds(
    Trial,
    workers=st.integers(1, 64),
    threads=st.integers(1, 64),
    max_batch_size=st.sampled_from((8, 64, 256)),
    images_per_s=st.floats(1, 1e6),
    batch_s=st.floats(1e-5, 10),
)


@given(st.integers(1, 256))
def test_every_way_uses_the_whole_budget(budget: int) -> None:
    """Workers times threads is the budget, from a worker for each CPU to one with all threads."""
    found = ways(budget)

    assert all(workers * threads == budget for workers, threads in found)
    assert found[0] == (budget, 1)
    assert found[-1] == (1, budget)


@given(st.lists(TRIALS, min_size=1))
def test_the_best_is_nearly_the_fastest_and_nothing_as_good_is_sooner(trials: list[Trial]) -> None:
    """The choice is within 3 % of the fastest, and whatever else is answers a batch no sooner."""
    chosen = best(trials)
    fastest = max(trial.images_per_s for trial in trials)

    assert chosen.images_per_s >= GOOD_ENOUGH * fastest
    assert all(trial.batch_s >= chosen.batch_s for trial in trials if trial.images_per_s >= GOOD_ENOUGH * fastest)


@pytest.mark.parametrize(("header", "lines"), [(True, 2), (False, 1)])
def test_figures_and_the_command_are_shown(header: bool, lines: int) -> None:
    """A trial is a line under its header, and the proposal is a command to be copied."""
    trial = Trial(2, 1, 64, 12_345.6, 0.00522)

    shown = table([trial], header=header).splitlines()

    assert len(shown) == lines
    assert shown[-1].split() == ["2", "1", "64", "12,346", "5.22"]
    assert proposal(trial) == "digitserve serve --workers 2 --max-batch-size 64"

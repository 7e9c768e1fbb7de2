"""Choices of ``serve --tune``: the layouts of a CPU budget, and the best trial."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.supervision.autotune import MIN_RATE_RATIO, Trial, best, layouts, proposal, table

TRIALS = st.builds(
    Trial,
    workers=st.integers(1, 64),
    threads=st.integers(1, 64),
    max_batch_size=st.sampled_from((8, 64, 256)),
    images_per_s=st.floats(1, 1e6),
    batch_s=st.floats(1e-5, 10),
)


@given(st.integers(1, 256))
def test_every_layout_uses_the_whole_budget(budget: int) -> None:
    """Workers times threads is the budget, from one worker per CPU to one worker with all threads."""
    found = layouts(budget)

    assert all(workers * threads == budget for workers, threads in found)
    assert found[0] == (budget, 1)
    assert found[-1] == (1, budget)


@given(st.lists(TRIALS, min_size=1))
def test_best_trial_is_about_the_fastest_with_the_shortest_batch(trials: list[Trial]) -> None:
    """The choice is within 3 % of the fastest trial, and no other trial within 3 % has a shorter batch."""
    chosen = best(trials)
    fastest = max(trial.images_per_s for trial in trials)

    assert chosen.images_per_s >= MIN_RATE_RATIO * fastest
    assert all(trial.batch_s >= chosen.batch_s for trial in trials if trial.images_per_s >= MIN_RATE_RATIO * fastest)


@pytest.mark.parametrize(("header", "lines"), [(True, 2), (False, 1)])
def test_table_and_proposal(header: bool, lines: int) -> None:
    """A trial is one line below the header, and the proposal is a command that can be copied."""
    trial = Trial(2, 1, 64, 12_345.6, 0.00522)

    shown = table([trial], header=header).splitlines()

    assert len(shown) == lines
    assert shown[-1].split() == ["2", "1", "64", "12,346", "5.22"]
    assert proposal(trial) == "digitserve serve --workers 2 --max-batch-size 64"

"""The targets of ``make fuzz`` without coverage guidance: on their seeds and on random bytes."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from digitserve.transport.native.connection import Connection
from digitserve.transport.native.limits import ReceiveBudget
from support.fuzz_targets import TARGETS

FINDS_A_FAULT = "connection", "budget"
"""Targets for which a test breaks the code."""


def run_seeds(name: str) -> None:
    for seed in TARGETS[name].seeds:
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_random_bytes_break_no_promise(name: str) -> None:
    """No input raises an exception, exceeds a limit, or leaves memory held at the end."""
    target = TARGETS[name]
    run_seeds(name)

    @given(st.binary(max_size=target.max_bytes))
    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    def run(choices: bytes) -> None:
        target.run(choices)

    run()


@pytest.mark.parametrize("name", FINDS_A_FAULT)
def test_targets_find_an_exception(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in the connection is detected, although the connection catches it."""
    monkeypatch.setattr(Connection, "_on_data", lambda *_: 1 // 0)
    with pytest.raises(AssertionError):
        run_seeds(name)


def test_targets_find_bytes_that_stay_in_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that is not returned to the budget is detected."""
    monkeypatch.setattr(ReceiveBudget, "give_back", lambda *_: None)
    with pytest.raises(AssertionError):
        run_seeds("budget")

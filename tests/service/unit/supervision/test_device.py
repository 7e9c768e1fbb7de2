"""The supervisor asks once where the network runs, and only when that was left open."""

import shutil
import sys

import pytest
from structlog.testing import capture_logs

from digitserve.settings import Settings
from digitserve.supervision import device


@pytest.mark.parametrize("named", ["cpu", "cuda"])
def test_a_device_that_was_named_is_not_looked_for(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started: there is no program to start."""
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert device.settle(Settings(device=named)) == named


def test_a_look_that_fails_comes_to_the_cpu_and_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA installation that takes the looking process down does not take the service down."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with capture_logs() as lines:
        assert device.settle(Settings(device="auto")) == "cpu"
    (line,) = lines
    assert (line["log_level"], line["exit_code"]) == ("error", 1)

"""Resolution of ``--device``: a check for CUDA runs only for ``auto``, and its failure means the CPU."""

import shutil
import sys

import pytest

from digitserve.settings import Settings
from digitserve.supervision import device
from support.log_lines import capture_logs


@pytest.mark.parametrize("named", ["cpu", "cuda"])
def test_a_named_device_is_not_checked(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No process is started: here it could not be."""
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    assert device.resolve(Settings(device=named)) == named


def test_a_failed_check_means_cpu_and_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CUDA installation that crashes the checking process does not stop the service."""
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with capture_logs() as lines:
        assert device.resolve(Settings(device="auto")) == "cpu"
    (line,) = lines
    assert (line["log_level"], line["exit_code"]) == ("error", 1)

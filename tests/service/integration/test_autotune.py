"""Child processes of ``serve --tune``: if one fails, the command reports it and ends all of them."""

import os
import signal
from pathlib import Path

import pytest

from digitserve.errors import RefusalToStart
from digitserve.settings import Settings
from digitserve.supervision import autotune
from support.bundles import write_echo_bundle


def ended(processes: autotune.SessionProcesses) -> list[bool]:
    return [child.process.returncode is not None for child in processes._children]


def test_processes_that_cannot_open_the_network_are_ended(tmp_path: Path) -> None:
    """Without a bundle the measurement refuses to start, and all child processes have ended."""
    processes = autotune.SessionProcesses(Settings(models=tmp_path), 2, 1)
    with pytest.raises(RefusalToStart, match="no version of model 'digits'"), processes:
        pass

    assert ended(processes) == [True, True]


@pytest.mark.parametrize(
    ("stop", "message"), [(signal.SIGSTOP, r"did not answer within 0\.2 s"), (signal.SIGKILL, "ended")]
)
def test_a_process_that_hangs_or_ends_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: signal.Signals, message: str
) -> None:
    """A process that stops answering or ends is an error with a message; the other processes are ended too."""
    write_echo_bundle(tmp_path)
    with autotune.SessionProcesses(Settings(models=tmp_path), 2, 1) as processes:
        first = processes._children[0].process
        os.kill(first.pid, stop)
        if stop is signal.SIGKILL:
            first.wait()
        monkeypatch.setattr(autotune, "ANSWER_TIMEOUT_S", 0.2)
        with pytest.raises(RefusalToStart, match=message):
            processes.measure(1)

    assert ended(processes) == [True, True]

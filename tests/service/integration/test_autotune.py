"""The processes of ``serve --tune``: whatever happens to one, the command says so and leaves none behind."""

import os
import signal
from pathlib import Path

import pytest

from digitserve.errors import StartupError
from digitserve.settings import Settings
from digitserve.supervision import autotune
from support.bundles import write_echo_bundle


def ended(team: autotune.Team) -> list[bool]:
    return [process.returncode is not None for process in team._processes]


def test_processes_that_cannot_open_the_network_are_not_left(tmp_path: Path) -> None:
    """Without a bundle the team refuses to start, and all of its processes have ended."""
    team = autotune.Team(Settings(models=tmp_path), 2, 1)
    with pytest.raises(StartupError), team:
        pass

    assert ended(team) == [True, True]


@pytest.mark.parametrize(
    ("how", "said"), [(signal.SIGSTOP, "hangs: it said nothing for 0.2 s"), (signal.SIGKILL, "ended")]
)
def test_a_process_that_hangs_or_ends_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals, said: str
) -> None:
    """A process that stops answering, or is gone, ends the measuring with a message; the others are ended too."""
    write_echo_bundle(tmp_path)
    with autotune.Team(Settings(models=tmp_path), 2, 1) as team:
        os.kill(team._processes[0].pid, how)
        if how is signal.SIGKILL:
            team._processes[0].wait()
        monkeypatch.setattr(autotune, "PATIENCE_S", 0.2)
        with pytest.raises(StartupError, match=said):
            team.measure(1)

    assert ended(team) == [True, True]

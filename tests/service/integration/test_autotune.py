"""Child processes of ``serve --tune``: if one fails, the command reports it and ends all of them."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from digitserve.errors import StartupError
from digitserve.inference.bundle import write_bundle
from digitserve.inference.bundle_files import BundleFiles
from digitserve.inference.sealed_bundle import SealedBundle
from digitserve.supervision import autotune
from support.bundles import echo_golden, echo_graph, manifest
from support.scripted_workers import echo_bundle


def ended(processes: autotune.SessionProcesses) -> list[bool]:
    return [child.process.returncode is not None for child in processes._children]


def test_processes_that_cannot_open_the_network_are_ended(tmp_path: Path) -> None:
    """If the network fails a check, the measurement refuses to start, and all child processes have ended."""
    golden = echo_golden()
    path = write_bundle(tmp_path, manifest(), echo_graph(), replace(golden, ood_score=golden.ood_score + 5))
    processes = autotune.SessionProcesses("cpu", SealedBundle(BundleFiles.read(path)), 2, 1)
    with pytest.raises(StartupError, match="check 'golden' failed"), processes:
        pass

    assert ended(processes) == [True, True]


@pytest.mark.parametrize(
    ("stop", "message"), [(signal.SIGSTOP, r"did not answer within 0\.2 s"), (signal.SIGKILL, "ended")]
)
def test_a_process_that_hangs_or_ends_is_reported(
    monkeypatch: pytest.MonkeyPatch, stop: signal.Signals, message: str
) -> None:
    """A process that stops answering or ends is an error with a message; the other processes are ended too."""
    with autotune.SessionProcesses("cpu", echo_bundle(), 2, 1) as processes:
        first = processes._children[0].process
        os.kill(first.pid, stop)
        if stop is signal.SIGKILL:
            first.wait()
        monkeypatch.setattr(autotune, "ANSWER_TIMEOUT_S", 0.2)
        with pytest.raises(StartupError, match=message):
            processes.measure(1)

    assert ended(processes) == [True, True]

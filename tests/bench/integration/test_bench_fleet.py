"""The fleet of the load generator with a process that hangs: a message, not a bare timeout, and no process left."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from digitserve.bench import fleet
from digitserve.bench.fleet import Fleet, LoadFailed
from digitserve.bench.plan import Plan
from support.bundles import write_echo_bundle
from support.serving import PATIENCE_S, run_worker


class Hanging(Fleet):
    """A fleet whose first process is stopped when a step begins."""

    step: str

    def hang(self, step: str) -> None:
        if step == self.step:
            os.kill(self._processes[0].pid, signal.SIGSTOP)
            fleet.PATIENCE_S = 0.1 - self._plan.timeout_s * (1 if step == "connect" else 2)

    async def _start(self, index: int) -> asyncio.subprocess.Process:
        process = await super()._start(index)
        self._processes.append(process)
        self.hang("connect")
        return process

    async def _measure(self) -> None:
        self.hang("measure")
        await super()._measure()


@pytest.mark.parametrize("step", ["connect", "measure"])
def test_a_process_that_hangs_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """Whether it hangs before it has connected or under load, the run ends with LoadFailed, and the process is ended."""
    monkeypatch.setattr(fleet, "PATIENCE_S", fleet.PATIENCE_S)
    write_echo_bundle(tmp_path)
    with run_worker(tmp_path) as worker:
        plan = Plan(worker.address, connections=1, duration_s=0.2, warm_up_s=0.0, timeout_s=PATIENCE_S)
        hanging = Hanging(plan, "http://127.0.0.1:1/metrics", lambda _measured, _left_s: None)
        hanging.step = step
        with pytest.raises(LoadFailed, match="hangs"):
            asyncio.run(hanging.run())

    assert [process.returncode for process in hanging._processes] == [-signal.SIGKILL]

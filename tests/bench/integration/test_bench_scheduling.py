"""Floors are comparable only if the kernel schedules them as it schedules the service."""

import os
import shutil
from pathlib import Path

import pytest

from benchmarks import runs
from benchmarks.installation import BenchError
from benchmarks.servers import Server

CORES = ",".join(map(str, sorted(os.sched_getaffinity(0))))

pytestmark = pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed; Debian: util-linux")


class Sleeper(Server):
    """A process that only sleeps."""

    name = "sleeper"

    def command(self) -> list[str]:
        """Return the command that starts it."""
        return ["sleep", "60"]

    def is_ready(self) -> bool:
        """Return whether it is the program, no longer ``taskset``, whose cores it has then."""
        return Path(f"/proc/{self.pid}/comm").read_text() == "sleep\n"


def test_another_policy_or_niceness_is_reported() -> None:
    """Servers of equal policy, niceness and cores pass; another policy or another niceness is an error that names the server."""
    with Sleeper(Path(), CORES) as floor, Sleeper(Path(), CORES) as service:
        runs.check_same_scheduling(floor, service)

        os.sched_setscheduler(floor.pid, os.SCHED_BATCH, os.sched_param(0))
        with pytest.raises(BenchError, match="sleeper: got Scheduling"):
            runs.check_same_scheduling(floor, service)

        os.sched_setscheduler(service.pid, os.SCHED_BATCH, os.sched_param(0))
        runs.check_same_scheduling(floor, service)
        os.setpriority(os.PRIO_PROCESS, service.pid, os.getpriority(os.PRIO_PROCESS, service.pid) + 1)
        with pytest.raises(BenchError, match="sleeper: got Scheduling"):
            runs.check_same_scheduling(floor, service)

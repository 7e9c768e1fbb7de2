"""The coordinator of the load generator, with processes that print to their standard output, stop, hang or crash."""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from digitserve.bench import report
from digitserve.bench.coordinator import Coordinator, LoadFailed, Measurement
from digitserve.bench.plan import Plan
from support.serving import PATIENCE_S, RunningWorker

NO_METRICS = "http://127.0.0.1:1/metrics"


def run_plan(
    plan: Plan, on_progress: Callable[[Measurement, float], None] = lambda *_: None, patience_s: float = PATIENCE_S
) -> Measurement:
    return asyncio.run(Coordinator(plan, NO_METRICS, on_progress, patience_s).run())


def plan_for(worker: RunningWorker, duration_s: float = 0.2, processes: int = 1) -> Plan:
    return Plan(
        worker.address, connections=2, processes=processes, duration_s=duration_s, warm_up_s=0.0, timeout_s=PATIENCE_S
    )


@pytest.fixture
def run_at_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make every Python process that this test starts run some code first."""

    def install(code: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(code)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))

    return install


def has_ended(pid_file: Path) -> bool:
    # Without the file, the process was killed even before it wrote it.
    return not pid_file.exists() or not Path(f"/proc/{pid_file.read_text()}").exists()


def test_a_print_in_a_process_does_not_break_the_channel(
    worker: RunningWorker, run_at_start: Callable[[str], None], capfd: pytest.CaptureFixture[str]
) -> None:
    """What a ``sitecustomize`` prints goes to standard error; the counts of all processes arrive complete."""
    run_at_start('import atexit; print("a library greets"); atexit.register(print, "and leaves")')
    measurement = run_plan(plan_for(worker, processes=2))

    # A busy machine may send no request in this time.
    assert measurement.counts.codes == Counter(worker.handled()) == Counter(OK=measurement.counts.sent)
    assert len(measurement.busy) == 2
    out, errors = capfd.readouterr()
    assert "a library greets" in errors and "a library greets" not in out


def test_a_stop_right_after_the_start_is_obeyed(worker: RunningWorker) -> None:
    """A run that is stopped before its processes have started ends at once, not after its planned duration."""

    async def run() -> Measurement:
        coordinator = Coordinator(plan_for(worker, duration_s=10 * PATIENCE_S), NO_METRICS, lambda *_: None)
        coordinator.stop()
        return await asyncio.wait_for(coordinator.run(), PATIENCE_S)

    measurement = asyncio.run(run())

    assert measurement.stopped
    assert measurement.counts.codes.total() == measurement.counts.sent


def test_a_stop_while_connecting_is_obeyed() -> None:
    """Ctrl-C need not wait until a server that does not answer is given up."""
    plan = Plan("127.0.0.1:1", connections=2, processes=2, timeout_s=10 * PATIENCE_S)

    async def run() -> Measurement:
        coordinator = Coordinator(plan, NO_METRICS, lambda *_: None)
        running = asyncio.create_task(coordinator.run())
        await asyncio.sleep(0)
        coordinator.stop()
        return await asyncio.wait_for(running, PATIENCE_S)

    measurement = asyncio.run(run())

    assert measurement.stopped
    assert measurement.counts.sent == 0
    assert "not busy" in report.as_text(measurement)


def test_a_process_that_hangs_while_it_starts(
    worker: RunningWorker, run_at_start: Callable[[str], None], tmp_path: Path
) -> None:
    """A process that never connects ends the run with LoadFailed, and is killed."""
    pid_file = tmp_path / "pid"
    run_at_start(
        "import os, pathlib, signal\n"
        f"pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\n"
        "os.kill(os.getpid(), signal.SIGSTOP)"
    )
    plan = Plan(worker.address, connections=1, timeout_s=1.0)
    with pytest.raises(LoadFailed, match="hangs"):
        run_plan(plan, patience_s=0.0)

    assert has_ended(pid_file)


def test_a_process_that_hangs_under_load(
    worker: RunningWorker, run_at_start: Callable[[str], None], tmp_path: Path
) -> None:
    """A process that stops to report ends the run with LoadFailed, and is killed."""
    pid_file = tmp_path / "pid"
    run_at_start(f"import os, pathlib; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))")

    def hang(*_: object) -> None:
        os.kill(int(pid_file.read_text()), signal.SIGSTOP)

    with pytest.raises(LoadFailed, match="hangs"):
        run_plan(plan_for(worker, duration_s=10 * PATIENCE_S), hang, patience_s=1.0)

    assert has_ended(pid_file)


def test_a_process_that_crashes(worker: RunningWorker, run_at_start: Callable[[str], None], tmp_path: Path) -> None:
    """A process that is killed under load ends the run with LoadFailed, which has its exit code."""
    pid_file = tmp_path / "pid"
    run_at_start(f"import os, pathlib; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))")

    def crash(*_: object) -> None:
        os.kill(int(pid_file.read_text()), signal.SIGKILL)

    with pytest.raises(LoadFailed, match="exit code -9"):
        run_plan(plan_for(worker, duration_s=10 * PATIENCE_S), crash)

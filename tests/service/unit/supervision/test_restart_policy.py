"""Restart policy: backoff between restarts and detection of hung workers, with the time passed in."""

import pytest

from digitserve.supervision.restart_policy import FIRST_DELAY_S, MAX_DELAY_S, STABLE_S, HeartbeatMonitor, RestartBackoff


def stalled_at(monitor: HeartbeatMonitor, heartbeat: float, times: range | tuple[int, ...]) -> list[int]:
    """Return the times at which the monitor finds a worker stalled whose last heartbeat never changes."""
    found = []
    for now in times:
        monitor.observe(heartbeat, float(now))
        if monitor.is_stalled:
            found.append(now)
    return found


def test_first_restart_is_immediate() -> None:
    """A worker that crashed once is restarted without a delay."""
    assert RestartBackoff().next_delay_s(ready_s=5.0) == 0.0


def test_delays_double_up_to_the_maximum() -> None:
    """Delays double from the first one to the maximum and stay there."""
    backoff = RestartBackoff()
    delays = [backoff.next_delay_s(ready_s=0.0) for _ in range(10)]
    assert delays[:4] == [0.0, FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S]
    assert delays == sorted(delays)
    assert delays[-1] == MAX_DELAY_S


def test_a_million_failures_do_not_overflow_the_delay() -> None:
    """Any number of failures in a row gives the maximum delay."""
    assert RestartBackoff(failures=1_000_000).next_delay_s(ready_s=0.0) == MAX_DELAY_S


@pytest.mark.parametrize(("ready_s", "delay_s"), [(STABLE_S, 0.0), (STABLE_S - 1, 4 * FIRST_DELAY_S)])
def test_a_stable_worker_resets_the_backoff(ready_s: float, delay_s: float) -> None:
    """A crash after the stable time counts as the first one; an earlier crash continues the series."""
    backoff = RestartBackoff(failures=3)
    assert backoff.next_delay_s(ready_s) == delay_s


def test_regular_heartbeats_are_not_stalled() -> None:
    """A worker whose heartbeat is always younger than the limit is never stalled."""
    monitor = HeartbeatMonitor(stall_s=10.0, now=0.0)
    for now in range(1, 1000):
        monitor.observe(heartbeat=now - 9.0, now=float(now))
        assert not monitor.is_stalled


def test_is_stalled_has_no_side_effect() -> None:
    """Reading ``is_stalled`` repeatedly gives the same result."""
    monitor = HeartbeatMonitor(stall_s=10.0, now=0.0)
    assert stalled_at(monitor, 1.0, range(1, 13)) == [12]
    assert monitor.is_stalled
    assert monitor.is_stalled


def test_a_stopped_heartbeat_is_stalled_just_after_the_limit() -> None:
    """The age of the last heartbeat decides."""
    monitor = HeartbeatMonitor(stall_s=10.0, now=100.0)
    assert stalled_at(monitor, 101.0, range(102, 114)) == [112, 113]


def test_a_worker_without_any_heartbeat_is_stalled_after_the_limit() -> None:
    """Its heartbeat is 0: the age counts from the start of monitoring."""
    monitor = HeartbeatMonitor(stall_s=10.0, now=100.0)
    assert stalled_at(monitor, 0.0, range(101, 113)) == [111, 112]


def test_workers_are_not_stalled_after_the_supervisor_was_suspended() -> None:
    """After the whole container was paused every heartbeat looks old; workers get the full limit to continue."""
    monitor = HeartbeatMonitor(stall_s=10.0, now=0.0)
    assert stalled_at(monitor, 1.0, (1, 3600, 3604)) == []
    assert stalled_at(monitor, 3605.0, (3605,)) == []


def test_a_worker_that_does_not_continue_after_a_suspension_is_stalled() -> None:
    """A suspension extends the limit once: a heartbeat that does not resume is stalled after the limit."""
    monitor = HeartbeatMonitor(stall_s=10.0, now=0.0)
    assert stalled_at(monitor, 1.0, (1, *range(3600, 3613))) == [3611, 3612]

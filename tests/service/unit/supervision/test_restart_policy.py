"""The supervisor's rules on replacing workers, with the time passed in."""

import pytest

from digitserve.supervision.restart_policy import FIRST_DELAY_S, MAX_DELAY_S, STABLE_S, Backoff, Pulse


def test_the_first_crash_costs_no_delay() -> None:
    """A worker that crashed once is replaced at once."""
    assert Backoff().delay_s(served_s=5.0) == 0.0


def test_a_worker_that_keeps_crashing_is_started_ever_more_rarely() -> None:
    """Delays double from the first to the longest, and stay there."""
    backoff = Backoff()
    delays = [backoff.delay_s(served_s=0.0) for _ in range(10)]
    assert delays[:4] == [0.0, FIRST_DELAY_S, 2 * FIRST_DELAY_S, 4 * FIRST_DELAY_S]
    assert delays == sorted(delays)
    assert delays[-1] == MAX_DELAY_S


def test_a_worker_that_crashes_all_night_does_not_break_its_supervisor() -> None:
    """Thousands of failures in a row still give the longest delay."""
    assert Backoff(failures=1_000_000).delay_s(served_s=0.0) == MAX_DELAY_S


@pytest.mark.parametrize(("served_s", "delay_s"), [(STABLE_S, 0.0), (STABLE_S - 1, 4 * FIRST_DELAY_S)])
def test_a_worker_that_served_for_long_starts_the_counting_anew(served_s: float, delay_s: float) -> None:
    """A crash after a stable time is a first crash; one before it is the next of a series."""
    backoff = Backoff(failures=3)
    assert backoff.delay_s(served_s) == delay_s


def test_a_loop_that_turns_is_not_stalled() -> None:
    """Each turn within the limit keeps a worker alive for ever."""
    pulse = Pulse(stall_s=10.0, now=0.0)
    assert not any(pulse.is_stalled(heartbeat=now - 9.0, now=float(now)) for now in range(1, 1000))


def test_a_loop_that_stands_still_is_stalled_just_after_the_limit() -> None:
    """The age of the last turn decides."""
    pulse = Pulse(stall_s=10.0, now=100.0)
    judged = {now: pulse.is_stalled(heartbeat=101.0, now=float(now)) for now in range(102, 114)}
    assert [now for now, stalled in judged.items() if stalled] == [112, 113]


def test_a_worker_that_never_turned_is_stalled_after_the_limit() -> None:
    """Its heartbeat is 0: the age counts from when it was first watched."""
    pulse = Pulse(stall_s=10.0, now=100.0)
    judged = {now: pulse.is_stalled(heartbeat=0.0, now=float(now)) for now in range(101, 113)}
    assert [now for now, stalled in judged.items() if stalled] == [111, 112]


def test_a_supervisor_that_slept_does_not_kill_its_workers() -> None:
    """After a pause of the whole container every heartbeat looks old; the workers get time to turn again."""
    pulse = Pulse(stall_s=10.0, now=0.0)
    assert not pulse.is_stalled(heartbeat=1.0, now=1.0)
    assert not pulse.is_stalled(heartbeat=1.0, now=3600.0)
    assert not pulse.is_stalled(heartbeat=1.0, now=3604.0)
    assert not pulse.is_stalled(heartbeat=3605.0, now=3605.0)


def test_a_worker_that_did_not_survive_the_sleep_is_found() -> None:
    """The pause is forgiven once: a loop that does not turn after it is stalled after the limit."""
    pulse = Pulse(stall_s=10.0, now=0.0)
    judged = {now: pulse.is_stalled(heartbeat=1.0, now=float(now)) for now in (1, *range(3600, 3613))}
    assert [now for now, stalled in judged.items() if stalled] == [3611, 3612]

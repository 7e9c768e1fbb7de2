"""Restart policy: when a worker is killed and when it is started again.

``slots`` calls it on the supervisor's event loop. The objects here read no clock: the time is passed in.

starting ──ready──▶ ready ──▶ ended ──after the backoff──▶ starting
    └─ too slow ─▶ kill        └─ heartbeat stopped ─▶ kill
"""

from dataclasses import dataclass

START_LIMIT_S = 60.0
"""A worker that is not ready after this time is hung: to verify the bundle and warm up takes about a second."""

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
STABLE_S = 60.0
"""A worker that was ready for at least this long resets the backoff when it ends."""


@dataclass
class RestartBackoff:
    """Exponential backoff between starts of a worker: the first restart is immediate, then the delay doubles.

    Attributes:
        failures: ends of a worker since the last stable one.
    """

    failures: int = 0

    def next_delay_s(self, ready_s: float) -> float:
        """Record that a worker ended, and return the seconds to wait before the next one starts.

        Args:
            ready_s: seconds for which the worker was ready; 0 if it never was.
        """
        if ready_s >= STABLE_S:
            self.failures = 0
        self.failures += 1
        return 0.0 if self.failures == 1 else min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self.failures - 2, 30))


class HeartbeatMonitor:
    """Finds a worker whose event loop makes no progress.

    The supervisor itself may have been suspended (a paused container, a laptop that slept). Then every heartbeat looks
    old, so the age of a heartbeat is counted at the earliest from the supervisor's last gap.
    """

    def __init__(self, stall_s: float, now: float) -> None:
        """Start to monitor.

        Args:
            stall_s: seconds without a heartbeat after which a worker is stalled.
            now: monotonic time in seconds.
        """
        self._stall_s = stall_s
        self._running_since = now
        self._observed_at = now
        self._heartbeat = now

    def observe(self, heartbeat: float, now: float) -> None:
        """Record the worker's last heartbeat. Call it several times within ``stall_s``.

        Args:
            heartbeat: monotonic time of the heartbeat in seconds; 0 if there was none yet.
            now: monotonic time in seconds.
        """
        if now - self._observed_at > self._stall_s / 2:
            self._running_since = now
        self._observed_at = now
        self._heartbeat = heartbeat

    @property
    def is_stalled(self) -> bool:
        """Whether the last heartbeat was too old when it was observed."""
        return self._observed_at - max(self._heartbeat, self._running_since) > self._stall_s

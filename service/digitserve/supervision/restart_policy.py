"""When a worker is replaced: the supervisor's rules as plain objects, driven with the time passed in.

starting ──ready──▶ ready ──▶ gone ──after a delay──▶ starting
    └─ too slow ─▶ kill        └─ heart stands still ─▶ kill
"""

from dataclasses import dataclass

START_LIMIT_S = 60.0
"""A worker that is not ready by then hangs: verifying and warming take about a second."""

FIRST_DELAY_S = 0.5
MAX_DELAY_S = 30.0
STABLE_S = 60.0
"""A worker that served so long before it crashed starts the counting anew."""


@dataclass
class Backoff:
    """How long to wait before a worker is started again: at once, then doubling."""

    failures: int = 0

    def delay_s(self, served_s: float) -> float:
        """Take note of a worker's end and return the seconds to wait.

        Args:
            served_s: seconds that it had been ready, 0 when it never was.
        """
        if served_s >= STABLE_S:
            self.failures = 0
        self.failures += 1
        return 0.0 if self.failures == 1 else min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self.failures - 2, 30))


class Pulse:
    """Whether a worker's loop still turns.

    The supervisor may have stood still itself (a paused container, a laptop that slept), and then every heartbeat looks
    old; so the age is counted from the last time that the supervisor was seen to run without a gap.
    """

    def __init__(self, stall_s: float, now: float) -> None:
        """Start watching.

        Args:
            stall_s: seconds without a turn after which a worker counts as stalled.
            now: monotonic time in seconds.
        """
        self._stall_s = stall_s
        self._awake_since = now
        self._looked = now

    def is_stalled(self, heartbeat: float, now: float) -> bool:
        """Judge by the loop's last turn; to be called several times within ``stall_s``."""
        if now - self._looked > self._stall_s / 2:
            self._awake_since = now
        self._looked = now
        return now - max(heartbeat, self._awake_since) > self._stall_s

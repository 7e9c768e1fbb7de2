"""Running estimates of time per unit of work: how a batcher knows whether a deadline can be met. Owned by ``batcher``."""

_SMOOTHING = 0.1
"""Weight of the newest batch in the running estimates: they cover about ten batches."""

_MAX_SLOWDOWN = 8
"""Largest slowdown against the estimate that one batch contributes: a process that was stopped for a minute is not slow."""


class Estimate:
    """A running mean of seconds per unit of work.

    Attributes:
        seconds: the estimate; starts above 0.
    """

    def __init__(self, initial_s: float) -> None:
        self.seconds = self._initial_s = initial_s

    def update(self, elapsed_s: float, units: int) -> None:
        """Include one measurement."""
        if units:
            self.seconds += _SMOOTHING * (min(elapsed_s / units, _MAX_SLOWDOWN * self.seconds) - self.seconds)

    def decay(self) -> None:
        """Decrease towards the first estimate.

        When an estimate is so high that every request is rejected, no batch runs that could correct it.
        """
        self.seconds += _SMOOTHING * min(0.0, self._initial_s - self.seconds)

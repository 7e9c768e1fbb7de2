"""Intended send times of an open loop: arithmetic only, time passed in, one object per process.

Latency counts from the intended time, even if the request was sent later. So a slow answer that delays other requests
cannot hide their waiting time ("coordinated omission").
"""

import random
from collections import deque


class Schedule:
    """The intended send times of one process, and the backlog of requests that are due but not yet sent.

    Attributes:
        backlog: intended times in seconds of the monotonic clock, oldest first.
        next_s: intended time of the next request that is not yet due.
    """

    def __init__(
        self, rate: float, index: int, processes: int, start_s: float, *, poisson: bool = False, seed: int = 0
    ) -> None:
        """Plan the share of one process.

        Args:
            rate: requests/s over all processes.
            index: index of this process; evenly spaced times of all processes interleave.
            processes: number of processes that share the rate.
            start_s: when the first request of all is due.
            poisson: draw exponential gaps; the union over processes is a Poisson process with the whole rate.
            seed: random seed of these gaps; each process has its own random stream.
        """
        self.backlog: deque[float] = deque()
        self._gap_s = processes / rate
        self._origin_s = start_s + index / rate
        self._num_due = 0
        self._random = random.Random(f"{seed}/{index}") if poisson else None  # noqa: S311 - not for security; repeatable
        self.next_s = self._origin_s if self._random is None else start_s + self._random.expovariate(1 / self._gap_s)

    def advance(self, now_s: float) -> None:
        """Move all requests that are due by now into the backlog."""
        while self.next_s <= now_s:
            self.backlog.append(self.next_s)
            self._num_due += 1
            if self._random is None:
                # Multiplication instead of a running sum: rounding errors do not accumulate.
                self.next_s = self._origin_s + self._num_due * self._gap_s
            else:
                self.next_s += self._random.expovariate(1 / self._gap_s)

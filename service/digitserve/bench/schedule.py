"""When the requests of an open loop are to be sent: plain arithmetic, time passed in, one object a process.

Latency counts from the intended time, whatever kept the request from being sent then: a slow answer that holds up
others cannot hide their waiting ("coordinated omission").
"""

import random
from collections import deque


class Schedule:
    """The intended times of one process, and the line of those that are due and not sent.

    Attributes:
        line: intended times, in seconds of the monotonic clock, the oldest first.
        next_s: the intended time of the next request that is not yet due.
    """

    def __init__(
        self, rate: float, index: int, processes: int, begins_s: float, *, poisson: bool = False, seed: int = 0
    ) -> None:
        """Plan one process's share.

        Args:
            rate: requests a second, of all processes together.
            index: of this process; evenly spaced times of all processes interleave.
            processes: how many share the rate.
            begins_s: when the first request of all is due.
            poisson: gaps are exponential; the union over processes is a Poisson process of the whole rate.
            seed: of those gaps; each process has its own stream.
        """
        self.line: deque[float] = deque()
        self._gap_s = processes / rate
        self._origin_s = begins_s + index / rate
        self._num = 0
        self._chance = random.Random(f"{seed}/{index}") if poisson else None  # noqa: S311 - no secret, and it must repeat
        self.next_s = self._origin_s if self._chance is None else begins_s + self._chance.expovariate(1 / self._gap_s)

    def advance(self, now_s: float) -> None:
        """Put what is due by now into the line."""
        while self.next_s <= now_s:
            self.line.append(self.next_s)
            self._num += 1
            if self._chance is None:
                # Multiplied, not summed up: no rounding gathers.
                self.next_s = self._origin_s + self._num * self._gap_s
            else:
                self.next_s += self._chance.expovariate(1 / self._gap_s)

"""The loop of one process of the load generator: one thread, one epoll, many lanes.

Started by ``process``. In the closed loop a slot that comes free sends the next request at once; in the open loop it
takes the oldest of those that are due. Both are one way through the code: free slots meet requests.
"""

import math
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import version

from digitserve.bench import wire
from digitserve.bench.counts import Counts, Tally
from digitserve.bench.lanes import Context, Lane
from digitserve.bench.plan import PATHS, STREAM, Plan
from digitserve.bench.schedule import Schedule
from digitserve.bench.streaming import StreamLane
from digitserve.bench.traffic import bodies
from digitserve.bench.unary import UnaryLane
from digitserve.errors import DigitserveError

TICK_S = 0.01
"""How often deadlines and broken connections are looked at."""

REPORT_S = 0.25
"""How often counts are passed on."""


class Unreachable(DigitserveError):
    """Nobody answers at the address, or not in HTTP/2."""


def resolve(address: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Find out where ``host:port`` is; an IPv6 address stands in brackets.

    Raises:
        Unreachable: it is none, or its host has no address.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise Unreachable(f"got the address '{address}'; expected host:port, such as 127.0.0.1:50051 or [::1]:50051")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise Unreachable(f"cannot find '{host}': {error}") from None
    family, _, _, _, where = found[0]
    return family, (str(where[0]), int(where[1]))


class Load:
    """A process's share of a plan. One thread; ``connect``, then ``run``, then ``close``."""

    def __init__(
        self, plan: Plan, index: int, report: Callable[[Counts], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare requests and lanes.

        Args:
            plan: the whole load.
            index: which process of the plan this is.
            report: takes what was counted, several times a second.
            clock: the monotonic clock, in seconds; the same in all processes of a machine.

        Raises:
            Unreachable: the address is none.
        """
        family, where = resolve(plan.address)
        self._plan = plan
        self._index = index
        self._report = report
        self._clock = clock
        # Before all sockets: select takes low descriptors only.
        self._epoll = select.epoll()
        self.tally = Tally()
        deadline_s = plan.deadline_s
        self._context = Context(
            family, where,
            wire.request_headers(PATHS[plan.method], plan.address, f"digitserve-bench/{version('digitserve')}", deadline_s),
            bodies(plan, index), self.tally, self._epoll, clock, deadline_s,
        )  # fmt: skip
        kind = StreamLane if plan.method == STREAM else UnaryLane
        self._lanes: list[Lane] = [kind(self._context, self._release) for _ in range(plan.share_of_connections(index))]
        self._by_fd: dict[int, Lane] = {}
        self._free: deque[Lane] = deque()
        self._dirty: dict[Lane, None] = {}
        self._schedule: Schedule | None = None
        self._ends_s = 0.0
        self._next_tick_s = 0.0
        self._next_report_s = math.inf
        self._issuing = self._draining = False
        self._control_fd = -1

    def connect(self) -> None:
        """Open all connections and wait for the service's greeting on each.

        Raises:
            Unreachable: one could not be opened in time.
        """
        ends_s = self._clock() + self._plan.timeout_s
        while not all(lane.ready for lane in self._lanes):
            if self._clock() >= ends_s:
                failures = [lane.failure for lane in self._lanes if lane.failure] or ["no greeting in HTTP/2"]
                raise Unreachable(
                    f"no answer within {self._plan.timeout_s:g} s ({failures[0]}); "
                    "is 'digitserve serve' running at the address?"
                )
            self._turn()
        # What failed on the way to being connected is no failure under load.
        self.tally.take()

    def watch(self, control_fd: int) -> None:
        """Stop as soon as this descriptor is readable or its other end closes."""
        self._control_fd = control_fd
        self._epoll.register(control_fd, select.EPOLLIN)

    def run(self, starts_s: float) -> tuple[float, float]:
        """Load the service from a time of the monotonic clock on, until the plan's end or until told to stop.

        Returns:
            The measured time, and the CPU time that this process used in it, in seconds.
        """
        plan = self._plan
        begins_s = starts_s + plan.warm_up_s
        self._ends_s = begins_s + plan.duration_s
        self.tally.measure(begins_s, self._ends_s)
        if plan.rate is not None:
            self._schedule = Schedule(
                plan.rate, self._index, plan.processes, starts_s, poisson=plan.poisson, seed=plan.seed
            )
        self._next_report_s = starts_s
        self._turn_until(starts_s)
        self._free.extend(lane for _ in range(plan.in_flight) for lane in self._lanes)
        self._issuing = True
        self._turn_until(begins_s)
        cpu_s = time.process_time()
        self._turn_until(self._ends_s)
        cpu_s = time.process_time() - cpu_s
        self._issuing = False
        self._drain()
        return max(0.0, self._ends_s - begins_s), cpu_s

    def close(self) -> None:
        """Close all connections."""
        for lane in self._lanes:
            lane.close()
        self._epoll.close()

    def _drain(self) -> None:
        """Wait for what is in flight; count what nobody answers."""
        self._draining = True
        ends_s = self._clock() + self._plan.timeout_s
        while any(lane.num_in_flight for lane in self._lanes) and self._clock() < ends_s:
            self._turn()
        now_s = self._clock()
        for lane in self._lanes:
            for intended_s in lane.intended_in_flight():
                self.tally.left_over(intended_s, now_s, sent=True)
        for intended_s in self._schedule.line if self._schedule else ():
            self.tally.left_over(intended_s, self._ends_s, sent=False)
        for lane in self._lanes:
            lane.finish()
            lane.flush()
        while not all(lane.finished or not lane.connected for lane in self._lanes) and self._clock() < ends_s:
            self._turn()
        self._report(self.tally.take())

    def _turn_until(self, time_s: float) -> None:
        while self._clock() < min(time_s, self._ends_s):
            self._turn(time_s)

    def _turn(self, until_s: float | None = None) -> None:
        """Wait for events, or for the next thing that is due, and act on it."""
        wakes_s = self._next_tick_s if until_s is None else min(self._next_tick_s, until_s)
        for fd, mask in self._wait(wakes_s):
            if fd == self._control_fd:
                self._stop()
                continue
            lane = self._by_fd[fd]
            lane.on_event(mask)
            self._dirty[lane] = None
            self._serve()
        self._serve()
        now_s = self._clock()
        if now_s >= self._next_tick_s:
            self._tick(now_s)

    def _wait(self, wakes_s: float) -> list[tuple[int, int]]:
        if self._schedule is None or not self._issuing:
            return self._epoll.poll(max(0.0, wakes_s - self._clock()))
        if not self._schedule.line:
            wakes_s = min(wakes_s, self._schedule.next_s)
        # epoll counts in milliseconds, far too coarse for intended times; select in microseconds.
        select.select([self._epoll], [], [], max(0.0, wakes_s - self._clock()))
        return self._epoll.poll(0)

    def _serve(self) -> None:
        """Bring free slots and requests that are due together, and write."""
        free, schedule = self._free, self._schedule
        if self._issuing:
            if schedule is not None:
                schedule.advance(min(self._clock(), self._ends_s))
            # Read once: a request let through at one time and stamped at another could be sent in the measured time and
            # counted outside of it.
            while free and (schedule is None or schedule.line) and (now_s := self._clock()) < self._ends_s:
                lane = free.popleft()
                if not lane.can_issue():
                    lane.parked += 1
                    continue
                lane.issue(now_s if schedule is None else schedule.line.popleft())
                self._dirty[lane] = None
        for lane in self._dirty:
            lane.flush()
        self._dirty.clear()

    def _release(self, lane: Lane) -> None:
        self._free.append(lane)

    def _tick(self, now_s: float) -> None:
        self._next_tick_s = now_s + TICK_S
        for lane in self._lanes:
            lane.expire(now_s)
            if not lane.connected and not self._draining and lane.retry_s <= now_s:
                lane.connect()
                self._by_fd[lane.fileno()] = lane
            lane.flush()
        if now_s >= self._next_report_s:
            self._next_report_s = now_s + REPORT_S
            self._report(self.tally.take())

    def _stop(self) -> None:
        self._epoll.unregister(self._control_fd)
        self._ends_s = min(self._ends_s, self._clock())
        self.tally.measure_until(self._ends_s)

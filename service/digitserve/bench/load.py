"""Event loop of one load generator process: one thread, one epoll, many connections.

Created by ``process``. Each connection has a fixed number of slots for concurrent requests. In the closed loop, a free slot
sends the next request immediately; in the open loop, it sends the oldest request that is due.
"""

import errno
import math
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from itertools import cycle

from digitserve.bench import wire
from digitserve.bench.counts import Counts, Recorder
from digitserve.bench.driver import ConnectionDriver, Context, SocketAddress
from digitserve.bench.plan import PATHS, STREAM, Plan
from digitserve.bench.schedule import Schedule
from digitserve.bench.streaming import StreamDriver
from digitserve.bench.traffic import requests
from digitserve.bench.unary import UnaryDriver
from digitserve.errors import AccessDenied, DigitserveError

TICK_S = 0.01
"""Interval between checks for expired deadlines and broken connections."""

REPORT_S = 0.25
"""Interval between reports of the counts."""


class Unreachable(DigitserveError, ConnectionError):
    """No server answers at the address, or it does not speak HTTP/2."""


class HandshakeFailed(Unreachable, AccessDenied):
    """There is no TLS connection, because the server or this process does not accept the other; the message says what to do."""


def resolve(address: str) -> list[SocketAddress]:
    """Resolve ``host:port`` to all its addresses, in a fixed order; IPv6 addresses are in brackets.

    Raises:
        Unreachable: the address is malformed, or its host cannot be resolved.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise Unreachable(f"got the address '{address}'; expected host:port, such as 127.0.0.1:50051 or [::1]:50051")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except (OSError, OverflowError) as error:
        raise Unreachable(f"cannot resolve '{host}': {error}") from None
    # Name servers change the order of their answers. Processes must agree on it.
    return sorted({(family, (str(name), int(number))) for family, _, _, _, (name, number, *_) in found})


class Load:
    """One process's share of a plan. One thread; ``connect``, then ``run``, then ``close``."""

    def __init__(
        self, plan: Plan, index: int, report: Callable[[Counts], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Prepare requests and connection drivers.

        Args:
            plan: the whole load.
            index: index of this process in the plan.
            report: called several times per second with the counts since the last call.
            clock: monotonic clock in seconds, the same in all processes of a machine.

        Raises:
            Unreachable: the address is malformed, or its host cannot be resolved.
            CredentialsError: a file of the credentials cannot be used.
        """
        addresses = resolve(plan.address)
        authorization = plan.credentials.authorization()
        host = plan.address.rpartition(":")[0].strip("[]")
        # Connections are spread over the addresses by their number in all processes.
        first = sum(plan.num_connections_of(other) for other in range(index)) % len(addresses)
        self._plan = plan
        self._index = index
        self._report = report
        self._clock = clock
        # Opened before all sockets: select only accepts low file descriptors.
        self._epoll = select.epoll()
        self.recorder = Recorder()
        deadline_s = plan.deadline_s
        self._context = Context(
            cycle(addresses[first:] + addresses[:first]),
            wire.request_headers(
                PATHS[plan.method], plan.address, f"digitserve-bench/{version('digitserve')}", deadline_s,
                scheme="https" if plan.tls else "http", authorization=authorization() if authorization else "",
            ),
            requests(plan, index), self.recorder, self._epoll, clock, deadline_s,
            (plan.credentials.ssl_context("h2"), host) if plan.tls else None,
        )  # fmt: skip
        driver = StreamDriver if plan.method == STREAM else UnaryDriver
        self._drivers: list[ConnectionDriver] = [
            driver(self._context, self._release_slot) for _ in range(plan.num_connections_of(index))
        ]
        self._driver_by_fd: dict[int, ConnectionDriver] = {}
        self._free_slots: deque[ConnectionDriver] = deque()
        # A dict as an ordered set: drivers that may have something to write.
        self._to_flush: dict[ConnectionDriver, None] = {}
        self._schedule: Schedule | None = None
        self._end_s = 0.0
        self._next_tick_s = 0.0
        self._next_report_s = math.inf
        self._sending = self._draining = False
        self._control_fd = -1

    def connect(self) -> None:
        """Open all connections and wait for the service's HTTP/2 settings on each.

        Raises:
            HandshakeFailed: TLS does not accept the server or this process.
            Unreachable: a connection could not be opened in time.
        """
        end_s = self._clock() + self._plan.timeout_s
        while not all(driver.ready for driver in self._drivers):
            for driver in self._drivers:
                if driver.refusal:
                    raise HandshakeFailed(f"no TLS connection: {driver.refusal} ({driver.failure})")
            if self._clock() >= end_s:
                raise self._unreachable()
            self._poll()
        # Failures while connecting are not failures under load.
        self.recorder.take()

    def _unreachable(self) -> Unreachable:
        failures = [driver.failure for driver in self._drivers if driver.failure] or ["no HTTP/2 settings"]
        hint = ""
        if failures[0] != os.strerror(errno.ECONNREFUSED):
            hint = (
                "; it may require a certificate of the client: pass certificate and key"
                if self._plan.tls
                else "; if it uses TLS, use https:// in the address, or pass ca"
            )
        return Unreachable(
            f"no answer within {self._plan.timeout_s:g} s ({failures[0]}); is 'digitserve serve' running at the address?{hint}"
        )

    def stop_when_readable(self, control_fd: int) -> None:
        """End the measured time as soon as this descriptor is readable or its other end is closed."""
        self._control_fd = control_fd
        self._epoll.register(control_fd, select.EPOLLIN)

    def run(self, start_s: float) -> tuple[float, float]:
        """Load the service from a time of the monotonic clock until the plan's end, or until stopped.

        Returns:
            The measured time, and the CPU time of this process in it, in seconds.
        """
        plan = self._plan
        measure_from_s = start_s + plan.warm_up_s
        self._end_s = measure_from_s + plan.duration_s
        self.recorder.set_window(measure_from_s, self._end_s)
        if plan.rate is not None:
            self._schedule = Schedule(
                plan.rate, self._index, plan.processes, start_s, poisson=plan.poisson, seed=plan.seed
            )
        self._next_report_s = start_s
        self._poll_until(start_s)
        self._free_slots.extend(driver for _ in range(plan.in_flight) for driver in self._drivers)
        self._sending = True
        self._poll_until(measure_from_s)
        cpu_s = time.process_time()
        self._poll_until(self._end_s)
        cpu_s = time.process_time() - cpu_s
        self._sending = False
        self.recorder.counts.disconnected = sum(not (driver.connected and driver.ready) for driver in self._drivers)
        self._drain()
        return max(0.0, self._end_s - measure_from_s), cpu_s

    def close(self) -> None:
        """Close all connections."""
        for driver in self._drivers:
            driver.close()
        self._epoll.close()

    def _drain(self) -> None:
        """Wait for the requests in flight; record those that are not answered in time."""
        self._draining = True
        end_s = self._clock() + self._plan.timeout_s
        while any(driver.num_in_flight for driver in self._drivers) and self._clock() < end_s:
            self._poll()
        now_s = self._clock()
        for driver in self._drivers:
            for intended_s in driver.intended_in_flight():
                self.recorder.request_unfinished(intended_s, now_s, sent=True)
        for intended_s in self._schedule.backlog if self._schedule else ():
            self.recorder.request_unfinished(intended_s, self._end_s, sent=False)
        for driver in self._drivers:
            driver.finish()
            driver.flush()
        while not all(driver.finished or not driver.connected for driver in self._drivers) and self._clock() < end_s:
            self._poll()
        self._report(self.recorder.take())

    def _poll_until(self, time_s: float) -> None:
        while self._clock() < min(time_s, self._end_s):
            self._poll(time_s)

    def _poll(self, until_s: float | None = None) -> None:
        """Wait for events or for the next due time, and handle them."""
        wake_s = self._next_tick_s if until_s is None else min(self._next_tick_s, until_s)
        for fd, mask in self._wait(wake_s):
            if fd == self._control_fd:
                self._stop()
                continue
            driver = self._driver_by_fd[fd]
            driver.on_event(mask)
            self._to_flush[driver] = None
            self._send_due()
        self._send_due()
        now_s = self._clock()
        if now_s >= self._next_tick_s:
            self._tick(now_s)

    def _wait(self, wake_s: float) -> list[tuple[int, int]]:
        if self._schedule is None or not self._sending:
            return self._epoll.poll(max(0.0, wake_s - self._clock()))
        if not self._schedule.backlog:
            wake_s = min(wake_s, self._schedule.next_s)
        # epoll's timeout has a resolution of milliseconds, too coarse for intended times; that of select is microseconds.
        select.select([self._epoll], [], [], max(0.0, wake_s - self._clock()))
        return self._epoll.poll(0)

    def _send_due(self) -> None:
        """Send due requests on free slots, and write to the sockets."""
        free_slots, schedule = self._free_slots, self._schedule
        if self._sending:
            if schedule is not None:
                schedule.advance(min(self._clock(), self._end_s))
            # The clock is read once per request: with two readings, a request could be sent in the measured time and
            # recorded outside of it.
            while free_slots and (schedule is None or schedule.backlog) and (now_s := self._clock()) < self._end_s:
                driver = free_slots.popleft()
                if not driver.prepare_to_send():
                    driver.num_parked_slots += 1
                    continue
                driver.send_request(now_s if schedule is None else schedule.backlog.popleft())
                self._to_flush[driver] = None
        for driver in self._to_flush:
            driver.flush()
        self._to_flush.clear()

    def _release_slot(self, driver: ConnectionDriver) -> None:
        self._free_slots.append(driver)

    def _tick(self, now_s: float) -> None:
        self._next_tick_s = now_s + TICK_S
        for driver in self._drivers:
            driver.expire(now_s)
            if not driver.connected and not self._draining and driver.retry_s <= now_s:
                driver.connect()
                self._driver_by_fd[driver.fileno()] = driver
            driver.flush()
        if now_s >= self._next_report_s:
            self._next_report_s = now_s + REPORT_S
            self._report(self.recorder.take())

    def _stop(self) -> None:
        self._epoll.unregister(self._control_fd)
        self._end_s = min(self._end_s, self._clock())
        self.recorder.shorten_window(self._end_s)

"""Which connection a call takes, and how long it may still last: plain objects that both clients share."""

import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Generic, NamedTuple, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from digitserve.client.calls import OPTIONS, Refused, Unreachable, failure
from digitserve.errors import DigitserveError
from digitserve.v1 import digits_pb2_grpc

CHANNEL_OPTIONS: tuple[tuple[str, str | int], ...] = (
    *OPTIONS,
    # Channels to one address would otherwise share one connection.
    ("grpc.use_local_subchannel_pool", 1),
    # Core would wait 1 s after the first failure to connect, and up to 120 s later.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
"""Options of each of the pool's channels."""

NUM_CONNECTIONS = 32
"""SO_REUSEPORT throws each connection to one of N workers: of K, a worker gets none with probability (1 - 1/N)^K. 32 leave
0.01 % of 4 workers idle, 1.4 % of 8, 13 % of 16; beyond 16 workers ask for more. A connection costs a socket."""

MAX_IN_FLIGHT = 32
"""Requests of the default 64 images that fit twice into a worker's default queue of 4 096, should all meet at one."""


SHORTEST_PAUSE_S = 0.01
"""Before a request that the service had no room for is sent again."""


class Closed(DigitserveError):
    """The client was closed."""

    def __init__(self) -> None:
        super().__init__("the client was closed; make another")


class Connection(NamedTuple):
    """One channel, and the calls on it."""

    channel: Any
    service: Any
    health: Any


def connection(channel: Any) -> Connection:
    """Prepare the calls of a blocking or an asynchronous channel."""
    service = digits_pb2_grpc.DigitServiceStub(channel)  # type: ignore[no-untyped-call] # generated
    return Connection(channel, service, health_pb2_grpc.HealthStub(channel))


HEALTH_REQUEST = health_pb2.HealthCheckRequest(service="digitserve.v1.DigitService")

T = TypeVar("T")


class Pool(Generic[T]):
    """Connections and the calls in flight on each. Any thread may borrow.

    Attributes:
        closed: nothing is lent any more.
    """

    def __init__(self, connections: Sequence[T]) -> None:
        self._connections = connections
        self._in_flight = [0] * len(connections)
        self._next = 0
        self._lock = threading.Lock()
        self.closed = False

    @contextmanager
    def borrow(self) -> Iterator[T]:
        """Take the connection with the fewest calls in flight, of equals the next in turn, for one call.

        Raises:
            Closed: the pool was closed.
        """
        with self._lock:
            self.check_open()
            index = self._choose()
            self._in_flight[index] += 1
        try:
            yield self._connections[index]
        finally:
            with self._lock:
                self._in_flight[index] -= 1

    def _choose(self) -> int:
        fewest = min(self._in_flight)
        try:
            index = self._in_flight.index(fewest, self._next)
        except ValueError:
            index = self._in_flight.index(fewest)
        self._next = index + 1
        return index

    def check_open(self) -> None:
        """Check that there is something to lend.

        Raises:
            Closed: the pool was closed.
        """
        if self.closed:
            raise Closed

    def close(self) -> Sequence[T]:
        """Lend no more; return the connections, for their owner to close."""
        with self._lock:
            self.closed = True
        return self._connections


class Deadline:
    """When a call as a whole must be answered."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._ends = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Return the seconds left.

        Raises:
            Unreachable: none is.
        """
        seconds = self._ends - time.monotonic()
        if seconds <= 0:
            raise self.passed()
        return seconds

    def passed(self) -> Unreachable:
        """Return the error for a call whose time is over before all of it was sent."""
        return Unreachable(
            f"no answer to all images within {self.timeout_s:g} s; give fewer at once, or a longer timeout_s"
        )


def pause_s(error: grpc.RpcError, deadline: Deadline, what: str) -> float:
    """Return how long to wait before a failed call is made again: no shorter than a service with too much to do has said.

    Args:
        error: of a blocking or an asynchronous call.
        deadline: of the call as a whole.
        what: of the request, when there are several.

    Raises:
        Refused, Unreachable: it failed for good, or may come again only after the deadline.
    """
    told = failure(error, deadline.timeout_s, what)
    if (
        not isinstance(told, Refused)
        or told.code is not grpc.StatusCode.RESOURCE_EXHAUSTED
        or told.retry_after_s is None
    ):
        raise told
    # Those that were refused together do not all come back together.
    seconds = max(SHORTEST_PAUSE_S, told.retry_after_s) * random.uniform(1, 2)  # noqa: S311 - no secret
    if seconds >= deadline.remaining_s():
        raise told
    return seconds


def at_least_one(**numbers: int) -> None:
    """Check arguments that count something.

    Raises:
        ValueError: names the one that is below 1.
    """
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name}: got {number}; expected 1 or more")

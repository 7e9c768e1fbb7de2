"""Choice of a connection for each call, deadlines, and retry delays. Plain objects that both clients share."""

import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import grpc

from digitserve.client.channel import Cause, to_client_error
from digitserve.client.errors import Closed, DeadlineExceeded, InvalidRequest, RequestRejected

NUM_CONNECTIONS = 32
"""SO_REUSEPORT assigns each connection to one of N workers at random: of K connections, a worker gets none with probability
(1 - 1/N)^K. With 32, one of 4 workers is idle with 0.01 %, of 8 with 1.4 %, of 16 with 13 %; services of more than 16 workers
need more connections. A connection costs a socket."""

MAX_IN_FLIGHT = 32
"""Requests in flight. With the default of 64 images per request they fill half of a worker's default queue of 4096, even if
all are sent to the same worker."""

MIN_RETRY_DELAY_S = 0.01
"""Shortest delay before a request that found the service's queue full is sent again."""

MAX_TIMEOUT_S = 365 * 86400.0
"""Longer timeouts, such as infinite ones, count as this: gRPC and threads cannot represent them."""

T = TypeVar("T")


class Pool(Generic[T]):
    """Connections and the number of calls in flight on each. Any thread may borrow.

    Attributes:
        closed: whether ``close`` was called.
    """

    def __init__(self, connections: Sequence[T]) -> None:
        self._connections = connections
        self._in_flight = [0] * len(connections)
        self._next = 0
        self._lock = threading.Lock()
        self.closed = False

    @contextmanager
    def borrow(self) -> Iterator[T]:
        """Take the connection with the fewest calls in flight for one call; equal ones take turns.

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
        """Check that the pool is open.

        Raises:
            Closed: the pool was closed.
        """
        if self.closed:
            raise Closed

    def close(self) -> Sequence[T]:
        """End borrowing, and return the connections for their owner to close."""
        with self._lock:
            self.closed = True
        return self._connections


class Deadline:
    """The time by which a call as a whole must be answered.

    Attributes:
        timeout_s: seconds from its creation.
        end_s: monotonic time in seconds.
    """

    def __init__(self, timeout_s: float) -> None:
        """Start now.

        Args:
            timeout_s: at most ``MAX_TIMEOUT_S`` counts. Without any time left, the call fails before it is sent.

        Raises:
            InvalidRequest: it is NaN.
        """
        if math.isnan(timeout_s):
            raise InvalidRequest("timeout_s: got nan; expected a number of seconds")
        timeout_s = min(timeout_s, MAX_TIMEOUT_S)
        self.timeout_s = timeout_s
        self.end_s = time.monotonic() + timeout_s

    def remaining_s(self) -> float:
        """Return the seconds left.

        Raises:
            DeadlineExceeded: the deadline has passed.
        """
        seconds = self.end_s - time.monotonic()
        if seconds <= 0:
            raise self.error()
        return seconds

    def error(self) -> DeadlineExceeded:
        """Return the error for a call whose deadline passed before all its requests were sent."""
        return DeadlineExceeded(
            f"no answer to all images within {self.timeout_s:g} s; send fewer images per call, or set a longer timeout_s"
        )


def retry_delay_s(error: grpc.RpcError, deadline: Deadline, prefix: str, cause: Cause) -> float:
    """Return how long to wait before a failed call is sent again: at least as long as an overloaded service requests.

    Args:
        error: of a blocking or an asynchronous call.
        deadline: of the call as a whole.
        prefix: names the request in the error's message, if there are several.
        cause: see ``to_client_error``.

    Raises:
        ClientError: a retry is of no use, or would be too late for the deadline.
    """
    client_error = to_client_error(error, deadline.timeout_s, prefix, cause)
    if (
        not isinstance(client_error, RequestRejected)
        or client_error.code is not grpc.StatusCode.RESOURCE_EXHAUSTED
        or client_error.retry_after_s is None
    ):
        raise client_error
    # Jitter: requests that were rejected together are not retried together.
    seconds = max(MIN_RETRY_DELAY_S, client_error.retry_after_s) * random.uniform(1, 2)  # noqa: S311 - no secret
    if seconds >= deadline.remaining_s():
        raise client_error
    return seconds


def require_positive(**numbers: float | None) -> None:
    """Check arguments that count something or are durations.

    Raises:
        InvalidRequest: names the argument that is not above 0.
    """
    for name, number in numbers.items():
        if number is not None and not number > 0:
            raise InvalidRequest(f"{name}: got {number}; expected a number above 0")

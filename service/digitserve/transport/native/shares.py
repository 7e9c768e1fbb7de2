"""What a worker divides among its connections, beside the bytes of ``limits.ReceiveBudget``: streams, and decompression.

    server ──number of connections──▶ StreamShare ──▶ Connection ──SETTINGS──▶ client
    Call, Stream ──size of a compressed message──▶ InflateBudget ──▶ inflated now, or later

Both belong to the ``ReceiveBudget`` of a worker; used on its one thread.
"""

import time
from collections.abc import Callable

MIN_STREAMS = 16
"""Streams that each connection may open, however many connections there are: streams that stay open count too."""

INFLATE_BYTES_PER_S = 1 << 27
"""Bytes of large messages that a worker decompresses per second: a third of its time, because zlib writes 360 MiB/s
(measured). It is more than a worker can classify of large images."""

INFLATE_BURST_BYTES = 1 << 24
"""Bytes that it decompresses at once after a pause: 45 ms."""

SMALL_BYTES = 1 << 16
"""Messages up to this size need no budget: decompressing them takes no longer than classifying their images."""


class StreamShare:
    """How many streams a connection may open: as many as may wait in the worker's queue, divided by the connections.

    So clients keep back what the worker would refuse. The number changes only if the number of connections has changed by
    more than a factor of two, because each change is announced on all connections.

    Attributes:
        num_streams: of each connection.
    """

    __slots__ = ("_num_connections", "_total", "num_streams")

    def __init__(self, total: int = 1 << 31) -> None:
        """Divide ``total`` streams; without it, the limits of the connections apply alone."""
        self._total = total
        self._num_connections = 1
        self.num_streams = max(MIN_STREAMS, total)

    def update(self, num_connections: int) -> None:
        """Divide by so many connections."""
        if not self._num_connections <= 2 * num_connections <= 4 * self._num_connections:
            self._num_connections = max(1, num_connections)
            self.num_streams = max(MIN_STREAMS, self._total // self._num_connections)


class InflateBudget:
    """A token bucket for decompression: without it, few small messages could keep a worker busy for seconds.

    The size of a message is known before, from the end of its gzip data. A message is admitted if anything is left, so that
    one of any size is; what it takes too much delays the next.
    """

    __slots__ = ("_clock", "_tokens", "_updated")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start full.

        Args:
            clock: monotonic time in seconds.
        """
        self._clock = clock
        self._tokens = float(INFLATE_BURST_BYTES)
        self._updated = clock()

    def take(self, num_bytes: int) -> bool:
        """Take what a message of ``num_bytes``, decompressed, needs; return false, and take nothing, if it must wait."""
        if num_bytes <= SMALL_BYTES:
            return True
        now = self._clock()
        self._tokens = min(INFLATE_BURST_BYTES, self._tokens + (now - self._updated) * INFLATE_BYTES_PER_S)
        self._updated = now
        if self._tokens <= 0:
            return False
        self._tokens -= num_bytes
        return True

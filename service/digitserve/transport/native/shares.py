"""Shares of the connections of a worker in its resources other than memory: streams, and time for decompression.

    server ──number of connections──▶ StreamShare ──▶ Connection ──SETTINGS──▶ client
    Call, Stream ──size of a compressed message──▶ InflateBudget ──▶ inflated now, or later

Both belong to the ``ReceiveBudget`` of a worker; used on its one thread.
"""

import math
import time
from collections.abc import Callable
from itertools import islice

from digitserve.transport.native.message import SMALL_BYTES, inflate

MIN_STREAMS = 16
"""Minimum number of streams that each connection may open, because streams that stay open count too."""

INFLATE_SHARE = 1 / 4
"""Part of a worker's time for the decompression of large messages. zlib writes 360 MiB/s (measured), so this allows
90 MiB/s: more than a worker can classify as large images."""

INFLATE_BURST_S = 0.05
"""Longest time for decompression without a pause: 18 MiB."""

FLOOD_SHARE = 4
"""A connection can be paused if it has more than 1/4 as many rejected calls as the one with most."""

ADJUST_S, ROTATE_S = 0.1, 0.5
"""Intervals at which the number of paused connections is adjusted, and at which they take turns."""

LESS, MORE, RECOVER = 0.7, 1.1, 2.0
"""Factors of the share of connections that are not paused: while more is sent than the worker can read, while it can read all,
and while that takes less than ``LOW_READ_SHARE`` of its time."""

LOW_READ_SHARE = 0.25
"""At capacity, without rejected calls, reading takes 20 % (float32) to 35 % (int8) of a worker's time."""


class StreamShare:
    """Number of streams that a connection may open.

    It is the limit of pending images, divided by the number of connections. So clients do not send calls that the worker would
    reject. The number changes only if the number of connections has changed by more than a factor of two, because each change
    is announced on all connections.

    Even rejected calls can take more time than a worker has. Then all calls would wait until their deadlines have passed, in
    sockets or in clients, and all would be rejected. So some of the connections whose calls are rejected are paused: they may
    open no stream, and their clients keep their calls. Connections take turns. The number of those that are not paused is
    adjusted until the worker has time to read all that they send.

    Attributes:
        num_streams: of each connection that is not paused.
    """

    __slots__ = (
        "_adjust_at", "_most", "_next_most", "_num_connections", "_num_cut", "_num_iterations", "_open", "_read_s", "_rejected",
        "_rotate_at", "_share", "_total", "num_streams",
    )  # fmt: skip

    def __init__(self, total: int = 1 << 31) -> None:
        """Divide ``total`` streams; without it, the limits of the connections apply alone."""
        self._total = total
        self._num_connections = 1
        self._num_iterations = self._num_cut = 0
        # Most rejected calls that a connection has reported, in the last interval and in this one.
        self._most = self._next_most = 0
        self._adjust_at = self._rotate_at = self._read_s = 0.0
        self._share = 1.0
        self._rejected: dict[object, None] = {}  # connections with rejected calls, in the order of their turns
        self._open: set[object] = set()  # of these, those that are not paused
        self.num_streams = max(MIN_STREAMS, total)

    def update(self, num_connections: int) -> None:
        """Divide by so many connections."""
        if not self._num_connections <= 2 * num_connections <= 4 * self._num_connections:
            self._num_connections = max(1, num_connections)
            self.num_streams = max(MIN_STREAMS, self._total // self._num_connections)

    def adjust(self, now: float, read_s: float, *, was_cut: bool) -> None:
        """Count an iteration of the worker's loop, and adjust the share of connections that are not paused.

        Args:
            now: monotonic time in seconds.
            read_s: seconds of reading in this iteration.
            was_cut: the time for reading was too short to read all that had arrived.
        """
        self._num_iterations += 1
        self._num_cut += was_cut
        self._read_s += read_s
        if now < self._adjust_at:
            return
        read_share = self._read_s / (now - self._adjust_at + ADJUST_S)
        is_cut = 2 * self._num_cut > self._num_iterations
        self._adjust_at = now + ADJUST_S
        self._num_iterations = self._num_cut = 0
        self._read_s = 0.0
        self._most, self._next_most = self._next_most, 0
        if is_cut and self._rejected:
            # One connection is never paused, so a smaller share would only take longer to grow again.
            self._share = LESS * max(self._share, 1 / len(self._rejected))
        elif self._share < 1:
            self._share = min(1.0, self._share * (RECOVER if read_share < LOW_READ_SHARE else MORE))
            if self._share == 1:
                self._rejected.clear()
        if self._share == 1:
            return
        if now >= self._rotate_at:
            self._rotate_at = now + ROTATE_S
            for connection in [connection for connection in self._rejected if connection in self._open]:
                self._rejected[connection] = self._rejected.pop(connection)
        self._open = set(islice(self._rejected, math.ceil(self._share * len(self._rejected))))

    def report(self, connection: object, num_rejected: int) -> None:
        """Report how many calls of a connection were rejected since the last report.

        Only those with many rejected calls can be paused. While connections are paused, one without rejected calls may be one
        of them; otherwise it stops counting.
        """
        if num_rejected * FLOOD_SHARE > self._most:
            self._rejected.setdefault(connection)
        elif num_rejected or self._share == 1:
            self.forget(connection)
        self._next_most = max(self._next_most, num_rejected)

    def is_paused(self, connection: object) -> bool:
        """Return whether a connection may open no streams."""
        return self._share < 1 and connection in self._rejected and connection not in self._open

    def forget(self, connection: object) -> None:
        """Forget a connection that is closed."""
        self._rejected.pop(connection, None)
        self._open.discard(connection)


class InflateBudget:
    """Limits the time for decompression: otherwise a few small messages could occupy a worker for seconds.

    The size of a message is known before its decompression, from the end of its gzip data; the time is measured. A message may
    start if any time is left, so a message of any size can start; if it takes more than that, the next one waits longer. A long
    message of empty blocks takes as much time as a large one, so only what is small before and after is free.
    """

    __slots__ = ("_clock", "_left_s", "_updated")

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with all of ``INFLATE_BURST_S``.

        Args:
            clock: monotonic time in seconds.
        """
        self._clock = clock
        self._left_s = INFLATE_BURST_S
        self._updated = clock()

    def may_start(self, num_compressed_bytes: int, num_bytes: int) -> bool:
        """Return whether a message may be decompressed now; otherwise it must wait.

        Args:
            num_compressed_bytes: of the message.
            num_bytes: decompressed; 0 if only its start is.
        """
        if num_bytes <= SMALL_BYTES and num_compressed_bytes <= SMALL_BYTES:
            return True
        now = self._clock()
        self._left_s = min(INFLATE_BURST_S, self._left_s + INFLATE_SHARE * (now - self._updated))
        self._updated = now
        return self._left_s > 0

    def inflate(self, body: bytes, num_bytes: int, max_bytes: int) -> bytes | None:
        """Decompress a message that may start; see ``message.inflate``."""
        if num_bytes <= SMALL_BYTES and len(body) <= SMALL_BYTES:
            return inflate(body, num_bytes, max_bytes)
        started = self._clock()
        try:
            return inflate(body, num_bytes, max_bytes)
        finally:
            self._left_s -= self._clock() - started

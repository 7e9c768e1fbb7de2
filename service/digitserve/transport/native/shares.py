"""Shares of the connections of a worker in its resources other than memory: streams, and time for decompression.

    server ──number of connections──▶ StreamShare ──▶ Connection ──SETTINGS──▶ client
    Call, Stream ──size of a compressed message──▶ InflateBudget ──▶ inflated now, or later

Both belong to the ``ReceiveBudget`` of a worker; used on its one thread.
"""

import time
from collections.abc import Callable

from digitserve.transport.native.message import SMALL_BYTES, inflate

MIN_STREAMS = 16
"""Minimum number of streams that each connection may open, because streams that stay open count too."""

INFLATE_SHARE = 1 / 4
"""Part of a worker's time for the decompression of large messages. zlib writes 360 MiB/s (measured), so this allows
90 MiB/s: more than a worker can classify as large images."""

INFLATE_BURST_S = 0.05
"""Longest time for decompression without a pause: 18 MiB."""


class StreamShare:
    """Number of streams that a connection may open: the limit of pending images, divided by the number of connections.

    So clients do not send calls that the worker would reject. The number changes only if the number of connections has changed
    by more than a factor of two, because each change is announced on all connections.

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

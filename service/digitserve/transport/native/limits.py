"""Limits of a connection, and the byte budget that all connections of a worker share.

``server`` builds both from the settings; ``connection`` and ``call`` keep to them on the worker's thread.
"""

from dataclasses import dataclass
from typing import Protocol

from digitserve.transport.native.frames import INITIAL_WINDOW
from digitserve.transport.native.shares import InflateBudget, StreamShare

MESSAGE_PREFIX_BYTES = 5
"""Compressed flag and length before each gRPC message."""

FIRST_WINDOW = INITIAL_WINDOW
"""What a client may send on a stream before its message has reserved more: messages up to this need no reservation."""


@dataclass(frozen=True)
class Limits:
    """What one connection may make a worker hold and do.

    Attributes:
        max_message_bytes: largest request message, also after decompression.
        max_streams: streams that may be open at once.
        max_header_block_bytes: HEADERS with their CONTINUATION frames.
        max_header_list_bytes: header fields of one request, decoded, with 32 bytes for each (RFC 9113, 6.5.2).
        max_header_fields: number of those fields.
        max_unsent_bytes: what may wait to be sent before the connection is no longer read.
        max_control_frames: burst of frames that carry no request: PING, SETTINGS, PRIORITY, CONTINUATION, empty or late
            frames.
        control_frames_per_s: rate at which that burst is allowed again. A client that measures the bandwidth sends a PING
            per round trip, which takes 0.1 ms on one host; 10 000 PINGs cost 10 ms of CPU (measured without sockets).
        max_resets: burst of streams that the client resets or that are reset because of its errors.
        resets_per_s: rate at which that burst is allowed again.
        preface_s: time for the connection preface and SETTINGS.
        header_block_s: time from HEADERS to the last CONTINUATION.
        message_s: time from the start of a call to the end of its message; on a stream, from the reservation of a message.
        drain_ping_s: longest wait for the answer to the PING between the two GOAWAY frames of a drain.
    """

    max_message_bytes: int
    max_streams: int = 1_024
    max_header_block_bytes: int = 65_536
    max_header_list_bytes: int = 16_384
    max_header_fields: int = 128
    max_unsent_bytes: int = 1 << 20
    max_control_frames: int = 1_000
    control_frames_per_s: float = 10_000.0
    max_resets: int = 10_000
    resets_per_s: float = 2_000.0
    preface_s: float = 10.0
    header_block_s: float = 10.0
    message_s: float = 60.0
    drain_ping_s: float = 5.0


class Holder(Protocol):
    """A call with an unfinished message, which gives it up when others need its bytes."""

    def evict(self) -> None:
        """End the call; give back what it holds."""


class ReceiveBudget:
    """Bytes of unfinished messages that a worker holds, over all connections; owned by the server.

    Three quarters are for reservations of messages that are longer than the first window, the rest is for what clients may
    send without a reservation. So neither can use up the room of the other. Of the latter, the oldest gives way to the
    newest: clients that send a part and stop cannot keep others from sending. There is room for 24 MiB, so what gives way has
    been there for 50 ms or more at the rate at which a worker reads a flood.

    Attributes:
        max_bytes: the limit.
        max_reserved_bytes: the limit of reservations.
        reserved_bytes: of messages with a reservation, received or not.
        first_bytes: received of messages without one.
        inflate: limits decompression.
        streams: limits the streams of each connection.
    """

    __slots__ = ("_holders", "first_bytes", "inflate", "max_bytes", "max_reserved_bytes", "reserved_bytes", "streams")

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.max_reserved_bytes = max_bytes * 3 // 4
        self.reserved_bytes = 0
        self.first_bytes = 0
        self.inflate = InflateBudget()
        self.streams = StreamShare()
        self._holders: dict[Holder, None] = {}  # oldest first

    @property
    def used_bytes(self) -> int:
        """Bytes received or reserved."""
        return self.reserved_bytes + self.first_bytes

    def take(self, holder: Holder, num_bytes: int) -> bool:
        """Take received bytes from the budget; return false, and take none, if so many are not left.

        Older messages are evicted for them.

        Args:
            holder: the call of the message.
            num_bytes: more than it holds already.
        """
        holders = self._holders
        while self.first_bytes + num_bytes > self.max_bytes - self.max_reserved_bytes:
            oldest = next(iter(holders), holder)
            if oldest is holder:
                return False
            oldest.evict()
        holders[holder] = None
        self.first_bytes += num_bytes
        return True

    def give_back(self, holder: Holder, num_bytes: int) -> None:
        """Return all bytes that a call has taken."""
        self._holders.pop(holder, None)
        self.first_bytes -= num_bytes

    def reserve(self, num_bytes: int) -> bool:
        """Reserve bytes for a whole message; return false, and reserve none, if so many are not left."""
        if self.reserved_bytes + num_bytes > self.max_reserved_bytes:
            return False
        self.reserved_bytes += num_bytes
        return True

    def give_back_reserved(self, num_bytes: int) -> None:
        """Return bytes that were reserved."""
        self.reserved_bytes -= num_bytes


class RateLimit:
    """A token bucket for events of one connection (PINGs, resets); owned by it."""

    __slots__ = ("_burst", "_rate", "_tokens", "_updated")

    def __init__(self, burst: float, rate: float, now: float) -> None:
        """Allow ``burst`` events at once, and ``rate`` per second later."""
        self._burst = self._tokens = burst
        self._rate = rate
        self._updated = now

    def allows(self, now: float, cost: int = 1) -> bool:
        """Count an event that is worth ``cost`` events; return false if there were too many."""
        self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate) - cost
        self._updated = now
        return self._tokens >= 0

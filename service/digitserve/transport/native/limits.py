"""Limits of a connection and of a worker, and the byte budget that all connections of a worker share.

``server`` builds all of them from the settings; ``loop``, ``connection`` and its calls apply them on the worker's thread.
docs/reference/limits.md lists each limit, and what happens beyond it.
"""

import math
from dataclasses import dataclass
from typing import Protocol

from digitserve.errors import SettingsError
from digitserve.settings import Settings
from digitserve.telemetry.block import CloseReason, RefusalReason
from digitserve.telemetry.request_log import RequestLog
from digitserve.transport.native.frames import INITIAL_WINDOW
from digitserve.transport.native.shares import InflateBudget, StreamShare

FIRST_WINDOW = INITIAL_WINDOW
"""What a client may send on a stream before its message has reserved more: messages up to this need no reservation."""

HEADER_BLOCK_SHARE = 4
"""Largest encoded header block, as a multiple of the limit on decoded fields: blocks over that limit must be decoded to their
end too, because they change the dynamic table."""

RESET_BURST_S = 5.0
"""Burst of resets, in seconds of their rate: a client may cancel thousands of calls together."""

CONTROL_BURST_S, MIN_CONTROL_BURST = 0.1, 1_000
"""Burst of control frames, in seconds of their rate, and its minimum: each of 1 000 open streams may have a late frame."""

RECEIVE_BUDGET_MESSAGES = 5
"""Default limit of all unfinished messages of a worker, in messages of the maximum size."""

MIN_RECEIVE_BUDGET_BYTES = 1 << 24
"""Minimum of this default in bytes: a quarter is room for the first windows of 64 clients."""

RESERVED_SHARE = 3 / 4
"""Part of the receive budget that may be reserved; the rest is for first windows."""

SLOW_GRACE_S = 5.0
"""Time without progress that a reserved message is allowed while others wait for room: a lost packet may take 3 s."""


@dataclass(frozen=True)
class Limits:
    """What one connection may make a worker hold and do.

    Attributes:
        max_message_bytes: largest request message, also after decompression.
        max_streams: streams that may be open at once.
        max_header_block_bytes: HEADERS with their CONTINUATION frames.
        max_header_list_bytes: header fields of one request, decoded, with 32 bytes for each (RFC 9113, 6.5.2).
        max_header_fields: number of those fields; gRPC clients send about 10.
        max_unsent_bytes: what may wait to be sent before the connection is no longer read.
        max_control_frames: burst of frames that carry no request: PING, SETTINGS, PRIORITY, CONTINUATION, empty or late
            frames.
        control_frames_per_s: rate at which that burst is allowed again. A client that measures the bandwidth sends a PING
            per round trip, which takes 0.1 ms on one host; 10 000 PINGs cost 10 ms of CPU (measured without sockets).
        max_resets: burst of streams that the client resets or that are reset because of its errors.
        resets_per_s: rate at which that burst is allowed again.
        handshake_s: time for the handshake of TLS, the connection preface and SETTINGS together; also from HEADERS to the last
            CONTINUATION.
        message_s: time from the start of a call to the end of its message; on a stream, from the reservation of a message.
            Also the time for the client to read an answer.
        max_idle_s: time without a call after which the connection drains; infinite for no limit.
        drain_ping_s: longest wait for the answer to the PING between the two GOAWAY frames of a drain; more than any round
            trip.
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
    handshake_s: float = 10.0
    message_s: float = 60.0
    max_idle_s: float = math.inf
    drain_ping_s: float = 5.0

    @classmethod
    def of(cls, settings: Settings) -> "Limits":
        """Return the limits that the settings define."""
        resets_per_s, control_frames_per_s = settings.max_resets_per_s, settings.max_control_frames_per_s
        return cls(
            max_message_bytes=settings.max_request_bytes,
            max_streams=settings.max_concurrent_streams,
            max_header_block_bytes=HEADER_BLOCK_SHARE * settings.max_header_bytes,
            max_header_list_bytes=settings.max_header_bytes,
            max_unsent_bytes=settings.max_connection_unsent_bytes,
            max_control_frames=max(MIN_CONTROL_BURST, int(CONTROL_BURST_S * control_frames_per_s)),
            control_frames_per_s=control_frames_per_s,
            max_resets=int(RESET_BURST_S * resets_per_s),
            resets_per_s=resets_per_s,
            handshake_s=settings.handshake_timeout_s,
            message_s=settings.message_timeout_s,
            max_idle_s=settings.max_connection_idle_s or math.inf,
        )


@dataclass(frozen=True)
class WorkerLimits:
    """Limits of all connections of a worker together, and of the age of each.

    Attributes:
        max_receive_bytes: of unfinished messages; see ``ReceiveBudget``.
        max_connections: beyond it, those whose clients have been silent longest are closed.
        max_held_bytes: memory of all connections, without unfinished messages; beyond it, those that hold most are closed. See
            ``Output.num_held_bytes``.
        max_age_s: age from which a connection drains; infinite for no limit.
        age_grace_s: time after that at which its calls are ended; infinite for no limit.
        stall_s: longest time without progress while output waits for the socket.
    """

    max_receive_bytes: int
    max_connections: int = 4_096
    max_held_bytes: int = 1 << 26
    max_age_s: float = math.inf
    age_grace_s: float = math.inf
    stall_s: float = 60.0

    @classmethod
    def of(cls, settings: Settings) -> "WorkerLimits":
        """Return the limits that the settings define.

        Raises:
            SettingsError: a request message of the maximal size could never be received.
        """
        default = max(RECEIVE_BUDGET_MESSAGES * settings.max_request_bytes, MIN_RECEIVE_BUDGET_BYTES)
        max_receive_bytes = settings.max_receive_bytes or default
        if max_receive_bytes < 2 * settings.max_request_bytes:
            raise SettingsError(
                f"--max-receive-bytes: got {max_receive_bytes}, expected at least {2 * settings.max_request_bytes}: twice "
                "the value of --max-request-bytes"
            )
        return cls(
            max_receive_bytes=max_receive_bytes,
            max_connections=settings.connection_limit,
            max_held_bytes=settings.max_held_bytes,
            max_age_s=settings.max_connection_age_s or math.inf,
            age_grace_s=settings.max_connection_age_grace_s or math.inf,
            stall_s=settings.message_timeout_s,
        )


class Counts(Protocol):
    """Counts closed connections and refused requests; implemented by the worker's ``Recorder``. Ordinary calls do not use it.

    Attributes:
        requests: logs refused calls.
    """

    requests: RequestLog

    def connection_accepted(self) -> None:
        """Count a new connection."""

    def connection_closed(self, reason: CloseReason) -> None:
        """Count the end of a connection."""

    def stream_refused(self, reason: RefusalReason) -> None:
        """Count a request that the transport refused or ended."""


class Holder(Protocol):
    """A call with an unfinished message, which gives it up when others need its bytes."""

    def num_received_bytes(self) -> int:
        """Return how many bytes of the message have arrived."""

    def evict(self) -> None:
        """End the call; give back what it holds."""


class ReceiveBudget:
    """Bytes of unfinished messages that a worker holds, over all connections; owned by the server.

    Three quarters may be reserved for messages that are longer than the first window. The rest is for bytes that clients may
    send without a reservation. So neither kind can use up the room of the other. If there is no room without a reservation,
    the call with the oldest such message is ended: clients that send a part and stop cannot block others. By default there is
    room for 20 MiB, which a worker takes about 40 ms to read, so no younger message is ended. Calls with reserved messages are
    ended only if they are so slow that they would miss their time limit.

    Attributes:
        max_bytes: the limit.
        max_reserved_bytes: the limit of reservations.
        reserved_bytes: of messages with a reservation, received or not.
        first_bytes: received of messages without one.
        inflate: limits decompression.
        streams: limits the streams of each connection.
    """

    __slots__ = (
        "_holders", "_lacks_room", "_message_s", "_reserved", "first_bytes", "inflate", "max_bytes", "max_reserved_bytes",
        "reserved_bytes", "streams",
    )  # fmt: skip

    def __init__(self, max_bytes: int, message_s: float = 60.0) -> None:
        """Start with nothing held.

        Args:
            max_bytes: the limit.
            message_s: time limit of a message.
        """
        self.max_bytes = max_bytes
        self.max_reserved_bytes = int(RESERVED_SHARE * max_bytes)
        self.reserved_bytes = 0
        self.first_bytes = 0
        self.inflate = InflateBudget()
        self.streams = StreamShare()
        self._message_s = message_s
        self._lacks_room = False
        self._holders: dict[Holder, None] = {}  # oldest first
        # Oldest first: the bytes, and the time since which others wait.
        self._reserved: dict[Holder, tuple[int, float | None]] = {}

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

    def reserve(self, holder: Holder, num_bytes: int) -> bool:
        """Reserve bytes for a whole message; return false, and reserve none, if so many are not left."""
        if self.reserved_bytes + num_bytes > self.max_reserved_bytes:
            self._lacks_room = True
            return False
        self._reserved[holder] = num_bytes, None
        self.reserved_bytes += num_bytes
        return True

    def give_back_reserved(self, holder: Holder) -> None:
        """Return bytes that were reserved."""
        self.reserved_bytes -= self._reserved.pop(holder)[0]

    def make_room(self, now: float) -> None:
        """If a message waits for room, end the oldest call whose reserved message is too slow; called several times per second.

        A message is too slow if it would not arrive within its time limit: after ``SLOW_GRACE_S``, fewer bytes have arrived
        than its length and the time limit require. For 16 MiB, that is 280 KiB/s.

        Args:
            now: monotonic time in seconds.
        """
        if not self._lacks_room:
            return
        self._lacks_room = False  # messages that still wait try again before the next call
        for holder, (num_bytes, since) in list(self._reserved.items()):
            if since is None:
                self._reserved[holder] = num_bytes, now
            elif holder.num_received_bytes() < num_bytes * (now - since - SLOW_GRACE_S) / self._message_s:
                holder.evict()
                return


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

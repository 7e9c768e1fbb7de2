"""Time limits of a connection and its streams, applied several times per second.

    loop ──check(time)──▶ TimeLimits ──▶ streams: past their deadlines, unfinished, or with answers that the client does not read
                                     └─▶ GOAWAY: no handshake, no end of a header block, or no calls for too long

``connection.Connection`` is a subclass that adds requests. Does no I/O; used on the worker's one thread.
"""

from collections.abc import Callable

from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.telemetry.block import CloseReason, RefusalReason
from digitserve.transport.native.control import ControlFrames
from digitserve.transport.native.frames import ErrorCode
from digitserve.transport.native.limits import Counts, Limits, ReceiveBudget
from digitserve.transport.native.multiplex import ANSWERED_BYTES, EXPIRED, RpcStream


class TimeLimits(ControlFrames):
    """The state that a connection needs to apply its time limits.

    Attributes: see ``Output``.
    """

    __slots__ = ("_block_started", "_busy_at", "_busy_id", "_started", "_untaken")

    def __init__(
        self, limits: Limits, budget: ReceiveBudget, counts: Counts, now: float, on_output: Callable[[], None]
    ) -> None:
        """Start with the connection; see ``ControlFrames``."""
        super().__init__(limits, budget, counts, now, on_output)
        self._block_started: float | None = None  # while a header block is incomplete
        self._started = self._busy_at = now
        self._busy_id = 0  # the last stream at ``_busy_at``
        # Answers that the client has not taken, and since when; as of the last check.
        self._untaken: dict[RpcStream, tuple[object, float]] = {}

    # Called by the loop.

    def on_room(self) -> bool:
        """Continue messages that waited for the worker's budgets, oldest first; return whether any did continue."""
        continued = False
        while self.waiting:
            stream = next(iter(self.waiting))
            num_bytes = stream.num_received_bytes()
            if not stream.on_room():
                # A stream may have delivered a message, and wait with the next one.
                return continued or stream.num_received_bytes() < num_bytes
            self.waiting.pop(stream, None)
            continued = True
        return continued

    def check(self, now: float, wall: float) -> None:
        """Apply time limits, and update the number of bytes that the connection holds; called several times per second.

        Args:
            now: monotonic time in seconds.
            wall: Unix time in seconds.
        """
        self.num_held_bytes = self.num_unsent_bytes
        if self.closing:
            return
        self._check_connection(now)
        oldest = now - self.limits.message_s
        untaken, self._untaken = self._untaken, {}
        num_held_bytes = self._num_receiving_bytes()
        num_held_bytes += ANSWERED_BYTES * len(self.answered)
        for stream_id in [stream_id for stream_id, (started, _) in self.answered.items() if started < oldest]:
            self._end_answered(stream_id)
            self._send_reset(stream_id, ErrorCode.NO_ERROR)
        for stream in list(self.streams.values()):
            num_held_bytes += stream.num_waiting_bytes()
            if stream.deadline <= wall:
                self._expire(stream)
            elif (
                stream.open
                and (not stream.remote_closed or stream in self.waiting)
                and stream.unfinished_since(now) < oldest
            ):
                self._give_up(stream)
            elif (answer := stream.first_unsent()) is not None:
                known, since = untaken.get(stream, (None, now))
                since = since if known is answer else now
                if since < oldest:
                    self._abandon(stream)
                else:
                    self._untaken[stream] = answer, since
        self.num_held_bytes += num_held_bytes
        if self.waiting:
            self.budget.make_room(now)
            self.on_room()

    def _check_connection(self, now: float) -> None:
        """Apply the time limits that do not belong to a stream."""
        limits = self.limits
        if not self._settings_received and now - self._started > limits.handshake_s:
            text = f"no preface and SETTINGS within {limits.handshake_s:g} s"
            self.close(ErrorCode.PROTOCOL_ERROR, text, CloseReason.TIMEOUT)
        elif self._block_started is not None and now - self._block_started > limits.handshake_s:
            text = f"no end of a header block within {limits.handshake_s:g} s"
            self.close(ErrorCode.PROTOCOL_ERROR, text, CloseReason.TIMEOUT)
        elif self._drain_ends_at is not None and now > self._drain_ends_at:
            self._finish_drain()
        self.budget.streams.report(self, self.num_rejected)
        self.num_rejected = 0
        self._announce_max_streams()
        # Only calls count, not bytes: clients send PINGs on connections that they do not use.
        if self.streams or self._busy_id != self._last_id:
            self._busy_at, self._busy_id = now, self._last_id
        elif now - self._busy_at > limits.max_idle_s:
            self.drain(now, CloseReason.IDLE)

    def _num_receiving_bytes(self) -> int:
        """Return how many bytes the receiving side of the connection holds, without messages."""
        raise NotImplementedError

    def _expire(self, stream: RpcStream) -> None:
        """End a stream whose deadline has passed."""
        if stream.open:
            stream.fail_locally(EXPIRED)
        else:
            # Its answer waits for a flow-control window.
            self._drop_stream(stream.stream_id)
            self._send_reset(stream.stream_id, ErrorCode.CANCEL)

    def _give_up(self, stream: RpcStream) -> None:
        """End a stream whose message does not arrive in time, or waits too long for its decompression."""
        if stream.remote_closed:
            stream.evict()
        else:
            self.counts.stream_refused(RefusalReason.MESSAGE_TIMEOUT)
            stream.fail_locally(Status(Code.CANCELLED, f"a message did not arrive within {self.limits.message_s:g} s"))

    def _abandon(self, stream: RpcStream) -> None:
        """End a stream whose answer the client does not read in time."""
        self.counts.stream_refused(RefusalReason.ANSWER_TIMEOUT)
        self._drop_stream(stream.stream_id)
        self._send_reset(stream.stream_id, ErrorCode.CANCEL)

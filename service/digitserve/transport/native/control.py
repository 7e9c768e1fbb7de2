"""Frames that control a connection and its streams, rather than carry a request.

    Connection ──on_control_frame──▶ ControlFrames ──▶ Output: windows, PING and SETTINGS answers, resets
    loop ──drain, close──▶ ControlFrames ──GOAWAY──▶ Output

``time_limits.TimeLimits`` is a subclass that adds time limits, and ``connection.Connection`` a subclass of that, which adds
requests. Does no I/O; used on the worker's one thread.
"""

from collections import deque
from collections.abc import Callable

from digitserve.telemetry.block import CloseReason, RefusalReason
from digitserve.transport.native import frames
from digitserve.transport.native.frames import (
    ACK,
    FRAME_BYTES,
    MAX_STREAM_ID,
    MAX_WINDOW,
    SETTINGS,
    ErrorCode,
    unpack_setting,
)  # fmt: skip
from digitserve.transport.native.limits import Counts, Limits, RateLimit, ReceiveBudget
from digitserve.transport.native.multiplex import Output

MAX_RECENT_RESETS = 256
"""Streams that this server reset and whose late frames it ignores: more than a client sends in one round trip."""

DRAIN_PING = b"draining"
"""Opaque data of the PING whose answer shows that the client has received the first GOAWAY."""

DRAIN_GRACE_S = 0.05
"""Time from this answer to the second GOAWAY: several writes of a busy client."""

PRIORITY_BYTES = 5
"""Length of the priority in HEADERS and PRIORITY frames, which is ignored (RFC 9113, section 5.3)."""

GOAWAY_BYTES = 8
"""Last stream id and error code, the fixed part of GOAWAY."""


class ConnectionFailure(Exception):
    """The peer violated the protocol so that the connection must end."""

    def __init__(self, code: ErrorCode, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class ControlFrames(Output):
    """The state that control frames change.

    Attributes: see ``Output``.
    """

    __slots__ = (
        "_announced", "_announcement_open", "_control", "_drain_ends_at", "_last_id", "_max_streams", "_now", "_resets",
        "_settings_acknowledged", "_settings_received", "_was_reset",
    )  # fmt: skip

    def __init__(
        self, limits: Limits, budget: ReceiveBudget, counts: Counts, now: float, on_output: Callable[[], None]
    ) -> None:
        """Start before the peer's SETTINGS; see ``Output``.

        Args:
            limits: of this connection.
            budget: of the worker.
            counts: counts closed connections and refused requests.
            now: monotonic time in seconds.
            on_output: called when ``take_output`` and ``on_sent`` must be called, once until they are.
        """
        super().__init__(limits, budget, counts, on_output)
        self._control = RateLimit(limits.max_control_frames, limits.control_frames_per_s, now)
        self._resets = RateLimit(limits.max_resets, limits.resets_per_s, now)
        self._settings_received = self._settings_acknowledged = False
        # The limit in the last SETTINGS, and the limit that applies: until the client has acknowledged them, the larger one.
        self._announced = self._max_streams = self._wanted_max_streams()
        self._announcement_open = True
        self._last_id = 0
        self._drain_ends_at: float | None = None  # between the two GOAWAY frames of a drain
        self._was_reset: deque[int] = deque(maxlen=MAX_RECENT_RESETS)
        self._now = now

    # Called by the loop.

    def drain(self, now: float, reason: CloseReason = CloseReason.DRAIN) -> None:
        """Announce that the connection will end: GOAWAY and a PING. Its answer shows that the client has received both.

        Until then calls are accepted as before, so none is lost. Then a second GOAWAY names the last stream.
        """
        if self._drain_ends_at is None and self._final_id is None and not self.closing:
            self._drain_ends_at = now + self.limits.drain_ping_s
            self.close_reason = reason
            self.send(frames.goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR) + frames.frame(frames.PING, 0, 0, DRAIN_PING))

    def close(self, code: ErrorCode, text: str, reason: CloseReason) -> None:
        """End the connection: drop its calls, and send GOAWAY.

        Args:
            code: of GOAWAY.
            text: debug data of GOAWAY.
            reason: for the metrics.
        """
        if not self.closing:
            self.close_reason = reason
            self.drop()
            # The last stream id of GOAWAY must never increase (RFC 9113, section 6.8).
            last_id = self._last_id if self._final_id is None else self._final_id
            self.send(frames.goaway(last_id, code, text.encode()))
            self.closing = True

    def drop(self) -> None:
        """Drop all calls, because the connection is lost."""
        self.budget.streams.forget(self)
        streams, self.streams = list(self.streams.values()), {}
        self.blocked.clear()
        self.waiting.clear()
        for stream in streams:
            stream.abort()

    # Frames.

    def _on_control_frame(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        """Handle a frame that is neither DATA nor HEADERS."""
        if kind == frames.WINDOW_UPDATE:
            self._on_window_update(stream_id, payload)
        elif kind == frames.RST_STREAM:
            self._on_reset(stream_id, payload)
        elif kind == SETTINGS:
            # In units of other frames: each setting is work, and a new initial window is work for each stream.
            self._count_control_frame(1 + len(payload) // 6 + len(self.streams) // 16)
            self._on_settings(flags, stream_id, payload)
        else:
            self._count_control_frame()
            if kind == frames.PING:
                self._on_ping(flags, stream_id, payload)
            elif kind == frames.PRIORITY:
                self._on_priority(stream_id, payload)
            elif kind == frames.PUSH_PROMISE:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "got PUSH_PROMISE from a client")
            elif kind == frames.GOAWAY:
                _on_goaway(stream_id, payload)
            # Unknown frames are ignored (RFC 9113, section 5.5).

    def _on_priority(self, stream_id: int, payload: bytes) -> None:
        _require(stream_id, "PRIORITY")
        if len(payload) != PRIORITY_BYTES:
            if self._is_idle(stream_id):  # RST_STREAM is not allowed there (RFC 9113, section 6.4)
                _require_size("PRIORITY", payload, PRIORITY_BYTES)
            self._reset(stream_id, ErrorCode.FRAME_SIZE_ERROR)

    def _on_window_update(self, stream_id: int, payload: bytes) -> None:
        _require_size("WINDOW_UPDATE", payload, 4)
        increment = int.from_bytes(payload, "big") & MAX_WINDOW
        if stream_id == 0:
            self.send_window += increment
            if not increment:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "got WINDOW_UPDATE of 0 for the connection")
            if self.send_window > MAX_WINDOW:
                raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "got WINDOW_UPDATE beyond 2^31-1 bytes")
            if self.blocked:
                self.pump()
            return
        stream = self.streams.get(stream_id)
        if stream is None:
            if self._is_idle(stream_id):
                raise ConnectionFailure(
                    ErrorCode.PROTOCOL_ERROR, f"got WINDOW_UPDATE on stream {stream_id}, which is not open"
                )
            return
        stream.send_window += increment
        if not increment:
            self._reset(stream_id, ErrorCode.PROTOCOL_ERROR)
        elif stream.send_window > MAX_WINDOW:
            self._reset(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
        else:
            stream.pump()

    def _on_reset(self, stream_id: int, payload: bytes) -> None:
        _require(stream_id, "RST_STREAM")
        _require_size("RST_STREAM", payload, 4)
        if self._is_idle(stream_id):
            raise ConnectionFailure(
                ErrorCode.PROTOCOL_ERROR, f"got RST_STREAM on stream {stream_id}, which is not open"
            )
        self._count_reset()
        self._drop_stream(stream_id)

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got SETTINGS on stream {stream_id}, expected 0")
        if flags & ACK:
            _require_size("SETTINGS with ACK", payload, 0)
            if not self._settings_received:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "expected SETTINGS as the first frame, got their ACK")
            self._settings_acknowledged = True
            self._announcement_open = False
            self._max_streams = self._announced
            return
        if len(payload) % 6:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, f"got SETTINGS of {len(payload)} bytes")
        window = self.first_send_window
        for start in range(0, len(payload), 6):
            key, value = unpack_setting(payload, start)
            _check_setting(key, value)
            if key == frames.INITIAL_WINDOW_SIZE:
                window = value
        self._settings_received = True
        self.send(frames.frame(SETTINGS, ACK, 0))
        if window != self.first_send_window:
            self._change_send_windows(window)

    def _wanted_max_streams(self) -> int:
        shares = self.budget.streams
        return 0 if shares.is_paused(self) else min(self.limits.max_streams, shares.num_streams)

    def _announce_max_streams(self) -> None:
        """Announce how many streams the client may open, if that has changed.

        The next announcement is sent only after the client has acknowledged the last one. Until it acknowledges this one, the
        larger limit applies.
        """
        wanted = self._wanted_max_streams()
        if wanted != self._announced and not self._announcement_open and not self.closing:
            self._announced, self._announcement_open = wanted, True
            self._max_streams = max(self._max_streams, wanted)
            self.send(frames.settings({frames.MAX_CONCURRENT_STREAMS: wanted}))

    def _change_send_windows(self, window: int) -> None:
        """Apply a new initial window to all streams (RFC 9113, section 6.9.2)."""
        change, self.first_send_window = window - self.first_send_window, window
        streams = list(self.streams.values())
        for stream in streams:
            stream.send_window += change
            if stream.send_window > MAX_WINDOW:
                raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "got a window beyond 2^31-1 bytes")
        if change > 0:
            for stream in streams:
                stream.pump()

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got PING on stream {stream_id}, expected 0")
        _require_size("PING", payload, 8)
        if not flags & ACK:
            self.send(frames.frame(frames.PING, ACK, 0, payload))
        elif payload == DRAIN_PING and self._drain_ends_at is not None:
            # Not finished now: clients send this answer before requests that they had queued already.
            self._drain_ends_at = min(self._drain_ends_at, self._now + DRAIN_GRACE_S)

    # What requests need too.

    def _is_idle(self, stream_id: int) -> bool:
        """Return whether no request has used the stream yet."""
        return stream_id > self._last_id or not stream_id & 1

    def _ignores(self, stream_id: int) -> bool:
        """Return whether late frames of a stream are legitimate: the client may not know yet that it was reset or ignored."""
        return stream_id in self._was_reset or (self._final_id is not None and stream_id > self._final_id)

    def _reset(self, stream_id: int, code: ErrorCode, reason: RefusalReason = RefusalReason.MALFORMED) -> None:
        """Reset a stream because of an error of the client."""
        self.counts.stream_refused(reason)
        self._count_reset()
        self._drop_stream(stream_id)
        self._send_reset(stream_id, code)

    def _send_reset(self, stream_id: int, code: ErrorCode) -> None:
        self._was_reset.append(stream_id)
        self.send(frames.reset(stream_id, code))

    def _drop_stream(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is None:
            self._end_answered(stream_id)
        else:
            self.blocked.pop(stream, None)
            self.waiting.pop(stream, None)
            stream.abort()
            self.remove(stream)

    def _end_answered(self, stream_id: int) -> None:
        """Remove a stream from ``answered``, if it is there."""
        if self.answered.pop(stream_id, None) is not None:
            self._close_if_drained()

    def _finish_drain(self) -> None:
        """Name the last stream that is answered; later ones are ignored, and the client repeats their calls elsewhere."""
        self._drain_ends_at = None
        self._final_id = self._last_id
        self.send(frames.goaway(self._last_id, ErrorCode.NO_ERROR))
        self._close_if_drained()

    def _count_control_frame(self, cost: int = 1) -> None:
        if not self._control.allows(self._now, cost):
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "got too many frames without a request")

    def _count_reset(self) -> None:
        if not self._resets.allows(self._now):
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "got too many resets and errors of streams")


def without_padding(payload: bytes, num_before: int = 0) -> bytes:
    """Return the content of a padded frame (RFC 9113, sections 6.1 and 6.2).

    Args:
        payload: of the frame.
        num_before: bytes of other fields at the start of the content.
    """
    if len(payload) < 1 + num_before:
        raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "got a padded frame that ends within its fixed fields")
    padding = payload[0]
    if padding + num_before >= len(payload):
        raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "got a frame whose padding is longer than its payload")
    return payload[1 : len(payload) - padding]


def _require(stream_id: int, name: str) -> None:
    if not stream_id:
        raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got {name} on stream 0, expected a request's stream")


def _require_size(name: str, payload: bytes, num_bytes: int) -> None:
    if len(payload) != num_bytes:
        raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, f"got {name} of {len(payload)} bytes, expected {num_bytes}")


def _check_setting(key: int, value: int) -> None:
    """Check a setting of the peer. Other settings need nothing: answers use no dynamic table and the smallest frames."""
    if key == frames.INITIAL_WINDOW_SIZE and value > MAX_WINDOW:
        raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, f"got an initial window of {value} bytes")
    if key == frames.MAX_FRAME_SIZE and not FRAME_BYTES <= value < 1 << 24:
        raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got a maximum frame size of {value} bytes")
    if key == frames.ENABLE_PUSH and value > 1:
        raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got ENABLE_PUSH {value}, expected 0 or 1")


def _on_goaway(stream_id: int, payload: bytes) -> None:
    """Check a GOAWAY of a client. It needs no answer: a server opens no streams (RFC 9113, section 6.8)."""
    if stream_id:
        raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got GOAWAY on stream {stream_id}, expected 0")
    if len(payload) < GOAWAY_BYTES:
        raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, f"got GOAWAY of {len(payload)} bytes, expected at least 8")

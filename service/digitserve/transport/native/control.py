"""Frames that control a connection and its streams, rather than carry a request.

    Connection ──on_control_frame──▶ ControlFrames ──▶ Output: windows, PING and SETTINGS answers, resets
    loop ──drain, close──▶ ControlFrames ──GOAWAY──▶ Output

``connection.Connection`` extends it by requests. Does no I/O; used on the worker's one thread.
"""

from collections import deque
from collections.abc import Callable

from digitserve.transport.native import frames
from digitserve.transport.native.frames import (
    ACK,
    FRAME_BYTES,
    MAX_STREAM_ID,
    MAX_WINDOW,
    SETTINGS,
    ErrorCode,
)  # fmt: skip
from digitserve.transport.native.limits import Limits, RateLimit, ReceiveBudget
from digitserve.transport.native.multiplex import Output

MAX_RECENT_RESETS = 256
"""Streams that this server reset and whose late frames it ignores: more than a client sends in one round trip."""

DRAIN_PING = b"draining"
"""Opaque data of the PING whose answer shows that the client has received the first GOAWAY."""

PRIORITY_BYTES = 5
"""Length of the priority in HEADERS and PRIORITY frames, which is ignored (RFC 9113, section 5.3)."""


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
        "_control", "_drain_ping_sent", "_last_id", "_now", "_resets", "_settings_acknowledged", "_settings_received",
        "_was_reset",
    )  # fmt: skip

    def __init__(self, limits: Limits, budget: ReceiveBudget, now: float, on_output: Callable[[], None]) -> None:
        """Start before the peer's SETTINGS; see ``Output``.

        Args:
            limits: of this connection.
            budget: of the worker.
            now: monotonic time in seconds.
            on_output: called when there is output, once until it is taken.
        """
        super().__init__(limits, budget, on_output)
        self._control = RateLimit(limits.max_control_frames, limits.control_frames_per_s, now)
        self._resets = RateLimit(limits.max_resets, limits.resets_per_s, now)
        self._settings_received = self._settings_acknowledged = False
        self._last_id = 0
        self._drain_ping_sent: float | None = None
        self._was_reset: deque[int] = deque(maxlen=MAX_RECENT_RESETS)
        self._now = now

    # Called by the loop.

    def drain(self, now: float) -> None:
        """Announce that the connection will end: GOAWAY and a PING. Its answer shows that the client has received both.

        Until then calls are accepted as before, so none is lost. Then a second GOAWAY names the last stream.
        """
        if self._drain_ping_sent is None and self._final_id is None and not self.closing:
            self._drain_ping_sent = now
            self.send(frames.goaway(MAX_STREAM_ID, ErrorCode.NO_ERROR) + frames.frame(frames.PING, 0, 0, DRAIN_PING))

    def close(self, code: ErrorCode, reason: str = "") -> None:
        """End the connection: drop its calls, and send GOAWAY."""
        if not self.closing:
            self.drop()
            self.send(frames.goaway(self._last_id, code, reason.encode()))
            self.closing = True

    def drop(self) -> None:
        """Drop all calls, because the connection is lost."""
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
        else:
            self._count_control_frame()
            if kind == SETTINGS:
                self._on_settings(flags, stream_id, payload)
            elif kind == frames.PING:
                self._on_ping(flags, stream_id, payload)
            elif kind == frames.PRIORITY:
                _require(stream_id, "PRIORITY")
                if len(payload) != PRIORITY_BYTES:
                    self._reset(stream_id, ErrorCode.FRAME_SIZE_ERROR)
            elif kind == frames.PUSH_PROMISE:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "got PUSH_PROMISE from a client")
            elif kind == frames.GOAWAY and stream_id:
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got GOAWAY on stream {stream_id}, expected 0")
            # A GOAWAY of a client needs no answer, and unknown frames are ignored (RFC 9113, sections 6.8 and 5.5).

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
        elif stream in self.blocked:
            self.pump()

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
            self._settings_acknowledged = True
            return
        if len(payload) % 6:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, f"got SETTINGS of {len(payload)} bytes")
        for start in range(0, len(payload), 6):
            self._on_setting(
                int.from_bytes(payload[start : start + 2], "big"), int.from_bytes(payload[start + 2 : start + 6], "big")
            )
        self._settings_received = True
        self.send(frames.frame(SETTINGS, ACK, 0))
        if self.blocked:
            self.pump()

    def _on_setting(self, key: int, value: int) -> None:
        """Apply one setting of the peer. Its table size needs nothing: answers never use a dynamic table."""
        if key == frames.INITIAL_WINDOW_SIZE:
            if value > MAX_WINDOW:
                raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, f"got an initial window of {value} bytes")
            change, self.first_send_window = value - self.first_send_window, value
            for stream in self.streams.values():
                stream.send_window += change
                if stream.send_window > MAX_WINDOW:
                    raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "got a window beyond 2^31-1 bytes")
        elif key == frames.MAX_FRAME_SIZE and not FRAME_BYTES <= value < 1 << 24:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got a maximum frame size of {value} bytes")
        elif key == frames.ENABLE_PUSH and value > 1:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got ENABLE_PUSH {value}, expected 0 or 1")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got PING on stream {stream_id}, expected 0")
        _require_size("PING", payload, 8)
        if not flags & ACK:
            self.send(frames.frame(frames.PING, ACK, 0, payload))
        elif payload == DRAIN_PING and self._drain_ping_sent is not None:
            self._finish_drain()

    # What requests need too.

    def _is_idle(self, stream_id: int) -> bool:
        """Return whether no request has used the stream yet."""
        return stream_id > self._last_id or not stream_id & 1

    def _reset(self, stream_id: int, code: ErrorCode) -> None:
        """Reset a stream because of an error of the client."""
        self._count_reset()
        self._drop_stream(stream_id)
        self._send_reset(stream_id, code)

    def _send_reset(self, stream_id: int, code: ErrorCode) -> None:
        self._was_reset.append(stream_id)
        self.send(frames.reset(stream_id, code))

    def _drop_stream(self, stream_id: int) -> None:
        stream = self.streams.get(stream_id)
        if stream is not None:
            self.blocked.pop(stream, None)
            self.waiting.pop(stream, None)
            stream.abort()
            self.remove(stream)

    def _finish_drain(self) -> None:
        """Name the last stream that is answered; later ones are ignored, and the client repeats their calls elsewhere."""
        self._drain_ping_sent = None
        self._final_id = self._last_id
        self.send(frames.goaway(self._last_id, ErrorCode.NO_ERROR))
        if not self.streams:
            self.closing = True

    def _count_control_frame(self) -> None:
        if not self._control.allows(self._now):
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "got too many frames without a request")

    def _count_reset(self) -> None:
        if not self._resets.allows(self._now):
            raise ConnectionFailure(ErrorCode.ENHANCE_YOUR_CALM, "got too many resets and errors of streams")


def _require(stream_id: int, name: str) -> None:
    if not stream_id:
        raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got {name} on stream 0, expected a request's stream")


def _require_size(name: str, payload: bytes, num_bytes: int) -> None:
    if len(payload) != num_bytes:
        raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, f"got {name} of {len(payload)} bytes, expected {num_bytes}")

"""Client side of one HTTP/2 connection: bytes in, events out, no socket and no clock.

Owned by one ``ConnectionDriver`` of the load generator, on its process's only thread, or by ``web.worker_calls``. Implements what a gRPC client needs: no push, no priorities.
All requests carry the same headers, encoded once per connection. We announce an HPACK table of size 0 to the peer, so its
header blocks are independent of each other, and decoded blocks are cached by their bytes.

Source: RFC 9113 (HTTP/2), RFC 7541 (HPACK).
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import hpack

from digitserve.bench import frames
from digitserve.bench.frames import (
    ACK,
    CANCEL,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME_BYTES,
    DEFAULT_TABLE_BYTES,
    DEFAULT_WINDOW_BYTES,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_STREAM_ID,
    MAX_WINDOW_BYTES,
    NO_ERROR,
    PADDED,
    PING,
    PREFACE,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    WITH_PRIORITY,
    ProtocolError,
    frame,
    frame_header,
    read_u32,
    strip_padding,
)  # fmt: skip

RECEIVE_WINDOW_BYTES = 1 << 24
"""Flow-control window announced for the connection and each stream; updated when half of it is used."""

RECEIVE_FRAME_BYTES = 1 << 20
"""Largest frame that the peer may send; large answers need few frames."""

MAX_CACHED_BLOCKS = 1_000
"""Limit of cached header blocks, because every error message may be different."""

Event: TypeAlias = tuple[int, int, Any, bool]
"""Frame type, stream id, value, and whether this frame ended the stream. Values by frame type:

    DATA        the payload
    HEADERS     the result of ``read_headers``
    RST_STREAM  the HTTP/2 error code; always ends the stream
    GOAWAY      the HTTP/2 error code; the stream id is the last that the peer processes

Plain tuples, because a load generator creates hundreds of thousands per second.
"""


class _Stream:
    """An open stream.

    Attributes:
        window: bytes that the peer accepts on this stream.
        num_used: bytes received since the last WINDOW_UPDATE for this stream.
        unsent: data that waits for the peer's windows: bytes, and whether they end our side; None without any.
        ended: whether our side has ended.
    """

    __slots__ = ("ended", "num_used", "unsent", "window")

    def __init__(self, window: int, *, ended: bool) -> None:
        self.window = window
        self.num_used = 0
        self.unsent: deque[tuple[memoryview, bool]] | None = None
        self.ended = ended


class Connection:
    """A connection from its preface to its end. Owned by one connection driver.

    Attributes:
        ready: whether the peer's settings have arrived and streams may be opened.
        going_away: whether the peer accepts no more streams.
        window: bytes that the peer accepts on the whole connection.
    """

    def __init__(
        self,
        headers: Sequence[tuple[str, str]],
        read_headers: Callable[[Iterable[Any]], Any],
        window_bytes: int = RECEIVE_WINDOW_BYTES,
    ) -> None:
        """Put the preface into the output.

        Args:
            headers: sent with every request.
            read_headers: converts decoded headers to the value of a HEADERS event; called once per distinct block.
            window_bytes: receive window that we announce, at least 65 535.
        """
        self.ready = False
        self.going_away = False
        self.window = DEFAULT_WINDOW_BYTES
        self._headers = headers
        self._read_headers = read_headers
        self._streams: dict[int, _Stream] = {}
        self._next_stream_id = 1
        self._unparsed = b""
        # Announced by the peer.
        self._initial_window = DEFAULT_WINDOW_BYTES
        self._max_frame_bytes = DEFAULT_FRAME_BYTES
        self._max_streams = MAX_STREAM_ID
        self._encoder = hpack.Encoder()
        self._header_block = b""
        self._first_header_block: bytes | None = None
        # Received from the peer.
        self._decoder = hpack.Decoder()
        self._block_cache: dict[bytes, Any] = {}
        self._partial_block: tuple[int, bool, bytes] | None = None
        self._receive_window = window_bytes
        self._num_used = 0
        self._blocked: dict[int, None] = {}
        self._handlers: dict[int, Callable[[int, int, bytes, list[Event]], None]] = {
            DATA: self._on_data, HEADERS: self._on_headers, RST_STREAM: self._on_reset, SETTINGS: self._on_settings,
            PUSH_PROMISE: self._on_push, PING: self._on_ping, GOAWAY: self._on_goaway,
            WINDOW_UPDATE: self._on_window_update, CONTINUATION: self._on_continuation,
        }  # fmt: skip
        settings = {
            HEADER_TABLE_SIZE: 0, ENABLE_PUSH: 0, INITIAL_WINDOW_SIZE: window_bytes, MAX_FRAME_SIZE: RECEIVE_FRAME_BYTES,
        }  # fmt: skip
        self._out = [
            PREFACE,
            frame(SETTINGS, 0, 0, b"".join(frames.SETTING.pack(*setting) for setting in settings.items())),
        ]
        if window_bytes > DEFAULT_WINDOW_BYTES:
            self._send_window_update(0, window_bytes - DEFAULT_WINDOW_BYTES)

    # Called by the owner.

    @property
    def num_open(self) -> int:
        """Number of streams that have not ended."""
        return len(self._streams)

    def is_open(self, stream_id: int) -> bool:
        """Return whether a stream has not ended. ``receive`` may end a stream before its owner handles the event."""
        return stream_id in self._streams

    def can_open(self) -> bool:
        """Return whether the peer accepts another stream."""
        return (
            self.ready
            and not self.going_away
            and len(self._streams) < self._max_streams
            and self._next_stream_id <= MAX_STREAM_ID
        )

    def open(self, body: bytes, *, end_stream: bool, more_headers: bytes = b"") -> int:
        """Open a stream with the connection's headers.

        Args:
            body: first data to send; may be empty.
            end_stream: whether nothing follows.
            more_headers: of this request, encoded without the HPACK table.

        Returns:
            The stream id.
        """
        stream_id = self._next_stream_id
        self._next_stream_id = stream_id + 2
        block = self._header_block
        if self._first_header_block is not None:
            block, self._first_header_block = self._first_header_block, None
        block += more_headers
        state = self._streams[stream_id] = _Stream(self._initial_window, ended=end_stream)
        self._out.append(frame_header(len(block), HEADERS, END_HEADERS, stream_id) + block)
        if body or end_stream:
            self._send(stream_id, state, body, end_stream=end_stream)
        return stream_id

    def send(self, stream_id: int, body: bytes, *, end_stream: bool) -> None:
        """Send more data on an open stream; what exceeds the peer's windows is sent after its next WINDOW_UPDATE."""
        state = self._streams[stream_id]
        state.ended = end_stream
        self._send(stream_id, state, body, end_stream=end_stream)

    def cancel(self, stream_id: int) -> None:
        """Cancel a stream; later frames on it cause no events."""
        self._remove(stream_id)
        self._reset(stream_id, CANCEL)

    def take_output(self) -> bytes:
        """Return the bytes to write to the socket, and clear the output."""
        taken = b"".join(self._out)
        self._out.clear()
        return taken

    def receive(self, received: bytes) -> list[Event]:
        """Process bytes read from the socket.

        Returns:
            Events of open streams and of the connection, in order.

        Raises:
            ProtocolError: the connection must be closed.
        """
        if self._unparsed:
            received = self._unparsed + received
        events: list[Event] = []
        position, available = 0, len(received)
        unpack = frames.FRAME_HEADER.unpack_from
        while available - position >= frames.FRAME_HEADER_BYTES:
            high, low, kind, flags, stream_id = unpack(received, position)
            begin = position + frames.FRAME_HEADER_BYTES
            end = begin + (high << 16 | low)
            if end - begin > RECEIVE_FRAME_BYTES or not (self.ready or kind == SETTINGS):
                raise ProtocolError(
                    f"got a frame of type {kind} and {end - begin} bytes; expected HTTP/2 with the announced settings"
                )
            if end > available:
                break
            position = end
            if self._partial_block is not None and kind != CONTINUATION:
                raise ProtocolError(f"got a frame of type {kind} inside a header block")
            # Frames of unknown types are ignored, as RFC 9113 requires.
            if (handler := self._handlers.get(kind)) is not None:
                handler(flags, stream_id & MAX_STREAM_ID, received[begin:end], events)
        self._unparsed = received[position:]
        return events

    # Handlers by frame type.

    def _on_data(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        # Flow control includes padding.
        used = len(payload)
        self._num_used += used
        if self._num_used * 2 >= self._receive_window:
            self._send_window_update(0, self._num_used)
            self._num_used = 0
        state = self._streams.get(stream_id)
        if state is None:
            return
        if flags & PADDED:
            payload = strip_padding(payload)
        ended = bool(flags & END_STREAM)
        state.num_used += used
        if ended:
            self._end(stream_id, state)
        elif state.num_used * 2 >= self._receive_window:
            self._send_window_update(stream_id, state.num_used)
            state.num_used = 0
        events.append((DATA, stream_id, payload, ended))

    def _on_headers(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if flags & PADDED:
            payload = strip_padding(payload)
        if flags & WITH_PRIORITY:
            payload = payload[5:]
        if flags & END_HEADERS:
            self._on_block(stream_id, payload, events, ended=bool(flags & END_STREAM))
        else:
            self._partial_block = stream_id, bool(flags & END_STREAM), payload

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if self._partial_block is None or self._partial_block[0] != stream_id:
            raise ProtocolError("got CONTINUATION without its HEADERS")
        _, ended, before = self._partial_block
        self._partial_block = stream_id, ended, before + payload
        if flags & END_HEADERS:
            self._partial_block = None
            self._on_block(stream_id, before + payload, events, ended=ended)

    def _on_block(self, stream_id: int, block: bytes, events: list[Event], *, ended: bool) -> None:
        value = self._block_cache.get(block)
        if value is None:
            value = self._decode(block)
        state = self._streams.get(stream_id)
        if state is None:
            return
        if ended:
            self._end(stream_id, state)
        events.append((HEADERS, stream_id, value, ended))

    def _decode(self, block: bytes) -> Any:
        stateless = self._decoder.header_table_size == 0
        try:
            value = self._read_headers(self._decoder.decode(block))
        except hpack.HPACKError as error:
            raise ProtocolError(f"got headers that are not valid HPACK: {error}") from None
        # Without an HPACK table, equal blocks always have equal headers.
        if stateless and len(self._block_cache) < MAX_CACHED_BLOCKS:
            self._block_cache[block] = value
        return value

    def _on_reset(self, _flags: int, stream_id: int, payload: bytes, events: list[Event]) -> None:
        if stream_id in self._streams:
            self._remove(stream_id)
            events.append((RST_STREAM, stream_id, read_u32(payload), True))

    def _on_settings(self, flags: int, _stream_id: int, payload: bytes, _events: list[Event]) -> None:
        if flags & ACK:
            # The decoder keeps its table size: for expired calls, gRPC core sends blocks without a table size update.
            return
        if len(payload) % frames.SETTING.size:
            raise ProtocolError(f"got SETTINGS of {len(payload)} bytes; expected a multiple of {frames.SETTING.size}")
        for setting, value in frames.SETTING.iter_unpack(payload):
            self._apply(setting, value)
        if not self.ready or self._encoder.header_table.resized:
            # The first block fills the peer's HPACK table; later blocks only refer to it.
            self._first_header_block = self._encoder.encode(self._headers)
            self._header_block = self._encoder.encode(self._headers)
        self.ready = True
        self._out.append(frame(SETTINGS, ACK, 0))
        self._send_blocked()

    def _apply(self, setting: int, value: int) -> None:
        if setting == HEADER_TABLE_SIZE:
            self._encoder.header_table_size = min(value, DEFAULT_TABLE_BYTES)
        elif setting == MAX_CONCURRENT_STREAMS:
            self._max_streams = value
        elif setting == MAX_FRAME_SIZE:
            self._max_frame_bytes = value
        elif setting == INITIAL_WINDOW_SIZE:
            if value > MAX_WINDOW_BYTES:
                raise ProtocolError(f"got an initial window of {value} bytes; the maximum is {MAX_WINDOW_BYTES}")
            # The windows of open streams change by the difference and may become negative.
            for state in self._streams.values():
                state.window += value - self._initial_window
            self._initial_window = value

    def _on_push(self, _flags: int, _stream_id: int, _payload: bytes, _events: list[Event]) -> None:
        raise ProtocolError("got PUSH_PROMISE although push is disabled")

    def _on_ping(self, flags: int, _stream_id: int, payload: bytes, _events: list[Event]) -> None:
        if not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))

    def _on_goaway(self, _flags: int, _stream_id: int, payload: bytes, events: list[Event]) -> None:
        last = read_u32(payload) & MAX_STREAM_ID
        error_code = read_u32(payload[4:])
        self.going_away = True
        events.append((GOAWAY, last, error_code, False))
        for stream_id in [stream_id for stream_id in self._streams if stream_id > last]:
            self._remove(stream_id)
            events.append((RST_STREAM, stream_id, REFUSED_STREAM, True))

    def _on_window_update(self, _flags: int, stream_id: int, payload: bytes, _events: list[Event]) -> None:
        room = read_u32(payload) & MAX_STREAM_ID
        if stream_id == 0:
            self.window += room
        elif (state := self._streams.get(stream_id)) is not None:
            state.window += room
        self._send_blocked()

    # Sending, and ending streams.

    def _send(self, stream_id: int, state: _Stream, body: bytes, *, end_stream: bool) -> None:
        num_bytes = len(body)
        if (
            state.unsent is None
            and num_bytes <= self._max_frame_bytes
            and num_bytes <= self.window
            and num_bytes <= state.window
        ):
            self.window -= num_bytes
            state.window -= num_bytes
            self._out.append(frame_header(num_bytes, DATA, END_STREAM if end_stream else 0, stream_id))
            self._out.append(body)
            return
        if state.unsent is None:
            state.unsent = deque()
        state.unsent.append((memoryview(body), end_stream))
        self._send_unsent(stream_id, state)

    def _send_unsent(self, stream_id: int, state: _Stream) -> None:
        unsent = state.unsent
        while unsent:
            body, end_stream = unsent[0]
            room = min(len(body), self._max_frame_bytes, max(0, self.window), max(0, state.window))
            if room == 0 and len(body):
                self._blocked[stream_id] = None
                return
            last = room == len(body)
            self._out.append(frame_header(room, DATA, END_STREAM if last and end_stream else 0, stream_id))
            self._out.append(bytes(body[:room]))
            self.window -= room
            state.window -= room
            if last:
                unsent.popleft()
            else:
                unsent[0] = body[room:], end_stream
        state.unsent = None
        self._blocked.pop(stream_id, None)

    def _send_blocked(self) -> None:
        for stream_id in list(self._blocked):
            self._send_unsent(stream_id, self._streams[stream_id])

    def _end(self, stream_id: int, state: _Stream) -> None:
        """Close a stream that the peer has ended; reset it if our side has not ended yet."""
        unfinished = not state.ended or state.unsent is not None
        self._remove(stream_id)
        if unfinished:
            self._reset(stream_id, NO_ERROR)

    def _remove(self, stream_id: int) -> None:
        del self._streams[stream_id]
        self._blocked.pop(stream_id, None)

    def _reset(self, stream_id: int, error_code: int) -> None:
        self._out.append(frame(RST_STREAM, 0, stream_id, frames.U32.pack(error_code)))

    def _send_window_update(self, stream_id: int, num_bytes: int) -> None:
        self._out.append(frame(WINDOW_UPDATE, 0, stream_id, frames.U32.pack(num_bytes)))

"""The client's side of one HTTP/2 connection, made for load: bytes in, events out, no socket and no clock.

Owned by one lane of ``lanes``, on its process's only thread. Exact, but no more than a gRPC client needs: no push, no
priorities. Requests all carry the same headers, encoded once a connection. Header blocks of the peer need no memory,
since its table is announced to have no room, so what a block says is cached by its bytes.

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
    LARGEST_WINDOW_BYTES,
    LAST_STREAM,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
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
    head,
    unpad,
    word,
)

RECEIVE_WINDOW_BYTES = 1 << 24
"""Announced for the connection and each stream, and given back when half of it was used."""

RECEIVE_FRAME_BYTES = 1 << 20
"""The largest frame that the peer may send: few frames for large answers."""

MAX_CACHED_BLOCKS = 1_000
"""Header blocks remembered; messages of errors may differ without end."""

Event: TypeAlias = tuple[int, int, Any, bool]
"""Type of frame, stream, value, and whether the stream has ended with it.

    DATA      the payload                            HEADERS  what ``read_headers`` made of them
    RST_STREAM  HTTP/2's error code; always the end  GOAWAY   HTTP/2's error code; the stream is the last that was taken

Plain tuples: a load generator makes hundreds of thousands a second.
"""


class _Stream:
    """An open stream.

    Attributes:
        window: bytes that the peer still takes on it.
        num_used: bytes received since its window was last given back.
        unsent: what waits for the peer's windows: bytes, and whether they end our side.
        ended: our side has ended.
    """

    __slots__ = ("ended", "num_used", "unsent", "window")

    def __init__(self, window: int, *, ended: bool) -> None:
        self.window = window
        self.num_used = 0
        self.unsent: deque[tuple[memoryview, bool]] | None = None
        self.ended = ended


class Connection:
    """A connection from its preface to its end.

    Attributes:
        ready: the peer's settings have come; streams may be opened.
        going_away: the peer takes no more streams.
        window: bytes that the peer still takes on the whole connection.
    """

    def __init__(
        self,
        headers: Sequence[tuple[str, str]],
        read_headers: Callable[[Iterable[Any]], Any],
        window_bytes: int = RECEIVE_WINDOW_BYTES,
    ) -> None:
        """Begin: the preface waits in the output.

        Args:
            headers: of every request.
            read_headers: makes the value of a HEADERS event from decoded headers; called once for each different block.
            window_bytes: that we announce for receiving, at least 65 535.
        """
        self.ready = False
        self.going_away = False
        self.window = DEFAULT_WINDOW_BYTES
        self._headers = headers
        self._read_headers = read_headers
        self._streams: dict[int, _Stream] = {}
        self._next_stream = 1
        self._rest = b""
        # What the peer has announced.
        self._initial_window = DEFAULT_WINDOW_BYTES
        self._frame_bytes = DEFAULT_FRAME_BYTES
        self._most_streams = LAST_STREAM
        self._encoder = hpack.Encoder()
        self._block = b""
        self._first_block: bytes | None = None
        # What it sends.
        self._decoder = hpack.Decoder()
        self._cache: dict[bytes, Any] = {}
        self._begun: tuple[int, bool, bytes] | None = None
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
            self._give_back(0, window_bytes - DEFAULT_WINDOW_BYTES)

    # What the owner calls.

    @property
    def num_open(self) -> int:
        """Streams that have not ended."""
        return len(self._streams)

    def is_open(self, number: int) -> bool:
        """Tell whether a stream has not ended; what has just been received may have ended it before its owner hears of it."""
        return number in self._streams

    def can_open(self) -> bool:
        """Tell whether the peer takes another stream."""
        return (
            self.ready
            and not self.going_away
            and len(self._streams) < self._most_streams
            and self._next_stream <= LAST_STREAM
        )

    def open(self, body: bytes, *, ended: bool) -> int:
        """Open a stream with the connection's headers.

        Args:
            body: what is sent first; may be empty.
            ended: nothing follows.

        Returns:
            The stream's number.
        """
        number = self._next_stream
        self._next_stream = number + 2
        block = self._block
        if self._first_block is not None:
            block, self._first_block = self._first_block, None
        state = self._streams[number] = _Stream(self._initial_window, ended=ended)
        self._out.append(head(len(block), HEADERS, END_HEADERS, number) + block)
        if body or ended:
            self._send(number, state, body, ended)
        return number

    def send(self, number: int, body: bytes, *, ended: bool) -> None:
        """Send more on an open stream, at once as far as the peer's windows allow, the rest when they open."""
        state = self._streams[number]
        state.ended = ended
        self._send(number, state, body, ended)

    def cancel(self, number: int) -> None:
        """End a stream; what still comes on it is not told."""
        self._forget(number)
        self._reset(number, CANCEL)

    def take_output(self) -> bytes:
        """Return what is to be written to the socket, and forget it."""
        taken = b"".join(self._out)
        self._out.clear()
        return taken

    def receive(self, received: bytes) -> list[Event]:
        """Take what was read from the socket.

        Returns:
            What it says of open streams and of the connection, in order.

        Raises:
            ProtocolError: the connection must be closed.
        """
        if self._rest:
            received = self._rest + received
        events: list[Event] = []
        position, available = 0, len(received)
        unpack = frames.HEAD.unpack_from
        while available - position >= frames.HEAD_BYTES:
            high, low, kind, flags, number = unpack(received, position)
            begin = position + frames.HEAD_BYTES
            end = begin + (high << 16 | low)
            if end - begin > RECEIVE_FRAME_BYTES or not (self.ready or kind == SETTINGS):
                raise ProtocolError(
                    f"got a frame of type {kind} and {end - begin} bytes; this is not HTTP/2 as announced"
                )
            if end > available:
                break
            position = end
            if self._begun is not None and kind != CONTINUATION:
                raise ProtocolError(f"got a frame of type {kind} inside a header block")
            # Frames of unknown types are to be ignored.
            if (handler := self._handlers.get(kind)) is not None:
                handler(flags, number & LAST_STREAM, received[begin:end], events)
        self._rest = received[position:]
        return events

    # Frames, by type.

    def _on_data(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        # Padding counts towards the windows.
        used = len(payload)
        self._num_used += used
        if self._num_used * 2 >= self._receive_window:
            self._give_back(0, self._num_used)
            self._num_used = 0
        state = self._streams.get(number)
        if state is None:
            return
        if flags & PADDED:
            payload = unpad(payload)
        ended = bool(flags & END_STREAM)
        state.num_used += used
        if ended:
            self._end(number, state)
        elif state.num_used * 2 >= self._receive_window:
            self._give_back(number, state.num_used)
            state.num_used = 0
        events.append((DATA, number, payload, ended))

    def _on_headers(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        if flags & PADDED:
            payload = unpad(payload)
        if flags & WITH_PRIORITY:
            payload = payload[5:]
        if flags & END_HEADERS:
            self._on_block(number, payload, bool(flags & END_STREAM), events)
        else:
            self._begun = number, bool(flags & END_STREAM), payload

    def _on_continuation(self, flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        if self._begun is None or self._begun[0] != number:
            raise ProtocolError("got CONTINUATION without its HEADERS")
        _, ended, before = self._begun
        self._begun = number, ended, before + payload
        if flags & END_HEADERS:
            self._begun = None
            self._on_block(number, before + payload, ended, events)

    def _on_block(self, number: int, block: bytes, ended: bool, events: list[Event]) -> None:  # noqa: FBT001
        value = self._cache.get(block)
        if value is None:
            value = self._decode(block)
        state = self._streams.get(number)
        if state is None:
            return
        if ended:
            self._end(number, state)
        events.append((HEADERS, number, value, ended))

    def _decode(self, block: bytes) -> Any:
        stateless = self._decoder.header_table_size == 0
        try:
            value = self._read_headers(self._decoder.decode(block))
        except hpack.HPACKError as error:
            raise ProtocolError(f"got headers that are not HPACK: {error}") from None
        # Only without a table does the same block always say the same.
        if stateless and len(self._cache) < MAX_CACHED_BLOCKS:
            self._cache[block] = value
        return value

    def _on_reset(self, _flags: int, number: int, payload: bytes, events: list[Event]) -> None:
        if number in self._streams:
            self._forget(number)
            events.append((RST_STREAM, number, word(payload), True))

    def _on_settings(self, flags: int, _number: int, payload: bytes, _events: list[Event]) -> None:
        if flags & ACK:
            # The decoder keeps its table: gRPC core answers expired calls with blocks that do not say that theirs shrank.
            return
        if len(payload) % frames.SETTING.size:
            raise ProtocolError(f"got SETTINGS of {len(payload)} bytes; expected a multiple of {frames.SETTING.size}")
        for setting, value in frames.SETTING.iter_unpack(payload):
            self._apply(setting, value)
        if not self.ready or self._encoder.header_table.resized:
            # The first block fills the peer's table; those after it only point there.
            self._first_block = self._encoder.encode(self._headers)
            self._block = self._encoder.encode(self._headers)
        self.ready = True
        self._out.append(frame(SETTINGS, ACK, 0))
        self._send_blocked()

    def _apply(self, setting: int, value: int) -> None:
        if setting == HEADER_TABLE_SIZE:
            self._encoder.header_table_size = min(value, DEFAULT_TABLE_BYTES)
        elif setting == MAX_CONCURRENT_STREAMS:
            self._most_streams = value
        elif setting == MAX_FRAME_SIZE:
            self._frame_bytes = value
        elif setting == INITIAL_WINDOW_SIZE:
            if value > LARGEST_WINDOW_BYTES:
                raise ProtocolError(f"got an initial window of {value} bytes; the largest is {LARGEST_WINDOW_BYTES}")
            # Streams that are open get the difference, and may be left with less than nothing.
            for state in self._streams.values():
                state.window += value - self._initial_window
            self._initial_window = value

    def _on_push(self, _flags: int, _number: int, _payload: bytes, _events: list[Event]) -> None:
        raise ProtocolError("got PUSH_PROMISE, which was declined")

    def _on_ping(self, flags: int, _number: int, payload: bytes, _events: list[Event]) -> None:
        if not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))

    def _on_goaway(self, _flags: int, _number: int, payload: bytes, events: list[Event]) -> None:
        last = word(payload) & LAST_STREAM
        error_code = word(payload[4:])
        self.going_away = True
        events.append((GOAWAY, last, error_code, False))
        for number in [number for number in self._streams if number > last]:
            self._forget(number)
            events.append((RST_STREAM, number, REFUSED_STREAM, True))

    def _on_window_update(self, _flags: int, number: int, payload: bytes, _events: list[Event]) -> None:
        room = word(payload) & LAST_STREAM
        if number == 0:
            self.window += room
        elif (state := self._streams.get(number)) is not None:
            state.window += room
        self._send_blocked()

    # Sending, and the ends of streams.

    def _send(self, number: int, state: _Stream, body: bytes, ended: bool) -> None:  # noqa: FBT001
        num_bytes = len(body)
        if (
            state.unsent is None
            and num_bytes <= self._frame_bytes
            and num_bytes <= self.window
            and num_bytes <= state.window
        ):
            self.window -= num_bytes
            state.window -= num_bytes
            self._out.append(head(num_bytes, DATA, END_STREAM if ended else 0, number))
            self._out.append(body)
            return
        if state.unsent is None:
            state.unsent = deque()
        state.unsent.append((memoryview(body), ended))
        self._send_unsent(number, state)

    def _send_unsent(self, number: int, state: _Stream) -> None:
        unsent = state.unsent
        while unsent:
            body, ended = unsent[0]
            room = min(len(body), self._frame_bytes, max(0, self.window), max(0, state.window))
            if room == 0 and len(body):
                self._blocked[number] = None
                return
            last = room == len(body)
            self._out.append(head(room, DATA, END_STREAM if last and ended else 0, number))
            self._out.append(bytes(body[:room]))
            self.window -= room
            state.window -= room
            if last:
                unsent.popleft()
            else:
                unsent[0] = body[room:], ended
        state.unsent = None
        self._blocked.pop(number, None)

    def _send_blocked(self) -> None:
        for number in list(self._blocked):
            self._send_unsent(number, self._streams[number])

    def _end(self, number: int, state: _Stream) -> None:
        """Close a stream that the peer has ended; where we have more to send, tell it that nothing will come."""
        unfinished = not state.ended or state.unsent is not None
        self._forget(number)
        if unfinished:
            self._reset(number, NO_ERROR)

    def _forget(self, number: int) -> None:
        del self._streams[number]
        self._blocked.pop(number, None)

    def _reset(self, number: int, error_code: int) -> None:
        self._out.append(frame(RST_STREAM, 0, number, frames.WORD.pack(error_code)))

    def _give_back(self, number: int, num_bytes: int) -> None:
        self._out.append(frame(WINDOW_UPDATE, 0, number, frames.WORD.pack(num_bytes)))

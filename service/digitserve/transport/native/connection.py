"""One HTTP/2 connection of a client: frames in, calls of handlers and frames out.

    loop ──receive(bytes, time)──▶ Connection ──▶ Call, Stream ──▶ handlers
    loop ◀──take_output()───────── Connection ◀── Call, Stream ◀── reply, write, finish

It does no I/O and reads no clock, so tests drive it exactly. ``loop`` creates it for each accepted socket and calls it on the
worker's one thread. A violation of the protocol ends the stream (RST_STREAM) or the connection (GOAWAY) as RFC 9113 demands.
Header blocks are always decoded and DATA always counts for the connection's window, also on streams that were reset or
refused: otherwise the two sides would disagree about both.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from digitserve.log import get_logger
from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.telemetry.block import CloseReason, RefusalReason
from digitserve.telemetry.request_log import Refused
from digitserve.transport.handlers import StreamHandler, UnaryHandler
from digitserve.transport.native import frames
from digitserve.transport.native.call import Call
from digitserve.transport.native.control import PRIORITY_BYTES, ConnectionFailure, without_padding
from digitserve.transport.native.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    HEADER_BYTES,
    HEADERS,
    INITIAL_WINDOW,
    KIND_BITS,
    KIND_MASK,
    MAX_STREAM_ID,
    PADDED,
    PREFACE,
    SETTINGS,
    WITH_PRIORITY,
    ErrorCode,
    unpack_header,
)  # fmt: skip
from digitserve.transport.native.head import Problem, RequestHead, trailers_problem
from digitserve.transport.native.hpack import Decoder, HpackError, encode_fields
from digitserve.transport.native.limits import FIRST_WINDOW, Counts, Limits, ReceiveBudget
from digitserve.transport.native.message import (
    MESSAGE_PREFIX_BYTES,
    RESPONSE_HEADERS,
    encode_answer,
    encode_status,
    unpack_prefix,
)  # fmt: skip
from digitserve.transport.native.multiplex import RpcStream
from digitserve.transport.native.stream import Stream
from digitserve.transport.native.time_limits import TimeLimits

CONNECTION_WINDOW = 1 << 24
"""Receive window of a connection. It is given back at once, because the windows of its streams bound what is held."""

_HTTP_STATUS = {
    Problem.NOT_POST: encode_fields([(b":status", b"405"), (b"allow", b"POST")]),
    Problem.NOT_GRPC: encode_fields([(b":status", b"415"), (b"accept", b"application/grpc")]),
    Problem.FIELDS_TOO_LARGE: encode_fields([(b":status", b"431")]),
}
_REFUSALS = {
    Problem.NOT_POST: RefusalReason.NOT_GRPC,
    Problem.NOT_GRPC: RefusalReason.NOT_GRPC,
    Problem.FIELDS_TOO_LARGE: RefusalReason.HEADERS_TOO_LARGE,
    Problem.BAD_TIMEOUT: RefusalReason.BAD_TIMEOUT,
}
_ENCODINGS = {b"identity", b"gzip"}
_ACCEPT_ENCODING = encode_fields([(b"grpc-accept-encoding", b"identity,gzip")])

_HALF_WINDOW = CONNECTION_WINDOW // 2
"""Bytes of the connection's window below which it is restored."""

_FORM_FLAGS = END_HEADERS | PADDED | WITH_PRIORITY
"""Flags that determine what HEADERS contains; with END_HEADERS alone it is exactly a whole header block."""

_log = get_logger("digitserve.transport.native.connection")


@dataclass(frozen=True, slots=True)
class Method:
    """An RPC method that is served: exactly one of the handlers is set."""

    unary: UnaryHandler | None = None
    stream: StreamHandler | None = None


class Connection(TimeLimits):
    """The server's side of a connection; owned by ``loop``, which also drops it."""

    __slots__ = (
        "_arrived", "_block", "_block_flags", "_block_id", "_decoder", "_max_whole_bytes", "_methods", "_preface_done",
        "_receive_window", "_requests", "_rest", "_unknown",
    )  # fmt: skip

    def __init__(
        self,
        methods: Mapping[bytes, Method],
        unknown: UnaryHandler,
        limits: Limits,
        budget: ReceiveBudget,
        counts: Counts,
        now: float,
        on_output: Callable[[], None],
    ) -> None:
        """Accept a connection.

        Args:
            methods: by their paths.
            unknown: handles calls of all other paths; its ``on_accept`` fails them.
            limits: of this connection.
            budget: of the worker.
            counts: counts closed connections and refused requests.
            now: monotonic time in seconds.
            on_output: called when ``take_output`` and ``on_sent`` must be called, once until they are.
        """
        super().__init__(limits, budget, counts, now, on_output)
        self._max_whole_bytes = min(FRAME_BYTES, MESSAGE_PREFIX_BYTES + limits.max_message_bytes)
        self._methods = methods
        self._unknown = unknown
        self._requests = counts.requests
        self._rest = b""
        self._decoder = Decoder(max_list_bytes=limits.max_header_list_bytes, max_fields=limits.max_header_fields)
        self._preface_done = False
        self._receive_window = CONNECTION_WINDOW
        self._block: bytearray | None = None
        self._block_id = self._block_flags = 0
        self._arrived = 0.0
        self.send(
            frames.settings(
                {
                    frames.MAX_CONCURRENT_STREAMS: self._max_streams,
                    frames.MAX_HEADER_LIST_SIZE: limits.max_header_list_bytes,
                }
            )
            + frames.window_update(0, CONNECTION_WINDOW - INITIAL_WINDOW)
        )

    # Called by the loop.

    def receive(self, received: bytes, now: float, arrived: float) -> None:
        """Handle what the socket brought.

        Args:
            received: bytes, from one byte to many frames.
            now: monotonic time in seconds.
            arrived: Unix time in seconds after which the bytes may have arrived; relative deadlines count from it.
        """
        if self.closing:
            return
        self._now, self._arrived = now, arrived
        try:
            self._rest = self._parse(self._rest + received if self._rest else received)
        except ConnectionFailure as failure:
            flood = failure.code is ErrorCode.ENHANCE_YOUR_CALM
            self.close(failure.code, str(failure), CloseReason.FLOOD if flood else CloseReason.PROTOCOL_ERROR)
        except HpackError as error:
            self.close(ErrorCode.COMPRESSION_ERROR, str(error), CloseReason.PROTOCOL_ERROR)
        except Exception:
            _log.exception("a connection failed")
            self.close(ErrorCode.INTERNAL_ERROR, "internal error", CloseReason.INTERNAL)

    def drop(self) -> None:
        """Drop all calls and free the input: after an error the socket stays open until its last output is sent."""
        super().drop()
        # A deferred call refers to its stream, and that to the connection: a reference cycle.
        self._rest, self._block, self._deferred = b"", None, []

    def trim(self) -> int:
        """Give up memory that only saves time; return about how many of ``num_held_bytes`` it took."""
        num_bytes = self._decoder.forget_blocks()
        self.num_held_bytes -= num_bytes
        return num_bytes

    def _num_receiving_bytes(self) -> int:
        return len(self._rest) + len(self._block or b"") + self._decoder.num_held_bytes()

    # Frames.

    def _parse(self, buffer: bytes) -> bytes:  # noqa: C901, PLR0912, PLR0915 - the hot path calls no function
        """Handle all whole frames, and return the rest."""
        position, end = 0, len(buffer)
        max_whole_bytes = self._max_whole_bytes
        if not self._preface_done:
            if not PREFACE.startswith(buffer[: len(PREFACE)]):
                raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "expected the connection preface of HTTP/2")
            if end < len(PREFACE):
                return buffer
            position, self._preface_done = len(PREFACE), True
        streams = self.streams
        expects_one = not self._settings_received or self._block is not None  # only one type of frame is allowed now
        while end - position >= HEADER_BYTES and not self.closing:
            length_and_kind, flags, stream_id = unpack_header(buffer, position)
            length = length_and_kind >> KIND_BITS
            kind = length_and_kind & KIND_MASK
            if length > FRAME_BYTES:
                raise ConnectionFailure(
                    ErrorCode.FRAME_SIZE_ERROR, f"got a frame of {length} bytes, expected at most {FRAME_BYTES}"
                )
            start = position + HEADER_BYTES
            position = start + length
            if position > end:
                return buffer[start - HEADER_BYTES :]
            stream_id &= MAX_STREAM_ID
            if expects_one:
                self._check_expected(kind, stream_id)
            if kind == DATA:
                stream = streams.get(stream_id)
                self._receive_window = window = self._receive_window - length
                if window < _HALF_WINDOW:
                    self._restore_window()
                if stream is None or stream.remote_closed:
                    self._on_late_data(stream_id, flags, length)
                    continue
                stream.receive_window = window = stream.receive_window - length
                if window < 0:
                    self._reset(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
                    continue
                if (
                    flags == END_STREAM
                    and MESSAGE_PREFIX_BYTES <= length <= max_whole_bytes
                    and stream.__class__ is Call
                    and stream.buffer is None
                ):
                    # The common case: the whole request is one message in one frame.
                    compressed, size = unpack_prefix(buffer, start)
                    expected = stream.head.content_length
                    if (
                        not compressed
                        and size == length - MESSAGE_PREFIX_BYTES
                        and (expected is None or expected == length)
                    ):
                        stream.remote_closed = True
                        if stream.open:
                            stream.handler.on_message(stream, buffer[start + MESSAGE_PREFIX_BYTES : position])
                        continue
                self._on_data(stream, flags, buffer[start:position])
            elif kind == HEADERS:
                if flags & _FORM_FLAGS == END_HEADERS and stream_id & 1:
                    self._on_block(stream_id, flags, buffer[start:position])
                else:
                    self._on_headers(stream_id, flags, buffer[start:position])
                    expects_one = self._block is not None
            else:
                if kind == CONTINUATION:
                    self._on_continuation(flags, buffer[start:position])
                else:
                    self._on_control_frame(kind, flags, stream_id, buffer[start:position])
                expects_one = self._block is not None
        return buffer[position:]

    def _check_expected(self, kind: int, stream_id: int) -> None:
        """Check a frame while only one type of frame is allowed."""
        if not self._settings_received and kind != SETTINGS:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "expected SETTINGS as the first frame")
        if self._block is not None and (kind != CONTINUATION or stream_id != self._block_id):
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "expected CONTINUATION of the open header block")

    def _on_data(self, stream: RpcStream, flags: int, payload: bytes) -> None:
        if flags & PADDED:
            payload = without_padding(payload)
        ended = bool(flags & END_STREAM)
        if not payload and not ended:
            self._count_control_frame()
        expected = stream.head.content_length
        if expected is not None:
            stream.num_received += len(payload)
            if stream.num_received > expected or (ended and stream.num_received != expected):
                self._reset(stream.stream_id, ErrorCode.PROTOCOL_ERROR)
                return
        stream.on_data(payload, ended=ended)

    def _on_late_data(self, stream_id: int, flags: int, length: int) -> None:
        """Handle DATA on a stream that does not exist any more, or whose request has ended."""
        answered = self.answered.get(stream_id)
        if answered is not None:
            self._on_ignored_data(stream_id, answered, flags, length)
            return
        if self._is_idle(stream_id):
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got DATA on stream {stream_id}, which is not open")
        self._count_control_frame()
        if not self._ignores(stream_id):
            self._reset(stream_id, ErrorCode.STREAM_CLOSED)

    def _on_ignored_data(self, stream_id: int, answered: tuple[float, int], flags: int, length: int) -> None:
        """Ignore DATA of a request that is already answered, but apply its flow-control window."""
        started, window = answered
        window -= length
        if window < 0:
            self._reset(stream_id, ErrorCode.FLOW_CONTROL_ERROR)
        elif flags & END_STREAM:
            self._end_answered(stream_id)
        else:
            self.answered[stream_id] = started, window
            if not length:
                self._count_control_frame()

    def _on_headers(self, stream_id: int, flags: int, payload: bytes) -> None:
        if not stream_id & 1:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, f"got HEADERS on stream {stream_id}, expected an odd one")
        num_before = PRIORITY_BYTES if flags & WITH_PRIORITY else 0
        if flags & PADDED:
            payload = without_padding(payload, num_before)
        if len(payload) < num_before:
            raise ConnectionFailure(ErrorCode.FRAME_SIZE_ERROR, "got HEADERS that end within their priority")
        payload = payload[num_before:]
        if flags & END_HEADERS:
            self._on_block(stream_id, flags, payload)
        else:
            self._block, self._block_id, self._block_flags = bytearray(payload), stream_id, flags
            self._block_started = self._now

    def _on_continuation(self, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise ConnectionFailure(ErrorCode.PROTOCOL_ERROR, "got CONTINUATION without an open header block")
        # Many small frames would cost time without adding bytes.
        self._count_control_frame()
        self._block += payload
        if len(self._block) > self.limits.max_header_block_bytes:
            raise ConnectionFailure(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"got a header block of more than {self.limits.max_header_block_bytes} bytes",
            )
        if flags & END_HEADERS:
            block, self._block, self._block_started = self._block, None, None
            self._on_block(self._block_id, self._block_flags, bytes(block))

    def _on_block(self, stream_id: int, flags: int, block: bytes) -> None:
        """Handle a whole header block: the start of a request, or its trailers."""
        if stream_id <= self._last_id:
            self._on_trailers(stream_id, flags, block)
            return
        head = self._decoder.decode_request(block)
        self._last_id = stream_id
        if self._final_id is not None:
            return  # the client had not received the last GOAWAY; it knows that this stream was not processed
        if len(self.streams) + len(self.answered) >= self._max_streams:
            self._refuse(stream_id)
        elif head.problem is not None:
            self._on_problem(stream_id, flags, head)
        elif flags & END_STREAM and head.content_length:
            self._reset(stream_id, ErrorCode.PROTOCOL_ERROR)  # malformed: RFC 9113, section 8.1.1
        else:
            self._start(stream_id, flags, head)

    def _start(self, stream_id: int, flags: int, head: RequestHead) -> None:
        """Start an RPC."""
        method = self._methods.get(head.path)
        deadline = self._arrived + head.timeout_s
        if method is not None and method.stream is not None:
            stream = Stream(self, stream_id, head, self._now, deadline, method.stream)
            self.streams[stream_id] = stream
            stream.remote_closed = bool(flags & END_STREAM)
            stream.start()
            if stream.open and head.encoding not in _ENCODINGS:
                _fail_unknown_encoding(stream)
            return
        handler = self._unknown if method is None or method.unary is None else method.unary
        status = handler.refusal(deadline, self.source)
        if status is not None:
            self._reject(stream_id, flags, head, status)
            return
        self.streams[stream_id] = call = Call(self, stream_id, head, self._now, deadline, handler)
        if flags & END_STREAM:
            call.remote_closed = True
        handler.on_accept(call)
        if call.open:
            if head.encoding not in _ENCODINGS:
                _fail_unknown_encoding(call)
            elif flags & END_STREAM:
                call.on_data(b"", ended=True)

    def _reject(self, stream_id: int, flags: int, head: RequestHead, status: Status) -> None:
        """Answer an RPC before its message is read; the message is ignored."""
        self.num_rejected += 1
        self.send_answer(stream_id, *encode_answer(status))
        if not flags & END_STREAM:
            self.answered[stream_id] = self._now, FIRST_WINDOW
        if self._now >= self._requests.refusals_from:
            caller = Refused(self.peer, head.fields, self._now, self._arrived + head.timeout_s)
            self._requests.refused(head.path.decode("latin-1"), caller, status, self._now)

    def _on_problem(self, stream_id: int, flags: int, head: RequestHead) -> None:
        """Answer a request that is no gRPC call."""
        if head.problem in {None, Problem.MALFORMED}:
            self._reset(stream_id, ErrorCode.PROTOCOL_ERROR)
            return
        self.counts.stream_refused(_REFUSALS[head.problem])
        block = (
            RESPONSE_HEADERS + encode_status(Status(Code.INTERNAL, head.message))
            if head.problem is Problem.BAD_TIMEOUT
            else _HTTP_STATUS[head.problem]
        )
        self.send_block(stream_id, block, END_STREAM)
        if not flags & END_STREAM:
            # RST_STREAM could tell the client to stop, but some clients (curl 7.88) then discard the answer.
            self.answered[stream_id] = self._now, FIRST_WINDOW

    def _on_trailers(self, stream_id: int, flags: int, block: bytes) -> None:
        fields = self._decoder.decode_fields(block)
        stream = self.streams.get(stream_id)
        if stream_id in self.answered:
            if not flags & END_STREAM or trailers_problem(fields) is not None:
                self._reset(stream_id, ErrorCode.PROTOCOL_ERROR)
            else:
                self._end_answered(stream_id)
        elif stream is None or stream.remote_closed:
            if not self._ignores(stream_id):
                raise ConnectionFailure(ErrorCode.STREAM_CLOSED, f"got HEADERS on stream {stream_id}, which is closed")
        elif not flags & END_STREAM or trailers_problem(fields) is not None:
            self._reset(stream_id, ErrorCode.PROTOCOL_ERROR)
        else:
            self._on_data(stream, END_STREAM, b"")

    # What several of them need.

    def _restore_window(self) -> None:
        if self._receive_window < 0:
            raise ConnectionFailure(ErrorCode.FLOW_CONTROL_ERROR, "got more DATA than the connection's window allows")
        self.send(frames.window_update(0, CONNECTION_WINDOW - self._receive_window))
        self._receive_window = CONNECTION_WINDOW

    def _refuse(self, stream_id: int) -> None:
        """Refuse a stream over the limit (RFC 9113, section 5.1.2).

        REFUSED_STREAM makes clients repeat the call, so it is sent only before the client has acknowledged the limit. grpcio
        and grpc-js wait until they may open a stream, so they never get PROTOCOL_ERROR.
        """
        code = ErrorCode.PROTOCOL_ERROR if self._settings_acknowledged else ErrorCode.REFUSED_STREAM
        self._reset(stream_id, code, RefusalReason.TOO_MANY)


def _fail_unknown_encoding(stream: RpcStream) -> None:
    """Fail a request whose messages cannot be decompressed."""
    encoding = stream.head.encoding.decode("ascii", "replace")
    status = Status(Code.UNIMPLEMENTED, f"got grpc-encoding {encoding}, expected identity or gzip")
    stream.fail_locally(status, _ACCEPT_ENCODING)

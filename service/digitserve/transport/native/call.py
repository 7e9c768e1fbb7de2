"""Unary calls: the ``UnaryCall`` of ``handlers`` on an HTTP/2 stream.

    Connection ──on_data──▶ Call ──on_message──▶ UnaryHandler
    Output ◀──headers, message, trailers───── Call ◀──reply, fail── UnaryHandler

Created by ``connection`` for each request of a unary method; used on the worker's one thread. A message that arrives as a whole
is passed to the handler by ``connection`` itself.
"""

from struct import Struct

from digitserve.protocol.names import Code
from digitserve.protocol.status import NO_MESSAGE, Status
from digitserve.transport.handlers import UnaryHandler
from digitserve.transport.native import frames
from digitserve.transport.native.frames import END_HEADERS, END_STREAM, FRAME_BYTES, HEADERS, KIND_BITS
from digitserve.transport.native.message import (
    MESSAGE_PREFIX_BYTES,
    OK_TRAILERS,
    RESPONSE_HEADERS,
    MessageError,
    encode_status,
    inflated_bytes,
    parse_prefix,
)  # fmt: skip
from digitserve.transport.native.multiplex import RpcStream

# The fixed parts of the frames of an answer: all but stream id and message.
_HEADERS_START = frames.frame(HEADERS, END_HEADERS, 0, RESPONSE_HEADERS)[:5]
_TRAILERS_START = frames.frame(HEADERS, END_HEADERS | END_STREAM, 0, OK_TRAILERS)[:5]
_FIXED_BYTES = 3 * frames.HEADER_BYTES + len(RESPONSE_HEADERS) + len(OK_TRAILERS)

_pack_start = Struct(f">5sI{len(RESPONSE_HEADERS)}sIBIBI").pack
"""HEADERS; the header of DATA: length and type, flags, stream id; the prefix of the message: not compressed, length."""

_pack_end = Struct(f">5sI{len(OK_TRAILERS)}s").pack
"""HEADERS with the trailers."""


class Call(RpcStream):
    """A ``UnaryCall``. It collects the message until the end of the request."""

    __slots__ = ("_compressed", "_num_bytes")  # both are set with the buffer: most calls have none

    handler: UnaryHandler

    # Called by the connection.

    def on_data(self, payload: bytes, *, ended: bool) -> None:
        """Collect the message, and hand it over at the end of the request."""
        if ended:
            self.remote_closed = True
        if not self.open:
            return
        try:
            self._collect(payload)
            if self.open and ended and not self._hand_over():
                self._connection.waiting[self] = None
        except MessageError as error:
            self.fail_locally(Status(Code.INTERNAL, str(error)))

    def on_room(self) -> bool:
        """Try again to reserve the message, or to decompress it."""
        if not self.open:
            return True
        if not self.remote_closed:
            return self._reserve()
        if self.buffer is None:
            return True  # the whole message arrived without a reservation, and was passed to the handler
        try:
            return self._hand_over()
        except MessageError as error:
            self.fail_locally(Status(Code.INTERNAL, str(error)))
            return True

    def abort(self) -> None:
        """Drop the call, and report it to the handler."""
        self._discard_unsent()
        self._release()
        if self.open:
            self.open = False
            self.handler.on_close(self)
            self.context = None

    def fail_locally(self, status: Status, more: bytes = b"") -> None:
        """Send a status that the transport decides, and report it to the handler."""
        self.open = False
        self._close(RESPONSE_HEADERS + encode_status(status) + more)
        if status.code is Code.DEADLINE_EXCEEDED:
            self.handler.on_close(self)
        else:
            self.handler.on_failed(self, status)
        self.context = None

    # Called by the handler; see UnaryCall.

    def reply(self, body: bytes) -> None:
        """Send the response and status OK."""
        self.open = False
        # The context usually refers to the call: a reference cycle otherwise.
        self.context = None
        connection = self._connection
        size = MESSAGE_PREFIX_BYTES + len(body)
        if (
            size <= connection.send_window
            and size <= self.send_window
            and size <= FRAME_BYTES
            and self.remote_closed
            and connection.may_send_fixed_blocks
        ):
            connection.send_window -= size
            stream_id = self.stream_id
            start = _pack_start(
                _HEADERS_START, stream_id, RESPONSE_HEADERS, size << KIND_BITS, 0, stream_id, 0, len(body)
            )
            end = _pack_end(_TRAILERS_START, stream_id, OK_TRAILERS)
            connection.send_last(stream_id, (start, body, end), _FIXED_BYTES + size)
            return
        connection.send_block(self.stream_id, RESPONSE_HEADERS, 0)
        self._queue(body)
        self._trailers = OK_TRAILERS
        self.pump()

    def fail(self, status: Status) -> None:
        """Send a status other than OK."""
        self.open = False
        self.context = None
        self._close_with(status)

    def _collect(self, payload: bytes) -> None:
        buffer = self.buffer
        if buffer is None:
            buffer = self.buffer = bytearray()
            self._compressed = False
            self._num_bytes = -1  # of the message with its prefix; unknown before the prefix
        if not self._hold(len(buffer) + len(payload)):
            self._fail_without_room()
            return
        buffer += payload
        if self._num_bytes < 0:
            if len(buffer) < MESSAGE_PREFIX_BYTES:
                self._grant(MESSAGE_PREFIX_BYTES)  # in case padding has used up the first window
                return
            self._compressed, size = parse_prefix(buffer)
            self._num_bytes = MESSAGE_PREFIX_BYTES + size
            if size > self._connection.limits.max_message_bytes:
                self.handler.on_too_large(self)
                return
        if len(buffer) > self._num_bytes:
            raise MessageError("got more than one message, expected exactly one")
        if not self.remote_closed and not self._reserve():
            self._connection.waiting[self] = None

    def _reserve(self) -> bool:
        """Allow the client to send the rest of the message; return false if the budget does not suffice yet."""
        missing = self._num_bytes - len(self.buffer or b"")
        # The first window needs no reservation, and holds most messages.
        if missing > self.receive_window and not self._hold_reserved(self._num_bytes):
            return False
        self._grant(missing)
        return True

    def _hand_over(self) -> bool:
        """Pass the message to the handler; return false if it must wait for its decompression."""
        buffer = self.buffer
        if not buffer:
            self.fail_locally(NO_MESSAGE)
            return True
        if len(buffer) != self._num_bytes:
            raise MessageError("got a message that ends too early")
        num_bytes, max_bytes = 0, self._connection.limits.max_message_bytes
        if self._compressed:
            num_bytes = inflated_bytes(buffer, self.head.encoding)
            size = num_bytes if num_bytes <= max_bytes else 0
            if not self._connection.budget.inflate.may_start(self._num_bytes, size):
                return False
        body: bytes | None = bytes(memoryview(buffer)[MESSAGE_PREFIX_BYTES:])
        del buffer
        self._release()
        if self._compressed:
            body = self._connection.budget.inflate.inflate(body or b"", num_bytes, max_bytes)
        if body is None:
            self.handler.on_too_large(self)
        else:
            self.handler.on_message(self, body)
        return True

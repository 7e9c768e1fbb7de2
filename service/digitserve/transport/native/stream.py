"""Bidirectional streams, and streams from the server: the ``ServerStream`` of ``handlers`` on an HTTP/2 stream.

    Connection ──on_data──▶ Stream ──on_message, after a read──▶ StreamHandler
    Output ◀──messages───── Stream ◀──read, write, finish─────── StreamHandler

Created by ``connection`` for each request of a streaming method; used on the worker's one thread. The receive window of a
stream grows only while its handler reads, so a handler that does not read slows its client down.
"""

import math

from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.transport.handlers import StreamHandler
from digitserve.transport.native.head import RequestHead
from digitserve.transport.native.limits import FIRST_WINDOW
from digitserve.transport.native.message import (
    MESSAGE_PREFIX_BYTES,
    RESPONSE_HEADERS,
    MessageError,
    encode_status,
    inflated_bytes,
    parse_prefix,
    unpack_prefix,
)  # fmt: skip
from digitserve.transport.native.multiplex import Output, RpcStream


class Stream(RpcStream):
    """A ``ServerStream``. It keeps what arrives before the handler reads, at most its receive window."""

    __slots__ = ("_delivering", "_num_written", "_reading", "_reported", "_reserved_since", "_waits")

    handler: StreamHandler

    def __init__(
        self,
        connection: Output,
        stream_id: int,
        head: RequestHead,
        accepted: float,
        deadline: float,
        handler: StreamHandler,
    ) -> None:
        super().__init__(connection, stream_id, head, accepted, deadline, handler)
        self.buffer = bytearray()
        self._reading = False
        self._delivering = False
        self._reported = False
        self._num_written = 0  # messages that are sent and not yet reported
        self._reserved_since = math.inf
        self._waits = False

    # Called by the connection.

    def on_data(self, payload: bytes, *, ended: bool) -> None:
        """Keep a part of the request's body, and deliver a message if the handler waits for one."""
        if ended:
            self.remote_closed = True
        buffer = self.buffer
        if not self.open or buffer is None:
            return
        if not buffer and self._reading and not self._delivering and len(payload) >= MESSAGE_PREFIX_BYTES:
            compressed, size = unpack_prefix(payload)
            num_expected = len(payload) - MESSAGE_PREFIX_BYTES
            if not compressed and size == num_expected <= self._connection.limits.max_message_bytes:
                # The common case: a frame is one message that the handler waits for.
                self._reading, self._delivering = False, True
                try:
                    self.handler.on_message(self, payload[MESSAGE_PREFIX_BYTES:])
                finally:
                    self._delivering = False
                self._deliver()
                return
        if not self._hold(len(buffer) + len(payload)):
            self._fail_without_room()
            return
        buffer += payload
        self._deliver()

    def on_room(self) -> bool:
        """Try again to reserve the message that the handler waits for, or to decompress it."""
        self._waits = False
        self._deliver()
        return not self._waits

    def unfinished_since(self, now: float) -> float:
        """Return when this was first called for a message with a reservation: it keeps others out. A stream may be idle."""
        if self._reserved and self._reserved_since > now:
            self._reserved_since = now
        return self._reserved_since

    def abort(self) -> None:
        """Drop the stream, and report it to the handler."""
        self.open = False
        self._discard_unsent()
        self._release()
        self._report(cancelled=True)

    def fail_locally(self, status: Status, more: bytes = b"") -> None:
        """Send a status that the transport decides, and report the stream to the handler."""
        self.open = False
        self._close(encode_status(status) + more)
        self._report(cancelled=True)

    # Called by the handler; see ServerStream.

    def start(self) -> None:
        """Send the response headers, and report the stream to its handler."""
        self._connection.send_block(self.stream_id, RESPONSE_HEADERS, 0)
        self.handler.on_accept(self)

    def read(self) -> None:
        """Request the next message; at most one read may be outstanding."""
        self._reading = True
        if self._delivering:
            return  # the loop in _deliver goes on
        if self.buffer or self.remote_closed:
            self._connection.defer(self._deliver)
        elif not self._reserve():
            self._wait()

    def write(self, body: bytes) -> None:
        """Append a message to those that wait to be sent."""
        self._queue(body)

    def flush(self) -> None:
        """Start sending what was written."""
        self.pump()

    def finish(self, status: Status) -> None:
        """Send the status; only after all written messages are sent."""
        self.open = False
        self._trailers = encode_status(status)
        self.pump()

    def _on_sent(self) -> None:
        if not self._num_written:
            self._connection.defer(self._report_written)
        self._num_written += 1

    def _report_written(self) -> None:
        num_written, self._num_written = self._num_written, 0
        for _ in range(num_written):
            if self.open:
                self.handler.on_written(self)

    def _on_finished(self) -> None:
        self._report(cancelled=False)

    def _report(self, *, cancelled: bool) -> None:
        if not self._reported:
            self._reported = True
            self.handler.on_close(self, cancelled=cancelled)
            self.context = None

    def _deliver(self) -> None:
        """Deliver messages while the handler reads. A handler that reads while it gets one continues this loop."""
        if self._delivering:
            return
        self._delivering = True
        try:
            while self._reading and self.open and self._deliver_next():
                pass
        except MessageError as error:
            self.fail_locally(Status(Code.INTERNAL, str(error)))
        finally:
            self._delivering = False

    def _deliver_next(self) -> bool:
        """Deliver one message or the end of the request; return false if there is neither yet."""
        buffer = self.buffer
        assert buffer is not None
        if len(buffer) >= MESSAGE_PREFIX_BYTES:
            compressed, size = parse_prefix(buffer)
            stop = MESSAGE_PREFIX_BYTES + size
            if size > self._connection.limits.max_message_bytes:
                return self._deliver_too_large()
            if len(buffer) >= stop:
                return self._deliver_message(buffer, stop, compressed=compressed)
        if not self.remote_closed:
            if not self._reserve():
                self._wait()
            return False
        if buffer:
            raise MessageError("got a message that ends too early")
        self._reading = False
        self.handler.on_end(self)
        return True

    def _deliver_message(self, buffer: bytearray, stop: int, *, compressed: bool) -> bool:
        """Deliver the message that ends at ``stop``; return false if it waits for its decompression or ends the stream."""
        connection = self._connection
        num_bytes, max_bytes = 0, connection.limits.max_message_bytes
        if compressed:
            num_bytes = inflated_bytes(memoryview(buffer)[:stop], self.head.encoding)
            size = num_bytes if num_bytes <= max_bytes else 0
            # One that waits gets its turn by ``on_room`` only: clients that send much must not pass the others.
            if self._waits or not connection.budget.inflate.may_start(stop, size):
                self._wait()
                return False
        body: bytes | None = bytes(memoryview(buffer)[MESSAGE_PREFIX_BYTES:stop])
        del buffer[:stop]
        self._give_back()
        self._reserved_since = math.inf
        if not self._hold(len(buffer)):
            self._fail_without_room()
            return False
        if compressed:
            body = connection.budget.inflate.inflate(body or b"", num_bytes, max_bytes)
        if body is None:
            return self._deliver_too_large()
        self._reading = False
        self.handler.on_message(self, body)
        return True

    def _wait(self) -> None:
        """Wait for the worker's budget; ``on_room`` tries again."""
        self._waits = True
        self._connection.waiting[self] = None

    def _deliver_too_large(self) -> bool:
        self._reading = False
        self._release()
        self.handler.on_too_large(self)
        return False

    def _reserve(self) -> bool:
        """Allow the client to send the rest of a message, or the next ones; return false if the budget does not suffice."""
        buffer = self.buffer
        assert buffer is not None
        num_bytes = 0
        if len(buffer) >= MESSAGE_PREFIX_BYTES:
            num_bytes = MESSAGE_PREFIX_BYTES + parse_prefix(buffer)[1]
        if num_bytes > FIRST_WINDOW and not self._hold_reserved(num_bytes):
            return False
        wanted = max(num_bytes, FIRST_WINDOW) - len(buffer)
        # A window update for each message would cost more than the message.
        if self.receive_window < min(wanted, FIRST_WINDOW // 2) or num_bytes - len(buffer) > self.receive_window:
            self._grant(wanted)
        return True

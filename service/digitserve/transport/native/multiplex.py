"""RPCs that share a connection: its output and windows, and the stream of one RPC.

    Connection ──on_data, abort, fail_locally──▶ RpcStream ◀─── Call, Stream
    RpcStream ──DATA, trailers, WINDOW_UPDATE──▶ Output ──take_output──▶ loop
                                                   ▲
                                     Connection ───┘ SETTINGS, PING, GOAWAY

``connection.Connection`` extends ``Output`` by the receiving side; ``call.Call`` and ``stream.Stream`` extend ``RpcStream``. Does
no I/O; used on the worker's one thread.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.telemetry.block import CloseReason, RefusalReason
from digitserve.transport.native import frames
from digitserve.transport.native.frames import (
    DATA,
    END_STREAM,
    FRAME_BYTES,
    INITIAL_WINDOW,
    KIND_BITS,
    pack_header,
    pack_id,
)  # fmt: skip
from digitserve.transport.native.head import Field, RequestHead
from digitserve.transport.native.hpack import TABLE_SIZE_ZERO
from digitserve.transport.native.limits import FIRST_WINDOW, Counts, Limits, ReceiveBudget
from digitserve.transport.native.message import encode_answer, pack_prefix
from digitserve.types import Source

OVERLOADED = Status(
    Code.RESOURCE_EXHAUSTED, "the server holds too many unfinished messages of all its clients; retry later"
)
EXPIRED = Status(Code.DEADLINE_EXCEEDED, "the deadline of the call has passed")

STREAM_BYTES = 1_500
"""About what an open stream takes in memory, without messages and header fields (measured)."""

ANSWERED_BYTES = 150
"""Approximate memory of an entry of ``Output.answered``."""


class Output:
    """The sending side of a connection and its streams.

    Attributes:
        limits: of this connection.
        budget: of the worker.
        counts: counts closed connections and refused requests.
        source: counts the pending images of its requests.
        streams: open streams by their ids.
        answered: streams whose status is sent and whose request has not ended: monotonic time in seconds of their start, and
            bytes that the peer may still send. The rest of the request is ignored.
        blocked: streams that wait for the connection's window or for the socket, in order. One that waits for its own
            window is not among them: only its WINDOW_UPDATE or SETTINGS continue it.
        waiting: streams that wait for the budget, oldest first.
        send_window: bytes of DATA that the peer allows to send on the connection.
        first_send_window: the send window of new streams.
        may_send_fixed_blocks: whether the first header block, which is special, was sent.
        num_rejected: calls that were rejected before their message was read, since the last ``check``.
        num_unsent_bytes: output that the socket has not taken.
        num_held_bytes: about what the connection takes in memory, at the last ``check``: unsent output, waiting answers, open
            requests, frames that are not complete, the table of header fields. Messages count in ``budget``.
        closing: nothing more is read; the socket is to be closed once the output is sent.
        close_reason: why the server ends the connection; None if it does not.
        peer: address of the client, as the socket reports it; for log lines.
    """

    __slots__ = (
        "_deferred", "_final_id", "_on_output", "_output", "answered", "blocked", "budget", "close_reason", "closing",
        "counts", "first_send_window", "limits", "may_send_fixed_blocks", "num_held_bytes", "num_rejected",
        "num_unsent_bytes", "peer", "send_window", "source", "streams", "waiting",
    )  # fmt: skip

    def __init__(self, limits: Limits, budget: ReceiveBudget, counts: Counts, on_output: Callable[[], None]) -> None:
        """Start without streams.

        Args:
            limits: of this connection.
            budget: of the worker.
            counts: counts closed connections and refused requests.
            on_output: called when ``take_output`` and ``on_sent`` must be called, once until they are.
        """
        self.limits = limits
        self.budget = budget
        self.counts = counts
        self.source = Source()
        self.streams: dict[int, RpcStream] = {}
        self.answered: dict[int, tuple[float, int]] = {}
        self.blocked: dict[RpcStream, None] = {}
        self.waiting: dict[RpcStream, None] = {}
        self.send_window = INITIAL_WINDOW
        self.first_send_window = INITIAL_WINDOW
        self.may_send_fixed_blocks = False
        self.num_rejected = 0
        self.num_unsent_bytes = 0
        self.num_held_bytes = 0
        self.closing = False
        self.close_reason: CloseReason | None = None
        self.peer: Any = None
        self._on_output = on_output
        self._output: list[bytes] = []
        self._deferred: list[Callable[[], None]] = []
        self._final_id: int | None = None

    # Called by the loop.

    def take_output(self) -> bytes:
        """Return the bytes to send, and forget them; ``on_sent`` reports when the socket has taken them."""
        output, self._output = self._output, []
        return b"".join(output) if len(output) > 1 else output[0] if output else b""

    def has_output(self) -> bool:
        """Return whether ``take_output`` and ``on_sent`` must be called."""
        return bool(self._output or self._deferred)

    def on_sent(self, num_bytes: int) -> bool:
        """Count bytes that the socket has taken, continue answers that waited for it, and make deferred calls.

        Returns:
            Whether there were any: the handler may have got messages.
        """
        self.num_unsent_bytes -= num_bytes
        if self.blocked and not self.is_congested():
            self.pump()
        if not self._deferred or self.is_congested():
            return False
        deferred, self._deferred = self._deferred, []
        for call in deferred:
            call()
        return True

    def wants_read(self) -> bool:
        """Return whether the socket may be read: not while too much waits to be sent."""
        return not self.closing and self.num_unsent_bytes <= self.limits.max_unsent_bytes

    def is_congested(self) -> bool:
        """Return whether answers must wait because the socket takes no more."""
        return self.num_unsent_bytes > self.limits.max_unsent_bytes

    # Called by the streams.

    def defer(self, call: Callable[[], None]) -> None:
        """Make a call of a handler later, in ``on_sent``: not while the same handler calls the transport."""
        if not self._output and not self._deferred:
            self._on_output()
        self._deferred.append(call)

    def send(self, part: bytes) -> None:
        """Append bytes to the output."""
        if not self._output:
            self._on_output()
        self._output.append(part)
        self.num_unsent_bytes += len(part)

    def send_last(self, stream_id: int, parts: Iterable[bytes], num_bytes: int) -> None:
        """Append the last frames of an open stream to the output, ``num_bytes`` in all, and remove the stream."""
        if not self._output:
            self._on_output()
        self._output += parts
        self.num_unsent_bytes += num_bytes
        self.streams.pop(stream_id, None)
        if self._final_id is not None:
            self._close_if_drained()

    def send_block(self, stream_id: int, block: bytes, flags: int) -> None:
        """Append header fields to the output."""
        if not self.may_send_fixed_blocks:
            # A peer that announced a table of 0 expects this before the first block (RFC 7541, section 4.2).
            self.may_send_fixed_blocks = True
            block = TABLE_SIZE_ZERO + block
        self.send(frames.headers(stream_id, block, flags))

    def send_answer(self, stream_id: int, start: bytes, block: bytes) -> None:
        """Append an answer that is only a status to the output; its parts are those of ``encode_answer``."""
        if not self.may_send_fixed_blocks:
            self.send_block(stream_id, block, END_STREAM)
            return
        if not self._output:
            self._on_output()
        self._output += (start, pack_id(stream_id), block)
        self.num_unsent_bytes += frames.HEADER_BYTES + len(block)

    def on_local_close(self, stream: "RpcStream") -> None:
        """Remove a stream whose status is sent; if its request has not ended, the rest of it is ignored."""
        self.blocked.pop(stream, None)
        self.waiting.pop(stream, None)
        if not stream.remote_closed:
            self.answered[stream.stream_id] = stream.accepted, stream.receive_window
        self.remove(stream)

    def remove(self, stream: "RpcStream") -> None:
        """Remove an open stream."""
        self.streams.pop(stream.stream_id, None)
        if self._final_id is not None:
            self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self._final_id is not None and not self.streams and not self.answered:
            self.closing = True

    def pump(self) -> None:
        """Continue answers that wait for the connection's window or for the socket, in turn."""
        blocked = self.blocked
        while blocked and self.send_window > 0 and not self.is_congested():
            stream = next(iter(blocked))
            del blocked[stream]
            stream.pump()


class RpcStream:
    """What unary calls and streams have in common; lives until its status is sent.

    Attributes:
        stream_id: of the HTTP/2 stream.
        handler: of the method.
        accepted: monotonic time in seconds.
        deadline: Unix time in seconds.
        source: of the connection.
        open: false once its status is sent or it is closed.
        context: for the handler.
        buffer: what was received of an unfinished message; None before the first part.
        num_received: bytes of the body, counted only if the client states its length.
        remote_closed: whether the client has sent END_STREAM.
        send_window: bytes that the peer allows to send on this stream.
        receive_window: bytes that the peer may still send on this stream.
    """

    __slots__ = (
        "_connection", "_held_bytes", "_outbox", "_reserved", "_trailers", "accepted", "buffer", "context", "deadline", "handler",
        "head", "num_received", "open", "receive_window", "remote_closed", "send_window", "source", "stream_id",
    )  # fmt: skip

    def __init__(
        self, connection: Output, stream_id: int, head: RequestHead, accepted: float, deadline: float, handler: Any
    ) -> None:
        self._connection = connection
        self.handler = handler
        self.stream_id = stream_id
        self.head = head
        self.accepted = accepted
        self.deadline = deadline
        self.source = connection.source
        self.open = True
        self.context: Any = None
        self.remote_closed = False
        self.send_window = connection.first_send_window
        self.receive_window = FIRST_WINDOW
        self.buffer: bytearray | None = None
        self.num_received = 0
        self._held_bytes = 0  # in the worker's budget: received, or the whole message if it is reserved
        self._reserved = False
        self._outbox: deque[bytes | memoryview] | None = None
        self._trailers: bytes | None = None

    # Called by the connection.

    def on_data(self, payload: bytes, *, ended: bool) -> None:
        """Take a part of the request's body."""
        raise NotImplementedError

    def on_room(self) -> bool:
        """Try again to reserve a message that waits for the worker's budget; return whether it waits no longer."""
        raise NotImplementedError

    def abort(self) -> None:
        """End the call without a status: the stream was reset, or the connection is lost."""
        raise NotImplementedError

    def fail_locally(self, status: Status, more: bytes = b"") -> None:
        """End the call with a status that the transport decides: the deadline has passed, or a limit was exceeded.

        Args:
            status: to send.
            more: encoded header fields to send with it.
        """
        raise NotImplementedError

    @property
    def peer(self) -> Any:
        """Address of the client; see ``Caller``."""
        return self._connection.peer

    @property
    def metadata(self) -> tuple[Field, ...]:
        """Metadata of the caller; see ``Caller``."""
        return self.head.fields

    def evict(self) -> None:
        """End the call, because newer messages need the room of its unfinished message."""
        if self.open:
            self._fail_without_room()
        else:
            self._release()  # its status waits for earlier answers; the rest of the request is ignored

    def num_received_bytes(self) -> int:
        """Return how many bytes of the unfinished message have arrived."""
        return len(self.buffer or b"")

    def unfinished_since(self, now: float) -> float:  # noqa: ARG002 - of streams only
        """Return since when the client is late with the rest of its request; infinite if it is not.

        Args:
            now: monotonic time in seconds, as the result.
        """
        return self.accepted

    def num_waiting_bytes(self) -> int:
        """Return about how many bytes the stream takes while it waits for its client, or for a budget; 0 if it does not.

        It does not if its whole request is handed over: then the limits on waiting requests apply.
        """
        if self._outbox:
            return STREAM_BYTES + self.head.num_bytes + sum(map(len, self._outbox))
        handed_over = self.remote_closed and self.buffer is None
        return 0 if handed_over else STREAM_BYTES + self.head.num_bytes

    def first_unsent(self) -> object:
        """Return the first message that waits for the client, as an object to compare; None if there is none."""
        first = self._outbox[0] if self._outbox else None
        return first.obj if isinstance(first, memoryview) else first

    def pump(self) -> None:
        """Send what the flow-control windows allow; the rest continues when they allow more."""
        connection, outbox = self._connection, self._outbox
        while outbox:
            room = min(connection.send_window, self.send_window, FRAME_BYTES)
            if room <= 0 or connection.is_congested():
                if self.send_window > 0:
                    connection.blocked[self] = None
                return
            message = outbox[0]
            if len(message) > room:
                outbox[0] = memoryview(message)[room:]
                self._send_data(message[:room])
            else:
                outbox.popleft()
                self._send_data(message)
                self._on_sent()
        if self._trailers is not None:
            block, self._trailers = self._trailers, None
            self._close(block)
            self._on_finished()

    def _send_data(self, part: bytes | memoryview) -> None:
        connection, size = self._connection, len(part)
        connection.send_window -= size
        self.send_window -= size
        connection.send(pack_header(size << KIND_BITS | DATA, 0, self.stream_id) + part)

    def _on_sent(self) -> None:
        """Do what follows a message that was sent as a whole."""

    def _on_finished(self) -> None:
        """Do what follows the trailers."""

    def _queue(self, body: bytes) -> None:
        if self._outbox is None:
            self._outbox = deque()
        self._outbox.append(pack_prefix(0, len(body)) + body)

    def _close(self, block: bytes) -> None:
        """Send the last header block: trailers, or all there is of an answer without a message."""
        self._connection.send_block(self.stream_id, block, END_STREAM)
        self._forget()

    def _close_with(self, status: Status) -> None:
        """Send a status that is the whole answer."""
        self._connection.send_answer(self.stream_id, *encode_answer(status))
        self._forget()

    def _forget(self) -> None:
        self._discard_unsent()
        self._release()
        self._connection.on_local_close(self)

    def _fail_without_room(self) -> None:
        self._connection.counts.stream_refused(RefusalReason.RECEIVE_MEMORY)
        self.fail_locally(OVERLOADED)

    def _discard_unsent(self) -> None:
        self._trailers = None
        if self._outbox:
            self._outbox.clear()  # rather than replaced: ``pump`` may be using it

    def _hold(self, num_bytes: int) -> bool:
        """Take so many received bytes, in all, from the worker's budget; return whether they are there."""
        more = num_bytes - self._held_bytes
        if more > 0:
            if self._reserved or not self._connection.budget.take(self, more):
                return False
            self._held_bytes = num_bytes
        return True

    def _hold_reserved(self, num_bytes: int) -> bool:
        """Reserve a whole message in the worker's budget, if it is not yet; return whether it is."""
        if not self._reserved:
            budget = self._connection.budget
            if not budget.reserve(self, num_bytes):
                return False
            budget.give_back(self, self._held_bytes)
            self._held_bytes, self._reserved = num_bytes, True
        return True

    def _release(self) -> None:
        """Forget an unfinished message."""
        self.buffer = None
        self._give_back()

    def _give_back(self) -> None:
        """Return all bytes to the budget."""
        if self._held_bytes:
            budget = self._connection.budget
            if self._reserved:
                budget.give_back_reserved(self)
                self._reserved = False
            else:
                budget.give_back(self, self._held_bytes)
            self._held_bytes = 0

    def _grant(self, num_bytes: int) -> None:
        """Raise the receive window to ``num_bytes``."""
        increment = num_bytes - self.receive_window
        if increment > 0:
            self.receive_window = num_bytes
            self._connection.send(frames.window_update(self.stream_id, increment))

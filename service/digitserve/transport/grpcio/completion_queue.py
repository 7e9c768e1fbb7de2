"""All that digitserve needs of grpcio's internals, in one small file; its contract test names the releases it fits.

An ordinary ``grpc.Server`` is made through the public interface, and everything registered with it (health, reflection,
metadata) takes its ordinary path through its thread pool. For the methods given to ``Server.take`` and
``Server.take_stream``, the events of the server's completion queue are handled here, on the one thread that calls
``Server.poll``: no RPC of theirs ever crosses a thread.

    core ──accept──▶ Call ──message──▶ taker.on_message(call, body) ── later ──▶ call.reply / call.fail
                      └──close──▶ taker.on_close(call), when the client went away or its deadline passed

    core ──accept──▶ Stream ◀──read── taker        a message comes only where it was asked for, so the taker bounds
                       └──message──▶ taker ──write──▶ Stream ──▶ core        what is on the way, whatever clients do
"""

import time
from collections import deque
from collections.abc import Callable
from types import MethodType
from typing import Any, Protocol

import grpc
from grpc import _server as grpc_server
from grpc._cython import cygrpc  # type: ignore[attr-defined] # no stubs for what is inside

_ACCEPTS = 256
"""Accepts posted at a time for each method; core matches arriving calls with them while the thread is busy."""

_NO_LIMIT = 1 << 30
OPTIONS: tuple[tuple[str, int], ...] = (
    # Core's own refusals are silent and uncounted; admission is ours.
    ("grpc.server.max_pending_requests", _NO_LIMIT),
    ("grpc.server.max_pending_requests_hard_limit", _NO_LIMIT),
    # Core would drop calls that the thread has not taken within 30 s; their own deadlines and admission do that.
    ("grpc.server_max_unrequested_time_in_server", 24 * 3600),
)
"""Channel arguments that every server on this loop needs."""


_INVALID_ARGUMENT = int(grpc.StatusCode.INVALID_ARGUMENT.value[0])
NO_MESSAGE = "got no message before the end of the call; expected exactly one"


class Taker(Protocol):
    """Who answers the calls of a method; every method is called on the polling thread."""

    def on_accept(self, call: "Call") -> None:
        """A client opened the call; it may be failed here, then nothing of its message is read."""

    def on_message(self, call: "Call", body: bytes) -> None:
        """The call's one message; the call is to be answered or failed, now or later."""

    def on_silence(self, call: "Call") -> None:
        """The client closed its side without a message, and was told INVALID_ARGUMENT; the call is over."""

    def on_too_large(self, call: "Call") -> None:
        """The message was larger than the server's limit, and core threw it away; the call is still to be failed."""

    def on_close(self, call: "Call") -> None:
        """The call ended before it was answered: the client cancelled, vanished, or its deadline passed."""


class Call:
    """One unary call, from accept to status.

    Attributes:
        deadline: Unix time in seconds, infinite when the caller set none.
        accepted: monotonic time in seconds.
        open: false once it was answered, failed or closed; then nothing more is sent.
        context: whatever its taker keeps with it, until then.
    """

    __slots__ = ("_core", "_silent", "_taker", "accepted", "context", "deadline", "open")

    def __init__(self, event: Any, taker: Taker, accepted: float) -> None:
        self._core = event.call
        self._taker = taker
        self._silent = False
        self.deadline: float = event.call_details.deadline
        self.accepted = accepted
        self.open = True
        self.context: Any = None

    def reply(self, body: bytes) -> None:
        """Send the answer and status OK."""
        self._end()
        self._core.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation((), 0),
                cygrpc.SendMessageOperation(body, 0),
                cygrpc.SendStatusFromServerOperation((), cygrpc.StatusCode.ok, b"", 0),
            ),
            self._sent,
        )

    def fail(self, code: int, message: str, details: bytes | None = None) -> None:
        """Send a status other than OK.

        Args:
            code: gRPC's number of the status code.
            message: for the caller to read.
            details: a serialized ``google.rpc.Status``, for the caller's program.
        """
        self._end()
        self._send_status(code, message, _trailing(details))

    def _end(self) -> None:
        self.open = False
        # What a taker keeps with a call mostly knows the call: a circle, which would wait for the garbage collector.
        self.context = None

    def _send_status(self, code: int, message: str, trailing: tuple[tuple[str, bytes], ...]) -> None:
        self._core.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation((), 0),
                cygrpc.SendStatusFromServerOperation(trailing, code, message.encode(), 0),
            ),
            self._sent,
        )

    def _begin(self) -> None:
        self._core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)
        self._taker.on_accept(self)
        if self.open:
            self._core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._received)

    def _received(self, event: Any) -> None:
        if not self.open:
            return
        body = event.batch_operations[0].message()
        if body is not None:
            self._taker.on_message(self, body)
        elif event.success:
            # A call that was cancelled before its message looks the same; which it was, its close tells.
            self._silent = True
            self._send_status(_INVALID_ARGUMENT, NO_MESSAGE, ())
        else:
            self._taker.on_too_large(self)

    def _closed(self, event: Any) -> None:
        if not self.open:
            return
        self.open = False
        if self._silent and not event.batch_operations[0].cancelled():
            self._taker.on_silence(self)
        else:
            self._taker.on_close(self)
        self._end()

    def _sent(self, _event: Any) -> None:
        """Nothing is left to do; the event had to be taken off the queue."""


class StreamTaker(Protocol):
    """Who answers the streams of a method; every method is called on the polling thread."""

    def on_accept(self, stream: "Stream") -> None:
        """A client opened the stream; nothing of it is read before ``stream.read``."""

    def on_message(self, stream: "Stream", body: bytes) -> None:
        """The message that was asked for."""

    def on_end(self, stream: "Stream") -> None:
        """The client closed its side: no more messages; the stream is still to be finished."""

    def on_too_large(self, stream: "Stream") -> None:
        """A message was larger than the server's limit, and core threw it away; the stream can only be finished."""

    def on_written(self, stream: "Stream") -> None:
        """Core took one of the messages that were written; called for each."""

    def on_close(self, stream: "Stream", *, cancelled: bool) -> None:
        """The stream is over: its status is sent, or the client cancelled, vanished, or its deadline passed.

        Which of both only ``cancelled`` tells: the end of a cancelled stream looks like the end of any other.
        """


class Stream:
    """One bidirectional stream, from accept to status.

    Attributes:
        deadline: Unix time in seconds, infinite when the caller set none.
        accepted: monotonic time in seconds.
        open: false once its status was sent, or it was closed; then nothing more is sent.
        context: whatever its taker keeps with it.
    """

    __slots__ = ("_core", "_failed", "_outbox", "_taker", "_writing", "accepted", "context", "deadline", "open")

    def __init__(self, event: Any, taker: StreamTaker, accepted: float) -> None:
        self._core = event.call
        self._taker = taker
        self._outbox: deque[bytes] = deque()
        self._writing = False
        self._failed = False
        self.deadline: float = event.call_details.deadline
        self.accepted = accepted
        self.open = True
        self.context: Any = None

    def read(self) -> None:
        """Ask for the next message; only when the last one that was asked for has come."""
        self._core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._received)

    def write(self, body: bytes) -> None:
        """Send a message once those before it are sent."""
        self._outbox.append(body)

    def flush(self) -> None:
        """Begin to send what was written; to be called once after several ``write``, so that they travel together."""
        if not self._writing and self._outbox:
            self._write_next()

    def finish(self, code: int, message: str = "", details: bytes | None = None) -> None:
        """Send the status; only when all that was written is sent. See ``Call.fail`` for what it takes."""
        self.open = False
        self._failed = bool(code)
        self._core.start_server_batch(
            (cygrpc.SendStatusFromServerOperation(_trailing(details), code, message.encode(), 0),), self._sent
        )

    def _begin(self) -> None:
        self._core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)
        self._core.start_server_batch((cygrpc.SendInitialMetadataOperation((), 0),), self._sent)
        self._taker.on_accept(self)

    def _received(self, event: Any) -> None:
        if not self.open:
            return
        body = event.batch_operations[0].message()
        if body is not None:
            self._taker.on_message(self, body)
        elif event.success:
            self._taker.on_end(self)
        else:
            self._taker.on_too_large(self)

    def _write_next(self) -> None:
        body = self._outbox.popleft()
        self._writing = True
        # With more to come core may wait for it, and send both at once.
        flags = cygrpc.WriteFlag.buffer_hint if self._outbox else 0
        self._core.start_server_batch((cygrpc.SendMessageOperation(body, flags),), self._written)

    def _written(self, _event: Any) -> None:
        self._writing = False
        if self.open:
            self.flush()
            self._taker.on_written(self)

    def _closed(self, event: Any) -> None:
        # Core also speaks of cancelling where the status that we sent was no success.
        cancelled = self.open or (event.batch_operations[0].cancelled() and not self._failed)
        self.open = False
        self._outbox.clear()
        self._taker.on_close(self, cancelled=cancelled)
        self.context = None

    def _sent(self, _event: Any) -> None:
        """Nothing is left to do; the event had to be taken off the queue."""


def _trailing(details: bytes | None) -> tuple[tuple[str, bytes], ...]:
    return () if details is None else (("grpc-status-details-bin", details),)


class _Acceptor:
    """Keeps accepts posted for one method."""

    def __init__(self, server: "Server", method: str, begin: Callable[[Any], None]) -> None:
        self._server = server
        self._method = method
        self._begin = begin

    def post(self) -> None:
        self._server.core.request_registered_call(self._server.queue, self._server.queue, self._method, self.accepted)

    def accepted(self, event: Any) -> None:
        # Accepts that fail are those left over when the server shuts down.
        if event.success:
            # A call may be matched before the shutdown and its event be taken after it: the call is taken, no other is asked for.
            if self._server.listening:
                self.post()
            self._begin(event)


class Server:
    """An ordinary ``grpc.Server``, driven by its owner's thread.

    Owned by one worker. ``poll`` is called by one thread only; ``begin_shutdown`` and ``cancel_all`` by any.
    """

    def __init__(self, server: grpc.Server) -> None:
        """Wrap a server that was not started."""
        self._state = server._state  # type: ignore[attr-defined] # noqa: SLF001 - what this file is for
        self._server = server
        self.core = self._state.server
        self.queue = self._state.completion_queue
        self._acceptors: list[_Acceptor] = []

    def take(self, method: str, taker: Taker) -> None:
        """Handle a unary method, named ``/package.Service/Method``, here; before ``start`` only."""
        self._accept(method, lambda event: Call(event, taker, time.monotonic())._begin())  # noqa: SLF001

    def take_stream(self, method: str, taker: StreamTaker) -> None:
        """Handle a method whose two sides are streams here; before ``start`` only."""
        self._accept(method, lambda event: Stream(event, taker, time.monotonic())._begin())  # noqa: SLF001

    def _accept(self, method: str, begin: Callable[[Any], None]) -> None:
        self.core.register_method(method)
        self._acceptors.append(_Acceptor(self, method, begin))

    def start(self) -> None:
        """Start listening; events wait until ``poll``."""
        state = self._state
        with state.lock:
            self.core.start()
            state.stage = grpc_server._ServerStage.STARTED  # noqa: SLF001
            for method in state.registered_method_handlers:
                grpc_server._request_registered_call(state, method)  # noqa: SLF001
            grpc_server._request_call(state)  # noqa: SLF001
        for acceptor in self._acceptors:
            for _ in range(_ACCEPTS):
                acceptor.post()

    def poll(self, timeout_s: float) -> bool | None:
        """Handle one event.

        Args:
            timeout_s: longest wait for it, 0 to look only.

        Returns:
            True when an event was handled, False when none came in time, None when the server has stopped.
        """
        event = self.queue.poll(time.time() + timeout_s if timeout_s else 0.0)
        if event.completion_type == cygrpc.CompletionType.queue_timeout:
            return False
        tag = event.tag
        # Ours are bound methods; grpcio's own tags are strings and plain functions.
        if tag.__class__ is MethodType:
            tag(event)
            return True
        return True if grpc_server._process_event_and_continue(self._state, event) else None  # noqa: SLF001

    def begin_shutdown(self) -> None:
        """Stop listening and tell clients to go elsewhere (GOAWAY); calls that were taken go on."""
        grpc_server._begin_shutdown_once(self._state)  # noqa: SLF001

    @property
    def listening(self) -> bool:
        """Whether more calls may come: from ``start`` to ``begin_shutdown``."""
        return self._state.stage is grpc_server._ServerStage.STARTED  # noqa: SLF001

    def cancel_all(self) -> None:
        """End every call that is still open."""
        with self._state.lock:
            self.core.cancel_all_calls()

    @property
    def num_ordinary(self) -> int:
        """RPCs on the ordinary path that have not ended."""
        return len(self._state.rpc_states)


def final_code(context: grpc.ServicerContext) -> int:
    """Return gRPC's number of the status code with which an RPC on the ordinary path ended."""
    state = context._state  # type: ignore[attr-defined] # noqa: SLF001
    if state.code is not None:
        return int(state.code.value[0])
    return int(grpc.StatusCode.CANCELLED.value[0] if state.client == grpc_server._CANCELLED else 0)  # noqa: SLF001

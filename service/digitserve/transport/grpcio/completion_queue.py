"""Server on grpcio's completion queue: all that digitserve needs of grpcio's internals, in one file.

Its contract test names the grpcio releases that it works with. An ordinary ``grpc.Server`` is made through the public
interface. For methods added with ``add_unary_handler`` and ``add_stream_handler``, the events of the server's completion
queue are handled on the one thread that calls ``poll``: no RPC of theirs crosses a thread.

    core ──accept──▶ Call ──message──▶ handler.on_message(call, body) ── later ──▶ call.reply / call.fail
                      └──close──▶ handler.on_close(call), when the client cancelled or the deadline passed

    core ──accept──▶ Stream ◀──read── handler      a message arrives only after a read, so the handler bounds
                       └──message──▶ handler ──write──▶ Stream ──▶ core        what is in flight
"""

import time
from collections import deque
from collections.abc import Callable
from types import MethodType
from typing import Any

import grpc
from grpc import _server as grpc_server
from grpc._cython import cygrpc  # type: ignore[attr-defined] # grpcio has no stubs for its internals

from digitserve.protocol.names import Code
from digitserve.protocol.status import NO_MESSAGE, Status
from digitserve.transport.handlers import StreamHandler, UnaryHandler

_ACCEPTS = 256
"""Accepts posted at a time for each method: core matches arriving calls with them while the thread is busy."""

_NO_LIMIT = 1 << 30
OPTIONS: tuple[tuple[str, int], ...] = (
    # Core would reject calls without counting them; the pipeline does admission control.
    ("grpc.server.max_pending_requests", _NO_LIMIT),
    ("grpc.server.max_pending_requests_hard_limit", _NO_LIMIT),
    # Core would drop calls that wait for more than 30 s; their deadlines and admission control do that.
    ("grpc.server_max_unrequested_time_in_server", 24 * 3600),
)
"""Channel arguments of every ``CompletionQueueServer``."""


class Call:
    """A ``UnaryCall``; core holds it until its status is sent.

    Attributes: see ``UnaryCall``.
    """

    __slots__ = ("_core", "_handler", "_no_message", "accepted", "context", "deadline", "open")

    def __init__(self, event: Any, handler: UnaryHandler, accepted: float) -> None:
        self._core = event.call
        self._handler = handler
        self._no_message = False
        self.deadline: float = event.call_details.deadline
        self.accepted = accepted
        self.open = True
        self.context: Any = None

    def reply(self, body: bytes) -> None:
        """Send the response and status OK."""
        self._end()
        self._core.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation((), 0),
                cygrpc.SendMessageOperation(body, 0),
                cygrpc.SendStatusFromServerOperation((), cygrpc.StatusCode.ok, b"", 0),
            ),
            self._sent,
        )

    def fail(self, status: Status) -> None:
        """Send a status other than OK."""
        self._end()
        self._send_status(status)

    def _end(self) -> None:
        self.open = False
        # The context usually refers to the call: a reference cycle otherwise.
        self.context = None

    def _send_status(self, status: Status) -> None:
        self._core.start_server_batch(
            (cygrpc.SendInitialMetadataOperation((), 0), _status_operation(status)), self._sent
        )

    def _begin(self) -> None:
        self._core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)
        status = self._handler.refusal(self.deadline)
        if status is not None:
            self.fail(status)
            return
        self._handler.on_accept(self)
        if self.open:
            self._core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._received)

    def _received(self, event: Any) -> None:
        if not self.open:
            return
        body = event.batch_operations[0].message()
        if body is not None:
            self._handler.on_message(self, body)
        elif event.success:
            # A call that was cancelled before its message looks the same; its close event tells the two apart.
            self._no_message = True
            self._send_status(NO_MESSAGE)
        else:
            self._handler.on_too_large(self)

    def _closed(self, event: Any) -> None:
        if not self.open:
            return
        self.open = False
        if self._no_message and not event.batch_operations[0].cancelled():
            self._handler.on_failed(self, NO_MESSAGE)
        else:
            self._handler.on_close(self)
        self._end()

    def _sent(self, _event: Any) -> None:
        """Nothing is left to do; the event only had to be removed from the queue."""


class Stream:
    """A ``ServerStream``; core holds it until it is closed.

    Attributes: see ``ServerStream``.
    """

    __slots__ = ("_core", "_failed", "_handler", "_outbox", "_writing", "accepted", "context", "deadline", "open")

    def __init__(self, event: Any, handler: StreamHandler, accepted: float) -> None:
        self._core = event.call
        self._handler = handler
        self._outbox: deque[bytes] = deque()
        self._writing = False
        self._failed = False
        self.deadline: float = event.call_details.deadline
        self.accepted = accepted
        self.open = True
        self.context: Any = None

    def read(self) -> None:
        """Request the next message; at most one read may be outstanding."""
        self._core.start_server_batch((cygrpc.ReceiveMessageOperation(0),), self._received)

    def write(self, body: bytes) -> None:
        """Append a message to those that wait to be sent."""
        self._outbox.append(body)

    def flush(self) -> None:
        """Start sending what was written; called once after several ``write``, so that they can be sent together."""
        if not self._writing and self._outbox:
            self._write_next()

    def finish(self, status: Status) -> None:
        """Send the status; only after all written messages are sent."""
        self.open = False
        self._failed = status.code is not Code.OK
        self._core.start_server_batch((_status_operation(status),), self._sent)

    def _begin(self) -> None:
        self._core.start_server_batch((cygrpc.ReceiveCloseOnServerOperation(0),), self._closed)
        self._core.start_server_batch((cygrpc.SendInitialMetadataOperation((), 0),), self._sent)
        self._handler.on_accept(self)

    def _received(self, event: Any) -> None:
        if not self.open:
            return
        body = event.batch_operations[0].message()
        if body is not None:
            self._handler.on_message(self, body)
        elif event.success:
            self._handler.on_end(self)
        else:
            self._handler.on_too_large(self)

    def _write_next(self) -> None:
        body = self._outbox.popleft()
        self._writing = True
        # With the hint core may wait for the next message, and send both together.
        flags = cygrpc.WriteFlag.buffer_hint if self._outbox else 0
        self._core.start_server_batch((cygrpc.SendMessageOperation(body, flags),), self._written)

    def _written(self, _event: Any) -> None:
        self._writing = False
        if self.open:
            self.flush()
            self._handler.on_written(self)

    def _closed(self, event: Any) -> None:
        # Core also reports a cancellation where the status that was sent is not OK.
        cancelled = self.open or (event.batch_operations[0].cancelled() and not self._failed)
        self.open = False
        self._outbox.clear()
        self._handler.on_close(self, cancelled=cancelled)
        self.context = None

    def _sent(self, _event: Any) -> None:
        """Nothing is left to do; the event only had to be removed from the queue."""


def _status_operation(status: Status) -> Any:
    details = status.details()
    trailers = () if details is None else (("grpc-status-details-bin", details),)
    return cygrpc.SendStatusFromServerOperation(trailers, status.code, status.message.encode(), 0)


class _Acceptor:
    """Keeps accepts posted for one method."""

    def __init__(self, server: "CompletionQueueServer", method: str, begin: Callable[[Any], None]) -> None:
        self._server = server
        self._method = method
        self._begin = begin

    def post(self) -> None:
        self._server.core.request_registered_call(self._server.queue, self._server.queue, self._method, self.accepted)

    def accepted(self, event: Any) -> None:
        # When the server shuts down, the accepts that are left fail.
        if event.success:
            # The event of a call that core matched before the shutdown may arrive after it: then the call is handled, but no
            # new accept is posted.
            if self._server.listening:
                self.post()
            self._begin(event)


class CompletionQueueServer:
    """An ordinary ``grpc.Server``, driven by its owner's thread.

    Owned by one worker. ``poll`` is called by one thread only; ``begin_shutdown`` and ``cancel_all`` by any.

    Attributes:
        grpc_server: the wrapped server.
        core: its counterpart in grpcio's core.
        queue: its completion queue.
    """

    def __init__(self, server: grpc.Server) -> None:
        """Wrap a server that was not started."""
        self._state = server._state  # type: ignore[attr-defined] # not in grpcio's stubs
        self.grpc_server = server
        self.core = self._state.server
        self.queue = self._state.completion_queue
        self._acceptors: list[_Acceptor] = []

    def add_unary_handler(self, path: str, handler: UnaryHandler) -> None:
        """Handle a unary method, ``/package.Service/Method``, on the polling thread; only before ``start``."""
        self._accept(path, lambda event: Call(event, handler, time.monotonic())._begin())

    def add_stream_handler(self, path: str, handler: StreamHandler) -> None:
        """Handle a bidirectional stream method on the polling thread; only before ``start``."""
        self._accept(path, lambda event: Stream(event, handler, time.monotonic())._begin())

    def _accept(self, path: str, begin: Callable[[Any], None]) -> None:
        self.core.register_method(path)
        self._acceptors.append(_Acceptor(self, path, begin))

    def start(self) -> None:
        """Start accepting calls; their events wait until ``poll``."""
        state = self._state
        with state.lock:
            self.core.start()
            state.stage = grpc_server._ServerStage.STARTED
            for method in state.registered_method_handlers:
                grpc_server._request_registered_call(state, method)
            grpc_server._request_call(state)
        for acceptor in self._acceptors:
            for _ in range(_ACCEPTS):
                acceptor.post()

    def poll(self, timeout_s: float) -> bool | None:
        """Handle one event.

        Args:
            timeout_s: longest wait for it; with 0 it does not wait.

        Returns:
            True if an event was handled, False if none came in time, None once the server has stopped.
        """
        event = self.queue.poll(time.time() + timeout_s if timeout_s else 0.0)
        if event.completion_type == cygrpc.CompletionType.queue_timeout:
            return False
        tag = event.tag
        # Tags of this file are bound methods; grpcio's own tags are strings and plain functions.
        if tag.__class__ is MethodType:
            tag(event)
            return True
        return True if grpc_server._process_event_and_continue(self._state, event) else None

    def begin_shutdown(self) -> None:
        """Stop listening and send GOAWAY; open calls continue."""
        grpc_server._begin_shutdown_once(self._state)

    @property
    def listening(self) -> bool:
        """Whether calls are accepted: from ``start`` to ``begin_shutdown``."""
        return self._state.stage is grpc_server._ServerStage.STARTED

    def cancel_all(self) -> None:
        """End every call that is still open."""
        with self._state.lock:
            self.core.cancel_all_calls()

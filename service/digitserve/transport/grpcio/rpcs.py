"""RPCs of grpcio, passed to the worker's thread: implementations of ``UnaryCall`` and ``ServerStream`` of ``handlers``.

    grpc.aio server ──▶ serve_unary, serve_stream ──events──▶ Bridge ──▶ handlers
      its event loop  ◀──call_soon_threadsafe── Call, Stream ◀──reply, read, write, finish── handlers

Each RPC is a coroutine on grpcio's event loop, which runs on a thread of its own. Handlers run on the worker's thread only. The
threads exchange events and answers in order, with a queue and with ``call_soon_threadsafe``.
"""

import asyncio
import functools
import math
import queue
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import grpc

from digitserve.protocol.names import Code
from digitserve.protocol.status import NO_MESSAGE, Status
from digitserve.telemetry.block import OTHER_METHOD
from digitserve.telemetry.request_log import RequestLog
from digitserve.transport.handlers import StreamHandler, UnaryHandler
from digitserve.types import Source

HALF_CLOSE_DELAY_S = 0.01
"""Delay before the end of a stream's requests is reported to the handler. When a stream is cancelled, grpcio first reports an end
of requests and cancels the RPC within this delay, so the RPC is then not reported as half-closed."""

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

Event = Callable[[], object]
"""A function that the worker's thread calls."""

_STATUS_CODES = {Code(code.value[0]): code for code in grpc.StatusCode}


class Bridge:
    """Connects grpcio's event loop with the worker's thread; owned by the server.

    Attributes:
        loop: grpcio's event loop.
        events: functions that the worker's thread calls, oldest first.
        unanswered: tasks of the RPCs that were passed to handlers and whose status is not sent yet; for the loop's thread.
        max_message_bytes: limit of a request message.
        requests: logs refused calls; for the worker's thread.
    """

    def __init__(self, max_message_bytes: int, requests: RequestLog) -> None:
        self.loop: asyncio.AbstractEventLoop
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.unanswered: set[asyncio.Task[Any]] = set()
        self.max_message_bytes = max_message_bytes
        self.requests = requests

    def track(self) -> None:
        """Count the current RPC as unanswered until it is over: its status is sent, or it was cancelled."""
        task = asyncio.current_task()
        assert task is not None
        self.unanswered.add(task)
        task.add_done_callback(self.unanswered.discard)


class _Client:
    """What log lines state about the client of an RPC; the base class of calls and streams.

    It is read when the RPC starts: core frees it at the end, and then ``peer`` would crash the process.
    """

    __slots__ = ("_metadata", "_peer")

    def __init__(self, rpc: Context) -> None:
        self._peer = rpc.peer()
        self._metadata = rpc.invocation_metadata() or ()

    @property
    def peer(self) -> str:
        """Address of the client. Core writes ``ipv4:127.0.0.1:5`` or, with percent-encoded brackets, ``ipv6:[::1]:5``."""
        return urllib.parse.unquote(self._peer).removeprefix("ipv4:").removeprefix("ipv6:")

    @property
    def metadata(self) -> Iterator[tuple[bytes, bytes]]:
        """Metadata of the caller."""
        for name, value in self._metadata:
            yield name.encode(), value if isinstance(value, bytes) else value.encode()


class Call(_Client):
    """A ``UnaryCall``; grpcio's task of the RPC holds it until its status is sent.

    Attributes: see ``UnaryCall``.
        answer: gets the response or the status; for the thread of grpcio's loop.
    """

    __slots__ = (
        "_bridge", "_handed_over", "_handler", "_path", "accepted", "answer", "context", "deadline", "open", "source",
    )  # fmt: skip

    def __init__(self, bridge: Bridge, handler: UnaryHandler, path: str, context: Context) -> None:
        super().__init__(context)
        self._bridge = bridge
        self._handler = handler
        self._path = path
        self._handed_over = False
        self.answer: asyncio.Future[bytes | Status] = bridge.loop.create_future()
        self.deadline = _deadline(context)
        self.source = Source(is_connection=False)  # grpcio does not name the connection
        self.accepted = time.monotonic()
        self.open = True
        self.context: Any = None

    # Called by the handler, on the worker's thread; see UnaryCall.

    def reply(self, body: bytes) -> None:
        """Send the response and status OK."""
        self._end(body)

    def fail(self, status: Status) -> None:
        """Send a status other than OK."""
        self._end(status)

    def _end(self, answer: bytes | Status) -> None:
        self.open = False
        # Breaks a reference cycle: the context usually refers to the call.
        self.context = None
        self._bridge.loop.call_soon_threadsafe(_resolve, self.answer, answer)

    # Events, on the worker's thread.

    def on_accepted(self) -> None:
        """Report the call to the handler."""
        self._handed_over = True
        status = self._handler.refusal(self.deadline, self.source)
        if status is None:
            self._handler.on_accept(self)
            return
        requests, now = self._bridge.requests, time.monotonic()
        if now >= requests.refusals_from:
            requests.refused(self._path, self, status, now)
        self.fail(status)

    def on_received(self, message: bytes | None) -> None:
        """Report the call and its message to the handler; ``None`` if the client ended the request without one."""
        handler = self._handler
        self.on_accepted()
        if not self.open:
            return
        if message is None:
            # Recorded first, so that a caller that has the status finds it in the metrics.
            handler.on_failed(self, NO_MESSAGE)
            self.fail(NO_MESSAGE)
        elif len(message) > self._bridge.max_message_bytes:
            handler.on_too_large(self)
        else:
            handler.on_message(self, message)

    def on_cancelled(self) -> None:
        """Report the end of a call, unless it was answered before."""
        if not self._handed_over:
            self.on_accepted()
        if self.open:
            self.open = False
            self._handler.on_close(self)
            self.context = None


class Stream(_Client):
    """A ``ServerStream``; grpcio's task of the RPC holds it until its status is sent.

    Attributes: see ``ServerStream``.
        outbox: messages to be sent, then the status; for the thread of grpcio's loop.
        finished: whether the status was taken from ``outbox``.
    """

    __slots__ = (
        "_bridge", "_handler", "_reader", "_rpc", "_written", "accepted", "context", "deadline", "finished", "open", "outbox",
        "source",
    )  # fmt: skip

    def __init__(self, bridge: Bridge, handler: StreamHandler, rpc: Context) -> None:
        super().__init__(rpc)
        self._bridge = bridge
        self._handler = handler
        self._rpc = rpc
        self._reader: asyncio.Task[None] | None = None
        self._written: list[bytes | Status] = []
        self.outbox: asyncio.Queue[bytes | Status] = asyncio.Queue()
        self.finished = False
        self.deadline = _deadline(rpc)
        self.source = Source(is_connection=False)
        self.accepted = time.monotonic()
        self.open = True
        self.context: Any = None

    # Called by the handler, on the worker's thread; see ServerStream.

    def read(self) -> None:
        """Request the next message; at most one read may be outstanding."""
        self._bridge.loop.call_soon_threadsafe(self._start_reading)

    def write(self, body: bytes) -> None:
        """Append a message to those that wait to be sent."""
        self._written.append(body)

    def flush(self) -> None:
        """Start sending what was written."""
        if self._written:
            written, self._written = self._written, []
            self._bridge.loop.call_soon_threadsafe(self._send, written)

    def finish(self, status: Status) -> None:
        """Send the status; only after all written messages are sent."""
        self.open = False
        self._bridge.loop.call_soon_threadsafe(self.outbox.put_nowait, status)

    # Events, on the worker's thread.

    def on_accepted(self) -> None:
        """Report the stream to the handler."""
        self._handler.on_accept(self)

    def on_written(self) -> None:
        """Report to the handler that a message is sent."""
        if self.open:
            self._handler.on_written(self)

    def on_done(self) -> None:
        """Report the end of the stream."""
        self.open = False
        self._handler.on_close(self, cancelled=not self.finished)
        self.context = None

    def _on_read(self, message: bytes | None) -> None:
        if not self.open:
            return
        if message is None:
            self._handler.on_end(self)
        elif len(message) > self._bridge.max_message_bytes:
            self._handler.on_too_large(self)
        else:
            self._handler.on_message(self, message)

    # On the thread of grpcio's loop.

    def _start_reading(self) -> None:
        self._reader = self._bridge.loop.create_task(self._read())

    async def _read(self) -> None:
        try:
            message = _body(await self._rpc.read())
        except grpc.aio.UsageError:
            return  # the status was sent meanwhile
        if message is None:
            await asyncio.sleep(HALF_CLOSE_DELAY_S)
        self._bridge.events.put(functools.partial(self._on_read, message))

    def _send(self, bodies: list[bytes | Status]) -> None:
        for body in bodies:
            self.outbox.put_nowait(body)


def serve_unary(bridge: Bridge, handler: UnaryHandler, path: str) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Return the grpcio handler of a unary method."""

    async def serve(_messages: Any, rpc: Context) -> None:
        call = Call(bridge, handler, path, rpc)
        try:
            message = _body(await rpc.read())
            if message is None:
                # ``read`` returns the same if the call was cancelled, but then this fails.
                await rpc.send_initial_metadata(())
            bridge.track()
            bridge.events.put(functools.partial(call.on_received, message))
            answer = await call.answer
        except BaseException:
            bridge.events.put(call.on_cancelled)
            raise
        if isinstance(answer, Status):
            _set_status(rpc, answer)
        else:
            await rpc.write(answer)

    return grpc.stream_stream_rpc_method_handler(serve)


def serve_unread(
    bridge: Bridge, handler: UnaryHandler, path: str = OTHER_METHOD.path
) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Return the grpcio handler of a method whose ``UnaryHandler`` rejects all calls before their messages are read."""

    async def serve(_messages: Any, rpc: Context) -> None:
        call = Call(bridge, handler, path, rpc)
        bridge.events.put(call.on_accepted)
        try:
            answer = await call.answer
        except BaseException:
            bridge.events.put(call.on_cancelled)
            raise
        assert isinstance(answer, Status)
        _set_status(rpc, answer)

    return grpc.stream_stream_rpc_method_handler(serve)


def serve_stream(bridge: Bridge, handler: StreamHandler) -> "grpc.RpcMethodHandler[bytes, bytes]":
    """Return the grpcio handler of a streaming method."""

    async def serve(_messages: Any, rpc: Context) -> None:
        stream = Stream(bridge, handler, rpc)
        bridge.track()
        bridge.events.put(stream.on_accepted)
        try:
            await rpc.send_initial_metadata(())
            while not isinstance(item := await stream.outbox.get(), Status):
                await rpc.write(item)
                bridge.events.put(stream.on_written)
            stream.finished = True
        finally:
            bridge.events.put(stream.on_done)
        _set_status(rpc, item)

    return grpc.stream_stream_rpc_method_handler(serve)


def _resolve(answer: asyncio.Future[bytes | Status], value: bytes | Status) -> None:
    # Cancelled together with the RPC.
    if not answer.done():
        answer.set_result(value)


def _body(message: Any) -> bytes | None:
    return None if message is grpc.aio.EOF else message


def _deadline(rpc: Context) -> float:
    remaining_s = rpc.time_remaining()
    return math.inf if remaining_s is None else time.time() + remaining_s


def _set_status(rpc: Context, status: Status) -> None:
    rpc.set_code(_STATUS_CODES[status.code])
    rpc.set_details(status.message)
    rpc.set_trailing_metadata(tuple(status.trailers()))

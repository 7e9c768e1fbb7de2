"""Interfaces between the worker, the transport that it chose, and the handlers of the RPCs.

    transport ──refusal, on_accept, on_message, ...──▶ UnaryHandler, StreamHandler
        ▲                                                      │
        └──────────── UnaryCall, ServerStream ◀────────────────┘ reply, fail, read, write, finish
    UnaryHandler, StreamHandler ──admit, cancel, ...──▶ Admission
    worker ──listen, poll, begin_shutdown, ...──▶ Server

A handler depends on these interfaces only, so any transport can call it; the worker runs any transport as a ``Server``. All
methods, in both directions, are called on the worker's one thread.
"""

import time
from collections.abc import Callable
from typing import Any, Protocol

from digitserve.batching.pending import Responder
from digitserve.errors import RequestError
from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.telemetry.request_log import Caller
from digitserve.types import Source

Respond = Callable[[bytes], bytes]
"""Handler of a unary method that never waits: request to response, both serialized; raises ``RequestError``."""


class Admission(Protocol):
    """Admits decoded requests: the pipeline those to classify, the readings those to read.

    What ``admit`` returns stands for the request until its answer; it has ``log_fields``.
    """

    @property
    def refusal(self) -> Callable[[float, Source], RequestError | None]:
        """Returns why a call with so many seconds to its deadline is rejected before its message is read; see ``Batcher``."""

    def admit(self, responder: Responder, request: Any, *, patient: bool = False) -> Any:
        """Queue a request; see ``Batcher.admit``. Raises ``RequestError``."""

    def hold(self, request: Any) -> None:
        """Count the memory of a request that the caller holds. Raises ``Overloaded``."""

    def release(self, request: Any) -> None:
        """Subtract what ``hold`` has counted."""

    def is_large(self, request: Any) -> bool:
        """Return whether a request would wait in the queue of large requests."""

    def cancel(self, pending: Any) -> None:
        """Drop what ``admit`` has returned: the caller no longer waits."""

    def is_half_full(self, source: Source) -> bool:
        """Return whether a source uses half of the room."""

    def log_failure(self, num_requests: int) -> None:
        """Log the exception being handled; callers get a fixed text only."""


class UnaryCall(Caller, Protocol):
    """A unary call, from its start to its status; owned by the transport.

    Attributes:
        deadline: Unix time in seconds, more than 1e18 when the caller set none.
        accepted: monotonic time in seconds.
        source: its connection.
        open: false once it is answered, failed or closed; then nothing more may be sent.
        context: for the handler's use while the call is open.
    """

    source: Source
    open: bool
    context: Any

    def reply(self, body: bytes) -> None:
        """Send the response and status OK."""

    def fail(self, status: Status) -> None:
        """Send a status other than OK."""


class UnaryHandler(Protocol):
    """Handles the calls of a unary method."""

    def refusal(self, deadline: float, source: Source) -> Status | None:
        """Decide whether a call is rejected before its message is read.

        Args:
            deadline: of the call, Unix time in seconds.
            source: of the call.

        Returns:
            The status with which the call ends now. The handler has recorded the call, and gets no other callback for it. None
            if the call is accepted: ``on_accept`` follows.
        """

    def on_accept(self, call: UnaryCall) -> None:
        """The call is open. The handler may fail it; then its message is not read."""

    def on_message(self, call: UnaryCall, body: bytes) -> None:
        """The message of the call arrived; the handler answers or fails the call, now or later."""

    def on_failed(self, call: UnaryCall, status: Status) -> None:
        """The call is over: the transport has sent ``status``, because it received no valid message."""

    def on_too_large(self, call: UnaryCall) -> None:
        """The message exceeded the limit and was discarded; the handler fails the call."""

    def on_close(self, call: UnaryCall) -> None:
        """The call ended before it was answered: cancelled, disconnected, or past its deadline."""


class ServerStream(Caller, Protocol):
    """A bidirectional stream, from its start to its status; owned by the transport.

    Attributes:
        deadline: Unix time in seconds, more than 1e18 when the caller set none.
        accepted: monotonic time in seconds.
        source: its connection.
        open: false once its status is sent or it is closed; then nothing more may be sent.
        context: for the handler's use until the stream is closed.
    """

    source: Source
    open: bool
    context: Any

    def read(self) -> None:
        """Request the next message; at most one read may be outstanding."""

    def write(self, body: bytes) -> None:
        """Append a message to those that wait to be sent."""

    def flush(self) -> None:
        """Start sending what was written; called once after several ``write``, so that they can be sent together."""

    def finish(self, status: Status) -> None:
        """Send the status; only after all written messages are sent."""


class StreamHandler(Protocol):
    """Handles the streams of a method."""

    def on_accept(self, stream: ServerStream) -> None:
        """A client started the stream; messages arrive only after ``stream.read``."""

    def on_message(self, stream: ServerStream, body: bytes) -> None:
        """The requested message arrived."""

    def on_end(self, stream: ServerStream) -> None:
        """The client half-closed: there are no more messages; the handler finishes the stream."""

    def on_too_large(self, stream: ServerStream) -> None:
        """A message exceeded the limit and was discarded; no more messages arrive, the handler finishes the stream."""

    def on_written(self, stream: ServerStream) -> None:
        """One of the written messages is sent; called once for each."""

    def on_close(self, stream: ServerStream, *, cancelled: bool) -> None:
        """The stream is over.

        Args:
            stream: the stream.
            cancelled: it was cancelled, disconnected or past its deadline, perhaps after ``finish``.
        """


class Server(Protocol):
    """The gRPC server of one worker; it calls the handlers from within ``poll``."""

    def listen(self) -> int:
        """Bind the address, and accept connections.

        Returns:
            The port.

        Raises:
            StartupError: the address cannot be bound.
        """

    def poll(self, timeout_s: float) -> bool | None:
        """Handle what has arrived, for a limited time, so that a flood cannot delay the batch that follows.

        Args:
            timeout_s: longest wait for it; with 0 it does not wait.

        Returns:
            True if anything arrived, False if not, None once the server has stopped.
        """

    def begin_shutdown(self) -> None:
        """Stop listening, and announce to clients that their connections end; open calls continue."""

    def has_unanswered(self) -> bool:
        """Return whether clients may still lose calls: handlers must finish them, or their answers are not sent yet."""

    def cancel_all(self) -> None:
        """End every call that is still open; afterwards ``poll`` soon reports that the server has stopped."""

    def close(self) -> None:
        """Release what the server holds."""


def unanswered_code(deadline: float) -> Code:
    """Return the code that is recorded for an RPC that ended before its status was sent.

    Args:
        deadline: Unix time in seconds; if it has passed, the RPC counts as DEADLINE_EXCEEDED, otherwise as CANCELLED.
    """
    return Code.DEADLINE_EXCEEDED if deadline <= time.time() else Code.CANCELLED

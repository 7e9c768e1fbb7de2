"""Handler of ``Classify`` and ``ModelInfer``, which differ in the encoding of requests and answers only; ``read`` uses it too.

    transport ──on_message──▶ ClassifyHandler ──admit──▶ Pipeline ──reply──▶ CallResponder ──▶ UnaryCall

Called on the worker's one thread.
"""

import time
from collections.abc import Callable
from typing import Any

from digitserve.errors import DeadlineUnmeetable, InvalidRequest, RequestError
from digitserve.protocol.codec import Limits, decode
from digitserve.protocol.names import CLASSIFY, MODEL_INFER, Code
from digitserve.protocol.status import INTERNAL, Status
from digitserve.telemetry.recorder import Recorder
from digitserve.telemetry.request_log import Caller
from digitserve.transport.handlers import Admission, UnaryCall, unanswered_code
from digitserve.types import Source

Decode = Callable[[bytes, Limits], Any]
"""Decodes and checks a message, for the ``Admission`` of its method; raises ``InvalidRequest`` or ``NotServed``."""

_INVALID = {Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.INTERNAL}
"""Codes with which a transport fails invalid requests: without a message, or with an unknown or invalid encoding. Requests that
it fails because of its limits are counted in ``digitserve_streams_refused`` instead."""


class CallResponder:
    """The ``Responder`` of one call, here of ``Classify``; lives until the call is answered.

    Attributes: see ``Responder``.
    """

    __slots__ = ("_call", "_handler", "accepted", "deadline", "source")

    completes = CLASSIFY  # of the class, because setting it in each object takes time

    def __init__(self, handler: "ClassifyHandler", call: UnaryCall) -> None:
        self._handler = handler
        self._call = call
        self.accepted = call.accepted
        self.deadline = call.deadline
        self.source = call.source

    @property
    def open(self) -> bool:
        """Whether the call still waits for an answer."""
        return self._call.open

    @property
    def caller(self) -> Caller:
        """The call itself."""
        return self._call

    def reply(self, body: bytes) -> None:
        """Send the answer."""
        self._call.reply(body)

    def reject(self, error: RequestError) -> None:
        """Record and send the status of an error."""
        self._handler.reject(self._call, error)

    def fail(self) -> None:
        """Record and send INTERNAL."""
        self._handler.fail(self._call)


class InferResponder(CallResponder):
    """The ``Responder`` of one call of ``ModelInfer``."""

    __slots__ = ()

    completes = MODEL_INFER


class ClassifyHandler:
    """Decodes and admits the calls of one method; owned by the worker."""

    def __init__(
        self,
        pipeline: Admission,
        limits: Limits,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
        *,
        responder: type[CallResponder] = CallResponder,
        decode: Decode = decode,
    ) -> None:
        """Admit to a pipeline what ``decode`` makes of the messages of the method that ``responder`` completes."""
        self._method = responder.completes
        self._responder = responder
        self._decode = decode
        self._pipeline = pipeline
        self._limits = limits
        self._recorder = recorder
        self._clock = clock
        self._refusal = pipeline.refusal
        self._refusals: dict[RequestError, Status] = {}  # of the errors that the batcher keeps

    # Called by the transport; see UnaryHandler.

    def refusal(self, deadline: float, source: Source) -> Status | None:
        """Return the status of a call that is rejected before its message is read; None if the call is accepted."""
        error = self._refusal(deadline - time.time(), source)
        if error is None:
            return None
        status = self._refusals.get(error)
        if status is None:
            status = self._refusals[error] = Status.from_error(error)
        self._recorder.call_refused(self._method, status.code, error.reason)
        return status

    def on_accept(self, call: UnaryCall) -> None:  # noqa: ARG002 - the interface of handlers
        """Record the call."""
        self._recorder.call_started(self._method)

    def on_message(self, call: UnaryCall, body: bytes) -> None:
        """Check and admit the request, or reject it."""
        try:
            call.context = self._pipeline.admit(self._responder(self, call), self._decode(body, self._limits))
        except RequestError as error:
            self.reject(call, error, len(body))
        except Exception:
            self._pipeline.log_failure(1)
            self.fail(call, len(body))

    def on_failed(self, call: UnaryCall, status: Status) -> None:
        """Record a call whose message the transport did not get, or could not read."""
        reason = "limit"
        if status.code in _INVALID:
            reason = InvalidRequest.reason
            self._recorder.rejected(reason)
        self._record_end(call, status, reason)

    def on_too_large(self, call: UnaryCall) -> None:
        """Reject a message over the limit."""
        self.reject(call, self._limits.too_large_error())

    def on_close(self, call: UnaryCall) -> None:
        """Drop the request of a call that ended before it was answered."""
        pending = call.context
        if pending is not None:
            self._pipeline.cancel(pending)
        code = unanswered_code(call.deadline)
        if code is Code.DEADLINE_EXCEEDED:
            self._recorder.rejected(DeadlineUnmeetable.reason)
        self._record_end(
            call, Status(code), DeadlineUnmeetable.reason if code is Code.DEADLINE_EXCEEDED else "cancelled"
        )

    # Called by the responders.

    def reject(self, call: UnaryCall, error: RequestError, num_bytes: int | None = None) -> None:
        """Record and send the status of an error.

        Args:
            call: to end.
            error: why.
            num_bytes: of the message, if it was not admitted.
        """
        self._recorder.rejected(error.reason)
        status = Status.from_error(error)
        self._record_end(call, status, error.reason, num_bytes)
        call.fail(status)

    def fail(self, call: UnaryCall, num_bytes: int | None = None) -> None:
        """Record and send INTERNAL."""
        self._record_end(call, INTERNAL, "internal", num_bytes)
        call.fail(INTERNAL)

    def _record_end(self, call: UnaryCall, status: Status, reason: str, num_bytes: int | None = None) -> None:
        now = self._clock()
        self._recorder.call_ended(self._method, status.code, now - call.accepted)
        requests = self._recorder.requests
        if requests.admits(reason, now):
            pending = call.context
            fields = {"request_bytes": num_bytes} if pending is None else pending.log_fields(now)
            requests.write("call failed", self._method, call, status.code, reason, now, status.message, **fields)

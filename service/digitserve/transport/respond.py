"""Handlers of unary methods that need no batch: those that answer at once, and methods that do not exist.

    transport ──on_message──▶ RespondHandler ──bytes──▶ Respond ──bytes──▶ reply

Called on the worker's one thread.
"""

import time
from collections.abc import Callable

import structlog

from digitserve.errors import RequestError
from digitserve.protocol.names import Code, Method
from digitserve.protocol.status import INTERNAL, Status
from digitserve.telemetry.block import OTHER_METHOD
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.handlers import Respond, UnaryCall, unanswered_code
from digitserve.types import Source

_UNKNOWN = Status(Code.UNIMPLEMENTED, "this server has no such method; server reflection lists its services")
_TOO_LARGE = Status(Code.RESOURCE_EXHAUSTED, "the message exceeds the limit of this server")

_log = structlog.get_logger("digitserve.transport.respond")


class RespondHandler:
    """The ``UnaryHandler`` of a method that answers at once; owned by the server."""

    def __init__(
        self, method: Method, respond: Respond, recorder: Recorder, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._method = method
        self._respond = respond
        self._recorder = recorder
        self._clock = clock

    def refusal(self, deadline: float, source: Source) -> Status | None:  # noqa: ARG002 - the interface of handlers
        """Accept every call."""
        return None

    def on_accept(self, call: UnaryCall) -> None:  # noqa: ARG002 - the interface of handlers
        """Record the call."""
        self._recorder.call_started(self._method)

    def on_message(self, call: UnaryCall, body: bytes) -> None:
        """Answer the call."""
        try:
            response = self._respond(body)
        except RequestError as error:
            self._end(call, Status.from_error(error))
        except Exception:
            _log.exception("request failed", method=self._method.name)
            self._end(call, INTERNAL)
        else:
            self._record_end(call, Code.OK)
            call.reply(response)

    def on_failed(self, call: UnaryCall, status: Status) -> None:
        """Record a call whose message the transport did not get, or could not read."""
        self._record_end(call, status.code)

    def on_too_large(self, call: UnaryCall) -> None:
        """Reject a message over the limit."""
        self._end(call, _TOO_LARGE)

    def on_close(self, call: UnaryCall) -> None:
        """Record a call that ended before its message arrived."""
        self._record_end(call, unanswered_code(call.deadline))

    def _end(self, call: UnaryCall, status: Status) -> None:
        self._record_end(call, status.code)
        call.fail(status)

    def _record_end(self, call: UnaryCall, code: Code) -> None:
        self._recorder.call_ended(self._method, code, self._clock() - call.accepted)


class UnknownMethodHandler(RespondHandler):
    """Rejects calls of methods that do not exist, and counts them together."""

    def __init__(self, recorder: Recorder) -> None:
        """Need nothing but the recorder."""
        super().__init__(OTHER_METHOD, bytes, recorder)

    def refusal(self, deadline: float, source: Source) -> Status | None:  # noqa: ARG002 - the interface of handlers
        """Refuse every call."""
        self._recorder.call_started(OTHER_METHOD)
        self._recorder.call_ended(OTHER_METHOD, _UNKNOWN.code, 0.0)
        return _UNKNOWN

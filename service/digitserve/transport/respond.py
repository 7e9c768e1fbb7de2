"""Handlers of unary methods that need no batch: those that answer at once, and methods that do not exist.

    transport ──on_message──▶ RespondHandler ──bytes──▶ Respond ──bytes──▶ reply

Called on the worker's one thread.
"""

import time
from collections.abc import Callable

from digitserve.access import UNAUTHENTICATED
from digitserve.errors import RequestError, TooLarge
from digitserve.log import get_logger
from digitserve.protocol.names import OPEN_INFERENCE_SERVICE, SERVICE, Code, Method
from digitserve.protocol.status import INTERNAL, Status
from digitserve.telemetry.block import METHOD_OF_PATH, OTHER_METHOD
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.handlers import Respond, UnaryCall, unanswered_code
from digitserve.types import Source

_UNKNOWN = Status(
    Code.UNIMPLEMENTED,
    f"this server has no such method; {SERVICE} has Classify, ClassifyStream, Read, ReadStream and GetModel; "
    f"{OPEN_INFERENCE_SERVICE} has ModelInfer, ModelMetadata, ModelReady, ServerLive, ServerMetadata and ServerReady",
)
_TOO_LARGE = Status(Code.RESOURCE_EXHAUSTED, "the message exceeds the limit of this server")

_log = get_logger("digitserve.transport.respond")


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
            self._end(call, Status.from_error(error), error.reason)
        except Exception:
            _log.exception("request failed", method=self._method.name)
            self._end(call, INTERNAL, "internal")
        else:
            self._record_end(call, Code.OK)
            call.reply(response)

    def on_failed(self, call: UnaryCall, status: Status) -> None:
        """Record a call whose message the transport did not get, or could not read."""
        self._record_failure(call, status, "invalid")

    def on_too_large(self, call: UnaryCall) -> None:
        """Reject a message over the limit."""
        self._end(call, _TOO_LARGE, TooLarge.reason)

    def on_close(self, call: UnaryCall) -> None:
        """Record a call that ended before its message arrived."""
        self._record_failure(call, Status(unanswered_code(call.deadline)), "cancelled")

    def _end(self, call: UnaryCall, status: Status, reason: str) -> None:
        self._record_failure(call, status, reason)
        call.fail(status)

    def _record_failure(self, call: UnaryCall, status: Status, reason: str) -> None:
        now = self._record_end(call, status.code)
        requests = self._recorder.requests
        if requests.admits(reason, now):
            requests.write("call failed", self._method, call, status.code, reason, now, status.message)

    def _record_end(self, call: UnaryCall, code: Code) -> float:
        """Record the end of a call; return its monotonic time in seconds."""
        now = self._clock()
        self._recorder.call_ended(self._method, code, now - call.accepted)
        return now


class RefusingHandler(RespondHandler):
    """Rejects all calls of a method with one status, before their messages are read."""

    def __init__(self, method: Method, status: Status, recorder: Recorder) -> None:
        super().__init__(method, bytes, recorder)
        self._status = status

    def refusal(self, deadline: float, source: Source) -> Status:  # noqa: ARG002 - the interface of handlers
        """Refuse every call."""
        self._recorder.call_started(self._method)
        self._recorder.call_ended(self._method, self._status.code, 0.0)
        return self._status


class UnknownMethodHandler(RefusingHandler):
    """Rejects calls of methods that do not exist, and counts them together."""

    def __init__(self, recorder: Recorder) -> None:
        """Need nothing but the recorder."""
        super().__init__(OTHER_METHOD, _UNKNOWN, recorder)


def unauthenticated_handlers(recorder: Recorder) -> dict[str, RefusingHandler]:
    """Return, by path, the handlers that reject calls without a valid token; the empty path stands for unknown methods."""
    handlers = {path: RefusingHandler(method, UNAUTHENTICATED, recorder) for path, method in METHOD_OF_PATH.items()}
    return {**handlers, "": RefusingHandler(OTHER_METHOD, UNAUTHENTICATED, recorder)}

"""RPCs on the thread pools of ``grpc.Server``: recording them, and handlers that never wait.

    grpc.Server ──▶ RecordingInterceptor ──▶ GetModel, health, reflection, unknown methods

These RPCs are rare and may block, so they do not run on the polling thread.
"""

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import structlog

from digitserve.errors import RequestError
from digitserve.protocol.names import Code, Method
from digitserve.protocol.status import INTERNAL, Status
from digitserve.telemetry.block import METHOD_OF_PATH, OTHER_METHOD
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.grpcio.completion_queue import final_code
from digitserve.transport.handlers import Respond

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]

_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}
"""grpcio's status codes by their numbers."""

_log = structlog.get_logger("digitserve.transport.grpcio.thread_pool")


def unary_handler(respond: Respond) -> "Handler":
    """Return a grpcio handler of a unary method."""

    def handle(body: bytes, context: grpc.ServicerContext) -> bytes:
        try:
            return respond(body)
        except RequestError as error:
            # Not context.abort(): the interceptor could not distinguish its exception from a failure.
            status = Status.from_error(error)
            context.set_code(_STATUS_CODES[status.code])
            context.set_details(status.message)
            return b""

    return grpc.unary_unary_rpc_method_handler(handle)


class RecordingInterceptor(grpc.ServerInterceptor):
    """Records the RPCs on the thread pools, and hides the details of failures from callers.

    Called on the polling thread when a call starts, and on a pool for its handler and its end. Unary handlers, which never
    wait, have a separate pool: open streams, each of which occupies a thread, cannot delay health checks.
    """

    def __init__(self, recorder: Recorder, unary_pool: ThreadPoolExecutor) -> None:
        self._recorder = recorder
        self._unary_pool = unary_pool
        self._lock = threading.Lock()

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Handler | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Record the start of a call, and its end if it has a handler; otherwise it ends as UNIMPLEMENTED immediately."""
        method = METHOD_OF_PATH.get(handler_call_details.method, OTHER_METHOD)
        started = time.monotonic()
        with self._lock:
            self._recorder.call_started(method)
        handler = continuation(handler_call_details)
        if handler is None:
            self._record_end(method, Code.UNIMPLEMENTED, started)
            return None
        pool = None if handler.request_streaming or handler.response_streaming else self._unary_pool
        return _wrap(handler, lambda code: self._record_end(method, code, started), pool)

    def _record_end(self, method: Method, code: Code, started: float) -> None:
        with self._lock:
            self._recorder.call_ended(method, code, time.monotonic() - started)


def _wrap(handler: Any, on_end: Callable[[Code], None], pool: ThreadPoolExecutor | None) -> "Handler":
    """Wrap a handler: ``on_end`` gets the status code when the RPC is over; ``pool`` replaces the server's pool."""
    kind = "_".join(
        "stream" if streaming else "unary" for streaming in (handler.request_streaming, handler.response_streaming)
    )
    behavior = getattr(handler, kind)

    # functools.wraps copies the attributes that mark non-blocking handlers for grpcio.
    @functools.wraps(behavior)
    def wrapped(request: Any, context: grpc.ServicerContext, *send_response: Any) -> Any:
        if not context.add_callback(lambda: on_end(final_code(context))):
            on_end(Code.CANCELLED)
        try:
            return behavior(request, context, *send_response)
        except Exception:
            _log.exception("request failed", method=kind)
            context.abort(grpc.StatusCode.INTERNAL, INTERNAL.message)

    if pool is not None:
        wrapped.experimental_thread_pool = pool  # type: ignore[attr-defined] # grpcio looks for this attribute
    return handler._replace(**{kind: wrapped})  # type: ignore[no-any-return]

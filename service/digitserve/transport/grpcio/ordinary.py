"""RPCs that take the server's ordinary path through its thread pool: metadata, and counting whatever goes there.

grpc.Server's thread pool ──▶ GetModel, health, reflection, unknown methods (counted by an interceptor)
"""

import functools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import structlog

from digitserve.inference.bundle import Bundle
from digitserve.inference.session import Session
from digitserve.protocol.codec import Limits
from digitserve.telemetry.block import CODES, METHOD_ROWS, OTHER_ROW, Tally
from digitserve.transport.classify import INTERNAL_MESSAGE
from digitserve.transport.grpcio.completion_queue import final_code
from digitserve.types import IMAGE_SIZE
from digitserve.v1 import digits_pb2 as pb

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]

_CANCELED = CODES.index("Canceled")

_log = structlog.get_logger("digitserve.transport.grpcio.ordinary")


class OrdinaryPath(grpc.ServerInterceptor):
    """Counts the RPCs that take the server's ordinary path, and hides our faults from their callers.

    Called on the polling thread for each call, and on a pool for its handler and its end: unary ones, which never wait, have
    a pool of their own, so that open streams, each of which holds a thread, cannot keep health checks waiting.
    """

    def __init__(self, tally: Tally, unary_pool: ThreadPoolExecutor) -> None:
        self._tally = tally
        self._unary_pool = unary_pool
        self._lock = threading.Lock()

    def intercept_service(
        self,
        continuation: "Callable[[grpc.HandlerCallDetails], Handler | None]",
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        """Count the call, and its end when it has a handler; without one it is UNIMPLEMENTED at once."""
        row = METHOD_ROWS.get(handler_call_details.method, OTHER_ROW)
        started = time.monotonic()
        with self._lock:
            self._tally.started[row] += 1
        handler = continuation(handler_call_details)
        if handler is None:
            self._end(row, CODES.index("Unimplemented"), started)
            return None
        pool = None if handler.request_streaming or handler.response_streaming else self._unary_pool
        return _observed(handler, lambda code: self._end(row, code, started), pool)

    def _end(self, row: int, code: int, started: float) -> None:
        with self._lock:
            self._tally.end(row, code, time.monotonic() - started)


def _observed(handler: Any, end: Callable[[int], None], pool: ThreadPoolExecutor | None) -> "Handler":
    """Wrap a handler so that ``end`` hears the status code once the RPC is over; ``pool`` stands in for the server's."""
    kind = "_".join(
        "stream" if streaming else "unary" for streaming in (handler.request_streaming, handler.response_streaming)
    )
    behavior = getattr(handler, kind)

    # The attributes that wraps() copies tell grpcio which handlers do not block.
    @functools.wraps(behavior)
    def observed(request: Any, context: grpc.ServicerContext, *send_response: Any) -> Any:
        if not context.add_callback(lambda: end(final_code(context))):
            end(_CANCELED)
        try:
            return behavior(request, context, *send_response)
        except Exception:
            _log.exception("request failed", method=kind)
            context.abort(grpc.StatusCode.INTERNAL, INTERNAL_MESSAGE)

    if pool is not None:
        observed.experimental_thread_pool = pool  # type: ignore[attr-defined] # where grpcio looks for it
    return handler._replace(**{kind: observed})  # type: ignore[no-any-return]


class ModelServicer:
    """Answers ``GetModel``, on the server's pool."""

    def __init__(self, bundle: Bundle, session: Session, limits: Limits, max_batch_size: int) -> None:
        manifest = bundle.manifest
        self._version = str(manifest.version)
        self._response = pb.GetModelResponse(
            model=pb.Model(
                name=manifest.name,
                version=self._version,
                sha256=manifest.sha256,
                labels=manifest.labels,
                height=IMAGE_SIZE,
                width=IMAGE_SIZE,
                ink=pb.INK_LIGHT_ON_DARK,
                framing=pb.FRAMING_MNIST,
                ood_threshold=manifest.ood_threshold,
                execution_provider=session.provider,
                max_request_bytes=limits.max_request_bytes,
                max_images_per_request=limits.max_images,
                max_batch_size=max_batch_size,
                quality=dict(manifest.quality),
            )
        )

    def get_model(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.GetModelResponse:
        """Describe the model being served."""
        if request.model_version not in {"", self._version}:
            # Not abort(): the exception that it raises could not be told from a fault of ours.
            context.set_code(grpc.StatusCode.NOT_FOUND)
            context.set_details(f"model_version: got '{request.model_version}'; served is '{self._version}'")
            return pb.GetModelResponse()
        return self._response

    def handlers(self) -> "dict[str, Handler]":
        """Return the ordinary handlers of ``digitserve.v1.DigitService``."""
        return {
            "GetModel": grpc.unary_unary_rpc_method_handler(
                self.get_model, pb.GetModelRequest.FromString, pb.GetModelResponse.SerializeToString
            )
        }

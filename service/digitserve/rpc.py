"""The RPCs of a worker: what is answered on the loop's own thread, and what takes the server's ordinary path.

    completion_queue ──▶ ClassifyTaker ──admit──▶ Batcher ──form──▶ run_batch ──▶ Session ──▶ reply
    grpc.Server's thread pool ──▶ GetModel, health, reflection, unknown methods (counted by an interceptor)

``ClassifyTaker`` belongs to the worker and is called on its one thread only. The one conversion from errors to status
codes is here.
"""

import functools
import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import grpc
import numpy as np
import structlog
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from digitserve.batcher import Batch, Batcher, Entry
from digitserve.bundle import IMAGE_SIZE, Bundle
from digitserve.completion_queue import Call, final_code
from digitserve.errors import (
    DeadlineUnmeetable,
    Draining,
    InvalidRequest,
    NotServed,
    Overloaded,
    RequestError,
)  # fmt: skip
from digitserve.messages import (
    ACCEPTED,
    BLANK,
    SEVERAL,
    UNFAMILIAR,
    Answer,
    Encoder,
    Limits,
    Request,
    decode,
    rows,
)  # fmt: skip
from digitserve.metrics import CLASSIFY_ROW, CODES, METHOD_ROWS, OTHER_ROW, SERVICE, Tally
from digitserve.preprocess import verdicts
from digitserve.session import Session
from digitserve.v1 import digits_pb2 as pb

CLASSIFY = f"/{SERVICE}/Classify"

_CODES: dict[type[RequestError], int] = {
    InvalidRequest: CODES.index("InvalidArgument"),
    NotServed: CODES.index("NotFound"),
    Overloaded: CODES.index("ResourceExhausted"),
    DeadlineUnmeetable: CODES.index("DeadlineExceeded"),
    Draining: CODES.index("Unavailable"),
}
_FOREVER = 1e18
"""Core says about 9.2e18, in seconds of Unix time, where a call has no deadline."""

_OK = CODES.index("OK")
_CANCELED = CODES.index("Canceled")
_DEADLINE_EXCEEDED = CODES.index("DeadlineExceeded")
_RESOURCE_EXHAUSTED = CODES.index("ResourceExhausted")
_INTERNAL = CODES.index("Internal")
INTERNAL_MESSAGE = "internal error; the server's log has the details"
"""All that a caller is told of our own faults."""

if TYPE_CHECKING:
    Handler: TypeAlias = grpc.RpcMethodHandler[Any, Any]

_log = structlog.get_logger("digitserve.rpc")


class ClassifyTaker:
    """Takes ``Classify`` calls on, admits them, runs their batches and answers them."""

    def __init__(
        self, batcher: Batcher, session: Session, bundle: Bundle, limits: Limits, tally: Tally,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        manifest = bundle.manifest
        self._batcher = batcher
        self._session = session
        self._limits = limits
        self._tally = tally
        self._clock = clock
        self._encoder = Encoder(manifest.name, str(manifest.version), manifest.labels)
        self._ood_threshold = manifest.ood_threshold
        self.num_open = 0

    # What the completion queue calls.

    def on_accept(self, call: Call) -> None:
        """Count the call; turn it away unread when nothing can be admitted."""
        self._tally.started[CLASSIFY_ROW] += 1
        self.num_open += 1
        if self._batcher.full():
            self._refuse(call, self._batcher.refuse())

    def on_message(self, call: Call, body: bytes) -> None:
        """Check the request and admit it, or say why not."""
        try:
            request = decode(body, self._limits)
            now = self._clock()
            call.context = entry = Entry(
                (call, request), request.num_images, request.framing_work, len(request.pixels), call.accepted,
                _monotonic(call.deadline, now),
            )  # fmt: skip
            self._batcher.admit(entry, now)
        except RequestError as error:
            self._refuse(call, error)
        except Exception:
            self._fail_internally([call])

    def on_silence(self, call: Call) -> None:
        """Count a call without a message."""
        self._tally.reject(InvalidRequest.reason)
        self._count(call, _CODES[InvalidRequest])

    def on_too_large(self, call: Call) -> None:
        """Refuse a message over the limit, which core has thrown away unread."""
        self._tally.reject("too_large")
        most = self._limits.max_request_bytes
        self._fail(
            call,
            _RESOURCE_EXHAUSTED,
            f"got a message of more than {most} bytes, the most that is taken; send less at once",
        )

    def on_close(self, call: Call) -> None:
        """Forget a call that ended before it was answered."""
        if call.context is not None:
            self._batcher.cancel(call.context)
        expired = call.deadline <= time.time()
        if expired:
            self._tally.reject("deadline")
        self._count(call, _DEADLINE_EXCEEDED if expired else _CANCELED)

    # What the worker's loop calls.

    def run_batch(self) -> bool:
        """Form the next batch, run it and answer what is complete; return whether there was one."""
        batch = self._batcher.form(self._clock())
        if batch is None:
            return False
        for entry in batch.expired:
            self._refuse(entry.work[0], DeadlineUnmeetable("the deadline passed while the request waited"))
        if batch.parts:
            try:
                self._run(batch)
            except Exception:
                entries = [entry for entry, _, _ in batch.parts]
                self._fail_internally([entry.work[0] for entry in entries if not entry.dead])
                for entry in entries:
                    self._batcher.cancel(entry)
        self._tally.pending_images[0] = self._batcher.pending_images
        return True

    def give_up(self) -> None:
        """Refuse what waits: the grace is over."""
        for entry in self._batcher.give_up():
            self._refuse(entry.work[0], self._batcher.refuse())

    def _run(self, batch: Batch) -> None:
        formed = self._clock()
        chunks, framed = _gather(batch)
        images = np.frombuffer(b"".join(chunks), np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 1)
        blank, several = verdicts(images[..., 0])
        prepared = self._clock()
        outputs = self._session.run(images)
        done = self._clock()
        probabilities, ood_score = outputs.probabilities, outputs.ood_score
        class_index = probabilities.argmax(axis=1)
        confidence = probabilities.max(axis=1)
        verdict = np.where(ood_score > self._ood_threshold, UNFAMILIAR, ACCEPTED)
        verdict[several] = SEVERAL
        verdict[blank] = BLANK
        for row, seen in framed:
            verdict[row : row + len(seen)] = np.where(np.array(seen) == ACCEPTED, verdict[row : row + len(seen)], seen)
        answers = list(
            map(Answer, class_index.tolist(), confidence.tolist(), verdict.tolist(), ood_score.tolist(), probabilities)
        )
        finished = self._batcher.complete(batch, answers, prepared - formed, done - prepared)
        self._record(batch, finished, (prepared - formed, done - prepared))
        tally = self._tally
        tally.images[0] += len(answers)
        tally.predictions(class_index, verdict)
        tally.confidence.observe_many(confidence[verdict == ACCEPTED])
        for entry in finished:
            self._reply(entry, batch.num_images)

    def _record(self, batch: Batch, finished: list[Entry], seconds: tuple[float, float]) -> None:
        """Count a batch before its answers go out, so that whoever has an answer finds it counted."""
        tally = self._tally
        tally.batch_size.observe(batch.num_images)
        tally.preprocess_s.observe(seconds[0])
        tally.inference_s.observe(seconds[1])
        if finished:
            now = self._clock()
            tally.handled[CLASSIFY_ROW, _OK] += len(finished)
            tally.handling_s[CLASSIFY_ROW].observe_many([now - entry.arrived for entry in finished])
            tally.queue_s.observe_many([entry.first_batch - entry.arrived for entry in finished])

    def _reply(self, entry: Entry, batch_size: int) -> None:
        call, request = entry.work
        seconds = (entry.first_batch - entry.arrived, entry.preprocess_s, entry.inference_s)
        call.reply(self._encoder.encode(entry.answers, request.top_k, seconds, batch_size))
        self.num_open -= 1

    def _refuse(self, call: Call, error: RequestError) -> None:
        self._tally.reject(error.reason)
        self._fail(call, _CODES[type(error)], str(error), _details(error))

    def _fail_internally(self, calls: list[Call]) -> None:
        """Answer for a fault of ours: a fixed text for the callers, the traceback for the log."""
        _log.exception("request failed", num_requests=len(calls))
        for call in calls:
            if call.open:
                self._fail(call, _INTERNAL, INTERNAL_MESSAGE)

    def _fail(self, call: Call, code: int, message: str, details: bytes | None = None) -> None:
        self._count(call, code)
        call.fail(code, message, details)

    def _count(self, call: Call, code: int) -> None:
        self.num_open -= 1
        self._tally.handled[CLASSIFY_ROW, code] += 1
        self._tally.handling_s[CLASSIFY_ROW].observe(self._clock() - call.accepted)


def _gather(batch: Batch) -> tuple[list[bytes | memoryview], list[tuple[int, list[int]]]]:
    """Collect a batch's pixels, and the verdicts of framing with the row where they begin."""
    chunks: list[bytes | memoryview] = []
    framed: list[tuple[int, list[int]]] = []
    row = 0
    for entry, start, stop in batch.parts:
        request: Request = entry.work[1]
        if request.plain and stop - start == request.num_images:
            chunks.append(request.pixels)
        else:
            pixels, seen = rows(request, start, stop)
            chunks.append(pixels)
            if seen:
                framed.append((row, seen))
        row += stop - start
    return chunks, framed


def _monotonic(deadline: float, now: float) -> float:
    """Turn a Unix time into monotonic time."""
    return math.inf if deadline > _FOREVER else now + (deadline - time.time())


def _details(error: RequestError) -> bytes | None:
    """Return a serialized ``google.rpc.Status`` that tells a program when to come back, for errors that know it."""
    if not isinstance(error, Overloaded):
        return None
    delay = duration_pb2.Duration()
    delay.FromNanoseconds(int(error.retry_after_s * 1e9))
    retry = any_pb2.Any()
    retry.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status = status_pb2.Status(code=_RESOURCE_EXHAUSTED, message=str(error), details=[retry])
    return bytes(status.SerializeToString())


class OrdinaryPath(grpc.ServerInterceptor):
    """Counts the RPCs that take the server's ordinary path, and hides our faults from their callers.

    Called on the polling thread for each call, and on the server's pool for its handler and its end.
    """

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
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
        return _observed(handler, lambda code: self._end(row, code, started))

    def _end(self, row: int, code: int, started: float) -> None:
        with self._lock:
            self._tally.handled[row, code] += 1
            self._tally.handling_s[row].observe(time.monotonic() - started)


def _observed(handler: Any, end: Callable[[int], None]) -> "Handler":
    """Wrap a handler so that ``end`` hears the status code once the RPC is over."""
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

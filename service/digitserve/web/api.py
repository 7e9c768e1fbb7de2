"""The routes ``/v1/classify``, ``/v1/read``, ``/v1/model`` and ``/v1/openapi.json``. Runs on the supervisor's event loop.

    HTTP request ──admitted?──▶ query, body ──▶ request ──▶ worker ──▶ response ──▶ JSON

The texts of errors are those of gRPC where the worker finds the error.
"""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from digitserve.log import get_logger
from digitserve.protocol.codec import CHANNELS, Limits
from digitserve.protocol.names import CLASSIFY, GET_MODEL, READ, Code, Method
from digitserve.protocol.status import Status
from digitserve.settings import Settings
from digitserve.types import Box
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.reduction import READ_BYTES, Reduction
from digitserve.web import parameters, uploads
from digitserve.web.answers import JSON, Failure, internal, to_json
from digitserve.web.decoder_messages import Question
from digitserve.web.decoder_pool import DecoderPool
from digitserve.web.messages import Sizes, serialize, too_many_images
from digitserve.web.openapi import CLASSIFY_PATH, MODEL_PATH, OPENAPI_PATH, READ_PATH, description
from digitserve.web.parameters import Options
from digitserve.web.worker_calls import Slot, WorkerCalls

API_PREFIX = "/v1/"

MAX_IMAGES = 64
"""Most images of a request: converting 64 explained predictions to JSON blocks the event loop for 4 ms (measured)."""

FIELDS_BYTES = 1 << 12
"""Most bytes of the fields of a request beside its pixels: a pattern, a version, and numbers."""

REQUEST_S = 60.0
"""Longest time of a request. Its other limits add up to less: 20 s for the body, twice 15 s to decode it, 5 s for the answer."""

ORIGIN_HEADERS = (b"traceparent", b"x-request-id")

_MODEL_S = 5.0
_CANCELLED = Status(Code.CANCELLED, "the client has closed the connection")
_DRAINING = Status(Code.UNAVAILABLE, "this server is shutting down; retry, and another server will answer")
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}

Endpoint = Callable[[Request], Awaitable[Response]]
Result = TypeVar("Result")

_log = get_logger("digitserve.web.api")


class Api:
    """The HTTP API of a service; owned by the HTTP server.

    Attributes:
        num_answers: by path and HTTP status.
        num_open: requests whose head was received, and that are not answered.
    """

    def __init__(self, settings: Settings, slots: Sequence[Slot], refusal: Callable[[Request], Status | None]) -> None:
        """Prepare; no connection and no process is started.

        Args:
            settings: of the service.
            slots: of the service.
            refusal: returns why a client may not use the API; None if it may.
        """
        self.num_answers: Counter[tuple[str, ...]] = Counter()
        self.num_open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_draining = False
        self._refusal = refusal
        self._calls = WorkerCalls(slots)
        self._max_bytes = settings.max_request_bytes
        self._pool = DecoderPool(self._max_bytes)
        limits = Limits("", settings.max_side, settings.max_pending_images, self._max_bytes)
        self._too_large = str(limits.too_large_error())
        self._memory = uploads.Memory(uploads.NUM_LARGEST * self._max_bytes)
        self._description = description(MAX_IMAGES)

    @property
    def routes(self) -> list[Route]:
        """The routes of the API."""
        return [
            *(Route(kind.path, self._route(kind.path, partial(self._call, kind)), methods=["POST"]) for kind in _KINDS),
            Route(MODEL_PATH, self._route(MODEL_PATH, self._model), methods=["GET"]),
            Route(OPENAPI_PATH, self._route(OPENAPI_PATH, self._openapi), methods=["GET"]),
        ]

    @property
    def pids(self) -> list[int]:
        """Process ids of the decoders."""
        return self._pool.pids

    def drain(self) -> None:
        """Refuse requests from now on. Those that are open continue."""
        self._is_draining = True

    async def wait_until_idle(self, limit_s: float) -> None:
        """Wait until no request is open, at most for some seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._idle.wait()

    async def close(self) -> None:
        """End the processes of the API, and close its connections."""
        self._calls.close()
        await self._pool.close()

    def _route(self, path: str, endpoint: Endpoint) -> Endpoint:
        """Return an endpoint that checks the client, answers errors, and counts."""

        async def answer(request: Request) -> Response:
            refusal = self._refusal(request) or (_DRAINING if self._is_draining else None)
            self.num_open += 1
            self._idle.clear()
            try:
                response = await endpoint(request) if refusal is None else Failure.of(refusal).response()
            except Failure as failure:
                response = failure.response()
            except Exception:
                _log.exception("a request to the HTTP API failed", path=path)
                response = internal().response()
            finally:
                self.num_open -= 1
                if not self.num_open:
                    self._idle.set()
            response.headers.update(_HEADERS)
            self.num_answers[path, str(response.status_code)] += 1
            return response

        return answer

    async def _call(self, kind: "_Kind", request: Request) -> Response:
        """Answer a request with an image."""
        options = kind.parse(request.query_params.multi_items())
        uploads.check_type(request, is_raw=options.raw_size is not None)
        started = time.perf_counter()
        with uploads.Share(self._memory) as share:
            body = await uploads.read(request, share, self._max_bytes, self._too_large)
            received = time.perf_counter()
            message, reduction = await _while_connected(request, self._to_message(kind, body, options))
            del body
            if len(message) > self._max_bytes:
                raise Failure.of(Status(Code.RESOURCE_EXHAUSTED, self._too_large), 413)
            share.hold(len(message))
            decoded = time.perf_counter()
            answer = await _while_connected(
                request, self._calls.call(kind.method, message, options.timeout_s, _origin(request))
            )
        called = time.perf_counter()
        response = kind.response.FromString(answer)
        if reduction is not None:
            _to_original(kind.boxes(response), reduction)
        times = {"upload": received - started, "decode": decoded - received, "call": called - decoded}
        timing = ", ".join(f"{name};dur={1e3 * seconds:.2f}" for name, seconds in times.items())
        text = await asyncio.to_thread(to_json, response) if kind.is_long else to_json(response)
        return Response(text, headers={"server-timing": timing}, media_type=JSON)

    async def _to_message(self, kind: "_Kind", body: bytes, options: Options) -> tuple[bytes, Reduction | None]:
        """Return the serialized request, and how its images were reduced."""
        if options.raw_size is None:
            max_bytes = min(kind.max_bytes, max(1, self._max_bytes - FIELDS_BYTES))
            decoded = await self._pool.decode(
                body, Question(options.max_side, kind.max_images, max_bytes, kind.message)
            )
            # Two serialized messages together are the serialized merged message.
            return decoded.request + options.fields.SerializeToString(), decoded.reduction
        height, width = options.raw_size
        pixel_format = parameters.PIXEL_FORMATS[options.pixel_format]
        num_images = len(body) // (height * width * CHANNELS[pixel_format])
        if num_images > kind.max_images:
            raise Failure.invalid(too_many_images(num_images, kind.max_images))
        sizes = Sizes(0, height, width, pixel_format)
        return serialize(body, sizes, options.fields.SerializeToString(), kind.message), None

    async def _model(self, request: Request) -> Response:
        values = parameters.parse(request.query_params.multi_items(), [parameters.MODEL_VERSION])
        message = pb.GetModelRequest(model_version=values["model_version"]).SerializeToString()
        answer = await self._calls.call(GET_MODEL, message, _MODEL_S, _origin(request))
        return Response(to_json(pb.GetModelResponse.FromString(answer)), media_type=JSON)

    async def _openapi(self, request: Request) -> Response:
        parameters.parse(request.query_params.multi_items(), [])
        return Response(self._description, media_type=JSON)


async def _while_connected(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """Await a coroutine, and cancel it if the client closes the connection.

    Raises:
        Failure: the client has left.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Failure.of(_CANCELLED)
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        """The rest of the request, which is empty."""


def _origin(request: Request) -> list[tuple[bytes, bytes]]:
    """Return the header fields that connect the log lines of a request. grpcio logs an error for a value that is not ASCII."""
    return [(name, value) for name, value in request.scope["headers"] if name in ORIGIN_HEADERS and value.isascii()]


def _to_original(boxes: Iterable[pb.Box], reduction: Reduction) -> None:
    """Convert the boxes of an answer to pixels of the image that the client has sent."""
    for box in boxes:
        original = reduction.to_original(Box(box.top, box.bottom, box.left, box.right))
        box.top, box.bottom, box.left, box.right = original


def _prediction_boxes(response: pb.ClassifyResponse) -> Iterable[pb.Box]:
    for prediction in response.predictions:
        if prediction.preparation.HasField("box"):
            yield prediction.preparation.box
        for removed in prediction.preparation.removed:
            if removed.HasField("box"):
                yield removed.box


def _reading_boxes(response: pb.ReadResponse) -> Iterable[pb.Box]:
    for line in response.lines:
        if line.HasField("box"):
            yield line.box
        for mark in line.marks:
            if mark.HasField("box"):
                yield mark.box
    for ignored in response.ignored:
        if ignored.HasField("box"):
            yield ignored.box


class _Kind(NamedTuple):
    """A method of the service that takes images.

    Attributes:
        path: of its route.
        method: of the workers.
        parse: returns what a query says.
        message: name of its request.
        response: its response.
        boxes: returns the boxes of a response.
        is_long: whether answers can be so long that a thread converts them to JSON: 13 ms for a page of 400 digits, and 66 ms
            with their ten labels (measured).
        max_images: most images of a request.
        max_bytes: pictures with more bytes of pixels are reduced; 0 if their longest side limits them enough.
    """

    path: str
    method: Method
    parse: Callable[[Iterable[tuple[str, str]]], Options]
    message: str
    response: Any
    boxes: Callable[[Any], Iterable[pb.Box]]
    is_long: bool
    max_images: int
    max_bytes: int


_KINDS = (
    _Kind(CLASSIFY_PATH, CLASSIFY, parameters.parse_options, "ClassifyRequest", pb.ClassifyResponse, _prediction_boxes,
          is_long=False, max_images=MAX_IMAGES, max_bytes=0),
    _Kind(READ_PATH, READ, parameters.parse_read_options, "ReadRequest", pb.ReadResponse, _reading_boxes,
          is_long=True, max_images=1, max_bytes=READ_BYTES),
)  # fmt: skip

"""Clients of the chaos run that use libraries: grpcio, grpc.aio, the clients of this project, and HTTP.

Each driver keeps its connections over all episodes, as real clients do. In an episode its ``run`` is called on a thread of its
own; it sends requests that its random numbers choose, one after another, until the episode's traffic ends.
"""

import random
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple, Protocol

import grpc
from grpc_health.v1 import health_pb2

from digitserve.client import CHANNEL_OPTIONS
from digitserve.client.errors import Closed, DeadlineExceeded, RequestRejected, Unreachable
from digitserve.open_inference import open_inference_pb2 as oip
from digitserve.protocol.names import CLASSIFY, CLASSIFY_STREAM, GET_MODEL, HEALTH_CHECK, MODEL_INFER, SERVICE, Verdict
from digitserve.protocol.tensors import NO_LABEL
from digitserve.v1 import digits_pb2 as pb
from support.chaos import checker
from support.chaos.history import OK, Answer, History, Request, StreamRequests
from support.chaos.images import Images
from support.infer_checks import tensors
from support.serving import Service

TIMEOUT_S = 30.0
"""Deadline of calls that should succeed: longer than a worker's replacement on a busy machine."""

SEPARATE: tuple[tuple[str, str | int], ...] = (("grpc.use_local_subchannel_pool", 1),)
"""Options of a channel that does not share its connection."""

PLAIN: tuple[tuple[str, str | int], ...] = (("grpc.max_send_message_length", -1), *SEPARATE)
"""Options of a channel with the defaults of gRPC: no service config, no keepalive."""

CALLS_PER_S = 100.0
"""Mean rate of a driver whose calls take no time."""

MAX_EXPIRED_S = 0.02
OVERSIZED_BYTES = 17 << 20
HTTP_TIMEOUT_S = 10.0
MAX_STREAM_MESSAGES = 40
INVALID_MESSAGES, ABANDONED_STREAMS = 0.1, 0.15
"""Shares of messages of streams, and of streams."""

INFER_CALLS, TYPED_CONTENTS = 0.3, 0.2
"""Shares of ``ModelInfer`` among calls with images, and of those whose pixels are typed contents."""

_WITH_IMAGES = (CLASSIFY.path, MODEL_INFER.path)

_WEIGHTS = {
    "good": 60, "model": 3, "health": 4, "expired": 6, "cancelled": 6, "malformed": 4, "wrong length": 4, "too wide": 2,
    "unknown version": 3, "unknown method": 2, "oversized": 0.2,
}  # fmt: skip


_WITHOUT_IMAGES: dict[str, tuple[tuple[str, ...], Callable[[random.Random], bytes]]] = {
    "model": ((GET_MODEL.path,), lambda rng: b""),
    "health": (
        (HEALTH_CHECK.path,),
        lambda rng: health_pb2.HealthCheckRequest(service=rng.choice(["", SERVICE])).SerializeToString(),
    ),
    "oversized": (_WITH_IMAGES, lambda rng: bytes(OVERSIZED_BYTES)),
    # The first byte ends a group that was not begun.
    "malformed": (_WITH_IMAGES, lambda rng: b"\x0c" + rng.randbytes(rng.randrange(40))),
}
"""Paths and message of the other kinds."""


class Traffic:
    """The traffic of one episode.

    Attributes:
        history: of the episode.
        images: of the run.
        stopping: set when drivers must end.
    """

    def __init__(self, history: History, images: Images) -> None:
        self.history = history
        self.images = images
        self.stopping = threading.Event()

    def pauses(self, rng: random.Random) -> Iterator[None]:
        """Wait a random time before each request, until the traffic ends."""
        while not self.stopping.wait(rng.expovariate(CALLS_PER_S)):
            yield


class Driver(Protocol):
    """A client."""

    def run(self, traffic: Traffic, rng: random.Random) -> None:
        """Send requests until the traffic ends."""

    def close(self) -> None:
        """Close all connections; calls in progress end."""


class Call(NamedTuple):
    """A unary call.

    Attributes:
        kind: key of ``checker.KINDS``.
        path: of the method.
        body: of the message.
        timeout_s: its deadline.
        images: indices of its images.
        cancel_after_s: seconds after which the client cancels it; None for never.
    """

    kind: str
    path: str
    body: bytes
    timeout_s: float = TIMEOUT_S
    images: tuple[int, ...] = ()
    cancel_after_s: float | None = None

    @property
    def num_calls(self) -> int:
        """Number of calls that classify images."""
        return int(self.path in _WITH_IMAGES)


def draw_images(rng: random.Random, images: Images, *, max_images: int = 200) -> tuple[int, ...]:
    """Choose some images of one shape: mostly few, sometimes more than a batch."""
    shape = rng.choices(list(images.by_shape), [len(known) for known in images.by_shape.values()])[0]
    largest = 8 if (shape.height, shape.width) != (28, 28) else max_images
    return tuple(rng.choices(images.by_shape[shape], k=min(largest, rng.choice([1, 1, 1, 1, 2, 3, 8, 64, 200]))))


def draw_call(rng: random.Random, images: Images) -> Call:
    """Choose a unary call of any kind."""
    (kind,) = rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
    if kind in _WITHOUT_IMAGES:
        paths, draw_body = _WITHOUT_IMAGES[kind]
        return Call(kind, rng.choice(paths), draw_body(rng))
    chosen = draw_images(rng, images)
    path, message = CLASSIFY.path, images.request(chosen)
    if rng.random() < INFER_CALLS:
        path, message = MODEL_INFER.path, images.infer_request(chosen, raw=rng.random() >= TYPED_CONTENTS)
    if kind == "unknown method":
        return Call(kind, path + "Twice", message.SerializeToString())
    if kind in {"wrong length", "too wide", "unknown version"}:
        spoil(message, kind)
        return Call(kind, path, message.SerializeToString())
    timeout_s = rng.uniform(0.0005, MAX_EXPIRED_S) if kind == "expired" else TIMEOUT_S
    cancel_after_s = rng.uniform(0, MAX_EXPIRED_S) if kind == "cancelled" else None
    return Call(kind, path, message.SerializeToString(), timeout_s, chosen, cancel_after_s)


def spoil(message: pb.ClassifyRequest | oip.ModelInferRequest, kind: str) -> None:
    """Make a request invalid."""
    if kind == "unknown version":
        message.model_version = "none"
    elif isinstance(message, oip.ModelInferRequest):
        # With both, pixels of any form have the wrong length.
        message.inputs[0].shape[1:3] = [5000, 5000] if kind == "too wide" else [27, 29]
    elif kind == "too wide":
        message.height = message.width = 5000
    else:
        message.pixels = message.pixels[:-1]


def to_answers(predictions: Any) -> list[Answer]:
    """Convert predictions of a response, or of a client."""
    return [Answer(one.label, one.confidence, int(one.verdict), one.ood_score) for one in predictions]


def _infer_answers(response: oip.ModelInferResponse) -> Iterator[Answer]:
    found = tensors(response)
    for label, verdict, score, probabilities in zip(
        *(found[name] for name in ("label", "verdict", "ood_score", "probabilities")), strict=True
    ):
        text, confidence = ("", 0.0) if label == NO_LABEL else (str(label), float(probabilities[label]))
        yield Answer(text, confidence, int(Verdict[verdict.decode()]), float(score))


def end_ok(request: Request, path: str, body: bytes) -> None:
    """Record the answer of a unary call of a method."""
    if path == GET_MODEL.path:
        request.end(OK, version=pb.GetModelResponse.FromString(body).model.version)
    elif path == MODEL_INFER.path:
        inferred = oip.ModelInferResponse.FromString(body)
        request.end(OK, [*_infer_answers(inferred)], inferred.model_version)
    elif path == HEALTH_CHECK.path:
        status = health_pb2.HealthCheckResponse.FromString(body).status
        serving = status == health_pb2.HealthCheckResponse.SERVING
        request.end(OK if serving else health_pb2.HealthCheckResponse.ServingStatus.Name(status))
    else:
        response = pb.ClassifyResponse.FromString(body)
        request.end(OK, to_answers(response.predictions), response.model_version)


def end_failed(request: Request, error: Exception) -> None:
    """Record the failure of a call."""
    if isinstance(error, grpc.RpcError):
        request.end(error.code().name, detail=str(error.details()))
    elif isinstance(error, RequestRejected):
        request.end(error.code.name, detail=str(error))
    else:
        codes = {Unreachable: "UNAVAILABLE", DeadlineExceeded: "DEADLINE_EXCEEDED", Closed: "CLOSED"}
        request.end(codes.get(type(error), type(error).__name__), detail=str(error))  # type: ignore[call-overload]


class BlockingCalls:
    """Unary calls with grpcio, on one channel."""

    def __init__(self, service: Service, *, retries: bool) -> None:
        options = (*CHANNEL_OPTIONS, *SEPARATE) if retries else PLAIN
        self._channel = grpc.insecure_channel(service.grpc_address, options)
        self._client = checker.GRPCIO_RETRIES if retries else checker.GRPCIO

    def run(self, traffic: Traffic, rng: random.Random) -> None:
        """Send requests until the traffic ends."""
        for _ in traffic.pauses(rng):
            call = draw_call(rng, traffic.images)
            request = traffic.history.begin(
                call.kind, self._client, call.images, timeout_s=call.timeout_s, num_calls=call.num_calls
            )
            try:
                body = self._send(call, traffic)
            except grpc.FutureCancelledError:
                request.end("CANCELLED")
            except (grpc.RpcError, ValueError) as error:
                end_failed(request, error)
            else:
                end_ok(request, call.path, body)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _send(self, call: Call, traffic: Traffic) -> bytes:
        method = self._channel.unary_unary(call.path)
        if call.cancel_after_s is None:
            return method(call.body, timeout=call.timeout_s)  # type: ignore[no-any-return]
        future = method.future(call.body, timeout=call.timeout_s)
        traffic.stopping.wait(call.cancel_after_s)
        future.cancel()
        return future.result()  # type: ignore[no-any-return]


class BlockingStreams:
    """Streams of ``ClassifyStream`` with grpcio, one after another on one channel."""

    def __init__(self, service: Service) -> None:
        self._channel = grpc.insecure_channel(service.grpc_address, PLAIN)

    def run(self, traffic: Traffic, rng: random.Random) -> None:
        """Send requests until the traffic ends."""
        method = self._channel.stream_stream(CLASSIFY_STREAM.path)
        for _ in traffic.pauses(rng):
            abandon_after = rng.randrange(MAX_STREAM_MESSAGES) if rng.random() < ABANDONED_STREAMS else None
            sent = StreamRequests()
            call = method(self._messages(traffic, rng, sent, abandoned=abandon_after is not None), timeout=TIMEOUT_S)
            try:
                for num_received, body in enumerate(call, 1):
                    end_message(sent.next(), pb.ClassifyStreamResponse.FromString(body))
                    if abandon_after is not None and num_received >= abandon_after:
                        call.cancel()
            except grpc.RpcError as error:
                end_unanswered(sent, error)
            else:
                end_unanswered(sent, None)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    @staticmethod
    def _messages(traffic: Traffic, rng: random.Random, sent: StreamRequests, *, abandoned: bool) -> Iterator[bytes]:
        # grpcio iterates on another thread: random numbers are drawn before the stream starts.
        drawn = [(draw_images(rng, traffic.images, max_images=8), rng.random()) for _ in range(MAX_STREAM_MESSAGES)]
        length = rng.randrange(1, MAX_STREAM_MESSAGES)

        def generate() -> Iterator[bytes]:
            for images, chance in drawn[:length]:
                message = traffic.images.request(images)
                invalid = chance < INVALID_MESSAGES
                if invalid:
                    spoil(message, "wrong length")
                kind = "abandoned" if abandoned else "invalid" if invalid else ""
                begin = partial(
                    traffic.history.begin, f"{kind} stream message".strip(), checker.STREAM,
                    () if invalid else images, timeout_s=TIMEOUT_S,
                )  # fmt: skip
                if not sent.begin(begin):
                    return
                yield pb.ClassifyStreamRequest(request=message).SerializeToString()

        return generate()


def end_unanswered(sent: StreamRequests, error: Exception | None) -> None:
    """Record that a stream has ended, and with it the requests that have no answer."""
    for request in sent.close():
        if error is None:
            request.end("LOST", detail="the stream ended with OK before this answer")
        else:
            end_failed(request, error)


def end_message(request: Request, response: pb.ClassifyStreamResponse) -> None:
    """Record the answer to a message of a stream."""
    if response.HasField("error"):
        code = next(code for code in grpc.StatusCode if code.value[0] == response.error.code)
        request.end(code.name, detail=response.error.message)
    else:
        request.end(OK, to_answers(response.response.predictions), response.response.model_version)


class Pages:
    """Requests to the HTTP port."""

    def __init__(self, service: Service) -> None:
        self._url = service.http_url

    def run(self, traffic: Traffic, rng: random.Random) -> None:
        """Send requests until the traffic ends."""
        while not traffic.stopping.wait(rng.expovariate(10)):
            request = traffic.history.begin("page", checker.HTTP, timeout_s=HTTP_TIMEOUT_S)
            try:
                with urllib.request.urlopen(
                    self._url + rng.choice(["/metrics", "/livez", "/"]), timeout=HTTP_TIMEOUT_S
                ) as page:
                    page.read()
                request.end(OK)
            except urllib.error.HTTPError as error:
                request.end(f"HTTP {error.code}")
            except OSError as error:
                request.end("UNAVAILABLE", detail=str(error))

    def close(self) -> None:
        """Do nothing: each request has a connection of its own."""

"""Handlers of ``grpc.health.v1.Health``: Check, List and Watch.

    worker ──set_serving, set_not_serving, close_watches──▶ Health ──newest status──▶ ServerStream of each watch
    transport ──Check, List──▶ Health.check, Health.list_services
    transport ──Watch──▶ Health.on_accept, on_message, ...                 see StreamHandler

The service names are fixed and have one status in common, so nothing is kept about the names that clients send.
Called on the worker's one thread.

Source: github.com/grpc/grpc, doc/health-checking.md.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from grpc_health.v1 import health_pb2

from digitserve.errors import NotServed, RequestError
from digitserve.protocol.codec import parse, quoted
from digitserve.protocol.names import HEALTH_WATCH, OPEN_INFERENCE_SERVICE, SERVICE, Code
from digitserve.protocol.status import NO_MESSAGE, OK, Status
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.handlers import ServerStream, unanswered_code

SERVICE_NAMES = ("", SERVICE, OPEN_INFERENCE_SERVICE)
"""Services that have a status; the empty name is the whole server."""

_TOO_LARGE = Status(
    Code.RESOURCE_EXHAUSTED,
    "got a message over the size limit; expected a HealthCheckRequest with the name of a service",
)
_SECOND_MESSAGE = Status(Code.INVALID_ARGUMENT, "got a second message; expected exactly one")
# The code that clients of a grpcio server get when it stops; they watch again on another connection.
_CLOSED = Status(Code.UNAVAILABLE, "this server is shutting down; watch again on another connection")


class _Answers(NamedTuple):
    """The serialized answers while the service has one status.

    Attributes:
        status: ``HealthCheckResponse``, for Check and Watch.
        listing: ``HealthListResponse``.
    """

    status: bytes
    listing: bytes

    @classmethod
    def of(cls, status: health_pb2.HealthCheckResponse.ServingStatus) -> "_Answers":
        response = health_pb2.HealthCheckResponse(status=status)
        listing = health_pb2.HealthListResponse(statuses=dict.fromkeys(SERVICE_NAMES, response))
        return cls(response.SerializeToString(), listing.SerializeToString())


_SERVING = _Answers.of(health_pb2.HealthCheckResponse.SERVING)
_NOT_SERVING = _Answers.of(health_pb2.HealthCheckResponse.NOT_SERVING)
_SERVICE_UNKNOWN = _Answers.of(health_pb2.HealthCheckResponse.SERVICE_UNKNOWN).status


class _Watch:
    """What is kept for one watch; the context of its stream.

    Attributes:
        written: the last message written; ``None`` until the request arrives.
        follows: whether the watched service is known, so that changes of the status are written.
        unsent: whether that message is not yet sent; then nothing more is written.
        ending: the status with which the stream ends once nothing is unsent.
    """

    __slots__ = ("ending", "follows", "unsent", "written")

    def __init__(self) -> None:
        self.written: bytes | None = None
        self.follows = False
        self.unsent = False
        self.ending: Status | None = None


class Health:
    """The health of the worker: NOT_SERVING at first; owned by the worker.

    ``check`` and ``list_services`` are ``Respond`` handlers; the object itself is the ``StreamHandler`` of Watch.
    A watch whose client does not read holds one unsent message, and gets the newest status after it. A watch takes about
    0.1 KiB here.
    """

    def __init__(self, recorder: Recorder, max_watches: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Start as NOT_SERVING.

        Args:
            recorder: of the worker.
            max_watches: not less than the limit of connections: clients that check health open one watch per connection, and
                do not use a connection whose watch was refused. Beyond it, the first watch of a connection is accepted, so
                that clients with many watches cannot prevent those of others.
            clock: monotonic time in seconds.
        """
        self._recorder = recorder
        self._clock = clock
        self._answers = _NOT_SERVING
        self._final = False
        self._closed = False
        self._watches: set[ServerStream] = set()
        self._max_watches = max_watches
        self._too_many = Status(
            Code.RESOURCE_EXHAUSTED,
            f"got more than {max_watches} open watches; expected at most one per connection: use Check, or retry later",
        )

    @property
    def serving(self) -> bool:
        """Whether the status is SERVING."""
        return self._answers is _SERVING

    # Called by the worker.

    def set_serving(self) -> None:
        """Set the status to SERVING and notify the watches; ignored after ``set_not_serving``."""
        if not self._final:
            self._set(_SERVING)

    def set_not_serving(self) -> None:
        """Set the status to NOT_SERVING permanently, and notify the watches."""
        self._final = True
        self._set(_NOT_SERVING)

    def close_watches(self) -> None:
        """End each watch with UNAVAILABLE once the newest status is sent; later watches end immediately."""
        self._closed = True
        for stream in [*self._watches]:
            if stream.open:
                self._end(stream, _CLOSED)

    # Called by the transport; see Respond.

    def check(self, body: bytes) -> bytes:
        """Return a serialized ``HealthCheckResponse``.

        Raises:
            InvalidRequest: the body is not a ``HealthCheckRequest``.
            NotServed: the service is unknown.
        """
        service: str = parse(health_pb2.HealthCheckRequest, body).service
        if service not in SERVICE_NAMES:
            expected = " or ".join(f"'{name}'" for name in SERVICE_NAMES)
            raise NotServed(f"service: got {quoted(service)}; expected {expected}")
        return self._answers.status

    def list_services(self, body: bytes) -> bytes:
        """Return a serialized ``HealthListResponse``.

        Raises:
            InvalidRequest: the body is not a ``HealthListRequest``.
        """
        parse(health_pb2.HealthListRequest, body)
        return self._answers.listing

    # Called by the transport for Watch; see StreamHandler.

    def on_accept(self, stream: ServerStream) -> None:
        """Record the watch and read its request; refuse it beyond the limit."""
        self._recorder.call_started(HEALTH_WATCH)
        stream.context = _Watch()
        if self._closed:
            self._end(stream, _CLOSED)
        elif len(self._watches) < self._max_watches or (stream.source.is_connection and not stream.source.num_watches):
            self._watches.add(stream)
            stream.source.num_watches += 1
            stream.read()
        else:
            self._end(stream, self._too_many)

    def on_message(self, stream: ServerStream, body: bytes) -> None:
        """Write the current status, or SERVICE_UNKNOWN; end a watch that sends a second message."""
        watch: _Watch = stream.context
        if watch.written is not None:
            self._end(stream, _SECOND_MESSAGE)
            return
        try:
            service = parse(health_pb2.HealthCheckRequest, body).service
        except RequestError as error:
            self._end(stream, Status.from_error(error))
            return
        watch.follows = service in SERVICE_NAMES
        self._write(stream, self._answers.status if watch.follows else _SERVICE_UNKNOWN)
        # To notice a second message.
        stream.read()

    def on_end(self, stream: ServerStream) -> None:
        """End a watch without a request; others stay open."""
        if stream.context.written is None:
            self._end(stream, NO_MESSAGE)

    def on_too_large(self, stream: ServerStream) -> None:
        """End a watch with a message over the limit."""
        self._end(stream, _TOO_LARGE)

    def on_written(self, stream: ServerStream) -> None:
        """Write the newest status if it has changed since the last message; otherwise end a watch that is ending."""
        stream.context.unsent = False
        self._write_if_changed(stream)
        self._finish_if_sent(stream)

    def on_close(self, stream: ServerStream, *, cancelled: bool) -> None:
        """Record a watch that is over; nothing is kept of it."""
        if stream in self._watches:
            self._watches.remove(stream)
            stream.source.num_watches -= 1
        watch: _Watch = stream.context
        code = unanswered_code(stream.deadline) if cancelled else (watch.ending or OK).code
        self._recorder.call_ended(HEALTH_WATCH, code, self._clock() - stream.accepted)

    def _set(self, answers: _Answers) -> None:
        self._answers = answers
        for stream in [*self._watches]:
            self._write_if_changed(stream)

    def _write_if_changed(self, stream: ServerStream) -> None:
        watch: _Watch = stream.context
        if stream.open and watch.follows and not watch.unsent and watch.written != self._answers.status:
            self._write(stream, self._answers.status)

    def _write(self, stream: ServerStream, message: bytes) -> None:
        watch: _Watch = stream.context
        watch.written = message
        watch.unsent = True
        stream.write(message)
        stream.flush()

    def _end(self, stream: ServerStream, status: Status) -> None:
        """End a watch once nothing is unsent; the first status that is set counts."""
        watch: _Watch = stream.context
        watch.ending = watch.ending or status
        self._finish_if_sent(stream)

    def _finish_if_sent(self, stream: ServerStream) -> None:
        watch: _Watch = stream.context
        if stream.open and watch.ending and not watch.unsent:
            stream.finish(watch.ending)

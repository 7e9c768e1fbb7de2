"""Handler of server reflection, ``grpc.reflection.v1.ServerReflection`` and its predecessor ``v1alpha``.

    ServerStream ──request──▶ ReflectionHandler ──▶ Schema.answer ──response──▶ ServerStream
         ▲                                                                          │
         └───────────────────── the next read ◀──────────── written ────────────────┘

The two versions have the same messages on the wire, so one handler class serves both. A stream has at most one unsent
answer: the next request is read once it is sent. Called on the worker's one thread.

Source: github.com/grpc/grpc, doc/server-reflection.md.
"""

import time
from collections.abc import Callable, Iterable
from typing import Any

from google.protobuf import text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from digitserve.errors import RequestError, TooLarge
from digitserve.open_inference import open_inference_pb2
from digitserve.protocol.codec import parse
from digitserve.protocol.names import Code, Method
from digitserve.protocol.status import OK, Status
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.handlers import ServerStream, unanswered_code
from digitserve.v1 import digits_pb2

MAX_STREAMS = 64
"""Most open streams of each version: twice as many as grpcio's thread pool allowed for all streams. A tool needs one for
a moment. Beyond the limit, the stream that has been without a request for the longest time is ended, so silent clients
cannot keep others out."""

MAX_REQUEST_BYTES = 4096
"""Longest request. It is part of its answer, so it bounds what a client that does not read makes the worker hold; the
longest name in a request is a symbol, and those of the served files have less than 100 bytes."""

_TOO_MANY = Status(
    Code.RESOURCE_EXHAUSTED,
    f"got more than {MAX_STREAMS} open reflection streams, and this one was idle longest; open it again",
)
_BUSY = Status(
    Code.RESOURCE_EXHAUSTED,
    f"got more than {MAX_STREAMS} open reflection streams, all of them with answers that are not yet read; retry later",
)
_TOO_LARGE = Status(
    Code.RESOURCE_EXHAUSTED,
    f"got a message over the size limit; expected a ServerReflectionRequest of at most {MAX_REQUEST_BYTES} bytes",
)
_DRAINING = Status(Code.UNAVAILABLE, "this server is shutting down; open the stream again on another connection")

SERVED_FILES = (digits_pb2.DESCRIPTOR, open_inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR)
"""Files of the served services, without that of reflection v1, which no package has."""


def _with_imports(file: FileDescriptor) -> list[FileDescriptor]:
    """Return a file, then all files that it imports, directly or not, each once."""
    found: dict[str, FileDescriptor] = {}

    def visit(visited: FileDescriptor) -> None:
        found[visited.name] = visited
        for imported in visited.dependencies:
            if imported.name not in found:
                visit(imported)

    visit(file)
    return list(found.values())


def _reflection_v1() -> FileDescriptorProto:
    """Return the file of reflection v1.

    grpcio-reflection has that of v1alpha only. They differ in the version, in the path, and in ``deprecated``.
    Source: github.com/grpc/grpc-proto, grpc/reflection/v1/reflection.proto.
    """
    alpha = FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    file = text_format.Parse(text_format.MessageToString(alpha).replace("v1alpha", "v1"), FileDescriptorProto())
    file.name = "grpc/reflection/v1/reflection.proto"
    file.options.ClearField("deprecated")
    return file


class Schema:
    """The files of the served services, and the answers to requests for them; immutable, and shared by all streams."""

    def __init__(self, served: Iterable[FileDescriptor] = SERVED_FILES) -> None:
        """Serialize the answers that do not depend on the request.

        Args:
            served: files of the served services; their imports and reflection v1 are added.
        """
        # Not the default pool, which also has files that are not served.
        self._pool = DescriptorPool()
        files: dict[str, FileDescriptor] = {}
        for file in served:
            self._add(file, files)
        v1 = self._pool.AddSerializedFile(_reflection_v1().SerializeToString())
        files[v1.name] = v1
        self._file_answers = {name: _file_answer(file) for name, file in files.items()}
        services = sorted(service.full_name for file in files.values() for service in file.services_by_name.values())
        self._list_answer = _services_answer(services)
        self._find: dict[str, Callable[[Any], bytes]] = {
            "file_by_filename": self._file_by_name,
            "file_containing_symbol": self._file_of_symbol,
            "file_containing_extension": self._file_of_extension,
            "all_extension_numbers_of_type": self._extension_numbers,
            "list_services": lambda _: self._list_answer,
        }

    def answer(self, body: bytes) -> bytes:
        """Return a serialized ``ServerReflectionResponse``; the answer to an unknown name has the code NOT_FOUND.

        Args:
            body: a serialized ``ServerReflectionRequest``.

        Raises:
            TooLarge: the body exceeds ``MAX_REQUEST_BYTES``.
            InvalidRequest: the body is not such a message.
        """
        if len(body) > MAX_REQUEST_BYTES:
            raise TooLarge(f"got a request of {len(body)} bytes; expected at most {MAX_REQUEST_BYTES}")
        request = parse(reflection_pb2.ServerReflectionRequest, body)
        head = _serialize(valid_host=request.host, original_request=request)
        # Serialized messages can be concatenated: a parser merges their fields.
        return head + self._answer_fields(request)

    def _answer_fields(self, request: reflection_pb2.ServerReflectionRequest) -> bytes:
        kind = request.WhichOneof("message_request")
        if kind is None:
            return _error_answer(
                Code.INVALID_ARGUMENT, f"got no message_request; expected one of {', '.join(self._find)}"
            )
        try:
            return self._find[kind](getattr(request, kind))
        except KeyError:
            got = text_format.MessageToString(request, as_one_line=True)
            return _error_answer(
                Code.NOT_FOUND, f"got {got}; expected a name from the files of the services that list_services returns"
            )

    def _add(self, file: FileDescriptor, files: dict[str, FileDescriptor]) -> None:
        """Add a file to the pool and to ``files``, after its imports, which the pool must have before."""
        for imported in file.dependencies:
            if imported.name not in files:
                self._add(imported, files)
        files[file.name] = self._pool.AddSerializedFile(file.serialized_pb)

    # Each finder returns the last fields of a response, and raises KeyError for an unknown name.

    def _file_by_name(self, name: str) -> bytes:
        return self._file_answers[name]

    def _file_of_symbol(self, name: str) -> bytes:
        try:
            file = self._pool.FindFileContainingSymbol(name)
        except KeyError:
            # The function above does not find methods.
            file = self._pool.FindMethodByName(name).containing_service.file
        return self._file_answers[file.name]

    def _file_of_extension(self, request: reflection_pb2.ExtensionRequest) -> bytes:
        extended = self._pool.FindMessageTypeByName(request.containing_type)
        return self._file_of_symbol(self._pool.FindExtensionByNumber(extended, request.extension_number).full_name)

    def _extension_numbers(self, name: str) -> bytes:
        extended = self._pool.FindMessageTypeByName(name)
        response = reflection_pb2.ExtensionNumberResponse(
            base_type_name=extended.full_name,
            extension_number=sorted(extension.number for extension in self._pool.FindAllExtensions(extended)),
        )
        return _serialize(all_extension_numbers_response=response)


def _file_answer(file: FileDescriptor) -> bytes:
    # The requested file is the first: clients rely on it.
    serialized = [one.serialized_pb for one in _with_imports(file)]
    return _serialize(file_descriptor_response=reflection_pb2.FileDescriptorResponse(file_descriptor_proto=serialized))


def _services_answer(names: Iterable[str]) -> bytes:
    services = [reflection_pb2.ServiceResponse(name=name) for name in names]
    return _serialize(list_services_response=reflection_pb2.ListServiceResponse(service=services))


def _error_answer(code: Code, message: str) -> bytes:
    return _serialize(error_response=reflection_pb2.ErrorResponse(error_code=code, error_message=message))


def _serialize(**fields: Any) -> bytes:
    """Serialize these fields of a ``ServerReflectionResponse``."""
    return bytes(reflection_pb2.ServerReflectionResponse(**fields).SerializeToString())


class ReflectionHandler:
    """Answers the streams of one version, each request in its turn; owned by the worker. See ``StreamHandler``.

    The context of a stream is the status with which it ends, once that is known.
    """

    def __init__(
        self, method: Method, schema: Schema, recorder: Recorder, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Answer from a schema, and record the streams under ``method``."""
        self._method = method
        self._schema = schema
        self._recorder = recorder
        self._clock = clock
        # Those that wait for a request, the one that has waited longest first; and those with an unsent answer.
        self._idle: dict[ServerStream, None] = {}
        self._answering: set[ServerStream] = set()
        self._draining = False

    # Called by the transport; see StreamHandler.

    def on_accept(self, stream: ServerStream) -> None:
        """Record the stream and read its first request, if there is room for one more stream."""
        self._recorder.call_started(self._method)
        if self._draining:
            self._finish(stream, _DRAINING)
        elif self._make_room():
            self._wait(stream)
        else:
            self._finish(stream, _BUSY)

    def on_message(self, stream: ServerStream, body: bytes) -> None:
        """Answer the request; end the stream if it is not a ``ServerReflectionRequest``."""
        try:
            answer = self._schema.answer(body)
        except RequestError as error:
            self._finish(stream, Status.from_error(error))
            return
        self._idle.pop(stream)
        self._answering.add(stream)
        stream.write(answer)
        stream.flush()

    def on_written(self, stream: ServerStream) -> None:
        """Read the next request."""
        self._answering.discard(stream)
        if self._draining:
            self._finish(stream, _DRAINING)
        else:
            self._wait(stream)

    def on_end(self, stream: ServerStream) -> None:
        """Finish the stream: its last answer was sent before this read."""
        self._finish(stream, OK)

    def on_too_large(self, stream: ServerStream) -> None:
        """End a stream with a message over the transport's limit."""
        self._finish(stream, _TOO_LARGE)

    def on_close(self, stream: ServerStream, *, cancelled: bool) -> None:
        """Record a stream that is over; nothing is kept of it."""
        self._idle.pop(stream, None)
        self._answering.discard(stream)
        code = unanswered_code(stream.deadline) if cancelled else (stream.context or OK).code
        self._recorder.call_ended(self._method, code, self._clock() - stream.accepted)

    # Called by the worker.

    def drain(self) -> None:
        """End each stream with UNAVAILABLE once its answer is sent; later streams end immediately."""
        self._draining = True
        while self._idle:
            self._finish(next(iter(self._idle)), _DRAINING)

    def _make_room(self) -> bool:
        """End the longest idle stream if the limit is reached; return whether one more stream may be open."""
        if len(self._idle) + len(self._answering) < MAX_STREAMS:
            return True
        if not self._idle:
            return False
        self._finish(next(iter(self._idle)), _TOO_MANY)
        return True

    def _wait(self, stream: ServerStream) -> None:
        self._idle[stream] = None
        stream.read()

    def _finish(self, stream: ServerStream, status: Status) -> None:
        """Finish a stream that has no unsent answer."""
        self._idle.pop(stream, None)
        stream.context = status
        stream.finish(status)

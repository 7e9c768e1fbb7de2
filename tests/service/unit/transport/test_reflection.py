"""The reflection handlers with fake streams, against grpcio's reflection servicer on the same files."""

import gc
import subprocess
import sys
import weakref
from collections.abc import Iterator

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection as reference
from grpc_reflection.v1alpha.reflection_pb2 import ExtensionRequest, ServerReflectionRequest, ServerReflectionResponse
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.errors import RequestError
from digitserve.protocol.names import (
    HEALTH_SERVICE,
    OPEN_INFERENCE_SERVICE,
    REFLECTION,
    REFLECTION_V1,
    SERVICE,
    Code,
    Method,
)  # fmt: skip
from digitserve.telemetry.block import METHOD_OF_PATH, Block
from digitserve.telemetry.recorder import Recorder
from digitserve.transport import reflection
from digitserve.transport.reflection import MAX_REQUEST_BYTES, ReflectionHandler, Schema
from support.server_stream import NO_DEADLINE, ScriptedStream, codes_of_ended, num_started

LABELS = tuple("0123456789")
SCHEMA = Schema()
SERVICES = sorted([SERVICE, OPEN_INFERENCE_SERVICE, HEALTH_SERVICE, REFLECTION.service, REFLECTION_V1.service])
FILES = (
    "digitserve/v1/digits.proto",
    "digitserve/open_inference/open_inference.proto",
    "google/rpc/status.proto",
    "google/protobuf/any.proto",
    "grpc_health/v1/health.proto",
    "grpc_reflection/v1alpha/reflection.proto",
    "grpc/reflection/v1/reflection.proto",
)


def ask(request: ServerReflectionRequest) -> ServerReflectionResponse:
    return ServerReflectionResponse.FromString(SCHEMA.answer(request.SerializeToString()))


def file(name: str) -> FileDescriptorProto:
    """Return a served file as a client gets it."""
    answer = ask(ServerReflectionRequest(file_by_filename=name))
    return FileDescriptorProto.FromString(answer.file_descriptor_response.file_descriptor_proto[0])


def reference_pool() -> DescriptorPool:
    pool = DescriptorPool()
    # The imports of digits.proto before it.
    for name in ("google/protobuf/any.proto", "google/rpc/status.proto", *FILES):
        pool.AddSerializedFile(file(name).SerializeToString())
    return pool


REFERENCE = reference.ReflectionServicer(SERVICES, pool=reference_pool())


def ask_reference(request: ServerReflectionRequest) -> ServerReflectionResponse:
    (answer,) = REFERENCE.ServerReflectionInfo(iter([request]), None)
    return answer


def message_symbols(message: DescriptorProto, scope: str) -> Iterator[str]:
    """Yield the names of a message, its fields, and what is nested in it."""
    name = f"{scope}.{message.name}"
    yield name
    yield from (f"{name}.{one.name}" for one in (*message.field, *message.oneof_decl))
    for enum in message.enum_type:
        yield from enum_symbols(enum, name)
    for nested in message.nested_type:
        yield from message_symbols(nested, name)


def enum_symbols(enum: EnumDescriptorProto, scope: str) -> Iterator[str]:
    """Yield the names of an enum and its values; these are in the scope of the enum."""
    yield f"{scope}.{enum.name}"
    yield from (f"{scope}.{value.name}" for value in enum.value)


def file_symbols(name: str) -> Iterator[str]:
    """Yield the names of all that a file declares, without methods."""
    described = file(name)
    for message in described.message_type:
        yield from message_symbols(message, described.package)
    for enum in described.enum_type:
        yield from enum_symbols(enum, described.package)
    yield from (f"{described.package}.{service.name}" for service in described.service)


SYMBOLS = [symbol for name in FILES for symbol in file_symbols(name)]
METHOD_NAMES = [
    (f"{described.package}.{service.name}", method.name)
    for described in map(file, FILES)
    for service in described.service
    for method in service.method
]


class Server:
    """A handler, and what it records."""

    def __init__(self, method: Method = REFLECTION_V1) -> None:
        self.method = method
        self.block = Block(LABELS)
        self.handler = ReflectionHandler(method, SCHEMA, Recorder(self.block, LABELS), clock=lambda: 1.0)

    def stream(self, deadline: float = NO_DEADLINE) -> ScriptedStream:
        return ScriptedStream(self.handler, deadline)

    def ended(self) -> list[Code]:
        return codes_of_ended(self.block, self.method)


LIST = ServerReflectionRequest(list_services="*").SerializeToString()


def test_the_served_services_are_listed() -> None:
    """Both versions of reflection, health and the two services that classify are listed, as grpcio lists them."""
    request = ServerReflectionRequest(list_services="*")
    assert [service.name for service in ask(request).list_services_response.service] == SERVICES
    assert ask(request) == ask_reference(request)


def test_every_method_that_is_recorded_is_described() -> None:
    """The methods of the served files are those with a series in the metrics."""
    assert {f"/{service}/{method}" for service, method in METHOD_NAMES} == set(METHOD_OF_PATH)


@pytest.mark.parametrize("name", FILES)
def test_files_are_those_of_grpcio(name: str) -> None:
    """A file is returned first and its imports after it, byte for byte as grpcio does."""
    request = ServerReflectionRequest(file_by_filename=name)
    assert SCHEMA.answer(request.SerializeToString()) == ask_reference(request).SerializeToString()


def test_each_symbol_has_the_file_that_grpcio_finds() -> None:
    """Messages, nested ones, fields, oneofs, enums, their values and services: the answer is that of grpcio."""
    assert {"digitserve.v1.ClassifyRequest.pixels", "digitserve.v1.VERDICT_ACCEPTED", SERVICE} <= set(SYMBOLS)
    assert "grpc.health.v1.HealthListResponse.StatusesEntry.key" in SYMBOLS
    for symbol in SYMBOLS:
        request = ServerReflectionRequest(file_containing_symbol=symbol)
        answer = ask(request)
        assert answer.WhichOneof("message_response") == "file_descriptor_response"
        assert answer == ask_reference(request), symbol


@pytest.mark.parametrize(("service", "method"), METHOD_NAMES)
def test_methods_have_the_file_of_their_service(service: str, method: str) -> None:
    """The protocol allows the name of a method; grpcio's servicer on protobuf's C implementation does not find it."""
    answer = ask(ServerReflectionRequest(file_containing_symbol=f"{service}.{method}"))
    expected = ask(ServerReflectionRequest(file_containing_symbol=service))
    assert answer.file_descriptor_response == expected.file_descriptor_response
    assert answer.original_request.file_containing_symbol == f"{service}.{method}"


def test_extensions_are_answered_as_grpcio_does() -> None:
    """No served message has an extension: the list of each is empty, and any number is NOT_FOUND."""
    for symbol in SYMBOLS:
        numbers = ServerReflectionRequest(all_extension_numbers_of_type=symbol)
        assert without_text(ask(numbers)) == without_text(ask_reference(numbers))
        extension = ServerReflectionRequest(file_containing_extension=ExtensionRequest(containing_type=symbol))
        assert without_text(ask(extension)) == without_text(ask_reference(extension))
        assert ask(extension).error_response.error_code == Code.NOT_FOUND


def without_text(answer: ServerReflectionResponse) -> ServerReflectionResponse:
    """Return an answer without what differs on purpose: the text of errors, and the host, which grpcio leaves out."""
    if answer.HasField("error_response"):
        answer.error_response.error_message = ""
    answer.valid_host = ""
    return answer


def test_extensions_of_a_served_file_are_found() -> None:
    """If a served file declares extensions, at its top or in a message, their numbers and files are those of grpcio."""
    pool = DescriptorPool()
    pool.AddSerializedFile(EXTENDED.SerializeToString())
    schema, expected = Schema([pool.FindFileByName(EXTENDED.name)]), reference.ReflectionServicer([], pool=pool)
    requests = [ServerReflectionRequest(all_extension_numbers_of_type="e.Base")]
    for number in (100, 101, 102):
        extension = ExtensionRequest(containing_type="e.Base", extension_number=number)
        requests.append(ServerReflectionRequest(file_containing_extension=extension))
    answers = [ServerReflectionResponse.FromString(schema.answer(one.SerializeToString())) for one in requests]

    assert answers[0].all_extension_numbers_response.extension_number == [100, 101]
    assert [one.error_response.error_code for one in answers] == [0, 0, 0, Code.NOT_FOUND]
    assert [*map(without_text, answers)] == [*map(without_text, expected.ServerReflectionInfo(iter(requests), None))]


EXTENDED = text_format.Parse(
    """
    name: "e.proto" package: "e"
    message_type { name: "Base" extension_range { start: 100 end: 200 } }
    message_type {
      name: "Scope"
      extension { name: "nested" number: 101 label: LABEL_OPTIONAL type: TYPE_INT32 extendee: ".e.Base" }
    }
    extension { name: "top" number: 100 label: LABEL_OPTIONAL type: TYPE_INT32 extendee: ".e.Base" }
    """,
    FileDescriptorProto(),
)

NAMES = st.text(max_size=30) | st.sampled_from(
    [*SYMBOLS, *FILES, "", ".", "digitserve", "digitserve.v1", f".{SERVICE}", f"{SERVICE}\0x", "a" * 500]
)
REQUESTS = st.builds(
    lambda host, message: ServerReflectionRequest(host=host, **message),
    st.sampled_from(["", "localhost", "\u00e9"]),
    st.one_of(
        st.fixed_dictionaries({kind: NAMES})
        for kind in ("file_by_filename", "file_containing_symbol", "all_extension_numbers_of_type", "list_services")
    )
    | st.builds(
        lambda name, number: {
            "file_containing_extension": ExtensionRequest(containing_type=name, extension_number=number)
        },
        NAMES,
        st.integers(-(1 << 31), (1 << 31) - 1),
    )
    | st.just({}),
)


@given(REQUESTS)
@settings(max_examples=3000)
def test_any_request_is_answered_as_grpcio_does(request: ServerReflectionRequest) -> None:
    """The answer to any request differs from grpcio's in the host and in the text of errors only."""
    assert ask(request).valid_host == request.host
    assert ask(request).original_request == request
    assert without_text(ask(request)) == without_text(ask_reference(request))


def test_files_that_are_not_served_are_not_found() -> None:
    """Only the served files and their imports are described, whatever other modules have loaded."""
    from google.rpc import error_details_pb2  # noqa: PLC0415 # loaded into the default pool on purpose

    name = error_details_pb2.DESCRIPTOR.name
    assert ask(ServerReflectionRequest(file_by_filename=name)).error_response.error_code == Code.NOT_FOUND
    retry = ask(ServerReflectionRequest(file_containing_symbol="google.rpc.RetryInfo"))
    assert retry.error_response.error_code == Code.NOT_FOUND
    assert 'got file_containing_symbol: "google.rpc.RetryInfo"' in retry.error_response.error_message


def test_v1_has_the_messages_of_v1alpha() -> None:
    """The two versions have the same messages on the wire: one implementation serves both."""
    v1, alpha = file("grpc/reflection/v1/reflection.proto"), file("grpc_reflection/v1alpha/reflection.proto")
    assert (v1.package, alpha.package) == ("grpc.reflection.v1", "grpc.reflection.v1alpha")
    assert [service.name for service in v1.service] == ["ServerReflection"]
    assert (v1.options.deprecated, v1.options.go_package) == (
        False, "google.golang.org/grpc/reflection/grpc_reflection_v1",
    )  # fmt: skip
    assert "v1alpha" not in str(v1)
    for one, other in zip(v1.message_type, alpha.message_type, strict=True):
        assert str(one) == str(other).replace("v1alpha", "v1")


@given(st.binary(max_size=30))
@settings(max_examples=2000)
def test_any_bytes_are_answered_or_rejected(body: bytes) -> None:
    """Whatever bytes arrive, there is an answer with the request in it, or a ``RequestError``."""
    try:
        answer = SCHEMA.answer(body)
    except RequestError:
        return
    assert ServerReflectionResponse.FromString(answer).original_request == ServerReflectionRequest.FromString(body)


@given(st.lists(st.sampled_from([*SYMBOLS, "nonesuch"]), max_size=6), st.booleans())
def test_requests_are_answered_in_order_and_one_at_a_time(symbols: list[str], ends: bool) -> None:
    """The next request is read only after the answer is sent; the stream ends with OK after the client's half-close."""
    server = Server()
    stream = server.stream()
    for symbol in symbols:
        stream.receive(ServerReflectionRequest(file_containing_symbol=symbol).SerializeToString())
        assert (stream.num_unsent, stream.reading) == (1, False)
        stream.confirm()
    asked = [
        ServerReflectionResponse.FromString(body).original_request.file_containing_symbol for body in stream.written
    ]
    assert asked == symbols
    if ends:
        stream.half_close()
    stream.close()
    assert server.ended() == [Code.OK if ends else Code.CANCELLED]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"\xff\xff", Code.INVALID_ARGUMENT),
        (ServerReflectionRequest(host="x" * MAX_REQUEST_BYTES).SerializeToString(), Code.RESOURCE_EXHAUSTED),
    ],
)
def test_a_request_that_has_no_answer_ends_the_stream(body: bytes, code: Code) -> None:
    """Bytes that are no request, and one over the limit, which an answer would repeat, end the stream."""
    server = Server()
    stream = server.stream()
    stream.receive(LIST)
    stream.confirm()
    stream.receive(body)
    assert (stream.code, len(stream.written)) == (code, 1)
    stream.close()
    assert server.ended() == [code]


def test_a_message_over_the_limit_of_the_transport_ends_the_stream() -> None:
    """A message that the transport discarded ends the stream with RESOURCE_EXHAUSTED."""
    stream = Server().stream()
    stream.receive_too_large()
    assert stream.code is Code.RESOURCE_EXHAUSTED


def test_silent_streams_do_not_keep_others_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit, the stream that has been without a request for the longest time is ended."""
    monkeypatch.setattr(reflection, "MAX_STREAMS", 3)
    server = Server()
    streams = [server.stream() for _ in range(2)]
    streams[0].receive(LIST)
    streams[0].confirm()
    streams.append(server.stream())
    assert all(stream.open for stream in streams)
    late = server.stream()
    assert [stream.code for stream in (*streams, late)] == [None, Code.RESOURCE_EXHAUSTED, None, None]
    late.receive(LIST)
    assert late.num_unsent == 1
    streams[1].close()
    assert server.ended() == [Code.RESOURCE_EXHAUSTED]


def test_a_stream_is_refused_while_all_have_unsent_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream with an unsent answer cannot be ended, so the new one is; there is room again when one is closed."""
    monkeypatch.setattr(reflection, "MAX_STREAMS", 2)
    server = Server()
    streams = [server.stream() for _ in range(2)]
    for stream in streams:
        stream.receive(LIST)
    refused = server.stream()
    assert (refused.code, refused.reads) == (Code.RESOURCE_EXHAUSTED, 0)
    refused.close()
    streams.pop().close()
    assert server.stream().open
    assert all(stream.open for stream in streams)


def test_draining_ends_streams_after_their_answers() -> None:
    """A drain ends waiting streams with UNAVAILABLE, others after the answer is sent, and new ones immediately."""
    server = Server()
    waiting, answering = server.stream(), server.stream()
    answering.receive(LIST)
    server.handler.drain()
    assert (waiting.code, answering.code) == (Code.UNAVAILABLE, None)
    answering.confirm()
    assert answering.code is Code.UNAVAILABLE
    late = server.stream()
    assert (late.code, late.reads) == (Code.UNAVAILABLE, 0)


@pytest.mark.parametrize("method", [REFLECTION, REFLECTION_V1])
@pytest.mark.parametrize(("deadline", "code"), [(NO_DEADLINE, Code.CANCELLED), (1.0, Code.DEADLINE_EXCEEDED)])
def test_a_stream_is_recorded_once_under_its_version(method: Method, deadline: float, code: Code) -> None:
    """A stream that its client ends counts as CANCELLED, or as DEADLINE_EXCEEDED, of the method that was called."""
    server = Server(method)
    stream = server.stream(deadline)
    assert (num_started(server.block, method), server.ended()) == (1, [])
    stream.receive(LIST)
    stream.close()
    assert server.ended() == [code]
    assert server.block.cells["grpc_server_started"].sum() == server.block.cells["grpc_server_handled"].sum() == 1


def test_a_closed_stream_is_freed_without_the_garbage_collector() -> None:
    """Nothing refers to a stream that is closed, with or without an unsent answer."""
    server = Server()
    gc.disable()
    try:
        for asks in (False, True):
            stream = server.stream()
            if asks:
                stream.receive(LIST)
            freed = weakref.ref(stream)
            stream.close()
            del stream
            assert freed() is None
    finally:
        gc.enable()


def test_the_handlers_do_not_import_grpc() -> None:
    """Importing the message modules of grpcio's packages does not load grpcio, which costs 16 MiB."""
    code = "import digitserve.transport.health, digitserve.transport.reflection, sys; sys.exit('grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""The cases of gRPC's interoperability tests that any server can be tested with, by their names there.

Source: doc/interop-test-descriptions.md of github.com/grpc/grpc. Sizes of messages are as there. The server of the tests sends
messages back instead of those that the descriptions define. Not tested: credentials, which the service does not have, and the
load balancing and caching of proxies. docs/explanation/transport-tests.md lists the cases.
"""

import threading
from collections.abc import Iterator

import grpc
import pytest

from support.echo_server import ECHO, ECHO_STREAM, EchoServer, run_echo_server
from support.serving import PATIENCE_S, wait_until

REQUEST_SIZES, RESPONSE_SIZES = (27_182, 8, 1_828, 45_904), (31_415, 9, 2_653, 58_979)
LARGE_REQUEST, LARGE_RESPONSE = 271_828, 314_159
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@pytest.fixture(scope="module")
def server() -> Iterator[EchoServer]:
    with run_echo_server() as running:
        yield running


@pytest.fixture
def channel(server: EchoServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, options=OWN_CONNECTION) as connected:
        yield connected


def unary(channel: grpc.Channel, body: bytes, **options: object) -> bytes:
    answer: bytes = channel.unary_unary(ECHO.path)(body, **{"timeout": PATIENCE_S, **options})
    return answer


def stream(channel: grpc.Channel, bodies: Iterator[bytes], **options: object) -> grpc.Call:
    return channel.stream_stream(ECHO_STREAM.path)(bodies, **{"timeout": PATIENCE_S, **options})


def failure(channel: grpc.Channel, path: str, body: bytes = b"") -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary(path)(body, timeout=PATIENCE_S)
    return failed.value.code(), failed.value.details()


def test_empty_unary(channel: grpc.Channel) -> None:
    """empty_unary: an empty message is answered with an empty message."""
    assert unary(channel, b"") == b""


def test_large_unary(channel: grpc.Channel) -> None:
    """large_unary: a large message is received, and a large one is sent."""
    assert len(unary(channel, bytes(LARGE_REQUEST))) == LARGE_REQUEST
    assert len(unary(channel, b"size %d" % LARGE_RESPONSE)) == LARGE_RESPONSE


def test_client_compressed_unary(channel: grpc.Channel) -> None:
    """client_compressed_unary: messages with and without compression are answered alike.

    The probe of the description, a compressed flag without an encoding, is tested with bytes: grpcio cannot send it.
    """
    for compression in (grpc.Compression.Gzip, grpc.Compression.NoCompression):
        assert unary(channel, bytes(LARGE_REQUEST), compression=compression) == bytes(LARGE_REQUEST)


def test_client_streaming_and_its_compression(channel: grpc.Channel) -> None:
    """client_streaming, client_compressed_streaming: messages of all sizes arrive, compressed or not."""
    bodies = [bytes(size) for size in REQUEST_SIZES]
    for compression in (grpc.Compression.NoCompression, grpc.Compression.Gzip):
        assert list(stream(channel, iter(bodies), compression=compression)) == bodies


def test_server_streaming(channel: grpc.Channel) -> None:
    """server_streaming: messages of all sizes are sent in order, and then the status."""
    bodies = [bytes(size) for size in RESPONSE_SIZES]
    call = stream(channel, iter(bodies))
    assert list(call) == bodies
    assert call.code() is grpc.StatusCode.OK


def test_ping_pong(channel: grpc.Channel) -> None:
    """ping_pong: each message is answered before the next one is sent."""
    answered = threading.Semaphore(1)

    def bodies() -> Iterator[bytes]:
        for size in REQUEST_SIZES:
            answered.acquire(timeout=PATIENCE_S)
            yield bytes(size)

    sizes = []
    for answer in stream(channel, bodies()):
        sizes.append(len(answer))
        answered.release()
    assert tuple(sizes) == REQUEST_SIZES


def test_empty_stream(channel: grpc.Channel) -> None:
    """empty_stream: a stream without messages ends with status OK and no messages."""
    call = stream(channel, iter(()))
    assert list(call) == []
    assert call.code() is grpc.StatusCode.OK


def test_custom_metadata(channel: grpc.Channel) -> None:
    """custom_metadata: text and binary metadata is accepted, in unary calls and streams."""
    metadata = (
        ("x-grpc-test-echo-initial", "test_initial_metadata_value"),
        ("x-grpc-test-echo-trailing-bin", b"\xab\xab\xab"),
    )
    assert unary(channel, b"a", metadata=metadata) == b"a"
    assert list(stream(channel, iter([b"a"]), metadata=metadata)) == [b"a"]


def test_status_code_and_message(channel: grpc.Channel) -> None:
    """status_code_and_message: code and text of the server arrive."""
    assert failure(channel, ECHO.path, b"unknown test status message") == (
        grpc.StatusCode.UNKNOWN, "test status message",
    )  # fmt: skip


def test_special_status_message(channel: grpc.Channel) -> None:
    """special_status_message: white space and characters of all planes of Unicode arrive unchanged."""
    text = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
    assert failure(channel, ECHO.path, b"unknown " + text.encode()) == (grpc.StatusCode.UNKNOWN, text)


@pytest.mark.parametrize("path", ["/test.Echo/UnimplementedCall", "/test.UnimplementedService/UnimplementedCall"])
def test_unimplemented_method_and_service(channel: grpc.Channel, path: str) -> None:
    """unimplemented_method, unimplemented_service: the status is UNIMPLEMENTED."""
    assert failure(channel, path)[0] is grpc.StatusCode.UNIMPLEMENTED


def test_cancel_after_begin(channel: grpc.Channel, server: EchoServer) -> None:
    """cancel_after_begin: a stream that is cancelled before its first message is closed."""
    cancelled = server.streams.ends["cancelled"]
    never = threading.Event()

    def bodies() -> Iterator[bytes]:
        never.wait(PATIENCE_S)
        yield b""

    call = stream(channel, bodies())
    call.initial_metadata()
    call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    wait_until(lambda: server.streams.ends["cancelled"] == cancelled + 1, "the stream is closed")
    never.set()


def test_cancel_after_first_response(channel: grpc.Channel, server: EchoServer) -> None:
    """cancel_after_first_response: a stream that is cancelled after a message is closed."""
    cancelled = server.streams.ends["cancelled"]
    never = threading.Event()

    def bodies() -> Iterator[bytes]:
        yield bytes(REQUEST_SIZES[0])
        never.wait(PATIENCE_S)

    call = stream(channel, bodies())
    assert next(call) == bytes(REQUEST_SIZES[0])
    call.cancel()
    assert call.code() is grpc.StatusCode.CANCELLED
    wait_until(lambda: server.streams.ends["cancelled"] == cancelled + 1, "the stream is closed")
    never.set()


def test_timeout_on_sleeping_server(channel: grpc.Channel, server: EchoServer) -> None:
    """timeout_on_sleeping_server: a call and a stream that are not answered end with DEADLINE_EXCEEDED."""
    closed, cancelled = server.calls.ends["closed"], server.streams.ends["cancelled"]
    with pytest.raises(grpc.RpcError) as expired:
        unary(channel, b"wait", timeout=0.05)
    assert expired.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    never = threading.Event()

    def bodies() -> Iterator[bytes]:
        never.wait(PATIENCE_S)
        yield b""

    call = stream(channel, bodies(), timeout=0.05)
    assert call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    never.set()
    wait_until(lambda: server.calls.ends["closed"] == closed + 1, "the call is closed")
    wait_until(lambda: server.streams.ends["cancelled"] == cancelled + 1, "the stream is closed")


def test_concurrent_large_unary(channel: grpc.Channel) -> None:
    """concurrent_large_unary: many large calls at once on one connection are all answered."""
    call = channel.unary_unary(ECHO.path)
    futures = [call.future(bytes(LARGE_REQUEST), timeout=PATIENCE_S) for _ in range(50)]
    assert [len(future.result()) for future in futures] == [LARGE_REQUEST] * 50


def test_channel_soak(server: EchoServer) -> None:
    """channel_soak: calls on one connection after another are answered. ``make soak`` is for hours."""
    for number in range(20):
        with grpc.insecure_channel(server.address, options=OWN_CONNECTION) as channel:
            assert unary(channel, b"%d" % number) == b"%d" % number

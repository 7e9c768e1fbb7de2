"""Clients of grpcio, blocking and asyncio, with both transports."""

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2

from support.echo_server import ECHO, ECHO_STREAM, EchoServer, run_echo_server
from support.serving import PATIENCE_S, wait_until

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
NO_LIMITS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
RETRIES = (
    "grpc.service_config",
    json.dumps(
        {
            "methodConfig": [
                {
                    "name": [{}],
                    "retryPolicy": {
                        "maxAttempts": 3,
                        "initialBackoff": "0.01s",
                        "maxBackoff": "0.01s",
                        "backoffMultiplier": 1,
                        "retryableStatusCodes": ["UNAVAILABLE"],
                    },
                }
            ]
        }
    ),
)
ROUND_ROBIN = ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]}))


@pytest.fixture
def server(transport: str) -> Iterator[EchoServer]:
    with run_echo_server(transport=transport) as running:
        yield running


@pytest.fixture
def channel(server: EchoServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address, options=(*OWN_CONNECTION, *NO_LIMITS)) as connected:
        yield connected


def echo(channel: grpc.Channel, body: bytes, **options: Any) -> bytes:
    return channel.unary_unary(ECHO.path)(body, **{"timeout": PATIENCE_S, **options})


@pytest.mark.parametrize("num_bytes", [0, 1, 16_384, 65_535, 65_536, 1 << 20, 16 << 20])
def test_messages_of_any_size_go_both_ways(channel: grpc.Channel, num_bytes: int) -> None:
    """A message of up to 16 MiB is answered with itself, whatever frames and windows it needs."""
    body = bytes(range(256)) * (num_bytes // 256) + bytes(num_bytes % 256)

    assert echo(channel, body) == body


def test_a_large_answer_to_a_small_request(channel: grpc.Channel) -> None:
    """An answer far above the client's windows arrives, while small calls of the same connection are answered."""
    large = channel.unary_unary(ECHO.path).future(b"size 50000000", timeout=PATIENCE_S)
    assert [echo(channel, b"%d" % number) for number in range(20)] == [b"%d" % number for number in range(20)]

    assert len(large.result()) == 50_000_000


def test_a_message_over_the_limit_is_rejected(channel: grpc.Channel) -> None:
    """It gets the status of the handler, and the connection remains usable."""
    with pytest.raises(grpc.RpcError) as rejected:
        echo(channel, bytes(20 << 20))

    assert rejected.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert echo(channel, b"next") == b"next"


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.NoCompression])
def test_compressed_requests(server: EchoServer, compression: grpc.Compression) -> None:
    """Messages in gzip format are decompressed, in calls and in streams."""
    with grpc.insecure_channel(server.address, options=OWN_CONNECTION, compression=compression) as channel:
        assert echo(channel, bytes(100_000)) == bytes(100_000)
        answers = channel.stream_stream(ECHO_STREAM.path)(iter([bytes(50_000)] * 3), timeout=PATIENCE_S)
        assert list(answers) == [bytes(50_000)] * 3


def test_metadata_of_any_kind_is_accepted(channel: grpc.Channel) -> None:
    """Binary values, empty values and long values do not disturb a call, also when they repeat or change."""
    for number in range(50):
        metadata = (
            ("trace-bin", bytes(range(256))), ("empty", ""), ("long", "x" * 4000), ("number", str(number)),
            ("number", "again"), ("authorization", "Bearer " + "t" * 500),
        )  # fmt: skip
        assert echo(channel, b"body", metadata=metadata) == b"body"


def test_a_failure_carries_code_text_and_details(channel: grpc.Channel) -> None:
    """A status has its code, a message of any characters, and rich details."""
    with pytest.raises(grpc.RpcError) as failed:
        echo(channel, b"fail")

    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert failed.value.details() == "not found: ü %"
    trailers = dict(failed.value.trailing_metadata())
    details = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    assert (details.code, details.message, len(details.details)) == (5, "not found: ü %", 1)
    assert trailers["grpc-retry-pushback-ms"] == "1500"


def test_unknown_methods_are_unimplemented(channel: grpc.Channel) -> None:
    """A method that does not exist is UNIMPLEMENTED for all kinds of calls."""
    for call in (
        lambda: channel.unary_unary("/test.Echo/None")(b"x", timeout=PATIENCE_S),
        lambda: list(channel.stream_stream("/test.Echo/None")(iter([b"x"] * 10), timeout=PATIENCE_S)),
    ):
        with pytest.raises(grpc.RpcError) as failed:
            call()
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_an_expired_call_closes(channel: grpc.Channel, server: EchoServer) -> None:
    """The client gets DEADLINE_EXCEEDED, and the handler learns that the call is over."""
    with pytest.raises(grpc.RpcError) as expired:
        echo(channel, b"wait", timeout=0.2)

    assert expired.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: server.calls.ends["closed"] == 1, "the end of the call is reported to the handler")
    assert not server.calls.waiting[0].open


def test_a_cancelled_call_closes(channel: grpc.Channel, server: EchoServer) -> None:
    """The handler of a call that the client cancels learns it; other calls of the connection continue."""
    future = channel.unary_unary(ECHO.path).future(b"wait")
    wait_until(lambda: server.calls.waiting, "the message has arrived")
    future.cancel()
    wait_until(lambda: server.calls.ends["closed"] == 1, "the end of the call is reported to the handler")

    assert echo(channel, b"next") == b"next"


def test_calls_without_a_message_or_with_two(channel: grpc.Channel, server: EchoServer, transport: str) -> None:
    """A unary call needs exactly one message; otherwise it gets an error. With grpcio, a second message is not read."""
    wrong: list[list[bytes]] = [[], [b"one", b"two"]] if transport == "native" else [[]]
    for messages in wrong:
        with pytest.raises(grpc.RpcError) as failed:
            channel.stream_unary(ECHO.path)(iter(messages), timeout=PATIENCE_S)
        assert failed.value.code() in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.INTERNAL}
    assert server.calls.ends["failed"] == len(wrong)


@pytest.mark.parametrize("options", [(), (RETRIES,)], ids=["no-retries", "retries"])
def test_a_thousand_calls_at_once_get_their_own_answers(server: EchoServer, options: tuple[Any, ...]) -> None:
    """One connection has more calls in flight than the limit of streams allows; the client queues them."""
    with grpc.insecure_channel(server.address, options=(*OWN_CONNECTION, *options)) as channel:
        call = channel.unary_unary(ECHO.path)
        futures = [call.future(b"%d" % number, timeout=PATIENCE_S) for number in range(1500)]
        assert [future.result() for future in futures] == [b"%d" % number for number in range(1500)]


def test_a_retry_policy_repeats_unavailable_calls(server: EchoServer) -> None:
    """A status of UNAVAILABLE before any answer is repeated after the pushback that it carries."""
    with grpc.insecure_channel(server.address, options=(*OWN_CONNECTION, RETRIES)) as channel:
        assert [echo(channel, b"flaky") for _ in range(20)] == [b"flaky"] * 20

    assert server.calls.ends["failed"] == 20


def test_keepalive_pings_are_answered(server: EchoServer) -> None:
    """A client that sends a PING each 10 ms, with and without calls, keeps its connection."""
    options = (
        *OWN_CONNECTION, ("grpc.keepalive_time_ms", 10), ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1), ("grpc.http2.max_pings_without_data", 0),
    )  # fmt: skip
    with grpc.insecure_channel(server.address, options=options) as channel:
        future = channel.unary_unary(ECHO.path).future(b"wait", timeout=0.5)
        assert future.exception().code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert [echo(channel, b"%d" % number) for number in range(100)] == [b"%d" % number for number in range(100)]


def test_wait_for_ready_waits_for_the_server() -> None:
    """A call that starts before the server listens is answered once it does."""
    with socket.socket() as reserved:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        reserved.bind(("127.0.0.1", 0))
        port = reserved.getsockname()[1]
        options = (*OWN_CONNECTION, ("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50))
        with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
            failed = threading.Event()
            channel.subscribe(
                lambda state: failed.set() if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE else None,
                try_to_connect=True,
            )
            future = channel.unary_unary(ECHO.path).future(b"early", timeout=PATIENCE_S, wait_for_ready=True)
            assert failed.wait(PATIENCE_S)
            with run_echo_server(grpc_port=port):
                assert future.result() == b"early"


def test_round_robin_uses_both_servers_and_survives_the_drain_of_one() -> None:
    """Calls alternate between two ports. When one server drains, no call is lost: all go to the other."""
    with run_echo_server() as first, run_echo_server() as second:
        target = f"ipv4:{first.address},{second.address}"
        with grpc.insecure_channel(target, options=(*OWN_CONNECTION, ROUND_ROBIN)) as channel:
            call = channel.unary_unary(ECHO.path)

            def both_used() -> bool:
                call(b"hello", timeout=PATIENCE_S)
                return first.calls.ends["answered"] > 0 and second.calls.ends["answered"] > 0

            wait_until(both_used, "both servers got calls")
            futures = [call.future(b"%d" % number, timeout=PATIENCE_S) for number in range(200)]
            first.stop.set()
            while not first.stopped.is_set():
                futures += [call.future(b"x", timeout=PATIENCE_S) for _ in range(20)]
                futures[-1].result()
            results = [future.result() for future in futures]

    assert results[:200] == [b"%d" % number for number in range(200)]


def test_streams_are_answered_in_order(channel: grpc.Channel) -> None:
    """Each message of a stream gets its answer in order, beside calls and other streams of the connection."""
    bodies = [b"%d" % number * (number % 100) for number in range(500)]
    answers = [channel.stream_stream(ECHO_STREAM.path)(iter(bodies), timeout=PATIENCE_S) for _ in range(4)]

    assert echo(channel, b"call") == b"call"
    assert [list(one) for one in answers] == [bodies] * 4
    assert list(channel.stream_stream(ECHO_STREAM.path)(iter(()), timeout=PATIENCE_S)) == []


def test_large_messages_in_a_stream(channel: grpc.Channel) -> None:
    """Messages of several megabytes follow each other in a stream."""
    bodies = [bytes([number]) * (4 << 20) for number in range(4)]

    assert list(channel.stream_stream(ECHO_STREAM.path)(iter(bodies), timeout=PATIENCE_S)) == bodies


def test_a_cancelled_or_expired_stream_is_closed(channel: grpc.Channel, server: EchoServer) -> None:
    """The handler learns that a stream was cancelled, or that its deadline passed."""
    gate = threading.Event()

    def silent() -> Iterator[bytes]:
        yield b"first"
        gate.wait(PATIENCE_S)

    answers = channel.stream_stream(ECHO_STREAM.path)(silent())
    assert next(answers) == b"first"
    answers.cancel()
    wait_until(lambda: server.streams.ends["cancelled"] == 1, "the cancelled stream is closed")
    expiring = channel.stream_stream(ECHO_STREAM.path)(silent(), timeout=0.3)
    with pytest.raises(grpc.RpcError) as expired:
        list(expiring)
    gate.set()

    assert expired.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: server.streams.ends["cancelled"] == 2, "the expired stream is closed")


def test_open_calls_are_answered_while_the_server_drains() -> None:
    """A drain announces the end of the connection and waits for its calls, including those that arrive in the meantime. Only
    with the native transport: gRPC core refuses calls that arrive in the meantime.
    """
    with run_echo_server(grace_s=PATIENCE_S) as server, ExitStack() as stack:
        channels = [
            stack.enter_context(grpc.insecure_channel(server.address, options=OWN_CONNECTION)) for _ in range(4)
        ]
        calls = [channel.unary_unary(ECHO.path) for channel in channels]
        assert [call(b"warm", timeout=PATIENCE_S) for call in calls] == [b"warm"] * 4
        futures = [call.future(b"%d" % number, timeout=PATIENCE_S) for number in range(200) for call in calls]
        server.stop.set()
        assert [future.result() for future in futures] == [b"%d" % number for number in range(200) for _ in calls]
        assert server.stopped.wait(PATIENCE_S)


@pytest.mark.parametrize("transport", ["native"])
def test_sent_output_is_not_counted_as_unsent(channel: grpc.Channel, server: EchoServer, transport: str) -> None:
    """Once all answers are sent, nothing counts as unsent: otherwise a connection would no longer be read in the end."""
    for number in range(100):
        echo(channel, bytes(number * 100))
    with pytest.raises(grpc.RpcError):
        echo(channel, b"fail")
    wait_until(
        lambda: [peer.connection.num_unsent_bytes for peer in server.server._loop._peers.by_descriptor.values()] == [0],
        "everything is counted as sent",
    )


def test_asyncio_clients(server: EchoServer) -> None:
    """``grpc.aio``: parallel calls, streams, a deadline and a cancellation."""

    async def run() -> None:
        async with grpc.aio.insecure_channel(server.address, options=[*OWN_CONNECTION, *NO_LIMITS]) as channel:
            call, stream = channel.unary_unary(ECHO.path), channel.stream_stream(ECHO_STREAM.path)
            bodies = [b"%d" % number for number in range(1000)]
            assert await asyncio.gather(*(call(body, timeout=PATIENCE_S) for body in bodies)) == bodies
            assert len(await call(bytes(16 << 20), timeout=PATIENCE_S)) == 16 << 20
            assert [body async for body in stream(iter(bodies), timeout=PATIENCE_S)] == bodies
            with pytest.raises(grpc.aio.AioRpcError) as expired:
                await call(b"wait", timeout=0.2)
            assert expired.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            waiting = call(b"wait")
            while len(server.calls.waiting) < 2:  # noqa: ASYNC110 - the server is a thread
                await asyncio.sleep(0.001)
            waiting.cancel()
            assert await call(b"next", timeout=PATIENCE_S) == b"next"

    asyncio.run(run())
    wait_until(lambda: server.calls.ends["closed"] == 2, "both calls are closed")

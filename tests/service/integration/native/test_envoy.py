"""Envoy with the shipped configuration as the client of the native transport: calls, streams, gRPC-Web, retries, health checks,
and servers that drain.
"""

import http.client
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_request, write_echo_bundle
from support.certificates import make_certificate
from support.echo_server import ECHO, ECHO_STREAM, EchoServer, run_echo_server
from support.envoy import Envoy, run_envoy
from support.serving import PATIENCE_S, run_worker, wait_until

OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)


@contextmanager
def channel_to(envoy: Envoy) -> Iterator[grpc.Channel]:
    """Connect to the proxy, without retries of the client."""
    with grpc.insecure_channel(envoy.address, options=OPTIONS) as channel:
        yield channel


def echo(channel: grpc.Channel, body: bytes, timeout_s: float = PATIENCE_S) -> bytes:
    answer: bytes = channel.unary_unary(ECHO.path)(body, timeout=timeout_s)
    return answer


@pytest.fixture(scope="module")
def server() -> Iterator[EchoServer]:
    with run_echo_server() as running:
        yield running


@pytest.fixture(scope="module")
def envoy(server: EchoServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Envoy]:
    with run_envoy(tmp_path_factory.mktemp("envoy"), server.address) as running:
        yield running


@pytest.fixture
def channel(envoy: Envoy) -> Iterator[grpc.Channel]:
    with channel_to(envoy) as connected:
        yield connected


@pytest.mark.parametrize("num_bytes", [0, 1, 65_536, 4 << 20])
def test_messages_of_any_size_go_both_ways(channel: grpc.Channel, num_bytes: int) -> None:
    """Messages of any size are echoed, regardless of the frames and windows that they need."""
    body = bytes(num_bytes)
    assert echo(channel, body) == body


def test_calls_share_connections_to_the_server(channel: grpc.Channel, envoy: Envoy) -> None:
    """Each of a thousand concurrent calls gets its own answer, without a protocol error; at least eight share a connection."""
    bodies = [b"%d" % number for number in range(1000)]
    call = channel.unary_unary(ECHO.path)
    futures = [call.future(body, timeout=PATIENCE_S) for body in bodies]
    assert [future.result() for future in futures] == bodies
    upstream = envoy.stats("cluster.digitserve.")
    assert 8 * (upstream["upstream_cx_total"] - 1) <= 1000
    assert not upstream["upstream_cx_protocol_error"]


def test_streams_are_answered_in_order(channel: grpc.Channel) -> None:
    """A stream of small and large messages comes back in order."""
    bodies = [bytes([number]) * (1 if number % 3 else 100_000) for number in range(30)]
    assert list(channel.stream_stream(ECHO_STREAM.path)(iter(bodies), timeout=PATIENCE_S)) == bodies


def test_failures_carry_code_and_text(channel: grpc.Channel) -> None:
    """Code and message of a failure arrive, also of an unknown method."""
    with pytest.raises(grpc.RpcError) as failed:
        echo(channel, b"fail")
    assert (failed.value.code(), failed.value.details()) == (grpc.StatusCode.NOT_FOUND, "not found: ü %")
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary("/test.Echo/Unknown")(b"", timeout=PATIENCE_S)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_cancelled_and_expired_calls_are_closed(channel: grpc.Channel, server: EchoServer) -> None:
    """When a client cancels, or its deadline passes, the call also ends at the server."""
    closed = server.calls.ends["closed"]
    call = channel.unary_unary(ECHO.path)
    cancelled = call.future(b"wait", timeout=PATIENCE_S)
    wait_until(lambda: len(server.calls.waiting) == 1, "the call has arrived")
    cancelled.cancel()
    with pytest.raises(grpc.RpcError) as expired:
        call(b"wait", timeout=0.1)
    assert expired.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    wait_until(lambda: server.calls.ends["closed"] == closed + 2, "both calls are closed")


@pytest.mark.parametrize("num_bytes", [5, 1 << 20])
def test_envoy_repeats_unavailable_calls(channel: grpc.Channel, envoy: Envoy, num_bytes: int) -> None:
    """A call that ends UNAVAILABLE is sent again, also with a request as large as those of the Python client."""
    body = b"flaky".ljust(num_bytes)
    before = envoy.stats("cluster.digitserve.")["upstream_rq_retry_success"]
    assert all(echo(channel, body) == body for _ in range(10))
    assert envoy.stats("cluster.digitserve.")["upstream_rq_retry_success"] == before + 10


def test_a_full_queue_is_reported_to_the_client(channel: grpc.Channel, server: EchoServer) -> None:
    """RESOURCE_EXHAUSTED arrives with its retry delay, and Envoy does not send the call again."""
    failed = server.calls.ends["failed"]
    with pytest.raises(grpc.RpcError) as full:
        echo(channel, b"full")
    assert full.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert ("grpc-retry-pushback-ms", "250") in full.value.trailing_metadata()
    assert "grpc-status-details-bin" in dict(full.value.trailing_metadata())
    assert server.calls.ends["failed"] == failed + 1


def test_grpc_web(envoy: Envoy) -> None:
    """A browser's call of gRPC-Web over HTTP/1.1 gets the message and the status, by Envoy's filter."""
    body = b"\0" + struct.pack(">I", 5) + b"hello"
    connection = http.client.HTTPConnection(envoy.address, timeout=PATIENCE_S)
    connection.request("POST", ECHO.path, body, {"content-type": "application/grpc-web+proto"})
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    assert response.status == 200
    assert answer.startswith(body)
    assert answer[len(body) :].startswith(b"\x80") and b"grpc-status:0" in answer


def test_calls_over_tls(tmp_path: Path) -> None:
    """Calls, streams and health checks reach a worker over TLS, whose certificate and name Envoy verifies."""
    write_echo_bundle(tmp_path)
    certificate = make_certificate(tmp_path / "tls")
    trusted = {"trusted_ca": {"filename": str(certificate.certificate)}}
    tls = {
        "sni": "localhost",
        "auto_sni_san_validation": True,
        "common_tls_context": {"alpn_protocols": ["h2"], "validation_context": trusted},
    }
    with (
        run_worker(tmp_path, transport="native", **certificate.settings()) as worker,
        run_envoy(tmp_path, worker.address, tls=tls) as envoy,
        channel_to(envoy) as channel,
    ):
        classify = channel.unary_unary("/digitserve.v1.DigitService/Classify", None, pb.ClassifyResponse.FromString)
        futures = [
            classify.future(echo_request(number).SerializeToString(), timeout=PATIENCE_S) for number in range(200)
        ]
        assert [int(future.result().predictions[0].ood_score) for future in futures] == list(range(200))
        many = pb.ClassifyStreamRequest(request=echo_request(*range(500)))
        stream = channel.stream_stream(
            "/digitserve.v1.DigitService/ClassifyStream", None, pb.ClassifyStreamResponse.FromString
        )
        (answer,) = stream(iter([many.SerializeToString()]), timeout=PATIENCE_S)
        assert [int(each.ood_score) for each in answer.response.predictions] == list(range(500))
        assert envoy.stats("cluster.digitserve.ssl.")["connection_error"] == 0


def test_health_checks_follow_the_worker(tmp_path: Path) -> None:
    """Envoy's health checks succeed; when the worker drains, calls go to the other one and none fails."""
    write_echo_bundle(tmp_path)
    with (
        run_worker(tmp_path, transport="native") as stays,
        run_worker(tmp_path, transport="native", lame_duck_s=1.0) as drains,
        run_envoy(tmp_path, stays.address, drains.address) as envoy,
        channel_to(envoy) as channel,
    ):
        outcomes: Counter[str] = Counter()
        stop = threading.Event()

        def call() -> None:
            classify = channel.unary_unary("/digitserve.v1.DigitService/Classify")
            while not stop.is_set():
                error = classify.future(echo_request(1).SerializeToString(), timeout=PATIENCE_S).exception()
                outcomes["OK" if error is None else f"{error.code()} {error.details()}"] += 1

        callers = [threading.Thread(target=call) for _ in range(4)]
        for caller in callers:
            caller.start()
        wait_until(lambda: drains.num_images() > 20 and stays.num_images() > 20, "both workers are called")
        drains.worker.drain()
        wait_until(
            lambda: envoy.healthy() == {stays.address: True, drains.address: False},
            "the worker that drains is unhealthy",
        )
        answered = stays.num_images()
        wait_until(lambda: stays.num_images() > answered + 20, "the other worker answers")
        stop.set()
        for caller in callers:
            caller.join(PATIENCE_S)
        checks = envoy.stats("cluster.digitserve.health_check.")
    assert set(outcomes) == {"OK"}, outcomes
    assert checks["success"] and checks["failure"]

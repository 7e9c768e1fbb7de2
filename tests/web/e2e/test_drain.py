"""The HTTP API while the service shuts down."""

import contextlib
import http.client
import json
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, Service, run_service, wait_until

PATH = "/v1/classify?width=28&height=28"
BODY = echo_image(3).tobytes()
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(BODY)}\r\nExpect: 100-continue\r\n\r\n".encode()
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

DRAINING = "this server is shutting down; retry, and another server will answer"


class Answer(NamedTuple):
    """An HTTP response."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes


def connect(service: Service) -> http.client.HTTPConnection:
    address = urlsplit(service.http_url)
    return http.client.HTTPConnection(str(address.hostname), address.port, timeout=PATIENCE_S)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body: bytes | None = None) -> Answer:
    """Send a request on an open connection, or on a new one."""
    connection.request(method, path, body)
    response = connection.getresponse()
    return Answer(response.status, response.headers, response.read())


def ask_once(service: Service, method: str, path: str, body: bytes | None = None) -> Answer:
    with contextlib.closing(connect(service)) as connection:
        return ask(connection, method, path, body)


@contextlib.contextmanager
def upload(service: Service) -> Iterator[socket.socket]:
    """Send the head of a request and a part of its body. The service has received the head: it has asked for the body."""
    address = urlsplit(service.http_url)
    with socket.create_connection((address.hostname, address.port), PATIENCE_S) as connection:
        connection.sendall(HEAD)
        assert connection.recv(len(CONTINUE), socket.MSG_WAITALL) == CONTINUE
        connection.sendall(BODY[:100])
        yield connection


@pytest.mark.parametrize(
    ("transport", "workers"),
    [("native", "2"), ("grpcio", "1"), ("native", "0")],
    ids=["native", "grpcio", "one-process"],
)
def test_a_request_that_was_accepted_is_received_and_answered(tmp_path: Path, transport: str, workers: str) -> None:
    """A request whose body is received slowly over SIGTERM gets its answer. Meanwhile the service is not ready, new requests to the
    API get 503 and ``Retry-After``, operators get metrics, and workers accept calls. Each answer has ``Connection: close``. On a connection that was open before
    SIGTERM, each request is answered until an answer has that. The service ends with 0.
    """
    write_echo_bundle(tmp_path / "models")
    arguments = ("--workers", workers, "--transport", transport, "--grace-s", "60")
    with (
        run_service(tmp_path / "models", tmp_path / "log", *arguments) as service,
        contextlib.closing(connect(service)) as kept,
        upload(service) as slow,
    ):
        before = ask(kept, "POST", PATH, BODY)
        assert (before.status, before.headers["connection"]) == (200, None)
        service.process.send_signal(signal.SIGTERM)
        # One answer may be sent before the service handles the signal, and one before the lame duck time of 0 s ends.
        last = next(
            answer
            for answer in iter(lambda: ask(kept, "POST", PATH, BODY), None)
            if answer.headers["connection"] == "close"
        )
        assert last.status in {200, 503}
        wait_until(lambda: ask_once(service, "POST", PATH, BODY).status == 503, "new requests are refused")

        refused = ask_once(service, "POST", PATH, BODY)
        assert (refused.status, json.loads(refused.body)["message"]) == (503, DRAINING)
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["connection"] == "close"
        for path, status in [("/livez", 200), ("/readyz", 503), ("/metrics", 200), ("/v1/model", 503), ("/other", 404)]:
            answer = ask_once(service, "GET", path)
            assert (answer.status, answer.headers["connection"]) == (status, "close"), path
        with grpc.insecure_channel(service.grpc_address) as channel:
            health = health_pb2_grpc.HealthStub(channel)

            def is_serving() -> bool:
                answer = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
                return answer.status == health_pb2.HealthCheckResponse.SERVING

            # The supervisor refuses requests before its message reaches the worker.
            wait_until(lambda: not is_serving(), "the worker says that it drains")
            # Each answer is sent in an iteration of the worker's event loop: it does not drain before the request is answered.
            for _ in range(100):
                assert not is_serving()

        for part in (BODY[100:400], BODY[400:]):
            slow.sendall(part)
        response = http.client.HTTPResponse(slow)
        response.begin()
        assert (response.status, response.headers["connection"]) == (200, "close")
        (prediction,) = json.loads(response.read())["predictions"]
        assert prediction["ood_score"] == 3
        assert slow.recv(1) == b"", "the connection is closed after the answer"
        assert service.process.wait(PATIENCE_S) == 0


def test_a_body_that_never_ends_does_not_prevent_the_end(tmp_path: Path) -> None:
    """The service waits for a body for a part of the grace period only. It logs that a request was not answered, and ends with 1."""
    write_echo_bundle(tmp_path / "models")
    with (
        run_service(tmp_path / "models", tmp_path / "log", "--workers", "1", "--grace-s", "1") as service,
        upload(service),
    ):
        assert service.stop() == 1
        assert "requests were not answered within the grace period" in service.log.read_text()

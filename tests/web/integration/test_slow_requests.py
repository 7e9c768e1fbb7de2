"""Time limits of requests to the HTTP API, which differ from those of probes: bodies may be large."""

import http.client
import socket
import time
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from digitserve.settings import Settings
from digitserve.supervision import http as service_http
from digitserve.supervision.http import HttpServer, make_app
from digitserve.supervision.http_access import HttpAccess
from digitserve.web.api import Api
from support.http_port import NotReady, run_http_port
from support.serving import PATIENCE_S, is_closed

HEAD = b"POST /v1/classify?width=28&height=28 HTTP/1.1\r\nHost: x\r\nContent-Length: 784\r\n\r\n"


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """Serve on a thread."""
    access = HttpAccess(Settings())
    api = Api(Settings(), [], lambda _request: None)
    server = HttpServer(make_app(NotReady(), CollectorRegistry(), access, api.routes), access, 8)
    with run_http_port(server) as bound:
        yield bound


def test_a_body_may_take_longer_than_a_probe(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that arrives slowly is read to its end, also if the connection has had a request before."""
    monkeypatch.setattr(service_http, "RESPONSE_S", 0.2)
    with socket.create_connection(address, PATIENCE_S) as connection:
        for _ in range(2):
            connection.sendall(HEAD + bytes(400))
            time.sleep(0.4)  # longer than a probe may take
            connection.sendall(bytes(384))
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert response.status == 503
            response.read()


def test_a_request_that_never_ends_is_closed(address: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection of a request has a limit of time too."""
    monkeypatch.setattr(service_http, "REQUEST_S", 0.05)
    with socket.create_connection(address, PATIENCE_S) as connection:
        connection.sendall(HEAD + bytes(400))
        assert is_closed(connection)

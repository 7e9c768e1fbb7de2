"""Time limits of requests to the HTTP API, which differ from those of probes: bodies may be large."""

import asyncio
import http.client
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from digitserve.settings import Settings
from digitserve.supervision import http as service_http
from digitserve.supervision.http import HttpServer, make_app
from digitserve.supervision.http_access import HttpAccess
from digitserve.supervision.ports import listen
from digitserve.web.api import Api
from support.serving import LOCAL, PATIENCE_S, is_closed, wait_until

HEAD = b"POST /v1/classify?width=28&height=28 HTTP/1.1\r\nHost: x\r\nContent-Length: 784\r\n\r\n"


class Status:
    """A service without workers."""

    ready = False

    def status_line(self) -> str:
        return "digitserve not ready"


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """Serve on a thread."""
    access = HttpAccess(Settings())
    api = Api(Settings(), [], lambda _request: None)
    server = HttpServer(make_app(Status(), CollectorRegistry(), access, api.routes), access, 8)
    listener = listen(LOCAL, 0, "--http-port")
    bound: tuple[str, int] = listener.getsockname()
    thread = threading.Thread(target=lambda: asyncio.run(server.run_on(listener)))
    thread.start()
    wait_until(lambda: server.started, "the server has started")
    try:
        yield bound
    finally:
        server.should_exit = True
        thread.join(PATIENCE_S)


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

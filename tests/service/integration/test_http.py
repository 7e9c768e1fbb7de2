"""The HTTP port: probes are answered, whatever other clients send, keep open or do not read."""

import contextlib
import http.client
import logging
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter

from digitserve.settings import Settings
from digitserve.supervision import http as service_http
from digitserve.supervision.http import HttpServer, make_app
from digitserve.supervision.http_access import HttpAccess
from support.http_port import Ready, run_http_port
from support.serving import PATIENCE_S, is_closed

MAX_CONNECTIONS = 8


REGISTRY = CollectorRegistry()
Counter("images", "Images.", ("number",), registry=REGISTRY)

Connect = Callable[[], socket.socket]


@pytest.fixture(scope="module")
def address() -> Iterator[tuple[str, int]]:
    """Serve on a thread, with few connections."""
    access = HttpAccess(Settings())
    server = HttpServer(make_app(Ready(), REGISTRY, access), access, MAX_CONNECTIONS)
    with run_http_port(server) as bound:
        yield bound


@pytest.fixture
def connect(address: tuple[str, int]) -> Iterator[Connect]:
    """Return a function that opens a connection; all are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(address, PATIENCE_S))


def probe(address: tuple[str, int], path: str = "/readyz", method: str = "GET", **headers: str) -> tuple[int, str]:
    """Send a request on a connection of its own; return status and body."""
    connection = http.client.HTTPConnection(*address, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers)
        response = connection.getresponse()
        return response.status, response.read().decode()


START = b"GET /readyz HTTP/1.1\r\nHost: x\r\n"


def chunked(chunk: bytes, number: int) -> bytes:
    """Return a request whose body is a number of equal chunks."""
    framed = b"%x\r\n%s\r\n" % (len(chunk), chunk)
    head = b"GET /readyz HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + number * framed + b"0\r\n\r\n"


@pytest.mark.parametrize(
    "sent", [b"", START, START + b"\r\n"], ids=["silent", "half a request", "idle after a request"]
)
def test_connections_that_do_nothing_keep_no_probe_out(address: tuple[str, int], connect: Connect, sent: bytes) -> None:
    """With many times the allowed connections open, a probe is answered; those that have waited longest are closed."""
    slow = [connect() for _ in range(5 * MAX_CONNECTIONS)]
    for connection in slow:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
    for _ in range(3):
        assert probe(address) == (200, "digitserve ready\n")
    for connection in slow:
        connection.setblocking(False)
    assert sum(map(is_closed, slow)) >= 4 * MAX_CONNECTIONS


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        START,
        START + b"Content-Length: 9999999\r\n\r\n" + bytes(100),
        (START + b"\r\n") * 2 + START,
    ],
    ids=["silent", "half a request", "half a body", "half of a third request"],
)
def test_a_request_that_is_not_finished_ends(connect: Connect, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """A client that does not finish its request in time is disconnected, also within a body or after other requests."""
    monkeypatch.setattr(service_http, "RESPONSE_S", 0.01)
    connection = connect()
    with contextlib.suppress(ConnectionError):
        connection.sendall(sent)
    assert is_closed(connection)


def test_a_client_that_does_not_read_is_disconnected(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends requests and does not read the answers is disconnected, although answers are still to be sent."""
    many = Counter("many", "Many series.", ("number",), registry=REGISTRY)
    for number in range(5_000):
        many.labels(str(number))
    monkeypatch.setattr(service_http, "RESPONSE_S", 0.1)
    connection = connect()
    try:
        with pytest.raises(ConnectionError):  # noqa: PT012 - until the server closes the connection
            while True:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    finally:
        REGISTRY.unregister(many)


@pytest.mark.parametrize(
    ("chunk", "number", "is_read"),
    [
        (b"1", 128, True),
        (b"1", 129, False),
        (bytes(60), 200, False),
        (bytes(64), 5_000, True),
        (bytes(5_000), 600, True),
    ],
)
def test_bodies_in_very_many_small_chunks_are_refused(
    connect: Connect, chunk: bytes, number: int, is_read: bool
) -> None:
    """The parser is slow with small chunks: after too many the connection is closed. Any body may have many large ones."""
    connection = connect()
    with contextlib.suppress(ConnectionError):
        connection.sendall(chunked(chunk, number) + START + b"Connection: close\r\n\r\n")
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1000):
            received += part
    assert (received.count(b"HTTP/1.1 200 ") == 2) == is_read


def test_headers_that_arrive_at_once_have_a_maximal_size_too(connect: Connect) -> None:
    """A request that is complete when it is read is refused as well."""
    connection = connect()
    with contextlib.suppress(ConnectionError):
        connection.sendall(START + b"X: %s\r\n\r\n" % (40_000 * b"x"))
        assert connection.recv(100).startswith(b"HTTP/1.1 400 ")
    assert is_closed(connection)


def test_headers_have_a_maximal_size(connect: Connect) -> None:
    """A request with too many header bytes is refused and its connection closed."""
    connection = connect()
    with contextlib.suppress(ConnectionError):
        connection.sendall(START + b"".join(b"X-%d: %s\r\n" % (n, bytes(1000)) for n in range(100)))
    received = connection.recv(100)
    assert received == b"" or received.startswith(b"HTTP/1.1 400 ")
    assert is_closed(connection)


@pytest.mark.parametrize("sent", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"\0" * 100])
def test_other_protocols_are_refused(
    address: tuple[str, int], connect: Connect, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections with HTTP/2, TLS or other bytes get an error and are closed; the log has a line and no traceback."""
    connection = connect()
    connection.sendall(sent)
    assert connection.recv(10) == b"HTTP/1.1 4"
    assert is_closed(connection)
    assert probe(address)[0] == 200
    assert [record.exc_info for record in caplog.records if record.levelno >= logging.WARNING] == [None]


@pytest.mark.parametrize("rest", [b"zz\r\n", b"5\r\nabcde\r\nzz\r\n", b"0\r\n\r\n" + b"\0" * 100])
def test_a_body_that_is_malformed_after_the_answer(
    address: tuple[str, int], connect: Connect, rest: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A client that gets its answer before it has sent its body, and then sends invalid bytes, is disconnected; the log has no
    traceback.
    """
    connection = connect()
    connection.sendall(START + b"Transfer-Encoding: chunked\r\n\r\n")
    assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
    connection.sendall(rest)
    assert is_closed(connection)
    assert probe(address)[0] == 200
    assert [record.exc_info for record in caplog.records if record.exc_info] == []


def test_upgrades_are_not_followed(address: tuple[str, int]) -> None:
    """A request to switch to WebSocket or HTTP/2 is answered as HTTP/1.1."""
    for protocol in ("websocket", "h2c"):
        assert probe(address, Connection="Upgrade", Upgrade=protocol)[0] == 200


@given(
    accept=st.one_of(
        st.text(st.characters(min_codepoint=32, max_codepoint=126)),
        st.from_regex(
            r"(application/openmetrics-text|text/plain)(; ?(version|escaping)=[ -~]{0,8}){0,3}", fullmatch=True
        ),
    )
)
@example(accept="text/plain; version=x")
@example(accept="application/openmetrics-text; version=1.x.0")
def test_any_accept_header_gets_metrics(address: tuple[str, int], accept: str) -> None:
    """/metrics answers 200 with its metrics, whatever a client accepts."""
    status, body = probe(address, "/metrics", Accept=accept)
    assert status == 200
    assert "Images." in body


@pytest.mark.parametrize("path", ["/", "/livez", "/readyz", "/metrics"])
def test_methods(address: tuple[str, int], path: str) -> None:
    """GET and HEAD are answered; other methods get 405."""
    assert probe(address, path)[0] == 200
    assert probe(address, path, "HEAD") == (200, "")
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "BREW"):
        assert probe(address, path, method)[0] == 405


@pytest.mark.parametrize(
    "path", ["/nonesuch", "/metrics/x", "/..%2f..%2fetc/passwd", "/%00", "/readyz;x", "/readyz/", "//"]
)
def test_unknown_paths(address: tuple[str, int], path: str) -> None:
    """They get 404."""
    assert probe(address, path)[0] == 404

"""The HTTP port with TLS: who may read the metrics, and clients that do not finish their handshakes."""

import asyncio
import contextlib
import http.client
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
from prometheus_client import CollectorRegistry

from digitserve.settings import Settings
from digitserve.supervision import http as service_http
from digitserve.supervision.http import HttpServer, make_app
from digitserve.supervision.http_access import HttpAccess
from digitserve.supervision.http_tls import PIECE_BYTES, TlsTransport
from support.certificates import Certificate, TlsClient, make_certificate, server_context, sign_client
from support.http_port import Ready, run_http_port
from support.serving import PATIENCE_S, is_closed, wait_until

MAX_CONNECTIONS = 8
TOKEN = "secret-of-16-characters"  # noqa: S105 - of the test


class Server(NamedTuple):
    """A running server, and certificates of clients: one that it accepts and one of another authority."""

    http: HttpServer
    address: tuple[str, int]
    certificate: Certificate
    client: Certificate
    stranger: Certificate

    def get(
        self, path: str, client: Certificate | None = None, token: str = "", version: ssl.TLSVersion | None = None
    ) -> http.client.HTTPResponse:
        """Send a request on a connection of its own."""
        context = ssl.create_default_context(cafile=self.certificate.certificate)
        context.maximum_version = version or context.maximum_version
        if client is not None:
            context.load_cert_chain(*client)
        connection = http.client.HTTPSConnection(*self.address, timeout=PATIENCE_S, context=context)
        with contextlib.closing(connection):
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
            response = connection.getresponse()
            response.read()
            return response


Connect = Callable[[], socket.socket]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serve on a thread, with few connections, tokens, and an authority of clients."""
    folder = tmp_path_factory.mktemp("http")
    made, authority, other = (make_certificate(folder / name) for name in ("server", "authority", "other"))
    (folder / "tokens").write_text(TOKEN)
    settings = Settings(
        tls_certificate=made.certificate,
        tls_key=made.key,
        tls_client_ca=authority.certificate,
        token_file=folder / "tokens",
    )
    access = HttpAccess(settings)
    server = HttpServer(make_app(Ready(), CollectorRegistry(), access), access, MAX_CONNECTIONS)
    with run_http_port(server) as address:
        yield Server(
            server, address, made, sign_client(folder / "client", authority), sign_client(folder / "stranger", other)
        )


@pytest.fixture
def connect(server: Server) -> Iterator[Connect]:
    """Return a function that opens a connection; all are closed at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(socket.create_connection(server.address, PATIENCE_S))


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_metrics_need_a_token_or_a_certificate(server: Server, version: ssl.TLSVersion) -> None:
    """State needs no credentials; /metrics needs a valid token or a certificate of the authority, else it answers 401."""
    for path in ("/", "/livez", "/readyz"):
        assert server.get(path, version=version).status == 200
    refused = server.get("/metrics", version=version)
    assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
    assert server.get("/metrics", token="wrong", version=version).status == 401  # noqa: S106 - of the test
    assert server.get("/metrics", token=TOKEN, version=version).status == 200
    assert server.get("/metrics", server.client, version=version).status == 200
    assert server.get("/metrics", version=version).status == 401


def test_a_certificate_of_another_authority_is_refused(server: Server) -> None:
    """A client with such a certificate gets no answer at all."""
    with pytest.raises((ssl.SSLError, ConnectionError)):
        server.get("/livez", server.stranger)


def hello() -> bytes:
    return TlsClient(("http/1.1",)).take()


@pytest.mark.parametrize("part", [0, 20, 1000], ids=["silent", "half a hello", "half a handshake"])
def test_handshakes_that_do_not_end_keep_no_probe_out(server: Server, connect: Connect, part: int) -> None:
    """With many times the allowed connections in their handshake, a probe is answered; the oldest ones are closed."""
    closed_before = server.http.connections.num_closed["too_many"]
    slow = [connect() for _ in range(5 * MAX_CONNECTIONS)]
    for connection in slow:
        with contextlib.suppress(ConnectionError):
            connection.sendall(hello()[:part])
    for _ in range(3):
        assert server.get("/readyz").status == 200
    for connection in slow:
        connection.setblocking(False)
    wait_until(lambda: sum(map(is_closed, slow)) >= 4 * MAX_CONNECTIONS, "the oldest connections are closed")
    assert server.http.connections.num_closed["too_many"] >= closed_before + 4 * MAX_CONNECTIONS


@pytest.mark.parametrize("part", [0, 20, 1000], ids=["silent", "half a hello", "half a handshake"])
def test_a_handshake_that_does_not_end(
    server: Server, connect: Connect, monkeypatch: pytest.MonkeyPatch, part: int
) -> None:
    """A client that does not finish its handshake in time is disconnected, and counted."""
    closed_before = server.http.connections.num_closed["timeout"]
    monkeypatch.setattr(service_http, "RESPONSE_S", 0.05)
    connection = connect()
    with contextlib.suppress(ConnectionError):
        connection.sendall(hello()[:part])
    assert is_closed(connection)
    assert server.http.connections.num_closed["timeout"] > closed_before


@pytest.mark.parametrize(
    "sent", [b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 100, b"\x16\x03\x01\x00\x05hello"]
)
def test_other_protocols_are_refused(
    server: Server, connect: Connect, sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Connections in clear text, or with other bytes, are closed; nothing is logged."""
    connection = connect()
    connection.sendall(sent)
    assert is_closed(connection)
    assert server.get("/readyz").status == 200
    assert not caplog.records


def test_a_request_with_the_end_of_the_handshake(server: Server, connect: Connect) -> None:
    """A client may send its request together with its last message of the handshake, and further ones on the connection."""
    client, connection = TlsClient(("http/1.1",)), connect()
    connection.sendall(client.take())
    client.give(connection.recv(1 << 16))
    for _ in range(3):
        connection.sendall(client.take(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"))
        received = b""
        while b"digitserve ready" not in received:
            part = connection.recv(1 << 16)
            assert part
            received += client.give(part)
        assert received.startswith(b"HTTP/1.1 200 ")


class Content:
    """The connection above TLS, which lists what arrives."""

    def __init__(self, arrived: list[tuple[object, int]], done: asyncio.Event) -> None:
        self._arrived, self._done = arrived, done

    def data_received(self, data: bytes) -> None:
        self._arrived.append((self, len(data)))
        if data.endswith(b"end"):
            self._done.set()

    def wait(self, transport: asyncio.Transport) -> None: ...
    def stop_waiting(self) -> None: ...
    def connection_made(self, transport: asyncio.Transport) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


def test_much_input_delays_other_connections_by_a_piece_only(server: Server) -> None:
    """An iteration of the event loop decrypts at most a piece of each connection, however much has arrived."""
    context = server_context(Settings(**server.certificate.settings()))
    assert context is not None

    async def serve() -> list[tuple[object, int]]:
        loop = asyncio.get_running_loop()
        arrived: list[tuple[object, int]] = []
        done, buffer = [asyncio.Event(), asyncio.Event()], bytearray(PIECE_BYTES)
        with contextlib.ExitStack() as stack:
            clients = []
            for event in done:
                theirs, ours = socket.socketpair()
                stack.enter_context(theirs)
                theirs.setblocking(False)
                tls = TlsTransport(Content(arrived, event), context, buffer)
                await loop.create_connection(lambda tls=tls: tls, sock=ours)  # type: ignore[misc]
                stack.callback(tls.abort)
                client = TlsClient()
                await loop.sock_sendall(theirs, client.take())
                client.give(await loop.sock_recv(theirs, 1 << 16))
                clients.append((theirs, client))
            for theirs, client in clients:
                # Small records, because they take most time.
                theirs.send(client.take() + b"".join(client.take(b"small") for _ in range(1000)) + client.take(b"end"))
            for event in done:
                await event.wait()
        await asyncio.sleep(0)  # closes the sockets
        return arrived

    arrived = asyncio.run(serve())
    longest = before = num_bytes = 0
    for connection, size in arrived:
        num_bytes = num_bytes + size if connection is before else size
        longest, before = max(longest, num_bytes), connection
    assert longest < PIECE_BYTES

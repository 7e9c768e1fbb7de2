"""The load generator with TLS, a client certificate and a token, and its metrics page."""

import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path

import pytest

from digitserve import scrape
from digitserve.bench import metrics_page
from digitserve.bench.counts import Counts, Recorder
from digitserve.bench.driver import Context
from digitserve.bench.load import HandshakeFailed, Load, Unreachable, resolve
from digitserve.bench.plan import Plan, Size
from digitserve.bench.traffic import EncodedRequest
from digitserve.bench.unary import UnaryDriver
from digitserve.credentials import Credentials
from digitserve.scrape import NotAvailable
from support.bundles import write_echo_bundle
from support.certificates import Certificate, make_certificate, sign_client
from support.serving import PATIENCE_S, RunningWorker, run_worker

TOKEN = "a-token-0123456789"  # noqa: S105 - of this test


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench")
    write_echo_bundle(path)
    (path / "token").write_text(TOKEN)
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Certificate:
    return make_certificate(folder / "server")


@pytest.fixture(scope="module")
def credentials(folder: Path, server: Certificate) -> Credentials:
    """Return what a client needs."""
    client = sign_client(folder / "client", make_certificate(folder / "authority"))
    return Credentials(server.certificate, client.certificate, client.key, token_file=folder / "token")


@pytest.fixture(scope="module")
def worker(folder: Path, server: Certificate, credentials: Credentials) -> Iterator[RunningWorker]:
    """Run a worker that requires a client certificate and a token."""
    authority = folder / "authority" / "server.pem"
    with run_worker(folder, **server.settings(), tls_client_ca=authority, token_file=folder / "token") as running:
        yield running


def plan_for(worker: RunningWorker, credentials: Credentials) -> Plan:
    return Plan(
        worker.address, tls=True, credentials=credentials, connections=3, in_flight=4, duration_s=0.2, warm_up_s=0.0,
        timeout_s=PATIENCE_S,
    )  # fmt: skip


def run_load(plan: Plan) -> Counts:
    """Run a plan on this thread and return its counts."""
    counts = Counts()
    load = Load(plan, 0, counts.add)
    try:
        load.connect()
        load.run(load._clock())
    finally:
        load.close()
    return counts


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_every_request_is_answered(worker: RunningWorker, credentials: Credentials, method: str) -> None:
    """Requests of many records each, and their answers, arrive; the checked answers are right."""
    counts = run_load(
        replace(plan_for(worker, credentials), method=method, images=40, sizes=(Size(28, 28), Size(90, 90)))
    )

    assert set(counts.codes) == {"OK"}
    assert counts.codes.total() == counts.sent > 10
    assert (counts.failed_connections, counts.wrong) == (0, 0)
    assert counts.checked > 0


def test_without_a_token_requests_are_counted_as_unauthenticated(
    worker: RunningWorker, credentials: Credentials
) -> None:
    """Each answer has the service's status."""
    counts = run_load(plan_for(worker, replace(credentials, token_file=None)))

    assert set(counts.codes) == {"Unauthenticated"}


def test_a_failed_handshake_ends_the_load_at_once(
    folder: Path, worker: RunningWorker, credentials: Credentials, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection is tried again until the timeout; the message says what to pass."""
    other = make_certificate(folder / "other")
    for changed, advice in (
        (replace(credentials, ca=other.certificate), "not signed by a trusted authority; pass ca"),
        (replace(credentials, certificate=None, key=None), "requires a certificate of the client"),
        (
            replace(credentials, certificate=other.certificate, key=other.key),
            "does not accept the certificate of the client",
        ),
    ):
        with pytest.raises(HandshakeFailed, match=advice):
            run_load(plan_for(worker, changed))
    # The name of another host, which leads to this worker.
    monkeypatch.setattr("digitserve.bench.load.resolve", lambda _address: resolve(worker.address))
    with pytest.raises(HandshakeFailed, match="connect to a host name or IP address that it contains"):
        run_load(replace(plan_for(worker, credentials), address="digits.example:50051"))


def test_clear_text_to_a_port_with_tls_has_a_hint(worker: RunningWorker) -> None:
    """Clear text to a port with TLS is an error whose message says how to use TLS."""
    with pytest.raises(Unreachable, match="if it uses TLS, use https:// in the address, or pass ca"):
        run_load(Plan(worker.address, connections=1, duration_s=0.1, timeout_s=0.3))


def test_a_pending_handshake_takes_no_cpu_time(credentials: Credentials) -> None:
    """While the server has not answered, the connection waits to be readable, although it is writable and has output."""
    with socket.create_server(("127.0.0.1", 0)) as silent, select.epoll() as epoll:
        context = Context(
            repeat((socket.AF_INET, silent.getsockname())), [(":path", "/x")], repeat(EncodedRequest(b"x", 1)), Recorder(), epoll,
            time.monotonic, tls=(credentials.ssl_context("h2"), "localhost"),
        )  # fmt: skip
        driver = UnaryDriver(context, lambda _driver: None)
        driver.connect()
        ((_, mask),) = epoll.poll(PATIENCE_S)
        driver.on_event(mask)
        driver.flush()

        assert epoll.poll(0) == []
        assert driver.connected
        driver.close()


class _Page(BaseHTTPRequestHandler):
    """A metrics page that needs the token; /moved leads to another host name."""

    seen: list[str | None]
    port: int

    def __init__(self, seen: list[str | None], *arguments: object) -> None:
        self.seen = seen
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer."""
        self.seen.append(self.headers["Authorization"])
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", f"http://localhost:{self.server.server_port}/metrics")  # type: ignore[attr-defined]
            self.end_headers()
            return
        self.send_response(200 if self.headers["Authorization"] == f"Bearer {TOKEN}" else 401)
        self.end_headers()
        self.wfile.write(b"# TYPE digitserve_images_total counter\ndigitserve_images_total 7\n")

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_the_metrics_page_gets_the_token_without_a_proxy(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token is sent to the page, directly, and not to where the page redirects. Without it, the message says what to pass."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    credentials = Credentials(token_file=folder / "token")
    seen: list[str | None] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Page, seen)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"

        assert metrics_page.read(f"{url}/metrics", credentials).images == 7
        with pytest.raises(NotAvailable, match="HTTP status 401; it needs a token: pass token_file"):
            metrics_page.read(f"{url}/metrics")
        with pytest.raises(NotAvailable, match="HTTP status 401"):
            metrics_page.read(f"{url}/moved", credentials)
        server.shutdown()
    assert seen == [f"Bearer {TOKEN}", None, f"Bearer {TOKEN}", None]


def test_the_metrics_page_does_not_get_the_token_in_clear_text(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page on another machine without TLS is requested without the token, unless that is allowed."""
    seen: list[str | None] = []
    monkeypatch.setattr(scrape, "is_local_host", lambda _host: False)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Page, seen)) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        with pytest.raises(NotAvailable, match="HTTP status 401; it needs a token: it is not sent without TLS"):
            metrics_page.read(url, Credentials(token_file=folder / "token"))
        metrics_page.read(url, Credentials(token_file=folder / "token", clear_text_token=True))
        server.shutdown()
    assert seen == [None, f"Bearer {TOKEN}"]

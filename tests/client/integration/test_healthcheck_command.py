"""``digitserve healthcheck`` without flags: it calls the HTTP port of a service with the same environment."""

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from digitserve.cli import main
from digitserve.supervision.ports import listen
from support.certificates import make_certificate


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the settings of this environment, and set a proxy that nobody can use."""
    for name in [name for name in os.environ if name.startswith("DIGITSERVE_")]:
        monkeypatch.delenv(name)
    for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")


class _Readiness(BaseHTTPRequestHandler):
    """Answers each request with a status and a line that has the path."""

    def __init__(self, status: int, *arguments: object) -> None:
        self.status = status
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        """Answer."""
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(f"state of {self.path}\n".encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@contextmanager
def http_server(status: int, host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve, and yield the port."""
    with ThreadingHTTPServer(("", 0), partial(_Readiness, status), bind_and_activate=False) as server:
        server.socket.close()
        # As the service listens.
        server.socket = listen(host, 0, "--http-port")
        server.server_address = server.socket.getsockname()[:2]
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield str(server.server_address[1])
        server.shutdown()


def run(*arguments: str, **environment: str) -> Result:
    """Run the command in this process."""
    return CliRunner().invoke(main, ["healthcheck", *arguments], env=environment)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_the_answer_is_printed(status: int, code: int) -> None:
    """Ready is 0 and not ready is 1; the line of /readyz, with its reason, is the output."""
    with http_server(status) as port:
        result = run(DIGITSERVE_HTTP_PORT=port)

    assert (result.exit_code, result.stdout, result.stderr) == (code, "state of /readyz\n", "")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.2", "0.0.0.0", "::1", "::", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "localhost"],  # noqa: S104
)
def test_the_host_is_that_of_the_service(host: str) -> None:
    """A service that listens on one address is called there; one that listens on all is called on loopback. No proxy is used."""
    if ":" in host and not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6")
    with http_server(200, host) as port:
        result = run(DIGITSERVE_HOST=host, DIGITSERVE_HTTP_PORT=port)

    assert result.exit_code == 0, result.stderr


def test_tls_needs_no_further_variable(tmp_path: Path) -> None:
    """With the variables of a service that uses TLS, client certificates and tokens, the check uses HTTPS, whatever names the
    certificate has. The files need not be readable.
    """
    made = make_certificate(tmp_path / "server")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    secrets = dict.fromkeys(
        ("DIGITSERVE_TLS_KEY", "DIGITSERVE_TLS_CLIENT_CA", "DIGITSERVE_TOKEN_FILE"), "/not/readable"
    )
    with http_server(200, "127.0.0.2", context) as port:
        result = run(
            DIGITSERVE_HTTP_PORT=port,
            DIGITSERVE_HOST="127.0.0.2",
            DIGITSERVE_TLS_CERTIFICATE="/not/readable",
            **secrets,
        )
        clear_text = run(DIGITSERVE_HTTP_PORT=port, DIGITSERVE_HOST="127.0.0.2")

    assert (result.exit_code, result.stdout) == (0, "state of /readyz\n"), result.stderr
    assert clear_text.exit_code == 3
    assert "set DIGITSERVE_TLS_CERTIFICATE" in clear_text.stderr


def test_https_to_a_service_in_clear_text_is_explained() -> None:
    """The variable is set for the check, but not for the service."""
    with http_server(200) as port:
        result = run(DIGITSERVE_HTTP_PORT=port, DIGITSERVE_TLS_CERTIFICATE="server.pem")

    assert result.exit_code == 5
    assert "unset DIGITSERVE_TLS_CERTIFICATE" in result.stderr


def test_a_service_that_does_not_answer() -> None:
    """Nothing listens, a server is silent, and a server is another one: each has its exit code and one line."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        late = run("--timeout-s", "0.1", DIGITSERVE_HTTP_PORT=port)
    gone = run(DIGITSERVE_HTTP_PORT=port)
    with http_server(404) as port:
        other = run(DIGITSERVE_HTTP_PORT=port)

    assert (late.exit_code, gone.exit_code, other.exit_code) == (4, 3, 1)
    assert "/readyz: no answer within 0.1 s" in late.stderr
    assert "/readyz: no service listens; to check the gRPC port of another service, use --address" in gone.stderr
    assert "got HTTP status 404; is this the HTTP port of digitserve?" in other.stderr
    assert all(result.stderr.count("\n") == 1 for result in (late, gone, other))


@pytest.mark.parametrize("port", ["0", "http", "65536", "-1"])
def test_a_port_that_cannot_be_asked_is_wrong_usage(port: str) -> None:
    """With port 0 the service listens on a free one, which the check does not know."""
    result = run(DIGITSERVE_HTTP_PORT=port)

    assert result.exit_code == 2
    assert f"DIGITSERVE_HTTP_PORT: got '{port}', expected a port from 1 to 65535" in result.stderr


def test_a_port_that_kubernetes_injects_is_ignored() -> None:
    """DIGITSERVE_HTTP_PORT=tcp://... is that of a Service named digitserve-http: the default port is called."""
    result = run(DIGITSERVE_HTTP_PORT="tcp://10.96.0.1:80", DIGITSERVE_HOST="127.0.0.9")

    assert "http://127.0.0.9:8080/readyz" in result.stderr


@pytest.mark.parametrize("arguments", [("--address", "127.0.0.1:1"), ("--service", ""), ("--ca", "")])
def test_with_a_target_it_calls_grpc(tmp_path: Path, arguments: tuple[str, str]) -> None:
    """An address, a name of a service or TLS files select grpc.health.v1."""
    ca = str(make_certificate(tmp_path / "server").certificate)
    arguments = (arguments[0], arguments[1] or ca) if arguments[0] == "--ca" else arguments
    result = run(*arguments, DIGITSERVE_GRPC_PORT="1", DIGITSERVE_HTTP_PORT="2")

    assert result.exit_code == 3
    assert "is 'digitserve serve' running at this address?" in result.stderr


def test_it_does_not_import_grpc() -> None:
    """The check of a container runs every few seconds: gRPC and numpy would take most of its CPU time."""
    program = "import sys; from digitserve.cli import main; main.main(['healthcheck'], standalone_mode=False)"
    program += "; print(*{'grpc', 'numpy'} & {*sys.modules})"
    with http_server(200) as port:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True,
            env={**os.environ, "DIGITSERVE_HTTP_PORT": port},
        )  # fmt: skip
    assert done.stdout == "state of /readyz\n\n"

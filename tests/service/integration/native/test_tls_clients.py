"""Real clients over TLS with the native transport: grpcio, curl, h2load, openssl; and clients with another protocol."""

import asyncio
import contextlib
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from support.certificates import Certificate, make_certificate
from support.echo_server import ECHO, ECHO_STREAM, EchoServer, run_echo_server
from support.http2_peer import ACK, PING, PREFACE, SETTINGS, raw
from support.serving import PATIENCE_S

HEADERS = ("-H", "content-type: application/grpc", "-H", "te: trailers")
MESSAGE = b"\0" + struct.pack(">I", 5) + b"hello"


@pytest.fixture(scope="module", params=["ec", "rsa"])
def certificate(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"), kind=request.param)


@pytest.fixture(scope="module")
def server(certificate: Certificate) -> Iterator[EchoServer]:
    with run_echo_server(**certificate.settings()) as running:
        yield running


@pytest.fixture
def body(tmp_path: Path) -> Path:
    path = tmp_path / "body"
    path.write_bytes(MESSAGE)
    return path


def run(*arguments: str | Path, fails: bool = False, send: bytes = b"") -> str:
    """Run a command that must succeed, or fail, and return what it printed."""
    program = shutil.which(arguments[0]) or pytest.skip(f"{arguments[0]} is not installed")
    done = subprocess.run([program, *arguments[1:]], input=send, capture_output=True, timeout=PATIENCE_S, check=False)
    printed = done.stdout.decode(errors="replace") + done.stderr.decode(errors="replace")
    assert bool(done.returncode) == fails, printed
    return printed


def test_grpcio(server: EchoServer, certificate: Certificate) -> None:
    """Messages of any size, large answers and streams arrive over TLS; the server proves its name."""
    credentials = grpc.ssl_channel_credentials(certificate.certificate.read_bytes())
    with grpc.secure_channel(
        server.address, credentials, options=(("grpc.max_receive_message_length", -1),)
    ) as channel:
        call = channel.unary_unary(ECHO.path)
        for body in (b"", b"x", bytes(65_536), bytes(range(256)) * 4096):
            assert call(body, timeout=PATIENCE_S) == body
        large = call.future(b"size 20000000", timeout=PATIENCE_S)
        assert [call(b"%d" % number, timeout=PATIENCE_S) for number in range(20)] == [b"%d" % n for n in range(20)]
        assert len(large.result()) == 20_000_000
        bodies = [b"%d" % number for number in range(100)]
        assert list(channel.stream_stream(ECHO_STREAM.path)(iter(bodies), timeout=PATIENCE_S)) == bodies


def test_grpcio_aio(server: EchoServer, certificate: Certificate) -> None:
    """Many calls of several asyncio channels are answered over TLS."""
    credentials = grpc.ssl_channel_credentials(certificate.certificate.read_bytes())

    async def calls(number: int) -> list[bytes]:
        options = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.secure_channel(server.address, credentials, options=options) as channel:
            call = channel.unary_unary(ECHO.path)
            return await asyncio.gather(*(call(b"%d %d" % (number, each), timeout=PATIENCE_S) for each in range(50)))

    async def main() -> list[list[bytes]]:
        return await asyncio.gather(*map(calls, range(8)))

    assert asyncio.run(main()) == [[b"%d %d" % (number, each) for each in range(50)] for number in range(8)]


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_curl(server: EchoServer, certificate: Certificate, body: Path, version: str) -> None:
    """``curl`` agrees on HTTP/2 by ALPN, and gets message and trailers."""
    printed = run(
        "curl", "-sSi", "--http2", f"--tlsv{version}", "--tls-max", version, "--cacert", certificate.certificate, *HEADERS,
        "--data-binary", f"@{body}", f"https://{server.address}{ECHO.path}",
    )  # fmt: skip
    assert printed.startswith("HTTP/2 200") and "hello" in printed and "grpc-status: 0" in printed


def test_clients_without_http2_get_nothing(server: EchoServer, certificate: Certificate, body: Path) -> None:
    """Connections over TLS without ALPN, in clear text, or with HTTP/1.1 are closed without an answer."""
    arguments = ("-sS", *HEADERS, "--cacert", certificate.certificate, "--data-binary", f"@{body}")
    run("curl", *arguments, "--http1.1", f"https://{server.address}{ECHO.path}", fails=True)
    run("curl", *arguments, "--http2-prior-knowledge", f"http://{server.address}{ECHO.path}", fails=True)
    run("curl", *arguments, f"http://{server.address}{ECHO.path}", fails=True)
    with socket.create_connection(server.address.split(":"), timeout=PATIENCE_S) as garbage:
        garbage.sendall(bytes(100))
        while garbage.recv(100):
            """An alert may come first."""


def test_h2load(server: EchoServer, body: Path) -> None:
    """Of 5 000 calls of ``h2load`` on 50 connections, opened at once, each is answered."""
    printed = run("h2load", "-n5000", "-c50", "-m10", *HEADERS, "-d", body, f"https://{server.address}{ECHO.path}")
    assert "5000 succeeded, 0 failed, 0 errored, 0 timeout" in printed


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-tls1_3", "-alpn", "h2"), "ALPN protocol: h2"),
        (("-tls1_2", "-alpn", "h2"), "ALPN protocol: h2"),
        (("-tls1_2", "-alpn", "h2", "-maxfraglen", "512"), "ALPN protocol: h2"),
    ],
)
def test_openssl(server: EchoServer, certificate: Certificate, arguments: tuple[str, ...], expected: str) -> None:
    """``openssl s_client`` verifies the certificate and agrees on h2."""
    printed = run(
        "openssl", "s_client", "-connect", server.address, "-CAfile", str(certificate.certificate), *arguments
    )
    assert expected in printed and "Verify return code: 0" in printed


@contextlib.contextmanager
def openssl_client(server: EchoServer, version: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``openssl s_client`` with this version of TLS, and exchange SETTINGS; its commands and output are those of a terminal."""
    openssl = shutil.which("openssl") or pytest.skip("openssl is not installed")
    client = subprocess.Popen(
        [openssl, "s_client", "-connect", server.address, version, "-alpn", "h2"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0,
    )  # fmt: skip
    with client:
        assert client.stdin is not None
        client.stdin.write(PREFACE + raw(SETTINGS))
        read_until(client, raw(SETTINGS, ACK))
        yield client


def test_a_client_changes_the_keys(server: EchoServer) -> None:
    """A TLS 1.3 client may change the keys of both directions, also repeatedly; the connection continues."""
    with openssl_client(server, "-tls1_3") as client:
        assert client.stdin is not None
        for number in range(4):
            client.stdin.write(b"K\n")
            read_until(client, b"KEYUPDATE")
            client.stdin.write(raw(PING, 0, 0, b"ping %3d" % number))
            read_until(client, raw(PING, ACK, 0, b"ping %3d" % number))
        client.kill()


def test_renegotiation_is_refused(server: EchoServer) -> None:
    """A TLS 1.2 client that begins another handshake gets an alert."""
    with openssl_client(server, "-tls1_2") as client:
        assert client.stdin is not None
        client.stdin.write(b"R\n")
        read_until(client, b"no renegotiation")


def read_until(process: "subprocess.Popen[bytes]", expected: bytes) -> None:
    """Read the output of a process until it contains something."""
    assert process.stdout is not None
    got = b""
    while expected not in got:
        part = process.stdout.read(1 << 16)
        assert part, f"expected {expected!r}, got {got!r}"
        got += part

"""Proxies in the environment: services on this machine are called directly."""

import asyncio
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from digitserve.cli import main
from digitserve.client import AsyncClient, Client, DeadlineExceeded, RequestRejected, Unreachable
from support.bundles import echo_image
from support.serving import RunningWorker

OTHER = "digits.invalid:50051"
VARIABLES = ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy")


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Set a proxy for all hosts, and return its socket, on which nothing may arrive."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        for name in VARIABLES:
            for variable in (name, name.upper()):
                monkeypatch.setenv(variable, f"http://127.0.0.1:{listener.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield listener


def num_connections(proxy: socket.socket) -> int:
    """Return how many connections have arrived at the proxy."""
    number = 0
    try:
        while True:
            proxy.accept()[0].close()
            number += 1
    except BlockingIOError:
        return number


def use_client(target: str) -> None:
    with Client(target) as client:
        client.classify(echo_image(1))
        assert len(list(client.classify_stream([echo_image(1)]))) == 1


def use_async_client(target: str) -> None:
    async def use() -> None:
        async with AsyncClient(target) as client:
            await client.classify(echo_image(1))
            assert [one async for one in client.classify_stream([echo_image(1)])]

    asyncio.run(use())


@pytest.mark.parametrize("use", [use_client, use_async_client])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "ipv4:127.0.0.1", "[::ffff:127.0.0.1]"])
def test_clients_call_this_machine_directly(
    worker: RunningWorker, proxy: socket.socket, use: Callable[[str], None], host: str
) -> None:
    """Loopback addresses in every spelling, and lists of them, are called without the proxy."""
    port = worker.address.rpartition(":")[2]
    use(f"{host}:{port}" + (f",127.0.0.1:{port}" if host.startswith("ipv4:") else ""))

    assert not num_connections(proxy)


def test_unix_sockets_are_called_directly(tmp_path: Path, proxy: socket.socket) -> None:
    """A server on a Unix socket is called directly: its answer is that it has no such method."""
    server = grpc.server(ThreadPoolExecutor(1))
    target = f"unix:{tmp_path}/digits.sock"
    server.add_insecure_port(target)
    server.start()
    try:
        with Client(target) as client, pytest.raises(RequestRejected, match="UNIMPLEMENTED"):
            client.health()
    finally:
        server.stop(None)

    assert not num_connections(proxy)


@pytest.mark.parametrize(
    "arguments",
    [
        ("classify", "{image}"),
        ("healthcheck", "--service", ""),
        ("bench", "--duration-s", "0.1", "--warm-up-s", "0", "--processes", "1", "--connections", "1"),
    ],
)
def test_commands_call_this_machine_directly(
    worker: RunningWorker, proxy: socket.socket, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """The commands reach the service on this machine by its address, and by the settings of the same environment."""
    image = tmp_path / "one.png"
    Image.fromarray(echo_image(1)).save(image)
    command, *rest = (argument.format(image=image) for argument in arguments)
    host, _, port = worker.address.rpartition(":")

    def run(*target: str, **environment: str) -> Result:
        return CliRunner().invoke(main, [command, *target, *rest], env=environment)

    by_address = run("--address", worker.address)
    by_settings = run(DIGITSERVE_HOST=host, DIGITSERVE_GRPC_PORT=port)

    assert (by_address.exit_code, by_settings.exit_code) == (0, 0), by_address.output + by_settings.output
    assert not num_connections(proxy)


@pytest.mark.parametrize("kind", ["blocking", "async"])
def test_other_machines_are_called_through_the_proxy(proxy: socket.socket, kind: str) -> None:
    """Calls to other hosts use the proxy. If the call fails, the error names the variable and how to avoid the proxy."""

    async def use() -> None:
        async with AsyncClient(OTHER, num_connections=1) as client:
            await client.model()

    def call() -> None:
        if kind == "async":
            asyncio.run(use())
            return
        with Client(OTHER, num_connections=1) as client:
            client.model()

    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(_refuse, proxy)
        with pytest.raises(Unreachable, match="connections use the proxy in grpc_proxy, except to hosts in no_proxy"):
            call()
    assert answer.result().startswith(f"CONNECT {OTHER}".encode())


@pytest.mark.parametrize("kind", ["blocking", "async", "stream"])
def test_a_proxy_that_does_not_answer_is_named(proxy: socket.socket, kind: str) -> None:
    """A proxy that accepts connections and does nothing, as behind a firewall, is named when the time is over."""

    async def use() -> None:
        async with AsyncClient(OTHER, num_connections=1) as client:
            await client.model(timeout_s=0.3)

    def call() -> None:
        if kind == "async":
            asyncio.run(use())
            return
        with Client(OTHER, num_connections=1) as client:
            if kind == "stream":
                list(client.classify_stream([echo_image(1)], timeout_s=0.3))
            client.model(timeout_s=0.3)

    with pytest.raises(DeadlineExceeded, match="connections use the proxy in grpc_proxy, except to hosts in no_proxy"):
        call()


def test_a_client_may_ignore_the_proxy(proxy: socket.socket) -> None:
    """With ``use_proxy=False`` other hosts are called directly, here one that does not exist."""
    with Client(OTHER, num_connections=1, use_proxy=False) as client, pytest.raises(Unreachable) as caught:
        client.model()

    assert "proxy" not in str(caught.value)
    assert not num_connections(proxy)


def _refuse(proxy: socket.socket) -> bytes:
    """Answer each connection as a proxy that does not know the host; return the first request."""
    proxy.setblocking(True)
    connection, _ = proxy.accept()
    with connection:
        request = connection.recv(1 << 12)
        connection.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
    proxy.close()
    return request

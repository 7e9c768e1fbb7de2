"""Ports of the service: reserved for its workers, and refused if another process uses them."""

import socket

import pytest

from digitserve.errors import SettingsError
from digitserve.supervision.ports import listen, reserve

LOCAL = "127.0.0.1"


def port_of(bound: socket.socket) -> int:
    return int(bound.getsockname()[1])


def test_workers_can_listen_on_a_reserved_port() -> None:
    """Several sockets with SO_REUSEPORT can listen on the port; the reserved one itself accepts no connections."""
    with reserve(LOCAL, 0, "--grpc-port") as reserved:
        address = (LOCAL, port_of(reserved))
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        with socket.create_server(address, reuse_port=True), socket.create_server(address, reuse_port=True):
            socket.create_connection(address).close()


@pytest.mark.parametrize("taken_by", [reserve, listen])
@pytest.mark.parametrize("wanted_by", [reserve, listen])
def test_a_port_in_use_is_refused(taken_by, wanted_by) -> None:  # noqa: ANN001
    """The message has the port, and the flag that chooses another."""
    with (
        taken_by(LOCAL, 0, "--taken-port") as taken,
        pytest.raises(SettingsError, match=rf"cannot use port {port_of(taken)} .* with --wanted-port"),
    ):
        wanted_by(LOCAL, port_of(taken), "--wanted-port")


def test_a_host_that_is_not_local_is_refused() -> None:
    """The message names the flag and gives examples."""
    with pytest.raises(SettingsError, match=r"--host: got 'nonesuch.invalid'.*127\.0\.0\.1"):
        listen("nonesuch.invalid", 0, "--http-port")

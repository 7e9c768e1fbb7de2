"""Ports of the service: reserved for its workers, refused if another process uses them, and never closed by a worker."""

import contextlib
import socket
from collections.abc import Iterator

import pytest

from digitserve.errors import SettingsError
from digitserve.supervision import ports
from digitserve.supervision.ports import SlotListeners, listen, reserve
from support.log_lines import capture_logs

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


@pytest.fixture(params=[LOCAL, "::1", "::"])
def host(request: pytest.FixtureRequest) -> str:
    """Return an address of each kind."""
    return str(request.param)


class Slots:
    """Listening sockets of three slots, and clients that connect to them."""

    def __init__(self, host: str, stack: contextlib.ExitStack) -> None:
        self.address = (host, 0)
        reserved = stack.enter_context(reserve(host, 0, "--grpc-port"))
        self.address = (host, port_of(reserved))
        self.listeners = stack.enter_context(SlotListeners(reserved, 3))
        self._stack = stack

    def connect(self, count: int) -> None:
        """Open connections; they stay open."""
        for _ in range(count):
            self._stack.enter_context(socket.create_connection(self.address))

    def accept(self, slot: int) -> int:
        """Accept what waits on a copy of a slot's socket, as a worker does, and return the number of connections."""
        with self.listeners[slot].dup() as copy:
            copy.setblocking(False)
            count = 0
            with contextlib.suppress(BlockingIOError):
                while True:
                    copy.accept()[0].close()
                    count += 1
            return count


@pytest.fixture
def slots(host: str) -> Iterator[Slots]:
    """Listen."""
    with contextlib.ExitStack() as stack:
        yield Slots(host, stack)


def test_connections_go_to_slots_that_accept(slots: Slots) -> None:
    """No new connection waits for a slot without a worker; those that accept share them."""
    for accepting in ([0, 1, 2], [1], [0, 2], [2], [1, 2]):
        slots.listeners.direct(accepting)
        slots.connect(60)
        accepted = [slots.accept(slot) for slot in range(3)]
        assert sum(accepted) == 60
        # With an even choice, one of 3 gets none of 60 with a probability of 1e-10.
        assert [slot for slot in range(3) if accepted[slot]] == accepting


def test_connections_wait_for_the_next_worker(slots: Slots) -> None:
    """A connection that no worker has accepted outlives the worker's copy of the socket: the next worker accepts it."""
    slots.listeners.direct([])
    slots.listeners[1].dup().close()
    slots.connect(60)
    assert all(slots.accept(slot) for slot in range(3))


def test_clients_are_refused_after_the_last_worker(slots: Slots) -> None:
    """When the supervisor has closed its copies, each worker's copy accepts until it is closed; then clients are refused
    and do not wait.
    """
    slots.listeners.direct([0])
    with slots.listeners[0].dup(), slots.listeners[1].dup():
        slots.listeners.close()
        slots.listeners.direct([1])  # has no effect any more
        slots.connect(10)
    with pytest.raises(ConnectionRefusedError):
        slots.connect(1)


def test_a_port_with_slots_is_refused() -> None:
    """The error for a second service is the same as without slots."""
    with reserve(LOCAL, 0, "--grpc-port") as reserved, SlotListeners(reserved, 2):
        for wanted_by in (reserve, listen):
            with pytest.raises(SettingsError, match=rf"cannot use port {port_of(reserved)} .* with --wanted-port"):
                wanted_by(LOCAL, port_of(reserved), "--wanted-port")


@pytest.mark.parametrize("host", [LOCAL, "::1"])
@pytest.mark.parametrize("left", ["open", "closed"])
def test_connections_of_the_last_service_do_not_block_the_port(host: str, left: str) -> None:
    """Once all listening sockets are closed, the port can be bound again at once: also while a worker of the last service
    answers its last requests, and after connections that the service has closed first (TIME_WAIT).
    """
    with contextlib.ExitStack() as stack:
        with reserve(host, 0, "--grpc-port") as reserved, SlotListeners(reserved, 1) as listeners:
            client = stack.enter_context(socket.create_connection((host, port_of(reserved))))
            accepted = stack.enter_context(listeners[0].accept()[0])
            port = port_of(reserved)
        if left == "closed":
            accepted.close()
            assert client.recv(1) == b""
            client.close()
        with reserve(host, port, "--grpc-port") as reserved, SlotListeners(reserved, 1):
            stack.enter_context(socket.create_connection((host, port)))


def test_a_system_without_filters_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system has no filters for SO_REUSEPORT, one warning says so, and it chooses the slots itself."""
    monkeypatch.setattr(ports, "_SO_ATTACH_REUSEPORT_CBPF", 0xFFFF)
    with contextlib.ExitStack() as stack, capture_logs() as lines:
        slots = Slots(LOCAL, stack)
        for _ in range(2):
            slots.listeners.direct([1])
        slots.connect(60)
        assert all(slots.accept(slot) for slot in range(3))
    assert [line["event"] for line in lines] == ["new connections may wait for a worker that is being replaced"]

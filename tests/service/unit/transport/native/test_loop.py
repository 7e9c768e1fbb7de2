"""The event loop with real sockets, a clock of the test, and connections that only record."""

import gzip
import itertools
import os
import resource
import select
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from digitserve.settings import Settings
from digitserve.telemetry.block import Block, CloseReason
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.native import loop as module
from digitserve.transport.native import peer as peer_module
from digitserve.transport.native import shares
from digitserve.transport.native.acceptor import ACCEPT_PAUSE_S, MAX_ACCEPTS
from digitserve.transport.native.connection import Connection
from digitserve.transport.native.limits import ReceiveBudget, WorkerLimits
from digitserve.transport.native.loop import (
    CHECK_S,
    MANY_UNREAD,
    MAX_CHECK_S,
    MAX_HANDSHAKES_S,
    MAX_OVERLOAD_READ_S,
    MAX_READ_S,
    READ_BYTES,
    SHORT_READ_BYTES,
    STARVED_POLL_S,
    Loop,
)  # fmt: skip
from digitserve.transport.native.peer import LINGER_S, Peer
from digitserve.transport.native.shares import InflateBudget
from digitserve.transport.respond import UnknownMethodHandler
from support.certificates import TlsClient, make_certificate, server_context
from support.http2_peer import LIMITS, STREAM, UNARY, RecordedCounts, data, headers, message, request
from support.http2_peer import Peer as Client

STALL_S = 60.0
"""Default of the limit."""


class Clock:
    """Stands in for the module ``time``.

    Attributes:
        now: what both clocks show.
        step: seconds by which each reading advances them.
    """

    def __init__(self) -> None:
        self.now, self.step = 1000.0, 0.0

    def monotonic(self) -> float:
        self.now += self.step
        return self.now

    time = monotonic


class Recorded:
    """A connection that keeps what it receives, and sends what the test gives it."""

    def __init__(self, on_output: Callable[[], None]) -> None:
        self.on_output = on_output
        self.received: list[bytes] = []
        self.arrived: list[float] = []
        self.output = b""
        self.waiting: dict[str, None] = {}
        self.closing = False
        self.close_reason: CloseReason | None = None
        self.reads = True
        self.num_rejected = 0
        self.answered: dict[int, None] = {}
        self.has_room = True
        self.delivers = False
        self.num_unsent_bytes = self.num_held_bytes = self.num_trimmable_bytes = 0
        self.num_drops = self.num_drains = self.num_checks = 0
        self.on_receive: Callable[[], None] = lambda: None

    def send(self, output: bytes) -> None:
        if not self.output:
            self.on_output()
        self.output += output
        self.num_unsent_bytes += len(output)

    def take_output(self) -> bytes:
        output, self.output = self.output, b""
        return output

    def has_output(self) -> bool:
        return bool(self.output)

    def on_sent(self, num_bytes: int) -> bool:
        self.num_unsent_bytes -= num_bytes
        return self.delivers

    def wants_read(self) -> bool:
        return self.reads and not self.closing

    def receive(self, received: bytes, now: float, arrived: float) -> None:
        self.received.append(received)
        self.arrived.append(arrived)
        self.on_receive()

    def on_room(self) -> bool:
        continued = self.has_room and bool(self.waiting)
        if continued:
            self.waiting.clear()
        return continued

    def check(self, now: float, wall: float) -> None:
        self.num_checks += 1

    def drain(self, now: float, reason: CloseReason = CloseReason.DRAIN) -> None:
        self.num_drains += 1
        self.close_reason = self.close_reason or reason

    def trim(self) -> int:
        self.num_held_bytes -= self.num_trimmable_bytes
        return self.num_trimmable_bytes

    def close(self, code: int, text: str, reason: CloseReason) -> None:
        if not self.closing:
            self.send(b"goaway")
        self.closing = True
        self.close_reason = reason

    def drop(self) -> None:
        self.num_drops += 1


class Bench:
    """A loop, its connections in the order in which they were accepted, and their clients."""

    def __init__(self, clock: Clock, context: ssl.SSLContext | None = None, **changes: Any) -> None:
        self.clock = clock
        self.connections: list[Any] = []
        self.create: Callable[[Callable[[], None]], Any] = Recorded
        self.sockets = ExitStack()
        self.counts = RecordedCounts()
        limits = WorkerLimits(**{"max_receive_bytes": 1 << 20, "max_connections": 1000, **changes})
        self.loop = Loop(self._new_connection, limits, self.counts, None if context is None else lambda: context)
        listener = socket.create_server(("127.0.0.1", 0), backlog=500)
        self.address = listener.getsockname()
        self.loop.listen(listener)

    def _new_connection(self, now: float, on_output: Callable[[], None]) -> Any:
        self.connections.append(self.create(on_output))
        return self.connections[-1]

    def connect(self) -> socket.socket:
        """Open a connection that is not accepted yet."""
        return self.sockets.enter_context(socket.create_connection(self.address, timeout=20))

    def accept(self) -> tuple[socket.socket, Recorded]:
        """Open a connection and have it accepted."""
        client = self.connect()
        expected = len(self.connections) + 1
        self.poll_until(lambda: len(self.connections) == expected)
        return client, self.connections[-1]

    def peers(self) -> list[Peer]:
        return list(self.loop._peers.by_descriptor.values())

    def await_input(self, *peers: Peer) -> None:
        """Wait until the sockets of peers have something to read."""
        for peer in peers:
            assert select.select([peer.wire], [], [], 20)[0]

    def poll_until(self, condition: Callable[[], object]) -> None:
        """Poll until a condition holds."""
        for _ in range(2000):
            if condition():
                return
            self.loop.poll(0.01)
        pytest.fail("still not true")

    def advance(self, seconds: float) -> None:
        """Let time pass, and have the limits checked."""
        self.clock.now += seconds
        self.loop.poll(0)

    def close(self) -> None:
        self.sockets.close()
        self.loop.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for each in (module, peer_module):
        monkeypatch.setattr(each, "time", SimpleNamespace(monotonic=clock.monotonic, time=clock.time))
    return clock


@pytest.fixture
def bench(clock: Clock) -> Iterator[Bench]:
    bench = Bench(clock)
    yield bench
    bench.close()


@pytest.fixture
def tls_bench(clock: Clock, tmp_path: Path) -> Iterator[Bench]:
    made = make_certificate(tmp_path)
    bench = Bench(clock, context=server_context(Settings(tls_certificate=made.certificate, tls_key=made.key)))
    yield bench
    bench.close()


def reset(client: socket.socket) -> None:
    """Close a connection by RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def test_bytes_go_both_ways(bench: Bench) -> None:
    """What a client sends reaches its connection; output reaches the client at the next poll, in order."""
    client, connection = bench.accept()
    client.sendall(b"request")
    bench.poll_until(lambda: connection.received)
    connection.send(b"one")
    connection.send(b"two")
    bench.loop.poll(0)

    assert connection.received == [b"request"]
    assert client.recv(100) == b"onetwo"
    assert connection.num_unsent_bytes == 0


def test_a_slow_client_gets_everything_in_order(bench: Bench) -> None:
    """Output that the socket does not take waits; output added meanwhile follows it, and nothing is read while the
    connection wants no read.
    """
    client, connection = bench.accept()
    first, second = os.urandom(8 << 20), os.urandom(1 << 20)
    connection.send(first)
    bench.loop.poll(0)
    assert connection.num_unsent_bytes > 0
    connection.send(second)
    connection.reads = False
    bench.peers()[0].update_interest()
    client.sendall(b"more")
    got = b""
    client.setblocking(False)
    while len(got) < len(first) + len(second):
        bench.loop.poll(0)
        try:
            got += client.recv(1 << 20)
        except BlockingIOError:
            continue

    assert got == first + second
    assert (connection.num_unsent_bytes, connection.received) == (0, [])
    connection.reads = True
    bench.peers()[0].update_interest()
    bench.poll_until(lambda: connection.received == [b"more"])


def test_a_client_that_never_reads_is_dropped(bench: Bench) -> None:
    """After ``stall_s`` without progress its socket is closed; progress restarts that time."""
    client, connection = bench.accept()
    connection.send(bytes(16 << 20))
    bench.loop.poll(0)
    bench.advance(STALL_S - 1)
    unsent = connection.num_unsent_bytes
    while connection.num_unsent_bytes == unsent:
        client.recv(1 << 16)
        bench.loop.poll(0)
    bench.advance(STALL_S - 1)
    assert connection.num_drops == 0
    bench.advance(2)

    assert (connection.num_drops, bench.loop.num_connections) == (1, 0)
    assert bench.counts.closed == {CloseReason.TIMEOUT: 1}


def test_reading_rotates_and_is_bounded_in_time(bench: Bench) -> None:
    """An iteration reads until its time is over; the next one continues with the connections that were left, so a flood of
    some cannot starve the others.
    """
    pairs = [bench.accept() for _ in range(6)]
    order: list[int] = []

    def slow(number: int) -> None:
        order.append(number)
        bench.clock.now += MAX_READ_S

    for number, (_, connection) in enumerate(pairs):
        connection.on_receive = lambda number=number: slow(number)
    for client, _ in pairs:
        client.sendall(bytes(READ_BYTES * 2))
    iterations = []
    while len(order) < 12:
        before = len(order)
        bench.loop.poll(0.01)
        iterations.append(len(order) - before)

    assert max(iterations) == 2
    assert sorted(order[:6]) == list(range(6))


def test_with_many_unread_connections_reads_are_shorter(bench: Bench) -> None:
    """With more than ``MANY_UNREAD`` unread connections, an iteration reads less from each."""
    pairs = [bench.accept() for _ in range(MANY_UNREAD + 2)]
    few, many = pairs[:MANY_UNREAD], pairs
    for accepted, least, most in ((many, 1, SHORT_READ_BYTES), (few, SHORT_READ_BYTES + 1, READ_BYTES)):
        for client, connection in accepted:
            connection.received.clear()
            client.sendall(bytes(READ_BYTES))
        bench.await_input(*bench.peers()[: len(accepted)])
        bench.loop.poll(0.01)
        assert least <= max(len(connection.received[0]) for _, connection in accepted) <= most
        assert all(len(connection.received) == 1 for _, connection in accepted)
        while any(len(b"".join(connection.received)) < READ_BYTES for _, connection in accepted):
            bench.loop.poll(0.01)


@pytest.mark.parametrize(("num_others", "more"), [(0, 7), (1, 4), (3, 2)])
def test_only_rejected_calls_are_read_again_in_an_iteration(bench: Bench, num_others: int, more: int) -> None:
    """While the calls of a connection are rejected, all that has arrived is read, so that they are rejected in time. If other
    connections send too, it gets its part of the time for that.
    """
    client, connection = bench.accept()
    others = [bench.accept() for _ in range(num_others)]

    def reject() -> None:
        connection.num_rejected += 1
        bench.clock.now += MAX_OVERLOAD_READ_S / 8

    client.sendall(bytes(SHORT_READ_BYTES))
    connection.on_receive = reject
    for each, _ in others:
        each.sendall(b"calls")
    # A socket that always has more than one read takes.
    first, *_ = peers = bench.peers()
    bench.await_input(*peers)
    first.wire = SimpleNamespace(recv=bytes, fileno=first.wire.fileno, close=first.wire.close)
    bench.loop.poll(0)

    assert 1 + more <= len(connection.received) <= 2 + more
    assert bench.loop.was_cut
    assert all(other.received == [b"calls"] for _, other in others)


def test_handshakes_wait_behind_calls(tls_bench: Bench) -> None:
    """However many clients start a TLS handshake, an iteration continues few of them, after the reads of other connections. All
    are served in the end, and a client that disconnects during its handshake is dropped.
    """
    bench = tls_bench
    client, (caller, connection) = TlsClient(), bench.accept()
    (peer,) = bench.peers()
    caller.sendall(client.take())
    bench.poll_until(lambda: not bench.loop.poll(0.01))
    client.give(caller.recv(1 << 16))
    caller.sendall(client.take())
    bench.poll_until(lambda: peer.queue is bench.loop._peers.unread)
    others = [(TlsClient(), *bench.accept()) for _ in range(20)]
    for other, client_socket, _ in others:
        client_socket.sendall(other.take())
    reset(others[-1][1])
    bench.clock.step = MAX_HANDSHAKES_S / 2
    waiting = [len(others)]
    while waiting[-1]:
        caller.sendall(client.take(b"call"))
        bench.await_input(peer)
        bench.loop.poll(0.01)
        waiting.append(len(bench.loop._peers.handshakes))
        assert len(connection.received) == len(waiting) - 1
    assert max(before - after for before, after in itertools.pairwise(waiting)) <= 3
    bench.clock.step = 0.0
    for other, client_socket, _ in others[:-1]:
        other.give(client_socket.recv(1 << 16))
        client_socket.sendall(other.take(b"first"))
    bench.poll_until(lambda: all(one.received == [b"first"] for _, _, one in others[:-1]))
    bench.poll_until(lambda: others[-1][2].num_drops)


def test_a_handshake_has_the_time_of_the_preface(tls_bench: Bench) -> None:
    """A client that does not complete its handshake, or sends no HTTP/2 after it, is closed after ``handshake_s``."""
    bench = tls_bench
    recorder, budget = Recorder(Block(()), ()), ReceiveBudget(1 << 24, LIMITS.message_s)
    unknown, now = UnknownMethodHandler(recorder), bench.clock.now
    bench.create = lambda on_output: Connection({}, unknown, LIMITS, budget, recorder, now, on_output)
    client, (silent, _), (slow, _) = TlsClient(), bench.accept(), bench.accept()
    slow.sendall(client.take())
    bench.poll_until(lambda: not bench.loop.poll(0.01))
    client.give(slow.recv(1 << 16))
    slow.sendall(client.take())
    bench.poll_until(lambda: not bench.loop._peers.handshakes and not bench.loop.poll(0.01))
    bench.advance(LIMITS.handshake_s - 0.1)
    assert not any(peer.lingering for peer in bench.peers())
    bench.advance(0.2)
    bench.loop.poll(0)
    assert silent.recv(100) == b""
    assert b"no preface" in client.give(slow.recv(1 << 16))


@pytest.mark.parametrize("unsent", [0, 8 << 20])
@pytest.mark.parametrize("sent", [b"", b"half"])
def test_a_reset_connection_is_dropped_once(bench: Bench, unsent: int, sent: bytes) -> None:
    """RST ends a connection once, with unread input, unsent output, or neither."""
    client, connection = bench.accept()
    other, kept = bench.accept()
    if unsent:
        connection.send(bytes(unsent))
        bench.loop.poll(0)
    client.sendall(sent)
    reset(client)
    bench.poll_until(lambda: connection.num_drops)
    connection.send(b"too late")
    other.sendall(b"still here")
    bench.poll_until(lambda: kept.received)

    assert (connection.num_drops, kept.num_drops, bench.loop.num_connections) == (1, 0, 1)
    assert (bench.counts.num_accepted, bench.counts.closed) == (2, {CloseReason.CLIENT: 1})


def test_a_reused_descriptor_is_another_connection(bench: Bench) -> None:
    """A connection that waits to be read ends, and a new one gets its descriptor before its turn: the new one gets its own
    bytes, and the old one nothing.
    """
    (_, first), (client, second) = bench.accept(), bench.accept()
    peers = {peer.connection: peer for peer in bench.peers()}
    descriptor = peers[second].wire.fileno()
    bench.loop._peers.unread.extend([peers[first], peers[second]])
    second.send(b"answer")
    reset(client)
    while second.num_drops == 0:
        second.send(b"answer")
        bench.loop._send_all()
    bench.sockets.enter_context(replacement := socket.create_connection(bench.address))
    replacement.sendall(b"mine")
    while len(bench.connections) < 3:
        bench.loop._acceptor.accept(bench.clock.now)
    assert descriptor in bench.loop._peers.by_descriptor
    bench.poll_until(lambda: bench.connections[2].received)

    assert (bench.connections[2].received, second.received) == ([b"mine"], [])


def test_a_copy_of_a_descriptor_does_no_harm(bench: Bench) -> None:
    """A process that is being forked holds copies of all descriptors for a moment. Events of the closed one must not arrive."""
    client, connection = bench.accept()
    copy = os.dup(bench.peers()[0].wire.fileno())
    try:
        client.shutdown(socket.SHUT_WR)
        bench.poll_until(lambda: connection.num_drops)
        for _ in range(3):
            assert not bench.loop.poll(0)
    finally:
        os.close(copy)


@contextmanager
def no_free_descriptor() -> Iterator[None]:
    """Take all file descriptors that are free, under a limit just above those in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(path.name) for path in Path("/proc/self/fd").iterdir())
    with ExitStack() as fillers:
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
        try:
            with pytest.raises(OSError, match="Too many open files"):  # noqa: PT012
                while True:
                    fillers.callback(os.close, os.dup(0))
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_accepting_pauses_when_descriptors_are_exhausted(bench: Bench) -> None:
    """Without a free descriptor and without connections, clients wait; they are accepted once there is one again."""
    waiting = bench.connect()
    with no_free_descriptor():
        bench.loop.poll(0.01)
        assert not bench.connections
        assert not bench.loop.poll(0), "the listener must not be reported all the time"
    bench.advance(ACCEPT_PAUSE_S)
    bench.poll_until(lambda: len(bench.connections) == 1)
    waiting.sendall(b"late")
    bench.poll_until(lambda: bench.connections[0].received)


def test_silent_connections_make_room_when_descriptors_are_exhausted(bench: Bench) -> None:
    """Without a free descriptor, the connection whose client has been silent longest is closed for a new one."""
    (silent, _), (client, active) = bench.accept(), bench.accept()
    bench.clock.now += 1
    client.sendall(b"x")
    bench.poll_until(lambda: active.received)
    bench.connect()
    with no_free_descriptor():
        bench.poll_until(lambda: len(bench.connections) == 3)
        assert bench.loop.num_connections == 2
    assert [each.num_drops for each in bench.connections] == [1, 0, 0]
    assert silent.recv(100) == b"goaway" and silent.recv(100) == b""


def test_silent_connections_make_room_for_others(clock: Clock) -> None:
    """Over the limit, the connections whose clients have been silent longest are closed; their clients get GOAWAY."""
    bench = Bench(clock, max_connections=200)
    accepted = [bench.accept() for _ in range(200)]
    clock.now += 1
    for client, _ in accepted[4:]:
        client.sendall(b"x")
    bench.poll_until(lambda: all(connection.received for _, connection in accepted[4:]))
    _, newest = bench.accept()
    assert [connection.num_drops for _, connection in accepted] == [1] * 4 + [0] * 196
    assert newest.num_drops == 0 and bench.loop.num_connections == 197
    assert bench.counts.closed == {CloseReason.TOO_MANY: 4}
    assert accepted[0][0].recv(100) == b"goaway" and accepted[0][0].recv(100) == b""
    bench.close()


def test_a_closing_connection_lingers(bench: Bench) -> None:
    """After its last output a connection is shut down; what the client still sends is discarded, and the socket is closed
    when the client closes it, or after ``LINGER_S``.
    """
    (polite, first), (rude, second) = bench.accept(), bench.accept()
    for connection in (first, second):
        connection.close(0, "", CloseReason.FLOOD)
    bench.loop.poll(0)
    assert [polite.recv(100), polite.recv(100)] == [b"goaway", b""]
    assert not bench.loop.has_unanswered()
    polite.close()
    bench.poll_until(lambda: first.num_drops)
    for _ in range(10):
        rude.sendall(bytes(1000))
        bench.loop.poll(0.01)
    assert (second.received, second.num_drops) == ([], 0)
    bench.advance(LINGER_S + 0.01)

    assert second.num_drops == 1
    assert bench.counts.closed == {CloseReason.FLOOD: 2}


def test_a_drain_waits_for_active_connections_only(bench: Bench) -> None:
    """A connection counts as unanswered until it is shut down, or until its client has been silent for some time."""
    client, connection = bench.accept()
    bench.advance(module.SILENCE_S - 1)
    client.sendall(b"window update")
    bench.poll_until(lambda: connection.received)
    bench.advance(module.SILENCE_S - 1)
    assert bench.loop.has_unanswered()
    bench.advance(2)
    assert not bench.loop.has_unanswered()


def test_close_all_ends_in_time(bench: Bench) -> None:
    """After ``LINGER_S`` nothing is left, also of clients that read nothing."""
    pairs = [bench.accept() for _ in range(3)]
    pairs[0][1].send(bytes(16 << 20))
    bench.loop.poll(0)
    bench.loop.close_all()
    assert pairs[1][0].recv(100) == b"goaway"
    bench.advance(LINGER_S + 0.01)

    assert bench.loop.num_connections == 0


def test_the_arrival_of_bytes_is_never_later_than_it_was(bench: Bench) -> None:
    """Bytes that a poll finds without waiting may have arrived any time since the previous poll, those that it waited for
    arrive at its end, and the rest of what one read takes has the time of its first part.
    """
    client, connection = bench.accept()
    bench.loop.poll(0)
    polled = bench.clock.now
    client.sendall(b"early")
    bench.clock.now += 7
    bench.poll_until(lambda: connection.received)
    assert connection.arrived == [polled]
    bench.clock.step = 1.0
    client.sendall(b"waited for")
    bench.poll_until(lambda: len(connection.received) == 2)
    assert polled + 7 < connection.arrived[1] <= bench.clock.now
    bench.clock.step = 0.0
    client.sendall(bytes(2 * READ_BYTES - 1))
    bench.poll_until(lambda: len(b"".join(connection.received[2:])) == 2 * READ_BYTES - 1)


def test_old_connections_drain(clock: Clock) -> None:
    """A connection drains between 90 % and 110 % of the maximal age."""
    bench = Bench(clock, max_age_s=100.0)
    connections = [bench.accept()[1] for _ in range(20)]
    bench.advance(89)
    assert not any(one.num_drains for one in connections)
    bench.advance(22)
    assert all(one.num_drains for one in connections)
    bench.advance(1000)
    assert not any(one.closing for one in connections), "without a grace they may take as long as they need"
    bench.close()
    assert bench.counts.closed == {CloseReason.AGE: 20}


def test_a_failed_handshake_is_counted(clock: Clock, tmp_path: Path) -> None:
    """A client that does not speak TLS to a port with a certificate is closed for that reason."""
    made = make_certificate(tmp_path)
    context = server_context(Settings(tls_certificate=made.certificate, tls_key=made.key))
    bench = Bench(clock, context)
    client, connection = bench.accept()
    client.sendall(b"PRI * HTTP/2.0")
    bench.poll_until(lambda: connection.num_drops)
    bench.close()
    assert bench.counts.closed == {CloseReason.TLS: 1}


def test_calls_of_an_old_connection_end_after_the_grace(clock: Clock) -> None:
    """A connection that drains because of its age, and still has calls after the grace, is closed with them."""
    bench = Bench(clock, max_age_s=100.0, age_grace_s=30.0)
    client, connection = bench.accept()
    bench.advance(111)
    assert connection.num_drains and not connection.closing
    bench.advance(30)
    bench.loop.poll(0)
    assert connection.closing and client.recv(100) == b"goaway"
    assert client.recv(100) == b""
    bench.close()
    assert bench.counts.closed == {CloseReason.AGE: 1}


def test_checks_are_divided(bench: Bench) -> None:
    """With many connections one iteration checks some; the next ones, which do not wait, check the others, each once."""
    connections = [bench.accept()[1] for _ in range(10)]
    for connection in connections:
        connection.num_checks = 0
    bench.clock.now += CHECK_S
    bench.clock.step = MAX_CHECK_S * 0.4
    checked = [0]
    while checked[-1] < len(connections):
        assert not bench.loop.poll(60 if checked[-1] else 0)
        checked.append(sum(connection.num_checks for connection in connections))
    assert max(after - before for before, after in itertools.pairwise(checked)) <= 3
    assert all(connection.num_checks == 1 for connection in connections)


def test_the_largest_connection_is_dropped(clock: Clock) -> None:
    """When all connections together hold too much, those with most are closed, and no more than necessary; none if it is
    enough that all forget what only saves time.
    """
    bench = Bench(clock, max_held_bytes=40)
    connections = [bench.accept()[1] for _ in range(4)]
    for number, connection in enumerate(connections):
        connection.num_held_bytes = 8 + 2 * number
        connection.num_trimmable_bytes = 1
    bench.advance(1)
    assert not any(connection.num_drops for connection in connections)
    for connection in connections:
        connection.num_held_bytes += 1
        connection.num_trimmable_bytes = 0
    bench.advance(1)

    assert [connection.num_drops for connection in connections] == [0, 0, 0, 1]
    assert bench.counts.closed == {CloseReason.MEMORY: 1}
    bench.close()
    assert bench.counts.closed == {CloseReason.MEMORY: 1, CloseReason.DRAIN: 3}


def test_messages_that_wait_for_the_budget_continue(bench: Bench) -> None:
    """A connection with a waiting message is asked at each poll, from its first wait on, also one outside of a read."""
    client, connection = bench.accept()
    connection.on_receive = lambda: connection.waiting.setdefault("message")
    client.sendall(b"x")
    bench.poll_until(lambda: connection.waiting)
    bench.loop.poll(0)
    assert not connection.waiting
    connection.waiting["message"] = None
    bench.advance(1)
    bench.loop.poll(0)
    assert not connection.waiting


def test_stop_listening_accepts_all_that_have_connected(bench: Bench) -> None:
    """Connections that wait in the kernel are accepted before the listening socket is closed; later ones are refused."""
    clients = [bench.connect() for _ in range(3 * MAX_ACCEPTS)]
    bench.loop.stop_listening()

    assert len(bench.connections) == len(clients)
    with pytest.raises(ConnectionRefusedError):
        bench.connect()
    clients[-1].sendall(b"hello")
    bench.poll_until(lambda: b"hello" in [b for one in bench.connections for b in one.received])


def test_streams_of_compressed_messages_take_turns_with_other_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that always has another large message gives way to a call of another connection after each of them."""
    now = [50.0]

    def slow_inflate(body: bytes, num_bytes: int, max_bytes: int) -> bytes:
        now[0] += 0.02
        return b""

    monkeypatch.setattr(shares, "inflate", slow_inflate)
    budget = ReceiveBudget(1 << 24)
    budget.inflate = InflateBudget(lambda: now[0])
    greedy, other = Client(budget=budget), Client(budget=budget)
    greedy.stream.answer = lambda stream, body: stream.read()
    gzipped, body = (b"grpc-encoding", b"gzip"), message(gzip.compress(bytes(1 << 20), 9), 1)
    greedy.send(headers(1, request(STREAM, gzipped)), *[data(1, body)] * 10)
    other.send(headers(1, request(UNARY, gzipped)), data(1, body, ended=True))
    loop = Loop(lambda now, on_output: greedy.connection, WorkerLimits(max_receive_bytes=1 << 20), RecordedCounts())
    starved = loop._peers.starved
    for each in (greedy, other):
        peer = Peer.__new__(Peer)
        peer.open, peer.connection = True, each.connection
        starved[peer] = None
    num_before = len(greedy.stream.events)
    while other.connection.waiting:
        now[0] += 0.01
        loop._continue_starved()
        greedy.send(data(1, body))
    assert len(greedy.stream.events) <= num_before + 1
    loop.close()


def test_a_poll_does_not_wait_once_a_handler_may_have_a_message(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a handler gets before the wait for events is handled at once: after a deferred read, or after it had no room.

    While messages have no room, a poll waits only for a moment, because no event reports room.
    """
    _, connection = bench.accept()
    loop, peer = bench.loop, bench.peers()[0]
    bench.advance(CHECK_S)
    bench.poll_until(lambda: not loop._unchecked)
    epoll = loop._peers.epoll
    waits: list[float] = []

    def poll(timeout_s: float) -> list[tuple[int, int]]:
        waits.append(timeout_s)
        return epoll.poll(0)

    monkeypatch.setattr(loop._peers, "epoll", SimpleNamespace(poll=poll))
    connection.send(b"answer")
    loop.poll(0.1)
    connection.delivers = True
    connection.send(b"answer")
    loop.poll(0.1)
    loop.poll(0.1)
    assert waits == [0.1, 0.0, 0.1]
    waits.clear()
    connection.delivers, connection.has_room = False, False
    connection.waiting["message"] = None
    loop._peers.starved[peer] = None
    loop.poll(0.1)
    loop.poll(0.0)
    connection.has_room = True
    loop.poll(0.1)
    loop.poll(0.1)
    assert waits == [STARVED_POLL_S, 0.0, 0.0, 0.1]
    monkeypatch.undo()


def test_a_client_that_takes_its_output_slowly_does_not_delay_the_end(bench: Bench) -> None:
    """After ``close_all``, progress gives a connection no more time: the worker would not end within its grace period."""
    client, connection = bench.accept()
    connection.send(bytes(1 << 24))
    bench.loop.poll(0)
    bench.loop.close_all()
    peer = bench.peers()[0]
    num_left = len(peer.unsent or b"")
    assert num_left

    def progresses() -> bool:
        client.recv(1 << 20)
        return len(peer.unsent or b"") < num_left

    bench.poll_until(progresses)
    assert peer.open and peer.unsent
    bench.advance(LINGER_S + CHECK_S)
    assert not peer.open

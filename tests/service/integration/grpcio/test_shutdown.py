"""Shutdown of the server on grpcio, polled by the test: which calls are answered, and which end without an answer."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import grpc
import h2.config
import h2.connection
import h2.settings
import pytest

from digitserve.bench import wire
from digitserve.bench.frames import DATA, GOAWAY, HEADERS, MAX_STREAM_ID
from digitserve.bench.http2 import Connection, Event
from digitserve.errors import StartupError
from digitserve.settings import Settings
from digitserve.telemetry.block import Block
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.grpcio.server import GrpcServer
from support.bundles import LABELS
from support.echo_server import ECHO, ECHO_STREAM, Echo, EchoStream
from support.serving import PATIENCE_S, wait_until

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


@pytest.fixture
def calls() -> Echo:
    return Echo()


@pytest.fixture
def streams() -> EchoStream:
    return EchoStream()


@pytest.fixture
def server(calls: Echo, streams: EchoStream) -> Iterator[GrpcServer]:
    block = Block(LABELS)
    yield GrpcServer(Settings(grpc_port=0), Recorder(block, LABELS), {ECHO: calls}, {ECHO_STREAM: streams})
    block.close()


def poll_until(server: GrpcServer, condition: Callable[[], object], what: str) -> None:
    wait_until(lambda: [server.poll(0.0), condition()][1], what)


def stop(server: GrpcServer) -> None:
    """End all RPCs, and the server."""
    server.cancel_all()
    wait_until(lambda: server.poll(0.01) is None, "the server has stopped")
    server.close()


class Client:
    """A client that reads and sends only when the test calls it: a grpcio client would send window updates and PINGs.

    When gRPC core has written the last answer of a connection, it closes the connection. If a frame of the client arrives after
    that, the kernel resets the connection and discards answers that it has not transmitted yet.
    """

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._connection = Connection(wire.request_headers(ECHO.path, "test", "test", None), wire.read_status)
        self._events: list[Event] = []

    def call(self, num_calls: int) -> None:
        """Start calls that the server does not answer until the test does."""
        while not self._connection.ready:
            self._exchange()
        for _ in range(num_calls):
            self._connection.open(wire.add_prefix(b"wait"), end_stream=True)
        self._socket.sendall(self._connection.take_output())

    def await_goaway(self) -> None:
        """Acknowledge what the server sends, until it has sent the GOAWAY that names the last stream."""
        while not any(kind == GOAWAY and last < MAX_STREAM_ID for kind, last, _, _ in self._events):
            self._exchange()

    def answers(self) -> list[bytes]:
        """Read until the server closes the connection; return the messages of the calls that ended with OK."""
        while received := self._socket.recv(1 << 16):
            self._events += self._connection.receive(received)
        bodies = {stream_id: value for kind, stream_id, value, _ in self._events if kind == DATA}
        ended = [(stream_id, value) for kind, stream_id, value, ended in self._events if kind == HEADERS and ended]
        return [bodies[stream_id][wire.PREFIX_BYTES :] for stream_id, status in ended if status == wire.OK]

    def _exchange(self) -> None:
        self._socket.sendall(self._connection.take_output())
        self._events += self._connection.receive(self._socket.recv(1 << 16))


@pytest.mark.parametrize("cancelled", [False, True])
def test_calls_that_handlers_know_are_answered_after_the_shutdown_began(
    server: GrpcServer, calls: Echo, cancelled: bool
) -> None:
    """Calls that were accepted before the shutdown are answered after it, on all connections; until their statuses are sent,
    the server reports unanswered calls. Then it stops by itself, and ``cancel_all`` ends no call any more.
    """
    address = "127.0.0.1", server.listen()
    with ExitStack() as stack:
        clients = [Client(stack.enter_context(socket.create_connection(address, timeout=PATIENCE_S))) for _ in range(4)]
        for client in clients:
            client.call(25)
        poll_until(server, lambda: len(calls.waiting) == 100, "all have arrived")
        server.begin_shutdown()
        server.poll(0.05)
        for client in clients:
            client.await_goaway()
        assert server.has_unanswered()
        for number, call in enumerate(calls.waiting):
            call.reply(b"%d" % number)
        poll_until(server, lambda: not server.has_unanswered(), "all answers are sent")
        if cancelled:
            server.cancel_all()

        assert sorted(int(answer) for client in clients for answer in client.answers()) == list(range(100))
    wait_until(lambda: server.poll(0.01) is None, "the server has stopped")
    stop(server)
    assert calls.ends["closed"] == 0


def test_open_rpcs_end_when_all_are_cancelled(server: GrpcServer, calls: Echo, streams: EchoStream) -> None:
    """``cancel_all`` ends calls without an answer and idle streams; this is reported to their handlers."""
    gate = threading.Event()

    def silent() -> Iterator[bytes]:
        gate.wait(PATIENCE_S)
        yield from ()

    with grpc.insecure_channel(f"127.0.0.1:{server.listen()}", options=OWN_CONNECTION) as channel:
        waiting = channel.unary_unary(ECHO.path).future(b"wait")
        answers = channel.stream_stream(ECHO_STREAM.path)(iter([b"first"]))
        poll_until(server, lambda: calls.waiting and streams.ends["finished"], "both have arrived")
        assert list(answers) == [b"first"]
        open_stream = channel.stream_stream(ECHO_STREAM.path)(silent())
        poll_until(server, lambda: streams.ends["accepted"] == 2, "the stream is open")
        server.begin_shutdown()
        stop(server)

        assert waiting.exception().code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert open_stream.exception().code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        gate.set()
    assert (calls.ends["closed"], streams.ends["cancelled"]) == (1, 1)


def test_a_client_that_takes_no_answers_delays_nobody(server: GrpcServer, calls: Echo) -> None:
    """A client without a receive window leaves its answers unsent; other clients are answered, and ``cancel_all`` ends it."""
    port = server.listen()
    peer = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    no_window = {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0}
    peer.local_settings = h2.settings.Settings(client=True, initial_values=no_window)
    peer.initiate_connection()
    for stream_id in range(1, 101, 2):
        peer.send_headers(stream_id, [
            (":method", "POST"), (":scheme", "http"), (":path", ECHO.path), (":authority", "test"),
            ("te", "trailers"), ("content-type", "application/grpc"),
        ])  # fmt: skip
        peer.send_data(stream_id, b"\0\0\0\0\1x", end_stream=True)
    with (
        socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as client,
        grpc.insecure_channel(f"127.0.0.1:{port}", options=OWN_CONNECTION) as channel,
    ):
        client.sendall(peer.data_to_send())
        poll_until(server, lambda: calls.ends["answered"] == 50, "its calls are answered")
        future = channel.unary_unary(ECHO.path).future(b"other", timeout=PATIENCE_S)
        poll_until(server, future.done, "another client is answered")
        assert future.result() == b"other"
        server.begin_shutdown()
        server.poll(0.05)
        assert server.has_unanswered()
        stop(server)


def test_an_address_that_is_in_use_is_reported(server: GrpcServer) -> None:
    """``listen`` raises ``StartupError`` with the address, and leaves nothing that has to be closed."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        block = Block(LABELS)
        refused = GrpcServer(Settings(grpc_port=port), Recorder(block, LABELS), {}, {})
        with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{port}"):
            refused.listen()
        block.close()

"""The native transport with clients that break off, do not read, or send nothing; and with drains under load."""

import random
import resource
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from hpack import Encoder

from support.echo_server import ECHO, EchoServer, run_echo_server
from support.serving import PATIENCE_S, wait_until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
NUM_CONNECTIONS = 500


@pytest.fixture
def server() -> Iterator[EchoServer]:
    with run_echo_server() as running:
        yield running


def frame(kind: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream_id) + payload


def call(encoder: Encoder, stream_id: int, body: bytes) -> bytes:
    """Return the frames of a call."""
    block = encoder.encode(
        [
            (":method", "POST"), (":scheme", "http"), (":path", ECHO.path), (":authority", "test"),
            ("te", "trailers"), ("content-type", "application/grpc"), ("number", str(stream_id)),
        ]
    )  # fmt: skip
    data = b"\0" + struct.pack(">I", len(body)) + body
    return frame(1, 4, stream_id, block) + frame(0, 1, stream_id, data)


def calls(num_calls: int, body: bytes) -> bytes:
    """Return all that a client sends for several calls, from its preface on."""
    encoder = Encoder()
    return PREFACE + b"".join(call(encoder, 2 * number + 1, body) for number in range(num_calls))


def connect(server: EchoServer) -> socket.socket:
    host, port = server.address.split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def reset(client: socket.socket) -> None:
    """Close a connection by RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def assert_serves(server: EchoServer) -> None:
    with grpc.insecure_channel(server.address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
        echo = channel.unary_unary(ECHO.path)
        assert [echo(b"%d" % number, timeout=PATIENCE_S) for number in range(20)] == [b"%d" % n for n in range(20)]


@contextmanager
def more_descriptors() -> Iterator[None]:
    """Raise the limit of open files, which two ends of many connections need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 3 * NUM_CONNECTIONS
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, the limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_many_connections_that_do_nothing(server: EchoServer) -> None:
    """Beside 500 connections that send nothing, half a preface, or half a frame, callers are answered; when all of them
    are reset at once, no connection is left.
    """
    starts = [b"", PREFACE[:10], PREFACE[:24], PREFACE, PREFACE + bytes([0, 0, 9])]
    with more_descriptors():
        clients = [connect(server) for _ in range(NUM_CONNECTIONS)]
        for number, client in enumerate(clients):
            client.sendall(starts[number % len(starts)])
        wait_until(lambda: server.server._loop.num_connections == NUM_CONNECTIONS, "all are accepted")
        assert_serves(server)
        for client in clients:
            reset(client)
        wait_until(lambda: server.server._loop.num_connections == 0, "all are closed")
    assert_serves(server)


def test_resets_at_random_points(server: EchoServer) -> None:
    """Connections that are reset or closed after any number of bytes, with answers unread, disturb nobody; every call that
    was accepted is answered or closed.
    """
    script = calls(20, b"x" * 500)
    chance = random.Random(7)
    for _ in range(500):
        client = connect(server)
        client.sendall(script[: chance.randrange(len(script) + 1)])
        if chance.random() < 0.7:
            reset(client)
        else:
            client.close()
    wait_until(lambda: server.server._loop.num_connections == 0, "all are closed")

    ends = server.calls.ends
    # The last connection is not counted any more before its calls are closed.
    wait_until(lambda: ends["accepted"] == ends["answered"] + ends["closed"], "every call has ended")
    assert ends["accepted"] > 1000
    assert_serves(server)


def test_clients_that_read_nothing_or_one_byte(server: EchoServer) -> None:
    """Clients that call and do not read their answers hold a bounded amount of output in sockets, and delay nobody."""
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(server)) for _ in range(20)]
        # A window of 65 535 bytes, which these clients never give back.
        for client in clients:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.sendall(calls(100, b"size 10000"))
        wait_until(lambda: server.calls.ends["answered"] == 20 * 100, "all calls reached the handler")
        assert_serves(server)
        assert len(clients[0].recv(1)) == 1
        assert_serves(server)


def test_a_client_that_never_reads_does_not_hold_a_drain() -> None:
    """The server stops after its grace, although a client has not read its answers and another one sends nothing."""
    with run_echo_server(grace_s=0.2) as server, connect(server) as silent, connect(server) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.sendall(PREFACE + frame(8, 0, 0, struct.pack(">I", 1 << 30)) + calls(50, b"size 60000")[len(PREFACE) :])
        wait_until(lambda: server.calls.ends["answered"] == 50, "the calls are answered")
        server.stop.set()
        assert server.stopped.wait(PATIENCE_S)
        assert silent.recv(1)


def test_no_call_is_lost_when_servers_replace_each_other() -> None:
    """Ten servers on one port end under load, each after the next one listens. Callers without a retry policy lose nothing."""
    outcomes: Counter[str] = Counter()
    stop = threading.Event()

    def send_calls(address: str, depth: int) -> None:
        with grpc.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),)) as channel:
            echo = channel.unary_unary(ECHO.path)
            while not stop.is_set():
                futures = [echo.future(b"body", timeout=PATIENCE_S) for _ in range(depth)]
                errors = [future.exception() for future in futures]
                outcomes.update("OK" if error is None else f"{error.code()} {error.details()}" for error in errors)

    with ExitStack() as stack:
        server = stack.enter_context(run_echo_server(grace_s=PATIENCE_S))
        threads = [threading.Thread(target=send_calls, args=(server.address, depth)) for depth in (1, 8, 64)]
        for thread in threads:
            thread.start()
        for _ in range(10):
            before = outcomes["OK"]
            wait_until(lambda before=before: outcomes["OK"] > before + 100, "calls are answered")
            port = int(server.address.rpartition(":")[2])
            following = stack.enter_context(run_echo_server(grace_s=PATIENCE_S, grpc_port=port))
            server.stop.set()
            assert server.stopped.wait(PATIENCE_S)
            server = following
        stop.set()
        for thread in threads:
            thread.join(PATIENCE_S)

    assert set(outcomes) == {"OK"}

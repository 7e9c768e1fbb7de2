"""Connections that reach their maximal age under load: what callers see, with and without a retry policy."""

import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from digitserve.client import CHANNEL_OPTIONS, Client
from digitserve.protocol.names import CLASSIFY
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, RunningWorker, run_worker, sockets, wait_until

AGE_S = 0.1
DEPTH = 32
"""Calls in flight on a connection: the more there are when it closes, the more could be lost."""

BODIES = [pb.ClassifyRequest(pixels=echo_image(number).tobytes()).SerializeToString() for number in range(DEPTH)]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_echo_bundle(tmp_path)
    return tmp_path


def outcome(future: grpc.Future, number: int) -> str:
    """Wait for a call and return how it ended."""
    try:
        (prediction,) = pb.ClassifyResponse.FromString(future.result()).predictions
    except grpc.RpcError as error:
        return error.code().name
    return "OK" if prediction.ood_score == number else "WRONG"


@contextmanager
def load(worker: RunningWorker, num_connections: int, options: tuple[tuple[str, str | int], ...]) -> Iterator[Counter]:
    """Keep ``DEPTH`` calls in flight on each of several connections; count how they end."""
    outcomes: Counter[str] = Counter()
    stop = threading.Event()

    def send_calls() -> None:
        with grpc.insecure_channel(
            worker.address, options=(("grpc.use_local_subchannel_pool", 1), *options)
        ) as channel:
            call = channel.unary_unary(CLASSIFY.path)
            while not stop.is_set():
                futures = [call.future(body, timeout=PATIENCE_S) for body in BODIES]
                outcomes.update([outcome(future, number) for number, future in enumerate(futures)])

    threads = [threading.Thread(target=send_calls) for _ in range(num_connections)]
    with ExitStack() as stack:
        for thread in threads:
            stack.callback(thread.join)
            thread.start()
        stack.callback(stop.set)
        yield outcomes


def connections(address: str) -> set[str]:
    """Return the clients' ends of the connections that are open or closing."""
    return {one.client for one in sockets(address)}


def wait_for_connections(worker: RunningWorker, number: int) -> None:
    """Wait until so many connections to a worker have been seen, open or closed."""
    seen: set[str] = set()
    wait_until(lambda: len(seen.update(connections(worker.address)) or seen) >= number, f"{number} connections")


def test_callers_with_a_retry_policy_lose_nothing(models: Path, transport: str) -> None:
    """While connections close at their age repeatedly under load, every call gets its own answer."""
    with run_worker(models, transport=transport, max_connection_age_s=AGE_S) as worker:
        with load(worker, 4, CHANNEL_OPTIONS) as outcomes:
            wait_for_connections(worker, 40)

        assert set(outcomes) == {"OK"}
        assert worker.handled()["OK"] >= outcomes["OK"]


def test_callers_without_a_retry_policy_lose_almost_nothing(models: Path, record_property, transport: str) -> None:  # noqa: ANN001
    """Without a retry policy a call may end as UNAVAILABLE when core closes its connection while the client still sends; the
    native transport loses none. No call gets the answer of another, and every call that the worker started is recorded as
    answered.
    """
    with run_worker(models, transport=transport, max_connection_age_s=AGE_S) as worker:
        with load(worker, 4, ()) as outcomes:
            wait_for_connections(worker, 40)

        record_property("outcomes", dict(outcomes))
        assert set(outcomes) <= ({"OK", "UNAVAILABLE"} if transport == "grpcio" else {"OK"})
        assert outcomes["OK"] > 10 * outcomes["UNAVAILABLE"]
        assert set(worker.handled()) == {"OK"}
        assert worker.started() == worker.handled()["OK"] <= outcomes.total()


def test_the_client_continues_on_new_connections(models: Path, transport: str) -> None:
    """``Client`` gets all its answers in order while its connections are replaced."""
    with (
        run_worker(models, transport=transport, max_connection_age_s=AGE_S) as worker,
        Client(worker.address, num_connections=4) as client,
    ):
        seen: set[str] = set()
        while len(seen) < 20:
            answers = client.classify([echo_image(number) for number in range(300)])
            assert [prediction.ood_score for prediction in answers] == list(range(300))
            seen.update(connections(worker.address))


def test_an_open_stream_is_not_cut_by_age(models: Path, transport: str) -> None:
    """A stream that is open when its connection reaches its age continues: it receives messages many ages later."""
    with run_worker(models, transport=transport, max_connection_age_s=AGE_S) as worker:
        watch = health_pb2_grpc.HealthStub(worker.channel).Watch(health_pb2.HealthCheckRequest())
        statuses = [next(watch).status]
        with load(worker, 1, CHANNEL_OPTIONS):
            wait_for_connections(worker, 10)
        worker.worker.drain()
        statuses.append(next(watch).status)

    assert statuses == [health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING]


def test_an_open_stream_ends_with_the_grace(models: Path, transport: str) -> None:
    """Calls that are still open after age and grace end as UNAVAILABLE; new calls use another connection."""
    with run_worker(
        models, transport=transport, max_connection_age_s=AGE_S, max_connection_age_grace_s=5 * AGE_S
    ) as worker:
        watch = health_pb2_grpc.HealthStub(worker.channel).Watch(health_pb2.HealthCheckRequest())
        next(watch)
        with pytest.raises(grpc.RpcError) as ended:
            next(watch)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
        worker.classify(pb.ClassifyRequest(pixels=echo_image(1).tobytes()))
        assert worker.handled("Watch") == {"Canceled": 1}


def frames(connection: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Open an HTTP/2 connection and yield type and payload of each frame of the server, until it closes."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
    with connection.makefile("rb") as stream:
        while head := stream.read(9):
            (length,) = struct.unpack(">I", b"\0" + head[:3])
            yield head[3], stream.read(length)


def test_an_idle_connection_gets_a_graceful_goaway(models: Path, transport: str) -> None:
    """At its age a connection gets a GOAWAY with error code 0 and the highest stream id: no stream is rejected by it."""
    goaway = 7
    with run_worker(models, transport=transport, max_connection_age_s=AGE_S) as worker:
        host, port = worker.address.split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            payload = next(payload for kind, payload in frames(connection) if kind == goaway)

    assert payload[:8] == struct.pack(">II", (1 << 31) - 1, 0)


def test_a_connection_without_calls_gets_a_goaway(models: Path, transport: str) -> None:
    """A connection without a call for the idle limit gets a GOAWAY. That of the native transport has the highest stream id, so
    it loses no call.
    """
    goaway = 7
    with run_worker(models, transport=transport, max_connection_age_s=0, max_connection_idle_s=AGE_S) as worker:
        host, port = worker.address.split(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            payload = next(payload for kind, payload in frames(connection) if kind == goaway)

    assert transport == "grpcio" or payload[:8] == struct.pack(">II", (1 << 31) - 1, 0)


def test_age_0_means_unlimited(models: Path, transport: str) -> None:
    """With age 0 the first connections stay open, while those of a worker with an age are replaced."""
    with (
        run_worker(models, transport=transport, max_connection_age_s=0) as lasting,
        run_worker(models, transport=transport, max_connection_age_s=AGE_S) as ageing,
    ):
        first = lasting.classify(pb.ClassifyRequest(pixels=echo_image(1).tobytes()))
        before = connections(lasting.address)
        with load(ageing, 2, CHANNEL_OPTIONS):
            wait_for_connections(ageing, 20)
        assert lasting.classify(pb.ClassifyRequest(pixels=echo_image(1).tobytes())).predictions == first.predictions
        assert connections(lasting.address) == before != set()

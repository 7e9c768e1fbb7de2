"""After any mix of calls, each RPC that is counted as started is counted as handled once, for each method."""

import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from hpack import Encoder

from digitserve.protocol.names import (
    CLASSIFY,
    CLASSIFY_STREAM,
    GET_MODEL,
    HEALTH_CHECK,
    HEALTH_WATCH,
    MODEL_INFER,
    MODEL_READY,
    REFLECTION_V1,
)  # fmt: skip
from digitserve.telemetry.block import METHODS, RefusalReason
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until

NUM_CALLS = 1000
BODY = pb.ClassifyRequest(pixels=echo_image(1).tobytes()).SerializeToString()
MESSAGE = pb.ClassifyStreamRequest(request=pb.ClassifyRequest.FromString(BODY)).SerializeToString()
MAX_REQUEST_BYTES = 100_000
BODIES = [BODY, b"", b"\xff", bytes(MAX_REQUEST_BYTES + 1)]
TIMEOUTS_S = [PATIENCE_S, PATIENCE_S, 0.001, 0.05]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FIELDS = [
    (":method", "POST"), (":scheme", "http"), (":path", CLASSIFY.path), (":authority", "x"), ("te", "trailers"),
    ("content-type", "application/grpc"),
]  # fmt: skip


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 255, kind, flags, stream_id) + payload


def hand_made(fields: list[tuple[str, str]], body: bytes, *, flags: int = 1) -> bytes:
    """Return the bytes of a connection with one request."""
    request = frame(1, 4, 1, Encoder().encode(fields)) + frame(0, flags, 1, body)
    return PREFACE + frame(4, 0, 0) + request


HAND_MADE = {
    "a timeout that cannot be read": hand_made([*FIELDS, ("grpc-timeout", "soon")], b""),
    "GET": hand_made([(":method", "GET"), *FIELDS[1:]], b""),
    "malformed": hand_made([*FIELDS, ("Upper", "case")], b""),
    "not gRPC": hand_made([*FIELDS[:5], ("content-type", "text/html")], b""),
    "large fields": hand_made([*FIELDS, ("name", "a" * 17_000)], b""),
    "no message": hand_made(FIELDS, b""),
    "two messages": hand_made(FIELDS, (b"\0" + struct.pack(">I", len(BODY)) + BODY) * 2),
    "an unknown encoding": hand_made([*FIELDS, ("grpc-encoding", "zip")], b""),
    "a message without its end": hand_made(FIELDS, b"\0\0\0\1\0" + bytes(9), flags=0),
    "HTTP/1.1": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.fixture
def worker(tmp_path: Path, transport: str) -> Iterator[RunningWorker]:
    write_echo_bundle(tmp_path)
    changes = {"max_request_bytes": MAX_REQUEST_BYTES, "max_pending_images": 40, "max_concurrent_streams": 50}
    with run_worker(tmp_path, transport=transport, **changes) as worker:
        yield worker


def make_call(channel: grpc.Channel, chance: random.Random) -> None:
    """Start a call of any method, which may be cancelled, expire, or be invalid."""
    timeout = chance.choice(TIMEOUTS_S)
    paths = [CLASSIFY.path] * 3 + [MODEL_INFER.path] * 2
    paths += [GET_MODEL.path, HEALTH_CHECK.path, MODEL_READY.path, "/no.Service/Method"]
    match chance.choice(["unary", "unary", "unary", "stream", "watch", "reflection"]):
        case "unary":
            future = channel.unary_unary(chance.choice(paths)).future(chance.choice(BODIES), timeout=timeout)
        case "stream":
            messages = [chance.choice([MESSAGE, MESSAGE, b"\xff"]) for _ in range(chance.randrange(4))]
            future = channel.stream_stream(CLASSIFY_STREAM.path)(iter(messages), timeout=timeout)
        case "watch":
            future = channel.unary_stream(HEALTH_WATCH.path)(b"", timeout=min(timeout, 0.3))
        case "reflection":
            future = channel.stream_stream(REFLECTION_V1.path)(iter([chance.choice(BODIES)]), timeout=timeout)
    if chance.random() < 0.3:
        future.cancel()


def send_by_hand(address: str, sent: bytes, *, abort: bool) -> None:
    """Send bytes on a connection, and close it when the server answers, or at once."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(sent)
        if abort:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            connection.recv(1 << 16)


def let_expire(address: str) -> None:
    """Start a call whose deadline passes before its message, and wait for its status: this client does not end it itself."""
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
        connection.sendall(hand_made([*FIELDS, ("grpc-timeout", "1m")], b"", flags=0))
        received = connection.makefile("rb")
        while header := received.read(9):
            received.read(int.from_bytes(header[:3], "big"))
            if header[3] in {1, 3} and header[8] == 1:  # HEADERS or RST_STREAM of the call
                return
        raise AssertionError("the connection ended without a status of the call")


def disagreeing(worker: RunningWorker) -> dict[str, tuple[int, int]]:
    """Return the methods whose RPCs started and handled differ, with both numbers."""
    started = worker.series("grpc_server_started")
    handled = worker.series("grpc_server_handled")
    counts = {
        method.path: (int(started[method]), int(sum(n for labels, n in handled.items() if labels[:3] == method)))
        for method in METHODS
    }
    return {path: pair for path, pair in counts.items() if pair[0] != pair[1]}


def test_started_and_handled_agree_after_any_mix_of_calls(worker: RunningWorker, transport: str) -> None:
    """Answered, invalid, rejected, expired and cancelled calls, broken connections, and requests that are not gRPC calls."""
    chance = random.Random(11)
    channels = [
        grpc.insecure_channel(worker.address, (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)))
        for _ in range(4)
    ]
    for number in range(NUM_CALLS):
        make_call(chance.choice(channels), chance)
        if number % 10 == 0:
            send_by_hand(worker.address, chance.choice([*HAND_MADE.values()]), abort=chance.random() < 0.5)
    for sent in HAND_MADE.values():
        send_by_hand(worker.address, sent, abort=False)
    let_expire(worker.address)
    for channel in channels[:2]:
        channel.close()
    worker.wait_until_idle()
    wait_until(lambda: not disagreeing(worker), "started equals handled")
    for channel in channels[2:]:
        channel.close()

    codes = {labels[3] for labels, count in worker.series("grpc_server_handled").items() if count}
    assert codes >= {"OK", "InvalidArgument", "ResourceExhausted", "Canceled", "DeadlineExceeded", "Unimplemented"}
    assert all(worker.started(name) for name in ("GetModel", "ClassifyStream", "Check", "Watch", "other"))
    if transport == "native":
        refused = {reason for (reason,), count in worker.series("digitserve_streams_refused").items() if count}
        assert refused >= {
            RefusalReason.BAD_TIMEOUT, RefusalReason.NOT_GRPC, RefusalReason.MALFORMED, RefusalReason.HEADERS_TOO_LARGE
        }  # fmt: skip
        wait_until(lambda: not worker.series("digitserve_connections")[()], "every connection is closed")
        accepted = worker.series("digitserve_connections_accepted")[()]
        assert accepted == sum(worker.series("digitserve_connections_closed").values()) > len(channels)

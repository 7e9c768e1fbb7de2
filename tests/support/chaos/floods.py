"""Floods of the chaos run: a process that sends as much as it can, until SIGTERM, and prints the number of its frames.

python -m support.chaos.floods --port 50051 --kind resets --seed 1
"""

import argparse
import contextlib
import random
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from digitserve.protocol.names import CLASSIFY, CLASSIFY_STREAM, GET_MODEL, READ, READ_STREAM
from digitserve.v1 import digits_pb2 as pb
from support import http2_peer as h2

NUM_THREADS = 3
NUM_HELD = 150
"""Connections that a flood of held connections keeps open."""

BURST = 100
MAX_BYTES = 16_000
RECONNECT_S = 0.01
OPENING = h2.PREFACE + h2.settings(s4=1 << 20) + h2.window_update(0, 1 << 30)
BLOCK = h2.block(h2.request(CLASSIFY.path.encode()))
ONE = pb.ClassifyRequest(pixels=bytes(784)).SerializeToString()


def resets(rng: random.Random) -> Iterator[bytes]:
    """Open calls and reset each at once (CVE-2023-44487)."""
    for start in range(1, 1 << 20, 2 * BURST):
        yield b"".join(
            h2.raw(h2.HEADERS, h2.END_HEADERS, i, BLOCK) + h2.reset(i) for i in range(start, start + 2 * BURST, 2)
        )


def control_frames(rng: random.Random) -> Iterator[bytes]:
    """Send PING, SETTINGS, empty DATA and CONTINUATION frames."""
    frames = [
        h2.raw(h2.PING, 0, 0, bytes(8)),
        h2.settings(),
        h2.raw(h2.PRIORITY, 0, 1, bytes(5)),
    ]
    if rng.random() < 0.3:
        yield h2.raw(h2.HEADERS, 0, 1, bytes(10))
        frames = [h2.raw(h2.CONTINUATION, 0, 1, bytes(10))]
    while True:
        yield rng.choice(frames) * BURST


def calls(rng: random.Random) -> Iterator[bytes]:
    """Open calls faster than they are answered, with deadlines of 250 ms."""
    block = h2.block(h2.request(CLASSIFY.path.encode(), (b"grpc-timeout", b"250m")))
    message = h2.message(ONE)
    for start in range(1, 1 << 20, 2 * BURST):
        yield b"".join(
            h2.raw(h2.HEADERS, h2.END_HEADERS, i, block) + h2.raw(h2.DATA, h2.END_STREAM, i, message)
            for i in range(start, start + 2 * BURST, 2)
        )


KINDS: dict[str, Callable[[random.Random], Iterator[bytes]]] = {
    "resets": resets, "control": control_frames, "calls": calls,
}  # fmt: skip


def held(rng: random.Random) -> bytes:
    """Return what a connection sends that is then left open."""
    path = rng.choice([CLASSIFY, CLASSIFY_STREAM, READ, READ_STREAM, GET_MODEL]).path.encode()
    opening, body = h2.PREFACE + h2.settings(s4=rng.choice([0, 1 << 20])), struct.pack(">BI", 0, 65_000) + bytes(64_000)
    return rng.choice(
        [
            b"",
            h2.PREFACE[:10],
            h2.PREFACE,
            opening + h2.raw(h2.HEADERS, 0, 1, bytes(MAX_BYTES)) + h2.raw(h2.CONTINUATION, 0, 1, bytes(MAX_BYTES))[:-1],
            opening + b"".join(h2.headers(i, h2.request(path)) for i in range(1, 100, 2)),
            opening + b"".join(h2.headers(i, h2.request(path)) + h2.data(i, body) for i in range(1, 21, 2)),
            opening + b"".join(h2.call(i, b"", path) for i in range(1, 200, 2)),
        ]
    )


def num_frames(octets: bytes) -> int:
    """Return the number of frames in what a client sends after the preface."""
    count = position = 0
    while position + 9 <= len(octets):
        position += 9 + int.from_bytes(octets[position : position + 3], "big")
        count += 1
    return count


def flood(port: int, kind: str, rng: random.Random, stopping: threading.Event) -> int:
    """Open one connection after another, and send on each until the service closes it; return the number of frames."""
    count = 0
    while not stopping.is_set():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(OPENING)
            for octets in KINDS[kind](rng):
                connection.sendall(octets)
                count += num_frames(octets)
                while select.select([connection], [], [], 0)[0]:
                    if not connection.recv(1 << 16):
                        raise ConnectionResetError
                if stopping.is_set():
                    return count
        stopping.wait(RECONNECT_S)
    return count


def hold(port: int, rng: random.Random, stopping: threading.Event) -> int:
    """Keep connections open that send a part of something, or do not read their answers; return the number of frames."""
    count = 0
    with contextlib.ExitStack() as open_ones:
        for _ in range(NUM_HELD):
            with contextlib.suppress(OSError):
                connection = open_ones.enter_context(socket.create_connection(("127.0.0.1", port), timeout=1))
                octets = held(rng)
                connection.sendall(octets)
                count += num_frames(octets.removeprefix(h2.PREFACE))
            if stopping.is_set():
                break
        stopping.wait()
    return count


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--kind", choices=[*KINDS, "held"], required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    seeds = [random.Random(f"{options.seed} {number}") for number in range(NUM_THREADS)]
    run = hold if options.kind == "held" else partial(flood, kind=options.kind)
    with ThreadPoolExecutor(NUM_THREADS) as threads:
        sent = [threads.submit(run, options.port, rng=rng, stopping=stopping) for rng in seeds]
    print(sum(one.result() for one in sent))


if __name__ == "__main__":
    main()

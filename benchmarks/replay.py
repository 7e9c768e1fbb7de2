"""Load of prepared requests at a few microseconds of CPU each: header blocks of a client style, single images, one thread.

    python -m benchmarks.replay --port 50051 --style grpc-go --connections 64 --in-flight 4 --seconds 3

``digitserve bench`` costs more than an empty RPC on the server, and all its requests of a connection have equal headers. This
load generator only counts answers. It decodes no header fields and no messages: ``runs`` compares its count with the
server's own counter of answers with OK. It prints the JSON that ``load`` reads.
"""

import argparse
import gc
import json
import select
import socket
import sys
import time
from itertools import cycle

import numpy as np

from benchmarks.client_styles import STYLES, header_blocks
from benchmarks.load import warm_up_s
from digitserve.bench import frames
from digitserve.bench.frames import ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS
from digitserve.bench.plan import PATHS, STREAM, Plan
from digitserve.bench.traffic import requests
from digitserve.bench.wire import PREFIX_BYTES

RECEIVE_BYTES = 1 << 16
NUM_REQUESTS = 256
"""Different request messages of the load."""

SATURATED = 0.97
"""Share of the time on the CPU above which this process, not the server, may limit the rate."""


class Replay:
    """One connection: keeps a number of requests in flight, and counts its answers.

    The windows of the server are not tracked. At most a few kilobytes are in flight, and every server gives windows back
    long before so little is left of them.

    Attributes:
        num_sent: requests.
        num_answered: answers.
        latencies_s: of a sample of the requests: one at a time.
    """

    def __init__(self, port: int, blocks: list[bytes], bodies: list[bytes], *, streams: bool) -> None:
        """Connect."""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.num_sent = self.num_answered = 0
        self.latencies_s: list[float] = []
        self._probe = 0
        self._probe_s = 0.0
        self._stream_id = -1
        self._streams = streams
        self._blocks, self._bodies = cycle(blocks), cycle(bodies)
        self._unparsed = b""
        window = frames.MAX_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES
        settings = b"".join(
            frames.SETTING.pack(setting, value)
            for setting, value in {
                frames.HEADER_TABLE_SIZE: 0, frames.ENABLE_PUSH: 0, frames.INITIAL_WINDOW_SIZE: frames.MAX_WINDOW_BYTES,
            }.items()
        )  # fmt: skip
        self.socket.sendall(
            frames.PREFACE
            + frames.frame(SETTINGS, 0, 0, settings)
            + frames.frame(frames.WINDOW_UPDATE, 0, 0, frames.U32.pack(window))
            + self._open_stream()
        )

    def send(self, count: int, now_s: float) -> None:
        """Send requests."""
        if self._probe <= self.num_answered:
            self._probe, self._probe_s = self.num_sent + 1, now_s
        self.num_sent += count
        header, bodies = frames.frame_header, self._bodies
        parts = []
        for _ in range(count):
            body = next(bodies)
            if self._streams:
                parts += (header(len(body), DATA, 0, self._stream_id), body)
                continue
            block = next(self._blocks)
            self._stream_id = stream_id = self._stream_id + 2
            parts += (
                header(len(block), HEADERS, END_HEADERS, stream_id), block,
                header(len(body), DATA, END_STREAM, stream_id), body,
            )  # fmt: skip
        self.socket.sendall(b"".join(parts))

    def receive(self, now_s: float) -> int:
        """Read from the socket; return how many answers were in it.

        Raises:
            ConnectionError: the server has ended the connection or a stream.
        """
        received = self.socket.recv(RECEIVE_BYTES)
        if not received:
            raise ConnectionError("the server closed the connection")
        received = self._unparsed + received
        position, available, answered = 0, len(received), 0
        unpack = frames.FRAME_HEADER.unpack_from
        while available - position >= frames.FRAME_HEADER_BYTES:
            high, low, kind, flags, _ = unpack(received, position)
            start = position + frames.FRAME_HEADER_BYTES
            end = start + (high << 16 | low)
            if end > available:
                break
            position = end
            if kind == HEADERS:
                answered += flags & END_STREAM
                if flags & END_STREAM and self._streams:
                    raise ConnectionError("the server ended the stream")
            elif kind == DATA:
                if self._streams:
                    answered += _num_messages(received[start:end])
            else:
                self._on_control(kind, flags, received[start:end])
        self._unparsed = received[position:]
        if self.num_answered < self._probe <= self.num_answered + answered:
            self.latencies_s.append(now_s - self._probe_s)
        self.num_answered += answered
        return answered

    def _on_control(self, kind: int, flags: int, payload: bytes) -> None:
        if kind in {RST_STREAM, GOAWAY}:
            raise ConnectionError(f"the server sent a frame of type {kind}: {payload!r}")
        if kind in {SETTINGS, PING} and not flags & ACK:
            self.socket.sendall(frames.frame(kind, ACK, 0, payload if kind == PING else b""))

    def _open_stream(self) -> bytes:
        if not self._streams:
            return b""
        self._stream_id = 1
        block = next(self._blocks)
        return frames.frame(HEADERS, END_HEADERS, 1, block)


def _num_messages(payload: bytes) -> int:
    """Return the number of messages in a DATA frame; servers start one for each message or for several whole ones."""
    position = count = 0
    while position < len(payload):
        position += PREFIX_BYTES + frames.read_u32(payload[position + 1 : position + PREFIX_BYTES])
        count += 1
    if position != len(payload):
        raise ConnectionError(
            "the server divided a message into several frames, which this load generator cannot count"
        )
    return count


def run(connections: list[Replay], in_flight: int, seconds: float) -> dict[str, object]:
    """Load the server for the warm-up and ``seconds``; return the report."""
    epoll = select.epoll()
    by_descriptor = {connection.socket.fileno(): connection for connection in connections}
    for descriptor in by_descriptor:
        epoll.register(descriptor, select.EPOLLIN)
    gc.collect()
    gc.freeze()
    start_s = time.monotonic()
    for connection in connections:
        connection.send(in_flight, start_s)
    _exchange(epoll, by_descriptor, start_s + warm_up_s(seconds))
    for connection in connections:
        connection.latencies_s.clear()
    start_s, cpu_s = time.monotonic(), time.process_time()
    measured = _exchange(epoll, by_descriptor, start_s + seconds)
    elapsed_s, cpu_s = time.monotonic() - start_s, time.process_time() - cpu_s
    unanswered = {descriptor for descriptor, each in by_descriptor.items() if each.num_answered < each.num_sent}
    while unanswered:
        for descriptor, _ in epoll.poll():
            connection = by_descriptor[descriptor]
            connection.receive(time.monotonic())
            if connection.num_answered == connection.num_sent:
                unanswered.discard(descriptor)
    p50_s, p99_s = np.quantile([each for connection in connections for each in connection.latencies_s], (0.5, 0.99))
    return {
        "requests_per_s": measured / elapsed_s, "latency_s": {"p50": p50_s, "p99": p99_s},
        "sent": sum(connection.num_sent for connection in connections),
        "load_generator": {"was_the_limit": cpu_s > SATURATED * elapsed_s},
    }  # fmt: skip


def _exchange(epoll: select.epoll, by_descriptor: dict[int, Replay], end_s: float) -> int:
    """Answer each answer with a new request until ``end_s``; return the number of answers."""
    measured = 0
    now_s = time.monotonic()
    while now_s < end_s:
        events = epoll.poll(1.0)
        now_s = time.monotonic()
        for descriptor, _ in events:
            connection = by_descriptor[descriptor]
            if answered := connection.receive(now_s):
                measured += answered
                connection.send(answered, now_s)
    return measured


def main() -> int:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--style", choices=STYLES, default="plain")
    parser.add_argument("--method", choices=PATHS, default="unary")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--in-flight", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    traffic = requests(Plan("", method=options.method), 0)
    bodies = [next(traffic).body for _ in range(NUM_REQUESTS)]
    blocks = header_blocks(options.style, PATHS[options.method])
    streams = options.method == STREAM
    try:
        connections = [Replay(options.port, blocks, bodies, streams=streams) for _ in range(options.connections)]
        report = run(connections, options.in_flight, options.seconds)
    except OSError as error:
        sys.stderr.write(f"replay: {error}\n")
        return 1
    sys.stdout.write(json.dumps(report) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

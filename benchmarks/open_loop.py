"""Open-loop load of prepared requests with deadlines, one thread: every call that is started gets one outcome.

    python -m benchmarks.open_loop --port 50051 --rate 44000 --deadline-ms 50 --connections 64 --seconds 5

It behaves as gRPC core does. A call that finds no free stream waits in the client, in order. ``grpc-timeout`` is the time that
is left when the call is sent. At its deadline a call ends: unsent, or with RST_STREAM. Calls start in groups on connections in
rotation. They cost 3 to 5 us of CPU each, because only header blocks of answers are read and a group is written by numpy.
Without ``--rate`` the loop is closed: each connection keeps ``--in-flight`` calls open. Prints JSON; ``overload`` reads it.
"""

import argparse
import gc
import json
import math
import select
import socket
import sys
import time
from collections import Counter, deque

import hpack
import numpy as np
from numpy.typing import NDArray

from benchmarks.load import WARM_UP_S
from digitserve.bench import frames
from digitserve.bench.frames import ACK, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, RST_STREAM, SETTINGS
from digitserve.bench.plan import PATHS, UNARY, Plan
from digitserve.bench.traffic import requests
from digitserve.protocol.names import Code

RECEIVE_BYTES = 1 << 18
NUM_REQUESTS = 64
"""Different request messages of the load."""

GROUP = 4
"""Calls that start together on a connection."""

TICK_S = 0.001
"""Interval at which calls start and expire."""

DRAIN_S = 2.0
"""Longest wait for the last answers."""

OK, LATE, EXPIRED, UNSENT, LOST = "OK", "late", "expired", "unsent", "lost"
"""Outcomes that are not a code of the server: answered with OK after the deadline; cancelled by the client at the deadline;
ended in the client before a stream was free; lost with the stream or connection."""

_DIGITS = 7
_TIMEOUT = b"grpc-timeout"
_NO_TIMEOUT = b"9999999m"


class Template:
    """Frames of ``NUM_REQUESTS`` calls, in which only stream ids and the digits of the deadline change."""

    def __init__(self, num_images: int) -> None:
        """Encode the requests."""
        traffic = requests(Plan("", images=num_images), 0)
        bodies = [next(traffic).body for _ in range(NUM_REQUESTS)]
        encoder = hpack.Encoder()
        fields = [
            (":method", "POST"), (":scheme", "http"), (":path", PATHS[UNARY]), (":authority", "127.0.0.1:50051"),
            ("content-type", "application/grpc"), ("te", "trailers"), ("user-agent", "open-loop"),
            (_TIMEOUT, _NO_TIMEOUT),
        ]  # fmt: skip
        first = encoder.encode(fields)
        # The table has the name of the newest entry at 62. A literal without indexing refers to it (RFC 7541, 6.2.2).
        block = encoder.encode(fields[:-1]) + b"\x0f\x2f" + bytes((_DIGITS + 1,)) + bytes(_DIGITS) + b"m"
        self.first = [frames.frame(HEADERS, END_HEADERS, 1, first), *_data_frames(1, bodies[0])]
        calls = []
        for body in bodies:
            parts = [frames.frame(HEADERS, END_HEADERS, 0, block), *_data_frames(0, body)]
            calls.append(np.frombuffer(b"".join(parts), np.uint8))
        starts = np.cumsum([0, *(len(part) for part in parts[:-1])])
        self._id_columns = [slice(int(start) + 5, int(start) + 9) for start in starts]
        self._digits = slice(len(parts[0]) - _DIGITS - 1, len(parts[0]) - 1)
        # Twice, so that any run of calls that starts in the first half is one slice.
        self._calls = np.tile(np.stack(calls), (2, 1))
        self._next = 0

    def frames(self, first_id: int, count: int, timeout_ms: int) -> NDArray[np.uint8]:
        """Return the frames of at most ``NUM_REQUESTS`` calls."""
        calls = self._calls[self._next : self._next + count]
        self._next = (self._next + count) % NUM_REQUESTS
        ids = np.arange(first_id, first_id + 2 * count, 2, dtype=">u4").view(np.uint8).reshape(count, 4)
        for columns in self._id_columns:
            calls[:, columns] = ids
        calls[:, self._digits] = np.frombuffer(b"%0*d" % (_DIGITS, timeout_ms), np.uint8)
        return calls


def _data_frames(stream_id: int, body: bytes) -> list[bytes]:
    size = frames.DEFAULT_FRAME_BYTES
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    flags = [0] * (len(pieces) - 1) + [END_STREAM]
    return [frames.frame(DATA, flag, stream_id, piece) for flag, piece in zip(flags, pieces, strict=True)]


class Outcomes:
    """Outcomes of calls by the phase in which they started, and the time from sending to the answer of those in time."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[int, str]] = Counter()
        self.latencies_s: dict[int, list[float]] = {}
        self.refusal_s: list[float] = []
        self._codes: dict[bytes, str] = {}
        self._decoder = hpack.Decoder()

    def outcome(self, block: bytes) -> str:
        """Return the label of the status code in a header block; the server's blocks do not depend on each other."""
        label = self._codes.get(block)
        if label is None:
            fields = dict(self._decoder.decode(block, raw=True))
            label = self._codes[block] = Code(int(fields.get(b"grpc-status", b"2"))).label
        return label


class Client:
    """One connection; see the module."""

    def __init__(
        self, port: int, template: Template, outcomes: Outcomes, deadline_s: float, *, expired: bool = False
    ) -> None:
        """Connect; calls that are sent ``expired`` have a ``grpc-timeout`` of 0, which only the server applies."""
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.max_streams = 100
        self.waiting: deque[list[float]] = deque()  # time of start, phase, number of calls
        self.open: dict[int, tuple[float, float, int]] = {}  # time of start, time of sending, phase
        self.lost = False
        self._template, self._outcomes, self._deadline_s = template, outcomes, deadline_s
        self._expired = expired
        self._ends: deque[tuple[float, int, int]] = deque()  # deadline, first id, count
        self._next_id = 1
        self._unsent: bytes | memoryview = b""
        self._unparsed = b""
        window = frames.MAX_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES
        settings = {
            frames.HEADER_TABLE_SIZE: 0,
            frames.ENABLE_PUSH: 0,
            frames.INITIAL_WINDOW_SIZE: frames.MAX_WINDOW_BYTES,
        }
        self._output: list[bytes | memoryview] = [
            frames.PREFACE,
            frames.frame(SETTINGS, 0, 0, b"".join(frames.SETTING.pack(*setting) for setting in settings.items())),
            frames.frame(frames.WINDOW_UPDATE, 0, 0, frames.U32.pack(window)),
        ]
        self.flush()
        self.socket.setblocking(False)

    def start(self, now_s: float, phase: int, count: int) -> None:
        """Start calls: they are sent as soon as there are streams."""
        self.waiting.append([now_s, phase, count])

    def send(self, now_s: float) -> None:
        """End calls whose deadline has passed; send those that wait for a stream, then all output that the socket takes."""
        counts, deadline_s = self._outcomes.counts, self._deadline_s
        while self._ends and self._ends[0][0] <= now_s:
            _, first, count = self._ends.popleft()
            for stream_id in range(first, first + 2 * count, 2):
                if (call := self.open.pop(stream_id, None)) is not None:
                    counts[call[2], EXPIRED] += 1
                    self._output.append(frames.frame(RST_STREAM, 0, stream_id, frames.U32.pack(frames.CANCEL)))
        while self.waiting and self.waiting[0][0] + deadline_s <= now_s:
            _, phase, count = self.waiting.popleft()
            counts[int(phase), UNSENT] += int(count)
        while self.waiting and not self._unsent and not self.lost and (room := self.max_streams - len(self.open)) > 0:
            start_s, phase, count = self.waiting[0]
            num_sent = min(room, int(count), NUM_REQUESTS)
            if num_sent < count:
                self.waiting[0][2] -= num_sent
            else:
                self.waiting.popleft()
            self._open(start_s, int(phase), num_sent, now_s)
        if self._output or self._unsent:
            self.flush()

    def _open(self, start_s: float, phase: int, count: int, now_s: float) -> None:
        first = self._next_id
        self._next_id += 2 * count
        self.open.update(dict.fromkeys(range(first, self._next_id, 2), (start_s, now_s, phase)))
        timeout_ms = 0 if self._expired else 10**_DIGITS - 1
        if self._deadline_s < float("inf"):
            ends_s = start_s + self._deadline_s
            self._ends.append((ends_s, first, count))
            timeout_ms = math.ceil((ends_s - now_s) * 1e3)
        if first == 1:
            self._output += self._template.first
            first, count = 3, count - 1
        if count:
            self._output.append(self._template.frames(first, count, timeout_ms).tobytes())

    def flush(self) -> None:
        """Send as much as the socket takes."""
        output = b"".join((self._unsent, *self._output))
        self._output.clear()
        try:
            num_bytes = self.socket.send(output)
        except BlockingIOError:
            num_bytes = 0
        except OSError:
            self._lose()
            return
        self._unsent = memoryview(output)[num_bytes:] if num_bytes < len(output) else b""

    def receive(self, now_s: float) -> None:
        """Read from the socket, and record the outcomes of calls."""
        try:
            received = self.socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._lose()
            return
        received = self._unparsed + received if self._unparsed else received
        position, available = 0, len(received)
        unpack = frames.FRAME_HEADER.unpack_from
        while available - position >= frames.FRAME_HEADER_BYTES:
            high, low, kind, flags, stream_id = unpack(received, position)
            start = position + frames.FRAME_HEADER_BYTES
            end = start + (high << 16 | low)
            if end > available:
                break
            position = end
            if kind == HEADERS:
                if flags & END_STREAM and (call := self.open.pop(stream_id, None)) is not None:
                    self._record(*call, received[start:end], now_s)
            elif kind != DATA:
                self._on_control(kind, flags, stream_id, received[start:end])
        self._unparsed = received[position:]

    def _record(self, start_s: float, sent_s: float, phase: int, block: bytes, now_s: float) -> None:
        outcomes = self._outcomes
        outcome = outcomes.outcome(block)
        if outcome == OK:
            if now_s - start_s > self._deadline_s:
                outcome = LATE
            else:
                outcomes.latencies_s[phase].append(now_s - sent_s)
        outcomes.counts[phase, outcome] += 1

    def _on_control(self, kind: int, flags: int, stream_id: int, payload: bytes) -> None:
        if kind == RST_STREAM:
            if (call := self.open.pop(stream_id, None)) is not None:
                self._outcomes.counts[call[2], LOST] += 1
        elif kind == GOAWAY:
            if frames.read_u32(payload[4:]):
                sys.stderr.write(f"open_loop: the server sent GOAWAY {payload!r}\n")
                self._lose()
        elif kind == SETTINGS and not flags & ACK:
            for setting, value in frames.SETTING.iter_unpack(payload):
                if setting == frames.MAX_CONCURRENT_STREAMS:
                    self.max_streams = value
            self._output.append(frames.frame(SETTINGS, ACK, 0))
        elif kind == PING and not flags & ACK:
            self._output.append(frames.frame(PING, ACK, 0, payload))

    def _lose(self) -> None:
        self.lost = True
        for _, _, phase in self.open.values():
            self._outcomes.counts[phase, LOST] += 1
        self.open.clear()


class OpenLoop:
    """All connections of the process, and its clock."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._deadline_s = options.deadline_ms / 1e3 if options.deadline_ms else float("inf")
        self.outcomes = Outcomes()
        template = Template(options.images)
        self._clients = [
            Client(options.port, template, self.outcomes, self._deadline_s, expired=options.expired)
            for _ in range(options.connections)
        ]
        self._epoll = select.epoll()
        self._by_descriptor = {client.socket.fileno(): client for client in self._clients}
        for descriptor in self._by_descriptor:
            self._epoll.register(descriptor, select.EPOLLIN)
        self._turn = 0
        self._owed = 0.0
        self._wait(time.monotonic() + 0.2)  # for the server's SETTINGS

    def run(self, phase: int, rate: float | None, seconds: float) -> tuple[float, float]:
        """Start calls for some seconds; return the seconds and the CPU seconds that it took."""
        self.outcomes.latencies_s[phase] = []
        start_s, cpu_s = time.monotonic(), time.process_time()
        next_s = start_s
        while (now_s := time.monotonic()) < start_s + seconds:
            if rate is None:
                self._refill(now_s, phase)
            else:
                self._start(now_s, phase, rate * (now_s - next_s))
                next_s = now_s
            self._wait(now_s + TICK_S)
        return time.monotonic() - start_s, time.process_time() - cpu_s

    def drain(self) -> None:
        """Wait for the last answers; calls without one are lost."""
        end_s = time.monotonic() + DRAIN_S
        while any(client.open or client.waiting for client in self._clients) and time.monotonic() < end_s:
            self._wait(time.monotonic() + TICK_S)
        for client in self._clients:
            for _, _, phase in client.open.values():
                self.outcomes.counts[phase, LOST] += 1
            for _, phase, count in client.waiting:
                self.outcomes.counts[int(phase), UNSENT] += int(count)

    def _start(self, now_s: float, phase: int, count: float) -> None:
        self._owed += count
        clients, group = self._clients, self._options.group
        while self._owed >= group:
            self._owed -= group
            self._turn = (self._turn + 1) % len(clients)
            clients[self._turn].start(now_s, phase, group)
        for client in clients:
            if client.waiting or client.open:
                client.send(now_s)

    def _refill(self, now_s: float, phase: int) -> None:
        for client in self._clients:
            if (missing := min(self._options.in_flight, client.max_streams) - len(client.open)) > 0:
                client.start(now_s, phase, missing)
                client.send(now_s)

    def _wait(self, until_s: float) -> None:
        """Handle what arrives until a time."""
        # A wait of epoll has a resolution of milliseconds, that of select microseconds.
        while True:
            left_s = until_s - time.monotonic()
            select.select([self._epoll], [], [], max(0.0, left_s))
            now_s = time.monotonic()
            for descriptor, _ in self._epoll.poll(0):
                client = self._by_descriptor[descriptor]
                client.receive(now_s)
                if client.lost:
                    self._epoll.unregister(descriptor)
                    continue
                client.send(now_s)
            if self._options.rate is None or now_s >= until_s:
                return


def main() -> int:
    """Run as a command: warm up, measure, then measure at ``--after-rate``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--rate", type=float, help="calls per second; a closed loop without it")
    parser.add_argument("--after-rate", type=float, help="calls per second for a second after the load")
    parser.add_argument("--deadline-ms", type=float, help="none by default")
    parser.add_argument(
        "--expired", action="store_true", help="send calls that the server refuses, with grpc-timeout 0"
    )
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--in-flight", type=int, default=4, help="of each connection, in the closed loop")
    parser.add_argument("--group", type=int, default=GROUP, help="calls that start together on a connection")
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    gc.collect()
    gc.freeze()
    gc.disable()
    loop = OpenLoop(options)
    loop.run(0, options.rate, WARM_UP_S)
    elapsed_s, cpu_s = loop.run(1, options.rate, options.seconds)
    if options.after_rate:
        loop.run(2, options.after_rate, 1.0)
    loop.drain()
    latencies_s = loop.outcomes.latencies_s[1] or [float("nan")]
    p50_s, p99_s = np.quantile(latencies_s, (0.5, 0.99))
    counts = loop.outcomes.counts
    sys.stdout.write(
        json.dumps({
            "seconds": elapsed_s, "cpu": cpu_s / elapsed_s, "p50_s": p50_s, "p99_s": p99_s,
            "outcomes": {name: count for (phase, name), count in sorted(counts.items()) if phase == 1},
            "after": {name: count for (phase, name), count in sorted(counts.items()) if phase == 2},
            "warm_up": {name: count for (phase, name), count in sorted(counts.items()) if not phase},
        })
        + "\n"
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Clients of the chaos run that write frames of HTTP/2 themselves: valid ones, unusual ones, and invalid ones."""

import gzip
import random
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from digitserve.protocol.names import CLASSIFY
from support import http2_peer as h2
from support.chaos import checker
from support.chaos.history import Request
from support.chaos.traffic import TIMEOUT_S, Traffic, draw_images, end_ok
from support.chaos.wire_connection import WireConnection
from support.serving import Service

PATH = CLASSIFY.path.encode()
MAX_VISITS = 20
"""Most groups of requests on one connection."""

PAUSE_S = 0.2
NO_WINDOW, WINDOW = h2.settings(s4=0), h2.settings(s4=1 << 20)
"""The client's initial flow-control window: 0, or larger than any answer."""


class Sent(NamedTuple):
    """The bytes of a request.

    Attributes:
        first: sent at once.
        rest: sent after those of all other requests, and after a pause.
        counted: whether the service counts it as an RPC.
        has_images: whether its images are classified.
    """

    first: bytes
    rest: bytes = b""
    counted: bool = True
    has_images: bool = False


def whole(stream_id: int, body: bytes, *fields: tuple[bytes, bytes], path: bytes = PATH, flag: int = 0) -> bytes:
    """Encode a call with one message."""
    return h2.headers(stream_id, h2.request(path, *fields)) + h2.data(stream_id, h2.message(body, flag), ended=True)


def _good(stream_id: int, body: bytes) -> Sent:
    return Sent(whole(stream_id, body), has_images=True)


def _byte_by_byte(stream_id: int, body: bytes) -> Sent:
    opened = h2.headers(stream_id, h2.request(PATH))
    return Sent(opened + h2.data(stream_id, h2.message(body), ended=True, size=1), has_images=True)


def _slow(stream_id: int, body: bytes) -> Sent:
    message = h2.message(body)
    half = len(message) // 2
    opened = h2.headers(stream_id, h2.request(PATH)) + h2.data(stream_id, message[:half])
    return Sent(opened, h2.data(stream_id, message[half:], ended=True), has_images=True)


def _with_fields(*fields: tuple[bytes, bytes], flag: int = 0, counted: bool = True) -> Callable[[int, bytes], Sent]:
    return lambda stream_id, body: Sent(whole(stream_id, body, *fields, flag=flag), counted=counted)


def _not_grpc(stream_id: int, body: bytes) -> Sent:
    fields = [(name, b"text/plain" if name == b"content-type" else value) for name, value in h2.request(PATH)]
    return Sent(h2.headers(stream_id, fields, h2.END_HEADERS | h2.END_STREAM), counted=False)


_GZIP = (b"grpc-encoding", b"gzip")

ENCODERS: dict[str, tuple[float, Callable[[int, bytes], Sent]]] = {
    "good": (20, _good),
    "byte by byte": (1, _byte_by_byte),
    "slow": (2, _slow),
    "slow reader": (0, _good),  # "good", with closed flow-control windows
    "compressed": (3, lambda i, body: Sent(whole(i, gzip.compress(body), _GZIP, flag=1), has_images=True)),
    "not gzip": (2, _with_fields(_GZIP, flag=1)),
    "unknown encoding": (2, _with_fields((b"grpc-encoding", b"snappy"), flag=1)),
    "expired": (2, lambda i, body: Sent(whole(i, body, (b"grpc-timeout", b"1u")), has_images=True)),
    "bad timeout": (2, _with_fields((b"grpc-timeout", b"soon"), counted=False)),
    "not gRPC": (2, _not_grpc),
    "large header": (1, _with_fields((b"x-large", b"a" * 20_000), counted=False)),
    "bad field": (1, _with_fields((b"BAD", b"1"), counted=False)),
    "malformed": (2, lambda i, body: Sent(whole(i, b"\x0c" + body[:20]))),
    "unknown method": (2, lambda i, body: Sent(whole(i, body, path=PATH + b"Twice"), counted=False)),
    "no message": (2, lambda i, body: Sent(h2.headers(i, h2.request(PATH)) + h2.data(i, b"", ended=True))),
    "two messages": (
        2,
        lambda i, body: Sent(h2.headers(i, h2.request(PATH)) + h2.data(i, h2.message(body) * 2, ended=True)),
    ),
    "oversized prefix": (
        2,
        lambda i, body: Sent(h2.headers(i, h2.request(PATH)) + h2.data(i, struct.pack(">BI", 0, 1 << 30) + body)),
    ),
    "reset": (5, lambda i, body: Sent(whole(i, body) + h2.reset(i), has_images=True)),
}
"""Weight of each kind, and its encoder."""

GARBAGE: list[Callable[[random.Random], bytes]] = [
    lambda rng: rng.randbytes(100),
    lambda rng: b"GET / HTTP/1.1\r\nhost: x\r\n\r\n",
    lambda rng: h2.PREFACE + h2.settings() + b"\xff" * 100,
    lambda rng: h2.PREFACE + h2.settings() + h2.raw(h2.DATA, 0, 0, b"x"),
    lambda rng: h2.PREFACE + h2.settings() + h2.raw(h2.HEADERS, h2.END_HEADERS, 1, b"\xff" * 20),
    lambda rng: h2.PREFACE + h2.settings() + h2.window_update(0, 0),
    lambda rng: h2.PREFACE + h2.settings() + h2.raw(h2.PING, 0, 0, rng.randbytes(5)),
]


class WireCalls:
    """Groups of requests on connections, some of which are valid: they must not suffer from the others."""

    def __init__(self, service: Service) -> None:
        self._address = service.grpc_address
        self._connection: WireConnection | None = None
        self._next_stream = 1
        self._num_visits = 0

    def run(self, traffic: Traffic, rng: random.Random) -> None:
        """Send requests until the traffic ends."""
        for _ in traffic.pauses(rng):
            if rng.random() < 0.2:
                self._visit_alone(traffic, rng)
                continue
            try:
                self._visit(traffic, rng)
            except OSError as error:
                # There is no service: count the attempt as a request.
                traffic.history.begin("good", checker.WIRE, timeout_s=TIMEOUT_S).end("UNAVAILABLE", detail=str(error))
                traffic.stopping.wait(PAUSE_S)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _visit(self, traffic: Traffic, rng: random.Random) -> None:
        """Send a group of requests, and wait for all answers."""
        connection, slow = self._connect(rng)
        kinds = rng.choices(list(ENCODERS), [weight for weight, _ in ENCODERS.values()], k=rng.randrange(1, 9))
        sent: list[tuple[int, Request]] = []
        rest = b""
        for kind in kinds:
            if kind == "good" and slow:
                kind = "slow reader"  # noqa: PLW2901
            chosen = draw_images(rng, traffic.images, max_images=3)[:3]
            body = traffic.images.request(chosen).SerializeToString()
            if not connection.reserve([stream_id for stream_id, _ in sent], 2 * len(body) + 100):
                break
            stream_id, self._next_stream = self._next_stream, self._next_stream + 2
            encoded = ENCODERS[kind][1](stream_id, body)
            request = traffic.history.begin(
                kind, checker.WIRE, chosen if encoded.has_images else (),
                timeout_s=TIMEOUT_S, num_calls=int(encoded.counted),
            )  # fmt: skip
            request.connection = connection.port
            connection.send(encoded.first)
            rest += encoded.rest
            if kind == "reset":
                request.end("CANCELLED")
            else:
                sent.append((stream_id, request))
        if slow or rest:
            traffic.stopping.wait(rng.uniform(0, PAUSE_S))
            connection.send(rest + (WINDOW if slow else b""))
        self._finish(connection, sent)
        if connection.closed or connection.going_away:
            self.close()

    def _finish(self, connection: WireConnection, sent: list[tuple[int, Request]]) -> None:
        ends_s = time.monotonic() + TIMEOUT_S
        for stream_id, request in sent:
            connection.read_until(lambda one=stream_id: connection.ended(one), ends_s)
            end_on_wire(connection, stream_id, request)
        connection.ping(ends_s)
        for stream_id, request in sent:
            if stream_id in connection.late:
                request.end("LATE FRAMES", detail="frames after the end of the stream")
        connection.answers.clear()

    def _connect(self, rng: random.Random) -> tuple[WireConnection, bool]:
        """Return a connection, and whether its flow-control windows are closed."""
        self._num_visits += 1
        if self._connection is not None and self._num_visits < MAX_VISITS and self._connection.is_usable():
            return self._connection, False
        self.close()
        slow = rng.random() < 0.3
        self._connection = WireConnection(self._address, h2.PREFACE + (NO_WINDOW if slow else WINDOW))
        self._next_stream, self._num_visits = 1, 0
        return self._connection, slow

    def _visit_alone(self, traffic: Traffic, rng: random.Random) -> None:
        """Send a request on a connection of its own, which ends with it."""
        kind = rng.choice(["half-closed", "disconnected", "garbage"])
        chosen = draw_images(rng, traffic.images, max_images=8)
        encoded = whole(1, traffic.images.request(chosen).SerializeToString())
        garbage, keep = rng.choice(GARBAGE)(rng), rng.randrange(1, len(encoded))
        request = traffic.history.begin(
            kind, checker.WIRE, () if kind == "garbage" else chosen,
            timeout_s=TIMEOUT_S, num_calls=int(kind != "garbage"),
        )  # fmt: skip
        try:
            connection = WireConnection(self._address, garbage if kind == "garbage" else h2.PREFACE + WINDOW)
        except OSError as error:
            request.end("UNAVAILABLE", detail=str(error))
            return
        request.connection = connection.port
        ends_s = time.monotonic() + TIMEOUT_S
        if kind == "garbage":
            connection.read_until(lambda: False, ends_s)
            request.end("CLOSED" if connection.closed else "OPEN")
        elif kind == "disconnected":
            connection.send(encoded[:keep])
            request.end("GONE")
        else:
            connection.send(encoded)
            connection.shut_down()
            connection.read_until(lambda: connection.ended(1), ends_s)
            if connection.answers:
                end_on_wire(connection, 1, request)
            else:
                request.end("CLOSED" if connection.closed or connection.going_away else "OPEN")
        connection.close()


def end_on_wire(connection: WireConnection, stream_id: int, request: Request) -> None:
    """Record how a stream ended."""
    code = connection.code(stream_id)
    messages = connection.answers.get(stream_id, h2.Answer()).messages
    if code == "OK" and len(messages) == 1:
        end_ok(request, CLASSIFY.path, messages[0])
    else:
        request.end(code, detail=f"{len(messages)} messages {connection.failure}")

"""``digitserve serve --transport native`` with clients that try to exhaust its memory, or to keep others out."""

import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from hpack import Encoder

from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image, write_echo_bundle
from support.chaos.state import process_state
from support.serving import PATIENCE_S, Service, run_service, wait_until

CLASSIFY, CLASSIFY_STREAM, GET_MODEL = (
    f"/digitserve.v1.DigitService/{name}" for name in ("Classify", "ClassifyStream", "GetModel")
)
CHECK, WATCH = (f"/grpc.health.v1.Health/{name}" for name in ("Check", "Watch"))
MAX_WORKER_KIB = 384 * 1024
"""Promise of the native transport, whatever clients do."""

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, CONTINUATION = 0, 1, 4, 9
END_STREAM, END_HEADERS = 1, 4
NO_WINDOW = struct.pack(">HI", 4, 0)
"""SETTINGS_INITIAL_WINDOW_SIZE of 0: answers may not be sent."""


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 255, kind, flags, stream_id) + payload


def opened(path: str, num_streams: int, body: bytes = b"", *, ended: bool = False, settings: bytes = b"") -> bytes:
    """Return what a client sends to open many streams and to send the same body on each."""
    encoder = Encoder()
    fields = [
        (":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test"),
        ("te", "trailers"), ("content-type", "application/grpc"),
    ]  # fmt: skip
    parts = [PREFACE, frame(SETTINGS, 0, 0, settings)]
    for stream_id in range(1, 2 * num_streams, 2):
        parts.append(frame(HEADERS, END_HEADERS, stream_id, encoder.encode(fields)))
        for start in range(0, len(body), 16_384):
            last = ended and start + 16_384 >= len(body)
            parts.append(frame(DATA, END_STREAM if last else 0, stream_id, body[start : start + 16_384]))
    return b"".join(parts)


def open_header_block() -> bytes:
    """Return a header block of almost 64 KiB, the limit, that has no end yet."""
    part = bytes(16_000)
    return PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, 0, 1, part) + frame(CONTINUATION, 0, 1, part) * 3


def header_block_without_end() -> bytes:
    """Return such a block and a part of its next frame."""
    return open_header_block() + frame(CONTINUATION, 0, 1, bytes(16_000))[:-1]


def header_block_then_violation() -> bytes:
    """Return such a block and a frame that is forbidden within it: the connection ends, but the client does not close it."""
    return open_header_block() + frame(DATA, 0, 1)


def full_header_table() -> bytes:
    """Return requests that fill the dynamic table with the smallest entries, and others that the decoder caches."""
    entries = b"".join(b"\x40\x02" + b"%02d" % number + b"\0" for number in range(100))
    remembered = [frame(HEADERS, END_STREAM | END_HEADERS, 3 + 2 * number, b"\x82" * number) for number in range(1, 16)]
    return PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_STREAM | END_HEADERS, 1, entries) + b"".join(remembered)


ATTACKS: dict[str, tuple[int, bytes]] = {
    "streams left open": (200, opened(CLASSIFY_STREAM, 1000)),
    "partial messages": (100, opened(CLASSIFY, 20, struct.pack(">BI", 0, 65_000) + bytes(64_000))),
    "answers without a window": (200, opened(GET_MODEL, 1000, bytes(5), ended=True, settings=NO_WINDOW)),
    "header blocks without end": (400, header_block_without_end()),
    "header blocks that end in a violation": (400, header_block_then_violation()),
    "full header tables": (400, full_header_table()),
    "watches left open": (100, opened(WATCH, 1000, bytes(5), ended=True)),
}
"""Number of connections, and what each sends."""


class Caller:
    """Threads of a client that behaves well: small and larger requests, and health checks; it counts their outcomes."""

    def __init__(self, service: Service) -> None:
        one = pb.ClassifyRequest(pixels=echo_image(1).tobytes()).SerializeToString()
        # More than one frame: the transport has to collect it.
        many = pb.ClassifyRequest(pixels=echo_image(1).tobytes() * 64).SerializeToString()
        self.outcomes: Counter[str] = Counter()
        self._service = service
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=arguments)
            for arguments in ((CLASSIFY, one), (CLASSIFY, many), (CHECK, b""))
        ]

    def _run(self, path: str, body: bytes) -> None:
        while not self._stop.is_set():
            # Without the keepalive of the client library: on a busy machine a worker may answer pings late.
            options = (("grpc.use_local_subchannel_pool", 1),)
            with grpc.insecure_channel(self._service.grpc_address, options=options) as channel:
                call = channel.unary_unary(path)
                for _ in range(20):
                    error = call.future(body, timeout=PATIENCE_S).exception()
                    self.outcomes["OK" if error is None else f"{error.code()} {error.details()}"] += 1
                    if self._stop.wait(0.01):
                        break

    @contextmanager
    def running(self) -> Iterator[None]:
        """Call until the end of the ``with`` block."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(PATIENCE_S)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("models")
    write_echo_bundle(path)
    with run_service(path, path / "log", "--workers", "1", "--transport", "native") as running:
        yield running


@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_hold_bounded_memory_and_nobody_else(attack: str, service: Service) -> None:
    """While clients leave open or unread as much as the protocol allows them, a worker stays under 384 MB, and at least 95
    of 100 calls of another client succeed; nothing is left of the attack afterwards.
    """
    (worker,) = service.workers()
    num_connections, script = ATTACKS[attack]
    host, _, port = service.grpc_address.rpartition(":")
    caller = Caller(service)
    with caller.running(), ExitStack() as clients:
        for _ in range(num_connections):
            client = clients.enter_context(socket.create_connection((host, int(port)), timeout=PATIENCE_S))
            try:
                client.sendall(script)
            except (ConnectionResetError, BrokenPipeError):
                continue  # closed by the service, which is a way to hold its promise
        answered = caller.outcomes["OK"]
        wait_until(lambda: caller.outcomes["OK"] > answered + 50, "calls are answered beside the attack")

    assert process_state(worker).peak_bytes < 1024 * MAX_WORKER_KIB
    assert caller.outcomes["OK"] >= 0.95 * caller.outcomes.total(), caller.outcomes
    assert service.workers() == [worker]
    wait_until(lambda: not service.total("digitserve_pending_images"), "no image waits")

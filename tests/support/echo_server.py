"""A gRPC server of either transport on a thread of the test, whose handlers send back what they get; it is healthy."""

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from digitserve.protocol.names import HEALTH_CHECK, Code, Method
from digitserve.protocol.status import OK, Status
from digitserve.settings import Settings
from digitserve.telemetry.block import Block
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.grpcio.server import GrpcServer
from digitserve.transport.handlers import Server, ServerStream, UnaryCall
from digitserve.transport.health import Health
from digitserve.transport.native.server import NativeServer
from digitserve.transport.respond import RespondHandler
from digitserve.types import Source
from support.bundles import LABELS
from support.serving import PATIENCE_S

ECHO = Method("unary", "test.Echo", "Echo")
ECHO_STREAM = Method("bidi_stream", "test.Echo", "EchoStream")


class Echo:
    """Answers with the request; some requests ask for something else.

    ``wait`` is not answered, ``fail`` fails with details, ``flaky`` and what begins with it fails every second time, ``full``
    fails as if the queue was full, ``size N`` gets N bytes, and ``unknown TEXT`` fails with status UNKNOWN and this text.

    Attributes:
        ends: number of calls by how they ended.
        waiting: calls that are not answered.
    """

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()
        self.waiting: list[UnaryCall] = []
        self._num_flaky = 0

    def refusal(self, deadline: float, source: Source) -> Status | None:
        return None

    def on_accept(self, call: UnaryCall) -> None:
        self.ends["accepted"] += 1

    def on_message(self, call: UnaryCall, body: bytes) -> None:
        if body == b"wait":
            self.waiting.append(call)
            return
        is_flaky = body.startswith(b"flaky")
        self._num_flaky += is_flaky
        if body == b"fail":
            self._fail(call, Status(Code.NOT_FOUND, "not found: ü %", retry_after_s=1.5))
        elif body.startswith(b"unknown "):
            self._fail(call, Status(Code.UNKNOWN, body[8:].decode()))
        elif body == b"full":
            self._fail(call, Status(Code.RESOURCE_EXHAUSTED, "the queue is full", retry_after_s=0.25))
        elif is_flaky and self._num_flaky % 2:
            self._fail(call, Status(Code.UNAVAILABLE, "once more", retry_after_s=0.001))
        else:
            self.ends["answered"] += 1
            call.reply(bytes(int(body[5:])) if body.startswith(b"size ") else body)

    def on_failed(self, call: UnaryCall, status: Status) -> None:
        self.ends["failed"] += 1

    def on_too_large(self, call: UnaryCall) -> None:
        self._fail(call, Status(Code.RESOURCE_EXHAUSTED, "too large"))

    def on_close(self, call: UnaryCall) -> None:
        self.ends["closed"] += 1

    def _fail(self, call: UnaryCall, status: Status) -> None:
        self.ends["failed"] += 1
        call.fail(status)


class EchoStream:
    """Answers each message of a stream with itself, and reads the next one when that is sent.

    Attributes:
        ends: number of streams that were accepted, and by how they ended.
    """

    def __init__(self) -> None:
        self.ends: Counter[str] = Counter()

    def on_accept(self, stream: ServerStream) -> None:
        self.ends["accepted"] += 1
        stream.read()

    def on_message(self, stream: ServerStream, body: bytes) -> None:
        stream.write(body)
        stream.flush()

    def on_written(self, stream: ServerStream) -> None:
        stream.read()

    def on_end(self, stream: ServerStream) -> None:
        stream.finish(OK)

    def on_too_large(self, stream: ServerStream) -> None:
        stream.finish(Status(Code.RESOURCE_EXHAUSTED, "too large"))

    def on_close(self, stream: ServerStream, *, cancelled: bool) -> None:
        self.ends["cancelled" if cancelled else "finished"] += 1


@dataclass
class EchoServer:
    """A running server.

    Attributes:
        address: host:port.
        server: only for its thread.
        calls: handler of unary calls.
        streams: handler of streams.
        stop: set to end the server gracefully.
        stopped: set once it has ended.
    """

    address: str
    server: Server
    calls: Echo
    streams: EchoStream
    stop: threading.Event = field(default_factory=threading.Event)
    stopped: threading.Event = field(default_factory=threading.Event)

    def run(self, grace_s: float) -> None:
        """Poll until ``stop``, then drain."""
        server = self.server
        while not self.stop.is_set():
            server.poll(0.02)
        ends = time.monotonic() + grace_s
        server.begin_shutdown()
        running: bool | None = True
        while running is not None and time.monotonic() < ends:
            running = server.poll(0.02)
        server.cancel_all()
        while server.poll(0.02) is not None:
            pass
        server.close()
        self.stopped.set()


@contextmanager
def run_echo_server(grace_s: float = 1.0, transport: str = "native", **changes: object) -> Iterator[EchoServer]:
    """Run a server on a thread, and stop it at the end of the ``with`` block."""
    settings = Settings(**{"grpc_port": 0, **changes})  # type: ignore[arg-type]
    calls, streams, block = Echo(), EchoStream(), Block(LABELS)
    recorder = Recorder(block, LABELS)
    health = Health(recorder, max_watches=1)
    health.set_serving()
    unary = {ECHO: calls, HEALTH_CHECK: RespondHandler(HEALTH_CHECK, health.check, recorder)}
    parts = settings, recorder, unary, {ECHO_STREAM: streams}
    if transport == "native":
        # With SO_REUSEPORT, because a second server may take over the port while this one drains.
        listener = socket.create_server(("127.0.0.1", settings.grpc_port), reuse_port=True)
        server: Server = NativeServer(*parts, listener)
    else:
        server = GrpcServer(*parts)
    running = EchoServer(f"127.0.0.1:{server.listen()}", server, calls, streams)
    thread = threading.Thread(target=running.run, args=(grace_s,))
    thread.start()
    try:
        yield running
    finally:
        running.stop.set()
        thread.join(PATIENCE_S)
        assert not thread.is_alive(), "the server did not stop"
        block.close()

"""A client of the native transport without sockets: it feeds a ``Connection`` with bytes and decodes what it sends."""

import struct
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import hpack
from hyperframe.frame import Frame

from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.telemetry.block import CloseReason, RefusalReason
from digitserve.telemetry.request_log import RequestLog
from digitserve.transport.native.connection import Connection, Method
from digitserve.transport.native.guard import Guard, GuardedConnection
from digitserve.transport.native.limits import Limits, ReceiveBudget
from digitserve.types import Source

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED, WITH_PRIORITY = 1, 4, 8, 32
ACK = 1
MAX_STREAM_ID = MAX_WINDOW = 2**31 - 1

LIMITS = Limits(max_message_bytes=1 << 20)
UNARY, STREAM = b"/test.Service/Unary", b"/test.Service/Stream"
REQUEST: tuple[tuple[bytes, bytes], ...] = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", UNARY),
    (b":authority", b"server"),
    (b"te", b"trailers"),
    (b"content-type", b"application/grpc"),
)
NOT_FOUND = Status(Code.UNIMPLEMENTED, "unknown method")
TOO_LARGE = Status(Code.RESOURCE_EXHAUSTED, "too large")


def raw(kind: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> bytes:
    """Encode any frame, valid or not."""
    return struct.pack(">HBBBI", len(payload) >> 8, len(payload) & 255, kind, flags, stream_id) + payload


def block(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode header fields so that the block is valid whatever preceded it."""
    return hpack.Encoder().encode(list(fields))


def request(path: bytes = UNARY, *more: tuple[bytes, bytes], **replaced: bytes) -> list[tuple[bytes, bytes]]:
    """Return the fields of a request; ``replaced`` replaces pseudo-header fields, named without the colon."""
    fields = [(name, replaced.get(name[1:].decode(), value) if name[:1] == b":" else value) for name, value in REQUEST]
    return [(name, path if name == b":path" and "path" not in replaced else value) for name, value in fields] + [*more]


def headers(
    stream_id: int, fields: Iterable[tuple[bytes, bytes]] = REQUEST, flags: int = END_HEADERS, before: bytes = b""
) -> bytes:
    """Encode HEADERS; ``before`` is what flags insert in front of the block."""
    return raw(HEADERS, flags, stream_id, before + block(fields))


def settings(**values: int) -> bytes:
    """Encode SETTINGS; ``s4=100`` is the setting 4."""
    return raw(SETTINGS, 0, 0, b"".join(struct.pack(">HI", int(key[1:]), value) for key, value in values.items()))


def window_update(stream_id: int, increment: int) -> bytes:
    return raw(WINDOW_UPDATE, 0, stream_id, struct.pack(">I", increment))


def reset(stream_id: int, code: int = 8) -> bytes:
    return raw(RST_STREAM, 0, stream_id, struct.pack(">I", code))


def message(body: bytes, flag: int = 0) -> bytes:
    """Encode a gRPC message with its prefix."""
    return struct.pack(">BI", flag, len(body)) + body


def call(stream_id: int, body: bytes = b"hello", path: bytes = UNARY, *more: tuple[bytes, bytes]) -> bytes:
    """Encode a whole call of a small message."""
    return headers(stream_id, request(path, *more)) + raw(DATA, END_STREAM, stream_id, message(body))


def data(stream_id: int, payload: bytes, *, ended: bool = False, size: int = 16_384) -> bytes:
    """Encode DATA frames of at most ``size`` bytes of payload."""
    parts = [payload[start : start + size] for start in range(0, len(payload), size)] or [b""]
    last = len(parts) - 1
    return b"".join(
        raw(DATA, END_STREAM if ended and i == last else 0, stream_id, each) for i, each in enumerate(parts)
    )


class UnaryRecorder:
    """A ``UnaryHandler`` that records every callback; ``answer`` decides what follows a message."""

    def __init__(self, answer: Callable[[Any, bytes], None] | None = None) -> None:
        self.answer = answer or (lambda unary, body: unary.reply(body))
        self.refused: Status | None = None
        self.accept: Callable[[Any], None] = lambda unary: None
        self.calls: list[Any] = []
        self.events: list[tuple[Any, ...]] = []

    def refusal(self, deadline: float, source: Source) -> Status | None:
        return self.refused

    def on_accept(self, unary: Any) -> None:
        self.calls.append(unary)
        self.events.append(("accept", unary.stream_id))
        unary.context = unary  # as real handlers do: the reference cycle must not outlive the call
        self.accept(unary)

    def on_message(self, unary: Any, body: bytes) -> None:
        self.events.append(("message", unary.stream_id, body))
        self.answer(unary, body)

    def on_failed(self, unary: Any, status: Status) -> None:
        self.events.append(("failed", unary.stream_id, status.code))

    def on_too_large(self, unary: Any) -> None:
        self.events.append(("too large", unary.stream_id))
        unary.fail(TOO_LARGE)

    def on_close(self, unary: Any) -> None:
        self.events.append(("close", unary.stream_id))


class StreamRecorder:
    """A ``StreamHandler`` that records every callback; attributes decide what it does in them."""

    def __init__(self) -> None:
        self.streams: list[Any] = []
        self.events: list[tuple[Any, ...]] = []
        self.accept: Callable[[Any], None] = lambda stream: stream.read()
        self.answer: Callable[[Any, bytes], None] = self.echo
        self.end: Callable[[Any], None] = lambda stream: stream.finish(Status(Code.OK))
        self.written: Callable[[Any], None] = lambda stream: None

    @staticmethod
    def echo(stream: Any, body: bytes) -> None:
        stream.write(body)
        stream.flush()
        if stream.open:
            stream.read()

    def on_accept(self, stream: Any) -> None:
        self.streams.append(stream)
        self.events.append(("accept", stream.stream_id))
        self.accept(stream)

    def on_message(self, stream: Any, body: bytes) -> None:
        self.events.append(("message", stream.stream_id, body))
        self.answer(stream, body)

    def on_end(self, stream: Any) -> None:
        self.events.append(("end", stream.stream_id))
        self.end(stream)

    def on_too_large(self, stream: Any) -> None:
        self.events.append(("too large", stream.stream_id))
        stream.finish(TOO_LARGE)

    def on_written(self, stream: Any) -> None:
        self.events.append(("written", stream.stream_id))
        self.written(stream)

    def on_close(self, stream: Any, *, cancelled: bool) -> None:
        self.events.append(("close", stream.stream_id, cancelled))


class RecordedCounts:
    """The ``Counts`` of a test.

    Attributes:
        num_accepted: connections accepted.
        closed: number of connections by the reason for which they were closed.
        refused: number of requests by the reason for which they were refused or ended.
        requests: logs nothing.
    """

    def __init__(self) -> None:
        self.requests = RequestLog()
        self.num_accepted = 0
        self.closed: Counter[CloseReason] = Counter()
        self.refused: Counter[RefusalReason] = Counter()

    def connection_accepted(self) -> None:
        self.num_accepted += 1

    def connection_closed(self, reason: CloseReason) -> None:
        self.closed[reason] += 1

    def stream_refused(self, reason: RefusalReason) -> None:
        self.refused[reason] += 1


@dataclass
class Answer:
    """What a client got on one stream."""

    headers: dict[bytes, bytes] = field(default_factory=dict)
    trailers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None
    windows: int = 0

    @property
    def status(self) -> int | None:
        """The gRPC status, if there is one."""
        value = self.trailers.get(b"grpc-status")
        return None if value is None else int(value)

    @property
    def messages(self) -> list[bytes]:
        found, position = [], 0
        while position < len(self.body):
            size = int.from_bytes(self.body[position + 1 : position + 5], "big")
            found.append(self.body[position + 5 : position + 5 + size])
            position += 5 + size
        return found


class Peer:
    """A client with one connection; tests set ``now`` and ``wall``."""

    def __init__(
        self,
        limits: Limits = LIMITS,
        *,
        budget: ReceiveBudget | None = None,
        handshake: bool = True,
        guard: Guard | None = None,
    ) -> None:
        self.now, self.wall = 1000.0, 5_000.0
        self.unary, self.stream, self.unknown = UnaryRecorder(), StreamRecorder(), UnaryRecorder()
        self.unknown.accept = lambda unary: unary.fail(NOT_FOUND)
        self.budget = budget or ReceiveBudget(1 << 24)
        self.counts = RecordedCounts()
        methods = {UNARY: Method(unary=self.unary), STREAM: Method(stream=self.stream)}
        arguments = methods, self.unknown, limits, self.budget, self.counts, self.now, lambda: None
        self.connection = Connection(*arguments) if guard is None else GuardedConnection(guard, *arguments)
        self.answers: dict[int, Answer] = {}
        self.seen: list[Frame] = []
        self.output = b""
        self._rest = b""
        self._decoder = hpack.Decoder()
        if handshake:
            self.send(PREFACE, settings(), raw(SETTINGS, ACK))
            self.seen.clear()
            self.output = b""

    def send(self, *parts: bytes) -> list[Frame]:
        """Send bytes in one piece, and return the frames that come back."""
        self.connection.receive(b"".join(parts), self.now, self.wall)
        return self.read()

    def check(self) -> list[Frame]:
        """Apply time limits, and return the frames that come back."""
        self.connection.check(self.now, self.wall)
        return self.read()

    def read(self) -> list[Frame]:
        """Take all output, as a socket with room does, and decode it."""
        found: list[Frame] = []
        while self.connection.has_output():
            output = self.connection.take_output()
            self.output += output
            found += self._parse(output)
            self.connection.on_sent(len(output))
        return found

    def answer(self, stream_id: int) -> Answer:
        return self.answers.setdefault(stream_id, Answer())

    @property
    def failure(self) -> int | None:
        """The code of the GOAWAY that ended the connection."""
        codes = [each.error_code for each in self.seen if each.type == GOAWAY and each.error_code]
        assert len(codes) <= 1
        assert not codes or self.connection.closing
        return codes[0] if codes else None

    def _parse(self, output: bytes) -> list[Frame]:
        buffer = self._rest + output
        found, position = [], 0
        while len(buffer) - position >= 9:
            frame, length = Frame.parse_frame_header(memoryview(buffer)[position : position + 9], strict=True)
            if len(buffer) - position - 9 < length:
                break
            frame.parse_body(memoryview(buffer)[position + 9 : position + 9 + length])
            position += 9 + length
            self._note(frame)
            found.append(frame)
        self._rest = buffer[position:]
        self.seen += found
        return found

    def _note(self, frame: Frame) -> None:
        assert frame.type != PUSH_PROMISE
        answer = self.answer(frame.stream_id)
        if frame.type in {HEADERS, DATA}:
            assert not answer.ended, "a frame after END_STREAM"
            assert answer.reset is None, "a frame after RST_STREAM"
            answer.ended = "END_STREAM" in frame.flags
        if frame.type == HEADERS:
            assert "END_HEADERS" in frame.flags
            fields = dict(self._decoder.decode(frame.data, raw=True))
            if not answer.headers:
                answer.headers = fields
            if answer.ended:
                answer.trailers = fields
        elif frame.type == DATA:
            assert answer.headers, "DATA before HEADERS"
            answer.body += frame.data
        elif frame.type == RST_STREAM:
            answer.reset = frame.error_code
        elif frame.type == WINDOW_UPDATE:
            answer.windows += frame.window_increment

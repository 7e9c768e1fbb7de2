"""Fuzz targets of the native transport.

The bytes of an input are choices, from which ``Source`` builds frames and times that are mostly valid: otherwise nearly every
input would end at its first frame.
"""

import gzip
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import hpack as library

from digitserve.protocol.names import Code
from digitserve.protocol.status import OK, Status
from digitserve.transport.native import head as heads
from digitserve.transport.native import hpack
from digitserve.transport.native.frames import ErrorCode
from digitserve.transport.native.head import RequestHead, interpret, prepare
from digitserve.transport.native.hpack import Decoder, HpackError
from digitserve.transport.native.limits import FIRST_WINDOW, ReceiveBudget
from digitserve.transport.native.shares import InflateBudget, StreamShare
from support.fuzz_source import CHOICES, Source, Target
from support.header_blocks import captured, grpc_go_style
from support.http2_peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    LIMITS,
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    SETTINGS,
    STREAM,
    UNARY,
    WITH_PRIORITY,
    Peer,
    block,
    message,
    raw,
    request,
    reset,
    settings,
    window_update,
)

MAX_STEPS = 300
"""Most frames and other events of an input: longer inputs find no more."""


# Connections.

BLOCKS = (
    block(request()),
    block(request(STREAM)),
    block(request(STREAM)),
    block(request(b"/no/Such")),
    block(request(UNARY, (b"grpc-encoding", b"gzip"))),
    block(request(STREAM, (b"grpc-encoding", b"gzip"))),
    block(request(STREAM, (b"grpc-encoding", b"zip"))),
    block(request(UNARY, (b"content-length", b"6"))),
    block(request(UNARY, (b"grpc-timeout", b"1S"))),
    block(request(STREAM, (b"grpc-timeout", b"20m"))),
    block(request(UNARY, (b"grpc-timeout", b"soon"))),
    block(request(method=b"GET")),
    block(request(UNARY, (b"BAD", b"1"))),
    block(request(UNARY, *((b"x-%d" % number, bytes(200)) for number in range(90)))),
    b"\x20" + block(request()),
    block([(b"x", b"y")]),
    b"\xbe",
    b"",
)
BODIES = (b"", b"\0", b"\1", b"\2", b"\3", b"\4", b"hello", bytes(300), b"\1" * 5000, bytes(20_000))
MESSAGES = (
    *(message(body) for body in BODIES),
    message(gzip.compress(bytes(50_000), mtime=0), 1),
    message(gzip.compress(bytes(190_000), mtime=0), 1),
    message(gzip.compress(bytes(2_000_000), mtime=0), 1),
    message(b"not gzip", 1),
    message(b"x", 2),
    message(b"hello") * 5,
    message(b"hello")[:-1],
    b"\0\xff\xff\xff\xff",
)
PAUSES_S = (0.0, 0.01, 0.1, 1.0, 5.1, 10.1, 61.0)
OVERLOADED = Status(Code.RESOURCE_EXHAUSTED, "overloaded", retry_after_s=0.5)
TIGHT = replace(LIMITS, max_control_frames=30, max_resets=8, max_streams=4, max_message_bytes=200_000)
OTHER_FRAMES = ("raw", "settings", "ping", "pong", "priority", "reset", "window", "connection window", "bytes")


class Frames:
    """Frames of one client, most of them valid."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._last_id = -1
        self.alive: list[int] = []

    def next(self) -> bytes:
        """Return one or a few frames."""
        source = self._source
        choice = source.byte()
        if choice < 80 or (not self.alive and choice < 200):
            return self._open()
        if choice < 150:
            return self._data(source.pick(MESSAGES))
        if choice < 180:
            return self._end(source.pick(MESSAGES))
        if choice < 200:
            return self._trailers()
        if choice == 255:  # more than half of the connection's window
            return raw(DATA, 0, self._stream(), b"\1" * 16_384) * 520
        return self._other(source.pick(OTHER_FRAMES))

    def _stream(self) -> int:
        return self._source.pick(self.alive) if self.alive else self._source.pick((1, 0, 2, 3, 2**31 - 1))

    def _open(self) -> bytes:
        source = self._source
        self._last_id += 2
        how = source.byte()
        encoded = source.take(how & 63) if how & 64 and how & 128 else source.pick(BLOCKS)
        ended = END_STREAM if how % 5 == 0 else 0
        if not ended:
            self.alive.append(self._last_id)
        if how & 7 == 1:  # in parts
            cut = source.byte() % (len(encoded) + 1)
            return raw(HEADERS, ended, self._last_id, encoded[:cut]) + raw(
                CONTINUATION, END_HEADERS, self._last_id, encoded[cut:]
            )
        if how & 7 == 2:
            before = bytes([source.byte() & 31]) + bytes(5)
            flags = ended | END_HEADERS | PADDED | WITH_PRIORITY
            return raw(HEADERS, flags, self._last_id, before + encoded + bytes(before[0]))
        return raw(HEADERS, ended | END_HEADERS, self._last_id, encoded)

    def _data(self, payload: bytes) -> bytes:
        source, stream_id = self._source, self._stream()
        how = source.byte()
        cut = source.short() % (len(payload) + 1) if how & 1 else 16_384
        parts = [payload[:cut], payload[cut : cut + 16_384]] if len(payload) > cut else [payload[:16_384]]
        if how & 14 == 2:
            padding = source.byte()
            return raw(DATA, PADDED, stream_id, bytes([padding]) + parts[0][: 16_384 - 256] + bytes(padding))
        return b"".join(raw(DATA, 0, stream_id, part) for part in parts)

    def _end(self, payload: bytes) -> bytes:
        stream_id = self._stream()
        if stream_id in self.alive and self._source.byte() & 15:
            self.alive.remove(stream_id)
        return raw(DATA, END_STREAM, stream_id, payload[:16_384])

    def _trailers(self) -> bytes:
        stream_id = self._stream()
        if stream_id in self.alive:
            self.alive.remove(stream_id)
        flags = self._source.pick((END_STREAM | END_HEADERS, END_HEADERS))
        return raw(HEADERS, flags, stream_id, self._source.pick(BLOCKS[-3:]))

    def _other(self, kind: str) -> bytes:  # noqa: PLR0911 - a case for each kind of frame
        source = self._source
        match kind:
            case "settings":
                number = source.pick((4, 4, 4, 5, 1, 2, 3, 6, 9))
                return settings(**{f"s{number}": source.pick((0, 1, 5, 100, 16_384, 65_535, 2**31 - 1, 2**31))})
            case "ping":
                return raw(PING, 0, 0, bytes(8)) * (1 + source.byte() % 8)
            case "pong":
                return raw(PING, ACK, 0, b"draining") + raw(SETTINGS, ACK)
            case "priority":
                return raw(PRIORITY, 0, self._stream(), bytes(source.pick((5, 5, 4))))
            case "reset":
                return reset(self._stream())
            case "window":
                return window_update(self._stream(), source.pick((0, 1, 4, 100, 2**20, 2**31 - 1)))
            case "connection window":
                return window_update(0, source.pick((1, 100, 2**20, 2**31 - 1, 0)))
            case "bytes":
                return source.take(source.byte() % 64)
        return raw(source.byte() % 12, source.byte(), self._stream(), source.take(source.byte() % 32))


class Client(Peer):
    """A client whose frames an input chooses, and the handlers of its calls.

    Handlers answer at once, later, with an error, or with much more than they got, depending on the message.

    Attributes:
        frames: what it sends.
        taking: whether it takes what the server sends.
    """

    def __init__(self, source: Source, limits: Any, budget: ReceiveBudget) -> None:
        super().__init__(limits, budget=budget, handshake=False)
        self.unary.answer, self.unary.accept = self._answer, self._accept
        self.stream.answer = self._answer_stream
        self.frames = Frames(source)
        self.taking = True
        self._source = source
        self._late: list[Callable[[], None]] = []
        start = PREFACE + settings(s4=source.pick((65_535, 65_535, 0, 7, 2**20)))
        self._unsent = source.pick((*[start] * 12, b"", PREFACE, start[:10], b"GET / HTTP/1.1\r\n\r\n"))
        self._large: dict[int, list[int]] = {}  # by stream: bytes that are missing, bytes that were sent

    def step(self) -> None:
        """Take the next step that the input chooses."""
        source = self._source
        match source.byte() % 16:
            case 8:
                self.deliver()
                self.now += (pause_s := source.pick(PAUSES_S))
                self.wall += pause_s
                self.connection.check(self.now, self.wall)
            case 9:
                self.connection.drain(self.now)
            case 10 if self._late:
                self._late.pop(0)()
            case 11:
                self.taking = not self.taking
            case 12 | 13:
                self._send_large()
            case 14:
                self.connection.trim()
                self.connection.on_room()
                self.unary.refused = None if self.unary.refused else OVERLOADED
                self.budget.streams.update(source.byte())
            case 15:
                self.deliver()
            case _:
                self._unsent += self.frames.next()
        if len(self._unsent) > 60_000:
            self.deliver()
        if self.taking:
            self.read()

    def deliver(self) -> None:
        """Pass sent bytes to the connection, in one part or in several, as the loop does."""
        unsent, self._unsent = self._unsent, b""
        how = self._source.byte() & 15
        step = {0: 1, 1: 7, 2: 100}.get(how) if len(unsent) < 5000 else None
        parts = [unsent[start : start + step] for start in range(0, len(unsent), step)] if step else [unsent]
        for part in parts:
            if not self.connection.wants_read():
                return  # closed, or what it sends is not read any more
            self.connection.receive(part, self.now, self.wall)
            if self.taking:
                self.read()
        self.check_limits()

    def check_limits(self) -> None:
        """Nothing is held beyond the limits, and no internal error has occurred."""
        connection, limits = self.connection, self.connection.limits
        assert self.failure != ErrorCode.INTERNAL_ERROR
        if connection.closing:
            return
        assert len(connection._rest) <= 9 + 16_384
        assert len(connection._block or b"") <= limits.max_header_block_bytes + 16_384
        assert len(connection.streams) <= limits.max_streams
        assert connection._receive_window >= 0
        assert connection.send_window <= 2**31 - 1
        assert connection.num_unsent_bytes >= 0
        if self.taking:
            self.read()  # other connections may have ended a call, such as one whose message was evicted
            assert connection.num_unsent_bytes == 0
        for stream in connection.streams.values():
            assert stream.receive_window <= max(FIRST_WINDOW, limits.max_message_bytes + 5)
            assert stream.send_window <= 2**31 - 1
            assert len(stream.buffer or b"") <= stream._held_bytes or not stream.buffer

    def check_released(self) -> None:
        """After the connection is dropped, each call has ended exactly once."""
        self.read()
        self.connection.drop()
        self.read()
        assert not self.connection.streams and not self.connection.blocked and not self.connection.waiting
        ends = {"answered", "failed", "too large", "close"}
        self._check_ends(self.unary.events, ends)
        self._check_ends(self.stream.events, {"close"})

    @staticmethod
    def _check_ends(events: list[tuple[Any, ...]], ends: set[str]) -> None:
        kinds: dict[int, list[str]] = {}
        for kind, stream_id, *_ in events:
            kinds.setdefault(stream_id, []).append(kind)
        for seen in kinds.values():
            assert seen[0] == "accept" and seen.count("accept") == 1, seen
            assert sum(kind in ends for kind in seen) == 1, seen

    def _send_large(self) -> None:
        """Begin a large message, or send of it what the windows allow."""
        alive = self.frames.alive
        if not alive:
            return
        stream_id = self._source.pick(alive)
        size = self._source.short() * 4
        if stream_id not in self._large:
            self._large[stream_id] = [size, 5]
            self._unsent += raw(DATA, 0, stream_id, b"\0" + size.to_bytes(4, "big"))
            return
        self.read()
        missing, sent = self._large[stream_id]
        room = min(missing, FIRST_WINDOW + self.answer(stream_id).windows - sent, 16_384)
        if room > 0:
            self._large[stream_id] = [missing - room, sent + room]
            self._unsent += raw(DATA, 0, stream_id, bytes(room))

    def _accept(self, unary: Any) -> None:
        if unary.stream_id % 16 == 15:
            self._finish(unary, lambda: unary.fail(Status(Code.RESOURCE_EXHAUSTED, "overloaded")))

    def _finish(self, unary: Any, action: Callable[[], None]) -> None:
        if unary.open:
            self.unary.events.append(("answered", unary.stream_id))
            action()

    def _answer(self, unary: Any, body: bytes) -> None:
        match body[:1]:
            case b"\1":
                self._late.append(lambda: self._finish(unary, lambda: unary.reply(body)))
            case b"\2":
                self._finish(unary, lambda: unary.fail(Status(Code.NOT_FOUND, "ü\n%")))
            case b"\3":
                self._finish(unary, lambda: unary.reply(bytes(40_000)))
            case _:
                self._finish(unary, lambda: unary.reply(body))

    def _answer_stream(self, stream: Any, body: bytes) -> None:
        match body[:1]:
            case b"\1":
                self._late.append(lambda: stream.open and stream.read())
            case b"\2":
                stream.finish(Status(Code.NOT_FOUND, "enough"))
            case b"\3":
                for _ in range(3):
                    stream.write(bytes(20_000))
                stream.flush()
                if stream.open:
                    stream.read()
            case b"\4":
                stream.write(body)
                stream.finish(OK)
            case _:
                stream.write(body)
                stream.flush()
                if stream.open:
                    stream.read()


class ChosenDelays(InflateBudget):
    """Compressed messages wait or not, as an input chooses: its result does not depend on the time of decompression."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self._source = source

    def may_start(self, num_compressed_bytes: int, num_bytes: int) -> bool:
        return bool(self._source.byte() & 1)


def one_connection(choices: bytes) -> None:
    """A connection gets any frames: no exception, no limit exceeded, all released at the end."""
    source = Source(choices)
    budget = ReceiveBudget(1 << 24)
    budget.streams = StreamShare(source.pick((1 << 31, 40)))
    client = Client(source, source.pick((LIMITS, TIGHT)), budget)
    _run(source, [client], budget)


def shared_budget(choices: bytes) -> None:
    """Connections share a budget for few messages: it is never exceeded, and all of it is free at the end."""
    source = Source(choices)
    budget = ReceiveBudget(source.pick((300_000, 500_000)))
    limits = replace(TIGHT, max_streams=8)
    _run(source, [Client(source, limits, budget) for _ in range(4)], budget)


def _run(source: Source, clients: list[Client], budget: ReceiveBudget) -> None:
    budget.inflate = ChosenDelays(source)
    steps = 0
    while source and steps < MAX_STEPS:
        steps += 1
        client = clients[source.byte() % len(clients)] if len(clients) > 1 else clients[0]
        client.step()
        held = [stream for each in clients for stream in each.connection.streams.values()]
        assert budget.reserved_bytes == sum(stream._held_bytes for stream in held if stream._reserved)
        assert budget.first_bytes == sum(stream._held_bytes for stream in held if not stream._reserved)
        assert 0 <= budget.reserved_bytes <= budget.max_reserved_bytes
        assert 0 <= budget.first_bytes <= budget.max_bytes - budget.max_reserved_bytes
    for client in clients:
        client.deliver()
        client.check_released()
    assert budget.used_bytes == 0 and not budget._holders


def splits(choices: bytes) -> None:
    """Frames that arrive in parts of any size have the same effect as whole ones."""
    source = Source(choices)
    step = 1 + source.byte() % 40
    drains = bool(source.byte() & 1)
    frames = Frames(source)
    whole = [PREFACE + settings(s4=source.pick((65_535, 0, 7)))]
    while source and len(whole) < 30:
        whole.append(frames.next())
    parts = []
    for frame in whole:
        size = max(step, len(frame) // 50)
        parts += [frame[start : start + size] for start in range(0, len(frame), size)]
    assert _outcome(parts, drains=drains) == _outcome(whole, drains=drains)


def _outcome(parts: list[bytes], *, drains: bool) -> tuple[Any, ...]:
    peer = Peer(replace(LIMITS, max_control_frames=30, max_resets=10), handshake=False)
    if drains:
        peer.connection.drain(peer.now)
    output = [peer.connection.take_output()]
    connection = peer.connection
    for part in parts:
        connection.receive(part, peer.now, peer.wall)
        output.append(b"")
        while connection.has_output():
            output.append(connection.take_output())
            connection.on_sent(len(output[-1]))
    assert b"internal error" not in output[-1]
    # When a message counts as sent depends on when the socket takes it.
    events = [event for event in peer.stream.events if event[0] != "written"]
    return (
        b"".join(output), peer.unary.events, events, peer.unknown.events, connection.closing,
        sorted(connection.streams), peer.budget.used_bytes, connection.send_window,
    )  # fmt: skip


# Header blocks.

STRICTER = ("four continuation bytes", "more than two")
"""Blocks that the library accepts and the decoder refuses: long integers and many size updates."""


def header_blocks(choices: bytes) -> None:
    """Blocks of one connection are accepted or refused as by the ``hpack`` library, with the same fields and table."""
    source = Source(choices)
    decoder, cached = Decoder(), Decoder()
    oracle = library.Decoder(max_header_list_size=1 << 30)
    while source:
        encoded = source.take(source.byte())
        try:
            expected = [(bytes(name), bytes(value)) for name, value in oracle.decode(encoded, raw=True)]
        except library.HPACKError:
            assert _refuses(decoder, encoded) is not None, "accepted what the library refuses"
            return
        try:
            fields = decoder.decode_fields(encoded)
        except HpackError as error:
            assert any(reason in str(error) for reason in STRICTER), error
            return
        assert [field[:2] for field in fields] == expected
        assert [field[:2] for field in decoder._table[hpack._NEWEST :]] == [
            (bytes(name), bytes(value)) for name, value in oracle.header_table.dynamic_entries
        ]
        # Remembered blocks change nothing.
        for _ in range(2 if decoder._table == cached._table else 1):
            head = cached.decode_request(encoded)
        if head.problem is not heads.Problem.FIELDS_TOO_LARGE:
            assert [field[:2] for field in head._decoded] == expected or encoded[:1] >= b"\x20"
        cached = Decoder()
        cached._table, cached._size_bytes = decoder._table.copy(), decoder._size_bytes
        cached._max_bytes, cached._largest_bytes = decoder._max_bytes, decoder._largest_bytes


def _refuses(decoder: Decoder, encoded: bytes) -> HpackError | None:
    try:
        decoder.decode_fields(encoded)
    except HpackError as error:
        return error
    return None


NAMES = (
    b":method", b":scheme", b":path", b":authority", b"host", b"content-type", b"content-length", b"grpc-timeout",
    b"grpc-encoding", b"grpc-accept-encoding", b"te", b"connection", b"upgrade", b"user-agent", b"x-a", b"x-b-bin", b"X-A",
)  # fmt: skip
FIELD_VALUES = (
    b"POST", b"GET", b"CONNECT", b"http", b"/a/B", b"server", b"application/grpc", b"application/grpc+proto;a=b",
    b"application/grpc-web", b"5", b"0005", b"-1", b"1S", b"99999999H", b"1", b"", b"gzip", b"identity", b"trailers",
    b"a\0b", b" a", b"a ", b"a@b",
)  # fmt: skip
VALID_FIELDS = (
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/a/B"),
    (b"content-type", b"application/grpc"),
)


def request_heads(choices: bytes) -> None:
    """Any fields have a meaning, the same with and without what is remembered of earlier requests, and it is consistent."""
    source = Source(choices)
    while source:
        fields = list(VALID_FIELDS) if source.byte() & 1 else []
        for _ in range(source.byte() % 8):
            name = source.pick(NAMES) if source.byte() & 3 else source.take(source.byte() % 12)
            value = source.pick(FIELD_VALUES) if source.byte() & 3 else source.take(source.byte() % 24)
            fields.insert(source.byte() % (len(fields) + 1), (name, value))
        warm = _meaning(fields)
        for remembered in (heads._MEANINGS, heads._ROLE_BY_FIELD, heads._ROLE_BY_NAME):
            remembered.clear()
        heads._ROLE_BY_NAME.update(heads._DEADLINE_ONLY)
        cold = _meaning(fields)
        assert _attributes(warm) == _attributes(cold)
        if cold.problem is None:
            values = dict(reversed(fields))
            assert cold.path == values[b":path"] and cold.path
            assert values[b":method"] == b"POST" and values[b":scheme"]
            assert values[b"content-type"].lower().startswith(b"application/grpc")
            assert values.get(b"te", b"trailers").lower() == b"trailers"
            assert all(name == name.lower() and name for name, _ in fields)
            assert not any(forbidden in value for _, value in fields for forbidden in (b"\0", b"\r", b"\n"))
            assert sum(name == b":path" for name, _ in fields) == 1
            assert cold.timeout_s >= 0
        else:
            assert cold.message


def _meaning(fields: list[tuple[bytes, bytes]]) -> RequestHead:
    return interpret([prepare(name, value) for name, value in fields])


def _attributes(head: RequestHead) -> tuple[Any, ...]:
    return (
        head.path, head.timeout_s, head.encoding, head.content_length, head.accepts_gzip, head.authority, head.problem,
        head.message, [field[:2] for field in head.fields],
    )  # fmt: skip


def _block_seeds() -> Iterator[bytes]:
    """Return the first blocks of real clients."""
    connections = {**captured(), "grpc-go": grpc_go_style(8, 2)}
    for blocks in connections.values():
        yield b"".join(bytes([len(encoded)]) + encoded for encoded, _ in blocks[:8] if len(encoded) < 256)


TARGETS = {
    "connection": Target(one_connection, CHOICES),
    "budget": Target(shared_budget, CHOICES),
    "splits": Target(splits, CHOICES, 800),
    "header-blocks": Target(header_blocks, tuple(_block_seeds())),
    "request-heads": Target(request_heads, CHOICES, 800),
}

"""The load generator's HTTP/2 connection without a socket: bytes in, events out, for any peer."""

import itertools
import struct
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.bench import frames as h2
from digitserve.bench import wire
from digitserve.bench.http2 import Connection

REQUEST = wire.request_headers("/a.B/C", "host:1", "test", 0.25)


def settings(**values: int) -> bytes:
    return h2.frame(h2.SETTINGS, 0, 0, b"".join(struct.pack(">HI", getattr(h2, name), values[name]) for name in values))


def connection(window_bytes: int = 1 << 24, **announced: int) -> Connection:
    """Return a connection on which the peer's settings have arrived."""
    made = Connection(REQUEST, wire.read_status, window_bytes)
    made.take_output()
    made.receive(settings(**announced) + h2.frame(h2.SETTINGS, h2.ACK, 0))
    made.take_output()
    return made


def frames_in(sent: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Parse output into frames: type, flags, stream id, payload."""
    while sent:
        high, low, kind, flags, stream = h2.FRAME_HEADER.unpack_from(sent)
        num_bytes = high << 16 | low
        yield kind, flags, stream, sent[h2.FRAME_HEADER_BYTES : h2.FRAME_HEADER_BYTES + num_bytes]
        sent = sent[h2.FRAME_HEADER_BYTES + num_bytes :]


class Peer:
    """Creates the frames of a service, with a real HPACK encoder whose table has size 0, as we announced."""

    def __init__(self) -> None:
        self._encoder = hpack.Encoder()
        self._encoder.header_table_size = 0

    def block(self, *headers: tuple[str, str]) -> bytes:
        return self._encoder.encode(headers)

    def answer(self, stream: int, message: bytes, status: str = "0", text: str = "") -> bytes:
        """Return the frames of an answer: headers, one message, trailers."""
        begin = self.block((":status", "200"), ("content-type", "application/grpc"))
        end = self.block(("grpc-status", status), *((("grpc-message", text),) if text else ()))
        return (
            h2.frame(h2.HEADERS, h2.END_HEADERS, stream, begin)
            + h2.frame(h2.DATA, 0, stream, wire.add_prefix(message))
            + h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, stream, end)
        )


def test_the_preface_comes_first_and_streams_wait_for_settings() -> None:
    """The output starts with preface, settings with HPACK table size 0, and the connection's window; streams wait for SETTINGS."""
    made = Connection(REQUEST, wire.read_status)
    sent = made.take_output()
    assert sent.startswith(h2.PREFACE)
    (first, update) = frames_in(sent[len(h2.PREFACE) :])
    announced = dict(struct.iter_unpack(">HI", first[3]))
    assert announced[h2.HEADER_TABLE_SIZE] == 0 and announced[h2.ENABLE_PUSH] == 0
    assert update[0] == h2.WINDOW_UPDATE and h2.read_u32(update[3]) + 65_535 == announced[h2.INITIAL_WINDOW_SIZE]
    assert not made.can_open()
    made.receive(settings())
    assert made.can_open()
    assert [frame[:2] for frame in frames_in(made.take_output())] == [(h2.SETTINGS, h2.ACK)]


@pytest.mark.parametrize("table", [0, 100, 4096, 65_536])
def test_every_request_carries_the_same_headers(table: int) -> None:
    """For any HPACK table size, a real decoder reads the same headers from each stream; with a table, later blocks only
    refer to it.
    """
    made = connection(HEADER_TABLE_SIZE=table)
    decoder = hpack.Decoder()
    decoder.max_allowed_table_size = table
    for _ in range(3):
        made.open(b"body", end_stream=True)
    blocks = [payload for kind, _, _, payload in frames_in(made.take_output()) if kind == h2.HEADERS]
    assert all([tuple(header) for header in decoder.decode(block)] == REQUEST for block in blocks)
    if table >= 4096:
        assert len(blocks[1]) < 12 < len(blocks[0])


pieces = st.lists(
    st.sampled_from(["answer", "error", "long", "padded", "continued", "priority", "unknown", "ping", "settings", "window", "reset"]),
    min_size=1, max_size=12,
)  # fmt: skip


def session(kinds: list[str], made: Connection) -> bytes:
    """Return the bytes that a peer may send for as many open streams."""
    peer, sent = Peer(), b""
    for kind in kinds:
        stream = made.open(b"x", end_stream=True)
        trailers = h2.END_HEADERS | h2.END_STREAM
        if kind == "error":
            sent += peer.answer(stream, b"", "3", "caf%C3%A9 is not a digit")
        elif kind == "padded":
            block = peer.block((":status", "200"), ("grpc-status", "5"))
            sent += h2.frame(h2.DATA, h2.PADDED, stream, b"\x03" + b"data" + bytes(3))
            sent += h2.frame(h2.HEADERS, trailers | h2.PADDED, stream, b"\x02" + block + bytes(2))
        elif kind == "continued":
            block = peer.block((":status", "200"), ("grpc-status", "16"))
            sent += h2.frame(h2.HEADERS, h2.END_STREAM, stream, block[:2])
            sent += h2.frame(h2.CONTINUATION, 0, stream, block[2:3])
            sent += h2.frame(h2.CONTINUATION, h2.END_HEADERS, stream, block[3:])
        elif kind == "priority":
            sent += h2.frame(
                h2.HEADERS, trailers | h2.WITH_PRIORITY, stream, bytes(5) + peer.block(("grpc-status", "7"))
            )
        elif kind == "unknown":
            sent += h2.frame(0xBE, 0xFF, stream, b"whatever") + peer.answer(stream, b"after it")
        elif kind == "reset":
            sent += h2.frame(h2.RST_STREAM, 0, stream, struct.pack(">I", h2.CANCEL))
        else:
            sent += {
                "ping": h2.frame(h2.PING, 0, 0, b"12345678"),
                "settings": settings(MAX_CONCURRENT_STREAMS=50),
                "window": h2.frame(h2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 100)),
            }.get(kind, b"")
            sent += peer.answer(stream, b"m" * (40_000 if kind == "long" else 10))
    return sent


@given(kinds=pieces, cuts=st.lists(st.floats(0, 1), max_size=30))
def test_any_chunking_gives_the_same_events(kinds: list[str], cuts: list[float]) -> None:
    """Events and output do not depend on how TCP splits the bytes."""
    whole, cut = connection(), connection()
    sent = session(kinds, whole)
    assert session(kinds, cut) == sent
    events = whole.receive(sent)
    edges = [0, *sorted(int(part * len(sent)) for part in cuts), len(sent)]
    in_parts = [event for begin, end in itertools.pairwise(edges) for event in cut.receive(sent[begin:end])]
    assert in_parts == events
    assert cut.take_output() == whole.take_output()
    assert whole.num_open == cut.num_open == 0


def test_frame_contents() -> None:
    """Padding, priority, continuation and percent-encoding are removed; unknown frames are ignored."""
    made = connection()
    kinds = ["answer", "error", "padded", "continued", "priority", "unknown", "reset"]
    events = made.receive(session(kinds, made))
    ends = {stream: value for _, stream, value, ended in events if ended}
    assert list(ends.values()) == [
        (0, ""), (3, "café is not a digit"), (5, ""), (16, ""), (7, ""), (0, ""), h2.CANCEL,
    ]  # fmt: skip
    assert [value for kind, stream, value, _ in events if (kind, stream) == (h2.DATA, 5)] == [b"data"]


def test_a_ping_is_answered_and_settings_are_acknowledged() -> None:
    """The answer to a PING carries its payload."""
    made = connection()
    made.receive(h2.frame(h2.PING, 0, 0, b"abcdefgh") + h2.frame(h2.PING, h2.ACK, 0, b"ignored!"))
    made.receive(settings(MAX_CONCURRENT_STREAMS=3))
    assert list(frames_in(made.take_output())) == [
        (h2.PING, h2.ACK, 0, b"abcdefgh"),
        (h2.SETTINGS, h2.ACK, 0, b""),
    ]


def test_a_peer_without_hpack_table_size_update() -> None:
    """GRPC core answers expired calls with literal headers and no table size update; they are decoded."""
    made = connection()
    block = b"\x00\x07:status\x03200\x00\x0bgrpc-status\x014"
    for _ in range(2):
        stream = made.open(b"x", end_stream=True)
        sent = h2.frame(h2.HEADERS, h2.END_HEADERS | h2.END_STREAM, stream, block)
        assert made.receive(sent) == [(h2.HEADERS, stream, (4, ""), True)]


def test_max_concurrent_streams() -> None:
    """MAX_CONCURRENT_STREAMS limits the open streams; when one ends, another may be opened."""
    made = connection(MAX_CONCURRENT_STREAMS=2)
    made.open(b"a", end_stream=True)
    stream = made.open(b"b", end_stream=True)
    assert not made.can_open()
    made.receive(Peer().answer(stream, b""))
    assert made.can_open()


def test_goaway_ends_streams_that_the_peer_does_not_process() -> None:
    """Streams after the last processed one are refused, earlier ones continue, and no new one is opened."""
    made = connection()
    first, second, third = (made.open(b"x", end_stream=True) for _ in range(3))
    events = made.receive(h2.frame(h2.GOAWAY, 0, 0, struct.pack(">II", first, 0) + b"why"))
    assert events == [
        (h2.GOAWAY, first, 0, False),
        (h2.RST_STREAM, second, h2.REFUSED_STREAM, True),
        (h2.RST_STREAM, third, h2.REFUSED_STREAM, True),
    ]
    assert not made.can_open()
    assert [event[1] for event in made.receive(Peer().answer(first, b"late"))] == [first] * 3


def test_a_cancelled_stream_causes_no_more_events() -> None:
    """The peer receives RST_STREAM; later frames on the stream are ignored."""
    made = connection()
    stream = made.open(b"x", end_stream=True)
    made.take_output()
    made.cancel(stream)
    assert list(frames_in(made.take_output())) == [(h2.RST_STREAM, 0, stream, struct.pack(">I", h2.CANCEL))]
    assert made.receive(Peer().answer(stream, b"late")) == []


def test_an_early_answer_ends_a_partly_sent_request() -> None:
    """When the peer has answered, the rest of the body is not sent, and the stream is reset."""
    made = connection()
    stream = made.open(bytes(100_000), end_stream=True)
    made.take_output()
    made.receive(Peer().answer(stream, b"", "8"))
    assert list(frames_in(made.take_output())) == [(h2.RST_STREAM, 0, stream, struct.pack(">I", h2.NO_ERROR))]
    made.receive(h2.frame(h2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 20)))
    assert made.take_output() == b""


steps = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.integers(0, 90_000)),
        st.tuples(st.just("connection"), st.integers(1, 50_000)),
        st.tuples(st.just("stream"), st.integers(1, 50_000)),
        st.tuples(st.just("initial"), st.integers(0, 80_000)),
    ),
    max_size=25,
)


@given(steps=steps, seed=st.randoms(use_true_random=False))
def test_the_peers_windows_are_never_exceeded(steps: list[tuple[str, int]], seed: Any) -> None:
    """Sent bytes never exceed the windows of the connection and each stream, even when the initial window shrinks below
    what was sent. After large window updates, every body has arrived complete, in order, and ended once.
    """
    made = connection()
    initial, granted, sent = 65_535, 65_535, 0
    windows: dict[int, int] = {}
    bodies: dict[int, bytes] = {}
    arrived: dict[int, bytes] = defaultdict(bytes)
    ended: dict[int, int] = defaultdict(int)

    def check() -> None:
        nonlocal sent
        for kind, flags, stream, payload in frames_in(made.take_output()):
            if kind == h2.DATA:
                assert len(payload) <= 16_384
                sent += len(payload)
                arrived[stream] += payload
                ended[stream] += flags & h2.END_STREAM
                assert sent <= granted
                assert not payload or len(arrived[stream]) <= windows[stream]

    for step, amount in steps:
        if step == "open":
            body = seed.randbytes(amount)
            stream = made.open(body, end_stream=True)
            bodies[stream], windows[stream] = body, initial
        elif step == "connection":
            made.receive(h2.frame(h2.WINDOW_UPDATE, 0, 0, struct.pack(">I", amount)))
            granted += amount
        elif step == "initial":
            # The change applies only to frames sent after it.
            made.receive(settings(INITIAL_WINDOW_SIZE=amount))
            windows = {stream: window + amount - initial for stream, window in windows.items()}
            initial = amount
        elif bodies:
            stream = seed.choice(sorted(bodies))
            made.receive(h2.frame(h2.WINDOW_UPDATE, 0, stream, struct.pack(">I", amount)))
            windows[stream] += amount
        check()
    granted += 1 << 30
    made.receive(h2.frame(h2.WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 30)))
    for stream in bodies:
        windows[stream] += 1 << 30
        made.receive(h2.frame(h2.WINDOW_UPDATE, 0, stream, struct.pack(">I", 1 << 30)))
    check()
    assert dict(arrived) == bodies
    assert all(num == 1 for num in ended.values())


@given(st.lists(st.integers(1, 16_384), max_size=60))
def test_our_own_windows_are_updated(sizes: list[int]) -> None:
    """A peer that respects our windows can send without limit, on one stream and on the connection."""
    made = connection(window_bytes=65_535)
    stream = made.open(b"x", end_stream=False)
    made.take_output()
    rooms = {0: 65_535, stream: 65_535}
    for size in sizes:
        assert min(rooms.values()) >= size
        made.receive(h2.frame(h2.DATA, 0, stream, bytes(size)))
        rooms = {where: room - size for where, room in rooms.items()}
        for kind, _, where, payload in frames_in(made.take_output()):
            assert kind == h2.WINDOW_UPDATE
            rooms[where] += h2.read_u32(payload)
            assert rooms[where] <= 65_535


@pytest.mark.parametrize(
    ("what", "sent"),
    [
        ("HTTP/1", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        ("push", settings() + h2.frame(h2.PUSH_PROMISE, h2.END_HEADERS, 1, bytes(8))),
        ("continuation alone", settings() + h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, b"")),
        ("a frame inside a block", settings() + h2.frame(h2.HEADERS, 0, 1, b"") + h2.frame(h2.PING, 0, 0, bytes(8))),
        ("too much padding", settings() + h2.frame(h2.HEADERS, h2.END_HEADERS | h2.PADDED, 1, b"\x09ab")),
        ("invalid HPACK", settings() + h2.frame(h2.HEADERS, h2.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff")),
        ("odd settings", h2.frame(h2.SETTINGS, 0, 0, b"12345")),
        ("a window too large", settings(INITIAL_WINDOW_SIZE=1 << 31)),
        ("a short GOAWAY", settings() + h2.frame(h2.GOAWAY, 0, 0, b"12")),
        ("no settings first", h2.frame(h2.PING, 0, 0, bytes(8))),
    ],
)
def test_protocol_violations(what: str, sent: bytes) -> None:
    """Every violation of HTTP/2 raises ProtocolError."""
    with pytest.raises(h2.ProtocolError):
        Connection(REQUEST, wire.read_status).receive(sent)

"""State machine of a connection of the native transport whose peer is a client of the ``h2`` library."""

import random
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.settings
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.transport.native.connection import Connection, Method
from digitserve.transport.native.limits import Limits, ReceiveBudget
from support.http2_peer import (
    NOT_FOUND,
    STREAM,
    UNARY,
    RecordedCounts,
    StreamRecorder,
    UnaryRecorder,
    message,
    request,
)

EXAMPLES = 200
SIZES = st.sampled_from([0, 1, 100, 16_379, 16_380, 65_530, 65_531, 150_000])
# The network of the state machine may take longer than preface and header blocks may.
MACHINE_LIMITS = Limits(max_message_bytes=200_000, max_streams=20, max_unsent_bytes=40_000, handshake_s=1e9)


@dataclass
class Sent:
    """A call of the client."""

    path: bytes
    bodies: list[bytes]
    unsent: bytes
    received: bytearray = field(default_factory=bytearray)
    trailers: dict[bytes, bytes] | None = None
    finished: bool = False  # the request has ended
    reset: int | None = None  # by the server
    cancelled: bool = False  # by the client

    @property
    def over(self) -> bool:
        return self.trailers is not None or self.reset is not None or self.cancelled


class H2Client(RuleBasedStateMachine):
    """An ``h2`` client and the server's connection, with two pipes between them that tests move bytes through."""

    @initialize(budget=st.sampled_from([160_000, 400_000, 1 << 24]))
    def connect(self, budget: int) -> None:
        self.now, self.wall = 100.0, 1e9
        self.unary, self.stream, self.unknown = UnaryRecorder(), StreamRecorder(), UnaryRecorder()
        self.held: list[tuple[Any, bytes]] = []
        self.holds = False
        self.unary.answer = self._answer
        self.unknown.accept = lambda unary: unary.fail(NOT_FOUND)
        self.budget = ReceiveBudget(budget)
        methods = {UNARY: Method(unary=self.unary), STREAM: Method(stream=self.stream)}
        counts = RecordedCounts()
        self.connection = Connection(methods, self.unknown, MACHINE_LIMITS, self.budget, counts, self.now, lambda: None)
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding=None))
        self.client.initiate_connection()
        self.num_unacknowledged_settings = 1
        self.to_server, self.to_client, self.unsent = bytearray(), bytearray(), b""
        self.calls: dict[int, Sent] = {}
        self.unacknowledged: list[tuple[int, int]] = []

    def _answer(self, unary: Any, body: bytes) -> None:
        if self.holds:
            self.held.append((unary, body))
        else:
            unary.reply(body[::-1])

    # What the client does.

    @rule(
        path=st.sampled_from([UNARY, UNARY, STREAM, b"/no/Such"]),
        sizes=st.lists(SIZES, min_size=1, max_size=3),
        extra=st.lists(st.sampled_from([(b"a", b"1"), (b"long", b"x" * 300), (b"grpc-timeout", b"5S")]), unique=True),
    )
    def open(self, path: bytes, sizes: list[int], extra: list[tuple[bytes, bytes]]) -> None:
        if self.client.open_outbound_streams >= MACHINE_LIMITS.max_streams:
            return
        stream_id = self.client.get_next_available_stream_id()
        bodies = [random.Random(stream_id).randbytes(size) for size in (sizes if path == STREAM else sizes[:1])]
        self.calls[stream_id] = Sent(path, bodies, b"".join(map(message, bodies)))
        self.client.send_headers(stream_id, request(path, *extra))
        self._flush()

    @rule(chunk=st.sampled_from([1, 4, 5, 6, 1000, 16_384]), padding=st.sampled_from([None, None, 0, 50]))
    def send_bodies(self, chunk: int, padding: int | None) -> None:
        for stream_id, each in self.calls.items():
            self._send_body(stream_id, each, chunk, padding)
        self._flush()

    def _send_body(self, stream_id: int, each: Sent, chunk: int, padding: int | None = None) -> None:
        if each.finished or each.cancelled or each.reset is not None:
            return
        overhead = 0 if padding is None else 1 + padding
        window = self.client.local_flow_control_window(stream_id) - overhead
        size = min(chunk, window, self.client.max_outbound_frame_size - overhead, len(each.unsent))
        if size <= 0 and each.unsent:
            return
        part, each.unsent = each.unsent[:size], each.unsent[size:]
        each.finished = not each.unsent
        if size >= 0 and window >= 0:
            self.client.send_data(stream_id, part, end_stream=each.finished, pad_length=padding)
        else:
            self.client.end_stream(stream_id)

    @rule(index=st.integers(0, 30), code=st.sampled_from([0, 8]))
    def cancel(self, index: int, code: int) -> None:
        alive = [stream_id for stream_id, each in self.calls.items() if not each.over]
        if alive:
            stream_id = alive[index % len(alive)]
            self.client.reset_stream(stream_id, code)
            self.calls[stream_id].cancelled = True
            self._flush()

    # h2 applies a pending change at the next acknowledgement, even if that is for an earlier frame: so one at a time.
    @precondition(lambda self: not self.num_unacknowledged_settings)
    @rule(window=st.sampled_from([0, 1, 1000, 65_535, 300_000]))
    def change_window(self, window: int) -> None:
        self.num_unacknowledged_settings += 1
        self.client.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
        self._flush()

    @precondition(lambda self: not self.num_unacknowledged_settings)
    @rule(size=st.sampled_from([16_384, 20_000, 100_000]))
    def change_frame_size(self, size: int) -> None:
        self.num_unacknowledged_settings += 1
        self.client.update_settings({h2.settings.SettingCodes.MAX_FRAME_SIZE: size})
        self._flush()

    @rule()
    def ping_and_priority(self) -> None:
        self.client.ping(b"12345678")
        self.client.prioritize(max(self.calls, default=1), weight=5)
        self._flush()

    @rule()
    def acknowledge(self) -> None:
        """Give back the windows of what was received."""
        for num_bytes, stream_id in self.unacknowledged:
            self.client.acknowledge_received_data(num_bytes, stream_id)
        self.unacknowledged.clear()
        self._flush()

    def _flush(self) -> None:
        self.to_server += self.client.data_to_send()

    # What the network does.

    @rule(size=st.sampled_from([1, 8, 9, 10, 100, 20_000, 1 << 30]))
    def deliver_to_server(self, size: int) -> None:
        if self.connection.wants_read() and self.to_server:
            part = bytes(self.to_server[:size])
            del self.to_server[:size]
            self.connection.receive(part, self.now, self.wall)

    @rule(size=st.sampled_from([1, 50, 10_000, 1 << 30]))
    def deliver_to_client(self, size: int) -> None:
        if not self.unsent:
            self.unsent = self.connection.take_output()
        part, self.unsent = self.unsent[:size], self.unsent[size:]
        self.connection.on_sent(len(part))
        for event in self.client.receive_data(part):
            self._on_event(event)
        self._flush()

    def _on_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.SettingsAcknowledged():
                self.num_unacknowledged_settings -= 1
            case h2.events.DataReceived():
                self.calls[event.stream_id].received += event.data
                self.unacknowledged.append((event.flow_controlled_length, event.stream_id))
            case h2.events.TrailersReceived():
                self.calls[event.stream_id].trailers = dict(event.headers)
            case h2.events.ResponseReceived() if event.stream_ended is not None:
                self.calls[event.stream_id].trailers = dict(event.headers)
            case h2.events.StreamReset() if event.remote_reset:
                self.calls[event.stream_id].reset = event.error_code
            case h2.events.ConnectionTerminated():
                raise AssertionError(f"GOAWAY {event.error_code} {event.additional_data!r}")

    # What the server does.

    @rule(holds=st.booleans())
    def hold_answers(self, holds: bool) -> None:
        self.holds = holds

    @precondition(lambda self: self.held)
    @rule(index=st.integers(0, 30), fails=st.booleans())
    def answer_later(self, index: int, fails: bool) -> None:
        unary, body = self.held.pop(index % len(self.held))
        if unary.open and fails:
            unary.fail(Status(Code.NOT_FOUND, "no"))
        elif unary.open:
            unary.reply(body[::-1])

    @rule(seconds=st.sampled_from([0.05, 1.0, 6.0]))
    def check(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds
        self.connection.check(self.now, self.wall)

    @invariant()
    def bounds(self) -> None:
        assert 0 <= self.budget.used_bytes <= self.budget.max_bytes
        assert len(self.connection.streams) <= MACHINE_LIMITS.max_streams
        assert not self.connection.closing
        assert self.connection.num_unsent_bytes <= MACHINE_LIMITS.max_unsent_bytes + 60_000

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        self.holds = False
        opened = False
        for _ in range(400):
            if not opened and not self.num_unacknowledged_settings:
                self.change_window(300_000)
                opened = True
            while self.held:
                self.answer_later(0, fails=False)
            self.deliver_to_server(1 << 30)
            while self.connection.has_output() or self.unsent:
                self.deliver_to_client(1 << 30)
            self.acknowledge()
            self._send_what_is_allowed()
            if not self.to_server and not self.connection.has_output():
                if not self.connection.streams:
                    break
                self.check(0.5)
        assert not self.connection.streams, "a call has no outcome"
        assert self.budget.used_bytes == 0
        assert not self.connection.blocked and not self.connection.waiting
        events = self.unary.events + self.stream.events + self.unknown.events
        for stream_id, each in self.calls.items():
            self._verify(stream_id, each, [event[0] for event in events if event[1] == stream_id])

    def _send_what_is_allowed(self) -> None:
        for stream_id, each in self.calls.items():
            before = -1
            while len(each.unsent) != before and not each.finished:
                before = len(each.unsent)
                self._send_body(stream_id, each, 16_384)
        self._flush()

    def _verify(self, stream_id: int, each: Sent, kinds: list[str]) -> None:
        assert each.over, "the client got no answer"
        assert kinds.count("accept") == (1 if kinds or not each.cancelled else 0)
        if each.path == STREAM and kinds:
            assert kinds.count("close") == 1
        if each.path == UNARY:
            assert kinds.count("close") + kinds.count("failed") + kinds.count("too large") <= 1
            assert kinds.count("message") <= 1
        if each.trailers is None:
            return
        status = int(each.trailers[b"grpc-status"])
        answers = each.bodies if each.path == STREAM else [body[::-1] for body in each.bodies]
        if status == 0:
            assert bytes(each.received) == b"".join(map(message, answers))
        elif each.path == b"/no/Such":
            assert status == Code.UNIMPLEMENTED
        else:
            assert status in {Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.NOT_FOUND, Code.CANCELLED}
            assert b"".join(map(message, answers)).startswith(bytes(each.received))


TestH2Client = H2Client.TestCase
TestH2Client.settings = settings(max_examples=EXAMPLES, stateful_step_count=50)

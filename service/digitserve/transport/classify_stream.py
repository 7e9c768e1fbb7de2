"""Handler of ``ClassifyStream``: many requests on one stream, answered in request order; ``read_stream`` uses it too.

    ServerStream ──message──▶ ClassifyStreamHandler ──admit──▶ Pipeline ──reply──▶ StreamMessage ──in order──▶ ServerStream
         ▲                                                                                                       │
         └─────────────────────── the next read, when there is room ◀──────────── written ───────────────────────┘

What clients can make a worker hold is bounded. The images in flight of a stream (read, and their answers not yet sent) are
limited, and no stream is read while the queue of small requests is half full. HTTP/2 flow control then slows the clients
down. If a message was requested before that and there is no room for it, it is held until there is room: at most one per
stream. Held messages are admitted in the order of arrival, small and large ones separately, so neither wait for the other. They
are rejected only if pending and held requests together exceed the limit in bytes. Called on the worker's one thread.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

from digitserve.errors import DeadlineUnmeetable, Draining, Overloaded, RequestError, TooLarge
from digitserve.protocol.codec import (
    Limits,
    decode_stream_request,
    encode_stream_error,
    encode_stream_response,
)  # fmt: skip
from digitserve.protocol.names import CLASSIFY_STREAM, Code, Method
from digitserve.protocol.status import INTERNAL, OK, Status
from digitserve.telemetry.recorder import Recorder
from digitserve.telemetry.request_log import Caller
from digitserve.transport.handlers import Admission, ServerStream, unanswered_code

WINDOW_BATCHES = 4
"""Limit on the images in flight of a stream, in full batches: enough for one stream to keep all batches full."""

_END_REASONS = {
    Code.OK: "ended",
    Code.CANCELLED: "cancelled",
    Code.DEADLINE_EXCEEDED: DeadlineUnmeetable.reason,
    Code.UNAVAILABLE: Draining.reason,
    Code.RESOURCE_EXHAUSTED: TooLarge.reason,
}
"""Reasons in the log lines of ended streams."""

MAX_KEPT = 16
"""Paused streams that one flush tries to resume in vain: with many paused streams, others get their turn in later flushes."""

_DRAINING = Status.from_error(
    Draining("this server is shutting down; open the stream again, and send what has no answer again")
)


class StreamMessage:
    """One message of a stream, and the ``Responder`` of its request.

    Attributes:
        state: of its stream.
        accepted: monotonic time in seconds when it arrived.
        source: connection of the stream.
        deadline: of the stream, Unix time in seconds.
        num_images: counted as in flight.
        pending: the request, from its admission to its answer.
        answer: the serialized message of the stream, once there is one.
    """

    __slots__ = ("_handler", "accepted", "answer", "deadline", "num_images", "pending", "source", "state")

    completes = None

    def __init__(self, handler: "ClassifyStreamHandler", state: "StreamState", accepted: float) -> None:
        self._handler = handler
        self.state = state
        self.accepted = accepted
        self.deadline = state.stream.deadline
        self.source = state.stream.source
        self.num_images = 1
        self.pending: Any = None
        self.answer: bytes | None = None

    @property
    def open(self) -> bool:
        """Whether it still waits for an answer."""
        return self.answer is None and self.state.stream.open

    @property
    def caller(self) -> Caller:
        """The message itself: its time counts from its arrival."""
        return self

    @property
    def peer(self) -> Any:
        """Address of the client of the stream."""
        return self.state.stream.peer

    @property
    def metadata(self) -> Iterable[Any]:
        """Metadata of the stream."""
        return self.state.stream.metadata

    def reply(self, body: bytes) -> None:
        """Answer with a serialized response."""
        self._set_answer(encode_stream_response(body))

    def reject(self, error: RequestError) -> None:
        """Record an error, and answer with it."""
        self._handler.record_rejected(error)
        self._fail_with(Status.from_error(error), error.reason)

    def fail(self) -> None:
        """Answer with INTERNAL."""
        self._fail_with(INTERNAL, "internal")

    def _fail_with(self, status: Status, reason: str) -> None:
        self._handler.log_failed(self, status, reason)
        self._set_answer(encode_stream_error(status.to_proto()))

    def _set_answer(self, answer: bytes) -> None:
        self.answer = answer
        # A pending request refers to its message: together they would be a reference cycle.
        self.pending = None
        self._handler.write_later(self.state)


_Held = tuple[StreamMessage, Any]


class StreamState:
    """What the handler keeps for one stream; lives as long as the stream.

    Attributes:
        stream: the stream.
        messages: messages whose answers are not yet written, in their order.
        unsent: number of images of each answer that is written and not yet sent.
        num_images: images in flight, of both.
        num_messages: messages that have arrived, from the start of the stream.
        num_failed: those of them that were answered with an error.
        reading: whether a read is outstanding.
        ending: status with which the stream ends once nothing is in flight; then nothing more is read.
    """

    __slots__ = ("ending", "messages", "num_failed", "num_images", "num_messages", "reading", "stream", "unsent")

    def __init__(self, stream: ServerStream) -> None:
        self.stream = stream
        self.messages: deque[StreamMessage] = deque()
        self.unsent: deque[int] = deque()
        self.num_images = 0
        self.num_messages = 0
        self.num_failed = 0
        self.reading = False
        self.ending: Status | None = None


class ClassifyStreamHandler:
    """Decodes and admits the messages of the streams of one method, and sends their answers in order; owned by the worker."""

    def __init__(
        self, pipeline: Admission, limits: Limits, window_images: int, recorder: Recorder,
        clock: Callable[[], float] = time.monotonic, *, method: Method = CLASSIFY_STREAM,
        decode: Callable[[bytes, Limits], Any] = decode_stream_request,
    ) -> None:  # fmt: skip
        """Admit to a pipeline what ``decode`` makes of the messages of a method.

        Args:
            pipeline: answers what it admits.
            limits: of requests.
            window_images: limit on the images in flight of a stream.
            recorder: counts streams and messages.
            clock: monotonic time in seconds.
            method: its messages have the fields of a ``ClassifyStreamResponse``.
            decode: raises ``InvalidRequest`` or ``NotServed``.
        """
        self._method = method
        self._decode = decode
        self._pipeline = pipeline
        self._limits = limits
        self._window_images = window_images
        self._recorder = recorder
        self._clock = clock
        self._streams: set[StreamState] = set()
        # In the order of arrival; each stream once. Taking the first of a plain dict takes time for each that was taken before.
        self._paused: OrderedDict[StreamState, None] = OrderedDict()
        # Small and large requests.
        self._held: tuple[deque[_Held], deque[_Held]] = deque(), deque()
        self._answered: dict[StreamState, None] = {}
        self._draining = False

    @property
    def images_in_flight(self) -> list[int]:
        """Number of images in flight on each open stream."""
        return [state.num_images for state in [*self._streams]]

    # Called by the transport; see StreamHandler.

    def on_accept(self, stream: ServerStream) -> None:
        """Record the stream and read its first message."""
        self._recorder.call_started(self._method)
        stream.context = state = StreamState(stream)
        self._streams.add(state)
        if self._draining:
            self._end(state, _DRAINING)
        else:
            self._read_if_room(state)

    def on_message(self, stream: ServerStream, body: bytes) -> None:
        """Admit or hold the request, or answer with an error."""
        state: StreamState = stream.context
        state.reading = False
        state.num_messages += 1
        message = StreamMessage(self, state, self._clock())
        state.messages.append(message)
        try:
            request = self._decode(body, self._limits)
            message.num_images = request.num_images
            self._admit_or_hold(message, request)
        except RequestError as error:
            message.reject(error)
        except Exception:
            self._pipeline.log_failure(1)
            message.fail()
        state.num_images += message.num_images
        self._read_if_room(state)

    def on_end(self, stream: ServerStream) -> None:
        """Finish the stream once all its messages are answered."""
        state: StreamState = stream.context
        state.reading = False
        self._end(state, OK)

    def on_too_large(self, stream: ServerStream) -> None:
        """End the stream: the message is lost, and no further ones arrive."""
        error = self._limits.too_large_error()
        status = Status.from_error(error)
        self.record_rejected(error)
        self._recorder.stream_messages_ended(1, status.code)
        self._end(stream.context, status)

    def on_written(self, stream: ServerStream) -> None:
        """Take the images of a sent answer out of the window."""
        state: StreamState = stream.context
        state.num_images -= state.unsent.popleft()
        self._read_or_finish(state)

    def on_close(self, stream: ServerStream, *, cancelled: bool) -> None:
        """Record a stream that is over, and drop its requests."""
        state: StreamState = stream.context
        self._streams.discard(state)
        self._paused.pop(state, None)
        code = unanswered_code(stream.deadline) if cancelled else (state.ending or OK).code
        # Emptied, because messages refer to their stream's state: a reference cycle otherwise.
        while state.messages:
            message = state.messages.popleft()
            if message.answer is None:
                self._recorder.stream_messages_ended(1, code)
                if code is Code.DEADLINE_EXCEEDED:
                    self._recorder.rejected(DeadlineUnmeetable.reason)
            if message.pending is not None:
                self._pipeline.cancel(message.pending)
                message.pending = None
        now = self._clock()
        self._recorder.call_ended(self._method, code, now - stream.accepted)
        requests, reason = self._recorder.requests, _END_REASONS.get(code, "failed")
        if requests.admits(reason, now):
            requests.write(
                "stream ended", self._method, stream, code, reason, now,
                "" if cancelled or state.ending is None else state.ending.message,
                messages=state.num_messages, failed_messages=state.num_failed,
            )  # fmt: skip

    # Called by the messages.

    def record_rejected(self, error: RequestError) -> None:
        """Count a rejected message."""
        self._recorder.rejected(error.reason)

    def log_failed(self, message: StreamMessage, status: Status, reason: str) -> None:
        """Count a message that is answered with an error, and log it."""
        message.state.num_failed += 1
        self._recorder.stream_messages_ended(1, status.code)
        now = self._clock()
        requests = self._recorder.requests
        if requests.admits(reason, now):
            fields = {} if message.pending is None else message.pending.log_fields(now)
            requests.write("message failed", self._method, message, status.code, reason, now, status.message, **fields)

    def write_later(self, state: StreamState) -> None:
        """Write the answers of a stream at the next ``flush``."""
        self._answered[state] = None

    # Called by the worker's loop.

    def flush(self) -> None:
        """Admit held messages and resume paused reads where there is room, then write the answers of each stream."""
        for held in self._held:
            while held and self._admit_if_room(*held[0]):
                self._pipeline.release(held.popleft()[1])
        # Those that must stay paused go to the end, because the next ones may be of other connections.
        num_kept = 0
        while self._paused and num_kept < MAX_KEPT and not self._held[0]:
            state, _ = self._paused.popitem(last=False)
            num_kept += self._pipeline.is_half_full(state.stream.source)
            self._read_if_room(state)
        if self._answered:
            answered, self._answered = self._answered, {}
            for state in answered:
                self._write(state)

    def drain(self) -> None:
        """Read nothing more, and end each stream once all that was read is answered."""
        self._draining = True
        for state in [*self._streams]:
            self._end(state, _DRAINING)

    def num_unsent_answers(self) -> int:
        """Return the number of messages that are no longer in the pipeline and whose answers are not sent yet."""
        return sum(
            len(state.unsent) + sum(message.pending is None for message in state.messages) for state in self._streams
        )

    def has_unsent_answers(self) -> bool:
        """Return whether a message was read whose answer is not yet sent."""
        return any(state.num_images for state in self._streams)

    def _admit_or_hold(self, message: StreamMessage, request: Any) -> None:
        small, large = self._held
        # Not before others that are held: smaller requests could always take the room of a larger one.
        if not (small or large) and self._admit_if_room(message, request):
            return
        held = large if self._pipeline.is_large(request) else small
        if held or not self._admit_if_room(message, request):
            self._pipeline.hold(request)
            held.append((message, request))

    def _admit_if_room(self, message: StreamMessage, request: Any) -> bool:
        """Admit a request, or reject it for good; return false if it has to wait for room."""
        if message.open:
            try:
                message.pending = self._pipeline.admit(message, request, patient=True)
            except Overloaded:
                return False
            except RequestError as error:
                message.reject(error)
        return True

    def _should_pause(self, state: StreamState) -> bool:
        return bool(self._held[0]) or self._pipeline.is_half_full(state.stream.source)

    def _write(self, state: StreamState) -> None:
        stream, messages = state.stream, state.messages
        if not stream.open:
            return
        while messages and (answer := messages[0].answer) is not None:
            state.unsent.append(messages.popleft().num_images)
            stream.write(answer)
        stream.flush()

    def _read_if_room(self, state: StreamState) -> None:
        """Read the next message unless the window is full; pause the stream while the queue is half full."""
        if state.reading or state.ending or not state.stream.open:
            return
        if state.num_images >= self._window_images:
            return
        if self._should_pause(state):
            self._paused[state] = None
            return
        state.reading = True
        state.stream.read()

    def _end(self, state: StreamState, status: Status) -> None:
        """End a stream with this status once nothing is in flight; the first status that is set counts."""
        state.ending = state.ending or status
        self._read_or_finish(state)

    def _read_or_finish(self, state: StreamState) -> None:
        """Finish a stream that is ending and has nothing in flight; read the next message of others."""
        status = state.ending
        if status is None:
            self._read_if_room(state)
        elif not state.num_images and state.stream.open:
            state.stream.finish(status)

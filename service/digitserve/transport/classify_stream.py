"""``ClassifyStream`` on the loop's own thread: many requests on one stream, answered in their order.

    Stream ──message──▶ StreamTaker ──admit──▶ Classifier ──reply──▶ Slot ──in order──▶ Stream
       ▲                                                                                  │
       └───────────────── the next message is asked for when there is room ◀──written────┘

What clients can make a worker hold is bounded: of each stream only so many images are on the way (read, and not yet sent
as answers), and nothing is read from any while half of what may wait does. HTTP/2's flow control tells clients. A message
that was asked for before and finds no room is held, one a stream, until there is: streams are slowed, never refused.
Belongs to the worker and is called on its one thread only.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence

from digitserve.batching.batcher import Entry
from digitserve.batching.pipeline import Classifier
from digitserve.errors import Draining, Overloaded, RequestError
from digitserve.protocol.codec import Limits, Request, decode_on_stream, error_on_stream, response_on_stream
from digitserve.telemetry.block import SERVICE, STREAM_ROW, Tally
from digitserve.transport.classify import INTERNAL, OK, Status, broken_off
from digitserve.transport.grpcio.completion_queue import Stream

CLASSIFY_STREAM = f"/{SERVICE}/ClassifyStream"

WINDOW_BATCHES = 4
"""Full batches of one stream on the way, beyond which no further message is read: enough for one stream to keep them
full."""

_DRAINING = Status.of(
    Draining("this server is shutting down; open the stream again, and send what has no answer again")
)


class Slot:
    """A message on a stream, and the place of its answer.

    Attributes:
        conversation: that it is part of.
        accepted: monotonic time in seconds when it came.
        deadline: the stream's, Unix time in seconds.
        num_images: that count towards the window.
        entry: once it is admitted.
        outcome: the serialized answer, once there is one.
    """

    __slots__ = ("accepted", "conversation", "deadline", "entry", "num_images", "outcome")

    def __init__(self, conversation: "Conversation", accepted: float) -> None:
        self.conversation = conversation
        self.accepted = accepted
        self.deadline = conversation.stream.deadline
        self.num_images = 1
        self.entry: Entry | None = None
        self.outcome: bytes | None = None

    @property
    def open(self) -> bool:
        """Whether it still waits for its answer."""
        return self.outcome is None and self.conversation.stream.open


class Conversation:
    """One stream, and what is on the way in it; lives as long as the stream.

    Attributes:
        stream: the stream.
        waiting: messages whose answers are not yet written, in their order.
        unsent: images of each answer that is written and not yet sent.
        num_images: on the way, over both.
        reading: whether a message has been asked for.
        ending: the status with which the stream ends when nothing is on the way any more; then nothing more is read.
    """

    __slots__ = ("ending", "num_images", "reading", "stream", "unsent", "waiting")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.waiting: deque[Slot] = deque()
        self.unsent: deque[int] = deque()
        self.num_images = 0
        self.reading = False
        self.ending: Status | None = None


class ClassifyStreamTaker:
    """Takes ``ClassifyStream`` streams on, has their messages admitted, and sends their answers in order."""

    def __init__(
        self, classifier: Classifier, limits: Limits, max_batch_size: int, tally: Tally,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._classifier = classifier
        self._limits = limits
        self._window_images = WINDOW_BATCHES * max_batch_size
        self._tally = tally
        self._clock = clock
        self._conversations: set[Conversation] = set()
        # Both in the order of their coming, and each conversation once.
        self._paused: dict[Conversation, None] = {}
        self._held: deque[tuple[Slot, Request]] = deque()
        self._answered: dict[Conversation, None] = {}
        self._draining = False

    # What the completion queue calls.

    def on_accept(self, stream: Stream) -> None:
        """Begin a conversation."""
        self._tally.started[STREAM_ROW] += 1
        stream.context = conversation = Conversation(stream)
        self._conversations.add(conversation)
        if self._draining:
            self._end(conversation, _DRAINING)
        else:
            self._read_on(conversation)

    def on_message(self, stream: Stream, body: bytes) -> None:
        """Have one request admitted, or say in its place why not."""
        conversation: Conversation = stream.context
        conversation.reading = False
        slot = Slot(conversation, self._clock())
        conversation.waiting.append(slot)
        try:
            request = decode_on_stream(body, self._limits)
            slot.num_images = request.num_images
            # In the order of their coming: a large one must not see its room taken again and again.
            if self._held or not self._admit(slot, request):
                self._held.append((slot, request))
        except RequestError as error:
            self.refuse(slot, error)
        except Exception:
            self._classifier.log_fault(1)
            self.fail(slot)
        conversation.num_images += slot.num_images
        self._read_on(conversation)

    def on_end(self, stream: Stream) -> None:
        """Finish the stream when all its messages are answered."""
        conversation: Conversation = stream.context
        conversation.reading = False
        self._end(conversation, Status(OK, ""))

    def on_too_large(self, stream: Stream) -> None:
        """End the stream: core threw the message away, and gives no further ones."""
        error = self._limits.too_large()
        self._tally.reject(error.reason)
        self._end(stream.context, Status.of(error))

    def on_written(self, stream: Stream) -> None:
        """Make room for what the sent answer stood for."""
        conversation: Conversation = stream.context
        conversation.num_images -= conversation.unsent.popleft()
        self._go_on(conversation)

    def on_close(self, stream: Stream, *, cancelled: bool) -> None:
        """Count a stream that is over, and forget what still waits of it."""
        conversation: Conversation = stream.context
        self._conversations.discard(conversation)
        self._paused.pop(conversation, None)
        # Emptied, for slots know their conversation: a circle as well.
        while conversation.waiting:
            slot = conversation.waiting.popleft()
            if slot.entry is not None:
                self._classifier.cancel(slot.entry)
                slot.entry = None
        if cancelled:
            code = broken_off(stream.deadline, self._tally)
        else:
            code = OK if conversation.ending is None else conversation.ending.code
        self._tally.end(STREAM_ROW, code, self._clock() - stream.accepted)

    # What the classifier calls.

    def count(self, entries: Sequence[Entry], now: float) -> None:
        """Streams are counted as they end; their images, the classifier counts."""

    def reply(self, slot: Slot, body: bytes) -> None:
        """Put the answer in its place."""
        self._fill(slot, response_on_stream(body))

    def refuse(self, slot: Slot, error: RequestError) -> None:
        """Put the error in the answer's place."""
        self._tally.reject(error.reason)
        self._fill(slot, error_on_stream(Status.of(error).to_proto()))

    def fail(self, slot: Slot) -> None:
        """Put a fault of ours in the answer's place."""
        self._fill(slot, error_on_stream(INTERNAL.to_proto()))

    # What the worker's loop calls.

    def flush(self) -> None:
        """Write the answers that are due, a stream's together, and admit and read on what waited for room."""
        while self._held and self._admit(*self._held[0]):
            self._held.popleft()
        while self._paused and not self._crowded():
            conversation = next(iter(self._paused))
            del self._paused[conversation]
            self._read_on(conversation)
        if self._answered:
            answered, self._answered = self._answered, {}
            for conversation in answered:
                self._write(conversation)

    def drain(self) -> None:
        """Read nothing more, and end each stream when all that was read is answered."""
        self._draining = True
        for conversation in [*self._conversations]:
            self._end(conversation, _DRAINING)

    def owes(self) -> bool:
        """Whether some answer is not sent yet."""
        return any(conversation.num_images for conversation in self._conversations)

    def _admit(self, slot: Slot, request: Request) -> bool:
        """Have a request admitted, or refused for good; return False where it only has to wait for room."""
        if slot.open:
            try:
                slot.entry = self._classifier.admit(self, slot, request)
            except Overloaded:
                return False
            except RequestError as error:
                self.refuse(slot, error)
        return True

    def _crowded(self) -> bool:
        return bool(self._held) or self._classifier.crowded()

    def _fill(self, slot: Slot, outcome: bytes) -> None:
        slot.outcome = outcome
        # An entry knows its slot: a circle, which would wait for the garbage collector.
        slot.entry = None
        self._answered[slot.conversation] = None

    def _write(self, conversation: Conversation) -> None:
        stream, waiting = conversation.stream, conversation.waiting
        if not stream.open:
            return
        while waiting and waiting[0].outcome is not None:
            slot = waiting.popleft()
            conversation.unsent.append(slot.num_images)
            stream.write(slot.outcome)  # type: ignore[arg-type] # the loop's condition
        stream.flush()

    def _read_on(self, conversation: Conversation) -> None:
        """Ask for the next message where there is room for it."""
        if conversation.reading or conversation.ending or not conversation.stream.open:
            return
        if conversation.num_images >= self._window_images:
            return
        if self._crowded():
            self._paused[conversation] = None
            return
        conversation.reading = True
        conversation.stream.read()

    def _end(self, conversation: Conversation, status: Status) -> None:
        conversation.ending = conversation.ending or status
        self._go_on(conversation)

    def _go_on(self, conversation: Conversation) -> None:
        """Finish a stream that is ending and has nothing on the way any more; read on in others."""
        status = conversation.ending
        if status is None:
            self._read_on(conversation)
        elif not conversation.num_images and conversation.stream.open:
            conversation.stream.finish(status.code, status.message, status.details())

"""Lanes for ``ClassifyStream``: one stream of HTTP/2 for many requests. Owned by ``load``, on its process's one thread."""

from collections import deque
from collections.abc import Callable

from google.protobuf.message import DecodeError

from digitserve.bench import frames, http2, wire
from digitserve.bench.lanes import LOST, NO_MESSAGE, Context, Lane
from digitserve.bench.wire import Status
from digitserve.telemetry.block import CODES
from digitserve.v1 import digits_pb2 as pb

_RESPONSE_TAG = b"\x0a"
"""How a ClassifyStreamResponse with a response begins: field 1, length-delimited."""


class StreamLane(Lane):
    """``ClassifyStream``: one stream of HTTP/2, on which messages and answers follow one another."""

    def __init__(self, context: Context, release: Callable[[Lane], None]) -> None:
        super().__init__(context, release)
        self._number: int | None = None
        self._half_closed = False
        self._waiting: deque[tuple[float, int]] = deque()
        self._received = b""

    def can_issue(self) -> bool:
        """Tell whether a request can be sent now."""
        if self._number is None and not self._closing and self._socket is not None and self._connection.can_open():
            self._number = self._connection.open(b"", ended=False)
            self._received = b""
            self._half_closed = False
        return self._number is not None and not self._half_closed

    def issue(self, intended_s: float) -> None:
        """Send a request."""
        assert self._number is not None, "can_issue comes first"
        body = next(self._context.bodies)
        self._connection.send(self._number, body.framed, ended=False)
        self._waiting.append((intended_s, body.num_images))
        self._tally.counts.sent += 1

    @property
    def num_in_flight(self) -> int:
        """Requests sent and not ended."""
        return len(self._waiting)

    def intended_in_flight(self) -> list[float]:
        """Return the intended times of the requests in flight."""
        return [intended_s for intended_s, _ in self._waiting]

    def expire(self, now_s: float) -> None:
        """Do nothing: a deadline would be the whole stream's."""

    def finish(self) -> None:
        """Say that no request follows: the stream may end."""
        super().finish()
        self._half_close()

    @property
    def finished(self) -> bool:
        """Whether no stream is open."""
        return self._number is None

    def _half_close(self) -> None:
        if self._number is not None and not self._half_closed:
            self._half_closed = True
            # Where the same bytes have also ended the stream, its end is among the events that follow.
            if self._connection.is_open(self._number):
                self._connection.send(self._number, b"", ended=True)

    def _take(self, events: list[http2.Event], now_s: float) -> None:
        for kind, number, value, ended in events:
            if kind == frames.GOAWAY:
                # The stream would never end by itself.
                self._half_close()
            elif number != self._number:
                continue
            elif kind == frames.DATA:
                self._on_data(value, now_s)
                if ended:
                    self._on_end(NO_MESSAGE)
            elif kind == frames.RST_STREAM:
                self._on_end(wire.reset_status(value))
            elif ended:
                self._on_end(value)

    def _on_data(self, payload: bytes, now_s: float) -> None:
        messages, self._received = wire.split(self._received + payload)
        for message in messages:
            if not self._waiting:
                raise frames.ProtocolError("got more answers on a stream than it carried requests")
            intended_s, num_images = self._waiting.popleft()
            self._ended(intended_s, self._status_of(message, num_images), now_s)

    def _status_of(self, message: bytes, num_images: int) -> Status:
        good = message.startswith(_RESPONSE_TAG)
        if good and not self._is_due_for_a_look():
            return Status(wire.OK, "")
        try:
            outcome = pb.ClassifyStreamResponse.FromString(message)
        except DecodeError:
            return Status(wire.INTERNAL, "the answer is no ClassifyStreamResponse")
        if outcome.HasField("response"):
            self._look_at(outcome.response, num_images)
            return Status(wire.OK, "")
        code = outcome.error.code
        return Status(code if 0 < code < len(CODES) else wire.UNKNOWN, outcome.error.message)

    def _on_end(self, status: Status) -> None:
        self._number = None
        # A stream that ends well before all was answered has lost the rest.
        self._end_all(status if status.code != wire.OK else LOST)

    def _end_all(self, status: Status) -> None:
        if self._socket is None:
            self._number = None
        waiting, self._waiting = self._waiting, deque()
        for intended_s, _ in waiting:
            self._ended(intended_s, status, self._context.clock())

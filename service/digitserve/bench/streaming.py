"""Connection driver for ``ClassifyStream``: one HTTP/2 stream for many requests.

Owned by ``load``, on its process's only thread.
"""

from collections import deque
from collections.abc import Callable

from google.protobuf.message import DecodeError

from digitserve.bench import frames, http2, wire
from digitserve.bench.driver import LOST, MALFORMED, ConnectionDriver, Context
from digitserve.bench.wire import OK, Status
from digitserve.protocol.names import Code
from digitserve.v1 import digits_pb2 as pb

_RESPONSE_TAG = b"\x0a"
"""First byte of a ClassifyStreamResponse that holds a response: field 1, length-delimited."""


class StreamDriver(ConnectionDriver):
    """``ClassifyStream``: one HTTP/2 stream; answers arrive in the order of the requests."""

    def __init__(self, context: Context, release_slot: Callable[[ConnectionDriver], None]) -> None:
        super().__init__(context, release_slot)
        self._stream_id: int | None = None
        self._half_closed = False
        self._pending: deque[tuple[float, int]] = deque()
        self._received = b""

    def prepare_to_send(self) -> bool:
        """Open the stream if there is none; return whether a request can be sent now."""
        if self._stream_id is None and not self._closing and self._socket is not None and self._connection.can_open():
            self._stream_id = self._connection.open(b"", end_stream=False)
            self._received = b""
            self._half_closed = False
        return self._stream_id is not None and not self._half_closed

    def send_request(self, intended_s: float) -> None:
        """Send a request."""
        assert self._stream_id is not None, "prepare_to_send comes first"
        request = next(self._context.requests)
        self._connection.send(self._stream_id, request.body, end_stream=False)
        self._pending.append((intended_s, request.num_images))
        self._recorder.counts.sent += 1

    @property
    def num_in_flight(self) -> int:
        """Number of requests sent and not yet ended."""
        return len(self._pending)

    def intended_in_flight(self) -> list[float]:
        """Return the intended times of the requests in flight."""
        return [intended_s for intended_s, _ in self._pending]

    def expire(self, now_s: float) -> None:
        """Do nothing: a deadline would apply to the whole stream."""

    def finish(self) -> None:
        """Announce that no more requests follow: half-close the stream."""
        super().finish()
        self._half_close()

    @property
    def finished(self) -> bool:
        """Whether no stream is open."""
        return self._stream_id is None

    def _half_close(self) -> None:
        if self._stream_id is not None and not self._half_closed:
            self._half_closed = True
            # The bytes just received may also have ended the stream; its end is then one of the following events.
            if self._connection.is_open(self._stream_id):
                self._connection.send(self._stream_id, b"", end_stream=True)

    def _handle(self, events: list[http2.Event], now_s: float) -> None:
        for kind, stream_id, value, ended in events:
            if kind == frames.GOAWAY:
                # Without a half-close the stream would never end.
                self._half_close()
            elif stream_id != self._stream_id:
                continue
            elif kind == frames.DATA:
                self._on_data(value, now_s)
                if ended:
                    self._on_end(MALFORMED)
            elif kind == frames.RST_STREAM:
                self._on_end(wire.reset_status(value))
            elif ended:
                self._on_end(value)

    def _on_data(self, payload: bytes, now_s: float) -> None:
        messages, self._received = wire.split(self._received + payload)
        for message in messages:
            if not self._pending:
                raise frames.ProtocolError("got more answers on a stream than requests were sent")
            intended_s, num_images = self._pending.popleft()
            self._end_request(intended_s, self._status_of(message, num_images), now_s)

    def _status_of(self, message: bytes, num_images: int) -> Status:
        is_response = message.startswith(_RESPONSE_TAG)
        if is_response and not self._count_answer():
            return OK
        try:
            outcome = pb.ClassifyStreamResponse.FromString(message)
        except DecodeError:
            return Status(Code.INTERNAL, "the answer is not a ClassifyStreamResponse")
        if outcome.HasField("response"):
            self._check(outcome.response, num_images)
            return OK
        code = outcome.error.code
        return Status(Code(code) if 0 < code < len(Code) else Code.UNKNOWN, outcome.error.message)

    def _on_end(self, status: Status) -> None:
        self._stream_id = None
        # If the stream ends with OK before every request was answered, the remaining requests are lost.
        self._end_all(status if status.code != Code.OK else LOST)

    def _end_all(self, status: Status) -> None:
        if self._socket is None:
            self._stream_id = None
        pending, self._pending = self._pending, deque()
        for intended_s, _ in pending:
            self._end_request(intended_s, status, self._context.clock())

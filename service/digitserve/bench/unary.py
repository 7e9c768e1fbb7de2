"""Connection driver for ``Classify``: one HTTP/2 stream per request. Owned by ``load``, on its process's only thread."""

from collections.abc import Callable

from google.protobuf.message import DecodeError

from digitserve.bench import frames, http2, wire
from digitserve.bench.driver import MALFORMED, ConnectionDriver, Context
from digitserve.bench.wire import Status
from digitserve.protocol.names import Code
from digitserve.v1 import digits_pb2 as pb

# A module constant, because an enum attribute would be looked up per request.
_OK = Code.OK
_LATE = Status(Code.DEADLINE_EXCEEDED, "no answer before the deadline")


class _Call:
    """A unary call in flight."""

    __slots__ = ("intended_s", "num_images", "received", "sent_s", "status")

    def __init__(self, intended_s: float, sent_s: float, num_images: int) -> None:
        self.intended_s = intended_s
        self.sent_s = sent_s
        self.num_images = num_images
        self.received = b""
        self.status: Status | None = None


class UnaryDriver(ConnectionDriver):
    """``Classify``: one HTTP/2 stream per request."""

    def __init__(self, context: Context, release_slot: Callable[[ConnectionDriver], None]) -> None:
        super().__init__(context, release_slot)
        self._calls: dict[int, _Call] = {}

    def prepare_to_send(self) -> bool:
        """Return whether a request can be sent now."""
        return self._connection.can_open() and self._socket is not None

    def send_request(self, intended_s: float) -> None:
        """Send a request."""
        request = next(self._context.requests)
        stream_id = self._connection.open(request.body, end_stream=True)
        self._calls[stream_id] = _Call(intended_s, self._context.clock(), request.num_images)
        self._recorder.counts.sent += 1

    @property
    def num_in_flight(self) -> int:
        """Number of requests sent and not yet ended."""
        return len(self._calls)

    def intended_in_flight(self) -> list[float]:
        """Return the intended times of the requests in flight."""
        return [call.intended_s for call in self._calls.values()]

    def expire(self, now_s: float) -> None:
        """Cancel calls whose deadline has passed, as every gRPC client does."""
        deadline_s = self._context.deadline_s
        # Calls are in the order in which they were sent.
        while self._calls and deadline_s is not None:
            stream_id, call = next(iter(self._calls.items()))
            if call.sent_s + deadline_s > now_s:
                break
            self._connection.cancel(stream_id)
            del self._calls[stream_id]
            self._end_request(call.intended_s, _LATE, now_s)

    def _handle(self, events: list[http2.Event], now_s: float) -> None:
        for kind, stream_id, value, ended in events:
            if kind == frames.DATA:
                self._calls[stream_id].received += value
                if ended:
                    self._finish(stream_id, self._calls[stream_id].status or MALFORMED, now_s)
            elif kind == frames.HEADERS:
                if ended:
                    self._finish(stream_id, value, now_s)
                elif value.code != _OK:
                    # A proxy answered in plain HTTP.
                    self._calls[stream_id].status = value
            elif kind == frames.RST_STREAM:
                self._finish(stream_id, self._reset_status(stream_id, value, now_s), now_s)

    def _reset_status(self, stream_id: int, error_code: int, now_s: float) -> Status:
        # Servers also cancel calls whose deadline has passed.
        late = error_code == frames.CANCEL and self._is_late(self._calls[stream_id], now_s)
        return _LATE if late else wire.reset_status(error_code)

    def _is_late(self, call: _Call, now_s: float) -> bool:
        deadline_s = self._context.deadline_s
        return deadline_s is not None and now_s - call.sent_s >= deadline_s

    def _finish(self, stream_id: int, status: Status, now_s: float) -> None:
        call = self._calls.pop(stream_id)
        if status.code == _OK:
            # gRPC clients drop an answer that arrives after the deadline.
            if self._is_late(call, now_s):
                status = _LATE
            elif not wire.is_one_message(call.received):
                status = MALFORMED
            elif self._count_answer():
                self._decode_and_check(call)
        self._end_request(call.intended_s, status, now_s)

    def _decode_and_check(self, call: _Call) -> None:
        try:
            response = pb.ClassifyResponse.FromString(call.received[wire.PREFIX_BYTES :])
        except DecodeError:
            response = pb.ClassifyResponse()
        self._check(response, call.num_images)

    def _end_all(self, status: Status) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            self._end_request(call.intended_s, status, self._context.clock())

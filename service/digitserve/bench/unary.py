"""Lanes for ``Classify``: a stream of HTTP/2 for each request. Owned by ``load``, on its process's one thread."""

from collections.abc import Callable

from google.protobuf.message import DecodeError

from digitserve.bench import frames, http2, wire
from digitserve.bench.lanes import NO_MESSAGE, Context, Lane
from digitserve.bench.wire import Status
from digitserve.v1 import digits_pb2 as pb

_LATE = Status(wire.DEADLINE_EXCEEDED, "no answer before the deadline")


class _Call:
    """A unary call in flight."""

    __slots__ = ("intended_s", "num_images", "received", "sent_s", "status")

    def __init__(self, intended_s: float, sent_s: float, num_images: int) -> None:
        self.intended_s = intended_s
        self.sent_s = sent_s
        self.num_images = num_images
        self.received = b""
        self.status: Status | None = None


class UnaryLane(Lane):
    """``Classify``: a stream of HTTP/2 for each request."""

    def __init__(self, context: Context, release: Callable[[Lane], None]) -> None:
        super().__init__(context, release)
        self._calls: dict[int, _Call] = {}

    def can_issue(self) -> bool:
        """Tell whether a request can be sent now."""
        return self._connection.can_open() and self._socket is not None

    def issue(self, intended_s: float) -> None:
        """Send a request."""
        body = next(self._context.bodies)
        number = self._connection.open(body.framed, ended=True)
        self._calls[number] = _Call(intended_s, self._context.clock(), body.num_images)
        self._tally.counts.sent += 1

    @property
    def num_in_flight(self) -> int:
        """Requests sent and not ended."""
        return len(self._calls)

    def intended_in_flight(self) -> list[float]:
        """Return the intended times of the requests in flight."""
        return [call.intended_s for call in self._calls.values()]

    def expire(self, now_s: float) -> None:
        """Cancel calls whose deadline has passed, as any gRPC client does."""
        deadline_s = self._context.deadline_s
        # Calls stand in the order in which they were sent.
        while self._calls and deadline_s is not None:
            number, call = next(iter(self._calls.items()))
            if call.sent_s + deadline_s > now_s:
                break
            self._connection.cancel(number)
            del self._calls[number]
            self._ended(call.intended_s, _LATE, now_s)

    def _take(self, events: list[http2.Event], now_s: float) -> None:
        for kind, number, value, ended in events:
            if kind == frames.DATA:
                self._calls[number].received += value
                if ended:
                    self._finish(number, self._calls[number].status or NO_MESSAGE, now_s)
            elif kind == frames.HEADERS:
                if ended:
                    self._finish(number, value, now_s)
                elif value.code != wire.OK:
                    # Something between that answers in plain HTTP.
                    self._calls[number].status = value
            elif kind == frames.RST_STREAM:
                self._finish(number, self._reset_status(number, value, now_s), now_s)

    def _reset_status(self, number: int, error_code: int, now_s: float) -> Status:
        # A server cancels what is past its deadline, too.
        late = error_code == frames.CANCEL and self._is_late(self._calls[number], now_s)
        return _LATE if late else wire.reset_status(error_code)

    def _is_late(self, call: _Call, now_s: float) -> bool:
        deadline_s = self._context.deadline_s
        return deadline_s is not None and now_s - call.sent_s >= deadline_s

    def _finish(self, number: int, status: Status, now_s: float) -> None:
        call = self._calls.pop(number)
        if status.code == wire.OK:
            # An answer after the deadline is none to any gRPC client, whatever the service thinks of its time.
            if self._is_late(call, now_s):
                status = _LATE
            elif not wire.whole(call.received):
                status = NO_MESSAGE
            elif self._is_due_for_a_look():
                self._look(call)
        self._ended(call.intended_s, status, now_s)

    def _look(self, call: _Call) -> None:
        try:
            response = pb.ClassifyResponse.FromString(call.received[wire.PREFIX_BYTES :])
        except DecodeError:
            response = pb.ClassifyResponse()
        self._look_at(response, call.num_images)

    def _end_all(self, status: Status) -> None:
        calls, self._calls = self._calls, {}
        for call in calls.values():
            self._ended(call.intended_s, status, self._context.clock())

"""``Classify`` on the loop's own thread, and the one conversion from errors to status codes.

    completion_queue ──▶ ClassifyTaker ──admit──▶ Classifier ──▶ ClassifyTaker.reply

``ClassifyTaker`` belongs to the worker and is called on its one thread only.
"""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from digitserve.batching.batcher import Entry
from digitserve.batching.pipeline import Classifier
from digitserve.errors import (
    DeadlineUnmeetable,
    Draining,
    InvalidRequest,
    NotServed,
    Overloaded,
    RequestError,
    TooLarge,
)  # fmt: skip
from digitserve.protocol.codec import Limits, decode
from digitserve.telemetry.block import CLASSIFY_ROW, CODES, SERVICE, Tally
from digitserve.transport.grpcio.completion_queue import Call

CLASSIFY = f"/{SERVICE}/Classify"

_CODES: dict[type[RequestError], int] = {
    InvalidRequest: CODES.index("InvalidArgument"),
    NotServed: CODES.index("NotFound"),
    TooLarge: CODES.index("ResourceExhausted"),
    Overloaded: CODES.index("ResourceExhausted"),
    DeadlineUnmeetable: CODES.index("DeadlineExceeded"),
    Draining: CODES.index("Unavailable"),
}
OK = CODES.index("OK")
_CANCELED = CODES.index("Canceled")
_DEADLINE_EXCEEDED = CODES.index("DeadlineExceeded")
INTERNAL_MESSAGE = "internal error; the server's log has the details"
"""All that a caller is told of our own faults."""


class Status(NamedTuple):
    """What a caller is told instead of an answer.

    Attributes:
        code: gRPC's number.
        message: for people.
        retry_after_s: when to come back, where that is known.
    """

    code: int
    message: str
    retry_after_s: float | None = None

    @classmethod
    def of(cls, error: RequestError) -> "Status":
        """Convert an error."""
        after_s = error.retry_after_s if isinstance(error, Overloaded) else None
        return cls(_CODES[type(error)], str(error), after_s)

    def to_proto(self) -> status_pb2.Status:
        """Return it as a message, with ``RetryInfo`` where it is known when to come back."""
        status = status_pb2.Status(code=self.code, message=self.message)
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            retry = any_pb2.Any()
            retry.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
            status.details.append(retry)
        return status

    def details(self) -> bytes | None:
        """Return what a program is told beyond code and message, serialized."""
        return None if self.retry_after_s is None else bytes(self.to_proto().SerializeToString())


def broken_off(deadline: float, tally: Tally) -> int:
    """Return the status code of an RPC that its caller ended, and count it as refused if its time was over.

    Args:
        deadline: Unix time in seconds.
        tally: where to count.
    """
    if deadline > time.time():
        return _CANCELED
    tally.reject(DeadlineUnmeetable.reason)
    return _DEADLINE_EXCEEDED


INTERNAL = Status(CODES.index("Internal"), INTERNAL_MESSAGE)


class ClassifyTaker:
    """Takes ``Classify`` calls on, has them admitted, and sends their answers."""

    def __init__(
        self, classifier: Classifier, limits: Limits, tally: Tally, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._classifier = classifier
        self._limits = limits
        self._tally = tally
        self._clock = clock

    # What the completion queue calls.

    def on_accept(self, call: Call) -> None:
        """Count the call; turn it away unread when nothing can be admitted."""
        self._tally.started[CLASSIFY_ROW] += 1
        full = self._classifier.full()
        if full:
            self.refuse(call, full)

    def on_message(self, call: Call, body: bytes) -> None:
        """Check the request and admit it, or say why not."""
        try:
            call.context = self._classifier.admit(self, call, decode(body, self._limits))
        except RequestError as error:
            self.refuse(call, error)
        except Exception:
            self._classifier.log_fault(1)
            self.fail(call)

    def on_silence(self, call: Call) -> None:
        """Count a call without a message."""
        self._tally.reject(InvalidRequest.reason)
        self._count_end(call, _CODES[InvalidRequest])

    def on_too_large(self, call: Call) -> None:
        """Refuse a message over the limit, which core has thrown away unread."""
        self.refuse(call, self._limits.too_large())

    def on_close(self, call: Call) -> None:
        """Forget a call that ended before it was answered."""
        if call.context is not None:
            self._classifier.cancel(call.context)
        self._count_end(call, broken_off(call.deadline, self._tally))

    # What the classifier calls.

    def count(self, entries: Sequence[Entry], now: float) -> None:
        """Count calls that are about to be answered."""
        self._tally.handled[CLASSIFY_ROW, OK] += len(entries)
        self._tally.handling_s[CLASSIFY_ROW].observe_many([now - entry.work.asking.accepted for entry in entries])

    def reply(self, call: Call, body: bytes) -> None:
        """Send the answer."""
        call.reply(body)

    def refuse(self, call: Call, error: RequestError) -> None:
        """Send the error's status."""
        self._tally.reject(error.reason)
        self._end(call, Status.of(error))

    def fail(self, call: Call) -> None:
        """Send the status of a fault of ours."""
        self._end(call, INTERNAL)

    def _end(self, call: Call, status: Status) -> None:
        self._count_end(call, status.code)
        call.fail(status.code, status.message, status.details())

    def _count_end(self, call: Call, code: int) -> None:
        self._tally.end(CLASSIFY_ROW, code, self._clock() - call.accepted)

"""The handler of unary calls with a fake call and a fake pipeline."""

import time
from typing import Any

import pytest

from digitserve.errors import DeadlineUnmeetable, Draining, Overloaded, RequestError
from digitserve.protocol.codec import Limits
from digitserve.protocol.names import CLASSIFY, Code
from digitserve.protocol.status import INTERNAL, NO_MESSAGE, Status
from digitserve.telemetry.block import METHODS, Block
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.classify import ClassifyHandler
from digitserve.types import Source
from digitserve.v1 import digits_pb2 as pb

LABELS = tuple("0123456789")
LIMITS = Limits(model_version="1", max_side=4096, max_images=4096, max_request_bytes=1 << 24)
BODY = pb.ClassifyRequest(pixels=bytes(784)).SerializeToString()


class FakeCall:
    """A ``UnaryCall`` that keeps what is sent."""

    def __init__(self, deadline: float = 1e19) -> None:
        self.deadline, self.accepted, self.open = deadline, 0.0, True
        self.source = Source()
        self.context: Any = None
        self.sent: list[bytes | Status] = []

    def reply(self, body: bytes) -> None:
        self.open = False
        self.sent.append(body)

    def fail(self, status: Status) -> None:
        self.open = False
        self.sent.append(status)


class FakePipeline:
    """Admits everything, or raises the error that a test sets."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.responders: list[Any] = []
        self.cancelled: list[Any] = []
        self.failures = 0

    def refusal(self, left_s: float, source: Source) -> Exception | None:
        return self.error

    def admit(self, responder: Any, request: Any) -> object:
        if self.error:
            raise self.error
        self.responders.append(responder)
        return responder

    def cancel(self, pending: object) -> None:
        self.cancelled.append(pending)

    def log_failure(self, num_requests: int) -> None:
        self.failures += num_requests


class Server:
    """A handler with its fake pipeline, and what it records."""

    def __init__(self) -> None:
        self.pipeline = FakePipeline()
        self.block = Block(LABELS)
        self.handler = ClassifyHandler(self.pipeline, LIMITS, Recorder(self.block, LABELS), clock=lambda: 1.0)  # type: ignore[arg-type]

    def started(self) -> int:
        """Return the number of ``Classify`` calls that were started."""
        return int(self.block.cells["grpc_server_started"][METHODS.index(CLASSIFY), 0])

    def recorded(self) -> dict[str, int]:
        """Return the number of ended ``Classify`` calls by code, and of rejected requests by reason."""
        found = {}
        for name in ("grpc_server_handled", "digitserve_rejected"):
            spec = next(spec for spec in self.block.specs if spec.name == name)
            values = zip(spec.label_values, self.block.cells[name][:, 0], strict=True)
            found.update({labels[-1]: int(value) for labels, value in values if value})
        return found


def test_a_call_is_admitted_and_answered() -> None:
    """The responder that the pipeline gets sends the answer to its call; the pipeline records the end of the call."""
    server, call = Server(), FakeCall(deadline=5.0)
    assert server.handler.refusal(call.deadline, call.source) is None
    server.handler.on_accept(call)
    server.handler.on_message(call, BODY)
    assert server.started() == 1
    (responder,) = server.pipeline.responders
    assert (responder.completes, responder.deadline, responder.accepted, responder.open) == (CLASSIFY, 5.0, 0.0, True)

    responder.reply(b"answer")

    assert call.sent == [b"answer"]
    assert not responder.open
    assert server.recorded() == {}


@pytest.mark.parametrize(
    ("error", "recorded"),
    [
        (Overloaded("full", 0.5), {"ResourceExhausted": 1, "queue_full": 1}),
        (DeadlineUnmeetable("late"), {"DeadlineExceeded": 1, "deadline": 1}),
        (Draining("stops"), {"Unavailable": 1, "draining": 1}),
    ],
)
def test_a_call_is_refused_before_its_message_is_read(error: RequestError, recorded: dict[str, int]) -> None:
    """When no request can be admitted, the call ends as it starts; it is recorded as started, handled and rejected. Equal
    errors get the same status, which the transport encodes once.
    """
    server = Server()
    server.pipeline.error = error

    status = server.handler.refusal(5.0, Source())

    assert status == Status.from_error(error) and server.handler.refusal(5.0, Source()) is status
    assert server.recorded() == {name: 2 * count for name, count in recorded.items()}
    assert server.started() == 2


def test_an_invalid_request_and_one_that_is_too_large_are_rejected() -> None:
    """Both get their status, and are recorded under their reasons."""
    server = Server()
    invalid, too_large = FakeCall(), FakeCall()
    server.handler.on_message(invalid, b"\xff")
    server.handler.on_too_large(too_large)

    assert [call.sent[0].code for call in (invalid, too_large)] == [Code.INVALID_ARGUMENT, Code.RESOURCE_EXHAUSTED]  # type: ignore[union-attr]
    assert server.recorded() == {"InvalidArgument": 1, "invalid": 1, "ResourceExhausted": 1, "too_large": 1}


def test_an_unexpected_error_is_internal_and_logged() -> None:
    """The caller gets a fixed text, and the detail is in the log only."""
    server, call = Server(), FakeCall()
    server.pipeline.error = ZeroDivisionError("detail")
    server.handler.on_message(call, BODY)

    assert call.sent == [INTERNAL]
    assert server.recorded() == {"Internal": 1}
    assert server.pipeline.failures == 1


def test_a_responder_records_rejection_and_failure() -> None:
    """An expired request and a failed one get their status, and each call is recorded once."""
    server, expired, failed = Server(), FakeCall(), FakeCall()
    for call in (expired, failed):
        server.handler.on_message(call, BODY)
    server.pipeline.responders[0].reject(DeadlineUnmeetable("late"))
    server.pipeline.responders[1].fail()

    assert expired.sent == [(Code.DEADLINE_EXCEEDED, "late", None)]
    assert failed.sent == [INTERNAL]
    assert server.recorded() == {"DeadlineExceeded": 1, "deadline": 1, "Internal": 1}


def test_a_call_without_a_message_is_recorded_as_invalid() -> None:
    """The transport has sent the status; the handler records it."""
    server, call = Server(), FakeCall()
    server.handler.on_failed(call, NO_MESSAGE)

    assert call.sent == []
    assert server.recorded() == {"InvalidArgument": 1, "invalid": 1}


@pytest.mark.parametrize("code", [Code.RESOURCE_EXHAUSTED, Code.CANCELLED])
def test_a_call_that_a_limit_of_the_transport_ends_is_not_invalid(code: Code) -> None:
    """The transport counts it by the limit; ``digitserve_rejected`` has requests whose messages were read, or are invalid."""
    server = Server()
    server.handler.on_failed(FakeCall(), Status(code, "too slow"))

    assert server.recorded() == {code.label: 1}


@pytest.mark.parametrize(
    ("left_s", "recorded"), [(60.0, {"Canceled": 1}), (-1.0, {"DeadlineExceeded": 1, "deadline": 1})]
)
def test_a_call_that_breaks_off_is_cancelled(left_s: float, recorded: dict[str, int]) -> None:
    """Its request is dropped; it counts as expired if its deadline has passed, and as cancelled otherwise."""
    server, call = Server(), FakeCall(deadline=time.time() + left_s)
    server.handler.on_message(call, BODY)
    server.handler.on_close(call)

    assert server.pipeline.cancelled == server.pipeline.responders
    assert server.recorded() == recorded

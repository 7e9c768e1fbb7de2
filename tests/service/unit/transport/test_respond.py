"""The handler of unary methods that answer immediately: what it sends, and what it records."""

import time

import pytest

from digitserve.errors import InvalidRequest, NotServed
from digitserve.protocol.names import GET_MODEL, Code
from digitserve.protocol.status import INTERNAL, NO_MESSAGE, Status
from digitserve.telemetry.block import Block
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.respond import RespondHandler

LABELS = tuple("0123456789")


class FakeCall:
    """A ``UnaryCall`` that keeps what is sent."""

    def __init__(self, deadline: float = 2e18) -> None:
        self.deadline, self.accepted, self.open, self.context = deadline, 0.0, True, None
        self.sent: list[bytes | Status] = []

    def reply(self, body: bytes) -> None:
        self.sent.append(body)
        self.open = False

    fail = reply


class Server:
    """A handler whose method raises ``error``, or returns its message."""

    def __init__(self, error: Exception | None = None) -> None:
        self.block = Block(LABELS)
        self.recorder = Recorder(self.block, LABELS)
        self.error = error
        self.handler = RespondHandler(GET_MODEL, self._respond, self.recorder, clock=lambda: 1.0)

    def _respond(self, body: bytes) -> bytes:
        if self.error:
            raise self.error
        return body

    def handled(self) -> dict[str, int]:
        """Return the number of ended calls by code; they are never rejected requests of the classifier."""
        assert not self.block.cells["digitserve_rejected"].any()
        (spec,) = (spec for spec in self.block.specs if spec.name == "grpc_server_handled")
        values = zip(spec.label_values, self.block.cells[spec.name][:, 0], strict=True)
        return {labels[-1]: int(value) for labels, value in values if value}


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        (None, b"body"),
        (InvalidRequest("bad"), Status(Code.INVALID_ARGUMENT, "bad")),
        (NotServed("unknown"), Status(Code.NOT_FOUND, "unknown")),
        (ZeroDivisionError("detail"), INTERNAL),
    ],
)
def test_a_call_gets_its_answer_or_status_and_is_recorded(error: Exception | None, sent: bytes | Status) -> None:
    """Each call ends once, with the code that its caller gets; none counts in ``digitserve_rejected``."""
    server, call = Server(error), FakeCall()
    server.handler.on_accept(call)
    server.handler.on_message(call, b"body")

    assert call.sent == [sent]
    assert server.handled() == {(sent.code if isinstance(sent, Status) else Code.OK).label: 1}


@pytest.mark.parametrize(("left_s", "code"), [(60.0, Code.CANCELLED), (-1.0, Code.DEADLINE_EXCEEDED)])
def test_a_call_that_breaks_off_is_recorded_by_its_cause(left_s: float, code: Code) -> None:
    """It counts as expired if its deadline has passed, otherwise as cancelled."""
    server = Server()
    server.handler.on_close(FakeCall(time.time() + left_s))

    assert server.handled() == {code.label: 1}


def test_calls_without_a_readable_message_are_recorded() -> None:
    """The status of the transport is recorded; a message over the limit gets RESOURCE_EXHAUSTED."""
    server, call = Server(), FakeCall()
    server.handler.on_failed(FakeCall(), NO_MESSAGE)
    server.handler.on_too_large(call)

    assert server.handled() == {"InvalidArgument": 1, "ResourceExhausted": 1}
    assert [status.code for status in call.sent] == [Code.RESOURCE_EXHAUSTED]  # type: ignore[union-attr]

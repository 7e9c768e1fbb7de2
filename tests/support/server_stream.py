"""A ``ServerStream`` that a test scripts, and what a handler recorded."""

from typing import Any

from digitserve.protocol.names import Code, Method
from digitserve.protocol.status import Status
from digitserve.telemetry.block import METHODS, Block
from digitserve.types import Source

NO_DEADLINE = 1e19


class FakeStream:
    """A ``ServerStream`` that sends into a list; the test confirms each write."""

    def __init__(self, deadline: float = NO_DEADLINE, source: Source | None = None) -> None:
        self.deadline, self.accepted, self.open = deadline, 0.0, True
        self.source = source or Source()
        self.context: Any = None
        self.reads = 0
        self.written: list[bytes] = []
        self.num_sent = 0
        self.status: Status | None = None

    def read(self) -> None:
        assert self.open
        self.reads += 1

    def write(self, body: bytes) -> None:
        assert self.open
        self.written.append(body)

    def flush(self) -> None:
        """The test confirms what is sent."""

    def finish(self, status: Status) -> None:
        assert self.open
        assert self.num_sent == len(self.written), "the status must be sent last"
        self.open, self.status = False, status


class ScriptedStream(FakeStream):
    """A stream of a handler, driven as a transport drives it: a message only for a read, nothing after the end."""

    def __init__(self, handler: Any, deadline: float = NO_DEADLINE, source: Source | None = None) -> None:
        super().__init__(deadline, source)
        self._handler = handler
        self.num_received = 0
        self.closed = False
        handler.on_accept(self)

    @property
    def reading(self) -> bool:
        """Whether a read is outstanding; there is at most one."""
        assert self.reads - self.num_received in {0, 1}
        return self.open and self.reads > self.num_received

    @property
    def num_unsent(self) -> int:
        return len(self.written) - self.num_sent

    @property
    def code(self) -> Code | None:
        """The code with which the handler ended the stream."""
        return None if self.status is None else self.status.code

    def receive(self, body: bytes) -> None:
        """Deliver a message."""
        assert self.reading
        self.num_received += 1
        self._handler.on_message(self, body)

    def half_close(self) -> None:
        """Deliver the end of the client's messages."""
        assert self.reading
        self.num_received += 1
        self._handler.on_end(self)

    def receive_too_large(self) -> None:
        """Deliver that a message exceeded the limit."""
        assert self.reading
        self.num_received += 1
        self._handler.on_too_large(self)

    def confirm(self) -> None:
        """Confirm that one written message is sent."""
        assert self.num_unsent
        self.num_sent += 1
        if self.open:
            self._handler.on_written(self)

    def close(self) -> None:
        """End the stream: cancelled, unless the handler has ended it."""
        cancelled, self.open, self.closed = self.open, False, True
        self._handler.on_close(self, cancelled=cancelled)
        self.context = None


def codes_of_ended(block: Block, method: Method) -> list[Code]:
    """Return the codes of the RPCs of a method that were recorded as ended, in ascending order."""
    counts = block.cells["grpc_server_handled"].reshape(len(METHODS), len(Code))[METHODS.index(method)]
    return [code for code, count in zip(Code, counts, strict=True) for _ in range(int(count))]


def num_started(block: Block, method: Method) -> int:
    """Return the number of RPCs of a method that were recorded as started."""
    return int(block.cells["grpc_server_started"][METHODS.index(method), 0])

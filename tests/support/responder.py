"""What a pipeline needs besides a session: a bundle without a network, and callers that keep their answers."""

from types import SimpleNamespace
from typing import Any

from digitserve.protocol.names import Method
from digitserve.types import Source

LABELS = tuple("0123456789")
BUNDLE: Any = SimpleNamespace(manifest=SimpleNamespace(name="digits", version=1, labels=LABELS, ood_threshold=0.5))


class Responder:
    """Keeps its answers, and fails the test if its request fails; it is its own caller.

    Attributes:
        bodies: the answers, in order.
    """

    open = True
    accepted = 0.0
    deadline = 1e19
    peer = None
    metadata = ()

    def __init__(self, completes: Method | None = None) -> None:
        """Get the answer to a message of a stream, or that of a call of the method that it ``completes``."""
        self.completes = completes
        self.source = Source()
        self.bodies: list[bytes] = []

    @property
    def caller(self) -> "Responder":
        """Return itself."""
        return self

    def reply(self, body: bytes) -> None:
        """Keep an answer."""
        self.bodies.append(body)

    def reject(self, error: Exception) -> None:
        """Fail the test."""
        raise AssertionError(error)

    def fail(self) -> None:
        """Fail the test."""
        raise AssertionError("failed")

"""What handlers admit and what waits for an answer: the interface between transport and batching.

    handler ──Responder, Request──▶ PendingRequest ──batches──▶ responder.reply

Used by ``pipeline`` and ``readings``, on the worker's one thread.
"""

import math
import time
from typing import TYPE_CHECKING, Protocol

from digitserve.batching.entries import Entry
from digitserve.batching.prepare import framing_work
from digitserve.errors import RequestError
from digitserve.protocol.codec import Request
from digitserve.protocol.names import Method
from digitserve.telemetry.request_log import Caller
from digitserve.types import Framing, Source

if TYPE_CHECKING:
    from digitserve.protocol.encoder import Preparation

_MAX_DEADLINE = 1e18
"""Unix time in seconds. Where a call has no deadline, gRPC gives about 9.2e18."""

# Members of an enum are slow to look up, and this one is needed for each request.
_MNIST = Framing.MNIST


class Responder(Protocol):
    """Interface between transport and pipeline: what waits for one answer, a call or a message of a stream.

    Exactly one of ``reply``, ``reject`` and ``fail`` is called, unless the request is cancelled.

    Attributes:
        accepted: monotonic time in seconds when the request arrived.
        deadline: Unix time in seconds, more than 1e18 when the caller set none.
        source: of the request.
    """

    accepted: float
    deadline: float
    source: Source

    @property
    def completes(self) -> Method | None:
        """The method whose RPC ends with this answer; ``None`` for a message of a stream.

        The pipeline records such RPCs as ended with OK before it sends their answers. All other ends of RPCs are recorded
        by their handlers.
        """

    @property
    def open(self) -> bool:
        """Whether it still waits for an answer."""

    @property
    def caller(self) -> Caller:
        """Its call or stream, for log lines."""

    def reply(self, body: bytes) -> None:
        """Send the answer, a serialized ``ClassifyResponse`` or what the form of the request has encoded."""

    def reject(self, error: RequestError) -> None:
        """Record and send an error."""

    def fail(self) -> None:
        """Record and send an internal error."""


class PendingRequest(Entry):
    """An admitted request: what the batcher schedules, and what the pipeline needs to answer it.

    Attributes:
        responder: takes the answer.
        request: the decoded request.
        plain: whether the answer has no alternatives and preparations, and its usual form.
        preparations: if the request asks for them, one for each image of the batches that are complete.
    """

    __slots__ = ("plain", "preparations", "request", "responder")

    def __init__(self, responder: Responder, request: Request, now: float) -> None:
        """Wait from ``now``, monotonic time in seconds."""
        # As few calls as possible, because this runs once per request.
        work = framing_work_of(request) if request.framing is _MNIST else 0
        deadline = responder.deadline
        deadline = math.inf if deadline > _MAX_DEADLINE else now + (deadline - time.time())
        Entry.__init__(self, request.num_images, work, len(request.pixels), now, deadline, responder.source)
        self.responder = responder
        self.request = request
        self.plain = not (request.top_k or request.explain or request.form)
        self.preparations: tuple[Preparation, ...] = ()

    def log_fields(self, now: float) -> dict[str, object]:
        """Return what log lines state about it; ``now`` is monotonic time in seconds."""
        return {
            "images": self.num_images,
            "request_bytes": self.num_bytes,
            "queue_ms": round(((self.first_batch or now) - self.arrived) * 1e3, 3),
            "compute_ms": round((self.preprocess_s + self.inference_s) * 1e3, 3),
        }


def monotonic_deadline(deadline: float, now: float) -> float:
    """Convert the deadline of a ``Responder`` to monotonic time in seconds, infinite if the caller set none."""
    return math.inf if deadline > _MAX_DEADLINE else now + (deadline - time.time())


def framing_work_of(request: Request) -> int:
    """Return the work of framing one image of a request."""
    return framing_work(request.height, request.width, request.channels) if request.framing is _MNIST else 0

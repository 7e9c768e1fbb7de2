"""One admitted request to read an image, from its admission to its answer. Used by ``readings`` and ``reading_queue``."""

from typing import TYPE_CHECKING, Protocol

from digitserve.batching.pending import Responder, monotonic_deadline
from digitserve.batching.stepwise import Scores
from digitserve.errors import RequestError
from digitserve.protocol.names import Method
from digitserve.protocol.read_codec import ReadRequest
from digitserve.telemetry.request_log import Caller

if TYPE_CHECKING:
    from digitserve.batching.candidates import Candidates
    from digitserve.batching.stepwise import Steps

FIXED_PIXELS = 1 << 16
"""Work of reading an image apart from its pixels, in pixels."""


class PendingReading:
    """An admitted reading; owned by ``Readings``.

    Attributes:
        responder: takes the answer.
        request: the decoded request.
        source: of the request.
        arrived: monotonic time in seconds.
        deadline: monotonic time in seconds, infinite if there is none.
        num_bytes: memory that the request holds.
        num_pixels: of its image.
        work: of reading it, in pixels.
        started: monotonic time in seconds of its first step; None if it waits for that.
        steps: the reading in progress, once it has started.
        scores: for its next step.
        candidates: images that wait for the network or are in a batch.
        num_candidates: images that the network classified for it.
        step_s: seconds of its steps.
        inference_s: seconds of the network, over the batches of its candidates.
        over: it is answered, rejected or cancelled; nothing more is done for it.
    """

    __slots__ = (
        "arrived", "candidates", "deadline", "inference_s", "num_bytes", "num_candidates", "num_pixels", "over", "request",
        "responder", "scores", "source", "started", "step_s", "steps", "work",
    )  # fmt: skip

    def __init__(self, responder: Responder, request: ReadRequest, now: float) -> None:
        """Wait from ``now``, monotonic time in seconds."""
        self.responder = responder
        self.request = request
        self.source = responder.source
        self.arrived = now
        self.deadline = monotonic_deadline(responder.deadline, now)
        self.num_bytes = len(request.pixels)
        self.num_pixels = request.height * request.width
        self.work = self.num_pixels + FIXED_PIXELS
        self.started: float | None = None
        self.steps: Steps | None = None
        self.scores: Scores | None = None
        self.candidates: Candidates | None = None
        self.num_candidates = 0
        self.step_s = 0.0
        self.inference_s = 0.0
        self.over = False

    def queue_s(self, now: float) -> float:
        """Return the seconds from its admission to its first step, or until now."""
        return (now if self.started is None else self.started) - self.arrived

    def log_fields(self, now: float) -> dict[str, object]:
        """Return what log lines state about it; ``now`` is monotonic time in seconds."""
        return {
            "images": self.num_candidates,
            "request_bytes": self.num_bytes,
            "queue_ms": round(self.queue_s(now) * 1e3, 3),
            "compute_ms": round((self.step_s + self.inference_s) * 1e3, 3),
        }


class Owner(Protocol):
    """What the candidates of a reading need of ``Readings``."""

    def resume(self, reading: PendingReading, scores: Scores) -> None:
        """Continue a reading whose candidates are classified."""

    def reject(self, reading: PendingReading, error: RequestError) -> None:
        """Answer with an error."""

    def fail(self, reading: PendingReading) -> None:
        """Answer with an internal error; the pipeline has logged it."""


class CandidateResponder:
    """The ``Responder`` of the candidates of a reading; lives until they have their scores. It gets no answer."""

    __slots__ = ("_reading", "_readings", "accepted", "deadline", "source")

    completes: Method | None = None

    def __init__(self, readings: Owner, reading: PendingReading) -> None:
        responder = reading.responder
        self._readings = readings
        self._reading = reading
        self.accepted = responder.accepted
        self.deadline = responder.deadline
        self.source = responder.source

    @property
    def open(self) -> bool:
        """Whether the reading still waits."""
        return not self._reading.over

    @property
    def caller(self) -> Caller:
        """That of the reading."""
        return self._reading.responder.caller

    def take(self, scores: Scores) -> None:
        """Continue the reading."""
        self._readings.resume(self._reading, scores)

    def reply(self, body: bytes) -> None:
        """Never called: candidates get scores."""
        raise NotImplementedError

    def reject(self, error: RequestError) -> None:
        """Reject the reading."""
        self._readings.reject(self._reading, error)

    def fail(self) -> None:
        """Fail the reading."""
        self._readings.fail(self._reading)

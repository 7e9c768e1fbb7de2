"""The history of an episode: what each client sent, and how each of its requests ended. Clients on any thread write it."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

OK = "OK"


class Answer(NamedTuple):
    """The answer for one image.

    Attributes:
        label: empty for a blank image.
        confidence: probability of the label.
        verdict: number of ``digitserve.v1.Verdict``.
        score: out-of-distribution score.
    """

    label: str
    confidence: float
    verdict: int
    score: float


class Outcome(NamedTuple):
    """How a request ended, as its client saw it.

    Attributes:
        code: ``OK``, the name of a gRPC status code, or of what else ended the request, such as ``HTTP 431`` or ``CLOSED``.
        answers: one for each image of a request that ended with OK.
        version: of the model, as the answer states it; empty if the client library does not show it.
        detail: of a failure, for people.
    """

    code: str
    answers: tuple[Answer, ...] = ()
    version: str = ""
    detail: str = ""


@dataclass(slots=True)
class Request:
    """One request, or one message of a stream.

    Attributes:
        number: unique in the run.
        kind: key of ``checker.KINDS``.
        client: key of ``checker.CLIENTS``.
        images: indices into the images of the run.
        timeout_s: of the request.
        num_calls: calls of ``Classify`` or ``ModelInfer`` that it needs; 0 if it is sent otherwise.
        start_s: monotonic time at which it was sent.
        end_s: monotonic time of its last outcome.
        outcomes: exactly one, if the service keeps its promise.
        connection: client's port of its connection, where the client knows it.
    """

    number: int
    kind: str
    client: str
    images: tuple[int, ...]
    timeout_s: float
    num_calls: int
    start_s: float
    end_s: float = 0.0
    outcomes: list[Outcome] = field(default_factory=list)
    connection: int | None = None

    @property
    def outcome(self) -> Outcome | None:
        """The single outcome; None if there is none."""
        return self.outcomes[0] if self.outcomes else None

    def end(self, code: str, answers: Sequence[Answer] = (), version: str = "", detail: str = "") -> None:
        """Record an outcome."""
        self.end_s = time.monotonic()
        self.outcomes.append(Outcome(code, tuple(answers), version, detail))


class StreamRequests:
    """The requests of a stream, which are answered in order. One thread sends them, another one receives the answers."""

    def __init__(self) -> None:
        self._requests: list[Request] = []
        self._num_ended = 0
        self._closed = False
        self._lock = threading.Lock()

    def begin(self, begin: Callable[[], Request]) -> bool:
        """Record a request that is about to be sent; return False if the stream has ended, and it must not be sent."""
        with self._lock:
            if not self._closed:
                self._requests.append(begin())
            return not self._closed

    def next(self) -> Request:
        """Return the request of the next answer. An answer without a request is a second one to the last request."""
        with self._lock:
            self._num_ended += 1
            return self._requests[min(self._num_ended, len(self._requests)) - 1]

    def close(self) -> list[Request]:
        """End the stream; return the requests without an answer."""
        with self._lock:
            self._closed = True
            return self._requests[self._num_ended :]


class FaultWindow(NamedTuple):
    """A fault that was injected.

    Attributes:
        name: key of ``faults.FAULTS``.
        start_s: monotonic time before its injection.
        end_s: monotonic time at which its effect had ended.
        connections: client's ports of the connections that it affects; None for all.
    """

    name: str
    start_s: float
    end_s: float
    connections: frozenset[int] | None = None


class VersionWindow(NamedTuple):
    """A time in which the service may answer with a version: from the command that activates it until another one has
    replaced it in all workers.
    """

    version: str
    start_s: float
    end_s: float


class History:
    """The requests of an episode."""

    _numbers: Iterator[int] = itertools.count()

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self._lock = threading.Lock()

    def begin(
        self, kind: str, client: str, images: Sequence[int] = (), *, timeout_s: float, num_calls: int = 0
    ) -> Request:
        """Record that a request is about to be sent."""
        with self._lock:
            request = Request(next(self._numbers), kind, client, tuple(images), timeout_s, num_calls, time.monotonic())
            self.requests.append(request)
        return request

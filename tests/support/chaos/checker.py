"""Checks the history of an episode: each request has one outcome, which is right or explained by a fault.

Pure functions of what was recorded, so tests can feed them with corrupted histories.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from support.chaos.history import OK, FaultWindow, Request, VersionWindow
from support.chaos.oracle import Oracle

SLACK_S = 10.0
"""Longest time from the deadline of a call to its end: the clients of a run share one process with a busy interpreter."""

INVALID, LOST, BUSY, LATE = "INVALID_ARGUMENT", "UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"
CANCELLED, NOT_FOUND, UNKNOWN_METHOD = "CANCELLED", "NOT_FOUND", "UNIMPLEMENTED"


class Kind(NamedTuple):
    """A kind of request.

    Attributes:
        text: what is sent, for the documentation.
        codes: how it may end without any fault.
    """

    text: str
    codes: frozenset[str]


def _kind(text: str, *codes: str) -> Kind:
    return Kind(text, frozenset(codes))


KINDS: dict[str, Kind] = {
    "good": _kind("images of one size in one call", OK),
    "mixed sizes": _kind("images of several sizes and formats with one call of the client library", OK),
    "stream message": _kind("a message of `ClassifyStream`", OK),
    "invalid stream message": _kind("a message of `ClassifyStream` whose pixels have the wrong length", INVALID),
    "abandoned stream message": _kind("a message of a stream that is cancelled, valid or not", OK, CANCELLED, INVALID),
    "model": _kind("`GetModel`", OK),
    "health": _kind("a health check", OK),
    "page": _kind("`/metrics`, `/livez` or `/` of the HTTP port", OK),
    "expired": _kind("a call with a deadline of at most 20 ms, or one that has passed", OK, LATE),
    "cancelled": _kind("a call that is cancelled after at most 20 ms", OK, CANCELLED),
    "malformed": _kind("a message that is not protobuf", INVALID),
    "wrong length": _kind("pixels that are no whole number of images", INVALID),
    "too wide": _kind("an image of 5,000 pixels a side, by its header fields only", INVALID),
    "unknown version": _kind("a model version that does not exist", NOT_FOUND),
    "unknown method": _kind("a method that does not exist", UNKNOWN_METHOD),
    "oversized": _kind("a message of 17 MiB", BUSY),
    "oversized prefix": _kind("a message prefix that states 1 GiB", BUSY),
    "byte by byte": _kind("a call whose message arrives in DATA frames of one byte", OK),
    "slow": _kind("a call whose message arrives in two halves, with a pause", OK),
    "slow reader": _kind("a call whose answer must wait for the flow-control window", OK),
    "compressed": _kind("a gzip-compressed message", OK),
    "not gzip": _kind("a message that is marked as compressed and is not", "INTERNAL"),
    "unknown encoding": _kind("`grpc-encoding: snappy`", UNKNOWN_METHOD),
    "no message": _kind("a call that ends without a message", INVALID),
    "two messages": _kind("a unary call with two messages", "INTERNAL"),
    "bad timeout": _kind("`grpc-timeout: soon`", "INTERNAL"),
    "not gRPC": _kind("`content-type: text/plain`", "HTTP 415"),
    "large header": _kind("header fields of 20 KB", "HTTP 431"),
    "bad field": _kind("a header field in upper case", "RESET 1"),
    "reset": _kind("a call that is reset at once", CANCELLED),
    "half-closed": _kind("a call on a connection whose sending half is then closed", OK, "CLOSED"),
    "disconnected": _kind("a call whose connection is closed within its message", "GONE"),
    "garbage": _kind("bytes that violate HTTP/2, on a connection of their own", "CLOSED"),
}

GRPCIO, GRPCIO_RETRIES, AIO, AIO_RETRIES = "grpcio", "grpcio, retries", "grpc.aio", "grpc.aio, retries"
CLIENT, ASYNC_CLIENT, STREAM, WIRE, HTTP = "Client", "AsyncClient", "grpcio stream", "HTTP/2", "HTTP"

CLIENTS = {
    GRPCIO: "blocking calls on channels without a service config",
    GRPCIO_RETRIES: "blocking calls on channels with the retry policy of the client library",
    AIO: "`grpc.aio` without a service config",
    AIO_RETRIES: "`grpc.aio` with the retry policy",
    CLIENT: "`digitserve.client.Client`, calls and streams",
    ASYNC_CLIENT: "`digitserve.client.AsyncClient`, calls and streams",
    STREAM: "`ClassifyStream` on a grpcio channel: a stream is not retried",
    WIRE: "frames of HTTP/2, written by the test",
    HTTP: "requests to the HTTP port",
}

_SURE = frozenset({OK, INVALID, NOT_FOUND})
"""Codes that only the service gives, at the end of a call that it counted."""


@dataclass(frozen=True)
class Fault:
    """What a kind of fault explains.

    Attributes:
        text: what it is, for the documentation.
        injection: how it is injected, for the documentation.
        promise: what must hold, for the documentation.
        explains: codes with which requests of a client may fail while it has an effect; the key ``""`` is every client.
        counts_differ: whether clients that are not in the history send requests, or counts of a worker may be lost.
    """

    text: str
    injection: str
    promise: str
    explains: Mapping[str, frozenset[str]] = field(default_factory=dict)
    counts_differ: bool = False

    def explained(self, client: str) -> frozenset[str]:
        """Return the codes that it explains for a client."""
        return self.explains.get("", frozenset()) | self.explains.get(client, frozenset())


class Counts(NamedTuple):
    """What the metrics of the service counted during an episode.

    Attributes:
        started: RPCs by method.
        handled: RPCs by method and name of the status code.
        images: images that were classified.
        refused: requests that the transport refused or ended.
        closed: connections by the reason for which they were closed.
    """

    started: Counter[str]
    handled: Counter[tuple[str, str]]
    images: int
    refused: int = 0
    closed: Counter[str] = Counter()  # noqa: RUF012 - replaced, never changed

    def since(self, earlier: "Counts") -> "Counts":
        """Return the differences."""
        return Counts(
            Counter({key: count - earlier.started[key] for key, count in self.started.items()}),
            Counter({key: count - earlier.handled[key] for key, count in self.handled.items()}),
            self.images - earlier.images,
            self.refused - earlier.refused,
            self.closed - earlier.closed,
        )


@dataclass
class Episode:
    """What is known of an episode.

    Attributes:
        requests: of its history.
        faults: that were injected.
        versions: that could be served, and when.
        counts: of the metrics; None if the service ended.
    """

    requests: Sequence[Request]
    faults: Sequence[FaultWindow]
    versions: Sequence[VersionWindow]
    counts: Counts | None = None


class Violation(NamedTuple):
    """A broken promise.

    Attributes:
        promise: key of ``PROMISES``.
        text: what was seen.
    """

    promise: str
    text: str


PROMISES = {
    "one outcome": "each request has exactly one outcome: none is lost, none is answered twice",
    "answer": "each answer equals the oracle's answer to the same image alone, for the version that the answer states",
    "version": "the version is the active one, or the one that is being replaced",
    "code": "each failure has a code that its request or an injected fault explains",
    "time": f"each call ends at most {SLACK_S:g} s after its deadline",
    "counters": "the metrics agree with the history: started and handled RPCs, their codes, classified images",
    "recovery": "all workers are ready again, health is SERVING, no image waits",
    "restarts": "workers are replaced exactly as often as faults require",
    "memory": "no worker exceeds 384 MB; worker and supervisor return to the memory of an idle process",
    "resources": "file descriptors and threads of workers and supervisor return to those of an idle process",
    "log": "no log line reports an internal error; each line is JSON",
    "end": "the service ends with exit code 0 and its ports are free, or a new one starts on the ports of a killed one",
}


def check(episode: Episode, oracle: Oracle, faults: Mapping[str, Fault]) -> Iterator[Violation]:
    """Check the history of an episode; return what is wrong."""
    for request in episode.requests:
        yield from _check_request(request, episode, oracle, faults)
    if episode.counts is not None:
        yield from _check_counts(episode, episode.counts, faults)


def describe(request: Request) -> str:
    """Return a line about a request."""
    outcomes = ", ".join(f"{one.code} {one.detail}".strip() for one in request.outcomes) or "no outcome"
    return f"request {request.number} ({request.kind}, {request.client}, started {request.start_s:.3f}): {outcomes}"


def explanations(request: Request, windows: Iterable[FaultWindow], faults: Mapping[str, Fault]) -> list[str]:
    """Return the names of the faults that explain the failure of a request."""
    outcome = request.outcome
    return [
        window.name
        for window in windows
        if outcome is not None
        and request.start_s <= window.end_s
        and request.end_s >= window.start_s
        and (request.connection is None or window.connections is None or request.connection in window.connections)
        and outcome.code in faults[window.name].explained(request.client)
    ]


def _check_request(
    request: Request, episode: Episode, oracle: Oracle, faults: Mapping[str, Fault]
) -> Iterator[Violation]:
    if len(request.outcomes) != 1:
        yield Violation("one outcome", f"{len(request.outcomes)} outcomes: {describe(request)}")
        return
    (outcome,) = request.outcomes
    if request.end_s - request.start_s > request.timeout_s + SLACK_S:
        yield Violation("time", f"{request.end_s - request.start_s:.1f} s: {describe(request)}")
    if outcome.code not in KINDS[request.kind].codes and not explanations(request, episode.faults, faults):
        yield Violation("code", describe(request))
    if outcome.code == OK:
        yield from _check_answers(request, episode.versions, oracle)


def _check_answers(request: Request, windows: Sequence[VersionWindow], oracle: Oracle) -> Iterator[Violation]:
    outcome = request.outcomes[0]
    possible = {one.version for one in windows if one.start_s <= request.end_s and request.start_s <= one.end_s}
    if outcome.version:
        if outcome.version not in possible:
            yield Violation("version", f"{outcome.version}, expected one of {sorted(possible)}: {describe(request)}")
            return
        possible = {outcome.version}
    if len(outcome.answers) != len(request.images):
        yield Violation("answer", f"{len(outcome.answers)} of {len(request.images)} images: {describe(request)}")
        return
    for got, index in zip(outcome.answers, request.images, strict=True):
        # The images of a call may be answered by several workers, and so by two versions.
        if not any(oracle.matches(got, version, index) for version in possible):
            expected = [oracle.answer(version, index) for version in sorted(possible)]
            yield Violation("answer", f"image {index}: got {got}, expected {expected}: {describe(request)}")
            return


def _check_counts(episode: Episode, counts: Counts, faults: Mapping[str, Fault]) -> Iterator[Violation]:
    for method, started in counts.started.items():
        handled = sum(count for (name, _), count in counts.handled.items() if name == method)
        if handled != started:
            yield Violation("counters", f"{method}: {started} started, {handled} handled")
    if any(faults[window.name].counts_differ for window in episode.faults):
        return
    seen = _seen(episode.requests)
    for code in sorted(_SURE):
        counted = counts.handled["Classify", code] + counts.handled["ModelInfer", code]
        if not seen.calls[code] <= counted <= seen.calls[code] + seen.unsure_calls:
            yield Violation("counters", f"Classify and ModelInfer {code}: counted {counted}; clients saw {seen}")
    if not seen.num_images <= counts.images <= seen.num_images + seen.unsure_images:
        yield Violation("counters", f"images: counted {counts.images}; clients saw {seen}")


class Seen(NamedTuple):
    """What clients saw.

    Attributes:
        calls: calls of ``Classify`` and ``ModelInfer`` by code, for codes that only the service gives.
        unsure_calls: calls that ended otherwise, such as by the client: the service may have counted any code.
        num_images: images of requests that ended with OK.
        unsure_images: images of requests that the service may have answered.
    """

    calls: Counter[str]
    unsure_calls: int
    num_images: int
    unsure_images: int


def _seen(requests: Iterable[Request]) -> Seen:
    calls: Counter[str] = Counter()
    num_images = unsure_calls = unsure_images = 0
    for request in requests:
        code = request.outcome.code if request.outcome else ""
        calls[code] += request.num_calls
        unsure_calls += request.num_calls * (code not in _SURE)
        num_images += len(request.images) * (code == OK)
        unsure_images += len(request.images) * (code not in _SURE)
    return Seen(calls, unsure_calls, num_images, unsure_images)

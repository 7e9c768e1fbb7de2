"""The parts of ``make chaos``: the checker finds every kind of corrupted history, and a seed determines the plan."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import pytest

from digitserve.inference.bundle import read_bundle
from digitserve.inference.model_folder import find_bundle
from digitserve.protocol.names import CLASSIFY, MODEL_INFER
from support.chaos import plan
from support.chaos.checker import CLIENT, CLIENTS, GRPCIO, KINDS, PROMISES, STREAM, WIRE, Counts, Episode, check
from support.chaos.faults import ACTIONS, CONDITIONS, FAULTS
from support.chaos.history import OK, FaultWindow, History, Outcome, Request, StreamRequests, VersionWindow
from support.chaos.images import Images
from support.chaos.oracle import TOLERANCE, Oracle
from support.chaos.state import LogPipe, ProcessState
from support.chaos.traffic import draw_call
from support.digits import MODELS
from support.serving import wait_until

FOLDER = find_bundle(MODELS, "digits")
VERSION = FOLDER.name
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def oracle() -> Oracle:
    return Oracle(Images(1), [read_bundle(FOLDER)])


@dataclass
class Recorded:
    """A history without a fault, which tests corrupt."""

    oracle: Oracle
    requests: list[Request] = field(default_factory=list)
    faults: list[FaultWindow] = field(default_factory=list)
    versions: list[VersionWindow] = field(default_factory=lambda: [VersionWindow(VERSION, 0, 100)])
    counts: Counts = field(default_factory=lambda: Counts(Counter(), Counter(), 0))

    def __post_init__(self) -> None:
        self.add("good", GRPCIO, 0, 1)
        self.add("good", WIRE, 2).connection = 1234
        self.add("mixed sizes", CLIENT, 3, 4, 5, version="")
        self.add("stream message", STREAM, 6, num_calls=0)
        self.add("malformed", GRPCIO, code="INVALID_ARGUMENT")
        self.add("cancelled", GRPCIO, 7, code="CANCELLED")
        self.counts = Counts(
            Counter({"Classify": 4, "ModelInfer": 1, "ClassifyStream": 1}),
            Counter({
                ("Classify", OK): 2, ("ModelInfer", OK): 1, ("Classify", "INVALID_ARGUMENT"): 1, ("Classify", "CANCELLED"): 1,
                ("ClassifyStream", OK): 1,
            }),
            7,
        )  # fmt: skip

    def add(
        self, kind: str, client: str, *images: int, code: str = OK, version: str = VERSION, num_calls: int = 1
    ) -> Request:
        request = Request(len(self.requests), kind, client, images, 20.0, num_calls, 10.0, 11.0)
        answers = tuple(self.oracle.answer(VERSION, index) for index in images) if code == OK else ()
        request.outcomes.append(Outcome(code, answers, version if code == OK else ""))
        self.requests.append(request)
        return request

    def broken(self) -> list[str]:
        """Return the promises that the checker reports as broken."""
        episode = Episode(self.requests, self.faults, self.versions, self.counts)
        return [violation.promise for violation in check(episode, self.oracle, FAULTS)]

    def change(self, number: int, **fields: object) -> None:
        """Change the outcome of a request."""
        self.requests[number].outcomes[0] = self.requests[number].outcomes[0]._replace(**fields)

    def change_answer(self, **fields: object) -> None:
        """Change the answer to an image."""
        first, *others = self.requests[0].outcomes[0].answers
        self.change(0, answers=(first._replace(**fields), *others))

    def end(self, number: int, code: str) -> None:
        """Let a request fail."""
        self.requests[number].outcomes = [Outcome(code)]

    def swap(self, one: int, other: int) -> None:
        """Exchange the outcomes of two requests."""
        first, second = self.requests[one], self.requests[other]
        first.outcomes, second.outcomes = second.outcomes, first.outcomes


CORRUPTIONS: dict[str, tuple[str, Callable[[Recorded], None]]] = {
    "a wrong label": ("answer", lambda one: one.change_answer(label="none")),
    "a wrong confidence": ("answer", lambda one: one.change_answer(confidence=0.5)),
    "a wrong verdict": ("answer", lambda one: one.change_answer(verdict=0)),
    "a wrong score": ("answer", lambda one: one.change_answer(score=one.oracle.answer(VERSION, 0).score + 3 * TOLERANCE)),
    "exchanged images": ("answer", lambda one: one.change(0, answers=one.requests[0].outcomes[0].answers[::-1])),
    "a missing image": ("answer", lambda one: one.change(0, answers=one.requests[0].outcomes[0].answers[:1])),
    "the answer of another call": ("answer", lambda one: one.swap(1, 3)),
    "another version": ("version", lambda one: one.change(0, version="3")),
    "a version that is not active": ("version", lambda one: one.versions.__setitem__(0, VersionWindow(VERSION, 0, 9))),
    "a lost call": ("one outcome", lambda one: one.requests[0].outcomes.clear()),
    "a second outcome": ("one outcome", lambda one: one.requests[0].outcomes.append(Outcome("UNAVAILABLE"))),
    "a code without a fault": ("code", lambda one: one.end(1, "UNAVAILABLE")),
    "an internal error": ("code", lambda one: one.end(1, "INTERNAL")),
    "an answer to an invalid request": ("code", lambda one: one.end(4, OK)),
    "a late end": ("time", lambda one: setattr(one.requests[0], "end_s", 60.0)),
    "a call that is not handled": ("counters", lambda one: one.counts.started.update({"GetModel": 1})),
    "a call that was counted twice": (
        "counters",
        lambda one: (one.counts.started.update({"Classify": 2}), one.counts.handled.update({("Classify", OK): 2})),
    ),
    "images that were not counted": ("counters", lambda one: setattr(one, "counts", one.counts._replace(images=6))),
}  # fmt: skip


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_corruption_of_a_history_is_found(corruption: str, oracle: Oracle) -> None:
    """A correct history breaks no promise. After one corruption the checker reports the promise that it breaks."""
    recorded = Recorded(oracle)
    assert recorded.broken() == []
    promise, corrupt = CORRUPTIONS[corruption]
    corrupt(recorded)
    assert promise in recorded.broken()


KILL = FaultWindow("kill", 9.0, 10.5, frozenset({1234}))
"""It kills the worker of the request that ``Recorded`` sends on the connection 1234, while that request waits."""


@pytest.mark.parametrize(
    ("window", "code", "explained"),
    [
        (KILL, "UNAVAILABLE", True),
        (KILL._replace(connections=None), "UNAVAILABLE", True),
        (KILL, "INTERNAL", False),
        (KILL._replace(end_s=9.9), "UNAVAILABLE", False),
        (KILL._replace(start_s=11.1, end_s=12.0), "UNAVAILABLE", False),
        (KILL._replace(connections=frozenset({77})), "UNAVAILABLE", False),
        (KILL._replace(name="terminate"), "UNAVAILABLE", False),
        (KILL._replace(name="pause"), "UNAVAILABLE", False),
    ],
)
def test_a_fault_explains_only_its_own_failures(
    window: FaultWindow, code: str, explained: bool, oracle: Oracle
) -> None:
    """A killed worker explains calls that failed as UNAVAILABLE at that time, on a connection to that worker."""
    recorded = Recorded(oracle, faults=[window])
    recorded.end(1, code)
    assert ("code" not in recorded.broken()) == explained


def test_a_score_at_the_threshold_may_have_either_verdict(oracle: Oracle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts may differ only if rounding can move the score over the threshold."""
    answer = oracle.answer(VERSION, 0)
    other = answer._replace(verdict=3 - answer.verdict)
    assert not oracle.matches(other, VERSION, 0)
    monkeypatch.setattr(oracle, "threshold", lambda version: answer.score + TOLERANCE / 2)
    assert oracle.matches(other, VERSION, 0)
    assert not oracle.matches(other._replace(label="none"), VERSION, 0)


def test_answers_of_a_stream_belong_to_its_requests_in_order() -> None:
    """An answer without a request is a second outcome; requests without an answer remain, and none is sent after the end."""
    history, sent = History(), StreamRequests()

    def begin() -> Request:
        return history.begin("stream message", STREAM, timeout_s=1)

    assert sent.begin(begin) and sent.begin(begin)
    first, second = history.requests
    assert sent.next() is first
    assert sent.close() == [second]
    assert not sent.begin(begin)
    sent.next()
    assert sent.next() is second
    assert len(history.requests) == 2


def test_a_seed_determines_the_plan() -> None:
    """The plan is the same for the same seed; it begins without a fault, then injects each fault, then combinations."""
    once = plan.NUM_FIRST
    first = list(islice(plan.episodes(7), once + 20))
    assert first == list(islice(plan.episodes(7), once + 20))
    assert first != list(islice(plan.episodes(8), once + 20))
    assert (first[0].condition, first[0].actions) == (plan.QUIET, ())
    injected = {name for one in first[:once] for name in (one.condition, *one.actions)}
    assert injected >= {*ACTIONS, *CONDITIONS}
    assert any(one.condition and len(one.actions) > 1 for one in first[once:])


def test_each_kind_of_call_with_images_has_both_methods() -> None:
    """``Classify`` and ``ModelInfer`` are called with valid and invalid requests, in time and too late, or cancelled."""
    rng, images = random.Random(1), Images(1)
    drawn = {(call.kind, call.path) for call in (draw_call(rng, images) for _ in range(1000))}
    kinds = {"good", "expired", "cancelled", "malformed", "wrong length", "too wide", "unknown version"}
    assert drawn >= {(kind, method.path) for kind in kinds for method in (CLASSIFY, MODEL_INFER)}


def test_the_page_lists_all_faults_and_kinds() -> None:
    """``docs/reliability.md`` was generated with the faults, kinds of requests and checks that the run has now."""
    page = (ROOT / "docs" / "reliability.md").read_text()
    for name, text in (
        *((name, fault.promise) for name, fault in FAULTS.items()),
        *((name, kind.text) for name, kind in KINDS.items()),
        *CLIENTS.items(),
        *PROMISES.items(),
    ):
        assert re.search(rf"^\| {re.escape(name)} \|.*{re.escape(text)}", page, re.MULTILINE), name


def test_lines_with_internal_errors_are_found(tmp_path: Path) -> None:
    """Each log line must be JSON without a traceback, also after the pipe was full or closed."""
    log = LogPipe(tmp_path / "log")

    def write(line: str) -> None:
        with log.path.open("w") as file:
            file.write(line + "\n")

    try:
        write(json.dumps({"event": "ready"}))
        log.fill()
        log.resume()
        write(json.dumps({"event": "request failed", "exception": []}))
        wait_until(log.faults, "the line is read")
        log.close()
        log.open()
        write("Traceback")
        wait_until(lambda: "Traceback" in log.lines, "all lines are read")
    finally:
        log.end()
    assert [text[:10] for text in log.faults()] == ['{"event": ', "not JSON: "]


def test_what_idle_processes_keep_is_found() -> None:
    """More descriptors or threads than at the start are found, and much more memory."""
    idle = ProcessState(80_000_000, 90_000_000, 10, 3)
    assert idle.excess(idle) == []
    grown = idle._replace(memory_bytes=160_000_000, num_descriptors=11, num_threads=4)
    assert len(grown.excess(idle)) == 3

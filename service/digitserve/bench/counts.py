"""Counters of one process since its last report, and their sum over reports and processes.

The connection drivers fill a ``Recorder`` on the process's only thread. Each report takes its ``Counts`` and sends them to
the parent, and ``coordinator`` adds all of them up. So the totals are up to date even if a process fails.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from digitserve.bench.histogram import Histogram
from digitserve.bench.wire import Status
from digitserve.protocol.names import Code

SLOT_S = 0.1
"""Length of the time slots in which answers are counted."""

_MAX_MESSAGE_LENGTH = 300

_SUMS = ("sent", "unsent", "unanswered", "failed_connections", "going_away", "disconnected", "checked", "wrong")

# Module constants, because enum attributes and labels would be computed per request.
_OK = Code.OK
_LABELS = tuple(code.label for code in Code)


@dataclass
class Counts:
    """Counters that are merged by addition.

    Attributes:
        latencies: of requests answered with OK.
        waits: waiting times at the end of the run of requests that were never answered.
        codes: measured requests by the label of their status code.
        messages: the first status message of each code.
        timeline: OK answers by slot of ``SLOT_S`` from the start of the measured time; includes answers to requests of the
            warm-up.
        sent: requests sent, warm-up included.
        unsent: requests that were due but not sent when the measured time ended.
        unanswered: requests sent but not answered within the timeout after the measured time.
        failed_connections: connections that could not be opened, or broke.
        going_away: connections that the service closed by GOAWAY.
        disconnected: connections that were broken at the end of the measured time and could not be opened again.
        checked: answers that were decoded and checked.
        wrong: checked answers without one prediction per image.
    """

    latencies: Histogram = field(default_factory=Histogram)
    waits: Histogram = field(default_factory=Histogram)
    codes: Counter[str] = field(default_factory=Counter)
    messages: dict[str, str] = field(default_factory=dict)
    timeline: Counter[int] = field(default_factory=Counter)
    sent: int = 0
    unsent: int = 0
    unanswered: int = 0
    failed_connections: int = 0
    going_away: int = 0
    disconnected: int = 0
    checked: int = 0
    wrong: int = 0

    def add(self, other: Self) -> None:
        """Add other counts."""
        self.latencies.add(other.latencies)
        self.waits.add(other.waits)
        self.codes += other.codes
        self.timeline += other.timeline
        self.messages = other.messages | self.messages
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def measured(self) -> int:
        """Number of requests whose intended time is in the measured time, whatever their result."""
        return self.codes.total() + self.unsent + self.unanswered

    @property
    def num_ok(self) -> int:
        """Number of measured requests answered with OK."""
        return self.codes[_LABELS[_OK]]

    @property
    def errors(self) -> int:
        """Number of measured requests that ended with another code than OK."""
        return self.codes.total() - self.num_ok

    def latencies_and_waits(self) -> Histogram:
        """Return the histogram for percentiles: it includes the waiting times of unfinished requests."""
        both = Histogram()
        both.add(self.latencies)
        both.add(self.waits)
        return both

    def to_json(self) -> dict[str, object]:
        """Return the counts as a JSON object."""
        return vars(self) | {"latencies": self.latencies.to_json(), "waits": self.waits.to_json()}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Self:
        """Read what ``to_json`` returned."""
        return cls(
            **{
                **stored,
                "latencies": Histogram.from_json(stored["latencies"]),
                "waits": Histogram.from_json(stored["waits"]),
                "codes": Counter(stored["codes"]),
                "timeline": Counter({int(slot): num for slot, num in stored["timeline"].items()}),
            }
        )


class Recorder:
    """Records the requests of one process. Decides which requests are measured: those intended in the measured time.

    Attributes:
        counts: since the last ``take``.
    """

    def __init__(self) -> None:
        """Measure nothing until ``set_window``."""
        self.counts = Counts()
        self._start_s = self._end_s = 0.0
        self._latencies_s: list[float] = []
        self._waits_s: list[float] = []

    def set_window(self, start_s: float, end_s: float) -> None:
        """Set the measured time: two times of the monotonic clock."""
        self._start_s, self._end_s = start_s, end_s

    def shorten_window(self, end_s: float) -> None:
        """End the measured time before the planned end."""
        self._end_s = end_s

    def request_ended(self, intended_s: float, status: Status, now_s: float) -> None:
        """Record a request that ended with a status."""
        code = status.code
        if code == _OK and self._start_s <= now_s < self._end_s:
            self.counts.timeline[int((now_s - self._start_s) / SLOT_S)] += 1
        if not self._start_s <= intended_s < self._end_s:
            return
        label = _LABELS[code]
        self.counts.codes[label] += 1
        if code == _OK:
            self._latencies_s.append(now_s - intended_s)
        elif label not in self.counts.messages:
            self.counts.messages[label] = status.message[:_MAX_MESSAGE_LENGTH]

    def request_unfinished(self, intended_s: float, now_s: float, *, sent: bool) -> None:
        """Record a request that will not be answered, with its waiting time so far."""
        if self._start_s <= intended_s < self._end_s:
            self._waits_s.append(now_s - intended_s)
            self.counts.unanswered += sent
            self.counts.unsent += not sent

    def take(self) -> Counts:
        """Return the counts since the last call, and start again from zero."""
        taken = self.counts
        taken.latencies.record(self._latencies_s)
        taken.waits.record(self._waits_s)
        self._latencies_s, self._waits_s = [], []
        self.counts = Counts()
        return taken

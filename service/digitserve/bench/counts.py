"""What one process has counted since its last report, and the sum over reports and processes.

``load`` fills a ``Tally`` on the process's thread; each report takes a ``Counts`` off it, as one JSON line; ``fleet``
adds them all up. So what was measured is known at any time, whatever happens to a process.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from digitserve.bench import wire
from digitserve.bench.histogram import Histogram
from digitserve.telemetry.block import CODES

SLOT_S = 0.1
"""Answers over time are counted in slots of this length."""

_MESSAGE_LENGTH = 300


@dataclass
class Counts:
    """Counts that are merged by addition.

    Attributes:
        latencies: of requests that were answered with OK.
        waits: how long those that were never answered had waited in the end.
        codes: measured requests by the name of their code.
        messages: the first message for people of each code.
        timeline: OK answers by slot of ``SLOT_S``, from the beginning of the measured time on; answers to requests of the
            warm-up included.
        sent: requests sent, those of the warm-up included.
        unsent: requests that were still waiting in line when the measured time ended.
        unanswered: requests sent and not answered in time after the measured time.
        failed_connections: connections that could not be made, or broke.
        going_away: connections that the service asked to leave (GOAWAY).
        checked: answers that were decoded and looked at.
        wrong: those among them without a prediction for each image.
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
    checked: int = 0
    wrong: int = 0

    def add(self, other: Self) -> None:
        """Count what another has counted."""
        self.latencies.add(other.latencies)
        self.waits.add(other.waits)
        self.codes += other.codes
        self.timeline += other.timeline
        self.messages = other.messages | self.messages
        for name in ("sent", "unsent", "unanswered", "failed_connections", "going_away", "checked", "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @property
    def measured(self) -> int:
        """Requests that were to be sent in the measured time, whatever became of them."""
        return self.codes.total() + self.unsent + self.unanswered

    @property
    def errors(self) -> int:
        """Requests that ended with another code than OK."""
        return self.codes.total() - self.codes[CODES[wire.OK]]

    def latencies_and_waits(self) -> Histogram:
        """Return what percentiles are taken of: whoever was never answered has waited as well, and longer than is known."""
        both = Histogram()
        both.add(self.latencies)
        both.add(self.waits)
        return both

    def to_json(self) -> dict[str, object]:
        """Return it for JSON."""
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


class Tally:
    """Where the lanes of a process count; knows which requests are measured.

    Attributes:
        counts: since the last ``take``.
    """

    def __init__(self) -> None:
        """Measure nothing yet."""
        self.counts = Counts()
        self._begins_s = self._ends_s = 0.0
        self._latencies_s: list[float] = []
        self._waits_s: list[float] = []

    def measure(self, begins_s: float, ends_s: float) -> None:
        """Measure requests that are intended between two times of the monotonic clock."""
        self._begins_s, self._ends_s = begins_s, ends_s

    def measure_until(self, ends_s: float) -> None:
        """Measure less long than was planned."""
        self._ends_s = ends_s

    def ended(self, intended_s: float, status: wire.Status, now_s: float) -> None:
        """Count a request that has ended."""
        code = status.code
        if code == wire.OK and self._begins_s <= now_s < self._ends_s:
            self.counts.timeline[int((now_s - self._begins_s) / SLOT_S)] += 1
        if not self._begins_s <= intended_s < self._ends_s:
            return
        name = CODES[code]
        self.counts.codes[name] += 1
        if code == wire.OK:
            self._latencies_s.append(now_s - intended_s)
        elif name not in self.counts.messages:
            self.counts.messages[name] = status.message[:_MESSAGE_LENGTH]

    def left_over(self, intended_s: float, now_s: float, *, sent: bool) -> None:
        """Count a request that nobody will answer any more, with the time that it has waited."""
        if self._begins_s <= intended_s < self._ends_s:
            self._waits_s.append(now_s - intended_s)
            self.counts.unanswered += sent
            self.counts.unsent += not sent

    def take(self) -> Counts:
        """Return what was counted since the last time."""
        taken = self.counts
        taken.latencies.record(self._latencies_s)
        taken.waits.record(self._waits_s)
        self._latencies_s, self._waits_s = [], []
        self.counts = Counts()
        return taken

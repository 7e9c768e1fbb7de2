"""Keeps the readings of the last seconds, and what is known about the service now.

    Reader ──Page, time──▶ Monitor ──▶ Figures, state ──▶ screen

Uses no clock, network or terminal: the time is passed in. Used on the main thread.
"""

from collections import deque

from digitserve.scrape import Page
from digitserve.top.figures import Figures, compare

WINDOW_S = 10.0
"""Time over which rates and quantiles are computed: in less, a p99 would have too few observations."""

JITTER_S = 0.25
"""Time by which a reading may be earlier or later than planned."""

NUM_RATES = 240
"""Rates in the history, as many as a wide terminal has columns."""

_MONOTONE = ("_total", "_bucket", "_count")


class Monitor:
    """What is known about a service.

    Attributes:
        figures: of the last seconds; None before the first reading. They stay when the service is gone.
        rates: images per second between successive readings, the newest last.
        restarted_s: when the counters last started again from 0; None if they never did.
        failure: why the last reading failed; empty if it did not.
        failing_since_s: time of the first failure since the last reading.
    """

    def __init__(self, window_s: float = WINDOW_S) -> None:
        """Start without a reading."""
        self.figures: Figures | None = None
        self.rates: deque[float] = deque(maxlen=NUM_RATES)
        self.restarted_s: float | None = None
        self.failure = ""
        self.failing_since_s = 0.0
        self._window_s = window_s
        self._readings: deque[tuple[float, Page]] = deque()

    def read(self, time_s: float, page: Page) -> None:
        """Take a reading of the page; ``time_s`` must not be lower than before."""
        self.failure = ""
        if self._readings and _is_restarted(self._readings[-1][1], page):
            self._readings.clear()
            self.restarted_s = time_s
        readings = self._readings
        readings.append((time_s, page))
        # The oldest reading that is kept is the newest one outside of the window, or the first one.
        while len(readings) > 2 and readings[1][0] <= time_s - self._window_s + JITTER_S:  # noqa: PLR2004 - needs two
            readings.popleft()
        (oldest_s, oldest), (previous_s, previous) = readings[0], readings[max(0, len(readings) - 2)]
        self.figures = compare(oldest, page, time_s - oldest_s)
        if time_s > previous_s:
            images = "digitserve_images_total"
            self.rates.append(max(0.0, page.total(images) - previous.total(images)) / (time_s - previous_s))

    def fail(self, time_s: float, reason: str) -> None:
        """Note that the page could not be read."""
        if not self.failure:
            self.failing_since_s = time_s
        self.failure = reason


def _is_restarted(before: Page, after: Page) -> bool:
    """Return whether a counter has become lower: the service was restarted in between."""
    return any(
        value > after.samples.get(name, {}).get(labels, 0.0)
        for name, values in before.samples.items()
        if name.endswith(_MONOTONE)
        for labels, value in values.items()
    )

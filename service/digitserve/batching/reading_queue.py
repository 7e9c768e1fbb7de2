"""Which reading starts next: readings of small and of large images separately, the sources in turn. Owned by ``readings``.

add ──▶ waiting, by source ──take──▶ at most so many started ──end
"""

from collections import OrderedDict, deque
from typing import TYPE_CHECKING

from digitserve.batching.pending_reading import PendingReading

if TYPE_CHECKING:
    from digitserve.types import Source

SMALL_PIXELS = 1 << 18
"""Most pixels of a small image: a field of a form, or a few lines."""

MAX_SMALL_STARTED = 16
"""Readings of small images that may be in progress together, so that the network gets the candidates of all in one batch."""

MAX_LARGE_STARTED = 1
"""The same for large images. Their steps hold several arrays of their size, so their memory is that of one image. More would not
be faster, because they have one thread."""


class ReadingQueue:
    """Readings that have not started yet; owned by ``Readings``."""

    def __init__(self) -> None:
        """Start empty."""
        self._lanes = _Lane(MAX_SMALL_STARTED), _Lane(MAX_LARGE_STARTED)

    def add(self, reading: PendingReading) -> None:
        """Append a reading behind others of its source."""
        self._lane(reading).waiting.setdefault(reading.source, deque()).append(reading)

    def take(self) -> list[PendingReading]:
        """Return the readings that start now."""
        return [reading for lane in self._lanes for reading in lane.take()]

    def end(self, reading: PendingReading) -> None:
        """Remove a reading that is over."""
        lane = self._lane(reading)
        if reading.started is not None:
            lane.num_started -= 1
            return
        readings = lane.waiting[reading.source]
        readings.remove(reading)
        if not readings:
            del lane.waiting[reading.source]

    def _lane(self, reading: PendingReading) -> "_Lane":
        return self._lanes[reading.num_pixels > SMALL_PIXELS]


class _Lane:
    """Readings of images of similar size.

    Attributes:
        waiting: readings of each source, in the order of arrival; the source whose turn is next comes first.
        num_started: readings in progress.
    """

    def __init__(self, max_started: int) -> None:
        self._max_started = max_started
        self.waiting: OrderedDict[Source, deque[PendingReading]] = OrderedDict()
        self.num_started = 0

    def take(self) -> list[PendingReading]:
        taken = []
        while self.waiting and self.num_started < self._max_started:
            source, readings = self.waiting.popitem(last=False)
            taken.append(readings.popleft())
            self.num_started += 1
            if readings:
                self.waiting[source] = readings
        return taken

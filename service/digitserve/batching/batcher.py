"""Who waits, who is next, and who need not wait: the batcher as a plain object.

It is driven by calls with the time passed in; it knows no gRPC, no clock and no thread, so tests drive it exactly.

    admit ──▶ short lane (FIFO) ─────────────┐
         └──▶ long lane (taken in turns) ────┴──form──▶ Batch ──run──▶ complete ──▶ entries with all their answers
    cancel: at any time

While one batch runs, requests gather and become the next: there is no timer, and an idle service adds no delay. An entry
whose work exceeds one batch goes to the long lane, is split over several batches, and lets short ones pass between.
"""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from digitserve.errors import DeadlineUnmeetable, Draining, Overloaded

LONG_SHARE = 4
"""A long lane that got nothing of the last batch gets one image in so many of the next, so that it never starves."""

BESIDE_SHARE = 2
"""Long entries fill a batch that has short ones up to one image in so many of its size."""

_FIXED_WORK = 1 << 18
"""What framing an image costs apart from its pixels, in grey pixels."""

_CHANNEL_WORK = {1: 1, 3: 8, 4: 20}
"""What a pixel of so many channels costs, in grey pixels: turning colours grey takes longer than all else."""

_SMOOTHING = 0.1
"""Weight of the newest batch in the running estimates: some ten batches are remembered."""

_MOST_SLOWDOWN = 8
"""How much slower than estimated one batch may count: a process that was stopped for a minute did not become slow."""


def framing_work(height: int, width: int, channels: int = 1) -> int:
    """Return the units of work that framing one image of this size and so many channels takes."""
    return height * width * _CHANNEL_WORK[channels] + _FIXED_WORK


class Entry:
    """One admitted request on its way through batches; made by ``rpc``, owned by the batcher until it is complete.

    Attributes:
        work: what ``rpc`` keeps with it; not looked at here.
        num_images: images in the request.
        framing_work: what framing one of its images takes, in units of ``framing_work``; 0 for images used as they are.
        num_bytes: memory that it holds while it waits.
        arrived: monotonic time in seconds.
        deadline: monotonic time in seconds, infinite when there is none.
        taken: images that are in a batch already.
        answers: one for each image of the batches that are complete.
        first_batch: monotonic time when its first batch was formed.
        preprocess_s: seconds in preprocessing, over its batches.
        inference_s: seconds in the network, over its batches.
        dead: cancelled or failed; nothing more is done for it.
    """

    __slots__ = (
        "answers", "arrived", "dead", "deadline", "first_batch", "framing_work", "inference_s", "long", "num_bytes",
        "num_images", "preprocess_s", "taken", "work",
    )  # fmt: skip

    def __init__(
        self, work: Any, num_images: int, framing_work: int, num_bytes: int, arrived: float, deadline: float
    ) -> None:
        self.work = work
        self.num_images = num_images
        self.framing_work = framing_work
        self.num_bytes = num_bytes
        self.arrived = arrived
        self.deadline = deadline
        self.taken = 0
        self.answers: list[Any] = []
        self.first_batch = 0.0
        self.preprocess_s = 0.0
        self.inference_s = 0.0
        self.long = False
        self.dead = False


@dataclass(slots=True)
class Batch:
    """What runs together.

    Attributes:
        parts: entry, first image, image after the last, in the order of the batch's rows.
        expired: entries whose deadline passed while they waited; they are to be failed.
        num_images: rows of the batch; 0 when there is only something expired.
        framing_work: units of framing, over all its images.
    """

    parts: list[tuple[Entry, int, int]] = field(default_factory=list)
    expired: list[Entry] = field(default_factory=list)
    num_images: int = 0
    framing_work: int = 0


class Estimate:
    """A running mean of seconds per unit of work.

    Attributes:
        seconds: the estimate; starts above 0.
    """

    def __init__(self, initial_s: float) -> None:
        self.seconds = self._initial_s = initial_s

    def update(self, elapsed_s: float, units: int) -> None:
        """Take one measurement in."""
        if units:
            self.seconds += _SMOOTHING * (min(elapsed_s / units, _MOST_SLOWDOWN * self.seconds) - self.seconds)

    def doubt(self) -> None:
        """Move towards the first estimate from above: one so high that everybody is refused is corrected by no batch."""
        self.seconds += _SMOOTHING * min(0.0, self._initial_s - self.seconds)


class Batcher:
    """Bounds what waits, forms batches, hands out answers. Owned and called by the worker's one thread.

    Attributes:
        pending_images: images admitted and not yet in a batch.
        image_s: estimated seconds of the network for an image, in a full batch.
        work_s: estimated seconds for a unit of framing.
    """

    def __init__(
        self,
        *,
        max_batch_size: int,
        max_pending_images: int,
        max_pending_bytes: int,
        max_batch_s: float,
        image_s: float,
        work_s: float,
    ) -> None:
        """Start empty.

        Args:
            max_batch_size: most images in a batch.
            max_pending_images: most images waiting.
            max_pending_bytes: most memory held by what waits.
            max_batch_s: most estimated seconds of a batch; one image is taken however long it may take.
            image_s: first estimate, from warming up.
            work_s: first estimate.
        """
        self._max_batch_size = max_batch_size
        self._max_pending_images = max_pending_images
        self._max_pending_bytes = max_pending_bytes
        self._max_batch_s = max_batch_s
        self._short: deque[Entry] = deque()
        self._long: deque[Entry] = deque()
        self._long_skipped = False
        self._pending_bytes = 0
        self._pending_work = 0
        self._short_images = 0
        self._short_work = 0
        self.pending_images = 0
        self.image_s = Estimate(image_s)
        self.work_s = Estimate(work_s)
        self.draining = False

    def waits(self) -> bool:
        """Return whether ``form`` has something to take."""
        return bool(self._short or self._long)

    def full(self) -> bool:
        """Return whether any request would be refused now, whatever it holds."""
        return self.draining or self.pending_images >= self._max_pending_images

    def crowded(self) -> bool:
        """Return whether half of what may wait does, in images or in bytes."""
        return 2 * self.pending_images >= self._max_pending_images or 2 * self._pending_bytes >= self._max_pending_bytes

    def refuse(self) -> Overloaded | Draining:
        """Return the error for a request that finds the batcher full."""
        if self.draining:
            return Draining("this server is shutting down; send the request again, it will reach another")
        return self._overloaded("images", self.pending_images, self._max_pending_images)

    def admit(self, entry: Entry, now: float) -> None:
        """Let a request wait for a batch.

        Raises:
            Draining: nothing is admitted any more.
            Overloaded: there is no room for it now.
            DeadlineUnmeetable: its answer cannot be ready in time.
        """
        if self.draining:
            raise self.refuse()
        if self.pending_images + entry.num_images > self._max_pending_images:
            raise self._overloaded("images", self.pending_images, self._max_pending_images)
        # One request always fits, or a large one could never be admitted.
        if self._pending_bytes and self._pending_bytes + entry.num_bytes > self._max_pending_bytes:
            raise self._overloaded("bytes", self._pending_bytes, self._max_pending_bytes)
        own_s = self._seconds(entry.num_images, entry.num_images * entry.framing_work)
        entry.long = entry.num_images > self._max_batch_size or own_s > self._max_batch_s
        if entry.deadline != math.inf:
            self._check_deadline(entry, own_s, now)
        (self._long if entry.long else self._short).append(entry)
        self._count(entry, entry.num_images)
        self._pending_bytes += entry.num_bytes

    def cancel(self, entry: Entry) -> None:
        """Forget an entry: its caller is gone, or was told of a failure."""
        if not entry.dead:
            entry.dead = True
            if entry.taken < entry.num_images:
                self._count(entry, entry.taken - entry.num_images)
                self._pending_bytes -= entry.num_bytes

    def form(self, now: float) -> Batch | None:
        """Take the next batch out of what waits; ``None`` when nothing does."""
        if not self.waits():
            return None
        batch = Batch()
        if self._long_skipped:
            self._fill_in_turns(batch, max(1, self._max_batch_size // LONG_SHARE), now)
        self._fill(batch, now)
        before = batch.num_images
        # Short entries waited for the batch before this one; what joins them must not make them wait for as long again.
        beside = max(before, self._max_batch_size // BESIDE_SHARE) if before else self._max_batch_size
        self._fill_in_turns(batch, beside, now)
        self._long_skipped = bool(self._long) and not self._long_skipped and batch.num_images == before
        return batch

    def complete(self, batch: Batch, answers: list[Any], preprocess_s: float, inference_s: float) -> list[Entry]:
        """Hand out a batch's answers.

        Args:
            batch: as formed.
            answers: one for each row of the batch.
            preprocess_s: seconds that preparing the batch took.
            inference_s: seconds that the network took.

        Returns:
            The entries that are complete, in the order of their arrival in this batch.
        """
        self.work_s.update(preprocess_s, batch.framing_work)
        # What a run costs apart from its images is shared by few in a small batch: only a full one shows a slowdown.
        full = self.waits() or 2 * batch.num_images >= self._max_batch_size
        if full or inference_s < batch.num_images * self.image_s.seconds:
            self.image_s.update(inference_s, batch.num_images)
        finished = []
        row = 0
        for entry, start, stop in batch.parts:
            count = stop - start
            if not entry.dead:
                entry.answers += answers[row : row + count]
                entry.preprocess_s += preprocess_s
                entry.inference_s += inference_s
                if len(entry.answers) == entry.num_images:
                    finished.append(entry)
            row += count
        return finished

    def give_up(self) -> list[Entry]:
        """Admit nothing more, and return what waits, cancelled: it is to be failed."""
        self.draining = True
        entries = [entry for lane in (self._short, self._long) for entry in lane if not entry.dead]
        for entry in entries:
            self.cancel(entry)
        return entries

    def _check_deadline(self, entry: Entry, own_s: float, now: float) -> None:
        # What is certain: short entries pass long ones, so all that must come first is the short lane; a long entry has
        # its share of every second batch beside it.
        short_s = self._seconds(self._short_images, self._short_work)
        needed_s = own_s + (min(short_s, (2 * LONG_SHARE - 1) * own_s) if entry.long else short_s)
        if now + needed_s > entry.deadline:
            if not self.pending_images:
                self.image_s.doubt()
                self.work_s.doubt()
            left_ms = max(0.0, entry.deadline - now) * 1e3
            raise DeadlineUnmeetable(
                f"the answer needs about {needed_s * 1e3:.1f} ms and the deadline is in {left_ms:.1f} ms; "
                "allow more time, or send less at once"
            )

    def _fill(self, batch: Batch, now: float) -> None:
        """Take short entries in their order, as long as there is room."""
        while self._short and (room := self._room(batch, self._short[0], self._max_batch_size)):
            entry = self._short[0]
            if not self._alive(batch, entry, now) or self._take(batch, entry, room, now):
                self._short.popleft()

    def _fill_in_turns(self, batch: Batch, limit: int, now: float) -> None:
        """Take what fits of each long entry; one that gave something goes to the back."""
        for _ in range(len(self._long)):
            entry = self._long[0]
            if not self._alive(batch, entry, now):
                self._long.popleft()
            elif room := self._room(batch, entry, limit):
                self._long.popleft()
                if not self._take(batch, entry, room, now):
                    self._long.append(entry)

    def _room(self, batch: Batch, entry: Entry, limit: int) -> int:
        """Return how many images of an entry a batch can still take."""
        images = limit - batch.num_images
        if entry.framing_work or batch.framing_work or limit * self.image_s.seconds > self._max_batch_s:
            left_s = self._max_batch_s - self._seconds(batch.num_images, batch.framing_work)
            by_time = int(left_s / self._seconds(1, entry.framing_work))
            images = min(images, max(by_time, 0 if batch.num_images else 1))
        return images

    def _alive(self, batch: Batch, entry: Entry, now: float) -> bool:
        if entry.dead:
            return False
        if entry.deadline <= now:
            self.cancel(entry)
            batch.expired.append(entry)
            return False
        return True

    def _take(self, batch: Batch, entry: Entry, room: int, now: float) -> bool:
        """Put up to ``room`` images of an entry into a batch; return whether that was the rest of them."""
        start = entry.taken
        count = min(entry.num_images - start, room)
        entry.taken = start + count
        if not start:
            entry.first_batch = now
        batch.parts.append((entry, start, entry.taken))
        batch.num_images += count
        batch.framing_work += count * entry.framing_work
        self._count(entry, -count)
        if entry.taken < entry.num_images:
            return False
        self._pending_bytes -= entry.num_bytes
        return True

    def _count(self, entry: Entry, images: int) -> None:
        work = images * entry.framing_work
        self.pending_images += images
        self._pending_work += work
        if not entry.long:
            self._short_images += images
            self._short_work += work

    def _seconds(self, images: int, framing_work: int) -> float:
        return images * self.image_s.seconds + framing_work * self.work_s.seconds

    def _overloaded(self, unit: str, pending: int, most: int) -> Overloaded:
        wait_s = max(0.001, self._seconds(self.pending_images, self._pending_work))
        return Overloaded(f"{pending} {unit} are waiting, at most {most} may; retry in {wait_s:.3f} s", wait_s)

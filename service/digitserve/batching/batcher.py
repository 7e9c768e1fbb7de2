"""Admission control and batch formation: a plain object without gRPC, clock or threads.

It is driven by calls with the time passed in, so tests drive it exactly.

    admit ──▶ queue of small requests (FIFO) ────────┐
         └──▶ queue of large requests (round robin) ─┴─form──▶ Batch ──run──▶ complete ──▶ entries with all their answers
    cancel: at any time

Requests that arrive while a batch runs form the next batch: there is no timer, and an idle service adds no delay. A
request whose work exceeds one batch is large: it is split over several batches, and small requests pass it.
"""

import math
from collections import deque
from typing import Any, Generic

from digitserve.batching.entries import Batch, E
from digitserve.batching.estimate import Estimate
from digitserve.batching.overload import OverloadLimit
from digitserve.batching.refusals import Refusals, fresh
from digitserve.errors import DeadlineUnmeetable, Draining, Overloaded, RequestError
from digitserve.types import Source

LARGE_SHARE = 4
"""If the last batch took nothing from the queue of large requests, they get 1/4 of the next batch: they never starve."""

MIXED_SHARE = 2
"""Large requests fill a batch that holds small ones up to 1/2 of its maximal size."""

DEADLINE_MARGIN = 1.15
"""The estimated time of a request itself is multiplied by this factor before it is compared with a deadline: iterations vary."""

WAIT_MARGIN = 1.5
"""The same for the time that it waits for small requests. An answer that is too late costs as much as one in time. So under
overload requests wait for at most 2/3 of the time to their deadlines, and one slow iteration does not make all of them late."""

BACKLOG_BATCHES = 4
"""Full batches of pending small requests from which on there is a backlog."""

OWN_SHARE = 4
"""A request is admitted while its source has fewer pending images than this multiple of the room that is left. So one source
alone gets 4/5 of the queue, and n sources that send too much get 4/(4n + 1) each. The rest is always free: a source that sends
less than its share is never rejected because of others."""


class Batcher(Generic[E]):
    """Limits the pending requests, forms batches, distributes answers. Owned and called by the worker's one thread.

    Attributes:
        pending_images: images admitted and not yet in a batch.
        limit: on pending images of small requests.
        image_s: estimated seconds of the network per image, in a full batch.
        iteration_image_s: estimated seconds of a whole iteration of the worker's loop per image, without framing: receiving,
            rejecting, running a batch, answering. It is used to decide whether a deadline can be met.
        work_s: estimated seconds per unit of framing.
        draining: admission has stopped.
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
            max_pending_images: most pending images of each queue, so that large requests cannot block small ones.
            max_pending_bytes: most memory of pending and held requests.
            max_batch_s: most estimated seconds of a batch; a batch of one image may take longer.
            image_s: first estimate, from warm-up.
            work_s: first estimate.
        """
        self._max_batch_size = max_batch_size
        self._max_pending_images = max_pending_images
        self._max_pending_bytes = max_pending_bytes
        self._max_batch_s = max_batch_s
        self._small: deque[E] = deque()
        self._large: deque[E] = deque()
        self._large_skipped = False
        self._pending_bytes = 0
        self._held_bytes = 0
        self._pending_work = 0
        self._small_images = 0
        self._small_work = 0
        self.limit = OverloadLimit(max_pending_images, max_batch_size)
        self._refusals = Refusals(max_pending_images, max_pending_bytes)
        self.pending_images = 0
        self.image_s = Estimate(image_s)
        self.iteration_image_s = Estimate(image_s)
        self.work_s = Estimate(work_s)
        self.draining = False

    def has_pending(self) -> bool:
        """Return whether ``form`` would return a batch."""
        return bool(self._small or self._large)

    def has_backlog(self) -> bool:
        """Return whether several full batches of small requests are pending."""
        return self._small_images >= BACKLOG_BATCHES * self._max_batch_size

    def is_half_full(self, source: Source) -> bool:
        """Return whether a source uses half of the room of the queue, or all sources use half of the limit in bytes.

        Alone, a source uses half of the room if its small requests have half of all images that may wait; if others use a part
        of the limit, half of the rest.
        """
        used_images = self._small_images + source.small_images
        return used_images >= self._max_pending_images or 2 * self._pending_bytes >= self._max_pending_bytes

    def is_large(self, num_images: int, framing_work: int) -> bool:
        """Return whether a request would wait in the queue of large requests; arguments as in ``Entry``."""
        # As ``_seconds``, without the call: this runs once per request.
        own_s = num_images * (self.image_s.seconds + framing_work * self.work_s.seconds)
        return num_images > self._max_batch_size or own_s > self._max_batch_s

    def refusal(self, left_s: float, source: Source) -> RequestError | None:
        """Return why a call is rejected before its message is read; ``None`` if a request with one image would be admitted.

        The size of the request is not known yet. A large request might have room in its queue, or be in time because large
        requests get a share of every second batch. It is rejected too while small ones are.

        Args:
            left_s: seconds until its deadline.
            source: of the call.

        Returns:
            The error for the caller; it must not be raised.
        """
        if self.draining:
            return self._refusals.draining
        image_s, size = self.iteration_image_s.seconds, self._max_batch_size
        num_images = self._small_images + source.small_images // OWN_SHARE
        wait_s = num_images * image_s + self._small_work * self.work_s.seconds
        if num_images >= self.limit.images:
            self.limit.rejects = True
            return self._refusals.too_many_images(wait_s)
        # If a full batch is pending already, the batch of this request will be full too.
        own_images = size - num_images % size if num_images >= size else 1
        needed_s = WAIT_MARGIN * wait_s + DEADLINE_MARGIN * own_images * image_s
        return self._late(needed_s) if left_s < needed_s else None

    def draining_error(self) -> Draining:
        """Return the error for a request that is rejected because of the shutdown."""
        return Draining(str(self._refusals.draining))

    def admit(self, entry: E, now: float, *, patient: bool = False) -> None:
        """Queue a request for a batch.

        Args:
            entry: the request.
            now: monotonic time in seconds.
            patient: the caller holds the request, and later ones in order, until it is admitted. Then room for one image is
                enough: if room for all its images were needed, smaller requests could always take the room first.

        Raises:
            Draining: admission has stopped.
            Overloaded: there is no room for it now.
            DeadlineUnmeetable: it cannot be answered by its deadline.
        """
        if self.draining:
            raise self.draining_error()
        num_images, num_bytes, source = entry.num_images, entry.num_bytes, entry.source
        entry.large = self.is_large(num_images, entry.framing_work)
        waiting, own_images, limit = self._small_images, source.small_images, self.limit.images
        if entry.large:
            waiting, own_images = self.pending_images - waiting, source.large_images
            limit = self._max_pending_images
        if waiting + (1 if patient else num_images + own_images // OWN_SHARE) > limit:
            self.limit.rejects = True
            raise fresh(self._refusals.too_many_images(self._wait_s(large=entry.large)))
        # One request is always admitted; otherwise a large one could never be.
        used_bytes = self._pending_bytes if patient else self._pending_bytes + self._held_bytes
        if used_bytes and used_bytes + (1 if patient else num_bytes) > self._max_pending_bytes:
            raise fresh(self._refusals.too_many_bytes(self._wait_s(large=True)))
        if entry.deadline != math.inf:
            self._check_deadline(entry, now)
        (self._large if entry.large else self._small).append(entry)
        self._add_pending(entry, num_images)
        self._pending_bytes += num_bytes

    def add(self, entry: E) -> None:
        """Queue images of a request that was admitted already, as a large request: no limit applies."""
        entry.large = True
        self._large.append(entry)
        self._add_pending(entry, entry.num_images)
        self._pending_bytes += entry.num_bytes

    def hold(self, num_bytes: int) -> bool:
        """Count the memory of a request that a patient caller holds; return false if it exceeds the limit."""
        used_bytes = self._pending_bytes + self._held_bytes
        if used_bytes and used_bytes + num_bytes > self._max_pending_bytes:
            return False
        self._held_bytes += num_bytes
        return True

    def release(self, num_bytes: int) -> None:
        """Subtract what ``hold`` has counted: the request is admitted or dropped."""
        self._held_bytes -= num_bytes

    def held_error(self) -> Overloaded:
        """Return the error for a request that can neither be admitted nor held."""
        return fresh(self._refusals.too_many_bytes(self._wait_s(large=True)))

    def cancel(self, entry: E) -> None:
        """Drop an entry whose caller is gone or has got an error; does nothing the second time."""
        if not entry.cancelled:
            entry.cancelled = True
            if entry.num_batched < entry.num_images:
                self._add_pending(entry, entry.num_batched - entry.num_images)
                self._pending_bytes -= entry.num_bytes

    def form(self, now: float) -> Batch[E] | None:
        """Take the next batch from the queues; ``None`` if they are empty."""
        if not self.has_pending():
            self.limit.update(now, self._max_batch_size)
            return None
        batch: Batch[E] = Batch()
        waited = self._small_images
        if self._large_skipped:
            self._add_large(batch, max(1, self._max_batch_size // LARGE_SHARE), now)
        self._add_small(batch, now)
        self.limit.update(now, waited - self._small_images)
        num_small = batch.num_images
        # Small requests waited for the previous batch; large ones that join them must not make this one as long again.
        limit = max(num_small, self._max_batch_size // MIXED_SHARE) if num_small else self._max_batch_size
        self._add_large(batch, limit, now)
        self._large_skipped = bool(self._large) and not self._large_skipped and batch.num_images == num_small
        return batch

    def complete(
        self, batch: Batch[E], answers: list[Any], preprocess_s: float, inference_s: float, iteration_s: float
    ) -> list[E]:
        """Distribute the answers of a batch.

        Args:
            batch: as formed.
            answers: one for each row of the batch.
            preprocess_s: seconds of preparing the batch.
            inference_s: seconds of the network.
            iteration_s: seconds since the previous batch was complete, or since the first of its requests arrived if that was
                later.

        Returns:
            The entries that now have all their answers, in the order of the batch.
        """
        self.work_s.update(preprocess_s, batch.framing_work)
        # A small batch divides the fixed cost of a run by few images, so only a large one shows that the network is slower.
        full = self.has_pending() or 2 * batch.num_images >= self._max_batch_size
        if full or inference_s < batch.num_images * self.image_s.seconds:
            self.image_s.update(inference_s, batch.num_images)
        if full or iteration_s - preprocess_s < batch.num_images * self.iteration_image_s.seconds:
            self.iteration_image_s.update(iteration_s - preprocess_s, batch.num_images)
        finished = []
        row = 0
        for entry, start, stop in batch.parts:
            end = row + stop - start
            if not entry.cancelled:
                if start:
                    entry.answers += answers[row:end]
                else:
                    entry.answers = answers[row:end]
                entry.preprocess_s += preprocess_s
                entry.inference_s += inference_s
                if stop == entry.num_images:
                    finished.append(entry)
            row = end
        return finished

    def close(self) -> list[E]:
        """Stop admission, cancel the waiting entries and return them; the caller rejects them."""
        self.draining = True
        entries = [entry for queue in (self._small, self._large) for entry in queue if not entry.cancelled]
        for entry in entries:
            self.cancel(entry)
        return entries

    def _check_deadline(self, entry: E, now: float) -> None:
        # Small requests overtake large ones, so only other small ones are served before it; a large request also gets its share
        # of every second batch.
        image_s, num_images = self.iteration_image_s.seconds, entry.num_images
        small_images = self._small_images + entry.source.small_images // OWN_SHARE
        wait_s = WAIT_MARGIN * (small_images * image_s + self._small_work * self.work_s.seconds)
        own_s = num_images * (image_s + entry.framing_work * self.work_s.seconds)
        if entry.large:
            wait_s = min(wait_s, DEADLINE_MARGIN * (2 * LARGE_SHARE - 1) * own_s)
        elif small_images >= self._max_batch_size:
            own_s += -(small_images + num_images) % self._max_batch_size * image_s
        needed_s = wait_s + DEADLINE_MARGIN * own_s
        if now + needed_s > entry.deadline:
            raise DeadlineUnmeetable(str(self._late(needed_s)))

    def _late(self, needed_s: float) -> DeadlineUnmeetable:
        """Return the error for a request whose answer needs ``needed_s``."""
        self.limit.rejects = True
        if not self.pending_images:
            self.image_s.decay()
            self.iteration_image_s.decay()
            self.work_s.decay()
        return self._refusals.late(needed_s)

    def _add_small(self, batch: Batch[E], now: float) -> None:
        """Add small requests in the order of arrival, as long as there is room."""
        small, parts, limit = self._small, batch.parts, self._max_batch_size
        counted = limit * self.image_s.seconds <= self._max_batch_s  # without framing, no batch takes too long
        # Most requests need no framing and fit as a whole. They are added without a call, and subtracted together at the end.
        num_whole = 0
        while small:
            entry = small[0]
            whole = counted and not (entry.framing_work or batch.framing_work or entry.num_batched)
            num_images = entry.num_images
            room = limit - batch.num_images if whole else self._room(batch, entry, limit)
            if not room:
                break
            if entry.cancelled or entry.deadline <= now:
                self._drop(batch, entry)
                small.popleft()
            elif whole and num_images <= room:
                entry.num_batched = num_images
                entry.first_batch = now
                entry.source.small_images -= num_images
                self._pending_bytes -= entry.num_bytes
                batch.num_images += num_images
                num_whole += num_images
                parts.append((entry, 0, num_images))
                small.popleft()
            elif self._add_part(batch, entry, room, now):
                small.popleft()
        self.pending_images -= num_whole
        self._small_images -= num_whole

    def _add_large(self, batch: Batch[E], limit: int, now: float) -> None:
        """Add what fits of each large request; one that is not yet complete goes to the end of the queue."""
        for _ in range(len(self._large)):
            entry = self._large[0]
            if entry.cancelled or entry.deadline <= now:
                self._drop(batch, entry)
                self._large.popleft()
            elif room := self._room(batch, entry, limit):
                self._large.popleft()
                if not self._add_part(batch, entry, room, now):
                    self._large.append(entry)

    def _room(self, batch: Batch[E], entry: E, limit: int) -> int:
        """Return how many images of an entry a batch can still hold."""
        images = limit - batch.num_images
        if entry.framing_work or batch.framing_work or limit * self.image_s.seconds > self._max_batch_s:
            left_s = self._max_batch_s - self._seconds(batch.num_images, batch.framing_work)
            by_time = int(left_s / self._seconds(1, entry.framing_work))
            images = min(images, max(by_time, 0 if batch.num_images else 1))
        return images

    def _drop(self, batch: Batch[E], entry: E) -> None:
        """Cancel an entry that has expired, and list it in the batch; one that was cancelled before is not listed."""
        if not entry.cancelled:
            self.cancel(entry)
            batch.expired.append(entry)

    def _add_part(self, batch: Batch[E], entry: E, room: int, now: float) -> bool:
        """Add up to ``room`` images of an entry to a batch; return whether these were its last ones."""
        start = entry.num_batched
        count = min(entry.num_images - start, room)
        entry.num_batched = start + count
        if not start:
            entry.first_batch = now
        batch.parts.append((entry, start, entry.num_batched))
        batch.num_images += count
        batch.framing_work += count * entry.framing_work
        self._add_pending(entry, -count)
        if entry.num_batched < entry.num_images:
            return False
        self._pending_bytes -= entry.num_bytes
        return True

    def _add_pending(self, entry: E, images: int) -> None:
        """Add images of an entry to the pending ones, or take them off if negative."""
        work = images * entry.framing_work
        self.pending_images += images
        if entry.large:
            entry.source.large_images += images
        else:
            entry.source.small_images += images
            self._small_images += images
        if work:
            self._pending_work += work
            if not entry.large:
                self._small_work += work

    def _wait_s(self, *, large: bool) -> float:
        """Return the estimated seconds for all pending requests, or for the small ones."""
        images, work = self._small_images, self._small_work
        if large:
            images, work = self.pending_images, self._pending_work
        return images * self.iteration_image_s.seconds + work * self.work_s.seconds

    def _seconds(self, images: int, framing_work: int) -> float:
        return images * self.image_s.seconds + framing_work * self.work_s.seconds

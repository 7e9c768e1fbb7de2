"""How many images may wait: fewer while requests are rejected continuously. Owned by ``batcher``; time is passed in."""

import math

OVERLOAD_SHARE = 4
"""While requests are rejected continuously, only 1/4 of the images may wait, or a full batch if that is more. A longer queue would
not answer more requests: it would only add latency, and memory that no longer fits into CPU caches. With a shorter one,
requests with many images would be rejected by an empty queue, and each of these rejections would continue the overload."""

OVERLOAD_AFTER_S, OVERLOAD_ENDS_S = 0.1, 0.5
"""Time of continuous rejections after which only ``OVERLOAD_SHARE`` may wait, and time without rejections after which more may."""


class OverloadLimit:
    """The limit on the pending images of small requests.

    Attributes:
        images: the limit; a part of ``max_pending_images`` while requests are rejected continuously.
        rejects: set by the owner when it rejects a request.
    """

    __slots__ = ("_max_pending_images", "_overload_images", "_rejected_at", "_rejects_since", "images", "rejects")

    def __init__(self, max_pending_images: int, max_batch_size: int) -> None:
        self._max_pending_images = max_pending_images
        self._overload_images = max(max_pending_images // OVERLOAD_SHARE, max_batch_size)
        self._rejects_since = math.inf
        self._rejected_at = -math.inf
        self.images = max_pending_images
        self.rejects = False

    def update(self, now: float, num_batched: int) -> None:
        """Set the limit; called with each batch.

        It shrinks with the queue: if it fell at once, a full queue would leave no room for connections that use no part of it.

        Args:
            now: monotonic time in seconds.
            num_batched: images of small requests that the batch has taken from the queue.
        """
        if self.rejects:
            self.rejects, self._rejected_at = False, now
            self._rejects_since = min(self._rejects_since, now)
        elif now >= self._rejected_at + OVERLOAD_ENDS_S:
            self._rejects_since = math.inf
        if now < self._rejects_since + OVERLOAD_AFTER_S:
            self.images = self._max_pending_images
        else:
            self.images = min(max(self.images - num_batched, self._overload_images), self._max_pending_images)

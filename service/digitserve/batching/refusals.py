"""The errors with which a batcher rejects requests, each built once.

    Batcher ──seconds──▶ Refusals ──the same error for similar seconds──▶ handler ──▶ the same bytes for all these calls

Under overload most calls are rejected, so a rejection must cost little. Times in messages are rounded up to a step, so there
are only few errors. The status of an error and its encoding are built once too.
"""

from bisect import bisect_left

from digitserve.errors import DeadlineUnmeetable, Draining, Overloaded

STEPS_MS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000)
"""Times in the errors. A retry delay is never shorter than the estimated wait, and at most 2.5 times as long."""

_STEPS_S = tuple(step_ms / 1e3 for step_ms in STEPS_MS)


_LESS = "send fewer images per request"


class Refusals:
    """The errors of one batcher; owned by it.

    They must not be raised: the traceback of a raised error refers to stack frames, and so to their requests.

    Attributes:
        draining: the worker is shutting down.
    """

    def __init__(self, max_images: int, max_bytes: int, images: str = "images", less: str = _LESS) -> None:
        """Build the errors for these limits on pending requests.

        Args:
            max_images: most images.
            max_bytes: most memory.
            images: what is counted instead of images.
            less: advice to callers whose requests take too long.
        """
        self.draining = Draining("this server is shutting down; retry, and another server will answer")
        self._too_many_images = _overloaded(f"{max_images} {images}")
        self._too_many_bytes = _overloaded(f"{max_bytes} bytes")
        self._late = tuple(
            DeadlineUnmeetable(
                f"the answer needs {needed}, and the deadline of the call is earlier; allow more time, or {less}"
            )
            for needed in (*(f"up to {step_ms} ms" for step_ms in STEPS_MS), f"more than {STEPS_MS[-1]} ms")
        )

    def too_many_images(self, wait_s: float) -> Overloaded:
        """Return the error for a request if the pending images need ``wait_s``."""
        return self._too_many_images[bisect_left(_STEPS_S, wait_s)]

    def too_many_bytes(self, wait_s: float) -> Overloaded:
        """Return the error for a request if the pending requests need ``wait_s`` and hold too much memory."""
        return self._too_many_bytes[bisect_left(_STEPS_S, wait_s)]

    def late(self, needed_s: float) -> DeadlineUnmeetable:
        """Return the error for a request whose answer needs ``needed_s``."""
        return self._late[bisect_left(_STEPS_S, needed_s)]


def _overloaded(limit: str) -> tuple[Overloaded, ...]:
    errors = tuple(
        Overloaded(
            f"the queue has no room for the request: at most {limit} may wait; retry in {step_ms} ms", step_ms / 1e3
        )
        for step_ms in STEPS_MS
    )
    return *errors, errors[-1]  # beyond the last step, the last step


def fresh(error: Overloaded) -> Overloaded:
    """Return a copy that may be raised."""
    return Overloaded(str(error), error.retry_after_s)

"""What a batcher schedules: admitted requests, and batches of their images. Used by ``batcher`` and ``pipeline``."""

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from digitserve.types import Source


class Entry:
    """One admitted request on its way through batches; owned by the batcher until all its answers are there.

    Attributes:
        num_images: images in the request.
        framing_work: work of framing one of its images, in units of ``prepare.framing_work``; 0 if none is framed.
        num_bytes: memory that it holds while it waits.
        source: of the request.
        arrived: monotonic time in seconds.
        deadline: monotonic time in seconds, infinite if there is none.
        large: whether it waits in the queue of large requests.
        num_batched: images that are in a batch already.
        answers: one for each image of the batches that are complete; the caller of the batcher knows their type.
        first_batch: monotonic time in seconds when its first batch was formed.
        preprocess_s: seconds of preprocessing, over its batches.
        inference_s: seconds of the network, over its batches.
        cancelled: cancelled, expired or failed; nothing more is done for it.
    """

    __slots__ = (
        "answers", "arrived", "cancelled", "deadline", "first_batch", "framing_work", "inference_s", "large",
        "num_batched", "num_bytes", "num_images", "preprocess_s", "source",
    )  # fmt: skip

    def __init__(
        self,
        num_images: int,
        framing_work: int,
        num_bytes: int,
        arrived: float,
        deadline: float,
        source: Source | None = None,
    ) -> None:
        self.num_images = num_images
        self.framing_work = framing_work
        self.num_bytes = num_bytes
        self.arrived = arrived
        self.deadline = deadline
        self.source = source or Source()
        self.large = False
        self.num_batched = 0
        self.answers: list[Any] = []
        self.first_batch = 0.0
        self.preprocess_s = 0.0
        self.inference_s = 0.0
        self.cancelled = False


E = TypeVar("E", bound=Entry)


@dataclass(slots=True)
class Batch(Generic[E]):
    """Images that run together.

    Attributes:
        parts: entry, first image, image after the last, in the order of the batch's rows.
        expired: entries whose deadline passed while they waited; the caller rejects them.
        num_images: rows of the batch; 0 when there are only expired entries.
        framing_work: units of framing, over all its images.
    """

    parts: list[tuple[E, int, int]] = field(default_factory=list)
    expired: list[E] = field(default_factory=list)
    num_images: int = 0
    framing_work: int = 0

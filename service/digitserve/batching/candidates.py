"""Images that a reading wants classified: rows of batches beside those of requests.

    Readings ──Candidates──▶ Batcher, queue of large requests ──batches──▶ Pipeline ──Scores──▶ Readings

They are on their own account: no metric of requests counts them, and the shadow version does not see them. Used by ``pipeline``
and ``readings``, on the worker's one thread.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from digitserve.batching.entries import Entry
from digitserve.batching.pending import PendingRequest, Responder
from digitserve.batching.stepwise import Scores
from digitserve.protocol.codec import Request
from digitserve.types import IMAGE_SIZE, Framing, Gray, Ink


class Candidates(PendingRequest):
    """Candidates from their step until their scores; owned by their reading. See ``PendingRequest``."""

    __slots__ = ("_ood_scores", "_probabilities", "_take")

    def __init__(
        self, responder: Responder, images: Gray, now: float, deadline: float, take: Callable[[Scores], None]
    ) -> None:
        """Wait for the network.

        Args:
            responder: learns if the reading expires or the network fails; it gets no answer.
            images: uint8[N,28,28,1], light on dark, N at least 1.
            now: monotonic time in seconds.
            deadline: of the reading, monotonic time in seconds.
            take: is called with the scores.
        """
        num_images = len(images)
        Entry.__init__(self, num_images, 0, images.nbytes, now, deadline, responder.source)
        self.responder = responder
        self.request = Request(
            images.tobytes(), num_images, IMAGE_SIZE, IMAGE_SIZE, 1, Ink.LIGHT_ON_DARK, Framing.AS_IS, 0, explain=False
        )
        self.plain = False
        self.preparations = ()
        self._take = take
        self._probabilities: list[NDArray[np.float32]] = []
        self._ood_scores: list[NDArray[np.float32]] = []

    def add(self, probabilities: NDArray[np.float32], ood_score: NDArray[np.float32]) -> None:
        """Keep the results of one batch for the next images: float32[n,labels] and float32[n]."""
        self._probabilities.append(probabilities)
        self._ood_scores.append(ood_score)

    def deliver(self) -> None:
        """Hand over the scores: there are some for all images."""
        self._take(Scores(np.concatenate(self._probabilities), np.concatenate(self._ood_scores)))

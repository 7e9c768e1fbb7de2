"""How a request is read step by step: the interface between ``readings`` and ``digitserve.reading``.

Readings ──send(Scores or None)──▶ Steps ──▶ candidates for the network, None after some milliseconds, or the Reading
"""

from collections.abc import Generator
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from digitserve.protocol.readings import Reading, ReadOptions
from digitserve.types import Gray


class Scores(NamedTuple):
    """What the network says about candidates.

    Attributes:
        probabilities: float32[N,labels], calibrated.
        ood_score: float32[N], higher means less like the training data.
    """

    probabilities: NDArray[np.float32]
    ood_score: NDArray[np.float32]


Steps: TypeAlias = Generator[Gray | None, Scores | None, Reading]
"""One reading in progress. It yields candidates for the network, uint8[N,28,28,1], light on dark and framed, and is sent their
``Scores``; or None after at most about 10 ms of work, so that others may run. It may raise ``InvalidRequest`` at any step.
"""


class StepReader(Protocol):
    """Reads images step by step, for one model."""

    def check(self, options: ReadOptions) -> None:
        """Check what the decoder has not, such as the pattern.

        Raises:
            InvalidRequest: the options cannot be used.
        """

    def read(self, pixels: Gray, options: ReadOptions) -> Steps:
        """Return the steps that read an image, uint8[H,W,C]; nothing is done before the first one."""

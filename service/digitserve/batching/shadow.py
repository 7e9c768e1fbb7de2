"""Shadow deployment: runs a second version on the same batches, and counts how its answers differ.

    Pipeline ──offer, after its answers──▶ Shadow ──one batch waits──▶ Session of the second version ──▶ Recorder

Owned by the worker, which calls ``run`` on its one thread after the answers of the offered batch were sent. At most one batch
waits; others that are offered meanwhile are skipped and counted. While requests arrive, the shadow uses at most its share of
the time, and never runs two batches in a row: an answer is delayed by at most one batch.
"""

import math
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.batching.prepare import Prepared, decide_verdicts
from digitserve.inference.bundle import Manifest
from digitserve.inference.session import Session
from digitserve.log import get_logger
from digitserve.protocol.names import Verdict
from digitserve.telemetry.block import ShadowResult
from digitserve.telemetry.recorder import Recorder

_ACCEPTED, _BLANK = Verdict.ACCEPTED, Verdict.BLANK

_log = get_logger("digitserve.batching.shadow")


class _Offered(NamedTuple):
    """A batch with the answers that were sent.

    Attributes:
        prepared: the batch; its images are a copy, so that no request is kept in memory.
        class_index: index of the most probable label, for each image.
        verdicts: for each image.
        probabilities: float32[N,labels].
    """

    prepared: Prepared
    class_index: Sequence[int]
    verdicts: Sequence[Verdict]
    probabilities: NDArray[np.float32]


class Shadow:
    """Compares a second version with the one that answers; lives as long as its worker.

    Its labels and its threshold are those of its own manifest. Labels are compared by name; a label that one of the versions does
    not have counts there with probability 0.
    """

    def __init__(
        self,
        session: Session,
        manifest: Manifest,
        served: Manifest,
        share: float,
        recorder: Recorder,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start without a batch.

        Args:
            session: runs the second version.
            manifest: of the second version.
            served: of the version that answers.
            share: 0 to 1, share of the time that the shadow may use while requests arrive.
            recorder: counts the results.
            clock: monotonic time in seconds.
        """
        self._session = session
        self._manifest = manifest
        self._served = served
        self._share = share
        self._recorder = recorder
        self._clock = clock
        self._offered: _Offered | None = None
        self._next_busy = 0.0 if share else math.inf
        self._failed = False
        labels = list(dict.fromkeys((*served.labels, *manifest.labels)))
        self._num_labels = len(labels)
        self._columns = [labels.index(label) for label in manifest.labels]

    @property
    def waits(self) -> bool:
        """Whether a batch waits."""
        return self._offered is not None

    def offer(
        self,
        prepared: Prepared,
        class_index: Sequence[int],
        verdicts: Sequence[Verdict],
        probabilities: NDArray[np.float32],
    ) -> None:
        """Keep a batch that was answered, unless one waits already; the arguments are those of ``_Offered``."""
        if self._failed or self._offered is not None:
            self._recorder.shadow_skipped(len(verdicts))
            return
        prepared = prepared._replace(images=prepared.images.copy())
        self._offered = _Offered(prepared, class_index, verdicts, probabilities)

    def run(self, *, busy: bool) -> None:
        """Run the batch that waits.

        Args:
            busy: whether requests arrive or are pending; then it may stay for later.
        """
        offered = self._offered
        started = self._clock()
        if offered is None or (busy and started < self._next_busy):
            return
        self._offered = None
        try:
            self._compare(offered)
        except Exception:
            self._failed = True
            self._recorder.shadow_skipped(len(offered.verdicts))
            _log.exception("the shadow version failed on a batch; this worker does not run it any more")
        ended = self._clock()
        if self._share:
            self._next_busy = ended + (ended - started) * (1 / self._share - 1)

    def _compare(self, offered: _Offered) -> None:
        outputs = self._session.run(offered.prepared.images)
        verdicts = decide_verdicts(outputs.ood_score.tolist(), self._manifest.ood_threshold, offered.prepared)
        class_index = outputs.probabilities.argmax(axis=1).tolist()
        answers = zip(offered.verdicts, offered.class_index, verdicts, class_index, strict=True)
        results = [self._result(*answer) for answer in answers]
        inked = [verdict is not _BLANK for verdict in verdicts]
        difference = np.zeros((len(results), self._num_labels), np.float32)
        difference[:, self._columns] = outputs.probabilities
        difference[:, : offered.probabilities.shape[1]] -= offered.probabilities
        self._recorder.shadow_compared(results, np.abs(difference).max(axis=1)[inked])

    def _result(self, served_verdict: Verdict, served_index: int, verdict: Verdict, index: int) -> ShadowResult:
        """Return how the second version's answer to an image differs."""
        served, accepted = served_verdict is _ACCEPTED, verdict is _ACCEPTED
        if served and accepted:
            same = self._served.labels[served_index] == self._manifest.labels[index]
            return ShadowResult.SAME if same else ShadowResult.LABEL
        if served:
            return ShadowResult.REJECTED
        return ShadowResult.ACCEPTED if accepted else ShadowResult.SAME

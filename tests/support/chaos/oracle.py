"""The oracle: the answer to each image alone, computed in this process with the modules of the service and a bundle."""

from digitserve.batching.prepare import decide_verdicts, prepare
from digitserve.inference.bundle import Bundle
from digitserve.inference.session import Session
from digitserve.protocol.codec import Limits, decode
from digitserve.protocol.names import Verdict
from digitserve.types import native_framing
from support.chaos.history import Answer
from support.chaos.images import Images

TOLERANCE = 2e-6
"""Largest difference of a probability or a score. A batch uses other kernels than one image, which round sums differently: at
most 4.8e-7, half a unit in the last place of a score near 8, for both bundles of the project, 2,304 images and batches of 2 to
64. The tolerance is four times that; the answers of two images, or of two versions, differ by far more.
"""


class Oracle:
    """Answers for each image and version, computed when they are first needed. Used by one thread."""

    def __init__(self, images: Images, bundles: list[Bundle]) -> None:
        self._images = images
        self._models = {str(bundle.manifest.version): (bundle.manifest, Session(bundle)) for bundle in bundles}
        self._known: dict[tuple[str, int], Answer] = {}

    @property
    def versions(self) -> list[str]:
        """The versions that can be served."""
        return list(self._models)

    def threshold(self, version: str) -> float:
        """Return the score above which images are unfamiliar."""
        return float(self._models[version][0].ood_threshold)

    def answer(self, version: str, index: int) -> Answer:
        """Return the answer to one image alone."""
        key = version, index
        if key not in self._known:
            self._known[key] = self._compute(*key)
        return self._known[key]

    def matches(self, got: Answer, version: str, index: int) -> bool:
        """Return whether an answer is that of the oracle. A label or verdict may differ only at the edge of the tolerance."""
        expected = self.answer(version, index)
        if abs(got.confidence - expected.confidence) > TOLERANCE or abs(got.score - expected.score) > TOLERANCE:
            return False
        near_threshold = abs(expected.score - self.threshold(version)) <= TOLERANCE
        return got.label == expected.label and (got.verdict == expected.verdict or near_threshold)

    def _compute(self, version: str, index: int) -> Answer:
        manifest, session = self._models[version]
        limits = Limits(version, 4096, 4096, 1 << 24, native_framing(manifest.labels))
        request = decode(self._images.request([index]).SerializeToString(), limits)
        prepared = prepare([(request, 0, 1)])
        outputs = session.run(prepared.images)
        (verdict,) = decide_verdicts(outputs.ood_score.tolist(), manifest.ood_threshold, prepared)
        score = float(outputs.ood_score[0])
        if verdict is Verdict.BLANK:
            return Answer("", 0.0, int(verdict), score)
        best = int(outputs.probabilities[0].argmax())
        return Answer(manifest.labels[best], float(outputs.probabilities[0, best]), int(verdict), score)

"""A reader for tests of what is around it: each 28 columns of an image are one digit, as its network sees it.

echo_row(3, 1, 4) ──Read──▶ ColumnReader ──28x28 images──▶ echo network ──▶ a line "314", with scores 3, 1 and 4
"""

from collections.abc import Callable, Generator
from typing import Any

import numpy as np

from digitserve.batching.stepwise import Scores, Steps
from digitserve.errors import InvalidRequest
from digitserve.protocol.names import MarkKind, Verdict
from digitserve.protocol.readings import Line, Mark, Reading, ReadOptions
from digitserve.types import Box, Gray
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image

SIDE = 28


def echo_row(*numbers: int, **options: Any) -> pb.ReadRequest:
    """Return a request whose marks have these numbers as OOD scores."""
    row = np.concatenate([echo_image(number) for number in numbers], axis=1)
    return pb.ReadRequest(pixels=row.tobytes(), height=SIDE, width=row.shape[1], **options)


class ColumnReader:
    """Reads digits that are given column by column.

    Attributes:
        candidates: most images per step.
        pauses: steps before the first images.
        is_held: whether readings make such steps only.
        closed: number of readings that were closed before their end.
        on_step: called in each step.
    """

    def __init__(
        self, candidates: int = 1000, pauses: int = 1, on_step: Callable[[ReadOptions], None] = lambda _: None
    ) -> None:
        self.candidates = candidates
        self.pauses = pauses
        self.is_held = False
        self.closed = 0
        self.on_step = on_step

    def check(self, options: ReadOptions) -> None:
        """Reject the pattern ``(``."""
        if options.pattern == "(":
            raise InvalidRequest("pattern: got '('; expected a closing bracket")

    def read(self, pixels: Gray, options: ReadOptions) -> Steps:
        """Fail in a step if the pattern is ``limit`` or ``bug``."""
        try:
            return (yield from self._read(pixels, options))
        except GeneratorExit:
            self.closed += 1
            raise

    def _read(self, pixels: Gray, options: ReadOptions) -> Generator[Gray | None, Scores | None, Reading]:
        num_pauses = 0
        while num_pauses < self.pauses or self.is_held:
            num_pauses += 1
            self.on_step(options)
            yield None
        if options.pattern == "limit":
            raise InvalidRequest("got 2000 shapes; expected at most 1000")
        if options.pattern == "bug":
            raise RuntimeError("a secret of the implementation")
        columns = pixels[..., 0].reshape(SIDE, -1, SIDE).transpose(1, 0, 2)[..., None]
        probabilities: list[Any] = []
        ood_scores: list[Any] = []
        for start in range(0, len(columns), self.candidates):
            scores = yield np.ascontiguousarray(columns[start : start + self.candidates])
            assert scores is not None
            probabilities += [*scores.probabilities]
            ood_scores += scores.ood_score.tolist()
            self.on_step(options)
        marks = [
            self._mark(place, probability, ood_score, options)
            for place, (probability, ood_score) in enumerate(zip(probabilities, ood_scores, strict=True))
        ]
        box = Box(0, SIDE, 0, SIDE * len(marks))
        return Reading([Line("".join(mark.text for mark in marks), 0.5, box, marks)])

    @staticmethod
    def _mark(place: int, probabilities: Any, ood_score: float, options: ReadOptions) -> Mark:
        index = int(probabilities.argmax())
        top = sorted(enumerate(probabilities.tolist()), key=lambda pair: -pair[1])[: options.top_k]
        return Mark(
            str(index), MarkKind.DIGIT, Box(0, SIDE, SIDE * place, SIDE * (place + 1)), index, float(probabilities[index]),
            Verdict.ACCEPTED, ood_score, top,
        )  # fmt: skip

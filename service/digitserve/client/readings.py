"""What ``read`` of the client library returns: the numbers of an image, converted from protobuf messages. No I/O."""

from dataclasses import dataclass

from digitserve.client.predictions import ClassScore
from digitserve.protocol.names import IgnoredKind, MarkKind, Verdict
from digitserve.types import Box
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.reduction import Reduction

_KINDS = {kind.value: kind for kind in MarkKind}
_IGNORED = {kind.value: kind for kind in IgnoredKind}
_VERDICTS = {verdict.value: verdict for verdict in Verdict}


@dataclass(frozen=True)
class Timing:
    """How the service spent the time of a request, in seconds.

    Attributes:
        queue_s: waiting for other requests.
        preprocess_s: finding lines and digits.
        inference_s: in the network.
        batch_size: images that the network classified for the request.
    """

    queue_s: float
    preprocess_s: float
    inference_s: float
    batch_size: int


@dataclass(frozen=True)
class Mark:
    """A digit, a separator, an empty cell, or what was not read. Boxes are in pixels of the image as it was given.

    Attributes:
        text: one character.
        kind: what it is.
        box: bounding box of its ink; of an empty cell the cell.
        label: most probable label of a digit and of an unread mark; otherwise empty.
        class_index: position of the label in the model's labels.
        confidence: calibrated probability of the label, 0 to 1; of a separator that of its kind.
        verdict: judged beside the other digits of its line; UNSPECIFIED for separators and empty cells.
        ood_score: higher means less like the training data.
        top: the ``top_k`` most probable labels, the most probable first.
    """

    text: str
    kind: MarkKind
    box: Box
    label: str = ""
    class_index: int = 0
    confidence: float = 0.0
    verdict: Verdict = Verdict.UNSPECIFIED
    ood_score: float = 0.0
    top: tuple[ClassScore, ...] = ()


@dataclass(frozen=True)
class Line:
    """One number, or several on one line.

    Attributes:
        text: of its marks, with a space at each wide gap.
        confidence: calibrated probability that the text is right, 0 to 1; 0 if a mark is unread.
        box: bounding box of its ink.
        marks: from left to right.
        matches: whether the text has the pattern and the number of digits of the call; True if it states none.
    """

    text: str
    confidence: float
    box: Box
    marks: tuple[Mark, ...] = ()
    matches: bool = True

    @property
    def complete(self) -> bool:
        """Whether all its marks were read, and it matches."""
        return self.matches and all(mark.kind is not MarkKind.UNREAD for mark in self.marks)


@dataclass(frozen=True)
class Ignored:
    """Ink that is part of no line.

    Attributes:
        kind: why.
        box: its bounding box.
    """

    kind: IgnoredKind
    box: Box


@dataclass(frozen=True)
class Reading:
    """The numbers in an image.

    Attributes:
        lines: in reading order.
        ignored: ink that is part of no line.
        model: name of the model.
        version: of the model.
        timing: of the request.
    """

    lines: tuple[Line, ...]
    ignored: tuple[Ignored, ...]
    model: str
    version: str
    timing: Timing

    @property
    def text(self) -> str:
        """The texts of the lines, joined by newlines."""
        return "\n".join(line.text for line in self.lines)


def to_reading(response: pb.ReadResponse, reduction: Reduction | None = None) -> Reading:
    """Convert a response.

    Args:
        response: of one request.
        reduction: from the image as it was given to the image of that request; None if it was not reduced.
    """
    timing = response.timing
    return Reading(
        tuple([_to_line(line, reduction) for line in response.lines]),
        tuple(
            [
                Ignored(_IGNORED.get(one.kind, IgnoredKind.UNSPECIFIED), _to_box(one.box, reduction))
                for one in response.ignored
            ]
        ),
        response.model_name,
        response.model_version,
        Timing(timing.queue_s, timing.preprocess_s, timing.inference_s, timing.batch_size),
    )


def _to_line(message: pb.ReadLine, reduction: Reduction | None) -> Line:
    marks = tuple([_to_mark(mark, reduction) for mark in message.marks])
    return Line(message.text, message.confidence, _to_box(message.box, reduction), marks, message.matches)


def _to_mark(message: pb.Mark, reduction: Reduction | None) -> Mark:
    return Mark(
        message.text,
        _KINDS.get(message.kind, MarkKind.UNSPECIFIED),
        _to_box(message.box, reduction),
        message.label,
        message.class_index,
        message.confidence,
        _VERDICTS.get(message.verdict, Verdict.UNSPECIFIED),
        message.ood_score,
        tuple([ClassScore(one.label, one.class_index, one.confidence) for one in message.top]),
    )


def _to_box(message: pb.Box, reduction: Reduction | None) -> Box:
    box = Box(message.top, message.bottom, message.left, message.right)
    return box if reduction is None else reduction.to_original(box)

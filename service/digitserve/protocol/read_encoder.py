"""Encodes ``ReadResponse`` messages. Knows protobuf, not gRPC.

    Readings ──Reading──▶ ReadEncoder ──▶ body

Owned by ``batching.readings``; called on the worker's one thread, once per request.
"""

from digitserve.protocol.readings import Ignored, Line, Mark, Reading
from digitserve.types import Box
from digitserve.v1 import digits_pb2 as pb


class ReadEncoder:
    """Encodes for one model."""

    def __init__(self, name: str, version: str, labels: tuple[str, ...]) -> None:
        """Encode for a model of this name and version, with the labels in the order of their indices."""
        self._labels = labels
        self._name = name
        self._version = version

    def encode(self, reading: Reading, seconds: tuple[float, float, float], num_images: int) -> bytes:
        """Encode the response to a request.

        Args:
            reading: what the image shows.
            seconds: in the queue, in the steps of the reading, in the network.
            num_images: classified for it.
        """
        response = pb.ReadResponse(model_name=self._name, model_version=self._version)
        for line in reading.lines:
            self._set_line(response.lines.add(), line)
        for ignored in reading.ignored:
            _set_ignored(response.ignored.add(), ignored)
        timing = response.timing
        timing.queue_s, timing.preprocess_s, timing.inference_s = seconds
        timing.batch_size = num_images
        return response.SerializeToString()

    def _set_line(self, message: pb.ReadLine, line: Line) -> None:
        message.text = line.text
        message.confidence = line.confidence
        message.matches = line.matches
        _set_box(message.box, line.box)
        for mark in line.marks:
            self._set_mark(message.marks.add(), mark)

    def _set_mark(self, message: pb.Mark, mark: Mark) -> None:
        message.text = mark.text
        message.kind = mark.kind  # type: ignore[assignment] # MarkKind has the numbers of pb.MarkKind
        message.confidence = mark.confidence
        message.verdict = mark.verdict  # type: ignore[assignment] # Verdict has the numbers of pb.Verdict
        message.ood_score = mark.ood_score
        _set_box(message.box, mark.box)
        if mark.class_index is not None:
            message.label = self._labels[mark.class_index]
            message.class_index = mark.class_index
        for index, probability in mark.probabilities:
            message.top.add(label=self._labels[index], class_index=index, confidence=probability)


def _set_ignored(message: pb.Ignored, ignored: Ignored) -> None:
    message.kind = ignored.kind  # type: ignore[assignment] # IgnoredKind has the numbers of pb.IgnoredKind
    _set_box(message.box, ignored.box)


def _set_box(message: pb.Box, box: Box) -> None:
    message.top, message.bottom, message.left, message.right = box

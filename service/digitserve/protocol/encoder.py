"""Encodes ``ClassifyResponse`` messages. Knows protobuf, not gRPC.

    Pipeline ──columns of a batch──▶ Encoder ──a record for each image──▶ Pipeline ──records of a request──▶ Encoder ──▶ body
    Pipeline ──answers, preparations of a request that asks for them───────────────────────────────────────▶ Encoder ──▶ body

Owned by the pipeline; called on the worker's one thread. ``plain`` encodes the usual predictions, ``records`` those with
alternatives; protobuf encodes responses with preparations, and predictions for which ``records`` would be slower.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from digitserve.protocol.codec import FRAMINGS, INKS
from digitserve.protocol.names import Artefact, Verdict
from digitserve.protocol.plain import PlainEncoder
from digitserve.protocol.records import Answer, Outcome, RecordEncoder
from digitserve.types import Box, Framing, Ink
from digitserve.v1 import digits_pb2 as pb

_INK_NUMBERS = {ink: number for number, ink in INKS.items()}
_FRAMING_NUMBERS = {framing: number for number, framing in FRAMINGS.items()}
_BLANK = Verdict.BLANK


class Removed(NamedTuple):
    """What framing removed from an image.

    Attributes:
        artefact: what it is.
        box: its bounding box; None if that is not known.
    """

    artefact: Artefact
    box: Box | None = None


class Preparation(NamedTuple):
    """How an image was converted to the network's input.

    Attributes:
        pixels: the network's input, IMAGE_BYTES bytes, row-major, light on dark.
        framing: AS_IS if the pixels stayed in their places.
        ink: polarity, never AUTO; None if framing found no ink.
        box: of the ink, in pixels of the request's image; None for AS_IS and without ink.
        removed: what framing removed, outermost first.
    """

    pixels: bytes
    framing: Framing
    ink: Ink | None
    box: Box | None = None
    removed: Sequence[Removed] = ()


class Encoder:
    """Encodes ``ClassifyResponse`` messages for one model; owned by the pipeline.

    Attributes:
        plain_records: the bound method ``PlainEncoder.records``: predictions without alternatives, for all images of a batch.
        encode_records: the bound method ``PlainEncoder.finish``: the response to a request, from the records of its images.
    """

    def __init__(self, name: str, version: str, labels: tuple[str, ...]) -> None:
        """Encode for a model of this name and version, with the labels in the order of their indices."""
        self._labels = labels
        self._model = pb.ClassifyResponse(model_name=name, model_version=version).SerializeToString()
        plain = PlainEncoder(labels, self._model)
        self.plain_records = plain.records
        self.encode_records = plain.finish
        self._records = RecordEncoder(labels, self._record)

    def encode(
        self, answers: list[Answer], top_k: int, seconds: tuple[float, float, float], batch_size: int,
        preparations: Sequence[Preparation] = (),
    ) -> bytes:  # fmt: skip
        """Encode the response to a request with preparations.

        Args:
            answers: one for each image, in order.
            top_k: classes to list for each image.
            seconds: in the queue, in preprocessing, in the network.
            batch_size: of the batch that answered the last image.
            preparations: one for each image, or none.
        """
        # A new message per response: protobuf frees what a reused one held before only with the message itself.
        response = pb.ClassifyResponse()
        for answer in answers:
            prediction = response.predictions.add()
            self._set_fields(prediction, answer, top_k)
        if preparations:
            for prediction, preparation in zip(response.predictions, preparations, strict=True):
                _set_preparation(prediction.preparation, preparation)
        timing = response.timing
        timing.queue_s, timing.preprocess_s, timing.inference_s = seconds
        timing.batch_size = batch_size
        # Two concatenated messages are one message with the fields of both.
        return response.SerializeToString() + self._model

    def records(self, outcome: Outcome, top_k: int) -> list[bytes]:
        """Encode the predictions with ``top_k`` classes, at least 1, for all images of a batch that have no preparations."""
        return self._records.encode(outcome, top_k)

    def _record(self, outcome: Outcome, row: int, top_k: int) -> bytes:
        """Encode the prediction for one image of a batch."""
        class_index, confidence, verdicts, ood_score, probabilities = outcome
        answer = int(class_index[row]), float(confidence[row]), verdicts[row], float(ood_score[row]), probabilities[row]
        response = pb.ClassifyResponse()
        self._set_fields(response.predictions.add(), answer, top_k)
        return response.SerializeToString()

    def _set_fields(self, prediction: pb.Prediction, answer: Answer, top_k: int) -> None:
        class_index, confidence, verdict, ood_score, probabilities = answer
        if verdict is not _BLANK:
            prediction.label = self._labels[class_index]
            prediction.class_index = class_index
            prediction.confidence = confidence
            if top_k:
                self._add_top(prediction, probabilities, top_k)
        prediction.verdict = verdict  # type: ignore[assignment] # Verdict has the numbers of pb.Verdict
        prediction.ood_score = ood_score

    def _add_top(self, prediction: pb.Prediction, probabilities: NDArray[np.float32], top_k: int) -> None:
        for index in np.argsort(-probabilities, kind="stable")[:top_k].tolist():
            prediction.top.add(label=self._labels[index], class_index=index, confidence=float(probabilities[index]))


def _set_preparation(message: pb.Preparation, preparation: Preparation) -> None:
    message.pixels = preparation.pixels
    message.framing = _FRAMING_NUMBERS[preparation.framing]
    if preparation.ink is not None:
        message.ink = _INK_NUMBERS[preparation.ink]
    if preparation.box is not None:
        message.box.CopyFrom(_to_box(preparation.box))
    for artefact, box in preparation.removed:
        message.removed.add(artefact=artefact, box=None if box is None else _to_box(box))


def _to_box(box: Box) -> pb.Box:
    return pb.Box(top=box.top, bottom=box.bottom, left=box.left, right=box.right)

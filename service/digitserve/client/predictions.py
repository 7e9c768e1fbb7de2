"""What the client library returns: predictions and facts about the model, converted from protobuf messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
from numpy.typing import NDArray

from digitserve.protocol.names import Artefact, Verdict
from digitserve.types import IMAGE_SIZE, Box, Framing, Ink
from digitserve.v1 import digits_pb2 as pb
from digitserve.vision.reduction import Reduction

_VERDICTS = {verdict.value: verdict for verdict in Verdict}
_INKS = {pb.Ink.Value(f"INK_{ink.name}"): ink for ink in Ink}
_FRAMINGS = {pb.FRAMING_AS_IS: Framing.AS_IS, pb.FRAMING_MNIST: Framing.MNIST}
_ARTEFACTS = {artefact.value: artefact for artefact in Artefact}


@dataclass(frozen=True)
class ClassScore:
    """The probability of one class for an image.

    Attributes:
        label: name of the class.
        class_index: position of the label in the model's labels.
        confidence: calibrated probability, 0 to 1.
    """

    label: str
    class_index: int
    confidence: float


@dataclass(frozen=True)
class Removed:
    """What framing removed from an image.

    Attributes:
        artefact: what it is.
        box: its bounding box; None if the service does not know it.
    """

    artefact: Artefact
    box: Box | None = None


@dataclass(frozen=True)
class Preparation:
    """How the service converted an image to the network's input. Boxes are in pixels of the image as it was given.

    Attributes:
        pixels: uint8[28,28], what the network saw: light on dark, read-only.
        framing: AS_IS if the pixels stayed in their places; None if the service does not state it.
        ink: polarity, as given or detected; None if framing found no ink.
        box: bounding box of the ink; None for AS_IS and if framing found no ink.
        removed: what framing removed, outermost first.
    """

    pixels: NDArray[np.uint8] = field(repr=False, compare=False)
    framing: Framing | None
    ink: Ink | None
    box: Box | None = None
    removed: tuple[Removed, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """The service's answer for one image.

    Attributes:
        label: the most probable class; empty for a blank image.
        class_index: position of the label in the model's labels.
        confidence: calibrated probability of the label, 0 to 1.
        verdict: whether the prediction can be used.
        ood_score: out-of-distribution score; higher means less like the training data.
        top: the ``top_k`` most probable classes, the most probable first.
        preparation: how the image was prepared; None unless the call has ``explain``.
    """

    label: str
    class_index: int
    confidence: float
    verdict: Verdict
    ood_score: float
    top: tuple[ClassScore, ...] = ()
    # Not an argument: each argument of a frozen dataclass costs time per image, and few calls have ``explain``.
    preparation: Preparation | None = field(default=None, init=False)


@dataclass(frozen=True)
class ModelInfo:
    """The model that the service uses, and the limits of the service.

    Attributes:
        name: of the model.
        version: of the model.
        sha256: of ``model.onnx``, hexadecimal.
        labels: names of the classes.
        height: of the network's input, in pixels.
        width: of the network's input, in pixels.
        ink: of images that are used as they are; None if the service does not state it.
        framing: of images of another size; None if the service does not state it.
        ood_threshold: predictions with a higher ``ood_score`` have the verdict UNFAMILIAR.
        execution_provider: onnxruntime's name of it.
        max_request_bytes: largest request message.
        max_images_per_request: most images in one request.
        max_batch_size: most images in one run of the network.
        quality: measured figures, such as ``test_accuracy``.
        precision: ``float32`` or ``int8``; empty if the service does not state it.
    """

    name: str
    version: str
    sha256: str
    labels: tuple[str, ...]
    height: int
    width: int
    ink: Ink | None
    framing: Framing | None
    ood_threshold: float
    execution_provider: str
    max_request_bytes: int
    max_images_per_request: int
    max_batch_size: int
    quality: Mapping[str, float]
    precision: str = ""

    @classmethod
    def from_message(cls, model: pb.Model) -> Self:
        """Convert the message of ``GetModel``."""
        return cls(
            name=model.name,
            version=model.version,
            sha256=model.sha256,
            labels=tuple(model.labels),
            height=model.height,
            width=model.width,
            ink=_INKS.get(model.ink),
            framing=_FRAMINGS.get(model.framing),
            ood_threshold=model.ood_threshold,
            execution_provider=model.execution_provider,
            max_request_bytes=model.max_request_bytes,
            max_images_per_request=model.max_images_per_request,
            max_batch_size=model.max_batch_size,
            quality=dict(model.quality),
            precision=model.precision,
        )

    def has_limits_of(self, other: "ModelInfo") -> bool:
        """Return whether both have the same limits, so that images are split into the same requests."""
        return (self.max_request_bytes, self.max_images_per_request) == (
            other.max_request_bytes, other.max_images_per_request,
        )  # fmt: skip


def to_predictions(
    response: pb.ClassifyResponse, top_k: int, *, explain: bool = False, reduction: Reduction | None = None
) -> list[Prediction]:
    """Convert a response's predictions, in order.

    Args:
        response: of one request.
        top_k: of that request.
        explain: of that request.
        reduction: from the images as they were given to the images of that request; None if they were not reduced.
    """
    # Positional arguments, and no access to absent fields: this is most of the client's own cost per image.
    verdict_of, unknown = _VERDICTS.get, Verdict.UNSPECIFIED
    predictions = [
        Prediction(
            one.label, one.class_index, one.confidence, verdict_of(one.verdict, unknown), one.ood_score,
            tuple([ClassScore(s.label, s.class_index, s.confidence) for s in one.top]) if top_k else (),
        )
        for one in response.predictions
    ]  # fmt: skip
    if explain:
        for prediction, one in zip(predictions, response.predictions, strict=True):
            if one.HasField("preparation"):
                # Predictions are frozen for everybody else.
                object.__setattr__(prediction, "preparation", _to_preparation(one.preparation, reduction))
    return predictions


def _to_preparation(message: pb.Preparation, reduction: Reduction | None) -> Preparation:
    return Preparation(
        np.frombuffer(message.pixels, np.uint8).reshape(-1, IMAGE_SIZE),
        _FRAMINGS.get(message.framing),
        _INKS.get(message.ink),
        _to_box(message, reduction),
        tuple(
            Removed(_ARTEFACTS.get(one.artefact, Artefact.UNSPECIFIED), _to_box(one, reduction))
            for one in message.removed
        ),
    )


def _to_box(message: pb.Preparation | pb.Removed, reduction: Reduction | None) -> Box | None:
    if not message.HasField("box"):
        return None
    box = Box(message.box.top, message.box.bottom, message.box.left, message.box.right)
    return box if reduction is None else reduction.to_original(box)

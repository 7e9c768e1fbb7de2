"""The response to one image, the most common one, without building a message: a quarter of the time that protobuf needs.

    Encoder ──one answer, times, batch size──▶ SingleEncoder ──body──▶ Encoder

Only confidence, score and times differ between responses with the same label, verdict and batch size. Protobuf serializes
their constant parts once, and ``struct`` inserts the numbers. Owned by ``codec.Encoder``; called on the worker's one thread.
"""

from collections.abc import Sequence
from struct import Struct, unpack

from digitserve.protocol.names import Verdict
from digitserve.v1 import digits_pb2 as pb

_MARK = b"\xf9\xfa\xfb\x3e"
"""Bytes of a float32 that stands for the numbers to insert: they occur in no text and in no tag or length."""

_NUMBER: float = unpack("<f", _MARK)[0]


class SingleEncoder:
    """Encodes responses to one image with a label, without alternatives and preparations."""

    def __init__(self, labels: Sequence[str], model: bytes) -> None:
        """Encode for a model with these labels; ``model`` is the part of each response that names it."""
        self._model = model
        self._predictions: dict[tuple[int, Verdict], tuple[Struct, bytes, bytes]] = {
            (class_index, verdict): _prediction(label, class_index, verdict)
            for class_index, label in enumerate(labels)
            for verdict in Verdict
            if verdict is not Verdict.BLANK
        }
        # By batch size: there are as many as images in the largest batch.
        self._timings: dict[int, list[bytes]] = {}

    def encode(
        self, class_index: int, verdict: Verdict, confidence: float, ood_score: float,
        seconds: tuple[float, float, float], batch_size: int,
    ) -> bytes | None:  # fmt: skip
        """Encode a response; ``None`` for a blank image. See ``Answer`` and ``Encoder.encode``."""
        prediction = self._predictions.get((class_index, verdict))
        if prediction is None:
            return None
        layout, before, between = prediction
        start, second, third, end = self._timings.get(batch_size) or self._new_timing(batch_size)
        queue_s, preprocess_s, inference_s = seconds
        return (
            layout.pack(
                before, confidence, between, ood_score,
                start, queue_s, second, preprocess_s, third, inference_s,
            )
            + end
        )  # fmt: skip

    def _new_timing(self, batch_size: int) -> list[bytes]:
        timing = pb.Timing(queue_s=_NUMBER, preprocess_s=_NUMBER, inference_s=_NUMBER, batch_size=batch_size)
        parts = (pb.ClassifyResponse(timing=timing).SerializeToString() + self._model).split(_MARK)
        self._timings[batch_size] = parts
        return parts


def _prediction(label: str, class_index: int, verdict: Verdict) -> tuple[Struct, bytes, bytes]:
    """Return the layout of a response up to its last time, and its parts before and after the confidence."""
    prediction = pb.Prediction(label=label, class_index=class_index, confidence=_NUMBER, ood_score=_NUMBER)
    prediction.verdict = verdict  # type: ignore[assignment] # Verdict has the numbers of pb.Verdict
    before, between, _ = pb.ClassifyResponse(predictions=[prediction]).SerializeToString().split(_MARK)
    # Tag and length of the timing, and the tag of its first field: three bytes for every batch size.
    return Struct(f"<{len(before)}sf{len(between)}sf3sf1sf1sf"), before, between

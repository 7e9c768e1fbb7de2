"""Encodes the usual responses, without alternatives and preparations, without building a protobuf message.

    Encoder ──answers, times, batch size──▶ PlainEncoder ──body──▶ Encoder

Only confidence, score and times differ between responses with the same labels, verdicts and batch size. Protobuf serializes
their constant parts once, and ``struct`` inserts the numbers: a fifth of the time that protobuf needs. Owned by
``codec.Encoder``; called on the worker's one thread.
"""

from collections.abc import Callable, Iterable, Sequence
from struct import Struct

from digitserve.protocol.names import Verdict
from digitserve.protocol.records import MARK, NUMBER
from digitserve.v1 import digits_pb2 as pb

_Form = tuple[Callable[..., bytes], bytes, bytes]
"""Packs a prediction; its bytes before the confidence; its bytes between confidence and score."""

_Timing = tuple[Callable[..., bytes], bytes, bytes, bytes, bytes]
"""Packs the times and the model; its bytes before, between and after the three times."""


class PlainEncoder:
    """Encodes responses whose images all have a label, without alternatives and preparations."""

    def __init__(self, labels: Sequence[str], model: bytes) -> None:
        """Encode for a model with these labels; ``model`` is the part of each response that names it."""
        self._model = model
        # By index of the label, then by verdict.
        self._forms = [
            [None if verdict is Verdict.BLANK else _form(label, class_index, verdict) for verdict in Verdict]
            for class_index, label in enumerate(labels)
        ]
        # By batch size: there are as many as images in the largest batch.
        self._timings: dict[int, _Timing] = {}

    def encode(
        self, answers: Iterable[tuple[int, float, Verdict, float, object]],
        seconds: tuple[float, float, float], batch_size: int,
    ) -> bytes | None:  # fmt: skip
        """Encode a response; ``None`` if an image is blank. See ``Answer`` and ``Encoder.encode``."""
        forms = self._forms
        parts = []
        for class_index, confidence, verdict, ood_score, _ in answers:
            form = forms[class_index][verdict]
            if form is None:
                return None
            pack, before, between = form
            parts.append(pack(before, confidence, between, ood_score))
        return self.finish(parts, seconds, batch_size)

    def finish(self, parts: list[bytes], seconds: tuple[float, float, float], batch_size: int) -> bytes:
        """Return the response with these encoded predictions, to which the rest is appended; see ``Encoder.encode``."""
        pack, first, second, third, end = self._timings.get(batch_size) or self._new_timing(batch_size)
        queue_s, preprocess_s, inference_s = seconds
        parts.append(pack(first, queue_s, second, preprocess_s, third, inference_s, end))
        return b"".join(parts)

    def _new_timing(self, batch_size: int) -> _Timing:
        timing = pb.Timing(queue_s=NUMBER, preprocess_s=NUMBER, inference_s=NUMBER, batch_size=batch_size)
        body = pb.ClassifyResponse(timing=timing).SerializeToString() + self._model
        first, second, third, end = body.split(MARK)
        layout = Struct(f"<{len(first)}sf{len(second)}sf{len(third)}sf{len(end)}s")
        self._timings[batch_size] = layout.pack, first, second, third, end
        return self._timings[batch_size]


def _form(label: str, class_index: int, verdict: Verdict) -> _Form:
    prediction = pb.Prediction(label=label, class_index=class_index, confidence=NUMBER, ood_score=NUMBER)
    prediction.verdict = verdict  # type: ignore[assignment] # Verdict has the numbers of pb.Verdict
    before, between, _ = pb.ClassifyResponse(predictions=[prediction]).SerializeToString().split(MARK)
    return Struct(f"<{len(before)}sf{len(between)}sf").pack, before, between

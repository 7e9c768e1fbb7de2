"""Encodes the usual responses, without alternatives and preparations, without building a protobuf message.

    Pipeline ──columns of a batch──▶ records ──a record for each image──▶ Pipeline ──records of a request──▶ finish ──▶ body

Only confidence, score and times differ between responses with the same labels, verdicts and batch size. Protobuf serializes
their constant parts once, and ``struct`` inserts the numbers: a fifth of the time that protobuf needs. Owned by
``encoder.Encoder``; called on the worker's one thread.
"""

from collections.abc import Callable, Sequence
from struct import Struct

from digitserve.protocol.names import Verdict
from digitserve.protocol.records import MARK, NUMBER, template
from digitserve.v1 import digits_pb2 as pb

_Form = tuple[Callable[..., bytes], bytes, bytes]
"""Packs a prediction; its bytes before the confidence; its bytes between confidence and score."""

_Timing = tuple[bytes, bytes, bytes, bytes]
"""The bytes before, between and after the three times; the last ones include the model."""

_pack_number = Struct("<f").pack


class PlainEncoder:
    """Encodes responses without alternatives and preparations."""

    def __init__(self, labels: Sequence[str], model: bytes) -> None:
        """Encode for a model with these labels; ``model`` is the part of each response that names it."""
        self._model = model
        # By index of the label, then by verdict.
        self._forms = [
            [_form(label, class_index, verdict) for verdict in Verdict] for class_index, label in enumerate(labels)
        ]
        # By batch size: there are as many as images in the largest batch.
        self._timings: dict[int, _Timing] = {}
        # Of the last batch, and what the responses to all its requests have in common.
        self._last = 0.0, 0.0, 0
        self._before_queue, self._end = self._ending(*self._last)

    def records(
        self, class_index: Sequence[int], confidence: Sequence[float], verdicts: Sequence[Verdict],
        ood_score: Sequence[float],
    ) -> list[bytes]:  # fmt: skip
        """Return a record, the encoded prediction, for each image of a batch; the columns are those of ``Answer``."""
        forms = self._forms
        records = []
        for index, probability, verdict, score in zip(class_index, confidence, verdicts, ood_score, strict=True):
            pack_one, before, between = forms[index][verdict]
            records.append(pack_one(before, probability, between, score))
        return records

    def finish(self, records: list[bytes], seconds: tuple[float, float, float], batch_size: int) -> bytes:
        """Return the response to a request.

        Args:
            records: one for each image, in order, with or without alternatives; the other fields are appended to the list.
            seconds: in the queue, in preprocessing, in the network.
            batch_size: of the batch that answered the last image.
        """
        queue_s, preprocess_s, inference_s = seconds
        last = preprocess_s, inference_s, batch_size
        if last != self._last:
            self._before_queue, self._end = self._ending(*last)
            self._last = last
        records += self._before_queue, _pack_number(queue_s), self._end
        return b"".join(records)

    def _ending(self, preprocess_s: float, inference_s: float, batch_size: int) -> tuple[bytes, bytes]:
        """Return the bytes before the time in the queue, and all bytes after it."""
        before, second, third, end = self._timings.get(batch_size) or self._new_timing(batch_size)
        return before, b"".join((second, _pack_number(preprocess_s), third, _pack_number(inference_s), end))

    def _new_timing(self, batch_size: int) -> _Timing:
        timing = pb.Timing(queue_s=NUMBER, preprocess_s=NUMBER, inference_s=NUMBER, batch_size=batch_size)
        body = pb.ClassifyResponse(timing=timing).SerializeToString() + self._model
        first, second, third, end = body.split(MARK)
        self._timings[batch_size] = first, second, third, end
        return self._timings[batch_size]


def _form(label: str, class_index: int, verdict: Verdict) -> _Form:
    prediction = template(label, class_index, verdict)
    parts = pb.ClassifyResponse(predictions=[prediction]).SerializeToString().split(MARK)
    if verdict is Verdict.BLANK:
        return _pack_blank, b"", parts[0]
    before, between, _ = parts
    return Struct(f"<{len(before)}sf{len(between)}sf").pack, before, between


def _pack_blank(_before: bytes, _confidence: float, between: bytes, ood_score: float) -> bytes:
    return between + _pack_number(ood_score)

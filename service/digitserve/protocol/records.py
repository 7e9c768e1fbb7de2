"""Encodes predictions with alternatives from the arrays of a batch, all of them in one pass.

    Pipeline ──class, verdict, score, probabilities──▶ RecordEncoder ──a record for each image──▶ Encoder

A record is a row of bytes: constant fields, padded to the length of the longest one, and numbers in fixed columns. A mask of the
same shape drops the padding. Protobuf serializes the constant fields once, and numpy fills the rows. Owned by
``encoder.Encoder``; called on the worker's one thread.
"""

from collections.abc import Callable, Sequence
from struct import unpack
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from digitserve.protocol.names import Verdict
from digitserve.v1 import digits_pb2 as pb

MIN_IMAGES = 5
"""Fewer images are encoded by protobuf, which takes 4.5 us for each with three alternatives; numpy takes 18 us for five."""

MAX_ROW_BYTES = 1024
"""Longer records are encoded by protobuf: with long labels most of a row is padding. Lengths up to it are varints of at most
two bytes."""

MARK = b"\xf9\xfa\xfb\x3e"
"""Bytes of a float32 as a placeholder for the numbers to insert: they occur in no text, tag or length."""

NUMBER: float = unpack("<f", MARK)[0]

CONTINUED = 0x80
"""Set in each byte of a varint that is not the last."""

_PREDICTIONS_TAG = pb.ClassifyResponse.PREDICTIONS_FIELD_NUMBER << 3 | 2
"""Tag of a length-delimited field."""

_VERDICTS = range(max(Verdict) + 1)
"""Numbers of verdicts, without gaps, so that they are indices."""

_FLOAT_BYTES = 4

_Bytes = NDArray[np.uint8]
_Flags = NDArray[np.bool_]


Answer: TypeAlias = tuple[int, float, Verdict, float, NDArray[np.float32]]
"""The answer for one image: index of the most probable label, its probability, the verdict, the out-of-distribution score
(higher means less like the training data), and the probabilities of all labels, float32[labels].

A plain tuple: there is one per image, and a named one takes 0.4 us more.
"""


class _Rows(NamedTuple):
    """Constant fields, one row for each value that they depend on.

    Attributes:
        fields: uint8[rows, columns].
        kept: bool[rows, columns], false for padding.
        lengths: int64[rows], bytes that are kept.
    """

    fields: _Bytes
    kept: _Flags
    lengths: NDArray[np.int64]


class Outcome(NamedTuple):
    """Results of the network and of the checks for N images.

    Attributes:
        class_index: int64[N], of the most probable label.
        confidence: float32[N], its probability.
        verdicts: for each image.
        ood_score: float32[N].
        probabilities: float32[N,labels].
    """

    class_index: NDArray[np.int64]
    confidence: NDArray[np.float32]
    verdicts: Sequence[Verdict]
    ood_score: NDArray[np.float32]
    probabilities: NDArray[np.float32]

    def answers(self, start: int, stop: int) -> list[Answer]:
        """Return the answers for a range of images."""
        rows = slice(start, stop)
        class_index, confidence = self.class_index[rows].tolist(), self.confidence[rows].tolist()
        ood_score, probabilities = self.ood_score[rows].tolist(), self.probabilities[rows]
        return list(zip(class_index, confidence, self.verdicts[rows], ood_score, probabilities, strict=True))

    def rows(self, rows: Sequence[int]) -> "Outcome":
        """Return the outcome for these images."""
        class_index, confidence, verdicts, ood_score, probabilities = self
        chosen = [verdicts[row] for row in rows]
        return Outcome(class_index[rows], confidence[rows], chosen, ood_score[rows], probabilities[rows])


class RecordEncoder:
    """Encodes the predictions of a batch as fields of a ``ClassifyResponse``."""

    def __init__(self, labels: Sequence[str], encode_one: Callable[[Outcome, int, int], bytes]) -> None:
        """Encode for a model with these labels.

        Args:
            labels: in the order of their indices.
            encode_one: serializes the prediction for one row of a batch, with so many alternatives, by protobuf.
        """
        self._encode_one = encode_one
        self._num_labels = len(labels)
        forms = [_constant_fields(label, index, verdict) for index, label in enumerate(labels) for verdict in _VERDICTS]
        before = _rows([form[0] for form in forms])
        between = _rows([form[1] for form in forms])
        scores = _rows([_class_score(label, index) for index, label in enumerate(labels)])
        number = np.ones((len(forms), _FLOAT_BYTES), np.bool_)
        blank = np.array([verdict == Verdict.BLANK for _ in labels for verdict in _VERDICTS])
        zeros = np.zeros_like(number, np.uint8)
        self._scores = _Rows(
            np.hstack((scores.fields, zeros[: len(labels)])), np.hstack((scores.kept, number[: len(labels)])),
            scores.lengths + _FLOAT_BYTES,
        )  # fmt: skip
        kept = np.hstack((before.kept, number & ~blank[:, None], between.kept, number))
        self._predictions = _Rows(
            np.hstack((before.fields, zeros, between.fields, zeros)), kept, kept.sum(axis=1, dtype=np.int64)
        )
        self._blank = blank
        self._confidence_column = before.fields.shape[1]

    def encode(self, outcome: Outcome, top_k: int) -> list[bytes]:
        """Return a record for each image, with so many alternatives, at least 1."""
        num_images, num_top = len(outcome.verdicts), min(top_k, self._num_labels)
        width = self._predictions.fields.shape[1] + num_top * self._scores.fields.shape[1]
        if num_images >= MIN_IMAGES and width <= MAX_ROW_BYTES:
            # Stable: of equal probabilities, the lower index is the first, as for the label.
            order = np.argsort(-outcome.probabilities, axis=1, kind="stable")[:, :num_top]
            # numpy.take_along_axis does the same in twice the time.
            first = np.arange(0, outcome.probabilities.size, self._num_labels)
            top = outcome.probabilities.take(order + first[:, None])
            # Protobuf omits zeros.
            if top.all() and outcome.ood_score.all():
                return self._fill(outcome, order, top, long=width >= CONTINUED)
        return [self._encode_one(outcome, row, num_top) for row in range(num_images)]

    def _fill(
        self, outcome: Outcome, order: NDArray[np.int64], top: NDArray[np.float32], *, long: bool
    ) -> list[bytes]:  # fmt: skip
        """Return the records.

        Args:
            outcome: for N images.
            order: int64[N,alternatives], indices of labels.
            top: float32[N,alternatives], their probabilities.
            long: whether lengths have two bytes.
        """
        num_images, num_top = order.shape
        predictions, scores = self._predictions, self._scores
        forms = outcome.class_index * len(_VERDICTS) + np.fromiter(outcome.verdicts, np.int64, num_images)
        first = 3 if long else 2
        middle = first + predictions.fields.shape[1]
        rows = np.empty((num_images, middle + num_top * scores.fields.shape[1]), np.uint8)
        kept = np.ones(rows.shape, np.bool_)

        rows[:, first:middle] = predictions.fields.take(forms, axis=0)
        kept[:, first:middle] = predictions.kept.take(forms, axis=0)
        confidence = first + self._confidence_column
        rows[:, confidence : confidence + _FLOAT_BYTES] = _bytes_of(outcome.confidence)
        rows[:, middle - _FLOAT_BYTES : middle] = _bytes_of(outcome.ood_score)

        fields = scores.fields.take(order, axis=0)
        fields[..., -_FLOAT_BYTES:] = _bytes_of(top)
        rows[:, middle:] = fields.reshape(num_images, -1)
        kept[:, middle:] = scores.kept.take(order, axis=0).reshape(num_images, -1)
        top_lengths = scores.lengths.take(order).sum(axis=1)
        blank = self._blank.take(forms)
        if blank.any():
            kept[blank, middle:] = False
            top_lengths[blank] = 0

        lengths = predictions.lengths.take(forms) + top_lengths
        rows[:, 0] = _PREDICTIONS_TAG
        stops = lengths + 2
        if long:
            more = lengths >= CONTINUED
            rows[:, 1] = lengths % CONTINUED + more * CONTINUED
            rows[:, 2] = lengths // CONTINUED
            kept[:, 2] = more
            stops += more
        else:
            rows[:, 1] = lengths
        joined = rows[kept].tobytes()
        start, records = 0, []
        for stop in stops.cumsum().tolist():
            records.append(joined[start:stop])
            start = stop
        return records


def template(label: str, class_index: int, verdict: int) -> pb.Prediction:
    """Return a prediction with ``NUMBER`` as its confidence and score; that for a blank image has only a score."""
    prediction = pb.Prediction(ood_score=NUMBER)
    prediction.verdict = verdict  # type: ignore[assignment] # Verdict has the numbers of pb.Verdict
    if verdict != Verdict.BLANK:
        prediction.MergeFrom(pb.Prediction(label=label, class_index=class_index, confidence=NUMBER))
    return prediction


def _constant_fields(label: str, class_index: int, verdict: int) -> tuple[bytes, bytes]:
    """Return the fields up to the confidence, none for a blank image, and those between it and the score."""
    *before, between, _ = template(label, class_index, verdict).SerializeToString().split(MARK)
    return b"".join(before), between


def _class_score(label: str, class_index: int) -> bytes:
    """Return the fields of an alternative up to its number, with which it ends."""
    score = pb.ClassScore(label=label, class_index=class_index, confidence=NUMBER)
    return pb.Prediction(top=[score]).SerializeToString().removesuffix(MARK)


def _rows(fields: Sequence[bytes]) -> _Rows:
    """Pad the fields to the length of the longest."""
    lengths = np.array([len(field) for field in fields])
    width = int(lengths.max())
    padded = b"".join(field.ljust(width, b"\0") for field in fields)
    kept = np.arange(width) < lengths[:, None]
    return _Rows(np.frombuffer(padded, np.uint8).reshape(len(fields), width), kept, lengths)


def _bytes_of(numbers: NDArray[np.float32]) -> _Bytes:
    """Return the bytes of float32 numbers along one more axis."""
    return numbers.astype("<f4", order="C", copy=False)[..., None].view(np.uint8)

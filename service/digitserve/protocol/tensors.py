"""Answers to ``ModelInfer`` as the tensors of the Open Inference Protocol.

    answers ──one function per output──▶ raw bytes ──▶ raw_output_contents, or typed contents ──▶ ModelInferResponse

``infer`` makes a form for what a request asks for and remembers it; the pipeline calls it with the answers. What depends on the
number of images and on the outputs only is serialized once. Called on the worker's one thread.
"""

from array import array
from collections.abc import Callable, Sequence
from math import prod
from struct import pack
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from digitserve.open_inference import open_inference_pb2 as pb
from digitserve.protocol.codec import varint
from digitserve.protocol.names import Verdict
from digitserve.protocol.records import Answer

NO_LABEL = -1
"""Value of the output ``label`` for a blank image, which has no label."""

BYTES, FP32, INT64 = "BYTES", "FP32", "INT64"
_ELEMENT_BYTES = {FP32: 4, INT64: 8}

Columns: TypeAlias = tuple[
    tuple[int, ...], tuple[float, ...], tuple[Verdict, ...], tuple[float, ...], tuple[NDArray[np.float32], ...]
]
"""The answers to a request, transposed: a column for each item of ``Answer``."""

# Looked up for each image.
_BLANK = Verdict.BLANK


def _element(text: str) -> bytes:
    """Return a raw element of the datatype BYTES: its length, four bytes, and the text."""
    content = text.encode()
    return pack("<I", len(content)) + content


_VERDICTS = {verdict: _element(verdict.name) for verdict in Verdict}


class Output(NamedTuple):
    """An output of the model.

    Attributes:
        name: of the tensor.
        datatype: as the protocol spells it.
        row: shape for one image.
        encode: the raw bytes of the tensor.
    """

    name: str
    datatype: str
    row: tuple[int, ...]
    encode: Callable[[Columns], bytes]


def _probabilities(columns: Columns) -> bytes:
    # The rows of numpy are bytes-like: joined without a copy in between.
    rows: Any = columns[4]
    return b"".join(rows)


def _ood_score(columns: Columns) -> bytes:
    return array("f", columns[3]).tobytes()


def _label(columns: Columns) -> bytes:
    labels = [NO_LABEL if verdict is _BLANK else label for label, verdict in zip(columns[0], columns[2], strict=True)]
    return array("q", labels).tobytes()


def _verdict(columns: Columns) -> bytes:
    return b"".join([_VERDICTS[verdict] for verdict in columns[2]])


def outputs_of(labels: Sequence[str]) -> dict[str, Output]:
    """Return the outputs of a model with these labels by name, in the order in which they are returned by default."""
    outputs = (
        Output("probabilities", FP32, (len(labels),), _probabilities),
        Output("ood_score", FP32, (), _ood_score),
        Output("label", INT64, (), _label),
        Output("verdict", BYTES, (), _verdict),
    )
    return {output.name: output for output in outputs}


def classification(output: Output, labels: Sequence[str], num_classes: int) -> Output:
    """Return the most probable classes as an output: BYTES[N, num_classes], each "value:index:label" as in Triton.

    Args:
        output: the probabilities; they keep their name.
        labels: of the model.
        num_classes: at least 1; at most the number of labels are returned.
    """
    num_classes = min(num_classes, len(labels))

    def encode(columns: Columns) -> bytes:
        probabilities = np.stack(columns[4])
        # Stable, as for the alternatives of Classify: of equal probabilities, the lower index is the first.
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :num_classes]
        values = np.take_along_axis(probabilities, order, axis=1)
        return b"".join(
            _element(f"{value:f}:{index}:{labels[index]}")
            for value, index in zip(values.ravel().tolist(), order.ravel().tolist(), strict=True)
        )

    return Output(output.name, BYTES, (num_classes,), encode)


class TensorForm:
    """Encodes ``ModelInferResponse`` messages for one number of images; immutable. See ``codec.Form``."""

    __slots__ = ("_encoders", "_head", "_outputs", "_raw")

    def __init__(self, model_head: bytes, outputs: Sequence[Output], num_images: int, *, raw: bool) -> None:
        """Encode these outputs.

        Args:
            model_head: serialized fields of the response that name the model.
            outputs: at least one.
            num_images: of the request.
            raw: whether the contents are raw bytes.
        """
        self._outputs = [(output, (num_images, *output.row)) for output in outputs]
        self._raw = raw
        described = pb.ModelInferResponse()
        if raw:
            for output, shape in self._outputs:
                described.outputs.add(name=output.name, datatype=output.datatype, shape=shape)
        # Two concatenated messages are one message with the fields of both.
        self._head = model_head + described.SerializeToString()
        self._encoders = [(output.encode, _fixed_prefix(output, num_images)) for output in outputs]

    def encode(self, answers: Sequence[Answer], id_field: bytes = b"") -> bytes:
        """Return the response.

        Args:
            answers: one for each image, in order.
            id_field: serialized id of the request, which has the same field number in the response.
        """
        columns: Columns = tuple(zip(*answers, strict=True))  # type: ignore[assignment] # a column for each item
        if not self._raw:
            return self._head + id_field + self._typed(columns)
        parts = [self._head, id_field]
        for encode, prefix in self._encoders:
            content = encode(columns)
            parts += (prefix or _prefix(len(content)), content)
        return b"".join(parts)

    def _typed(self, columns: Columns) -> bytes:
        response = pb.ModelInferResponse()
        for output, shape in self._outputs:
            contents = _contents(output.datatype, output.encode(columns))
            response.outputs.add(name=output.name, datatype=output.datatype, shape=shape, contents=contents)
        return bytes(response.SerializeToString())


class IdForm:
    """A form for one request with an id."""

    __slots__ = ("_form", "_id_field")

    def __init__(self, form: TensorForm, id_field: bytes) -> None:
        self._form = form
        self._id_field = id_field

    def encode(self, answers: Sequence[Answer]) -> bytes:
        """Return the response; there is one answer for each image, in order."""
        return self._form.encode(answers, self._id_field)


_RAW_TAG = bytes([pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | 2])
"""Tag of a length-delimited field."""


def _prefix(num_bytes: int) -> bytes:
    """Return the tag and the length of a raw content."""
    return _RAW_TAG + varint(num_bytes)


def _fixed_prefix(output: Output, num_images: int) -> bytes:
    """Return the prefix of an output; empty if its length depends on the answers."""
    if output.datatype == BYTES:
        return b""
    return _prefix(num_images * prod(output.row) * _ELEMENT_BYTES[output.datatype])


def _contents(datatype: str, raw: bytes) -> pb.InferTensorContents:
    """Convert raw contents to typed contents."""
    if datatype == FP32:
        return pb.InferTensorContents(fp32_contents=np.frombuffer(raw, "<f4").tolist())
    if datatype == INT64:
        return pb.InferTensorContents(int64_contents=np.frombuffer(raw, "<i8").tolist())
    elements, position = [], 0
    while position < len(raw):
        start = position + 4
        position = start + int.from_bytes(raw[position:start], "little")
        elements.append(raw[start:position])
    return pb.InferTensorContents(bytes_contents=elements)

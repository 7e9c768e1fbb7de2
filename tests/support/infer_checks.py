"""Requests of ``ModelInfer``, and checks of what ``protocol.infer`` makes of any bytes, independently of its code."""

from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from digitserve.errors import InvalidRequest, NotServed
from digitserve.open_inference import open_inference_pb2 as oip
from digitserve.protocol.codec import Request
from digitserve.protocol.infer import InferDecoder
from digitserve.protocol.infer_parts import MAX_FIELDS, MAX_ID_BYTES
from digitserve.protocol.names import Verdict
from digitserve.protocol.records import Answer
from digitserve.types import Framing, Ink
from support.decode_checks import LIMITS, assert_helpful

LABELS = tuple("0123456789")
GROUP = 3
"""Wire type of the start of a group."""

OUTPUTS = ("probabilities", "ood_score", "label", "verdict")
CONTENTS = {
    "FP32": "fp32_contents", "INT64": "int64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def new_decoder() -> InferDecoder:
    """Return a decoder for version 7 of the model ``digits``."""
    return InferDecoder("digits", "7", LABELS)


def set_parameter(parameters: Any, name: str, value: str | int) -> None:
    """Set a parameter of a message to a text or an integer."""
    if isinstance(value, str):
        parameters[name].string_param = value
    else:
        parameters[name].int64_param = value


def infer_request(
    pixels: bytes, shape: Iterable[int], *, raw: bool = True, outputs: Iterable[str] = (),
    parameters: Iterable[tuple[str, str | int]] = (), **fields: Any,
) -> oip.ModelInferRequest:  # fmt: skip
    """Return a request; an output such as ``probabilities:3`` asks for classes, and ``fields`` sets others."""
    message = oip.ModelInferRequest(**{"model_name": "digits", **fields})
    tensor = message.inputs.add(name="images", datatype="UINT8", shape=shape)
    if raw:
        message.raw_input_contents.append(pixels)
    else:
        tensor.contents.uint_contents.extend(pixels)
    for output in outputs:
        name, _, num_classes = output.partition(":")
        requested = message.outputs.add(name=name)
        if num_classes:
            set_parameter(requested.parameters, "classification", int(num_classes))
    for name, value in parameters:
        set_parameter(message.parameters, name, value)
    return message


def tensors(response: oip.ModelInferResponse) -> dict[str, np.ndarray]:
    """Return the outputs of a response as arrays, by the rules of the protocol; each has its elements in one place."""
    found = {}
    raw = response.raw_output_contents
    assert len(raw) in {0, len(response.outputs)}
    for number, output in enumerate(response.outputs):
        filled = [field.name for field, _ in output.contents.ListFields()]
        if raw:
            assert not filled
            elements = _elements(output.datatype, raw[number])
        else:
            assert filled == [CONTENTS[output.datatype]]
            elements = [*getattr(output.contents, filled[0])]
        array = np.array(elements, {"FP32": np.float32, "INT64": np.int64, "BYTES": object}[output.datatype])
        found[output.name] = array.reshape([*output.shape])
    return found


def _elements(datatype: str, raw: bytes) -> list[Any]:
    if datatype != "BYTES":
        return list(np.frombuffer(raw, {"FP32": "<f4", "INT64": "<i8"}[datatype]))
    elements = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        elements.append(raw[4 : 4 + size])
        raw = raw[4 + size :]
    return elements


def is_valid(message: oip.ModelInferRequest) -> bool:
    """Return whether docs/reference/protocol.md allows a message, independently of ``decode``."""
    if message.model_name != "digits" or message.model_version not in {"", "7"} or len(message.inputs) != 1:
        return False
    (tensor,) = message.inputs
    shape = (*tensor.shape, 1) if len(tensor.shape) == 3 else tuple(tensor.shape)
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    contents = message.raw_input_contents or [tensor.contents.uint_contents]
    names = [output.name for output in message.outputs]
    framing = message.parameters["framing"].string_param if "framing" in message.parameters else "mnist"
    ink = message.parameters["ink"].string_param if "ink" in message.parameters else "auto"
    return (
        len(message.id.encode()) <= MAX_ID_BYTES
        and (tensor.name, tensor.datatype, len(shape)) == ("images", "UINT8", 4)
        and min(shape) >= 1 and shape[3] in {1, 3, 4} and max(shape[1:3]) <= LIMITS.max_side
        and shape[0] <= LIMITS.max_images
        and not any(name in {"ink", "framing"} or name.startswith("shared_memory_") for name in tensor.parameters)
        and ink in {"auto", "light_on_dark", "dark_on_light"}
        and (framing == "mnist" or (framing == "as_is" and shape[1:3] == (28, 28)))
        and filled == ([] if message.raw_input_contents else ["uint_contents"])
        and [len(content) for content in contents] == [prod(shape)]
        and max(tensor.contents.uint_contents, default=0) < 256
        and len(set(names)) == len(names) and set(names) <= set(OUTPUTS)
        and all(_is_valid_output(output) for output in message.outputs)
    )  # fmt: skip


def _is_valid_output(output: Any) -> bool:
    if any(name.startswith("shared_memory_") for name in output.parameters):
        return False
    return "classification" not in output.parameters or (
        output.name == "probabilities" and output.parameters["classification"].int64_param >= 1
    )


def answers_of(request: Request) -> list[Answer]:
    """Return answers to the images of a request: label, verdict and probabilities differ from image to image."""
    answers: list[Answer] = []
    for number in range(request.num_images):
        probabilities = np.roll(np.linspace(0.0, 0.9, 10, dtype=np.float32), number)
        answers.append((number % 10, 0.9, Verdict(1 + number % 4), float(number), probabilities))
    return answers


def check_infer(body: bytes) -> None:
    """Decode with a new decoder and again with one that knows the head, and compare both with protobuf's parser.

    Messages that no library writes may be rejected: with groups, tags of more bytes than needed, or very many fields.
    """
    try:
        message = oip.ModelInferRequest.FromString(body)
    except DecodeError:
        message = None
    decoder = new_decoder()
    outcomes = [_outcome(decoder, body), _outcome(decoder, body)]
    assert outcomes[0] == outcomes[1]
    outcome = outcomes[0]
    if isinstance(outcome, type):
        assert message is None or not is_valid(message) or _is_unusual(message, len(body))
        return
    assert message is not None and is_valid(message)
    request, response = outcome
    shape = (*message.inputs[0].shape, 1)[:4]
    assert (request.num_images, request.height, request.width, request.channels) == shape
    raw = bool(message.raw_input_contents)
    assert request.pixels == (message.raw_input_contents[0] if raw else bytes(message.inputs[0].contents.uint_contents))
    assert request.framing in Framing and request.ink in Ink
    answered = oip.ModelInferResponse.FromString(response)
    assert (answered.model_name, answered.model_version, answered.id) == ("digits", "7", message.id)
    assert bool(answered.raw_output_contents) is raw
    arrays = tensors(answered)
    assert [*arrays] == [output.name for output in message.outputs] or (not message.outputs and (*arrays,) == OUTPUTS)
    assert all(len(array) == request.num_images for array in arrays.values())


def _is_unusual(message: oip.ModelInferRequest, num_bytes: int) -> bool:
    """Return whether no library writes this message in so many bytes."""
    lists = (message.parameters, message.inputs, message.outputs, message.raw_input_contents)
    unknown = [*UnknownFieldSet(message)]
    num_fields = 3 + sum(map(len, lists)) + len(unknown)
    groups = any(field.wire_type == GROUP for field in unknown)
    return groups or num_fields > MAX_FIELDS or len(message.SerializeToString()) != num_bytes


def _outcome(decoder: InferDecoder, body: bytes) -> tuple[Request, bytes] | type:
    """Return the request without its form and what the form encodes, or the class of the error."""
    try:
        request = decoder.decode(body, LIMITS)
    except (InvalidRequest, NotServed) as error:
        assert_helpful(error)
        return type(error)
    assert request.form is not None
    return request._replace(form=None), request.form.encode(answers_of(request))

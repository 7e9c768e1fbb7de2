"""Requests of ``ModelInfer``, the Open Inference Protocol, to requests of the pipeline.

    body ──split──▶ head, id, raw contents ──▶ Plan remembered for the head ──▶ Request
                                   │ new head, typed contents, or invalid
                                   └──▶ protobuf ──check──▶ Plan ──▶ Request

The requests of a client usually differ in their pixels and id only. The other fields are the head. Its meaning, a plan, is kept:
a request with a known head is decoded without protobuf. Protobuf never gets the raw contents, which are copied once. Called on
the worker's one thread.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError

from digitserve.errors import InvalidRequest, NotServed
from digitserve.open_inference import open_inference_pb2 as pb
from digitserve.protocol.codec import Form, Limits, Request, not_served, quoted, resolve_treatment
from digitserve.protocol.infer_parts import Parts, not_a_request, split
from digitserve.protocol.tensors import IdForm, Output, TensorForm, classification, outputs_of
from digitserve.types import Framing, Ink

INPUT = "images"
DATATYPE = "UINT8"

MAX_PLANS = 256
"""Maximum number of heads that are kept. A client uses a few; beyond the maximum, all are discarded."""

MAX_KNOWN_HEAD_BYTES = 1024
"""Maximum length of a head that is kept. A head with all outputs has 150 bytes."""

MAX_HEAD_BYTES = 1 << 20
"""Maximum length of a head, and so of typed contents: those of 1,000 images of MNIST. Parsing and converting them takes 50 ms, about 50
times as long as for raw contents, and delays all other requests."""

_CHANNELS = (1, 3, 4)
_FRAMINGS = (Framing.AS_IS, Framing.MNIST)
_PIXELS = 256

_SHARED_MEMORY = "shared_memory_"
"""Prefix of the parameters with which tensors are in shared memory."""

E = TypeVar("E", bound=Enum)


class _Plan(NamedTuple):
    """What a head means.

    Attributes:
        num_bytes: length of the pixels.
        fields: of the ``Request``, after its pixels and without its form.
        form: of the response to a request without an id.
    """

    num_bytes: int
    fields: tuple[int, int, int, int, Ink, Framing, int, bool]
    form: TensorForm

    def request(self, pixels: bytes, id_field: bytes) -> Request:
        """Return the request for these pixels."""
        form: Form = IdForm(self.form, id_field) if id_field else self.form
        return Request(pixels, *self.fields, form)


class InferDecoder:
    """Decodes requests for one model; owned by the handler of ``ModelInfer``."""

    def __init__(self, name: str, version: str, labels: tuple[str, ...]) -> None:
        """Decode for a model of this name and version, with the labels in the order of their indices."""
        self._name = name
        self._labels = labels
        self._outputs = outputs_of(labels)
        self._model_head = pb.ModelInferResponse(model_name=name, model_version=version).SerializeToString()
        self._plans: dict[bytes, _Plan] = {}

    def decode(self, body: bytes, limits: Limits) -> Request:
        """Parse and check a ``ModelInferRequest``.

        Args:
            body: the message.
            limits: of the worker, the same for each message.

        Raises:
            InvalidRequest: the message states what was received, and what is expected.
            NotServed: the request names another model or version.
        """
        parts = split(body)
        plan = self._plans.get(parts.head)
        if plan is not None and len(parts.raw) == 1:
            start, stop = parts.raw[0]
            if stop - start == plan.num_bytes:
                return plan.request(body[start:stop], parts.id_field)
        return self._decode_new(body, limits, parts)

    def _decode_new(self, body: bytes, limits: Limits, parts: Parts) -> Request:
        if len(parts.head) > MAX_HEAD_BYTES:
            raise InvalidRequest(
                f"got {len(parts.head)} bytes besides raw_input_contents; expected at most {MAX_HEAD_BYTES}: "
                "send the pixels as raw_input_contents"
            )
        message = _parse(body, parts.head)
        check_model(self._name, limits.model_version, message.model_name, message.model_version)
        tensor = _only_input(message.inputs)
        num_images, height, width, channels = shape = _shape(tensor, limits)
        _check_tensor_parameters(tensor.parameters)
        stated_ink, stated_framing = _treatment(message.parameters)
        ink, framing = resolve_treatment(stated_ink, stated_framing, height, width, limits.native_framing)
        pixels = _pixels(body, parts.raw, tensor, math.prod(shape))
        raw = bool(parts.raw)
        form = TensorForm(self._model_head, self._requested(message.outputs), num_images, raw=raw)
        plan = _Plan(len(pixels), (num_images, height, width, channels, ink, framing, 0, False), form)
        if raw and len(parts.head) <= MAX_KNOWN_HEAD_BYTES:
            self._remember(parts.head, plan)
        return plan.request(pixels, parts.id_field)

    def _remember(self, head: bytes, plan: _Plan) -> None:
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
        self._plans[head] = plan

    def _requested(self, requested: Sequence[Any]) -> list[Output]:
        """Return the outputs that a request asks for, in its order; all of them if it names none."""
        if not requested:
            return [*self._outputs.values()]
        found: dict[str, Output] = {}
        for tensor in requested:
            name = tensor.name
            output = self._outputs.get(name)
            if output is None:
                raise InvalidRequest(f"outputs: got {quoted(name)}; expected {_list(self._outputs)}")
            if name in found:
                raise InvalidRequest(f"outputs: got '{name}' more than once; expected each output once")
            _check_no_shared_memory(tensor.parameters, f"output '{name}'")
            num_classes = _num_classes(tensor.parameters, output)
            found[name] = output if num_classes is None else classification(output, self._labels, num_classes)
        return [*found.values()]


def _parse(body: bytes, head: bytes) -> pb.ModelInferRequest:
    try:
        message = pb.ModelInferRequest.FromString(head)
    except DecodeError:
        raise not_a_request(body) from None
    if message.id or message.raw_input_contents:
        raise not_a_request(body)  # their tags are encoded with more bytes than needed
    return message


def check_model(served_name: str, served_version: str, name: str, version: str) -> None:
    """Check which model a request names.

    Args:
        served_name: of the model being served.
        served_version: of the model being served.
        name: that the request states.
        version: that the request states; empty for the version being served.

    Raises:
        NotServed: it is another one.
    """
    if name != served_name:
        raise NotServed(f"model name: got {quoted(name)}; expected '{served_name}', the model that is served")
    if version not in {"", served_version}:
        raise not_served(version, served_version)


def _only_input(inputs: Sequence[Any]) -> Any:
    for tensor in inputs:
        if tensor.name != INPUT:
            raise InvalidRequest(f"inputs: got {quoted(tensor.name)}; expected '{INPUT}', the only input")
    if len(inputs) != 1:
        raise InvalidRequest(f"inputs: got {len(inputs)} tensors; expected '{INPUT}' once")
    return inputs[0]


def _shape(tensor: Any, limits: Limits) -> tuple[int, int, int, int]:
    """Return number, height, width and channels of the images."""
    if tensor.datatype != DATATYPE:
        raise InvalidRequest(f"{INPUT}: got datatype {quoted(tensor.datatype)}; expected {DATATYPE}")
    got = [*tensor.shape[:5]]
    expected = f"[images, height, width] or [images, height, width, channels] with {_list(_CHANNELS)} channels"
    match got:
        case [num_images, height, width]:
            channels = 1
        case [num_images, height, width, channels]:
            """All dimensions are stated."""
        case _:
            more = ", ..." * (len(tensor.shape) > len(got))
            raise InvalidRequest(f"{INPUT}: got shape [{', '.join(map(str, got))}{more}]; expected {expected}")
    if min(num_images, height, width) < 1 or channels not in _CHANNELS:
        raise InvalidRequest(f"{INPUT}: got shape {got}; expected {expected}, and at least 1 in each dimension")
    if max(height, width) > limits.max_side:
        raise limits.too_wide_error(height, width)
    if num_images > limits.max_images:
        raise limits.too_many_error(num_images)
    return num_images, height, width, channels


def _pixels(body: bytes, raw: Sequence[tuple[int, int]], tensor: Any, num_bytes: int) -> bytes:
    """Return the contents of the input, as many bytes as its shape says.

    Args:
        body: the whole message.
        raw: start and end of each raw content in it.
        tensor: the input.
        num_bytes: of its shape.
    """
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if raw and filled:
        raise InvalidRequest(
            f"{INPUT}: got raw_input_contents and {filled[0]}; expected one of them: remove the contents of the tensor"
        )
    if not raw and filled != ["uint_contents"]:
        got = _list(filled) if filled else "no contents"
        raise InvalidRequest(f"{INPUT}: got {got}; expected raw_input_contents, or uint_contents for {DATATYPE}")
    if len(raw) > 1:
        raise InvalidRequest(f"raw_input_contents: got {len(raw)}; expected 1, for the only input")
    contents: Collection[int] = body[slice(*raw[0])] if raw else tensor.contents.uint_contents
    if len(contents) != num_bytes:
        kind = "raw_input_contents" if raw else "uint_contents"
        raise InvalidRequest(
            f"{INPUT}: got {len(contents)} elements in {kind}; expected {num_bytes} for shape {[*tensor.shape]}, "
            "one byte each"
        )
    try:
        return bytes(contents)
    except ValueError:
        raise InvalidRequest(
            f"{INPUT}: got {max(contents)} in uint_contents; expected at most {_PIXELS - 1} for {DATATYPE}"
        ) from None


def _treatment(parameters: Mapping[str, Any]) -> tuple[Ink | None, Framing | None]:
    """Return ink and framing of the request's parameters. Parameters that other servers know are ignored."""
    return _choice(parameters, "ink", (*Ink,)), _choice(parameters, "framing", _FRAMINGS)


def _choice(parameters: Mapping[str, Any], name: str, choices: Sequence[E]) -> E | None:
    if name not in parameters:
        return None
    parameter = parameters[name]
    for choice in choices:
        if parameter.WhichOneof("parameter_choice") == "string_param" and parameter.string_param == choice.value:
            return choice
    expected = _list(choice.value for choice in choices)
    raise InvalidRequest(f"parameter '{name}': got {_value(parameter)}; expected string_param {expected}")


def _check_tensor_parameters(parameters: Mapping[str, Any]) -> None:
    """Reject parameters of the input that would change its meaning."""
    _check_no_shared_memory(parameters, f"input '{INPUT}'")
    for name in ("ink", "framing"):
        if name in parameters:
            raise InvalidRequest(f"input '{INPUT}': got parameter '{name}'; expected it in the request's parameters")


def _check_no_shared_memory(parameters: Mapping[str, Any], tensor: str) -> None:
    for name in parameters:
        if name.startswith(_SHARED_MEMORY):
            raise InvalidRequest(
                f"{tensor}: got parameter {quoted(name)}, but this server does not support shared memory; "
                "expected the contents in the message"
            )


def _num_classes(parameters: Mapping[str, Any], output: Output) -> int | None:
    """Return the number of classes that an output is reduced to; ``None`` for the output itself."""
    if "classification" not in parameters:
        return None
    if output.name != "probabilities":
        raise InvalidRequest(
            f"output '{output.name}': got parameter 'classification'; expected it for 'probabilities' only"
        )
    parameter = parameters["classification"]
    if parameter.WhichOneof("parameter_choice") != "int64_param" or parameter.int64_param < 1:
        raise InvalidRequest(f"parameter 'classification': got {_value(parameter)}; expected int64_param of at least 1")
    return int(parameter.int64_param)


def _value(parameter: Any) -> str:
    """Describe the value of a parameter for an error message."""
    kind = parameter.WhichOneof("parameter_choice")
    if kind is None:
        return "no value"
    value = getattr(parameter, kind)
    return f"{kind} {quoted(value) if isinstance(value, str) else value}"


def _list(values: Iterable[Any]) -> str:
    *first, last = [f"'{value}'" if isinstance(value, str) else str(value) for value in values]
    return f"{', '.join(first)} or {last}" if first else str(last)

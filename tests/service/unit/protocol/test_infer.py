"""Decoding of ``ModelInferRequest``."""

from collections.abc import Callable
from typing import Any

import pytest

from digitserve.errors import InvalidRequest, NotServed
from digitserve.open_inference import open_inference_pb2 as oip
from digitserve.protocol import infer
from digitserve.protocol.codec import Request, decode
from digitserve.protocol.infer import MAX_HEAD_BYTES, MAX_KNOWN_HEAD_BYTES, MAX_PLANS
from digitserve.protocol.infer_parts import MAX_FIELDS, MAX_ID_BYTES
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb
from support.decode_checks import LIMITS
from support.infer_checks import answers_of, infer_request, new_decoder, set_parameter
from support.protobuf import field, number_field

IMAGE = bytes(range(256)) * 3 + bytes(16)
FORMATS = {1: pb.PIXEL_FORMAT_GRAY8, 3: pb.PIXEL_FORMAT_RGB8, 4: pb.PIXEL_FORMAT_RGBA8}


def decode_message(message: oip.ModelInferRequest) -> Request:
    return new_decoder().decode(message.SerializeToString(), LIMITS)


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("shape", [(1, 28, 28, 1), (6, 28, 28), (2, 3, 5), (2, 3, 5, 3), (1, 40, 1, 4), (1, 28, 28, 3)])
@pytest.mark.parametrize("ink", [None, *Ink])
@pytest.mark.parametrize("framing", [None, Framing.MNIST, Framing.AS_IS])
def test_images_are_treated_as_those_of_classify(
    shape: tuple[int, ...], ink: Ink | None, framing: Framing | None, raw: bool
) -> None:
    """Any shape, ink and framing give the request that ``Classify`` gives for the same fields, or the same error."""
    num_images, height, width, channels = (*shape, 1)[:4]
    pixels = (IMAGE * 40)[: num_images * height * width * channels]
    stated = {"ink": ink, "framing": framing}
    message = infer_request(
        pixels, shape, raw=raw, parameters=[(name, value.value) for name, value in stated.items() if value]
    )
    classify = pb.ClassifyRequest(pixels=pixels, height=height, width=width, pixel_format=FORMATS[channels])
    if ink:
        classify.ink = pb.Ink.Value(f"INK_{ink.name}")
    if framing:
        classify.framing = pb.Framing.Value(f"FRAMING_{framing.name}")
    try:
        expected = decode(classify.SerializeToString(), LIMITS)
    except InvalidRequest as error:
        with pytest.raises(InvalidRequest, match="AS_IS") as raised:
            decode_message(message)
        assert str(raised.value) == str(error)
    else:
        assert decode_message(message)._replace(form=None) == expected


def change(message: oip.ModelInferRequest, **fields: Any) -> None:
    """Set fields of the input."""
    (tensor,) = message.inputs
    for name, value in fields.items():
        if name == "shape":
            del tensor.shape[:]
            tensor.shape.extend(value)
        else:
            setattr(tensor, name, value)


def append(message: oip.ModelInferRequest, **fields: Any) -> None:
    """Append to lists of the message."""
    for name, values in fields.items():
        getattr(message, name).extend(values)


SHAPES = "[images, height, width] or [images, height, width, channels] with 1, 3 or 4 channels"
NO_SHARED_MEMORY = "got parameter 'shared_memory_region', but this server does not support shared memory; expected the contents in the message"
Change = Callable[[oip.ModelInferRequest], object]
INVALID: dict[str, tuple[Change, str]] = {
    "no input": (lambda m: m.ClearField("inputs"), "inputs: got 0 tensors; expected 'images' once"),
    "unknown input": (
        lambda m: m.inputs.add(name="masks"), "inputs: got 'masks'; expected 'images', the only input",
    ),
    "input twice": (lambda m: m.inputs.append(m.inputs[0]), "inputs: got 2 tensors; expected 'images' once"),
    "datatype": (lambda m: change(m, datatype="FP32"), "images: got datatype 'FP32'; expected UINT8"),
    "flat": (
        lambda m: change(m, shape=[1, 784]),
        f"images: got shape [1, 784]; expected {SHAPES}",
    ),
    "many dimensions": (
        lambda m: change(m, shape=[1] * 100_000),
        f"images: got shape [1, 1, 1, 1, 1, ...]; expected {SHAPES}",
    ),
    "channels first": (
        lambda m: change(m, shape=[1, 1, 28, 28]),
        f"images: got shape [1, 1, 28, 28]; expected {SHAPES}, and at least 1 in each dimension",
    ),
    "no images": (
        lambda m: change(m, shape=[0, 28, 28, 1]),
        f"images: got shape [0, 28, 28, 1]; expected {SHAPES}, and at least 1 in each dimension",
    ),
    "negative": (lambda m: change(m, shape=[-1, 28, 28]), "images: got shape [-1, 28, 28]; expected [images"),
    "too wide": (
        lambda m: change(m, shape=[1, 41, 28]), "got 41x28 pixels; expected at most 40 on a side: reduce the image",
    ),
    "too many": (
        lambda m: change(m, shape=[7, 28, 28]),
        "got 7 images; expected at most 6: send them in several requests",
    ),
    "overflow": (lambda m: change(m, shape=[2**62, 1, 4]), "got 4611686018427387904 images; expected at most 6"),
    "raw length": (
        lambda m: change(m, shape=[2, 28, 28, 1]),
        "images: got 784 elements in raw_input_contents; expected 1568 for shape [2, 28, 28, 1], one byte each",
    ),
    "raw contents of another length": (
        lambda m: m.raw_input_contents.__setitem__(0, IMAGE[:-1]),
        "images: got 783 elements in raw_input_contents; expected 784 for shape [1, 28, 28, 1], one byte each",
    ),
    "no contents": (
        lambda m: m.ClearField("raw_input_contents"),
        "images: got no contents; expected raw_input_contents, or uint_contents for UINT8",
    ),
    "raw twice": (
        lambda m: append(m, raw_input_contents=[IMAGE]), "raw_input_contents: got 2; expected 1, for the only input",
    ),
    "raw and typed": (
        lambda m: m.inputs[0].contents.uint_contents.append(1),
        "images: got raw_input_contents and uint_contents; expected one of them: remove the contents of the tensor",
    ),
    "typed field": (
        lambda m: (m.ClearField("raw_input_contents"), m.inputs[0].contents.int_contents.append(1)),
        "images: got 'int_contents'; expected raw_input_contents, or uint_contents for UINT8",
    ),
    "typed length": (
        lambda m: (m.ClearField("raw_input_contents"), m.inputs[0].contents.uint_contents.append(1)),
        "images: got 1 elements in uint_contents; expected 784 for shape [1, 28, 28, 1], one byte each",
    ),
    "typed value": (
        lambda m: (m.ClearField("raw_input_contents"), m.inputs[0].contents.uint_contents.extend([256] * 784)),
        "images: got 256 in uint_contents; expected at most 255 for UINT8",
    ),
    "ink": (
        lambda m: set_parameter(m.parameters, "ink", "blue"),
        "parameter 'ink': got string_param 'blue'; expected string_param 'light_on_dark', 'dark_on_light' or 'auto'",
    ),
    "framing": (
        lambda m: set_parameter(m.parameters, "framing", 1),
        "parameter 'framing': got int64_param 1; expected string_param 'as_is' or 'mnist'",
    ),
    "no value": (
        lambda m: m.parameters["ink"].SetInParent(),
        "parameter 'ink': got no value; expected string_param 'light_on_dark', 'dark_on_light' or 'auto'",
    ),
    "ink of the input": (
        lambda m: set_parameter(m.inputs[0].parameters, "ink", "auto"),
        "input 'images': got parameter 'ink'; expected it in the request's parameters",
    ),
    "input in shared memory": (
        lambda m: set_parameter(m.inputs[0].parameters, "shared_memory_region", "here"),
        f"input 'images': {NO_SHARED_MEMORY}",
    ),
    "output in shared memory": (
        lambda m: set_parameter(m.outputs.add(name="label").parameters, "shared_memory_region", "here"),
        f"output 'label': {NO_SHARED_MEMORY}",
    ),
    "unknown output": (
        lambda m: m.outputs.add(name="logits"),
        "outputs: got 'logits'; expected 'probabilities', 'ood_score', 'label' or 'verdict'",
    ),
    "output twice": (
        lambda m: append(m, outputs=[m.outputs.add(name="label")]),
        "outputs: got 'label' more than once; expected each output once",
    ),
    "no classes": (
        lambda m: set_parameter(m.outputs.add(name="probabilities").parameters, "classification", 0),
        "parameter 'classification': got int64_param 0; expected int64_param of at least 1",
    ),
    "classes as text": (
        lambda m: set_parameter(m.outputs.add(name="probabilities").parameters, "classification", "3"),
        "parameter 'classification': got string_param '3'; expected int64_param of at least 1",
    ),
    "classes of another output": (
        lambda m: set_parameter(m.outputs.add(name="label").parameters, "classification", 3),
        "output 'label': got parameter 'classification'; expected it for 'probabilities' only",
    ),
    "long id": (lambda m: setattr(m, "id", "é" * 513), f"id: got 1026 bytes; expected at most {MAX_ID_BYTES}"),
}  # fmt: skip


@pytest.mark.parametrize("case", INVALID)
def test_an_invalid_request_is_rejected_with_what_was_got_and_expected(case: str) -> None:
    """Each fault has a message that states what was received and what is expected, before and after a valid request."""
    invalidate, text = INVALID[case]
    decoder, message = new_decoder(), infer_request(IMAGE, (1, 28, 28, 1))
    valid = message.SerializeToString()
    invalidate(message)
    for _ in range(2):
        with pytest.raises(InvalidRequest) as raised:
            decoder.decode(message.SerializeToString(), LIMITS)
        assert str(raised.value).startswith(text)
        assert decoder.decode(valid, LIMITS).num_images == 1


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model_name": "mnist"}, "model name: got 'mnist'; expected 'digits', the model that is served"),
        ({"model_name": ""}, "model name: got ''; expected 'digits', the model that is served"),
        ({"model_version": "8"}, "model_version: got '8'; expected '7', the version that is served"),
        ({"model_name": "x" * 5000}, f"model name: got '{'x' * 64}...'; expected 'digits'"),
    ],
)
def test_another_model_is_not_found(fields: dict[str, str], text: str) -> None:
    """A name or version that is not served is NOT_FOUND; the message names the one that is served."""
    with pytest.raises(NotServed) as raised:
        decode_message(infer_request(IMAGE, (1, 28, 28, 1), **fields))
    assert str(raised.value).startswith(text)


def test_the_served_version_may_be_named() -> None:
    """An empty version means the served one, which may also be named."""
    assert decode_message(infer_request(IMAGE, (1, 28, 28, 1), model_version="7")).num_images == 1


def test_parameters_of_other_servers_are_ignored() -> None:
    """Triton's client sends parameters for priority, timeout and sequences, which have no meaning here."""
    parameters = [("priority", 3), ("timeout", 1000), ("sequence_id", "a"), ("content_type", "np")]
    message = infer_request(IMAGE, (1, 28, 28, 1), parameters=parameters)
    set_parameter(message.inputs[0].parameters, "content_type", "np")
    assert decode_message(message).num_images == 1


def test_known_requests_are_decoded_without_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that differ from an earlier one only in pixels and id are decoded without protobuf, whatever their outputs."""
    decoder = new_decoder()
    kinds = [((1, 28, 28, 1), ()), ((2, 28, 28), ()), ((1, 3, 5, 4), ("verdict", "probabilities:3"))]
    first = [infer_request(b"a" * size, shape, outputs=outputs) for (shape, outputs), size in zip(kinds, (784, 1568, 60), strict=True)]  # fmt: skip
    for message in first:
        decoder.decode(message.SerializeToString(), LIMITS)
    monkeypatch.setattr(infer, "_parse", None)

    for message in first:
        size = len(message.raw_input_contents[0])
        message.raw_input_contents[0] = b"b" * size
        for request_id in ("", "6ba7b810-9dad-11d1-80b4-00c04fd430c8", "é"):
            message.id = request_id
            request = decoder.decode(message.SerializeToString(), LIMITS)
            assert request.pixels == b"b" * size
            assert request.form is not None
            answered = oip.ModelInferResponse.FromString(request.form.encode(answers_of(request)))
            assert answered.id == request_id


def test_fields_may_come_in_any_order() -> None:
    """Fields in another order, also with an earlier id that the later one replaces, are the same request."""
    message = infer_request(IMAGE, (1, 28, 28, 1), id="second")
    expected = decode_message(message)._replace(form=None)
    message.ClearField("raw_input_contents")
    decoder = new_decoder()
    for _ in range(2):
        request = decoder.decode(field(7, IMAGE) + field(3, b"first") + message.SerializeToString(), LIMITS)
        assert request._replace(form=None) == expected
        assert request.form is not None
        assert oip.ModelInferResponse.FromString(request.form.encode(answers_of(request))).id == "second"


def test_the_memory_for_known_requests_is_bounded() -> None:
    """Heads that always differ, and long heads, do not increase the memory of the decoder without limit."""
    decoder = new_decoder()
    for number in range(3 * MAX_PLANS):
        parameters = [("timeout", number + 1)]
        decoder.decode(infer_request(IMAGE, (1, 28, 28, 1), parameters=parameters).SerializeToString(), LIMITS)
        assert len(decoder._plans) <= MAX_PLANS
    known = len(decoder._plans)
    long = infer_request(IMAGE, (1, 28, 28, 1), parameters=[("note", "x" * MAX_KNOWN_HEAD_BYTES)])
    typed = infer_request(IMAGE[:15], (1, 3, 5), raw=False)
    for message in (long, typed):
        decoder.decode(message.SerializeToString(), LIMITS)
    assert len(decoder._plans) == known


@pytest.mark.parametrize(
    "unknown",
    [
        number_field(8, 1), number_field(200, 2**63), field(8, b"new"), field(2000, b"new"), b"\x41" + bytes(8),
        b"\x45" + bytes(4),
    ],
)  # fmt: skip
def test_unknown_fields_are_ignored(unknown: bytes) -> None:
    """Fields of later versions of the protocol, of any kind and in any place, are skipped, as protobuf does."""
    message = infer_request(IMAGE, (1, 28, 28, 1), id="a")
    decoder = new_decoder()
    expected = decoder.decode(message.SerializeToString(), LIMITS)._replace(form=None)
    for body in (unknown + message.SerializeToString(), message.SerializeToString() + unknown):
        for _ in range(2):
            assert decoder.decode(body, LIMITS)._replace(form=None) == expected


NOT_MESSAGES = {
    "cut": infer_request(IMAGE, (1, 28, 28, 1)).SerializeToString()[:-1],
    "a length without end": b"\x3a" + b"\xff" * 11,
    "a group": b"\x43\x44",
    "a long tag of the id": b"\x9a\x00\x01a",
    "a long tag of raw contents": b"\xba\x00\x01a",
    "an inner message": field(5, b"\xff"),
}


@pytest.mark.parametrize("case", NOT_MESSAGES)
def test_bytes_that_are_not_a_message_are_rejected(case: str) -> None:
    """Bytes that no library writes are rejected as such."""
    with pytest.raises(InvalidRequest, match="not a ModelInferRequest; expected protobuf"):
        new_decoder().decode(NOT_MESSAGES[case], LIMITS)


@pytest.mark.parametrize("known", [True, False])
def test_an_id_must_be_text(known: bool) -> None:
    """An id that is not UTF-8 is rejected, also when it is not parsed: clients could not read the response."""
    decoder, body = new_decoder(), infer_request(IMAGE, (1, 28, 28, 1)).SerializeToString()
    if known:
        decoder.decode(body, LIMITS)
    with pytest.raises(InvalidRequest, match="id: got bytes that are not UTF-8; expected text"):
        decoder.decode(field(3, b"\xff") + body, LIMITS)


def test_typed_contents_are_limited() -> None:
    """Typed contents take 50 times as long to decode as raw ones, so those of large requests are not parsed."""
    message = infer_request(bytes(2 * MAX_HEAD_BYTES), (1, 1, 1), raw=False)
    with pytest.raises(
        InvalidRequest, match=f"expected at most {MAX_HEAD_BYTES}: send the pixels as raw_input_contents"
    ):
        decode_message(message)


def test_the_number_of_fields_is_limited() -> None:
    """A message of millions of fields is rejected after the first ones; the largest that a client sends has a tenth of them."""
    parameters = [(f"name {number}", number) for number in range(MAX_FIELDS - 3)]
    most = infer_request(IMAGE, (1, 28, 28, 1), parameters=parameters).SerializeToString()
    assert new_decoder().decode(most, LIMITS).num_images == 1
    for more in (most + field(1, b"digits"), field(1, b"") * 4_000_000):
        with pytest.raises(InvalidRequest, match=f"got a message of more than {MAX_FIELDS} fields"):
            new_decoder().decode(more, LIMITS)


def test_hostile_lengths_take_no_longer_than_parsing() -> None:
    """A varint of millions of bytes is not decoded, which would take hours: the message is rejected."""
    with pytest.raises(InvalidRequest, match="not a ModelInferRequest"):
        new_decoder().decode(b"\x3a" + b"\xff" * 4_000_000, LIMITS)

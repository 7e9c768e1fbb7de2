"""Decoding of requests, with the message of each rejection, and messages of streams."""

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.rpc import status_pb2
from hypothesis import given
from hypothesis import strategies as st

from digitserve.errors import InvalidRequest, NotServed
from digitserve.protocol.codec import (
    IMAGE_BYTES,
    MAX_LAYOUTS,
    Limits,
    Request,
    decode,
    decode_stream_request,
    encode_stream_error,
    encode_stream_response,
    varint,
)  # fmt: skip
from digitserve.types import Framing, Ink, native_framing
from digitserve.v1 import digits_pb2 as pb

LIMITS = Limits(model_version="7", max_side=40, max_images=6, max_request_bytes=1 << 20)


def pixels(num_bytes: int, seed: int = 0) -> bytes:
    """Return random bytes."""
    return np.random.default_rng(seed).integers(0, 256, num_bytes, np.uint8).tobytes()


def decode_fields(**fields: object) -> Request:
    """Decode a request with these fields."""
    return decode(pb.ClassifyRequest(**fields).SerializeToString(), LIMITS)


def rejection(**fields: object) -> str:
    """Return the message with which these fields are rejected."""
    with pytest.raises(InvalidRequest) as caught:
        decode_fields(**fields)
    return str(caught.value)


def test_a_default_image_is_decoded_byte_for_byte() -> None:
    """28x28 grey pixels with every option at its default are decoded unchanged; ``prepare`` decides on their framing."""
    body = pixels(IMAGE_BYTES)
    assert decode_fields(pixels=body) == Request(body, 1, 28, 28, 1, Ink.AUTO, Framing.AUTO, 0, False)


def test_images_of_other_things_than_digits_are_used_as_they_are() -> None:
    """A model whose labels are not digits gets 28x28 images unchanged; they need not look like MNIST's."""
    clothes = replace(LIMITS, native_framing=native_framing(("shirt", "coat")))
    for body in (pb.ClassifyRequest(pixels=pixels(784)), pb.ClassifyRequest(pixels=pixels(784), top_k=1)):
        request = decode(body.SerializeToString(), clothes)
        assert (request.ink, request.framing) == (Ink.LIGHT_ON_DARK, Framing.AS_IS)
    assert native_framing(tuple("0123456789")) is Framing.AUTO


def test_many_default_images_are_decoded_byte_for_byte() -> None:
    """The same holds for several images in one request."""
    body = pixels(3 * IMAGE_BYTES)
    assert decode_fields(pixels=body) == Request(body, 3, 28, 28, 1, Ink.AUTO, Framing.AUTO, 0, False)


FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "height": st.sampled_from([0, 14, 28]), "width": st.sampled_from([0, 28, 56]), "num_images": st.sampled_from([0, 1, 2]),
    "pixel_format": st.sampled_from([0, 1]), "ink": st.integers(0, 3), "framing": st.integers(0, 2),
    "top_k": st.integers(0, 3), "model_version": st.sampled_from(["", "7"]), "explain": st.booleans(),
}  # fmt: skip
NUM_BYTES = st.sampled_from([0, IMAGE_BYTES - 2, IMAGE_BYTES, 2 * IMAGE_BYTES])
"""Of pixels. Two bytes less than an image and ``top_k`` are as long as an image alone."""

MORE = st.sampled_from([b"", b"\x0a\x00", b"\x0a\x02ab", b"\x40\x03", b"\xa8\x1f\x01", b"\x0a", b"\0", b"a" * 200])
"""What may follow a message: nothing, other pixels, another ``top_k``, an unknown field, or bytes that are no field."""


def outcome(decoder: Callable[[bytes, Limits], Request], body: bytes, limits: Limits) -> Request | str:
    """Return the request, or the error."""
    try:
        return decoder(body, limits)
    except InvalidRequest as error:
        return str(error)


@given(
    st.lists(st.tuples(st.fixed_dictionaries({}, optional=FIELDS), NUM_BYTES, MORE, st.integers()), min_size=2),
    st.booleans(),
)
def test_known_layouts_decode_as_protobuf_does(
    messages: list[tuple[dict[str, Any], int, bytes, int]], on_stream: bool
) -> None:
    """A message is decoded as if no other one had come before it, and so are others with the same layout."""
    used = replace(LIMITS)
    for fields, num_bytes, more, seed in messages:
        for image_seed in (seed, seed + 1, seed):
            image = random.Random(image_seed).randbytes(num_bytes)
            body = pb.ClassifyRequest(pixels=image, **fields).SerializeToString() + more
            decoder = decode
            if on_stream:
                body = b"\x0a" + varint(len(body)) + body
                decoder = decode_stream_request
            assert outcome(decoder, body, used) == outcome(decoder, body, replace(LIMITS))
    assert len(used.layouts) + len(used.stream_layouts) <= MAX_LAYOUTS


def test_the_second_message_of_a_layout_is_decoded_without_protobuf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that differ from an earlier one only in their pixels are recognised; those with other fields are not."""
    limits = replace(LIMITS)
    messages = [
        pb.ClassifyRequest(pixels=pixels(3 * IMAGE_BYTES)[start:] + bytes(start), top_k=top_k)
        for start in range(2)
        for top_k in (1, 2)
    ]
    bodies = [message.SerializeToString() for message in messages]
    first = [decode(body, limits) for body in bodies[:2]]
    on_stream = [pb.ClassifyStreamRequest(request=message).SerializeToString() for message in messages]
    assert [decode_stream_request(body, limits) for body in on_stream[:2]] == first
    monkeypatch.setattr("digitserve.protocol.codec.parse", lambda *_: 1 // 0)
    second = [decode(body, limits) for body in bodies[2:]]
    assert [request.top_k for request in second] == [1, 2]
    assert [request.pixels for request in second] == [message.pixels for message in messages[2:]]
    assert [decode_stream_request(body, limits) for body in on_stream[2:]] == second
    with pytest.raises(ZeroDivisionError):
        decode(pb.ClassifyRequest(pixels=pixels(3 * IMAGE_BYTES), top_k=3).SerializeToString(), limits)


def test_pixels_that_are_stated_twice_are_no_layout() -> None:
    """The last ones count, as in protobuf, also if the first message of the layout had the same pixels twice."""
    limits, size = replace(LIMITS), pb.ClassifyRequest(height=1, width=2).SerializeToString()
    last = b"\x0a\x02ab"
    for first in (last, b"\x0a\x02xy"):
        assert decode(first + size + last, limits).pixels == b"ab"


def test_few_layouts_are_kept() -> None:
    """Clients that send many sizes and numbers of classes occupy a limited amount of memory."""
    limits = replace(LIMITS, max_images=1000)
    for num_images in range(1, 200):
        for top_k in range(1, 10):
            decode(pb.ClassifyRequest(pixels=bytes(num_images * IMAGE_BYTES), top_k=top_k).SerializeToString(), limits)
        assert len(limits.layouts) <= MAX_LAYOUTS
    assert max(map(len, limits.layouts.values())) < 9


@given(st.integers(1, 5), st.booleans())
def test_a_stream_accepts_the_same_requests(num_images: int, explicit_size: bool) -> None:
    """A request on a stream is decoded as the same request in a unary call, on the fast path too."""
    message = pb.ClassifyRequest(
        pixels=pixels(num_images * IMAGE_BYTES), height=28 * explicit_size, width=28 * explicit_size
    )

    on_stream = decode_stream_request(pb.ClassifyStreamRequest(request=message).SerializeToString(), LIMITS)

    assert on_stream == decode(message.SerializeToString(), LIMITS)


def test_an_empty_message_on_a_stream_is_rejected_as_an_empty_request() -> None:
    """Without a request there are no pixels, and the message states this; random bytes are not a ClassifyStreamRequest."""
    with pytest.raises(InvalidRequest, match="pixels: got none"):
        decode_stream_request(b"", LIMITS)
    with pytest.raises(InvalidRequest, match="3 bytes that are not a ClassifyStreamRequest"):
        decode_stream_request(b"\xff\xff\xff", LIMITS)


@given(st.binary(max_size=70_000))
def test_stream_responses_are_encoded_as_protobuf_does(version: bytes) -> None:
    """The wrapping without parsing gives the bytes of protobuf, for lengths of one, two and three bytes."""
    response = pb.ClassifyResponse(model_version=version.hex())
    body = response.SerializeToString()

    assert encode_stream_response(body) == pb.ClassifyStreamResponse(response=response).SerializeToString()


def test_stream_errors_are_encoded() -> None:
    """An error takes the place of the response."""
    status = status_pb2.Status(code=3, message="no")

    assert pb.ClassifyStreamResponse.FromString(encode_stream_error(status)).error == status


@pytest.mark.parametrize(
    "fields",
    [
        {"height": 28, "width": 28},
        {"height": 28, "width": 28, "num_images": 1},
        {"height": 28, "width": 28, "num_images": 1, "pixel_format": pb.PIXEL_FORMAT_GRAY8},
        {"num_images": 1},
        {"pixel_format": pb.PIXEL_FORMAT_GRAY8},
        {"ink": pb.INK_AUTO},
        {"model_version": "7"},
    ],
)
def test_an_explicit_default_changes_nothing(fields: dict[str, object]) -> None:
    """The fast path and the path with all checks give the same request, in a unary call and on a stream."""
    body = pixels(IMAGE_BYTES)
    message = pb.ClassifyRequest(pixels=body, **fields)
    expected = decode_fields(pixels=body)

    assert decode(message.SerializeToString(), LIMITS) == expected
    assert decode_stream_request(pb.ClassifyStreamRequest(request=message).SerializeToString(), LIMITS) == expected


def test_an_unknown_field_of_a_newer_client_is_ignored() -> None:
    """As protobuf requires, fields that this version does not know have no effect."""
    body = pb.ClassifyRequest(pixels=pixels(IMAGE_BYTES)).SerializeToString()
    assert decode(body + bytes([99 << 3 & 127 | 128, 6, 1]), LIMITS) == decode(body, LIMITS)


def test_an_empty_message_is_rejected() -> None:
    """A message of no bytes is a request without pixels, and is rejected as one."""
    with pytest.raises(InvalidRequest, match="pixels: got none; expected 784 bytes"):
        decode(b"", LIMITS)


def test_bytes_that_are_not_a_message_are_rejected() -> None:
    """Bytes that are not protobuf are the caller's error, and the message names their number."""
    with pytest.raises(InvalidRequest, match="got 3 bytes that are not a ClassifyRequest"):
        decode(b"\xff\xff\xff", LIMITS)


def test_empty_pixels_are_rejected() -> None:
    """Without pixels the message states how many bytes an image has."""
    assert rejection() == "pixels: got none; expected 784 bytes for each image of 28x28 GRAY8"
    assert decode_fields(pixels=b"\0" * 75, height=5, width=5, pixel_format=pb.PIXEL_FORMAT_RGB8).num_images == 1


def test_a_wrong_number_of_bytes_names_the_image() -> None:
    """The message states which image is incomplete, how many bytes it has, and how many a complete one has."""
    text = rejection(pixels=bytes(2 * 300 + 7), height=10, width=10, pixel_format=pb.PIXEL_FORMAT_RGB8)
    assert text == "pixels: got 607 bytes, so image 2 has only 7; expected 300 bytes for each image of 10x10 RGB8"


@pytest.mark.parametrize(("height", "width"), [(0, 28), (28, 0)])
def test_one_side_alone_is_rejected(height: int, width: int) -> None:
    """Exactly one side of 0 is an error, not a default."""
    assert rejection(pixels=bytes(784), height=height, width=width) == (
        f"got height {height} and width {width}; expected both, or neither for 28x28"
    )


@pytest.mark.parametrize(("height", "width"), [(41, 1), (1, 41), (2**32 - 1, 2**32 - 1)])
def test_huge_sides_are_rejected(height: int, width: int) -> None:
    """A side over the limit is rejected before the pixels are looked at."""
    assert rejection(pixels=b"x", height=height, width=width) == (
        f"got {height}x{width} pixels; expected at most 40 on a side: reduce the image"
    )


@pytest.mark.parametrize(
    ("field", "name"), [("pixel_format", "PIXEL_FORMAT_RGB8"), ("ink", "INK_AUTO"), ("framing", "FRAMING_MNIST")]
)
@pytest.mark.parametrize("value", [-1, 9, 2**31 - 1])
def test_an_unknown_enum_value_is_rejected_with_the_known_ones(field: str, name: str, value: int) -> None:
    """The message has the number that was got and the names that are known."""
    text = rejection(**{"pixels": bytes(784), "num_images": 1, field: value})
    assert text.startswith(f"{field}: got {value}; expected one of ")
    assert name in text


def test_a_contradicting_num_images_is_rejected() -> None:
    """The message has the number that was got and the number of images in pixels."""
    assert rejection(pixels=bytes(1568), num_images=3).startswith(
        "num_images: got 3; expected 2, from the length of pixels (784 bytes"
    )


def test_too_many_images_are_rejected() -> None:
    """More images than the queue can hold are rejected, and the message states what to do."""
    assert rejection(pixels=bytes(7 * 784)) == "got 7 images; expected at most 6: send them in several requests"


def test_as_is_at_another_size_is_rejected() -> None:
    """FRAMING_AS_IS is only allowed at the model's size."""
    assert "got AS_IS for images of 10x12; expected images of 28x28" in rejection(
        pixels=bytes(120), height=10, width=12, framing=pb.FRAMING_AS_IS
    )


def test_another_model_version_is_not_served() -> None:
    """A version that is not served has its own error class, which becomes NOT_FOUND."""
    with pytest.raises(NotServed, match="model_version: got '8'; expected '7'"):
        decode_fields(pixels=bytes(784), model_version="8")


def test_a_rejection_quotes_only_the_beginning_of_a_long_text() -> None:
    """Status messages travel as headers of a few kilobytes: a long version name must not make the reply unsendable."""
    with pytest.raises(NotServed) as caught:
        decode_fields(pixels=bytes(784), model_version="8" * 100_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"height": 28, "width": 28}, (Ink.AUTO, Framing.AUTO)),
        ({"framing": pb.FRAMING_AS_IS}, (Ink.LIGHT_ON_DARK, Framing.AS_IS)),
        ({"framing": pb.FRAMING_AS_IS, "ink": pb.INK_AUTO}, (Ink.AUTO, Framing.AS_IS)),
        ({"ink": pb.INK_LIGHT_ON_DARK}, (Ink.LIGHT_ON_DARK, Framing.AS_IS)),
        ({"height": 28, "width": 28, "framing": pb.FRAMING_MNIST}, (Ink.AUTO, Framing.MNIST)),
        ({"height": 14, "width": 56}, (Ink.AUTO, Framing.MNIST)),
        ({"height": 14, "width": 56, "ink": pb.INK_DARK_ON_LIGHT}, (Ink.DARK_ON_LIGHT, Framing.MNIST)),
        ({"ink": pb.INK_DARK_ON_LIGHT}, (Ink.DARK_ON_LIGHT, Framing.AS_IS)),
        ({"ink": pb.INK_AUTO}, (Ink.AUTO, Framing.AUTO)),
    ],
)
def test_defaults_of_ink_and_framing_are_those_of_the_protocol(
    fields: dict[str, object], expected: tuple[Ink, Framing]
) -> None:
    """An omitted field means what the comments of the proto say."""
    wide = Limits("7", max_side=56, max_images=6, max_request_bytes=1 << 20)
    request = decode(pb.ClassifyRequest(pixels=pixels(784), **fields).SerializeToString(), wide)
    assert (request.ink, request.framing) == expected


def test_a_request_may_ask_how_its_images_were_prepared() -> None:
    """``explain`` is decoded; it changes nothing else."""
    body = pixels(IMAGE_BYTES)
    assert decode_fields(pixels=body, explain=True) == decode_fields(pixels=body)._replace(explain=True)


def test_a_message_that_is_too_large_is_rejected_with_advice() -> None:
    """The message says what is accepted and how to make an image fit; an image of that size fits in every format."""
    limits = Limits("7", max_side=4096, max_images=6, max_request_bytes=(16 << 20) + (64 << 10))
    message = str(limits.too_large_error())
    assert message == (
        "got a message of more than 16842752 bytes; expected at most that: send several images in several requests; "
        "reduce the image to at most 2051 pixels a side or send it as GRAY8"
    )
    assert limits.max_request_bytes > 4 * 2051**2

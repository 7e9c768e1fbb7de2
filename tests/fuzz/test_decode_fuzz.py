"""For any bytes, decoding returns a consistent request or raises an error that helps the caller, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.batching.prepare import prepare
from digitserve.errors import InvalidRequest, NotServed
from digitserve.protocol.codec import IMAGE_BYTES, Limits, Request, decode
from digitserve.types import Framing, Ink
from digitserve.v1 import digits_pb2 as pb

LIMITS = Limits(model_version="7", max_side=40, max_images=6, max_request_bytes=1 << 20)
SIDES = st.one_of(st.just(0), st.just(28), st.integers(1, 41), st.integers(0, 2**32 - 1))
ENUMS = st.one_of(st.integers(0, 3), st.integers(-2, 6), st.integers(-(2**31), 2**31 - 1))
COUNTS = st.one_of(st.just(0), st.integers(0, 8), st.integers(0, 2**32 - 1))
EXPECTATIONS = ("expected", "split it", "use FRAMING_MNIST")


def assert_helpful(error: Exception) -> None:
    """The message states what was got and what was expected, and is short enough for a header."""
    text = str(error)
    assert "got" in text
    assert any(word in text for word in EXPECTATIONS)
    assert len(text) < 1000


def assert_consistent(request: Request, message: pb.ClassifyRequest) -> None:
    """Check a request against its message, by the comments of the proto and independently of ``decode``."""
    height, width = message.height or 28, message.width or 28
    channels = {0: 1, 1: 1, 2: 3, 3: 4}[message.pixel_format]
    assert (request.height, request.width, request.channels) == (height, width, channels)
    assert 1 <= request.num_images <= LIMITS.max_images
    assert len(request.pixels) == request.num_images * height * width * channels
    assert message.num_images in {0, request.num_images}
    assert message.model_version in {"", "7"}
    assert max(height, width) <= LIMITS.max_side
    fits = (height, width) == (28, 28)
    as_is = message.framing == pb.FRAMING_AS_IS or (message.framing == pb.FRAMING_UNSPECIFIED and fits)
    assert request.framing is (Framing.AS_IS if as_is else Framing.MNIST)
    assert fits or not as_is
    default_ink = Ink.LIGHT_ON_DARK if as_is else Ink.AUTO
    assert request.ink is [default_ink, Ink.LIGHT_ON_DARK, Ink.DARK_ON_LIGHT, Ink.AUTO][message.ink]
    assert request.top_k == message.top_k
    prepared = prepare([(request, 0, request.num_images)])
    assert prepared.images.shape == (request.num_images, 28, 28, 1)
    assert prepared.blank.shape == prepared.several.shape == (request.num_images,)
    if as_is and channels == 1 and request.ink is Ink.LIGHT_ON_DARK:
        assert prepared.images.tobytes() == request.pixels


def check(body: bytes) -> None:
    """Decode, and check either outcome."""
    try:
        request = decode(body, LIMITS)
    except (InvalidRequest, NotServed) as error:
        assert_helpful(error)
    else:
        assert_consistent(request, pb.ClassifyRequest.FromString(body))


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    """Draw requests, most of them nearly valid."""
    height, width = draw(st.one_of(st.sampled_from([(0, 0), (28, 28), (3, 5), (1, 40)]), st.tuples(SIDES, SIDES)))
    pixel_format = draw(ENUMS)
    image_bytes = min(height or 28, 64) * min(width or 28, 64) * {2: 3, 3: 4}.get(pixel_format, 1)
    whole = image_bytes * draw(st.integers(0, 3 if image_bytes > 2000 else 7))
    num_bytes = max(0, whole + draw(st.sampled_from([0, 0, 0, -1, 1, 7])))
    fill = draw(st.binary(min_size=1, max_size=64))
    message = pb.ClassifyRequest(
        pixels=(fill * (num_bytes // len(fill) + 1))[:num_bytes],
        height=height, width=width, pixel_format=pixel_format,
        num_images=draw(COUNTS), ink=draw(ENUMS), framing=draw(ENUMS), top_k=draw(COUNTS),
        model_version=draw(st.one_of(st.sampled_from(["", "", "7"]), st.text(max_size=20), st.just("9" * 5000))),
    )  # fmt: skip
    return message.SerializeToString()


@given(requests())
@settings(max_examples=2500)
def test_any_fields_give_a_consistent_request_or_a_helpful_error(body: bytes) -> None:
    """For any values of the fields, the outcome is a request that agrees with the proto, or what was got and expected."""
    check(body)


@given(st.binary(max_size=900))
@settings(max_examples=1000)
def test_any_bytes_give_a_request_or_a_helpful_error(body: bytes) -> None:
    """Random bytes raise no other exception than a rejection."""
    check(body)


@given(requests(), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6), st.integers(0, 64))
@settings(max_examples=1500)
def test_damaged_messages_give_a_request_or_a_helpful_error(
    body: bytes, damages: list[tuple[int, int]], cut: int
) -> None:
    """Messages with changed or missing bytes raise no other exception than a rejection either."""
    damaged = bytearray(body[: max(0, len(body) - cut)])
    for position, value in damages:
        if damaged:
            damaged[position % len(damaged)] = value
    check(bytes(damaged))


@pytest.mark.parametrize("length", [IMAGE_BYTES, IMAGE_BYTES + 3])
@given(prefix=st.binary(max_size=12))
@settings(max_examples=500)
def test_the_fast_path_does_not_decode_other_messages_of_its_length(length: int, prefix: bytes) -> None:
    """Only the most common request is decoded on the fast path; other messages of its length get all checks."""
    check((prefix + bytes([0x0A, 0x90, 0x06]) + bytes(length))[:length])

"""For any bytes, decoding returns a consistent request or raises an error that helps the caller, and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from digitserve.protocol.codec import IMAGE_BYTES
from digitserve.v1 import digits_pb2 as pb
from support.decode_checks import check_decode

SIDES = st.one_of(st.just(0), st.just(28), st.integers(1, 41), st.integers(0, 2**32 - 1))
ENUMS = st.one_of(st.integers(0, 3), st.integers(-2, 6), st.integers(-(2**31), 2**31 - 1))
COUNTS = st.one_of(st.just(0), st.integers(0, 8), st.integers(0, 2**32 - 1))


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
@settings(max_examples=800)
def test_any_fields_give_a_consistent_request_or_a_helpful_error(body: bytes) -> None:
    """For any values of the fields, the outcome is a request that agrees with the proto, or what was got and expected."""
    check_decode(body)


@given(st.binary(max_size=900))
@settings(max_examples=1000)
def test_any_bytes_give_a_request_or_a_helpful_error(body: bytes) -> None:
    """Random bytes raise no other exception than a rejection."""
    check_decode(body)


@given(requests(), st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), max_size=6), st.integers(0, 64))
@settings(max_examples=500)
def test_damaged_messages_give_a_request_or_a_helpful_error(
    body: bytes, damages: list[tuple[int, int]], cut: int
) -> None:
    """Messages with changed or missing bytes raise no other exception than a rejection either."""
    damaged = bytearray(body[: max(0, len(body) - cut)])
    for position, value in damages:
        if damaged:
            damaged[position % len(damaged)] = value
    check_decode(bytes(damaged))


@pytest.mark.parametrize("length", [IMAGE_BYTES, IMAGE_BYTES + 3])
@given(prefix=st.binary(max_size=12))
@settings(max_examples=500)
def test_the_fast_path_does_not_decode_other_messages_of_its_length(length: int, prefix: bytes) -> None:
    """Only the most common request is decoded on the fast path; other messages of its length get all checks."""
    check_decode((prefix + bytes([0x0A, 0x90, 0x06]) + bytes(length))[:length])

"""Requests to the workers, serialized with one copy of their pixels, and the error about too many images. No state.

protobuf would copy the pixels twice. It also ends the process if its own small allocations fail, as in a decoder at its limit of memory.
"""

from typing import NamedTuple

from digitserve.protocol.codec import varint
from digitserve.v1 import digits_pb2 as pb

_PIXELS_TAG = bytes([pb.ClassifyRequest.PIXELS_FIELD_NUMBER << 3 | 2])
"""Field number and wire type LEN. Source: protobuf.dev, "Encoding"."""


class Sizes(NamedTuple):
    """The fields of a request that describe its pixels; 0 for one that is not set."""

    num_images: int
    height: int
    width: int
    pixel_format: int


_SIZE_TAGS = [bytes([pb.ClassifyRequest.DESCRIPTOR.fields_by_name[name].number << 3]) for name in Sizes._fields]
"""Field numbers and wire type VARINT."""


def serialize(pixels: bytes | memoryview, sizes: Sizes, more: bytes = b"") -> bytes:
    """Return a serialized request.

    Args:
        pixels: contiguous.
        sizes: of them.
        more: all other fields, serialized. Two serialized messages together are the serialized merged message.
    """
    num_bytes = memoryview(pixels).nbytes
    fields = [tag + varint(size) for tag, size in zip(_SIZE_TAGS, sizes, strict=True) if size]
    return b"".join((_PIXELS_TAG, varint(num_bytes), pixels, *fields, more))


def too_many_images(num_images: int, max_images: int) -> str:
    """Return the error about a request with more images than one may have."""
    return (
        f"got {num_images} images; expected at most {max_images} per HTTP request: send several requests, or use gRPC"
    )

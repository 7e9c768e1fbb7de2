"""Requests to the workers, serialized with one copy of their pixels, and the error about too many images. No state.

protobuf would copy the pixels twice. It also ends the process if its own small allocations fail, as in a decoder at its limit of memory.
"""

from typing import NamedTuple

from digitserve.protocol.codec import varint
from digitserve.v1 import digits_pb2 as pb

_REQUESTS = (pb.ClassifyRequest, pb.ReadRequest)
"""Messages that have pixels."""

_PIXELS_TAG = bytes([pb.ClassifyRequest.PIXELS_FIELD_NUMBER << 3 | 2])
"""Field number, the same in all of them, and wire type LEN. Source: protobuf.dev, "Encoding"."""


class Sizes(NamedTuple):
    """The fields of a request that describe its pixels; 0 for one that is not set."""

    num_images: int
    height: int
    width: int
    pixel_format: int


_SIZE_TAGS = {
    request.DESCRIPTOR.name: [
        bytes([field.number << 3]) if (field := request.DESCRIPTOR.fields_by_name.get(name)) else b""
        for name in Sizes._fields
    ]
    for request in _REQUESTS
}
"""By message: field numbers and wire type VARINT; empty for a field that it does not have."""


def serialize(pixels: bytes | memoryview, sizes: Sizes, more: bytes = b"", message: str = "ClassifyRequest") -> bytes:
    """Return a serialized request.

    Args:
        pixels: contiguous.
        sizes: of them.
        more: all other fields, serialized. Two serialized messages together are the serialized merged message.
        message: name of the message.
    """
    num_bytes = memoryview(pixels).nbytes
    fields = [tag + varint(size) for tag, size in zip(_SIZE_TAGS[message], sizes, strict=True) if tag and size]
    return b"".join((_PIXELS_TAG, varint(num_bytes), pixels, *fields, more))


def too_many_images(num_images: int, max_images: int) -> str:
    """Return the error about a request with more images than one may have."""
    return (
        f"got {num_images} images; expected at most {max_images} per HTTP request: send several requests, or use gRPC"
    )

"""Requests to the workers, serialized with one copy of their pixels: protobuf would copy them twice. No state."""

from digitserve.protocol.codec import varint
from digitserve.v1 import digits_pb2 as pb

_PIXELS_TAG = bytes([pb.ClassifyRequest.PIXELS_FIELD_NUMBER << 3 | 2])
"""Field number and wire type LEN. Source: protobuf.dev, "Encoding"."""


def serialize(pixels: bytes | memoryview, fields: pb.ClassifyRequest) -> bytes:
    """Return a serialized request.

    Args:
        pixels: contiguous.
        fields: all others.
    """
    num_bytes = memoryview(pixels).nbytes
    return b"".join((_PIXELS_TAG, varint(num_bytes), pixels, fields.SerializeToString()))

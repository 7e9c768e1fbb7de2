"""Splits a ``ModelInferRequest`` by its fields, without protobuf.

    body ──split──▶ head (all that is not below), id, raw contents

``infer`` calls it for each request, on the worker's one thread.
"""

from typing import NamedTuple

from digitserve.errors import InvalidRequest
from digitserve.open_inference import open_inference_pb2 as pb

MAX_ID_BYTES = 1024
"""Maximum length of the id of a request. The id is kept until the answer, which contains it; clients send UUIDs of 36 characters."""

MAX_FIELDS = 256
"""Maximum number of fields of a message; each parameter and each tensor is one. Splitting more would delay all other requests."""

_CONTINUED = 0x80
"""Set in each byte of a varint that is not the last."""

_MAX_VARINT_BYTES = 10

_LENGTH_DELIMITED = 2
_WIRE_TYPES = 8
"""The lowest bits of a tag state how the field is encoded; all fields of the message are length-delimited."""

_FIXED_BYTES = {1: 8, 5: 4}
"""Lengths of fixed64 and fixed32 by wire type; groups are not accepted."""

_ID_TAG = pb.ModelInferRequest.ID_FIELD_NUMBER * _WIRE_TYPES | _LENGTH_DELIMITED
_RAW_TAG = pb.ModelInferRequest.RAW_INPUT_CONTENTS_FIELD_NUMBER * _WIRE_TYPES | _LENGTH_DELIMITED


class Parts(NamedTuple):
    """A message, split by its fields.

    Attributes:
        head: all fields but id and raw contents.
        id_field: the serialized field of the id; empty without an id.
        raw: start and end of each raw content in the message.
    """

    head: bytes
    id_field: bytes
    raw: list[tuple[int, int]]


def split(body: bytes) -> Parts:
    """Split a message by its fields; unknown fields are part of the head.

    Raises:
        InvalidRequest: it is not a message, it has more fields than any known library writes, or its id is invalid.
    """
    position = head_start = 0
    head: list[bytes] = []  # joined at the end: adding to bytes copies them each time
    id_field = b""
    raw: list[tuple[int, int]] = []
    try:
        for _ in range(MAX_FIELDS):
            if position >= len(body):
                break
            tag, size, start = body[position], body[position + 1], position + 2
            if tag >= _CONTINUED or tag % _WIRE_TYPES != _LENGTH_DELIMITED:
                position = _end_of_unknown(body, position)
                continue
            if size >= _CONTINUED:
                size, start = _read_varint(body, position + 1)
            stop = start + size
            if tag == _RAW_TAG or tag == _ID_TAG:  # noqa: PLR1714, SIM109 - a tuple would be built for each field
                head.append(body[head_start:position])
                head_start = stop
                if tag == _RAW_TAG:
                    raw.append((start, stop))
                else:
                    _check_id(body[start:stop])
                    id_field = body[position:stop] if size else b""
            position = stop
    except (IndexError, KeyError):
        raise not_a_request(body) from None
    if position < len(body):
        raise InvalidRequest(f"got a message of more than {MAX_FIELDS} fields; expected at most that")
    if position > len(body):
        raise not_a_request(body)
    head.append(body[head_start:])
    return Parts(b"".join(head), id_field, raw)


def _read_varint(body: bytes, position: int) -> tuple[int, int]:
    """Return a number and the position after it; raise IndexError if it is none."""
    number = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        byte = body[position]
        number |= (byte & ~_CONTINUED) << shift
        position += 1
        if byte < _CONTINUED:
            return number, position
    raise IndexError


def _end_of_unknown(body: bytes, position: int) -> int:
    """Return the position after a field that is not length-delimited or has a long tag.

    Raises:
        IndexError, KeyError: it is not a field.
    """
    tag, start = _read_varint(body, position)
    wire_type = tag % _WIRE_TYPES
    if wire_type == _LENGTH_DELIMITED:
        size, start = _read_varint(body, start)
        return start + size
    if wire_type == 0:
        return _read_varint(body, start)[1]
    return start + _FIXED_BYTES[wire_type]


def not_a_request(body: bytes) -> InvalidRequest:
    """Return the error for bytes that are not such a message."""
    return InvalidRequest(f"got {len(body)} bytes that are not a ModelInferRequest; expected protobuf")


def _check_id(content: bytes) -> None:
    """Check an id, which is returned without being parsed."""
    if len(content) > MAX_ID_BYTES:
        raise InvalidRequest(f"id: got {len(content)} bytes; expected at most {MAX_ID_BYTES}")
    if not content.isascii():
        try:
            content.decode()
        except UnicodeDecodeError:
            raise InvalidRequest("id: got bytes that are not UTF-8; expected text") from None

"""Meaning of a request's header fields for HTTP/2 and gRPC.

    hpack ──fields──▶ interpret ──RequestHead──▶ connection

A field is classified when it is decoded (``prepare``): once for an entry of the dynamic table, however often a client
refers to it. ``interpret`` then looks only at the class of each field. Called on the worker's one thread.
"""

import math
import re
from collections.abc import Iterable, Sequence
from enum import Enum, auto
from typing import TypeAlias

Field: TypeAlias = tuple[bytes, bytes, int, int]
"""Name, value, kind, and size in bytes as RFC 7541, section 4.1 defines it.

It is a plain tuple because a ``NamedTuple`` costs three times as much to make and to read.
"""

# The kind of a field: the low 18 bits are flags that the field sets in its request; the bits above are those flags,
# shifted by _CONFLICTS, that no earlier field of the request may have set. So one comparison finds a second :path, and
# a pseudo-header field after a regular field (RFC 9113, section 8.3). A kind stays below 2**30, one digit of an int.
_REGULAR = 1
_METHOD = 1 << 1
_SCHEME = 1 << 2
_PATH = 1 << 3
_AUTHORITY = 1 << 4
_HOST = 1 << 5
_CONTENT_TYPE = 1 << 6
_CONTENT_LENGTH = 1 << 7
_TIMEOUT = 1 << 8
_ENCODING = 1 << 9
_ACCEPTS_GZIP = 1 << 10
_CONNECT = 1 << 11
_NOT_POST = 1 << 12
_NOT_GRPC = 1 << 13
_MALFORMED = 1 << 14
_BAD_TIMEOUT = 1 << 15
_PROTOCOL = 1 << 16  # neither metadata nor one of the above
_CONFLICTS = 18

_HAS_VALUE = _PATH | _AUTHORITY | _HOST | _CONTENT_LENGTH | _TIMEOUT | _ENCODING
_REQUIRED = _METHOD | _SCHEME | _PATH | _CONTENT_TYPE
_PROBLEMS = _NOT_POST | _NOT_GRPC | _MALFORMED | _BAD_TIMEOUT
_PSEUDO = _METHOD | _SCHEME | _PATH | _AUTHORITY

METADATA = _REGULAR
"""Kind of a field that only the handlers interpret."""


def _pseudo(kind: int) -> int:
    return kind | (kind | _REGULAR) << _CONFLICTS


def _single(kind: int) -> int:
    return kind | _REGULAR | kind << _CONFLICTS


_OTHER_PSEUDO = _MALFORMED
_FORBIDDEN = _MALFORMED | _REGULAR

_KINDS = {
    b":method": _pseudo(_METHOD),
    b":scheme": _pseudo(_SCHEME),
    b":path": _pseudo(_PATH),
    b":authority": _pseudo(_AUTHORITY),
    b"host": _single(_HOST),
    b"content-type": _single(_CONTENT_TYPE),
    b"content-length": _CONTENT_LENGTH | _REGULAR,  # equal repetitions are tolerated: RFC 9110, section 8.6
    b"grpc-timeout": _single(_TIMEOUT),
    b"grpc-encoding": _single(_ENCODING),
    b"grpc-accept-encoding": _REGULAR | _PROTOCOL,
    b"te": _REGULAR | _PROTOCOL,
    # Fields of an HTTP/1.1 connection: RFC 9113, section 8.2.2.
    b"connection": _FORBIDDEN,
    b"keep-alive": _FORBIDDEN,
    b"proxy-connection": _FORBIDDEN,
    b"transfer-encoding": _FORBIDDEN,
    b"upgrade": _FORBIDDEN,
}
"""Kinds by name: those above, and metadata names met so far, whose characters need no second check."""

# Bounds of the metadata names remembered in _KINDS.
_MAX_NAMES = 512
_MAX_NAME_BYTES = 64

# Characters of a name: token of RFC 9110, section 5.6.2, without uppercase (RFC 9113, section 8.2.1).
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_GRPC_CONTENT_TYPE = re.compile(rb"application/grpc(\+proto)?[ \t]*(;.*)?", re.IGNORECASE | re.DOTALL)
# More digits than any 64-bit number has are not a length.
_LENGTH = re.compile(rb"[0-9]{1,19}")

_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_MAX_TIMEOUT_BYTES = 9

IDENTITY = b"identity"


class Problem(Enum):
    """Why a request is not passed to a handler, and how it is answered."""

    MALFORMED = auto()
    """Stream error PROTOCOL_ERROR: RFC 9113, section 8.1.1."""
    NOT_POST = auto()
    """HTTP status 405."""
    NOT_GRPC = auto()
    """HTTP status 415."""
    FIELDS_TOO_LARGE = auto()
    """HTTP status 431."""
    BAD_TIMEOUT = auto()
    """gRPC status INTERNAL."""


class RequestHead:
    """What the header fields of a request say; immutable, because requests with equal header blocks share one.

    Attributes:
        path: ``/package.Service/Method``.
        timeout_s: of ``grpc-timeout``, in seconds; infinite when the caller set none.
        encoding: of ``grpc-encoding``; ``identity`` when the caller set none.
        content_length: bytes of the body, when the caller states it.
        accepts_gzip: whether ``grpc-accept-encoding`` lists gzip.
        authority: of ``:authority``, else of ``host``, else empty.
        problem: why the request must not be handled; the other attributes are then incomplete.
        message: describes the problem; empty without one.
        fields: metadata of the caller in the order received; ``user-agent`` is one of them.
    """

    __slots__ = (
        "accepts_gzip",
        "authority",
        "content_length",
        "encoding",
        "fields",
        "message",
        "path",
        "problem",
        "timeout_s",
    )

    path: bytes
    timeout_s: float
    encoding: bytes
    content_length: int | None
    accepts_gzip: bool
    authority: bytes
    problem: Problem | None
    message: str
    fields: tuple[Field, ...]


_new_head = RequestHead.__new__


def prepare(name: bytes, value: bytes) -> Field:
    """Classify a decoded field."""
    kind = _KINDS.get(name)
    if kind is None:
        kind = _kind_of_name(name)
    if b"\0" in value or b"\n" in value or b"\r" in value or value.strip(b" \t") is not value:
        # RFC 9113, section 8.2.1.
        kind |= _MALFORMED
    elif kind != METADATA:
        kind |= _kind_of_value(name, value)
    return name, value, kind, len(name) + len(value) + 32


def _kind_of_name(name: bytes) -> int:
    """Return the kind of a field whose name is not in ``_KINDS``."""
    if not _NAME.fullmatch(name):
        # Pseudo-header fields of requests are in _KINDS, so any other is unknown.
        return _OTHER_PSEUDO if name[:1] == b":" else _FORBIDDEN
    if len(_KINDS) < _MAX_NAMES and len(name) <= _MAX_NAME_BYTES:
        _KINDS[name] = METADATA
    return METADATA


def _kind_of_value(name: bytes, value: bytes) -> int:  # noqa: PLR0911 - one return per field
    """Return what the value of an interpreted field adds to its kind."""
    match name:
        case b":method":
            return 0 if value == b"POST" else _NOT_POST | (_CONNECT if value == b"CONNECT" else 0)
        case b":path" | b":scheme":
            return 0 if value else _MALFORMED
        case b":authority":
            # No user information: RFC 9113, section 8.3.1.
            return _MALFORMED if b"@" in value else 0
        case b"content-type":
            return 0 if _GRPC_CONTENT_TYPE.fullmatch(value) else _NOT_GRPC
        case b"content-length":
            return 0 if _LENGTH.fullmatch(value) else _MALFORMED
        case b"te":
            return 0 if value.lower() == b"trailers" else _MALFORMED
        case b"grpc-accept-encoding":
            return _ACCEPTS_GZIP if b"gzip" in [each.strip() for each in value.split(b",")] else 0
    return 0


def interpret(fields: Sequence[Field], max_list_bytes: int, max_fields: int) -> RequestHead:
    """Return what the header fields of a request mean.

    Args:
        fields: all of them, in the order received.
        max_list_bytes: most bytes of all fields as RFC 9113, section 6.5.2 counts them.
        max_fields: most fields.
    """
    path = authority = host = b""
    encoding = IDENTITY
    timeout_s = math.inf
    content_length = None
    metadata = []
    seen = total_bytes = 0
    for field in fields:
        _, value, kind, size_bytes = field
        total_bytes += size_bytes
        if seen & kind >> _CONFLICTS:
            kind |= _MALFORMED
        seen |= kind
        if kind == METADATA:
            metadata.append(field)
        elif kind & _HAS_VALUE:
            if kind & _PATH:
                path = value
            elif kind & _TIMEOUT:
                unit_s = _SECONDS.get(value[-1:])
                digits = value[:-1]
                if unit_s and digits.isdigit() and len(value) <= _MAX_TIMEOUT_BYTES:
                    timeout_s = int(digits) * unit_s
                else:
                    seen |= _BAD_TIMEOUT
            elif kind & _AUTHORITY:
                authority = value
            elif kind & _CONTENT_LENGTH:
                if not kind & _MALFORMED:
                    length = int(value)
                    if content_length is not None and content_length != length:
                        seen |= _MALFORMED
                    content_length = length
            elif kind & _ENCODING:
                encoding = value
            else:
                host = value
    head = _new_head(RequestHead)
    head.path = path
    head.timeout_s = timeout_s
    head.encoding = encoding
    head.content_length = content_length
    head.accepts_gzip = seen & _ACCEPTS_GZIP != 0
    head.authority = authority or host
    head.problem = None
    head.message = ""
    head.fields = tuple(metadata)
    if seen & _PROBLEMS or seen & _REQUIRED != _REQUIRED or total_bytes > max_list_bytes or len(fields) > max_fields:
        if total_bytes > max_list_bytes or len(fields) > max_fields:
            head.problem = Problem.FIELDS_TOO_LARGE
            head.message = f"header fields exceed {max_list_bytes} bytes or {max_fields} fields"
            head.fields = ()
        else:
            head.problem, head.message = _problem(seen, fields)
    return head


def _problem(seen: int, fields: Sequence[Field]) -> tuple[Problem, str]:
    """Return the first applicable problem of a request that is not too large."""
    if seen & _MALFORMED:
        return Problem.MALFORMED, "header fields violate RFC 9113, section 8.2 or 8.3"
    # A CONNECT request has neither :scheme nor :path: RFC 9113, section 8.5.
    missing = (_METHOD if seen & _CONNECT else _METHOD | _SCHEME | _PATH) & ~seen
    if missing:
        return Problem.MALFORMED, "one of :method, :scheme and :path is missing"
    if seen & _NOT_POST:
        return Problem.NOT_POST, "the method of a gRPC request is POST"
    if seen & _CONTENT_TYPE == 0 or seen & _NOT_GRPC:
        return Problem.NOT_GRPC, "the content-type of a gRPC request is application/grpc or application/grpc+proto"
    value = next(value for _, value, kind, _ in fields if kind & _TIMEOUT)
    return Problem.BAD_TIMEOUT, f"grpc-timeout must be 1 to 8 digits and a unit of H, M, S, m, u, n; got {value[:32]!r}"


def trailers_problem(fields: Iterable[Field]) -> Problem | None:
    """Return ``MALFORMED`` if trailers contain a pseudo-header field or an invalid one: RFC 9113, section 8.1."""
    for _, _, kind, _ in fields:
        if kind & (_MALFORMED | _PSEUDO):
            return Problem.MALFORMED
    return None

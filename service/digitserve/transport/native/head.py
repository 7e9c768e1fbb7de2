"""Meaning of a request's header fields for HTTP/2 and gRPC.

    hpack ──fields──▶ interpret ──RequestHead──▶ connection

Called on the worker's one thread.

Work is done once per distinct thing, because clients repeat themselves. ``prepare`` gives a decoded field its role: once for
an entry of the dynamic table, however often a client refers to it. Fields that differ from call to call, the deadline and
metadata, have the same role whatever their value. So the sequence of roles is the same in most requests, and what it means
is remembered for all connections of the process.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from enum import Enum, auto
from typing import TypeAlias


class Role:
    """What a field means for a request, without its value where the value differs from call to call; shared, immutable.

    Attributes:
        flags: set in the request by the field; above them the flags that no earlier field may have set.
        value: of the field, where ``RequestHead`` has an attribute for it.
    """

    __slots__ = ("flags", "value")

    def __init__(self, flags: int, value: bytes = b"") -> None:
        self.flags = flags
        self.value = value


Field: TypeAlias = tuple[bytes, bytes, Role, int]
"""Name, value, role, and size in bytes as RFC 7541, section 4.1 defines it.

It is a plain tuple, because a ``NamedTuple`` takes three times as long to create.
"""

# Flags of roles.
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
# A role's flags shifted by this conflict with it. One comparison finds a second :path, and a pseudo-header field after a
# regular one (RFC 9113, section 8.3).
_CONFLICTS = 15

_PSEUDO = _METHOD | _SCHEME | _PATH | _AUTHORITY

METADATA = Role(_REGULAR)
"""Role of a field that only handlers interpret."""
_DEADLINE = Role(_REGULAR | _TIMEOUT | _TIMEOUT << _CONFLICTS)
_INVALID = Role(_MALFORMED)

IDENTITY = b"identity"

_NUL, _LF, _CR = b"\0\n\r"
# Characters of a name: token of RFC 9110, section 5.6.2, without uppercase (RFC 9113, section 8.2.1).
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_GRPC_CONTENT_TYPE = re.compile(rb"application/grpc(\+proto)?[ \t]*(;.*)?", re.IGNORECASE | re.DOTALL)
# More digits than any 64-bit number has are not a length.
_LENGTH = re.compile(rb"[0-9]{1,19}")

_UNITS_S = {ord("H"): 3600.0, ord("M"): 60.0, ord("S"): 1.0, ord("m"): 1e-3, ord("u"): 1e-6, ord("n"): 1e-9}
_MAX_TIMEOUT_BYTES = 9


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
    """What the header fields of a request mean; immutable, because requests with equal header blocks share one.

    Attributes:
        path: ``/package.Service/Method``.
        timeout_s: of ``grpc-timeout``, in seconds; infinite when the caller set none.
        encoding: of ``grpc-encoding``; ``identity`` when the caller set none.
        content_length: bytes of the body, when the caller states it.
        accepts_gzip: whether ``grpc-accept-encoding`` lists gzip.
        authority: of ``:authority``, else of ``host``, else empty.
        problem: why the request must not be handled; the other attributes may then be incomplete.
        message: describes the problem; empty without one.
        num_bytes: about what it takes in memory; set by the decoder.
        judged_by: the tokens with which ``guard`` judged it; unset before, and without tokens.
        refused: their verdict.
    """

    __slots__ = (
        "_decoded",
        "accepts_gzip",
        "authority",
        "content_length",
        "encoding",
        "judged_by",
        "message",
        "num_bytes",
        "path",
        "problem",
        "refused",
        "timeout_s",
    )
    judged_by: object
    refused: bool

    def __init__(  # noqa: PLR0913, PLR0917 - keywords take longer, and only this module calls it
        self,
        path: bytes,
        timeout_s: float,
        encoding: bytes,
        content_length: int | None,
        accepts_gzip: bool,  # noqa: FBT001
        authority: bytes,
        problem: Problem | None,
        message: str,
        decoded: Sequence[Field],
    ) -> None:
        self.path = path
        self.timeout_s = timeout_s
        self.encoding = encoding
        self.content_length = content_length
        self.accepts_gzip = accepts_gzip
        self.authority = authority
        self.problem = problem
        self.message = message
        self.num_bytes = 0
        self._decoded = decoded

    def values(self, name: bytes) -> list[bytes]:
        """Return the values of a field in the order received."""
        return [field[1] for field in self._decoded if field[0] == name]

    @property
    def fields(self) -> tuple[Field, ...]:
        """Metadata of the caller in the order received; ``user-agent`` is one of them."""
        return tuple([field for field in self._decoded if field[2] is METADATA])


# Fields.


def _method(value: bytes) -> int:
    if value == b"POST":
        return 0
    return _NOT_POST | _CONNECT if value == b"CONNECT" else _NOT_POST


def _authority(value: bytes) -> int:
    # Without user information: RFC 9113, section 8.3.1.
    return _MALFORMED if b"@" in value else 0


def _not_empty(value: bytes) -> int:
    return 0 if value else _MALFORMED


def _content_type(value: bytes) -> int:
    return 0 if _GRPC_CONTENT_TYPE.fullmatch(value) else _NOT_GRPC


def _content_length(value: bytes) -> int:
    return 0 if _LENGTH.fullmatch(value) else _MALFORMED


def _te(value: bytes) -> int:
    return 0 if value.lower() == b"trailers" else _MALFORMED


def _accept_encoding(value: bytes) -> int:
    return _ACCEPTS_GZIP if b"gzip" in [coding.strip() for coding in value.split(b",")] else 0


def _any(_value: bytes) -> int:
    return 0


def _forbidden(_value: bytes) -> int:
    return _MALFORMED


def _pseudo(flag: int) -> int:
    return flag | (flag | _REGULAR) << _CONFLICTS


def _single(flag: int) -> int:
    return flag | _REGULAR | flag << _CONFLICTS


_RULES: dict[bytes, tuple[int, Callable[[bytes], int]]] = {
    b":method": (_pseudo(_METHOD), _method),
    b":scheme": (_pseudo(_SCHEME), _not_empty),
    b":path": (_pseudo(_PATH), _not_empty),
    b":authority": (_pseudo(_AUTHORITY), _authority),
    b"host": (_single(_HOST), _any),
    b"content-type": (_single(_CONTENT_TYPE), _content_type),
    # Equal repetitions are tolerated: RFC 9110, section 8.6.
    b"content-length": (_REGULAR | _CONTENT_LENGTH, _content_length),
    b"grpc-encoding": (_single(_ENCODING), _any),
    b"grpc-accept-encoding": (_REGULAR, _accept_encoding),
    b"te": (_REGULAR, _te),
    # Fields of an HTTP/1.1 connection: RFC 9113, section 8.2.2.
    b"connection": (_REGULAR, _forbidden),
    b"keep-alive": (_REGULAR, _forbidden),
    b"proxy-connection": (_REGULAR, _forbidden),
    b"transfer-encoding": (_REGULAR, _forbidden),
    b"upgrade": (_REGULAR, _forbidden),
}
"""Flags by name, and what the value adds to them."""

# Bounds of what is remembered for the process; a dictionary is emptied when it is full, because then a client sends
# different names or values in each request, and remembering does not pay. Together they take less than 2 MB.
_MAX_REMEMBERED = 256
_MAX_REMEMBERED_BYTES = 128
_MAX_REMEMBERED_FIELDS = 24

_DEADLINE_ONLY = {b"grpc-timeout": _DEADLINE}
_ROLE_BY_NAME = _DEADLINE_ONLY.copy()
"""Roles that do not depend on the value: of the deadline, and of valid metadata names met so far."""

_ROLE_BY_FIELD: dict[tuple[bytes, bytes], Role] = {}
"""Roles of fields in _RULES. Equal fields have the same role, so that requests of all connections share a meaning."""


def prepare(name: bytes, value: bytes) -> Field:
    """Give a decoded field its role."""
    role = _ROLE_BY_NAME.get(name) or _role(name, value)
    # RFC 9113, section 8.2.1; strip also removes vertical tab and form feed, which no field value may contain.
    if _NUL in value or _LF in value or _CR in value or value.strip() is not value:
        role = _INVALID
    return name, value, role, len(name) + len(value) + 32


def _role(name: bytes, value: bytes) -> Role:
    """Return the role of a field whose name is not in ``_ROLE_BY_NAME``; remember it unless it is long."""
    if name in _RULES:
        key = name, value
        role = _ROLE_BY_FIELD.get(key)
        if role is None:
            flags, rule = _RULES[name]
            role = Role(flags | rule(value), value)
            if len(value) <= _MAX_REMEMBERED_BYTES:
                if len(_ROLE_BY_FIELD) >= _MAX_REMEMBERED:
                    _ROLE_BY_FIELD.clear()
                _ROLE_BY_FIELD[key] = role
        return role
    # All pseudo-header fields of requests are in _RULES, and the colon of others is not a character of a name.
    if not _NAME.fullmatch(name):
        return _INVALID
    if len(name) <= _MAX_REMEMBERED_BYTES:
        if len(_ROLE_BY_NAME) >= _MAX_REMEMBERED:
            _ROLE_BY_NAME.clear()
            _ROLE_BY_NAME.update(_DEADLINE_ONLY)
        _ROLE_BY_NAME[name] = METADATA
    return METADATA


# Requests.

_Meaning: TypeAlias = tuple[int, bytes, bytes, int | None, bool, bytes, Problem | None, str]
"""Position of the deadline or -1, then path, encoding, content_length, accepts_gzip, authority, problem, message."""

_MEANINGS: dict[tuple[Role, ...], _Meaning] = {}


def interpret(fields: Sequence[Field]) -> RequestHead:
    """Return what the header fields of a request mean.

    Args:
        fields: all of them, in the order received.
    """
    roles = tuple([field[2] for field in fields])
    meaning = _MEANINGS.get(roles)
    if meaning is None:
        meaning = _meaning(roles)
        if len(roles) <= _MAX_REMEMBERED_FIELDS and all(len(role.value) <= _MAX_REMEMBERED_BYTES for role in roles):
            if len(_MEANINGS) >= _MAX_REMEMBERED:
                _MEANINGS.clear()
            _MEANINGS[roles] = meaning
    deadline_at, path, encoding, content_length, accepts_gzip, authority, problem, message = meaning
    timeout_s = math.inf
    if deadline_at >= 0:
        timeout = fields[deadline_at][1]
        digits = timeout[:-1]
        # Without digits there may be no last byte; isdigit is false for them.
        unit_s = _UNITS_S.get(timeout[-1]) if digits.isdigit() else None
        if unit_s and len(timeout) <= _MAX_TIMEOUT_BYTES:
            timeout_s = float(digits) * unit_s
        elif problem is None:
            problem = Problem.BAD_TIMEOUT
            message = f"grpc-timeout must be 1 to 8 digits and a unit of H, M, S, m, u or n; got {timeout[:32]!r}"
    return RequestHead(path, timeout_s, encoding, content_length, accepts_gzip, authority, problem, message, fields)


def too_large(max_list_bytes: int, max_fields: int) -> RequestHead:
    """Return the head of a request whose header fields exceed the limits."""
    message = f"header fields exceed {max_list_bytes} bytes or {max_fields} fields"
    return RequestHead(
        b"",
        math.inf,
        IDENTITY,
        None,
        accepts_gzip=False,
        authority=b"",
        problem=Problem.FIELDS_TOO_LARGE,
        message=message,
        decoded=(),
    )


def _meaning(roles: Sequence[Role]) -> _Meaning:
    """Interpret all but the deadline and metadata."""
    values: dict[int, bytes] = {}
    seen = 0
    for role in roles:
        flags = role.flags
        if flags & _MALFORMED or seen & flags >> _CONFLICTS:
            seen |= _MALFORMED
            break
        if flags & seen & _CONTENT_LENGTH and int(role.value) != int(values[_CONTENT_LENGTH]):
            seen |= _MALFORMED
            break
        seen |= flags
        for flag in (_PATH, _AUTHORITY, _HOST, _ENCODING, _CONTENT_LENGTH):
            if flags & flag:
                values[flag] = role.value
    length = values.get(_CONTENT_LENGTH)
    problem, message = _problem(seen)
    return (
        roles.index(_DEADLINE) if _DEADLINE in roles else -1,
        values.get(_PATH, b""),
        values.get(_ENCODING, IDENTITY),
        None if length is None else int(length),
        seen & _ACCEPTS_GZIP != 0,
        values.get(_AUTHORITY) or values.get(_HOST, b""),
        problem,
        message,
    )


def _problem(seen: int) -> tuple[Problem | None, str]:
    """Return the first problem that the flags of a request show."""
    if seen & _MALFORMED:
        return Problem.MALFORMED, "header fields violate RFC 9113, section 8.2 or 8.3"
    # A CONNECT request has neither :scheme nor :path: RFC 9113, section 8.5.
    if (_METHOD if seen & _CONNECT else _METHOD | _SCHEME | _PATH) & ~seen:
        return Problem.MALFORMED, "one of :method, :scheme and :path is missing"
    if seen & _NOT_POST:
        return Problem.NOT_POST, "the method of a gRPC request is POST"
    if seen & _NOT_GRPC or not seen & _CONTENT_TYPE:
        return Problem.NOT_GRPC, "the content-type of a gRPC request is application/grpc or application/grpc+proto"
    return None, ""


def trailers_problem(fields: Iterable[Field]) -> Problem | None:
    """Return ``MALFORMED`` if trailers contain a pseudo-header field or an invalid one: RFC 9113, section 8.1."""
    if any(role.flags & (_MALFORMED | _PSEUDO) for _, _, role, _ in fields):
        return Problem.MALFORMED
    return None

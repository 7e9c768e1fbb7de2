"""Promises of the interpretation of request heads."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.transport.native import head as head_module
from digitserve.transport.native.head import Problem, RequestHead, trailers_problem
from digitserve.transport.native.hpack import Decoder, encode_fields
from support.header_blocks import PATH, REQUEST

Fields = list[tuple[bytes, bytes]]


def head_of(fields: Fields) -> RequestHead:
    """Return the head of a request with these fields."""
    return Decoder().decode_request(encode_fields(fields))


def with_value(name: bytes, value: bytes) -> Fields:
    """Return a request's fields with another value of one."""
    return [(each, value if each == name else old) for each, old in REQUEST]


def without(name: bytes) -> Fields:
    """Return a request's fields without one."""
    return [(each, value) for each, value in REQUEST if each != name]


def test_a_plain_request() -> None:
    """A request without optional fields has neither deadline nor metadata, and the encoding identity."""
    head = head_of(REQUEST)
    assert (head.problem, head.message) == (None, "")
    assert (head.path, head.authority) == (PATH, b"localhost:50051")
    assert head.timeout_s == math.inf
    assert head.encoding == b"identity"
    assert head.content_length is None
    assert not head.accepts_gzip
    assert head.fields == ()


def test_a_request_with_all_fields() -> None:
    """Fields of the protocol set attributes, all other fields are metadata in the order received."""
    head = head_of(
        [
            *REQUEST,
            (b"x-b", b"2"),
            (b"grpc-timeout", b"1500m"),
            (b"grpc-encoding", b"gzip"),
            (b"grpc-accept-encoding", b"identity, deflate ,gzip"),
            (b"content-length", b"797"),
            (b"user-agent", b"test"),
            (b"x-a-bin", b"AAE"),
            (b"x-b", b"1"),
        ]
    )
    assert head.problem is None
    assert head.timeout_s == 1.5
    assert head.encoding == b"gzip"
    assert head.content_length == 797
    assert head.accepts_gzip
    metadata = [(b"x-b", b"2"), (b"user-agent", b"test"), (b"x-a-bin", b"AAE"), (b"x-b", b"1")]
    assert [(name, value) for name, value, _, _ in head.fields] == metadata


@pytest.mark.parametrize(
    ("value", "accepted"), [(b"gzip", True), (b"identity,gzip", True), (b"xgzip", False), (b"", False)]
)
def test_gzip_is_accepted_only_as_a_whole_name(value: bytes, accepted: bool) -> None:
    """``accepts_gzip`` needs gzip in the list of codings."""
    assert head_of([*REQUEST, (b"grpc-accept-encoding", value)]).accepts_gzip is accepted


# Malformed requests.

FORBIDDEN_NAMES = [b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"]
MALFORMED_NAMES = [b"X-a", b"x-A", b"", b"x a", b"x\x00", b"x:", b"x\n", b"\xc3\xa9", b"x\x7f", b"(x)"]
MALFORMED_VALUES = [b"a\0b", b"a\nb", b"a\rb", b" a", b"a ", b"\ta", b"a\t", b"\n", b"a\r\n", b" "]


@pytest.mark.parametrize("name", [*MALFORMED_NAMES, *FORBIDDEN_NAMES])
def test_names_that_are_malformed(name: bytes) -> None:
    """Uppercase or invalid characters and connection-specific fields are malformed; RFC 9113, sections 8.2.1 and 8.2.2."""
    assert head_of([*REQUEST, (name, b"a")]).problem is Problem.MALFORMED


@pytest.mark.parametrize("value", MALFORMED_VALUES)
@pytest.mark.parametrize(
    "name", [b"x-a", b"user-agent", b"grpc-timeout", b"grpc-encoding", b"host", b"grpc-accept-encoding"]
)
def test_values_that_are_malformed(name: bytes, value: bytes) -> None:
    """NUL, CR, LF and surrounding whitespace are malformed in any value; RFC 9113, section 8.2.1."""
    assert head_of([*REQUEST, (name, value)]).problem is Problem.MALFORMED


@pytest.mark.parametrize("name", [name for name, _ in REQUEST])
def test_malformed_values_of_required_fields(name: bytes) -> None:
    """NUL, CR, LF and surrounding whitespace are malformed in pseudo-header fields, content-type and te, too."""
    value = dict(REQUEST)[name]
    for bad in (value + b" ", b"\t" + value, value + b"\0", value + b"\r\n"):
        assert head_of(with_value(name, bad)).problem is Problem.MALFORMED


@pytest.mark.parametrize("value", [b"", b"a", b"a b\tc", bytes(range(0x21, 0x7F)), b"\xff\x80", b'a,b; c="d"'])
def test_values_that_are_valid(value: bytes) -> None:
    """Values may have inner whitespace and bytes above 127."""
    head = head_of([*REQUEST, (b"x-a", value)])
    assert head.problem is None
    assert head.fields[0][1] == value


@pytest.mark.parametrize("name", [b"x-a", b"a", b"a.b_c~d", b"!#$%&'*+-.^_`|~", b"grpc-trace-bin", b"n" * 500])
def test_names_that_are_valid(name: bytes) -> None:
    """All characters of tokens except uppercase letters are valid in names."""
    assert [field[0] for field in head_of([*REQUEST, (name, b"a")]).fields] == [name]


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path"])
def test_missing_pseudo_header_fields_are_malformed(name: bytes) -> None:
    """Requests need :method, :scheme and :path; RFC 9113, section 8.3.1."""
    head = head_of(without(name))
    assert head.problem is Problem.MALFORMED
    assert "missing" in head.message


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path", b":authority", b"content-type"])
def test_repeated_fields_are_malformed(name: bytes) -> None:
    """A second pseudo-header field or content-type is malformed, equal or not; RFC 9113, section 8.3."""
    for value in (dict(REQUEST)[name], b"other"):
        position = [each for each, _ in REQUEST].index(name)
        fields = [*REQUEST[:position], (name, value), *REQUEST[position:]]
        assert head_of(fields).problem is Problem.MALFORMED


@pytest.mark.parametrize("name", [b"grpc-timeout", b"grpc-encoding", b"host"])
def test_repeated_optional_fields_are_malformed(name: bytes) -> None:
    """A second deadline, encoding or host is malformed."""
    assert head_of([*REQUEST, (name, b"1S"), (name, b"1S")]).problem is Problem.MALFORMED


@pytest.mark.parametrize("regular", [(b"x-a", b"1"), (b"grpc-timeout", b"1S"), (b"te", b"trailers"), (b"host", b"a")])
@pytest.mark.parametrize("position", [0, 1, 2, 3])
def test_pseudo_header_fields_after_regular_ones_are_malformed(regular: tuple[bytes, bytes], position: int) -> None:
    """All pseudo-header fields come before regular fields; RFC 9113, section 8.3."""
    fields = without(b"te")
    fields.insert(position, regular)
    assert head_of(fields).problem is Problem.MALFORMED


@pytest.mark.parametrize("name", [b":status", b":protocol", b":", b":Path", b":unknown"])
def test_unknown_pseudo_header_fields_are_malformed(name: bytes) -> None:
    """Requests have no :status and no undefined pseudo-header fields; RFC 9113, section 8.3."""
    assert head_of([(name, b"200"), *REQUEST]).problem is Problem.MALFORMED


@pytest.mark.parametrize(
    "fields", [with_value(b":path", b""), with_value(b":scheme", b""), with_value(b":authority", b"me@host")]
)
def test_malformed_values_of_pseudo_header_fields(fields: Fields) -> None:
    """An empty path or scheme and user information in the authority are malformed; RFC 9113, section 8.3.1."""
    assert head_of(fields).problem is Problem.MALFORMED


@pytest.mark.parametrize(
    ("value", "problem"),
    [(b"trailers", None), (b"Trailers", None), (b"gzip", Problem.MALFORMED), (b"trailers, gzip", Problem.MALFORMED)],
)
def test_te_is_trailers_or_missing(value: bytes, problem: Problem | None) -> None:
    """``te`` may be missing, another value than trailers is malformed; RFC 9113, section 8.2.2."""
    assert head_of(without(b"te")).problem is None
    assert head_of(with_value(b"te", value)).problem is problem


@pytest.mark.parametrize(
    ("values", "length"),
    [
        ([b"0"], 0),
        ([b"5"], 5),
        ([b"005"], 5),
        ([b"5", b"5"], 5),
        ([b"5", b"05"], 5),
        ([b"9" * 19], int("9" * 19)),
        ([b"5", b"6"], None),
        ([b"5", b"x"], None),
        ([b""], None),
        ([b"-1"], None),
        ([b"+1"], None),
        ([b"1_0"], None),
        ([b"5, 5"], None),
        ([b"\xd9\xa1"], None),
        ([b"9" * 20], None),
    ],
)
def test_content_length_is_one_number(values: list[bytes], length: int | None) -> None:
    """Another content-length than one number, perhaps repeated, is malformed; RFC 9110, section 8.6."""
    head = head_of([*REQUEST, *[(b"content-length", value) for value in values]])
    assert head.content_length == length or head.problem is Problem.MALFORMED
    assert head.problem is (Problem.MALFORMED if length is None else None)


@pytest.mark.parametrize(
    ("fields", "authority"),
    [
        (REQUEST, b"localhost:50051"),
        (without(b":authority"), b""),
        ([*without(b":authority"), (b"host", b"a")], b"a"),
        ([*REQUEST, (b"host", b"other")], b"localhost:50051"),
    ],
)
def test_authority_falls_back_to_host(fields: Fields, authority: bytes) -> None:
    """The authority is :authority, else host; neither is required, and both may differ."""
    head = head_of(fields)
    assert head.problem is None
    assert head.authority == authority
    assert head.fields == ()


# Other problems.


@pytest.mark.parametrize("method", [b"GET", b"PUT", b"HEAD", b"OPTIONS", b"post", b"", b"POSTS"])
def test_methods_other_than_post(method: bytes) -> None:
    """Another method than POST is NOT_POST, whatever the content-type."""
    assert head_of(with_value(b":method", method)).problem is Problem.NOT_POST
    assert head_of([(b":method", method), *without(b":method")][:4]).problem is Problem.NOT_POST


def test_connect_has_neither_scheme_nor_path() -> None:
    """A CONNECT request is well-formed without :scheme and :path; RFC 9113, section 8.5."""
    assert head_of([(b":method", b"CONNECT"), (b":authority", b"a:1")]).problem is Problem.NOT_POST


@pytest.mark.parametrize(
    "value",
    [
        b"application/grpc",
        b"application/grpc+proto",
        b"application/grpc; charset=utf-8",
        b"application/grpc;a=b",
        b"application/grpc+proto ;a=b",
        b"Application/GRPC",
    ],
)
def test_content_types_of_grpc(value: bytes) -> None:
    """``application/grpc`` and ``application/grpc+proto`` are accepted, with parameters and in any case."""
    assert head_of(with_value(b"content-type", value)).problem is None


@pytest.mark.parametrize(
    "value",
    [
        b"application/grpc-web",
        b"application/grpc-web+proto",
        b"application/grpc+json",
        b"application/grpcx",
        b"application/grpc+proto2",
        b"application/grpc a",
        b"application/json",
        b"text/application/grpc",
        b"",
    ],
)
def test_other_content_types(value: bytes) -> None:
    """Another content-type, or none, is NOT_GRPC."""
    assert head_of(with_value(b"content-type", value)).problem is Problem.NOT_GRPC
    assert head_of(without(b"content-type")).problem is Problem.NOT_GRPC


@pytest.mark.parametrize(
    ("value", "timeout_s"),
    [
        (b"0n", 0.0),
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"4m", 0.004),
        (b"5u", 5e-6),
        (b"6n", 6e-9),
        (b"99999999H", 99_999_999 * 3600.0),
        (b"00000001S", 1.0),
    ],
)
def test_timeouts(value: bytes, timeout_s: float) -> None:
    """A timeout is one to eight digits and a unit."""
    head = head_of([*REQUEST, (b"grpc-timeout", value)])
    assert head.problem is None
    assert head.timeout_s == pytest.approx(timeout_s)


@pytest.mark.parametrize(
    "value",
    [b"", b"S", b"1", b"1s", b"1h", b"-1S", b"+1S", b"1.5S", b"1e3S", b"1_0S", b"123456789S", b"1SS", b"1 S", b"\xb2S"],
)
def test_bad_timeouts(value: bytes) -> None:
    """Any other timeout is BAD_TIMEOUT, and the message shows its beginning."""
    head = head_of([*REQUEST, (b"grpc-timeout", value)])
    assert head.problem is Problem.BAD_TIMEOUT
    assert repr(value) in head.message
    assert head.timeout_s == math.inf


def test_the_first_problem_counts() -> None:
    """Malformed precedes the method, the method the content-type, the content-type the timeout."""
    timeout = (b"grpc-timeout", b"x")
    fields = [(b":method", b"GET"), *without(b":method")[:3], (b"content-type", b"a"), timeout]
    assert head_of([*fields, (b"X", b"")]).problem is Problem.MALFORMED
    assert head_of(fields).problem is Problem.NOT_POST
    assert head_of([*with_value(b"content-type", b"a"), timeout]).problem is Problem.NOT_GRPC
    assert head_of([*REQUEST, timeout]).problem is Problem.BAD_TIMEOUT


# What is remembered for the process.

ALL_FIELDS = st.sampled_from(
    [
        *REQUEST,
        (b":method", b"GET"),
        (b":path", b"/other"),
        (b":path", b""),
        (b"content-length", b"1"),
        (b"content-length", b"2"),
        (b"grpc-timeout", b"1S"),
        (b"grpc-timeout", b"2u"),
        (b"grpc-timeout", b"x"),
        (b"grpc-encoding", b"gzip"),
        (b"grpc-accept-encoding", b"gzip"),
        (b"host", b"a"),
        (b"x-a", b"1"),
        (b"x-a", b"2"),
        (b"X-a", b"2"),
        (b"connection", b"close"),
    ]
)


def attributes(head: RequestHead) -> tuple[object, ...]:
    """Return all that a head says."""
    names = [name for name in RequestHead.__slots__ if name not in {"_decoded", "judged_by", "refused"}]
    return *(getattr(head, name) for name in names), [(name, value) for name, value, _, _ in head.fields]


@given(st.lists(ALL_FIELDS, max_size=10) | st.permutations(REQUEST), st.permutations(range(16)))
def test_remembering_does_not_change_a_head(fields: Fields, order: list[int]) -> None:
    """A request has the same head after other requests as in a new process."""
    remembered = attributes(head_of(fields))
    for index in order:
        head_of([*REQUEST, (b"x-%d" % index, b"")])
    assert attributes(head_of(fields)) == remembered
    for memory in (head_module._ROLE_BY_FIELD, head_module._MEANINGS):
        memory.clear()
    assert attributes(head_of(fields)) == remembered


def test_memory_of_the_process_is_bounded() -> None:
    """Different names, paths and sequences of fields do not fill the process's memory."""
    memories = [head_module._ROLE_BY_NAME, head_module._ROLE_BY_FIELD, head_module._MEANINGS]
    for number in range(2000):
        fields = [*with_value(b":path", b"/%d" % number), (b"x-%d" % number, b"")]
        assert head_of(fields).path == b"/%d" % number
        assert all(len(memory) <= head_module._MAX_REMEMBERED for memory in memories)
    long = b"/" * (head_module._MAX_REMEMBERED_BYTES + 1)
    assert head_of(with_value(b":path", long)).path == long
    assert [field[0] for field in head_of([*REQUEST, (b"x" * 500, b"")]).fields] == [b"x" * 500]
    assert head_of([*REQUEST, *[(b"te", b"trailers")] * 50]).problem is None
    assert b"x" * 500 not in head_module._ROLE_BY_NAME
    assert long not in {value for _, value in head_module._ROLE_BY_FIELD}
    for roles in head_module._MEANINGS:
        assert len(roles) <= head_module._MAX_REMEMBERED_FIELDS
        assert all(role.value != long for role in roles)


# Trailers.


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ([], None),
        ([(b"x-a", b"1")], None),
        ([(b":path", b"/")], Problem.MALFORMED),
        ([(b":status", b"200")], Problem.MALFORMED),
        ([(b"X-a", b"1")], Problem.MALFORMED),
        ([(b"x-a", b"1"), (b"connection", b"close")], Problem.MALFORMED),
    ],
)
def test_trailers(fields: Fields, problem: Problem | None) -> None:
    """Trailers have no pseudo-header fields and no invalid fields; RFC 9113, section 8.1."""
    assert trailers_problem(Decoder().decode_fields(encode_fields(fields))) is problem

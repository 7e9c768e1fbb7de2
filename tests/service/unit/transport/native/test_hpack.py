"""Promises of the HPACK decoder and encoder; the ``hpack`` library is the reference."""

import math
import tracemalloc

import hpack as reference
import pytest
from hpack.table import HeaderTable
from hypothesis import given
from hypothesis import strategies as st

from digitserve.transport.native import hpack
from digitserve.transport.native.head import Problem
from digitserve.transport.native.hpack import Decoder, HpackError, encode_fields
from support.header_blocks import REQUEST, captured, grpc_go_style, grpcio_style

Fields = list[tuple[bytes, bytes]]

CONNECTIONS = {
    **captured(),
    **{f"grpc-go style, {count} metadata": grpc_go_style(200, count) for count in range(3)},
    "grpcio style": grpcio_style(200, incremental=False),
    "grpcio style, incremental": grpcio_style(200, incremental=True),
}
NUM_STATIC = 61
REQUEST_BLOCK = encode_fields(REQUEST)


def decoded(decoder: Decoder, block: bytes) -> Fields:
    """Return names and values of a block's fields."""
    return [(name, value) for name, value, _, _ in decoder.decode_fields(block)]


def table(decoder: Decoder) -> Fields:
    """Return the dynamic table, newest entry first."""
    return [(name, value) for name, value, _, _ in decoder._table[hpack._NEWEST :]]


def reference_table(decoder: reference.Decoder) -> Fields:
    """Return the dynamic table of the library's decoder, newest entry first."""
    return [(bytes(name), bytes(value)) for name, value in decoder.header_table.dynamic_entries]


def reference_decoder() -> reference.Decoder:
    """Return a decoder of the library, without a limit on the size of the fields."""
    return reference.Decoder(max_header_list_size=1 << 30)


def literal(name: bytes, value: bytes) -> bytes:
    """Return a literal field with incremental indexing and a new name, each shorter than 127 bytes."""
    return b"\x40" + bytes((len(name),)) + name + bytes((len(value),)) + value


# Blocks of clients.


@pytest.mark.parametrize("client", CONNECTIONS)
def test_blocks_of_clients_are_decoded(client: str) -> None:
    """All blocks of a connection give the fields that the client sent, and the table of the ``hpack`` library."""
    decoder, library = Decoder(), reference_decoder()
    for block, fields in CONNECTIONS[client]:
        assert decoded(decoder, block) == fields
        library.decode(block, raw=True)
        assert table(decoder) == reference_table(library)


@pytest.mark.parametrize("client", CONNECTIONS)
def test_heads_of_clients_are_right(client: str) -> None:
    """All blocks of a connection, cached or not, give a head with the path, the deadline and the metadata sent."""
    decoder = Decoder()
    units_s = {b"S": 1.0, b"m": 1e-3, b"u": 1e-6}
    no_metadata = {b"te", b"content-type", b"content-length", b"grpc-timeout", b"grpc-accept-encoding"}
    for block, fields in CONNECTIONS[client]:
        head = decoder.decode_request(block)
        values = dict(fields)
        timeout = values.get(b"grpc-timeout")
        assert head.problem is None
        assert head.path == values[b":path"]
        assert head.authority == values[b":authority"]
        assert head.timeout_s == (float(timeout[:-1]) * units_s[timeout[-1:]] if timeout else math.inf)
        assert head.accepts_gzip == (b"gzip" in values.get(b"grpc-accept-encoding", b""))
        assert [(name, value) for name, value, _, _ in head.fields] == [
            (name, value) for name, value in fields if name not in no_metadata and not name.startswith(b":")
        ]


# Representations and integers.


def test_static_table_is_that_of_the_rfc() -> None:
    """The static table has the 61 entries of RFC 7541, appendix A."""
    assert hpack._static_fields() == list(HeaderTable.STATIC_TABLE)
    for index, field in enumerate(HeaderTable.STATIC_TABLE, 1):
        assert decoded(Decoder(), bytes((0x80 | index,))) == [field]


@pytest.mark.parametrize("first", [0x40, 0x00, 0x10])
@pytest.mark.parametrize("index", [1, 14, 15, 61, 62, 63, 100])
@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 300])
def test_literals_with_an_indexed_name(first: int, index: int, length: int) -> None:
    """Literals of the three kinds take their name from any index, and only incremental indexing changes the table."""
    decoder = Decoder()
    for number in range(40):
        decoder.decode_fields(literal(b"name-%d" % number, b""))
    before = table(decoder)
    name = decoder._table[hpack._OFFSET + index][0]
    mask = 0x3F if first == 0x40 else 0x0F
    start = bytearray(reference.hpack.encode_integer(index, 6 if mask == 0x3F else 4))
    start[0] |= first
    block = bytes(start + reference.hpack.encode_integer(length, 7)) + b"v" * length
    assert decoded(decoder, block) == [(name, b"v" * length)]
    assert table(decoder) == ([(name, b"v" * length), *before] if first == 0x40 else before)


@pytest.mark.parametrize(
    "block", [b"\x80", b"\x00", b"\x40", b"\x10", b"\xbe", b"\x7f\x00\x00", b"\xff\x00", b"\xff\x80\x01"]
)
def test_index_zero_or_beyond_the_tables_is_an_error(block: bytes) -> None:
    """Index 0 of an indexed field and an index beyond both tables are errors; RFC 7541, sections 6.1 and 2.3.3."""
    with pytest.raises(HpackError):
        Decoder().decode_fields(block)


def test_the_last_index_of_the_dynamic_table_is_valid() -> None:
    """Index 61 + n is the oldest of n dynamic entries, 62 + n is an error."""
    for count in (1, 2, 65, 66, 67, 100):
        decoder = Decoder()
        for number in range(count):
            decoder.decode_fields(literal(b"n%d" % number, b""))
        last, beyond = (bytes(reference.hpack.encode_integer(NUM_STATIC + count + more, 7)) for more in (0, 1))
        assert decoded(decoder, bytes((last[0] | 0x80,)) + last[1:]) == [(b"n0", b"")]
        with pytest.raises(HpackError):
            decoder.decode_fields(bytes((beyond[0] | 0x80,)) + beyond[1:])


@pytest.mark.parametrize("first", [0xFF, 0x7F, 0x0F, 0x1F, 0x3F])
@pytest.mark.parametrize("more", [b"\xff" * 4 + b"\x01", b"\x80" * 4 + b"\x00", b"\x80" * 100_000])
def test_long_integers_are_errors(first: int, more: bytes) -> None:
    """An integer with more than four continuation bytes is an error, even if zeros pad it; RFC 7541, section 5.1."""
    with pytest.raises(HpackError, match="four continuation bytes"):
        Decoder().decode_fields(bytes((first,)) + more)


@pytest.mark.parametrize("prefix", [b"\x00\x7f", b"\x00\xff", b"\x04\x7f"])
def test_huge_string_lengths_are_errors(prefix: bytes) -> None:
    """A string longer than its block is an error, and no memory is taken for it."""
    with pytest.raises(HpackError, match="truncated string"):
        Decoder().decode_fields(prefix + b"\xff\xff\xff\x7f" + b"a" * 300)


@pytest.mark.parametrize("client", CONNECTIONS)
def test_truncated_blocks_are_errors(client: str) -> None:
    """A block cut within a field is an error; cut between fields, it has the fields before the cut."""
    (block, fields), *_ = CONNECTIONS[client]
    valid = 0
    for end in range(len(block)):
        try:
            assert decoded(Decoder(), block[:end]) == fields[:valid]
            valid += 1
        except HpackError:
            pass
    assert valid == len(fields)


@pytest.mark.parametrize("string", [b"\x81\xff\xff", b"\x81\x00", b"\x84\xff\xff\xff\xff"])
def test_invalid_huffman_strings_are_errors(string: bytes) -> None:
    """Invalid padding and EOS in a name or a value are errors of HPACK; RFC 7541, section 5.2."""
    for block in (b"\x00" + string + b"\x00", b"\x04" + string, b"\x40\x01a" + string):
        with pytest.raises(HpackError):
            Decoder().decode_fields(block)


# Size of the dynamic table.


def test_size_updates_evict_and_restore() -> None:
    """An update to 0 empties the table, and a later update permits entries again, up to what was announced."""
    decoder = Decoder()
    decoder.decode_fields(literal(b"a", b"1") + literal(b"b", b"2"))
    assert decoded(decoder, b"\x20\x3f\xe1\x1f\x82") == [(b":method", b"GET")]
    assert table(decoder) == []
    decoder.decode_fields(literal(b"c", b"3"))
    assert table(decoder) == [(b"c", b"3")]
    assert decoded(decoder, b"\x20" + literal(b"d", b"4")) == [(b"d", b"4")]
    assert table(decoder) == []


@pytest.mark.parametrize("block", [b"\x3f\xe2\x1f", b"\x3f\xff\xff\xff\x7f", b"\x20\x3f\xe2\x1f"])
def test_a_size_above_the_announced_one_is_an_error(block: bytes) -> None:
    """A size update above the announced 4096 bytes is an error; RFC 7541, section 6.3."""
    assert Decoder().decode_fields(b"\x3f\xe1\x1f") == ()
    with pytest.raises(HpackError, match="announced 4096"):
        Decoder().decode_fields(block)


@pytest.mark.parametrize("block", [b"\x82\x20", b"\x20\x82\x20", literal(b"a", b"b") + b"\x20"])
def test_a_size_update_after_a_field_is_an_error(block: bytes) -> None:
    """Size updates come at the beginning of a block only; RFC 7541, section 4.2."""
    with pytest.raises(HpackError, match="after a field"):
        Decoder().decode_fields(block)


def test_a_third_size_update_is_an_error() -> None:
    """A block has at most two size updates; RFC 7541, section 4.2."""
    assert decoded(Decoder(), b"\x20\x3f\xe1\x1f\x82") == [(b":method", b"GET")]
    with pytest.raises(HpackError, match="more than two"):
        Decoder().decode_fields(b"\x20\x20\x20")


def test_an_entry_larger_than_the_table_empties_it() -> None:
    """An entry larger than the table is a valid field that empties the table; RFC 7541, section 4.4."""
    decoder = Decoder(max_table_size=100)
    decoder.decode_fields(literal(b"a", b"1"))
    assert decoded(decoder, literal(b"b", b"x" * 67)) == [(b"b", b"x" * 67)]
    assert table(decoder) == [(b"b", b"x" * 67)]
    assert decoded(decoder, literal(b"b", b"x" * 68)) == [(b"b", b"x" * 68)]
    assert table(decoder) == []


def test_a_name_may_come_from_an_entry_that_its_insertion_evicts() -> None:
    """A literal refers to the name of the entry that it evicts; RFC 7541, section 4.4."""
    decoder = Decoder(max_table_size=64)
    decoder.decode_fields(literal(b"name", b"1"))
    assert decoded(decoder, b"\x7e\x0a" + b"v" * 10) == [(b"name", b"v" * 10)]
    assert table(decoder) == [(b"name", b"v" * 10)]


# Against the library.

NAMES = st.sampled_from([b":method", b":path", b"content-type", b"user-agent", b"x-a", b"x-b"]) | st.binary(max_size=12)
VALUES = st.sampled_from([b"", b"POST", b"/", b"application/grpc"]) | st.binary(max_size=40) | st.binary(max_size=300)
FIELDS = st.lists(st.tuples(NAMES, VALUES, st.booleans()), max_size=12)
BLOCKS = st.lists(st.tuples(FIELDS, st.booleans(), st.none() | st.integers(0, 4096)), max_size=12)


@given(BLOCKS, st.sampled_from([0, 64, 100, 256, 4096]))
def test_blocks_of_the_library_are_decoded(
    blocks: list[tuple[list[tuple[bytes, bytes, bool]], bool, int | None]], size_bytes: int
) -> None:
    """Random fields, encoded by the library with changing table sizes, give the same fields and the same table."""
    encoder, library, decoder = reference.Encoder(), reference_decoder(), Decoder()
    encoder.header_table_size = size_bytes
    for fields, huffman, new_size_bytes in blocks:
        if new_size_bytes is not None:
            encoder.header_table_size = new_size_bytes
        block = encoder.encode(fields, huffman=huffman)
        assert decoded(decoder, block) == [(name, value) for name, value, _ in fields]
        library.decode(block, raw=True)
        assert table(decoder) == reference_table(library)
        assert decoder._size_bytes == library.header_table._current_size


STRINGS = st.binary(max_size=6).map(lambda string: bytes((len(string),)) + string)
HUFFMAN_STRINGS = st.binary(max_size=4).map(lambda string: bytes((0x80 | len(string),)) + string)
PIECES = st.one_of(
    st.integers(0x80, 0xFF).map(lambda byte: bytes((byte,))),
    st.tuples(st.integers(0x41, 0x7E).map(lambda byte: bytes((byte,))), STRINGS | HUFFMAN_STRINGS).map(b"".join),
    st.tuples(st.sampled_from([b"\x40", b"\x00", b"\x10"]), STRINGS, STRINGS | HUFFMAN_STRINGS).map(b"".join),
    st.sampled_from([b"\x20", b"\x3f\xe1\x1f", b"\x3f\x21", b"\x3f\xe2\x1f"]),
    st.binary(max_size=4),
)
RANDOM_BLOCKS = st.lists(PIECES, max_size=10).map(b"".join) | st.binary(max_size=40)

STRICTER = ("four continuation bytes", "more than two")
"""Blocks that the library accepts and the decoder refuses: long integers and many size updates."""


@given(st.lists(RANDOM_BLOCKS, max_size=6))
def test_random_blocks_are_accepted_as_by_the_library(blocks: list[bytes]) -> None:
    """Random blocks are accepted or refused as by the library, with the same fields and the same table."""
    library, decoder = reference_decoder(), Decoder()
    for block in blocks:
        try:
            expected = [(bytes(name), bytes(value)) for name, value in library.decode(block, raw=True)]
        except reference.HPACKError:
            with pytest.raises(HpackError):
                decoder.decode_fields(block)
            return
        try:
            assert decoded(decoder, block) == expected
        except HpackError as error:
            assert any(reason in str(error) for reason in STRICTER)
            return
        assert table(decoder) == reference_table(library)


# Cached blocks.


@given(
    st.sampled_from(list(CONNECTIONS)).flatmap(
        lambda client: st.lists(st.sampled_from([block for block, _ in CONNECTIONS[client][:4]]), max_size=20).map(
            lambda blocks: [CONNECTIONS[client][0][0], *blocks]
        )
    )
)
def test_caching_does_not_change_results(blocks: list[bytes]) -> None:
    """Repeated blocks in any order give the same heads and tables as without a cache."""
    cached, plain = Decoder(), Decoder()
    for block in blocks:
        try:
            expected = plain.decode_fields(block)
        except HpackError:
            with pytest.raises(HpackError):
                cached.decode_request(block)
            return
        head = cached.decode_request(block)
        assert [field[:2] for field in head._decoded] == [field[:2] for field in expected]
        assert table(cached) == table(plain)


def test_equal_blocks_share_a_head_while_the_table_is_unchanged() -> None:
    """An indexed block gives the same head until a block changes the table; then it is decoded again."""
    decoder = Decoder()
    decoder.decode_request(REQUEST_BLOCK + literal(b"x-a", b"1"))
    block = REQUEST_BLOCK + b"\xbe"
    head = decoder.decode_request(block)
    assert decoder.decode_request(block) is head
    decoder.decode_fields(b"\xbe")
    assert decoder.decode_request(block) is head
    decoder.decode_fields(literal(b"x-b", b"2"))
    changed = decoder.decode_request(block)
    assert [field[:2] for field in head.fields] == [(b"x-a", b"1")]
    assert [field[:2] for field in changed.fields] == [(b"x-b", b"2")]


def test_a_block_with_a_size_update_is_never_cached() -> None:
    """A repeated block that begins with a size update has its effect each time."""
    decoder = Decoder()
    block = b"\x20\x3f\xe1\x1f" + REQUEST_BLOCK
    for _ in range(2):
        decoder.decode_request(literal(b"x-a", b"1") + REQUEST_BLOCK)
        assert table(decoder) == [(b"x-a", b"1")]
        decoder.decode_request(block)
        assert table(decoder) == []


def test_the_cache_is_bounded() -> None:
    """A decoder remembers few blocks, none that is long or has many fields."""
    decoder = Decoder()
    for number in range(1000):
        decoder.decode_request(REQUEST_BLOCK + b"\x00\x03x-a\x04%04d" % number)
        assert len(decoder._heads) <= hpack._MAX_CACHED
    decoder = Decoder()
    decoder.decode_request(REQUEST_BLOCK + encode_fields([(b"x-a", b"a" * 200)]))
    decoder.decode_request(REQUEST_BLOCK + b"\x82" * 100)
    assert not decoder._heads


# Limits of requests.


def test_large_fields_are_a_problem_and_the_table_stays_right() -> None:
    """Fields above the limit are FIELDS_TOO_LARGE, all entries are inserted, and the next request is valid."""
    decoder, library = Decoder(), reference_decoder()
    block = REQUEST_BLOCK + b"".join(literal(b"x-%d" % number, b"v" * 100) for number in range(120))
    assert decoder.decode_request(block).problem is Problem.FIELDS_TOO_LARGE
    assert decoder.decode_request(block).fields == ()
    library.decode(block, raw=True)
    library.decode(block, raw=True)
    assert table(decoder) == reference_table(library)
    assert decoder.decode_request(REQUEST_BLOCK + b"\xbe").problem is None


@pytest.mark.parametrize(("num_bytes", "problem"), [(16_384, None), (16_385, Problem.FIELDS_TOO_LARGE)])
def test_the_limit_of_bytes_is_exact(num_bytes: int, problem: Problem | None) -> None:
    """The size of a request's fields is that of RFC 9113, section 6.5.2: 32 bytes more per field."""
    used = sum(len(name) + len(value) + 32 for name, value in REQUEST)
    value = b"v" * (num_bytes - used - 32 - 3)
    assert Decoder().decode_request(encode_fields([*REQUEST, (b"x-a", value)])).problem is problem


@pytest.mark.parametrize(("num_fields", "problem"), [(128, None), (129, Problem.FIELDS_TOO_LARGE)])
def test_the_limit_of_fields_is_exact(num_fields: int, problem: Problem | None) -> None:
    """A request has at most the given number of fields."""
    fields = [*REQUEST, *[(b"x-a", b"")] * (num_fields - len(REQUEST))]
    assert Decoder(max_fields=128).decode_request(encode_fields(fields)).problem is problem


def test_indexed_fields_do_not_multiply_memory() -> None:
    """A block of 16 KiB whose fields amount to 64 MB takes less than 1 MB."""
    decoder = Decoder()
    decoder.decode_fields(b"\x40\x03x-a\x7f\xd0\x1e" + b"v" * 4047)
    block = REQUEST_BLOCK + b"\xbe" * 16_000
    tracemalloc.start()
    assert decoder.decode_request(block).problem is Problem.FIELDS_TOO_LARGE
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


# Encoder.


@given(st.lists(st.tuples(NAMES, VALUES), max_size=12))
def test_encoded_fields_are_decoded_by_the_library(fields: Fields) -> None:
    """The library decodes encoded fields to themselves, and its dynamic table stays empty."""
    library = reference_decoder()
    library.header_table_size = 0
    assert [tuple(field) for field in library.decode(hpack.TABLE_SIZE_ZERO + encode_fields(fields), raw=True)] == fields
    assert reference_table(library) == []


@pytest.mark.parametrize("length", [0, 1, 126, 127, 128, 254, 255, 256, 16_383, 16_384, 70_000])
def test_encoded_lengths(length: int) -> None:
    """Names and values of any length are encoded; RFC 7541, section 5.1."""
    for field in [(b"n" * max(length, 1), b"v"), (b"grpc-message", b"v" * length), (b"server", b"v" * length)]:
        assert [tuple(each) for each in reference_decoder().decode(encode_fields([field]), raw=True)] == [field]


def test_encoded_fields_use_the_static_table() -> None:
    """A field of the static table takes one byte; a name of it is not repeated."""
    assert encode_fields([(b":status", b"200")]) == b"\x88"
    assert encode_fields([(b":status", b"415")]) == b"\x08\x03415"
    assert encode_fields([(b"content-type", b"a")]) == b"\x0f\x10\x01a"
    assert encode_fields([(b"grpc-status", b"0")]) == b"\x00\x0bgrpc-status\x010"

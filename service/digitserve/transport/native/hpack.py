"""HPACK (RFC 7541): decoder for requests, and encoder for the few fields of responses.

    connection ──header block──▶ Decoder ──fields──▶ head.interpret ──RequestHead──▶ connection
    connection ──fields──▶ encode_fields ──header block──▶ connection

Called on the worker's one thread.
"""

from collections.abc import Iterable

from digitserve.transport.native import huffman
from digitserve.transport.native.head import Field, RequestHead, interpret, prepare, too_large

TABLE_SIZE_ZERO = b"\x20"
"""Dynamic table size update to 0: begins the first block of each connection, because the peer may have announced 0."""


class HpackError(Exception):
    """Invalid header block: connection error COMPRESSION_ERROR (RFC 9113, section 4.3)."""


# RFC 7541, appendix A. One entry per line: name, then the value if there is one.
_STATIC_TABLE = """
:authority
:method GET
:method POST
:path /
:path /index.html
:scheme http
:scheme https
:status 200
:status 204
:status 206
:status 304
:status 400
:status 404
:status 500
accept-charset
accept-encoding gzip, deflate
accept-language
accept-ranges
accept
access-control-allow-origin
age
allow
authorization
cache-control
content-disposition
content-encoding
content-language
content-length
content-location
content-range
content-type
cookie
date
etag
expect
expires
from
host
if-match
if-modified-since
if-none-match
if-range
if-unmodified-since
last-modified
link
location
max-forwards
proxy-authenticate
proxy-authorization
range
referer
refresh
retry-after
server
set-cookie
strict-transport-security
transfer-encoding
user-agent
vary
via
www-authenticate
"""


def _static_fields() -> list[tuple[bytes, bytes]]:
    """Return name and value of the entries of the static table, index 1 first."""
    entries = (line.encode().partition(b" ") for line in _STATIC_TABLE.split("\n") if line)
    return [(name, value) for name, _, value in entries]


# First byte of a representation: RFC 7541, section 6.
_INDEXED = 0x80
_INCREMENTAL = 0x40
_SIZE_UPDATE = 0x20
_INDEX_MASK = 0x7F
_INCREMENTAL_MASK = 0x3F
_SIZE_UPDATE_MASK = 0x1F
_LITERAL_MASK = 0x0F
_LONG_INDEX = _INDEXED | _INDEX_MASK
# First byte of a string, and a continuation byte of an integer.
_HUFFMAN = 0x80
_LENGTH_MASK = 0x7F
_CONTINUED = 0x80

# The list of a decoder has the entry of index k at 128 + k, where the byte of an indexed field, 0x80 | k, finds it.
# The newest entry of the dynamic table is at _NEWEST, so that insertion moves only dynamic entries.
_OFFSET = 128
_STATIC = [prepare(b"", b"")] * (_OFFSET + 1) + [prepare(name, value) for name, value in _static_fields()]
_NEWEST = len(_STATIC)
_LARGEST_STATIC_BYTES = max(field[3] for field in _STATIC)

# A header block has at most two updates: the smallest size between two blocks, and the last one. RFC 7541, section 4.2.
_MAX_SIZE_UPDATES = 2
# Integers have at most four continuation bytes: more than any length or index within the limits of a connection needs.
_SHIFTS = (0, 7, 14, 21)

# Bounds of the blocks remembered per connection: a client alternates between few methods and deadlines. They limit the
# memory that a hostile client can make each of its connections take to 64 KiB.
_MAX_CACHED = 16
_MAX_CACHED_BYTES = 256
_MAX_CACHED_FIELDS = 16

# Memory of an entry of the dynamic table beyond its 32 bytes there, and of a remembered block (measured).
_ENTRY_BYTES = 300
_HEAD_BYTES = 2_000
# Memory of a field of a request beyond its bytes in the block, which Huffman coding halves: a tuple and two byte strings.
_FIELD_BYTES = 160


class Decoder:
    """Decodes the header blocks of one connection, in the order received; owned by the connection.

    After an ``HpackError`` it must not be used again. Decoding takes memory in proportion to the bytes of a block, which
    the connection bounds.
    """

    __slots__ = (
        "_allowed_bytes",
        "_heads",
        "_largest_bytes",
        "_max_bytes",
        "_max_fields",
        "_max_list_bytes",
        "_size_bytes",
        "_table",
    )

    def __init__(self, max_table_size: int = 4096, max_list_bytes: int = 16_384, max_fields: int = 128) -> None:
        """Create a decoder.

        Args:
            max_table_size: SETTINGS_HEADER_TABLE_SIZE as announced to the client, in bytes.
            max_list_bytes: most bytes of a request's header fields, as RFC 9113, section 6.5.2 counts them.
            max_fields: most header fields of a request.
        """
        self._table = _STATIC.copy()
        self._size_bytes = 0
        self._allowed_bytes = max_table_size
        self._max_bytes = max_table_size
        self._max_list_bytes = max_list_bytes
        self._max_fields = max_fields
        # Size of the largest field that was ever in the tables.
        self._largest_bytes = _LARGEST_STATIC_BYTES
        # Valid while the dynamic table stays as it is.
        self._heads: dict[bytes, RequestHead] = {}

    def decode_request(self, block: bytes) -> RequestHead:
        """Decode the header block of a request and interpret its fields.

        Raises:
            HpackError: the block is invalid.
        """
        heads = self._heads
        head = heads.get(block)
        if head is not None:
            return head
        fields, changed = self._decode(block)
        # No field is larger than the largest entry or, as a literal, than twice the block: a symbol of the Huffman code
        # has at least five bits. So the exact size is rarely needed.
        bound_bytes = len(fields) * self._largest_bytes + 2 * len(block)
        if (bound_bytes > self._max_list_bytes or len(fields) > self._max_fields) and self._exceeds(fields):
            head = too_large(self._max_list_bytes, self._max_fields)
        else:
            head = interpret(fields)
        head.num_bytes = _FIELD_BYTES * len(fields) + 2 * len(block)
        if changed:
            heads.clear()
        elif len(block) <= _MAX_CACHED_BYTES and len(fields) <= _MAX_CACHED_FIELDS:
            if len(heads) >= _MAX_CACHED:
                heads.clear()
            heads[block] = head
        return head

    def decode_fields(self, block: bytes) -> tuple[Field, ...]:
        """Decode a header block without interpretation, such as trailers or those of a request that is ignored.

        Raises:
            HpackError: the block is invalid.
        """
        fields, changed = self._decode(block)
        if changed:
            self._heads.clear()
        return tuple(fields)

    def num_held_bytes(self) -> int:
        """Return about how many bytes of memory the dynamic table and the remembered blocks take."""
        return _ENTRY_BYTES * (len(self._table) - _NEWEST) + _HEAD_BYTES * len(self._heads)

    def forget_blocks(self) -> int:
        """Forget the remembered blocks; return about how many bytes of memory they took."""
        num_bytes = _HEAD_BYTES * len(self._heads)
        self._heads.clear()
        return num_bytes

    def _exceeds(self, fields: list[Field]) -> bool:
        """Return whether fields exceed the limits of a request."""
        return len(fields) > self._max_fields or sum([field[3] for field in fields]) > self._max_list_bytes

    def _decode(self, block: bytes) -> tuple[list[Field], bool]:  # noqa: C901, PLR0912, PLR0915 - calls would double the time
        """Return the fields of a block, and whether it changed the dynamic table."""
        table = self._table
        fields: list[Field] = []
        changed = False
        try:
            # Most blocks begin with indexed fields or consist of them: this loop is the fastest.
            for byte in block:
                if _INDEXED < byte < _LONG_INDEX:
                    fields.append(table[byte])
                else:
                    break
            position = len(fields)
            end = len(block)
            while position < end:
                byte = block[position]
                position += 1
                if byte >= _INDEXED:
                    index = byte & _INDEX_MASK
                    if index == _INDEX_MASK:
                        index, position = _integer(block, position, index)
                    elif not index:
                        raise HpackError("index 0")
                    fields.append(table[_OFFSET + index])
                    continue
                if byte >= _INCREMENTAL:
                    mask = _INCREMENTAL_MASK
                elif byte < _SIZE_UPDATE:
                    # Without indexing, or never indexed.
                    mask = _LITERAL_MASK
                else:
                    if fields:
                        raise HpackError("dynamic table size update after a field")
                    position = self._resize(block, position - 1)
                    changed = True
                    continue
                index = byte & mask
                if index == mask:
                    index, position = _integer(block, position, mask)
                if index:
                    name = table[_OFFSET + index][0]
                else:
                    name, position = _string(block, position)
                value, position = _string(block, position)
                field = prepare(name, value)
                fields.append(field)
                if byte >= _INCREMENTAL:
                    # Insertion before eviction has the result that RFC 7541, section 4.4 requires.
                    changed = True
                    size_bytes = field[3]
                    if size_bytes > self._largest_bytes:  # noqa: PLR1730 - faster than max
                        self._largest_bytes = size_bytes
                    table.insert(_NEWEST, field)
                    size_bytes += self._size_bytes
                    while size_bytes > self._max_bytes:
                        size_bytes -= table.pop()[3]
                    self._size_bytes = size_bytes
        except IndexError:
            raise HpackError("truncated header block, or index beyond the tables") from None
        return fields, changed

    def _resize(self, block: bytes, position: int) -> int:
        """Apply the dynamic table size updates at the beginning of a block; return the position after them."""
        updates = 0
        while position < len(block) and _SIZE_UPDATE <= block[position] < _INCREMENTAL:
            updates += 1
            size_bytes = block[position] & _SIZE_UPDATE_MASK
            position += 1
            if size_bytes == _SIZE_UPDATE_MASK:
                size_bytes, position = _integer(block, position, size_bytes)
            if updates > _MAX_SIZE_UPDATES:
                raise HpackError("more than two dynamic table size updates")
            if size_bytes > self._allowed_bytes:
                raise HpackError(f"dynamic table size update to {size_bytes} bytes, announced {self._allowed_bytes}")
            self._max_bytes = size_bytes
            while self._size_bytes > size_bytes:
                self._size_bytes -= self._table.pop()[3]
        return position


def _integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """Read the continuation of an integer whose prefix is all ones; return the integer and the position after it."""
    value = mask
    for shift in _SHIFTS:
        byte = block[position]
        position += 1
        if byte < _CONTINUED:
            return value + (byte << shift), position
        value += (byte - _CONTINUED) << shift
    raise HpackError("integer with more than four continuation bytes")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """Read a string; return it and the position after it."""
    byte = block[position]
    position += 1
    length = byte & _LENGTH_MASK
    if length == _LENGTH_MASK:
        length, position = _integer(block, position, length)
    end = position + length
    string = block[position:end]
    if len(string) != length:
        raise HpackError("truncated string")
    if byte >= _HUFFMAN:
        try:
            string = huffman.decode(string)
        except ValueError as error:
            raise HpackError(str(error)) from None
    return string, end


_STATIC_INDEXES = {field: index for index, field in reversed([*enumerate(_static_fields(), 1)])}
_STATIC_NAMES = {name: index for (name, _), index in _STATIC_INDEXES.items()}


def encode_fields(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Encode header fields without the dynamic table and without the Huffman code."""
    block = bytearray()
    for name, value in fields:
        index = _STATIC_INDEXES.get((name, value))
        if index:
            block.append(_INDEXED | index)
            continue
        index = _STATIC_NAMES.get(name, 0)
        block += _encoded_integer(index, _LITERAL_MASK)
        if not index:
            block += _encoded_integer(len(name), _LENGTH_MASK) + name
        block += _encoded_integer(len(value), _LENGTH_MASK) + value
    return bytes(block)


def _encoded_integer(value: int, mask: int) -> bytes:
    """Return an integer after zeros in the first byte; RFC 7541, section 5.1."""
    if value < mask:
        return bytes((value,))
    encoded = bytearray((mask,))
    value -= mask
    while value >= _CONTINUED:
        encoded.append(value % _CONTINUED + _CONTINUED)
        value //= _CONTINUED
    encoded.append(value)
    return bytes(encoded)

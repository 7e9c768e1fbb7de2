"""HPACK (RFC 7541): decoder for requests, and encoder for the few fields of responses.

    connection ──header block──▶ Decoder ──fields──▶ head.interpret ──RequestHead──▶ connection
    connection ──fields──▶ encode_fields ──header block──▶ connection

Called on the worker's one thread.
"""

from collections.abc import Iterable

from digitserve.transport.native import huffman
from digitserve.transport.native.head import Field, RequestHead, interpret, prepare

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


# The list of a decoder has the entry of index k at 128 + k, where the byte of an indexed field, 0x80 | k, finds it.
# Index 0 is invalid. The newest entry of the dynamic table is at _NEWEST, so that insertion moves only dynamic entries.
_OFFSET = 128
_INVALID_INDEX: Field = (b"", b"", -1, 0)
_STATIC = [_INVALID_INDEX] * (_OFFSET + 1) + [prepare(name, value) for name, value in _static_fields()]
_NEWEST = len(_STATIC)

# A header block has at most two updates: the smallest size between two blocks, and the last one. RFC 7541, section 4.2.
_MAX_SIZE_UPDATES = 2
# Continuation bytes of an integer: 28 bits are more than any length or index within the limits of a connection.
_MAX_SHIFT = 28

# Bounds of the blocks remembered per connection: a client alternates between few methods and deadlines. They keep a
# hostile connection's memory for them below 64 KiB.
_MAX_CACHED = 16
_MAX_CACHED_BYTES = 256
_MAX_CACHED_FIELDS = 24


class Decoder:
    """Decodes the header blocks of one connection, in the order received; owned by the connection.

    After an ``HpackError`` it must not be used again. Decoding takes memory in proportion to the bytes of a block, which
    the connection bounds.
    """

    __slots__ = ("_allowed_bytes", "_heads", "_max_bytes", "_max_fields", "_max_list_bytes", "_size_bytes", "_table")

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
        # Valid while the dynamic table stays as it is.
        self._heads: dict[bytes, RequestHead] = {}

    def decode_request(self, block: bytes) -> RequestHead:
        """Decode the header block of a request and interpret its fields.

        Raises:
            HpackError: the block is invalid.
        """
        head = self._heads.get(block)
        if head is None:
            fields, changed = self._decode(block)
            head = interpret(fields, self._max_list_bytes, self._max_fields)
            if changed:
                self._heads.clear()
            elif len(block) <= _MAX_CACHED_BYTES and len(fields) <= _MAX_CACHED_FIELDS:
                if len(self._heads) == _MAX_CACHED:
                    self._heads.clear()
                self._heads[block] = head
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

    def _decode(self, block: bytes) -> tuple[list[Field], bool]:
        """Return the fields of a block, and whether it changed the dynamic table."""
        table = self._table
        fields: list[Field] = []
        changed = False
        position = 0
        end = len(block)
        try:
            while position < end:
                byte = block[position]
                position += 1
                if byte >= 0x80:
                    if byte == 0xFF:
                        index, position = _integer(block, position, 0x7F)
                        fields.append(table[_OFFSET + index])
                    elif byte == 0x80:
                        raise HpackError("index 0")
                    else:
                        fields.append(table[byte])
                    continue
                if byte >= 0x40:
                    prefix = 0x3F
                elif byte >= 0x20:
                    if fields:
                        raise HpackError("dynamic table size update after a field")
                    position = self._resize(block, position - 1)
                    changed = True
                    continue
                else:
                    prefix = 0x0F
                index = byte & prefix
                if index == prefix:
                    index, position = _integer(block, position, prefix)
                if index:
                    name = table[_OFFSET + index][0]
                else:
                    name, position = _string(block, position)
                value, position = _string(block, position)
                field = prepare(name, value)
                fields.append(field)
                if byte >= 0x40:
                    changed = True
                    self._size_bytes += field[3]
                    table.insert(_NEWEST, field)
                    if self._size_bytes > self._max_bytes:
                        self._evict()
        except IndexError:
            raise HpackError("truncated header block, or index beyond the tables") from None
        return fields, changed

    def _resize(self, block: bytes, position: int) -> int:
        """Apply the dynamic table size updates at the beginning of a block; return the position after them."""
        updates = 0
        while position < len(block) and block[position] & 0xE0 == 0x20:
            updates += 1
            size_bytes = block[position] & 0x1F
            position += 1
            if size_bytes == 0x1F:
                size_bytes, position = _integer(block, position, 0x1F)
            if updates > _MAX_SIZE_UPDATES or size_bytes > self._allowed_bytes:
                raise HpackError(
                    f"more than two dynamic table size updates, or to more than {self._allowed_bytes} bytes"
                )
            self._max_bytes = size_bytes
            self._evict()
        return position

    def _evict(self) -> None:
        """Remove the oldest entries until the dynamic table is within its size; RFC 7541, section 4.3 and 4.4."""
        table = self._table
        while self._size_bytes > self._max_bytes:
            self._size_bytes -= table.pop()[3]


def _integer(block: bytes, position: int, prefix: int) -> tuple[int, int]:
    """Read the continuation of an integer whose prefix is all ones; return the integer and the position after it."""
    value = prefix
    for shift in range(0, _MAX_SHIFT, 7):
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise HpackError("integer of more than four continuation bytes")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    """Read a string; return it and the position after it."""
    byte = block[position]
    position += 1
    length = byte & 0x7F
    if length == 0x7F:
        length, position = _integer(block, position, 0x7F)
    end = position + length
    string = block[position:end]
    if len(string) != length:
        raise HpackError("truncated string")
    if byte >= 0x80:
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
            block.append(0x80 | index)
            continue
        index = _STATIC_NAMES.get(name, 0)
        block += _encoded_integer(index, 0x0F)
        if not index:
            block += _encoded_integer(len(name), 0x7F) + name
        block += _encoded_integer(len(value), 0x7F) + value
    return bytes(block)


def _encoded_integer(value: int, prefix: int) -> bytes:
    """Return an integer whose first byte has zeros above the prefix; RFC 7541, section 5.1."""
    if value < prefix:
        return bytes((value,))
    encoded = bytearray((prefix,))
    value -= prefix
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)

"""Header blocks of requests as different clients send them: for ``replay``, which sends them without further encoding.

In all styles but ``plain``, each call has new values, so its block differs from all others of the connection.
"""

import random
from collections.abc import Callable

import hpack

from digitserve.bench.frames import DEFAULT_TABLE_BYTES

NUM_BLOCKS = 4_096
"""Calls of a connection until its blocks repeat: far more than a server could cache."""

_CLEAR_TABLE = b"\x20\x3f\xe1\x1f"
"""Dynamic table size updates to 0 and back to ``DEFAULT_TABLE_BYTES``, so that the first block may follow the last one."""

Fields = list[tuple[bytes, bytes]]


def header_blocks(style: str, path: str) -> list[bytes]:
    """Return the header blocks of the calls of a connection, in order; after the last one, the first one follows again.

    Args:
        style: a name in ``STYLES``.
        path: of the method.
    """
    # The same values in all processes: servers and rounds must meet the same blocks.
    generator = random.Random(1)
    encoder = hpack.Encoder()
    fields = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"127.0.0.1:50051"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    ]  # fmt: skip
    blocks = [STYLES[style](encoder, fields, generator) for _ in range(NUM_BLOCKS)]
    assert encoder.header_table_size == DEFAULT_TABLE_BYTES
    return [_CLEAR_TABLE + blocks[0], *blocks[1:]]


def _plain(encoder: hpack.Encoder, fields: Fields, _generator: random.Random) -> bytes:
    """Encode the same fields in each call: after the first call, a block has only indices of the table."""
    return encoder.encode([*fields, (b"user-agent", b"h2load nghttp2/1.52.0")])


def _grpcio(encoder: hpack.Encoder, fields: Fields, generator: random.Random) -> bytes:
    """Encode a new deadline and a new request id as gRPC core does: it indexes deadlines, and uses no Huffman code."""
    constant = [(b"grpc-accept-encoding", b"identity, deflate, gzip"), (b"user-agent", b"grpc-python/1.85.3")]
    deadline = (b"grpc-timeout", b"%dm" % generator.randrange(20_000, 99_999))
    request_id = (b"x-request-id", b"%016x" % generator.getrandbits(64))
    block: bytes = encoder.encode([*fields, *constant], huffman=False)
    block += b"\x40" + _strings(deadline) + b"\x00" + _strings(request_id)
    encoder.header_table.add(*deadline)
    return block


def _grpc_go(encoder: hpack.Encoder, fields: Fields, generator: random.Random) -> bytes:
    """Encode a new deadline and two new metadata fields as grpc-go does: it indexes and Huffman-codes each field."""
    deadline = b"%du" % generator.randrange(20_000_000, 99_999_999)
    traces = [
        (b"x-trace-%d" % index, b"00-%032x-%016x-01" % (generator.getrandbits(128), generator.getrandbits(64)))
        for index in range(2)
    ]
    return encoder.encode([*fields, (b"user-agent", b"grpc-go/1.75.0"), (b"grpc-timeout", deadline), *traces])


def _strings(field: tuple[bytes, bytes]) -> bytes:
    """Encode name and value without Huffman code; both are shorter than 127 bytes."""
    return b"".join(bytes((len(string),)) + string for string in field)


STYLES: dict[str, Callable[[hpack.Encoder, Fields, random.Random], bytes]] = {
    "plain": _plain,
    "grpcio": _grpcio,
    "grpc-go": _grpc_go,
}
"""The block of the next call, for each kind of client."""

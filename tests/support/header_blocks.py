"""Header blocks of requests: as real clients sent them, and in the style of grpc-go."""

import json
import random
from pathlib import Path

import hpack

Fields = list[tuple[bytes, bytes]]
Connection = list[tuple[bytes, Fields]]
"""Header blocks of one connection in the order sent, each with its fields."""

PATH = b"/digitserve.v1.DigitService/Classify"

REQUEST: Fields = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", PATH),
    (b":authority", b"localhost:50051"),
    (b"content-type", b"application/grpc"),
    (b"te", b"trailers"),
]
"""Fields of a valid request."""


def captured() -> dict[str, Connection]:
    """Return by client the first header blocks of a connection: grpcio 1.85.3, grpc-js 1.14.7, h2load 1.52.0."""
    connections = {}
    for client, record in json.loads(Path(__file__).with_name("header_blocks.json").read_text()).items():
        fields = [(name.encode(), value.encode()) for name, value in record["fields"]]
        connections[client] = [
            (bytes.fromhex(block), [fields[index] for index in indexes]) for block, indexes in record["blocks"]
        ]
    return connections


def grpc_go_style(num_blocks: int, num_metadata: int = 0, seed: int = 0) -> Connection:
    """Return blocks that index every field and Huffman-code it, as grpc-go does.

    Args:
        num_blocks: requests, each with a new deadline.
        num_metadata: metadata fields that are new in each request.
        seed: of the values.
    """
    generator = random.Random(seed)
    encoder = hpack.Encoder()
    connection = []
    for _ in range(num_blocks):
        fields = [*REQUEST[:-1], (b"user-agent", b"grpc-go/1.75.0"), REQUEST[-1]]
        fields.append((b"grpc-timeout", b"%du" % generator.randrange(1_900_000, 2_000_000)))
        for index in range(num_metadata):
            # Like the value of traceparent.
            value = b"00-%032x-%016x-01" % (generator.getrandbits(128), generator.getrandbits(64))
            fields.append((b"x-trace-%d" % index, value))
        connection.append((encoder.encode(fields), fields))
    return connection


def grpcio_style(num_blocks: int, *, incremental: bool, seed: int = 0) -> Connection:
    """Return blocks with a new deadline each, without Huffman code, as grpcio sends values that it has not sent before.

    Args:
        num_blocks: requests.
        incremental: whether deadlines are inserted into the dynamic table.
        seed: of the deadlines.
    """
    generator = random.Random(seed)
    encoder = hpack.Encoder()
    connection = []
    for _ in range(num_blocks):
        fields = [
            *REQUEST,
            (b"grpc-accept-encoding", b"identity, deflate, gzip"),
            (b"user-agent", b"grpc-python/1.85.3"),
        ]
        block = encoder.encode(fields, huffman=False)
        deadline = (b"grpc-timeout", b"%dm" % generator.randrange(10_000, 99_999))
        fields.append(deadline)
        block += b"\x40" if incremental else b"\x00"
        block += b"".join(bytes((len(string),)) + string for string in deadline)
        if incremental:
            encoder.header_table.add(*deadline)
        connection.append((block, fields))
    return connection

"""Nanoseconds of decoding and interpreting one header block, by client, and the ratio of the ``hpack`` library's decoder.

    python -m benchmarks.hpack_rate

Each connection is replayed from its beginning by a new decoder. The first third of its blocks fills the dynamic table and
is not timed. The result is the minimum of several rounds: the cost without disturbance by other load. The library only
decodes; interpretation would come on top. "New" values differ in each request; without them blocks repeat and are cached.
"""

import argparse
import math
import time
from collections.abc import Callable
from typing import Any

import hpack as reference

from digitserve.transport.native.hpack import Decoder
from tests.support.header_blocks import captured, grpc_go_style, grpcio_style

NUM_BLOCKS = 1500
"""Blocks of generated connections: the table is full of evictions after 100."""


def connections() -> dict[str, list[bytes]]:
    """Return the header blocks of each connection."""
    generated = {
        "grpcio style, new deadline": grpcio_style(NUM_BLOCKS, incremental=False),
        "grpcio style, new deadline, incremental": grpcio_style(NUM_BLOCKS, incremental=True),
        "grpc-go style, new deadline": grpc_go_style(NUM_BLOCKS),
        "grpc-go style, new deadline, 1 new metadata": grpc_go_style(NUM_BLOCKS, 1),
        "grpc-go style, new deadline, 2 new metadata": grpc_go_style(NUM_BLOCKS, 2),
    }
    return {client: [block for block, _ in connection] for client, connection in (captured() | generated).items()}


def fastest_ns(new_decode: Callable[[], Callable[[bytes], Any]], blocks: list[bytes], rounds: int) -> float:
    """Return the nanoseconds per block in the fastest of several rounds."""
    first = len(blocks) // 3
    fastest_s = math.inf
    for _ in range(rounds):
        decode = new_decode()
        for block in blocks[:first]:
            decode(block)
        timed = blocks[first:]
        start_s = time.perf_counter()
        for block in timed:
            decode(block)
        fastest_s = min(fastest_s, (time.perf_counter() - start_s) / len(timed))
    return fastest_s * 1e9


def reference_decode() -> Callable[[bytes], Any]:
    """Return the ``decode`` of a new decoder of the library."""
    decoder = reference.Decoder()
    return lambda block: decoder.decode(block, raw=True)


def main() -> None:
    """Print a row per connection."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    print(f"{'client':50} {'ns':>7} {'hpack ns':>9} {'ratio':>6}")
    for client, blocks in connections().items():
        native_ns = fastest_ns(lambda: Decoder().decode_request, blocks, rounds)
        library_ns = fastest_ns(reference_decode, blocks, max(rounds // 4, 1))
        print(f"{client:50} {native_ns:7.0f} {library_ns:9.0f} {library_ns / native_ns:6.1f}")


if __name__ == "__main__":
    main()

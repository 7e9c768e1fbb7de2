"""The floors that a single-image request cannot go below.

E is an empty RPC on the raw completion queue, or an empty message on a stream there; B the network alone, in full batches
on one thread. A server that does both and nothing else answers 1/(1/E + 1/B) requests a second.
"""

import argparse
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray
from tests.bench.aio_service import STATS

from digitserve.bundle import IMAGE_SIZE, find, read
from digitserve.completion_queue import OPTIONS, Call, Server, Stream
from digitserve.rpc import CLASSIFY
from digitserve.session import Session
from digitserve.settings import Settings
from digitserve.streams import CLASSIFY_STREAM

ANSWER = np.zeros(10, np.float32).tobytes()
"""Ten floats, as the figures in the notes on what is possible were taken."""


class EmptyTaker:
    """Answers each message at once, unread."""

    def __init__(self, stats: NDArray[np.float64]) -> None:
        """Count in the cells of ``stats``."""
        self._ok = stats[STATS.index("ok") :]

    def on_accept(self, call: Call) -> None:
        """Nothing is to be done."""

    def on_message(self, call: Call, body: bytes) -> None:
        """Answer."""
        self._ok[0] += 1
        call.reply(ANSWER)

    def on_silence(self, call: Call) -> None:
        """Nothing is to be done."""

    def on_too_large(self, call: Call) -> None:
        """Nothing is to be done: the load sends nothing large."""

    def on_close(self, call: Call) -> None:
        """Nothing is to be done."""


class EmptyStreamTaker:
    """Answers each message of a stream at once, unread, and asks for the next."""

    def __init__(self, stats: NDArray[np.float64]) -> None:
        """Count in the cells of ``stats``."""
        self._ok = stats[STATS.index("ok") :]

    def on_accept(self, stream: Stream) -> None:
        """Ask for the first message."""
        stream.read()

    def on_message(self, stream: Stream, body: bytes) -> None:
        """Answer, and read on."""
        self._ok[0] += 1
        stream.write(ANSWER)
        stream.flush()
        stream.read()

    def on_end(self, stream: Stream) -> None:
        """Finish: all that was written is sent, since the load waits for its answers before it ends."""
        stream.finish(0)

    def on_too_large(self, stream: Stream) -> None:
        """Nothing is to be done: the load sends nothing large."""

    def on_written(self, stream: Stream) -> None:
        """Nothing is to be done."""

    def on_close(self, stream: Stream, *, cancelled: bool) -> None:
        """Nothing is to be done."""


def serve_empty(port: int, stats: NDArray[np.float64]) -> None:
    """Answer ``Classify``, and each message of ``ClassifyStream``, with ten floats until SIGTERM."""
    ordinary = grpc.server(ThreadPoolExecutor(1), options=OPTIONS)
    server = Server(ordinary)
    server.take(CLASSIFY, EmptyTaker(stats))
    server.take_stream(CLASSIFY_STREAM, EmptyStreamTaker(stats))
    ordinary.add_insecure_port(f"127.0.0.1:{port}")
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not stopping:
        handled = server.poll(0.1)
        while handled:
            handled = server.poll(0.0)
    server.begin_shutdown()
    server.cancel_all()
    while server.poll(0.1) is not None:
        """Until core says that every connection is closed."""


def measure_network(models: Path, seconds: float) -> float:
    """Return the images a second that onnxruntime alone classifies, in full batches on one thread."""
    settings = Settings()
    bundle = read(find(models, settings.model, None))
    session = Session(bundle, num_threads=1)
    session.warm_up(settings.batch_limit)
    golden = bundle.golden.images
    images = np.ascontiguousarray(np.resize(golden, (settings.batch_limit, IMAGE_SIZE, IMAGE_SIZE, 1)))
    num_batches = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        session.run(images)
        num_batches += 1
    return num_batches * len(images) / (time.perf_counter() - start)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description="Measure what a single-image request costs at least.")
    commands = parser.add_subparsers(dest="floor", required=True)
    empty = commands.add_parser("empty", help="E: serve empty RPCs")
    empty.add_argument("--port", type=int, required=True)
    empty.add_argument("--stats", type=Path, required=True)
    network = commands.add_parser("network", help="B: print images/s of onnxruntime alone")
    network.add_argument("--models", type=Path, required=True)
    network.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    if options.floor == "empty":
        serve_empty(options.port, np.memmap(options.stats, np.float64, "w+", shape=(len(STATS),)))
    else:
        sys.stdout.write(f"{measure_network(options.models, options.seconds):.1f}\n")


if __name__ == "__main__":
    main()

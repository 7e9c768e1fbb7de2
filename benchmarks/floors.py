"""The floors that a single-image request cannot go below.

E is an empty RPC on the raw completion queue, or an empty message on a stream there; B the network alone, in full batches
on one thread. A server that does both and nothing else answers 1/(1/E + 1/B) requests a second.
"""

import argparse
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
from numpy.typing import NDArray

from benchmarks import bundles
from benchmarks.aio_service import STATS
from digitserve.bench.plan import Size
from digitserve.bench.traffic import draw
from digitserve.inference.session import Session
from digitserve.protocol.codec import Limits, decode, response_on_stream, rows
from digitserve.supervision.autotune import mean_s
from digitserve.transport.classify import CLASSIFY
from digitserve.transport.classify_stream import CLASSIFY_STREAM
from digitserve.transport.grpcio.completion_queue import OPTIONS, Call, Server, Stream
from digitserve.types import IMAGE_SIZE
from digitserve.v1 import digits_pb2 as pb

ANSWER = pb.ClassifyResponse(
    predictions=[pb.Prediction(label="7", class_index=7, confidence=0.99, verdict=pb.VERDICT_ACCEPTED, ood_score=-9.0)],
    model_name="digits",
    model_version="1",
    timing=pb.Timing(queue_s=1e-3, preprocess_s=1e-4, inference_s=1e-3, batch_size=64),
).SerializeToString()
"""What digitserve answers to one image, so that the load cannot tell: serialized once."""

ON_STREAM = response_on_stream(ANSWER)


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
        stream.write(ON_STREAM)
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
    """Answer ``Classify``, and each message of ``ClassifyStream``, with one and the same answer until SIGTERM."""
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


def measure_network(models: Path, seconds: float, batch_size: int) -> float:
    """Return the seconds that onnxruntime alone takes for a batch, on one thread: the mean."""
    bundle = bundles.served(models)
    session = Session(bundle, num_threads=1)
    images = np.ascontiguousarray(np.resize(bundle.golden.images, (batch_size, IMAGE_SIZE, IMAGE_SIZE, 1)))
    return mean_s(lambda: session.run(images), seconds)


def measure_framing(side: int, seconds: float) -> float:
    """Return the seconds that framing one image of the load takes, as a worker frames it: the mean."""
    chance = np.random.default_rng(1)
    drawn = [draw(digit, Size(side, side), chance) for digit in range(10)]
    requests = [
        decode(
            pb.ClassifyRequest(pixels=image.tobytes(), height=side, width=side).SerializeToString(),
            Limits("1", side, 1, 1 << 24),
        )
        for image in drawn
    ]
    return mean_s(lambda: [rows(request, 0, 1) for request in requests], seconds) / len(requests)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description="Measure what a single-image request costs at least.")
    commands = parser.add_subparsers(dest="floor", required=True)
    empty = commands.add_parser("empty", help="E: serve empty RPCs")
    empty.add_argument("--port", type=int, required=True)
    empty.add_argument("--stats", type=Path, required=True)
    network = commands.add_parser("network", help="B: print the seconds of a batch of onnxruntime alone")
    network.add_argument("--models", type=Path, required=True)
    network.add_argument("--batch-size", type=int, required=True)
    framing = commands.add_parser("framing", help="print the seconds of framing one image")
    framing.add_argument("--side", type=int, required=True)
    for command in (network, framing):
        command.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    if options.floor == "empty":
        serve_empty(options.port, np.memmap(options.stats, np.float64, "w+", shape=(len(STATS),)))
    elif options.floor == "network":
        sys.stdout.write(f"{measure_network(options.models, options.seconds, options.batch_size)!r}\n")
    else:
        sys.stdout.write(f"{measure_framing(options.side, options.seconds)!r}\n")


if __name__ == "__main__":
    main()

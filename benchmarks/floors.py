"""Lower bounds on the cost of a request.

E: empty RPCs per second, or empty messages of a stream, on either transport, under the scheduling policy of a worker. B: images
per second of onnxruntime alone, in full batches on one thread. A server that does both and nothing else answers
1/(1/E + 1/B) single images per second.
"""

import argparse
import gc
import json
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray

from benchmarks.aio_service import STATS
from digitserve.batching.prepare import prepare
from digitserve.bench.plan import Size
from digitserve.bench.traffic import draw
from digitserve.inference.bundle import read_bundle
from digitserve.inference.session import Session
from digitserve.protocol.codec import Limits, decode, encode_stream_response
from digitserve.protocol.names import CLASSIFY, CLASSIFY_STREAM
from digitserve.protocol.status import OK, Status
from digitserve.settings import Settings
from digitserve.supervision.autotune import mean_s
from digitserve.telemetry.block import Block
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.grpcio.server import GrpcServer
from digitserve.transport.handlers import Server, ServerStream, UnaryCall
from digitserve.transport.native.server import NativeServer
from digitserve.types import IMAGE_SIZE, Source
from digitserve.v1 import digits_pb2 as pb
from digitserve.worker import GC_THRESHOLD, use_batch_scheduling

NUM_IMAGES = 64
"""In a request of the load ``large``."""


def _answer(num_images: int) -> bytes:
    """Return a response of digitserve, serialized."""
    prediction = pb.Prediction(label="7", class_index=7, confidence=0.99, verdict=pb.VERDICT_ACCEPTED, ood_score=-9.0)
    return pb.ClassifyResponse(
        predictions=[prediction] * num_images, model_name="digits", model_version="1",
        timing=pb.Timing(queue_s=1e-3, preprocess_s=1e-4, inference_s=1e-3, batch_size=64),
    ).SerializeToString()  # fmt: skip


ANSWER, LARGE_ANSWER = _answer(1), _answer(NUM_IMAGES)
"""To one image, and to ``NUM_IMAGES``."""

LARGE_BYTES = NUM_IMAGES * IMAGE_SIZE * IMAGE_SIZE
"""Shorter requests hold one image: the load ``framed`` has 64x64 pixels."""

STREAM_ANSWER = encode_stream_response(ANSWER)

NETWORK_ROUNDS = 5
"""Interleaved measurements of several networks, so that other activity of the machine affects all of them."""


class EmptyHandler:
    """Answers each call immediately, without reading its message."""

    def __init__(self, stats: NDArray[np.float64]) -> None:
        """Count in the cells of ``stats``."""
        self._images = stats[STATS.index("images") :]

    def refusal(self, deadline: float, source: Source) -> Status | None:
        """Accept every call."""
        return None

    def on_accept(self, call: UnaryCall) -> None:
        """Do nothing."""

    def on_message(self, call: UnaryCall, body: bytes) -> None:
        """Answer."""
        is_large = len(body) >= LARGE_BYTES
        self._images[0] += NUM_IMAGES if is_large else 1
        call.reply(LARGE_ANSWER if is_large else ANSWER)

    def on_failed(self, call: UnaryCall, status: Status) -> None:
        """Do nothing."""

    def on_too_large(self, call: UnaryCall) -> None:
        """Do nothing: the load generator sends no large messages."""

    def on_close(self, call: UnaryCall) -> None:
        """Do nothing."""


class EmptyStreamHandler:
    """Answers each message of a stream immediately, without reading it, and requests the next."""

    def __init__(self, stats: NDArray[np.float64]) -> None:
        """Count in the cells of ``stats``."""
        self._images = stats[STATS.index("images") :]

    def on_accept(self, stream: ServerStream) -> None:
        """Request the first message."""
        stream.read()

    def on_message(self, stream: ServerStream, body: bytes) -> None:
        """Answer, and request the next message."""
        self._images[0] += 1
        stream.write(STREAM_ANSWER)
        stream.flush()
        stream.read()

    def on_end(self, stream: ServerStream) -> None:
        """Finish: all answers are sent, because the load generator waits for them before it ends a stream."""
        stream.finish(OK)

    def on_too_large(self, stream: ServerStream) -> None:
        """Do nothing: the load generator sends no large messages."""

    def on_written(self, stream: ServerStream) -> None:
        """Do nothing."""

    def on_close(self, stream: ServerStream, *, cancelled: bool) -> None:
        """Do nothing."""


TRANSPORTS = ("native", "grpcio")


def serve_empty(transport: str, settings: Settings, stats: NDArray[np.float64]) -> None:
    """Answer ``Classify``, and each message of ``ClassifyStream``, with the same response until SIGTERM."""
    recorder = Recorder(Block(()), ())
    unary, streams = {CLASSIFY: EmptyHandler(stats)}, {CLASSIFY_STREAM: EmptyStreamHandler(stats)}
    server: Server = (
        NativeServer(settings, recorder, unary, streams, _listen(settings))
        if transport == "native"
        else GrpcServer(settings, recorder, unary, streams)
    )
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _frame: stopping.append(number))
    server.listen()
    # As in a worker.
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not stopping:
        handled = server.poll(0.1)
        while handled:
            handled = server.poll(0.0)
    server.begin_shutdown()
    server.cancel_all()
    while server.poll(0.1) is not None:
        """Until every connection is closed."""
    server.close()


def _listen(settings: Settings) -> socket.socket:
    return socket.create_server((settings.host, settings.grpc_port), backlog=1024)


def measure_networks(folders: list[Path], seconds: float, batch_size: int) -> list[float]:
    """Return the seconds that onnxruntime alone takes for a batch, for each bundle: one thread, medians of interleaved rounds."""
    bundles = [read_bundle(folder) for folder in folders]
    sessions = [Session(bundle, num_threads=1) for bundle in bundles]
    golden = bundles[0].golden.images
    images = np.ascontiguousarray(np.resize(golden, (batch_size, IMAGE_SIZE, IMAGE_SIZE, 1)))
    rounds = [
        [mean_s(partial(session.run, images), seconds / NETWORK_ROUNDS) for session in sessions]
        for _ in range(NETWORK_ROUNDS)
    ]
    return [median(column) for column in zip(*rounds, strict=True)]


def measure_framing(side: int, seconds: float) -> float:
    """Return the mean seconds of preparing one image of the load that is framed, in full batches as a busy worker does."""
    chance = np.random.default_rng(1)
    drawn = [draw(number % 10, Size(side, side), chance) for number in range(64)]
    requests = [
        decode(
            pb.ClassifyRequest(pixels=image.tobytes(), height=side, width=side).SerializeToString(),
            Limits("1", side, 1, 1 << 24),
        )
        for image in drawn
    ]
    parts = [(request, 0, 1) for request in requests]
    np.empty(1 << 22, np.uint8)  # once it is freed, malloc keeps the arrays of a batch, as in a worker
    return mean_s(lambda: prepare(parts), seconds) / len(parts)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description="Measure lower bounds on the cost of a request.")
    commands = parser.add_subparsers(dest="floor", required=True)
    empty = commands.add_parser("empty", help="E: serve empty RPCs")
    empty.add_argument("--transport", choices=TRANSPORTS, required=True)
    empty.add_argument("--port", type=int, required=True)
    empty.add_argument("--stats", type=Path, required=True)
    empty.add_argument("--tls-certificate", type=Path)
    empty.add_argument("--tls-key", type=Path)
    network = commands.add_parser(
        "network", help="B: print the seconds of a batch of onnxruntime alone, for each bundle"
    )
    network.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE")
    network.add_argument("--batch-size", type=int, required=True)
    framing = commands.add_parser("framing", help="print the seconds of framing one image")
    framing.add_argument("--side", type=int, required=True)
    for command in (network, framing):
        command.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    use_batch_scheduling()
    if options.floor == "empty":
        settings = Settings(grpc_port=options.port, tls_certificate=options.tls_certificate, tls_key=options.tls_key)
        serve_empty(options.transport, settings, np.memmap(options.stats, np.float64, "w+", shape=(len(STATS),)))
    elif options.floor == "network":
        json.dump(measure_networks(options.bundles, options.seconds, options.batch_size), sys.stdout)
    else:
        json.dump([measure_framing(options.side, options.seconds)], sys.stdout)


if __name__ == "__main__":
    main()

"""Images/s and CPU time of ``ModelInfer`` relative to ``Classify``, in interleaved rounds on one running service.

    python -m benchmarks.infer_rate --models models

The load is this process: grpcio channels that keep a number of requests in flight, each the same image digits in both protocols.
CPU time is that of the service per image, so its ratio is also valid on a machine with other load. The service counts every answer
too, and the first answers of both methods must have the same probabilities.
"""

import argparse
import os
import threading
import time
from pathlib import Path
from statistics import median

import grpc
import numpy as np

from benchmarks.installation import BenchError
from benchmarks.load import add_cores, parse_cores, require_programs
from benchmarks.servers import Native
from digitserve.bench.plan import Size
from digitserve.bench.traffic import draw
from digitserve.open_inference import open_inference_pb2 as oip
from digitserve.protocol.names import CLASSIFY, MODEL_INFER
from digitserve.types import IMAGE_SIZE
from digitserve.v1 import digits_pb2 as pb

CHANNELS = 16
IN_FLIGHT = 2
"""Requests of a channel."""

CHANNEL_OPTIONS = (("grpc.use_local_subchannel_pool", 1),)


class Load:
    """Keeps requests of one method in flight."""

    def __init__(self, port: int, path: str, body: bytes) -> None:
        """Connect."""
        self._body = body
        self._channels = [grpc.insecure_channel(f"127.0.0.1:{port}", CHANNEL_OPTIONS) for _ in range(CHANNELS)]
        self._calls = [channel.unary_unary(path) for channel in self._channels]
        self._lock = threading.Lock()
        self._num_answered = self._num_open = 0
        self._ends_s = 0.0
        self._all_answered = threading.Event()
        self.first: bytes = self._calls[0](body)

    def run(self, seconds: float) -> int:
        """Send requests for some time; return the number of answers once all are answered."""
        self._num_answered, self._num_open = 0, CHANNELS * IN_FLIGHT
        self._ends_s = time.monotonic() + seconds
        self._all_answered.clear()
        for call in self._calls * IN_FLIGHT:
            self._send(call)
        self._all_answered.wait()
        return self._num_answered

    def close(self) -> None:
        """Close the connections."""
        for channel in self._channels:
            channel.close()

    def _send(self, call: "grpc.UnaryUnaryMultiCallable[bytes, bytes]") -> None:
        call.future(self._body).add_done_callback(lambda answer: self._on_answer(call, answer))

    def _on_answer(self, call: "grpc.UnaryUnaryMultiCallable[bytes, bytes]", answer: grpc.Future) -> None:
        with self._lock:
            self._num_answered += answer.exception() is None
            more = time.monotonic() < self._ends_s
            self._num_open -= not more
            if not self._num_open:
                self._all_answered.set()
        if more:
            self._send(call)


def bodies(num_images: int) -> dict[str, bytes]:
    """Return a request of each method for the same images."""
    generator = np.random.default_rng(1)
    size = Size(IMAGE_SIZE, IMAGE_SIZE)
    pixels = b"".join(draw(number % 10, size, generator).tobytes() for number in range(num_images))
    infer = oip.ModelInferRequest(model_name="digits", raw_input_contents=[pixels])
    infer.inputs.add(name="images", datatype="UINT8", shape=[num_images, IMAGE_SIZE, IMAGE_SIZE, 1])
    classify = pb.ClassifyRequest(pixels=pixels, num_images=num_images)
    return {CLASSIFY.path: classify.SerializeToString(), MODEL_INFER.path: infer.SerializeToString()}


def check_same(classified: bytes, inferred: bytes) -> None:
    """Compare the first answers of both methods.

    Raises:
        BenchError: they differ.
    """
    confidences = [prediction.confidence for prediction in pb.ClassifyResponse.FromString(classified).predictions]
    raw = oip.ModelInferResponse.FromString(inferred).raw_output_contents[0]
    probabilities = np.frombuffer(raw, np.float32).reshape(len(confidences), -1)
    if not np.allclose(probabilities.max(axis=1), confidences, atol=1e-4):
        raise BenchError("Classify and ModelInfer give different probabilities")


def measure(server: Native, load: Load, num_images: int, seconds: float) -> tuple[float, float]:
    """Return images/s, and CPU microseconds of the service per image.

    Raises:
        BenchError: the service counted a different number of images.
    """
    before, cpu_s, start_s = server.num_images(), server.cpu_s(), time.monotonic()
    answered = load.run(seconds) * num_images
    elapsed_s, cpu_s = time.monotonic() - start_s, server.cpu_s() - cpu_s
    if (counted := server.num_images() - before) != answered:
        raise BenchError(f"got {answered} answers; the service counted {counted}")
    return answered / elapsed_s, cpu_s * 1e6 / answered


def compare(server: Native, num_images: int, rounds: int, seconds: float) -> None:
    """Print images/s and CPU time per image of both methods, and the medians of the ratios of the rounds."""
    loads = {path: Load(server.grpc_port, path, body) for path, body in bodies(num_images).items()}
    check_same(loads[CLASSIFY.path].first, loads[MODEL_INFER.path].first)
    figures: dict[str, list[tuple[float, float]]] = {path: [] for path in loads}
    for load in loads.values():
        load.run(seconds)
    for number in range(rounds):
        # A B, B A, A B, ...: a drift of the machine cancels out.
        for path in sorted(loads, reverse=number % 2 == 1):
            figures[path].append(measure(server, loads[path], num_images, seconds))
    for load in loads.values():
        load.close()
    for path, measured in figures.items():
        rate, cpu_us = (median(column) for column in zip(*measured, strict=True))
        print(f"{num_images:3} images per request  {path:42} {rate:9,.0f} images/s  {cpu_us:6.2f} us of CPU per image")
    pairs = list(zip(figures[MODEL_INFER.path], figures[CLASSIFY.path], strict=True))
    for name, column in (("images/s", 0), ("CPU", 1)):
        ratios = sorted(infer[column] / classify[column] for infer, classify in pairs)
        print(f"{num_images:3} images per request  {name}: {median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


def main() -> None:
    """Measure requests of one image and of 64."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    add_cores(parser)
    options = parser.parse_args()
    require_programs("taskset")
    os.sched_setaffinity(0, parse_cores(options.load_cores))
    with Native(options.models, options.cores) as server:
        for num_images in (64, 1):
            compare(server, num_images, options.rounds, options.seconds)


if __name__ == "__main__":
    main()

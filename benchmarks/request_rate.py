"""Microseconds per single image of everything but transport and network: admission, batching, checks, metrics, encoding.

    python -m benchmarks.request_rate --models models

Full batches pass through the real handler and pipeline. A stub of the session returns the answers of a run before. The result
is the minimum of many rounds: the cost without disturbance by other load. It has a row for requests of one image that hold
only pixels, and one for those that also state size, number and format, as the Python client sends them.
"""

import argparse
import gc
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import bundles
from digitserve.batching.batcher import Batcher
from digitserve.batching.pending import PendingRequest
from digitserve.batching.pipeline import Pipeline
from digitserve.bench.plan import Size
from digitserve.bench.traffic import draw
from digitserve.inference.bundle import Bundle
from digitserve.inference.session import Outputs, Session
from digitserve.protocol.codec import Limits
from digitserve.protocol.status import Status
from digitserve.settings import Settings
from digitserve.telemetry.block import Block
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.classify import ClassifyHandler
from digitserve.types import IMAGE_SIZE, Source, native_framing
from digitserve.v1 import digits_pb2 as pb
from digitserve.worker import GC_THRESHOLD

BATCH_SIZE = 64
TURNS = 20
"""Batches of a round."""

KINDS: dict[str, dict[str, Any]] = {
    "pixels only": {},
    "as the client sends it": {
        "height": IMAGE_SIZE, "width": IMAGE_SIZE, "num_images": 1, "pixel_format": pb.PIXEL_FORMAT_GRAY8,
    },
}  # fmt: skip


class Call:
    """A ``UnaryCall`` that drops its answer."""

    __slots__ = ("accepted", "context", "deadline", "open", "source")

    def __init__(self, now: float, deadline: float, source: Source) -> None:
        self.accepted = now
        self.deadline = deadline
        self.source = source
        self.open = True
        self.context: Any = None

    def reply(self, body: bytes) -> None:
        """Drop the answer."""
        self.open = False
        self.context = None

    def fail(self, status: Status) -> None:
        """Fail: every request is valid."""
        raise AssertionError(status)


@dataclass(frozen=True)
class StubSession:
    """A ``Session`` that returns the same outputs for every batch."""

    outputs: Outputs

    def run(self, _images: NDArray[np.uint8]) -> Outputs:
        """Return the outputs."""
        return self.outputs


class Requests:
    """A pipeline behind the handler of ``Classify``, and a batch of requests for it."""

    def __init__(self, bundle: Bundle, fields: dict[str, Any], deadline: float) -> None:
        """Prepare requests with these fields beside the pixels, and this deadline in Unix time."""
        labels, settings = bundle.manifest.labels, Settings()
        generator = np.random.default_rng(1)
        images = np.stack([draw(number % 10, Size(IMAGE_SIZE, IMAGE_SIZE), generator) for number in range(BATCH_SIZE)])
        outputs = Session(bundle, num_threads=1).run(images[..., None])
        recorder = Recorder(Block(labels), labels)
        batcher = Batcher[PendingRequest](
            max_batch_size=BATCH_SIZE, max_pending_images=settings.max_pending_images,
            max_pending_bytes=settings.max_request_bytes, max_batch_s=1.0, image_s=1e-4, work_s=1e-9,
        )  # fmt: skip
        stub: Any = StubSession(outputs)
        self._pipeline = Pipeline(batcher, stub, bundle, recorder)
        limits = Limits("", settings.max_side, BATCH_SIZE, settings.max_request_bytes, native_framing(labels))
        self._handler = ClassifyHandler(self._pipeline, limits, recorder)
        self._deadline = deadline
        self._source = Source()
        self._bodies = [pb.ClassifyRequest(pixels=image.tobytes(), **fields).SerializeToString() for image in images]

    def answer(self) -> None:
        """Answer a batch."""
        handler, deadline, now = self._handler, self._deadline, time.monotonic()
        source = self._source
        for body in self._bodies:
            call: Any = Call(now, deadline, source)
            handler.refusal(deadline, source)
            handler.on_accept(call)
            handler.on_message(call, body)
        self._pipeline.run_batch()

    def measure(self, rounds: int) -> float:
        """Return the microseconds per request in the fastest round."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        fastest_s = float("inf")
        for _ in range(rounds):
            start_s = time.perf_counter()
            for _ in range(TURNS):
                self.answer()
            fastest_s = min(fastest_s, time.perf_counter() - start_s)
        return fastest_s / TURNS / BATCH_SIZE * 1e6


def main() -> None:
    """Print a row per kind of request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    bundle = bundles.served(options.models)
    for kind, fields in KINDS.items():
        for name, deadline in (("no deadline", 9.2e18), ("deadline", time.time() + 3600)):
            print(f"{kind:24} {name:12} {Requests(bundle, fields, deadline).measure(options.rounds):6.2f} us")


if __name__ == "__main__":
    main()

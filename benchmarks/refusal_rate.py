"""CPU time per answered and per rejected call with the native transport, in microseconds.

    python -m benchmarks.refusal_rate --models models

A whole worker without sockets: frames of ``client_styles`` pass through a connection, the real handler, pipeline and network.
A call is rejected because the queue is full or its deadline is too early. Answered and rejected calls alternate. The result
is the minimum of many rounds, without disturbance by other load. System calls are not included. Many rejected calls share
them: an iteration reads up to 64 KiB of calls at once and sends their answers together.
"""

import argparse
import gc
import os
import time
from itertools import cycle
from pathlib import Path

import numpy as np

from benchmarks import bundles
from benchmarks.client_styles import STYLES, header_blocks
from digitserve.batching.batcher import Batcher
from digitserve.batching.pending import PendingRequest
from digitserve.batching.pipeline import Pipeline
from digitserve.bench import frames
from digitserve.bench.frames import DATA, END_HEADERS, END_STREAM, HEADERS
from digitserve.bench.plan import Size
from digitserve.bench.traffic import draw
from digitserve.inference.bundle import Bundle
from digitserve.inference.session import Session
from digitserve.protocol import codec
from digitserve.protocol.names import CLASSIFY
from digitserve.settings import Settings
from digitserve.telemetry.block import Block
from digitserve.telemetry.recorder import Recorder
from digitserve.transport.classify import ClassifyHandler
from digitserve.transport.native.connection import Connection, Method
from digitserve.transport.native.limits import Limits, ReceiveBudget
from digitserve.transport.respond import UnknownMethodHandler
from digitserve.types import IMAGE_SIZE, native_framing
from digitserve.v1 import digits_pb2 as pb
from digitserve.worker import GC_THRESHOLD

CALLS = 64
"""Calls that arrive together: a full batch, or about as many as one read of a socket returns."""

TURNS = 8
"""Number of batches, and of groups of rejected calls, in a round."""


class Overload:
    """A worker's objects, and the frames of a client's calls."""

    def __init__(self, bundle: Bundle, style: str) -> None:
        """Use the header blocks of this style of client."""
        labels, settings = bundle.manifest.labels, Settings()
        generator = np.random.default_rng(1)
        images = [draw(number % 10, Size(IMAGE_SIZE, IMAGE_SIZE), generator) for number in range(CALLS)]
        messages = [pb.ClassifyRequest(pixels=image.tobytes()).SerializeToString() for image in images]
        self._bodies = cycle([b"\0" + len(message).to_bytes(4, "big") + message for message in messages])
        self._blocks = cycle(header_blocks(style, CLASSIFY.path))
        self._stream_id = -1
        recorder = Recorder(Block(labels), labels)
        session = Session(bundle, num_threads=1)
        # One connection alone may fill 4/5 of the queue.
        self.batcher = Batcher[PendingRequest](
            max_batch_size=CALLS, max_pending_images=CALLS * 5 // 4,
            max_pending_bytes=settings.max_request_bytes, max_batch_s=1.0, image_s=session.warm_up(CALLS), work_s=1e-9,
        )  # fmt: skip
        # This clock does not advance: after 0.1 s of rejections the batcher would accept fewer requests.
        self.pipeline = Pipeline(self.batcher, session, bundle, recorder, lambda: 0.0)
        limits = codec.Limits("", settings.max_side, CALLS, settings.max_request_bytes, native_framing(labels))
        handler = ClassifyHandler(self.pipeline, limits, recorder)
        self.connection = Connection(
            {CLASSIFY.path.encode(): Method(unary=handler)}, UnknownMethodHandler(recorder),
            Limits(max_message_bytes=settings.max_request_bytes), ReceiveBudget(1 << 24), recorder, time.monotonic(),
            lambda: None,
        )  # fmt: skip
        window = frames.MAX_WINDOW_BYTES - frames.DEFAULT_WINDOW_BYTES
        self.receive(
            frames.PREFACE + frames.frame(frames.SETTINGS, 0, 0) + frames.frame(frames.SETTINGS, frames.ACK, 0)
            + frames.frame(frames.WINDOW_UPDATE, 0, 0, frames.U32.pack(window))
        )  # fmt: skip

    def calls(self) -> bytes:
        """Return the frames of ``CALLS`` calls."""
        parts: list[bytes] = []
        for _ in range(CALLS):
            block, body = next(self._blocks), next(self._bodies)
            self._stream_id = stream_id = self._stream_id + 2
            parts += (
                frames.frame(HEADERS, END_HEADERS, stream_id, block), frames.frame(DATA, END_STREAM, stream_id, body),
            )  # fmt: skip
        return b"".join(parts)

    def receive(self, received: bytes, waited_s: float = 0.0) -> int:
        """Pass frames to the connection, as if they had waited that long; return the length of its output."""
        connection = self.connection
        connection.receive(received, time.monotonic(), time.time() - waited_s)
        output = connection.take_output()
        connection.on_sent(len(output))
        return len(output)

    def serve(self) -> None:
        """Answer the calls that were received."""
        while self.pipeline.run_batch():
            output = self.connection.take_output()
            self.connection.on_sent(len(output))


def measure(bundle: Bundle, style: str, rounds: int) -> tuple[float, float, float]:
    """Return the microseconds per answered call, and per call rejected for a full queue and for its deadline."""
    overload = Overload(bundle, style)
    seconds: list[tuple[float, float, float]] = []
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    for _ in range(rounds):
        served_s = full_s = late_s = 0.0
        for _ in range(TURNS):
            served, full, late = overload.calls(), overload.calls(), overload.calls()
            start_s = time.process_time()
            overload.receive(served)
            received_s = time.process_time()
            assert overload.batcher.pending_images == CALLS
            output = overload.receive(full)
            refused_s = time.process_time()
            assert output > CALLS and overload.batcher.pending_images == CALLS
            overload.serve()
            answered_s = time.process_time()
            # Some styles state no deadline; then these calls are admitted.
            overload.receive(late, waited_s=1e6)
            late_s += time.process_time() - answered_s
            overload.serve()
            served_s += received_s - start_s + answered_s - refused_s
            full_s += refused_s - received_s
        seconds.append((served_s, full_s, late_s))
    served_s, full_s, late_s = (min(column) / TURNS / CALLS * 1e6 for column in zip(*seconds, strict=True))
    return served_s, full_s, late_s


def main() -> None:
    """Print a row per style of client."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    bundle = bundles.served(options.models)
    print(f"{bundle.manifest.name} {os.environ.get('DIGITSERVE_MODEL', '')}")
    for style in STYLES:
        served, full, late = measure(bundle, style, options.rounds)
        print(f"{style:8} S {served:6.2f} us   R, queue full {full:5.2f} us   R, deadline {late:5.2f} us")


if __name__ == "__main__":
    main()

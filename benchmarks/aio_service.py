"""The peer that digitserve is measured against: a good ``grpc.aio`` service of the same contract.

    handler :event loop ──decode, check, enqueue──▶ batching thread ──run, encode──▶ one call_soon_threadsafe a batch

It answers ``digitserve.v1.DigitService/Classify`` with the same bundle, checks and reply, from the same functions
(``messages``, ``preprocess``, ``session``), and is written as a strong engineer would write it: uvloop, whatever has
queued becomes the next batch without a timer, a bounded queue, one hand-over a batch, bytes in and bytes out.

What was tried, in requests/s on one core with 64 connections, in one noisy hour (rounds side by side, so ranges overlap):

- batching on a thread, no timer: 1 180 to 1 700, at 1.4 to 1.6 images a batch: each event wakes the loop by itself,
  so that hardly anything has queued whenever the thread looks;
- batching on the loop, in a callback of the same turn: 1 215 to 1 520, at 1.1 images a batch;
- handing the whole queue to the thread, one batch in flight: 1 360 to 1 750; the same one or two turns later: no more;
- ``SCHED_BATCH`` for the whole process, or a longer switch interval of the interpreter: no more;
- a thread of the lowest priority (``--nice 19``), which runs when the loop has nothing to do: 1 660 to 2 610, at 30 to 60;
- a window of 3 to 10 ms (``--window-ms``): 1 640 to 2 940, at 10 to 35, best about 6 ms. It makes an idle service answer
  6 ms later, which is why the first is the default; ``compare`` shows both.
"""

import argparse
import asyncio
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import grpc.aio
import numpy as np
import uvloop
from numpy.typing import NDArray

from benchmarks import bundles
from digitserve.errors import InvalidRequest, NotServed, RequestError
from digitserve.inference.bundle import Bundle
from digitserve.inference.session import Session
from digitserve.protocol.codec import (
    ACCEPTED,
    BLANK,
    SEVERAL,
    UNFAMILIAR,
    Answer,
    Encoder,
    Limits,
    Request,
    decode,
    rows,
)  # fmt: skip
from digitserve.settings import Settings
from digitserve.telemetry.block import SERVICE
from digitserve.types import IMAGE_SIZE
from digitserve.vision.framing import verdicts

MAX_BATCH_SIZE = Settings().batch_limit
MAX_PENDING_IMAGES = Settings().max_pending_images
STATS = ("ok", "failed", "batches", "images")
"""What is counted, in the order of the cells of the file ``--stats``."""

_CODES = {InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT, NotServed: grpc.StatusCode.NOT_FOUND}


@dataclass(slots=True, eq=False)
class Waiting:
    """One request that waits for its answer: the loop's until it is queued, then the batching side's."""

    request: Request
    reply: asyncio.Future[bytes]
    arrived: float


Answered = list[tuple[asyncio.Future[bytes], bytes | Exception]]


class Network:
    """Runs batches and writes replies; called by one thread only."""

    def __init__(self, bundle: Bundle, stats: NDArray[np.float64], clock: Callable[[], float]) -> None:
        """Verify the bundle and warm up."""
        manifest = bundle.manifest
        self._session = Session(bundle, num_threads=1)
        self._session.warm_up(MAX_BATCH_SIZE)
        self._encoder = Encoder(manifest.name, str(manifest.version), manifest.labels)
        self._ood_threshold = manifest.ood_threshold
        self._stats = stats
        self._clock = clock

    def answer(self, batch: list[Waiting]) -> Answered:
        """Return the replies of a batch; a fault of ours is the answer of its whole batch."""
        live = [waiting for waiting in batch if not waiting.reply.cancelled()]
        try:
            return self._answer(live) if live else []
        except Exception as error:
            return [(waiting.reply, error) for waiting in live]

    def _answer(self, batch: list[Waiting]) -> Answered:
        formed = self._clock()
        chunks, seen = [], list[int]()
        for waiting in batch:
            request = waiting.request
            pixels, framed = (request.pixels, []) if request.plain else rows(request, 0, request.num_images)
            chunks.append(pixels)
            seen += framed or [ACCEPTED] * request.num_images
        images = np.frombuffer(b"".join(chunks), np.uint8).reshape(-1, IMAGE_SIZE, IMAGE_SIZE, 1)
        blank, several = verdicts(images[..., 0])
        prepared = self._clock()
        probabilities, ood_score = self._run(images)
        inference_s = self._clock() - prepared
        framing = np.array(seen)
        verdict = np.where(ood_score > self._ood_threshold, UNFAMILIAR, ACCEPTED)
        verdict[several] = SEVERAL
        verdict[blank] = BLANK
        verdict = np.where(framing == ACCEPTED, verdict, framing)
        confidence = probabilities.max(axis=1)
        answers = list(
            map(
                Answer, probabilities.argmax(axis=1).tolist(), confidence.tolist(), verdict.tolist(),
                ood_score.tolist(), probabilities,
            )
        )  # fmt: skip
        self._stats += (len(batch), 0, 1, len(answers))
        answered: Answered = []
        row = 0
        for waiting in batch:
            request = waiting.request
            seconds = (formed - waiting.arrived, prepared - formed, inference_s)
            own = answers[row : row + request.num_images]
            answered.append((waiting.reply, self._encoder.encode(own, request.top_k, seconds, len(answers))))
            row += request.num_images
        return answered

    def _run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run a batch, in slices when one large request makes it larger than a batch may be."""
        slices = [
            self._session.run(images[start : start + MAX_BATCH_SIZE]) for start in range(0, len(images), MAX_BATCH_SIZE)
        ]
        if len(slices) == 1:
            return slices[0].probabilities, slices[0].ood_score
        return np.concatenate([one.probabilities for one in slices]), np.concatenate([one.ood_score for one in slices])


def _deliver(answered: Answered) -> None:
    """Wake the handlers of a batch; on the loop."""
    for reply, body in answered:
        if reply.cancelled():
            continue
        if isinstance(body, Exception):
            reply.set_exception(body)
        else:
            reply.set_result(body)


class Batcher:
    """Batches on a thread of its own: while one batch runs, the next gathers."""

    def __init__(self, network: Network, loop: asyncio.AbstractEventLoop, window_s: float, niceness: int) -> None:
        """Start the thread; answers are delivered on ``loop``."""
        self._network = network
        self._loop = loop
        self._window_s = window_s
        self._niceness = niceness
        self._queue: SimpleQueue[Waiting] = SimpleQueue()
        self.submit = self._queue.put
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._niceness)
        queue = self._queue
        while True:
            batch = [queue.get()]
            if self._window_s and queue.qsize() < MAX_BATCH_SIZE - 1:
                time.sleep(self._window_s)
            num_images = batch[0].request.num_images
            while num_images < MAX_BATCH_SIZE and not queue.empty():
                batch.append(queue.get())
                num_images += batch[-1].request.num_images
            self._loop.call_soon_threadsafe(_deliver, self._network.answer(batch))


class Service:
    """The one method, on the event loop."""

    def __init__(self, bundle: Bundle, stats: NDArray[np.float64], window_s: float, niceness: int) -> None:
        """Build the service on the running loop."""
        settings = Settings()
        self._limits = Limits(
            str(bundle.manifest.version), settings.max_side, MAX_PENDING_IMAGES, settings.max_request_bytes
        )
        self._loop = asyncio.get_running_loop()
        self._clock = time.monotonic
        self._batcher = Batcher(Network(bundle, stats, self._clock), self._loop, window_s, niceness)
        self._stats = stats
        self._pending_images = 0

    async def classify(self, body: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        """Answer a ``ClassifyRequest``, from bytes to bytes."""
        try:
            request = decode(body, self._limits)
        except RequestError as error:
            return await self._refuse(context, _CODES[type(error)], str(error))
        num_images = request.num_images
        if self._pending_images + num_images > MAX_PENDING_IMAGES:
            return await self._refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many images are waiting")
        waiting = Waiting(request, self._loop.create_future(), self._clock())
        self._pending_images += num_images
        try:
            self._batcher.submit(waiting)
            return await waiting.reply
        finally:
            self._pending_images -= num_images

    async def _refuse(
        self, context: grpc.aio.ServicerContext[bytes, bytes], code: grpc.StatusCode, message: str
    ) -> bytes:
        self._stats[STATS.index("failed")] += 1
        await context.abort(code, message)
        return b""


async def serve(models: Path, port: int, stats: NDArray[np.float64], window_s: float, niceness: int) -> None:
    """Serve until SIGTERM."""
    options = (
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", Settings().max_request_bytes),
        ("grpc.server.max_pending_requests", 1 << 30),
        ("grpc.server.max_pending_requests_hard_limit", 1 << 30),
    )
    server = grpc.aio.server(options=options)
    service = Service(bundles.served(models), stats, window_s, niceness)
    handlers: dict[str, Any] = {"Classify": grpc.unary_unary_rpc_method_handler(service.classify)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)
    server.add_insecure_port(f"127.0.0.1:{port}")
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    gc.collect()
    gc.freeze()
    await server.start()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await stop.wait()
    await server.stop(1.0)


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", type=Path, default=Path("models"), help="directory that holds the bundles")
    parser.add_argument("--port", type=int, required=True, help="port for gRPC on 127.0.0.1")
    parser.add_argument("--stats", type=Path, help=f"file that holds the counts {', '.join(STATS)}, as float64")
    parser.add_argument("--window-ms", type=float, default=0.0, help="how long a batch gathers before it runs")
    parser.add_argument("--nice", type=int, default=0, help="niceness of the batching thread, 0 to 19")
    options = parser.parse_args()
    # A mapped file: whoever wants the counts reads it at any time, and the service pays for one addition a batch.
    stats = np.memmap(options.stats, np.float64, "w+", shape=(len(STATS),)) if options.stats else np.zeros(len(STATS))
    uvloop.run(serve(options.models, options.port, stats, options.window_ms / 1e3, options.nice))
    sys.stdout.write(" ".join(f"{name}={int(value)}" for name, value in zip(STATS, stats, strict=True)) + "\n")


if __name__ == "__main__":
    main()

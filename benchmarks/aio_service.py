"""The ``grpc.aio`` service that digitserve is compared with: the same contract, implemented as well as grpc.aio allows.

    handler :event loop ──decode, check, enqueue──▶ batching thread ──run, encode──▶ one call_soon_threadsafe per batch

It answers ``digitserve.v1.DigitService/Classify`` with the same bundle, checks and response, by the same functions
(``protocol.codec``, ``batching.prepare``, ``inference.session``, ``protocol.encoder``). It has what makes such a service fast:
uvloop, batches of all queued requests without a timer, a bounded queue, one hand-over per batch, bytes in and bytes out, and
predictions that are encoded for the whole batch at once.

Variants measured, in requests/s on one core with 64 connections, within one hour on a noisy machine (rounds alternated, so
ranges overlap):

- batching on a thread, no timer: 1,180 to 1,700, at 1.4 to 1.6 images per batch: each event wakes the loop separately, so
  almost nothing has queued when the thread looks;
- batching on the loop, in a callback of the same iteration: 1,215 to 1,520, at 1.1 images per batch;
- passing the whole queue to the thread, one batch in flight: 1,360 to 1,750; one or two iterations later: no more;
- ``SCHED_BATCH`` for the whole process, or a longer switch interval of the interpreter: no more;
- a thread of the lowest priority (``--nice 19``), which runs when the loop is idle: 1,660 to 2,610, at 30 to 60;
- a window of 3 to 10 ms (``--window-ms``): 1,640 to 2,940, at 10 to 35, best about 6 ms. An idle service then answers 6 ms
  later, so the first variant is the default; ``compare`` shows both.
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
from digitserve.batching.prepare import decide_verdicts, prepare
from digitserve.errors import RequestError
from digitserve.inference.bundle import Bundle
from digitserve.inference.session import Session
from digitserve.protocol.codec import Limits, Request, decode
from digitserve.protocol.encoder import Encoder
from digitserve.protocol.names import CLASSIFY, SERVICE
from digitserve.protocol.status import Status
from digitserve.settings import Settings
from digitserve.types import native_framing

MAX_BATCH_SIZE = Settings().batch_limit
MAX_PENDING_IMAGES = Settings().max_pending_images
STATS = ("ok", "failed", "batches", "images")
"""The counts in the file ``--stats``, in the order of its cells."""

_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


@dataclass(slots=True, eq=False)
class PendingCall:
    """One request that waits for its answer; owned by the loop until it is queued, then by the batching thread."""

    request: Request
    reply: asyncio.Future[bytes]
    arrived: float


Answered = list[tuple[asyncio.Future[bytes], bytes | Exception]]


class Network:
    """Runs batches and encodes responses; called by one thread only. ``mosec_service`` uses it too."""

    def __init__(self, bundle: Bundle, stats: NDArray[np.float64], clock: Callable[[], float]) -> None:
        """Verify the bundle and warm up."""
        manifest = bundle.manifest
        self._session = Session(bundle, num_threads=1)
        self._session.warm_up(MAX_BATCH_SIZE)
        self._encoder = Encoder(manifest.name, str(manifest.version), manifest.labels)
        self._ood_threshold = manifest.ood_threshold
        self._stats = stats
        self._clock = clock

    def answer(self, batch: list[PendingCall]) -> Answered:
        """Return the responses of a batch; an unexpected error is the answer to its whole batch."""
        waiting = [call for call in batch if not call.reply.cancelled()]
        try:
            bodies = self.encode([call.request for call in waiting], [call.arrived for call in waiting])
        except Exception as error:
            return [(call.reply, error) for call in waiting]
        return [(call.reply, body) for call, body in zip(waiting, bodies, strict=True)]

    def encode(self, requests: list[Request], arrived: list[float]) -> list[bytes]:
        """Run a batch, and return the response to each request.

        Args:
            requests: of the batch.
            arrived: when each of them arrived, in seconds of the clock.
        """
        if not requests:
            return []
        formed = self._clock()
        prepared = prepare([(request, 0, request.num_images) for request in requests])
        ready = self._clock()
        probabilities, scores = self._run(prepared.images)
        inference_s = self._clock() - ready
        ood_score = scores.tolist()
        verdicts = decide_verdicts(ood_score, self._ood_threshold, prepared)
        class_index, confidence = probabilities.argmax(axis=1).tolist(), probabilities.max(axis=1).tolist()
        # The load asks for no alternatives.
        records = self._encoder.plain_records(class_index, confidence, verdicts, ood_score)
        self._stats += (len(requests), 0, 1, len(records))
        bodies, row = [], 0
        for request, arrived_s in zip(requests, arrived, strict=True):
            seconds = (formed - arrived_s, ready - formed, inference_s)
            own = records[row : row + request.num_images]
            bodies.append(self._encoder.encode_records(own, seconds, len(records)))
            row += request.num_images
        return bodies

    def _run(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Run a batch, in slices if one large request exceeds the maximal batch size."""
        slices = [
            self._session.run(images[start : start + MAX_BATCH_SIZE]) for start in range(0, len(images), MAX_BATCH_SIZE)
        ]
        if len(slices) == 1:
            return slices[0].probabilities, slices[0].ood_score
        return np.concatenate([one.probabilities for one in slices]), np.concatenate([one.ood_score for one in slices])


def _deliver(answered: Answered) -> None:
    """Set the results of a batch; called on the loop."""
    for reply, body in answered:
        if reply.cancelled():
            continue
        if isinstance(body, Exception):
            reply.set_exception(body)
        else:
            reply.set_result(body)


class Batcher:
    """Forms batches on a separate thread: requests that arrive while a batch runs form the next one."""

    def __init__(self, network: Network, loop: asyncio.AbstractEventLoop, window_s: float, niceness: int) -> None:
        """Start the thread; answers are delivered on ``loop``."""
        self._network = network
        self._loop = loop
        self._window_s = window_s
        self._niceness = niceness
        self._queue: SimpleQueue[PendingCall] = SimpleQueue()
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
    """``Classify`` on the event loop."""

    def __init__(self, bundle: Bundle, stats: NDArray[np.float64], window_s: float, niceness: int) -> None:
        """Build the service on the running loop."""
        settings = Settings()
        self._limits = Limits(
            str(bundle.manifest.version),
            settings.max_side,
            MAX_PENDING_IMAGES,
            settings.max_request_bytes,
            native_framing(bundle.manifest.labels),
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
            status = Status.from_error(error)
            return await self._abort(context, _STATUS_CODES[status.code], status.message)
        num_images = request.num_images
        if self._pending_images + num_images > MAX_PENDING_IMAGES:
            return await self._abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "too many images are waiting")
        call = PendingCall(request, self._loop.create_future(), self._clock())
        self._pending_images += num_images
        try:
            self._batcher.submit(call)
            return await call.reply
        finally:
            self._pending_images -= num_images

    async def _abort(
        self, context: grpc.aio.ServicerContext[bytes, bytes], code: grpc.StatusCode, message: str
    ) -> bytes:
        self._stats[STATS.index("failed")] += 1
        await context.abort(code, message)
        return b""


async def serve(bundle: Bundle, port: int, stats: NDArray[np.float64], window_s: float, niceness: int) -> None:
    """Serve until SIGTERM."""
    options = (
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", Settings().max_request_bytes),
        ("grpc.server.max_pending_requests", 1 << 30),
        ("grpc.server.max_pending_requests_hard_limit", 1 << 30),
    )
    server = grpc.aio.server(options=options)
    service = Service(bundle, stats, window_s, niceness)
    handlers: dict[str, Any] = {CLASSIFY.name: grpc.unary_unary_rpc_method_handler(service.classify)}
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
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder of the bundles")
    parser.add_argument("--model", help="name of the model; by default that of digitserve serve")
    parser.add_argument("--port", type=int, required=True, help="port for gRPC on 127.0.0.1")
    parser.add_argument("--stats", type=Path, help=f"file that holds the counts {', '.join(STATS)}, as float64")
    parser.add_argument(
        "--window-ms", type=float, default=0.0, help="milliseconds to wait for more requests before a batch runs"
    )
    parser.add_argument("--nice", type=int, default=0, help="niceness of the batching thread, 0 to 19")
    options = parser.parse_args()
    # A mapped file: it can be read at any time, and costs the service one addition per batch.
    stats = np.memmap(options.stats, np.float64, "w+", shape=(len(STATS),)) if options.stats else np.zeros(len(STATS))
    bundle = bundles.served(options.models, options.model)
    uvloop.run(serve(bundle, options.port, stats, options.window_ms / 1e3, options.nice))
    sys.stdout.write(" ".join(f"{name}={int(value)}" for name, value in zip(STATS, stats, strict=True)) + "\n")


if __name__ == "__main__":
    main()

"""What the pipeline measures: the clock is that of the test, and a fake session advances it."""

from typing import Any

import numpy as np
import pytest

from digitserve.batching.batcher import Batcher
from digitserve.batching.entries import Batch
from digitserve.batching.pending import PendingRequest
from digitserve.batching.pipeline import Pipeline
from digitserve.inference.session import Outputs
from digitserve.protocol.codec import Limits, Request, decode
from digitserve.protocol.names import CLASSIFY, MODEL_INFER
from digitserve.telemetry.block import Block
from digitserve.telemetry.recorder import Recorder
from digitserve.telemetry.request_log import RequestLog
from digitserve.types import native_framing
from digitserve.v1 import digits_pb2 as pb
from support.log_lines import capture_logs
from support.responder import BUNDLE, LABELS, Responder

NETWORK_S = 0.010


class RecordingBatcher(Batcher[PendingRequest]):
    """Keeps the durations that it gets."""

    def __init__(self) -> None:
        super().__init__(
            max_batch_size=8, max_pending_images=100, max_pending_bytes=1 << 20, max_batch_s=1.0, image_s=1e-3, work_s=1e-9
        )  # fmt: skip
        self.iterations_s: list[float] = []

    def complete(
        self,
        batch: Batch[PendingRequest],
        answers: list[Any],
        preprocess_s: float,
        inference_s: float,
        iteration_s: float,
    ) -> list[PendingRequest]:
        assert (preprocess_s, inference_s) == (0.0, pytest.approx(NETWORK_S))
        self.iterations_s.append(iteration_s)
        return super().complete(batch, answers, preprocess_s, inference_s, iteration_s)


class Worker:
    """A pipeline with a clock, and a session that takes ``NETWORK_S``."""

    def __init__(self, requests: RequestLog | None = None) -> None:
        self.now = 100.0
        self.batcher = RecordingBatcher()
        session: Any = self
        recorder = Recorder(Block(LABELS), LABELS, requests or RequestLog())
        self.pipeline = Pipeline(self.batcher, session, BUNDLE, recorder, clock=lambda: self.now)

    def run(self, images: Any) -> Outputs:
        self.now += NETWORK_S
        count = len(images)
        return Outputs(np.full((count, 10), 0.1, np.float32), np.zeros(count, np.float32))

    def admit(self, count: int) -> list[Responder]:
        responders = [Responder() for _ in range(count)]
        for responder in responders:
            self.pipeline.admit(responder, REQUEST)
        return responders


REQUEST: Request = decode(
    pb.ClassifyRequest(pixels=bytes(784)).SerializeToString(),
    Limits("1", 4096, 4096, 1 << 24, native_framing(LABELS)),
)


def test_an_iteration_is_measured_from_batch_to_batch_and_without_idle_time() -> None:
    """Requests that already waited at the end of a batch have waited for all that came since. After a pause, the time counts
    from the arrival of the first request.
    """
    worker = Worker()
    responders = worker.admit(12)
    worker.now += 0.002  # receives others
    assert worker.pipeline.run_batch()
    worker.now += 0.003  # sends, and receives
    assert worker.pipeline.run_batch()
    assert not worker.pipeline.run_batch()
    worker.now += 60.0
    responders += worker.admit(1)
    worker.now += 0.001
    assert worker.pipeline.run_batch()
    assert worker.batcher.iterations_s == pytest.approx([0.002 + NETWORK_S, 0.003 + NETWORK_S, 0.001 + NETWORK_S])
    assert [len(responder.bodies) for responder in responders] == [1] * 13


def test_a_slow_call_has_one_line_whatever_else_is_in_its_batch() -> None:
    """Calls of two methods in one batch have a line each if they are slow, with their own method."""
    worker = Worker(RequestLog(lines_per_s=100.0, slow_s=1.0))
    for method in (CLASSIFY, MODEL_INFER, None):
        worker.pipeline.admit(Responder(method), REQUEST)
    with capture_logs() as lines:
        assert worker.pipeline.run_batch()
    slow = [line["method"].rpartition("/")[2] for line in lines if line["event"] == "slow call"]
    assert slow == ["Classify", "ModelInfer"]

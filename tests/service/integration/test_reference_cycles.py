"""No reference cycles per request: finished requests are freed at once, without the garbage collector."""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from digitserve.batching.candidates import Candidates
from digitserve.batching.pending import PendingRequest
from digitserve.batching.pending_reading import CandidateResponder, PendingReading
from digitserve.protocol.names import CLASSIFY, MODEL_INFER, READ
from digitserve.protocol.tensors import IdForm
from digitserve.transport.classify import CallResponder
from digitserve.transport.classify_stream import StreamMessage, StreamState
from digitserve.transport.grpcio import rpcs
from digitserve.transport.native.call import Call
from digitserve.transport.native.stream import Stream
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image, echo_request
from support.column_reader import ColumnReader, echo_row
from support.infer_checks import infer_request
from support.serving import PATIENCE_S, RunningWorker, run_worker, wait_until

PER_REQUEST = (
    rpcs.Call,
    rpcs.Stream,
    Call,
    Stream,
    PendingRequest,
    PendingReading,
    Candidates,
    CandidateResponder,
    CallResponder,
    IdForm,
    StreamState,
    StreamMessage,
)


@contextmanager
def objects_in_cycles() -> Iterator[Counter[str]]:
    """Switch garbage collection off; afterwards, count the objects per request that only it could free, by class."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found.update(type(one).__name__ for one in gc.garbage if isinstance(one, PER_REQUEST))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_calls_leave_no_reference_cycles(worker: RunningWorker) -> None:
    """Answered (by either method), rejected, cancelled and expired calls are freed as soon as they are over."""
    infer = worker.channel.unary_unary(MODEL_INFER.path)
    with objects_in_cycles() as found:
        for number in range(50):
            worker.classify(echo_request(number))
            infer(infer_request(echo_image(number).tobytes(), (1, 28, 28), id="an id").SerializeToString())
            with pytest.raises(grpc.RpcError):
                worker.classify(pb.ClassifyRequest(pixels=b"no"))
        call = worker.channel.unary_unary(CLASSIFY.path)
        body = echo_request(1).SerializeToString()
        for number in range(50):
            future = call.future(body, timeout=0.001 if number % 2 else None)
            future.cancel()
        wait_until(lambda: sum(worker.handled().values()) == worker.started(), "every call has ended")

    assert not found


def test_streams_leave_no_reference_cycles(worker: RunningWorker) -> None:
    """Streams that ended, and streams that were cancelled before, are freed as soon as they are over."""
    with objects_in_cycles() as found:
        for _ in range(10):
            assert len(list(worker.stream(echo_request(number) for number in range(20)))) == 20
            answers = worker.stream(echo_request(number) for number in range(1000))
            next(answers)
            answers.cancel()
        wait_until(lambda: sum(worker.handled("ClassifyStream").values()) == 20, "every stream has ended")

    assert not found


def test_readings_leave_no_reference_cycles(models: Path, transport: str) -> None:
    """Answered, rejected, failed and cancelled readings, in calls and on streams, are freed as soon as they are over."""
    reader = ColumnReader(candidates=2)
    with (
        run_worker(models, new_reader=lambda _: reader, transport=transport) as worker,
        objects_in_cycles() as found,
    ):
        call = worker.channel.unary_unary(READ.path)
        for number in range(20):
            worker.read(echo_row(number, 1, 2))
            for pattern in ("(", "limit", "bug"):
                with pytest.raises(grpc.RpcError):
                    worker.read(echo_row(number, pattern=pattern))
            assert len(list(worker.read_stream(echo_row(number, number) for _ in range(3)))) == 3
        reader.is_held = True
        for number in range(20):
            call.future(echo_row(number).SerializeToString(), timeout=PATIENCE_S).cancel()
        wait_until(lambda: sum(worker.handled("Read").values()) == worker.started("Read"), "every call has ended")
        wait_until(lambda: worker.series("digitserve_pending_readings")[()] == 0, "nothing is pending")

    assert not found

"""No reference cycles per request: finished requests are freed at once, without the garbage collector."""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from digitserve.batching.pending import PendingRequest
from digitserve.protocol.names import CLASSIFY, MODEL_INFER
from digitserve.protocol.tensors import IdForm
from digitserve.transport.classify import CallResponder
from digitserve.transport.classify_stream import StreamMessage, StreamState
from digitserve.transport.grpcio import rpcs
from digitserve.transport.native.call import Call
from digitserve.transport.native.stream import Stream
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image, echo_request
from support.infer_checks import infer_request
from support.serving import RunningWorker, wait_until

PER_REQUEST = (
    rpcs.Call,
    rpcs.Stream,
    Call,
    Stream,
    PendingRequest,
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

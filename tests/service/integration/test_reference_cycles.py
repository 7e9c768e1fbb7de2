"""Requests that are over leave nothing to the garbage collector: a worker's memory follows what it has, not what it had."""

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from digitserve.batching.batcher import Entry
from digitserve.transport.classify_stream import Conversation, Slot
from digitserve.transport.grpcio.completion_queue import Call, Stream
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_request
from support.serving import RunningWorker, wait_until

OURS = (Call, Stream, Entry, Conversation, Slot)


@contextmanager
def uncollected() -> Iterator[Counter[str]]:
    """Switch the collector off; afterwards, count what of ours only it could free."""
    found: Counter[str] = Counter()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield found
        gc.collect()
        found.update(type(one).__name__ for one in gc.garbage if isinstance(one, OURS))
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_calls_leave_no_circles(worker: RunningWorker) -> None:
    """Answered, refused, cancelled and expired calls are freed as soon as they are over."""
    with uncollected() as found:
        for number in range(50):
            worker.classify(echo_request(number))
            with pytest.raises(grpc.RpcError):
                worker.classify(pb.ClassifyRequest(pixels=b"no"))
        call = worker.channel.unary_unary("/digitserve.v1.DigitService/Classify")
        body = echo_request(1).SerializeToString()
        for number in range(50):
            future = call.future(body, timeout=0.001 if number % 2 else None)
            future.cancel()
        wait_until(lambda: sum(worker.handled().values()) == worker.started(), "every call has ended")

    assert not found


def test_streams_leave_no_circles(worker: RunningWorker) -> None:
    """Streams that ended, and streams that were cancelled in the middle, are freed as soon as they are over."""
    with uncollected() as found:
        for _ in range(10):
            assert len(list(worker.stream(echo_request(number) for number in range(20)))) == 20
            answers = worker.stream(echo_request(number) for number in range(1000))
            next(answers)
            answers.cancel()
        wait_until(lambda: sum(worker.handled("ClassifyStream").values()) == 20, "every stream has ended")

    assert not found

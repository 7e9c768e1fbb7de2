"""Retries of the client library: full queues, and limits that change when the service restarts."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2, duration_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from digitserve.client import AsyncClient, Client, RequestRejected
from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image, write_echo_bundle
from support.clients import KINDS, classify, images_of, scores, serve_handlers
from support.serving import PATIENCE_S, run_worker


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_echo_bundle(path)
    return path


class BusyServer:
    """A plain ``grpc.server`` that rejects its first calls of ``Classify``, with or without ``RetryInfo``."""

    def __init__(self, num_rejected: int, retry_after_s: float | None) -> None:
        self.num_calls = 0
        self._num_rejected = num_rejected
        self._status = status_pb2.Status(code=code_pb2.RESOURCE_EXHAUSTED, message="no room")
        if retry_after_s is not None:
            retry, packed = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration()), any_pb2.Any()
            retry.retry_delay.FromNanoseconds(int(retry_after_s * 1e9))
            packed.Pack(retry)
            self._status.details.append(packed)

    def classify(self, request: pb.ClassifyRequest, context: grpc.ServicerContext) -> pb.ClassifyResponse:
        self.num_calls += 1
        if self.num_calls <= self._num_rejected:
            context.abort_with_status(rpc_status.to_status(self._status))
        return pb.ClassifyResponse(predictions=[pb.Prediction(label="1")] * request.num_images)

    def model(self, _request: pb.GetModelRequest, _context: grpc.ServicerContext) -> pb.GetModelResponse:
        return pb.GetModelResponse(model=pb.Model(max_request_bytes=1 << 20, max_images_per_request=64))

    @contextmanager
    def running(self) -> Iterator[str]:
        """Serve, and yield the address."""
        handlers = {
            "Classify": grpc.unary_unary_rpc_method_handler(
                self.classify, pb.ClassifyRequest.FromString, pb.ClassifyResponse.SerializeToString
            ),
            "GetModel": grpc.unary_unary_rpc_method_handler(
                self.model, pb.GetModelRequest.FromString, pb.GetModelResponse.SerializeToString
            ),
        }
        with serve_handlers(handlers, num_threads=1) as address:
            yield address


@KINDS
def test_a_request_to_a_full_queue_is_retried(kind: str) -> None:
    """RESOURCE_EXHAUSTED with ``RetryInfo`` is retried until there is room; the caller only gets the answer."""
    busy = BusyServer(num_rejected=3, retry_after_s=0.001)
    with busy.running() as address:
        (prediction,) = classify(kind, address, echo_image(1), timeout_s=PATIENCE_S)

    assert prediction.label == "1"
    assert busy.num_calls == 4


@KINDS
@pytest.mark.parametrize("retry_after_s", [None, 3600.0])
def test_a_useless_retry_is_not_made(kind: str, retry_after_s: float | None) -> None:
    """RESOURCE_EXHAUSTED without ``RetryInfo``, or with a delay beyond the deadline, is raised after one call."""
    busy = BusyServer(num_rejected=100, retry_after_s=retry_after_s)
    with busy.running() as address, pytest.raises(RequestRejected, match="RESOURCE_EXHAUSTED: no room") as caught:
        classify(kind, address, echo_image(1), timeout_s=PATIENCE_S)

    assert caught.value.retry_after_s == retry_after_s
    assert busy.num_calls == 1


@KINDS
@pytest.mark.parametrize("smaller", [{"max_request_bytes": 5000}, {"max_pending_images": 16}])
def test_new_limits_of_a_restarted_service_are_read(models: Path, kind: str, smaller: dict[str, int]) -> None:
    """After a restart with smaller limits the same client sends smaller requests, and every call is answered; an image that
    alone exceeds the limits is still rejected.
    """

    async def turn(use: Callable[..., Any], *arguments: Any) -> Any:
        return await use(*arguments) if kind == "async" else await asyncio.to_thread(use, *arguments)

    async def run() -> None:
        arguments: dict[str, Any] = {
            "images_per_request": 50,
            "timeout_s": PATIENCE_S,
            "max_in_flight": 1,
            "max_side": None,
        }
        with run_worker(models) as first:
            address = first.address
            client = (AsyncClient if kind == "async" else Client)(address, **arguments)
            assert scores(await turn(client.classify, images_of(0, 50))) == list(range(50))
        with run_worker(models, grpc_port=int(address.rpartition(":")[2]), **smaller) as second:
            assert scores(await turn(client.classify, images_of(0, 50))) == list(range(50))
            with pytest.raises(RequestRejected):
                await turn(client.classify, np.zeros((2, 5000), np.uint8))
            before = second.handled()["OK"]
            assert scores(await turn(client.classify, images_of(50, 6))) == list(range(50, 56))
            assert second.handled()["OK"] == before + 1
            await turn(client.close)

    asyncio.run(run())

"""A plain client of the service, on which ``classify`` and ``healthcheck`` stand."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from digitserve.v1 import digits_pb2 as pb
from digitserve.v1 import digits_pb2_grpc

_UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))


@contextmanager
def connect(address: str) -> Iterator[grpc.Channel]:
    """Open a channel to ``host:port``; the service's own limits decide how large a message may be."""
    with grpc.insecure_channel(address, options=_UNLIMITED) as channel:
        yield channel


def classify(channel: grpc.Channel, request: pb.ClassifyRequest, timeout_s: float) -> pb.ClassifyResponse:
    """Classify the images of one request.

    Raises:
        grpc.RpcError: with the service's status code and message.
    """
    response: pb.ClassifyResponse = digits_pb2_grpc.DigitServiceStub(channel).Classify(request, timeout=timeout_s)
    return response


def health(channel: grpc.Channel, service: str, timeout_s: float) -> str:
    """Ask for the health of a service, ``""`` for the whole; return the status's name, such as ``SERVING``.

    Raises:
        grpc.RpcError: nobody answers, or the service is not known there.
    """
    request = health_pb2.HealthCheckRequest(service=service)
    response = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)

"""A plain client of the service, on which ``classify`` and ``healthcheck`` stand."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from digitserve.errors import DigitserveError
from digitserve.v1 import digits_pb2 as pb
from digitserve.v1 import digits_pb2_grpc

RETRY_POLICY = json.dumps(
    {
        "methodConfig": [
            {
                "name": [{"service": "digitserve.v1.DigitService"}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.01s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 4,
                    # Core ends calls that reach a closing server between its GOAWAY and the client's reading of it with
                    # CANCELLED; asking twice does no harm, since answers change nothing.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
                },
            }
        ]
    }
)
"""The service config that hides a worker's replacement from its callers; any gRPC client takes it."""

OPTIONS = (
    ("grpc.service_config", RETRY_POLICY),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
)
"""Channel options of this client; the service's own limits decide how large a message may be."""
_SILENT = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


class Unreachable(DigitserveError):
    """Nobody answers at the address, or not in time."""


class Refused(DigitserveError):
    """The service answered with a status other than OK; the text has its name and message."""


@contextmanager
def connect(address: str) -> Iterator[grpc.Channel]:
    """Open a channel to ``host:port``.

    Raises:
        Unreachable: a call on the channel found nobody, or had no answer in time.
        Refused: a call got another status than OK.
    """
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        yield channel


def classify(channel: grpc.Channel, request: pb.ClassifyRequest, timeout_s: float) -> pb.ClassifyResponse:
    """Classify the images of one request."""
    stub = digits_pb2_grpc.DigitServiceStub(channel)  # type: ignore[no-untyped-call] # generated
    response: pb.ClassifyResponse = _call(stub.Classify, request, timeout_s)
    return response


def health(channel: grpc.Channel, service: str, timeout_s: float) -> str:
    """Ask for the health of a service, ``""`` for the whole; return the status's name, such as ``SERVING``."""
    request = health_pb2.HealthCheckRequest(service=service)
    response = _call(health_pb2_grpc.HealthStub(channel).Check, request, timeout_s)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def _call(method: Any, request: Any, timeout_s: float) -> Any:
    try:
        return method(request, timeout=timeout_s)
    except grpc.RpcError as error:
        if error.code() in _SILENT:
            raise Unreachable(
                f"no answer within {timeout_s:g} s ({error.details()}); is 'digitserve serve' running at the address?"
            ) from None
        raise Refused(f"{error.code().name}: {error.details()}") from None

"""Plain calls on one channel, and what every channel of this client is opened with. The commands stand on it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status  # type: ignore[import-untyped]

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

OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", RETRY_POLICY),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # Core keeps no more than 256 KiB of a call to send it again; a larger request would be sent once only.
    ("grpc.per_rpc_retry_buffer_size", 1 << 30),
)
"""Channel options of this client; the service's own limits decide how large a message may be."""


class Unreachable(DigitserveError):
    """Nobody answers at the address, or not in time."""


class Refused(DigitserveError):
    """The service answered with a status other than OK; the text has its name and message.

    Attributes:
        code: the status code.
        retry_after_s: when to come back, where the service said so (``RetryInfo``).
    """

    def __init__(self, message: str, code: grpc.StatusCode, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def may_be_of_limits(self) -> bool:
        """Whether the request may have been over the service's limits; not when it is only to come back later."""
        return self.retry_after_s is None and self.code in {
            grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED,
        }  # fmt: skip


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
    response: pb.ClassifyResponse = call(stub.Classify, request, timeout_s)
    return response


def health(channel: grpc.Channel, service: str, timeout_s: float) -> str:
    """Ask for the health of a service, ``""`` for the whole; return the status's name, such as ``SERVING``."""
    request = health_pb2.HealthCheckRequest(service=service)
    return health_name(call(health_pb2_grpc.HealthStub(channel).Check, request, timeout_s))


def health_name(response: health_pb2.HealthCheckResponse) -> str:
    """Return the name of a health status."""
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def call(method: Any, request: Any, timeout_s: float) -> Any:
    """Call a unary method and wait.

    Raises:
        Unreachable: nobody answers, or not in time.
        Refused: another status than OK.
    """
    try:
        return method(request, timeout=timeout_s)
    except grpc.RpcError as error:
        raise failure(error, timeout_s) from None


def failure(error: grpc.RpcError, timeout_s: float, what: str = "") -> DigitserveError:
    """Return what a failed call means to its caller.

    Args:
        error: of a blocking or an asynchronous call.
        timeout_s: what the caller had allowed.
        what: of the request, when there are several.
    """
    code, details = error.code(), error.details()
    about = f"{what}: " if what else ""
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Unreachable(f"{about}no answer within {timeout_s:g} s ({details})")
    if code is grpc.StatusCode.UNAVAILABLE:
        return Unreachable(f"{about}nobody answers ({details}); is 'digitserve serve' running at the address?")
    return Refused(f"{about}{code.name}: {details}", code, _retry_after_s(error))


def _retry_after_s(error: grpc.RpcError) -> float | None:
    status = rpc_status.from_call(error)
    retry = error_details_pb2.RetryInfo()
    if status is not None and any(packed.Unpack(retry) for packed in status.details):
        return float(retry.retry_delay.ToNanoseconds()) / 1e9
    return None

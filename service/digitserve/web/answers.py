"""Answers of the HTTP API: messages of the protocol as JSON, and errors as ``google.rpc.Status``.

Used by all modules of this package; no state.

Source of the HTTP statuses: grpc-gateway, runtime/errors.go, HTTPStatusFromCode.
"""

import math
from http import HTTPStatus
from typing import Self

from google.protobuf import json_format
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from starlette.responses import Response

from digitserve.errors import DigitserveError
from digitserve.protocol.names import Code
from digitserve.protocol.status import INTERNAL, Status

JSON = "application/json"

_HTTP_STATUS = {
    Code.CANCELLED: 499,
    Code.UNKNOWN: HTTPStatus.INTERNAL_SERVER_ERROR,
    Code.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    Code.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    Code.NOT_FOUND: HTTPStatus.NOT_FOUND,
    Code.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    Code.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    Code.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    Code.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    Code.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
}

_RETRY_S: dict[int, float] = {HTTPStatus.TOO_MANY_REQUESTS: 1.0, HTTPStatus.SERVICE_UNAVAILABLE: 1.0}
"""``Retry-After`` of errors without RetryInfo: a worker that ended is replaced within about a second."""


class Failure(DigitserveError):
    """A request that gets an error.

    Attributes:
        status: for the body.
        http_status: of the response.
        headers: more of the response.
    """

    def __init__(self, status: status_pb2.Status, http_status: int = 0) -> None:
        """Describe an error.

        Args:
            status: for the body.
            http_status: of the response; 0 for that of the code.
        """
        super().__init__(status.message)
        code = Code(status.code) if 0 <= status.code < len(Code) else Code.UNKNOWN
        retry_s = _retry_s(status)
        self.status = status
        self.http_status = http_status or int(_HTTP_STATUS.get(code, HTTPStatus.INTERNAL_SERVER_ERROR))
        self.headers: dict[str, str] = {}
        retry_s = _RETRY_S.get(self.http_status) if retry_s is None else retry_s
        if retry_s is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_s)))
        if code is Code.UNAUTHENTICATED:
            self.headers["www-authenticate"] = "Bearer"

    @classmethod
    def of(cls, status: Status, http_status: int = 0) -> Self:
        """Describe an error with a status of the service; see ``__init__``."""
        return cls(status.to_proto(), http_status)

    @classmethod
    def invalid(cls, message: str, http_status: int = 0) -> Self:
        """Describe a fault of the client; see ``__init__``."""
        return cls.of(Status(Code.INVALID_ARGUMENT, message), http_status)

    def response(self) -> Response:
        """Return the answer."""
        return Response(to_json(self.status), self.http_status, self.headers, JSON)


def internal() -> Failure:
    """Describe a fault of the service."""
    return Failure.of(INTERNAL)


def to_json(message: Message) -> str:
    """Return a message as JSON, with the names of the protocol, and with fields that have their default value."""
    return json_format.MessageToJson(
        message, indent=None, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def _retry_s(status: status_pb2.Status) -> float | None:
    """Return the seconds of RetryInfo, None without one."""
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(retry):
            return float(retry.retry_delay.seconds + retry.retry_delay.nanos * 1e-9)
    return None

"""Errors of the service as HTTP."""

import json

import pytest
from google.rpc import status_pb2

from digitserve.errors import Overloaded
from digitserve.protocol.names import Code
from digitserve.protocol.status import Status
from digitserve.web.answers import Failure, internal

GATEWAY = {
    Code.CANCELLED: 499, Code.UNKNOWN: 500, Code.INVALID_ARGUMENT: 400, Code.DEADLINE_EXCEEDED: 504, Code.NOT_FOUND: 404,
    Code.PERMISSION_DENIED: 403, Code.RESOURCE_EXHAUSTED: 429, Code.UNIMPLEMENTED: 501, Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503, Code.DATA_LOSS: 500, Code.UNAUTHENTICATED: 401,
}  # fmt: skip
"""From grpc-gateway, runtime/errors.go, for the codes that the service, its transports and proxies use."""


@pytest.mark.parametrize("code", GATEWAY)
def test_codes_are_mapped_as_by_grpc_gateway(code: Code) -> None:
    """The HTTP status is that of grpc-gateway; the body is google.rpc.Status."""
    response = Failure.of(Status(code, "text")).response()
    assert response.status_code == GATEWAY[code]
    assert json.loads(response.body) == {"code": int(code), "message": "text", "details": []}


@pytest.mark.parametrize(("retry_s", "header"), [(0.01, "1"), (1.0, "1"), (2.5, "3")])
def test_overload_has_a_delay(retry_s: float, header: str) -> None:
    """The delay of RetryInfo is in the body, and in whole seconds in ``Retry-After``."""
    response = Failure.of(Status.from_error(Overloaded("full", retry_s))).response()
    assert (response.status_code, response.headers["retry-after"]) == (429, header)
    (detail,) = json.loads(response.body)["details"]
    assert detail == {
        "@type": "type.googleapis.com/google.rpc.RetryInfo",
        "retry_delay": f"{retry_s:.3f}s".replace(".000", ""),
    }


def test_a_code_of_another_version_is_unknown() -> None:
    """A code that does not exist is an error of the server."""
    assert Failure(status_pb2.Status(code=99, message="?")).http_status == 500


def test_an_internal_error_reveals_nothing() -> None:
    """The text is fixed."""
    assert json.loads(internal().response().body)["message"] == "internal error; the server's log has the details"

"""Conversion of errors to status codes."""

import pytest
from google.rpc import error_details_pb2, status_pb2

from digitserve.errors import (
    DeadlineUnmeetable,
    Draining,
    InvalidRequest,
    NotServed,
    Overloaded,
    RequestError,
    TooLarge,
)  # fmt: skip
from digitserve.protocol.names import Code
from digitserve.protocol.status import INTERNAL, Status


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("why"), Code.INVALID_ARGUMENT),
        (NotServed("why"), Code.NOT_FOUND),
        (TooLarge("why"), Code.RESOURCE_EXHAUSTED),
        (Overloaded("why", 0.5), Code.RESOURCE_EXHAUSTED),
        (DeadlineUnmeetable("why"), Code.DEADLINE_EXCEEDED),
        (Draining("why"), Code.UNAVAILABLE),
    ],
)
def test_each_error_has_its_code_and_message(error: RequestError, code: Code) -> None:
    """The status has the code of the error's class, and the error's message."""
    assert Status.from_error(error)[:2] == (code, "why")


def test_every_request_error_has_a_code() -> None:
    """No subclass of ``RequestError`` is missing in the conversion."""
    for kind in RequestError.__subclasses__():
        error = kind("why", 1.0) if kind is Overloaded else kind("why")
        assert Status.from_error(error).code in Code


def test_an_overload_carries_retry_info() -> None:
    """``RetryInfo`` in the details has the time after which a retry should succeed."""
    details = Status.from_error(Overloaded("full", 0.25)).details()

    assert details is not None
    status = status_pb2.Status.FromString(details)
    assert (status.code, status.message) == (Code.RESOURCE_EXHAUSTED, "full")
    retry = error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(retry)
    assert retry.retry_delay.ToNanoseconds() == 250_000_000


def test_details_are_omitted_when_they_would_add_nothing() -> None:
    """A status without a retry time is sent as code and message alone."""
    assert Status.from_error(InvalidRequest("why")).details() is None
    assert INTERNAL.details() is None

"""The one conversion of errors to gRPC status codes.

    RequestError ──Status.from_error──▶ Status ──▶ trailers of a call, or ``google.rpc.Status`` in a message of a stream
    any other exception ──▶ INTERNAL, with a fixed text: the detail is in the log only

Used by the handlers of ``transport``; depends on protobuf, not on gRPC.
"""

from typing import NamedTuple

from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2

from digitserve.errors import (
    DeadlineUnmeetable,
    Draining,
    InvalidRequest,
    NotServed,
    Overloaded,
    RequestError,
    TooLarge,
    Unsupported,
)  # fmt: skip
from digitserve.protocol.names import Code

_CODES: dict[type[RequestError], Code] = {
    InvalidRequest: Code.INVALID_ARGUMENT,
    NotServed: Code.NOT_FOUND,
    TooLarge: Code.RESOURCE_EXHAUSTED,
    Unsupported: Code.FAILED_PRECONDITION,
    Overloaded: Code.RESOURCE_EXHAUSTED,
    DeadlineUnmeetable: Code.DEADLINE_EXCEEDED,
    Draining: Code.UNAVAILABLE,
}


class Status(NamedTuple):
    """How an RPC, or one message of a stream, ends.

    Attributes:
        code: gRPC's status code.
        message: for people to read.
        retry_after_s: seconds after which a retry should succeed, if that is known.
    """

    code: Code
    message: str = ""
    retry_after_s: float | None = None

    @classmethod
    def from_error(cls, error: RequestError) -> "Status":
        """Return the status of an error."""
        retry_after_s = error.retry_after_s if isinstance(error, Overloaded) else None
        return cls(_CODES[type(error)], str(error), retry_after_s)

    def to_proto(self) -> status_pb2.Status:
        """Return a ``google.rpc.Status``, with ``RetryInfo`` if ``retry_after_s`` is known."""
        status = status_pb2.Status(code=self.code, message=self.message)
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            retry = any_pb2.Any()
            retry.Pack(error_details_pb2.RetryInfo(retry_delay=delay))
            status.details.append(retry)
        return status

    def details(self) -> bytes | None:
        """Return the serialized ``google.rpc.Status`` for ``grpc-status-details-bin``; ``None`` if it would add nothing."""
        return None if self.retry_after_s is None else bytes(self.to_proto().SerializeToString())

    def trailers(self) -> list[tuple[str, str | bytes]]:
        """Return the metadata that both transports send beside code and message; the value of a name in ``-bin`` is bytes."""
        trailers: list[tuple[str, str | bytes]] = []
        details = self.details()
        if details is not None:
            trailers.append(("grpc-status-details-bin", details))
        if self.retry_after_s is not None:
            trailers.append(("grpc-retry-pushback-ms", str(max(0, round(self.retry_after_s * 1e3)))))
        return trailers


OK = Status(Code.OK)
INTERNAL = Status(Code.INTERNAL, "internal error; the server's log has the details")
NO_MESSAGE = Status(Code.INVALID_ARGUMENT, "got no message before the end of the call; expected exactly one")

"""The errors of the client library. ``except ClientError`` catches all of them.

DigitserveError
└── ClientError
    ├── InvalidRequest      (also ValueError)       an argument is invalid; nothing was sent for it
    ├── InvalidAddress      (also ValueError)       the address cannot be that of a gRPC service
    ├── InvalidCredentials  (also ValueError)       a certificate, key or token cannot be used; nothing was sent
    ├── Unreachable         (also ConnectionError)  no service answers at the address
    │   └── HandshakeFailed                         one side does not accept the other, or only one uses TLS
    ├── DeadlineExceeded    (also TimeoutError)     the service did not answer within ``timeout_s``
    ├── RequestRejected                             the service answered with a gRPC status other than OK
    │   └── Unauthenticated                         the service did not accept the token, or requires one
    └── Closed                                      the client was closed before or during the call
"""

import grpc

from digitserve.errors import AccessDenied, CredentialsError, DigitserveError


class ClientError(DigitserveError):
    """Base class of all errors that the client library raises.

    Attributes:
        index: position of the failed image in the input of a stream; None if the error concerns no single one.
    """

    index: int | None = None


class InvalidRequest(ClientError, ValueError):
    """An argument is invalid; the message states what was received, what is expected, and which image."""


class InvalidAddress(ClientError, ValueError):
    """The address cannot be that of a gRPC service; the message shows the format of an address."""


class InvalidCredentials(ClientError, CredentialsError, ValueError):
    """A certificate, key or token cannot be used; ``argument`` names it, and the message states what is expected."""


class Unreachable(ClientError, ConnectionError):
    """No service answers at the address."""


class HandshakeFailed(Unreachable, AccessDenied):
    """TLS prevents a connection: one side does not accept the other, or only one uses TLS. The message states what to do."""


class DeadlineExceeded(ClientError, TimeoutError):
    """The service did not answer within ``timeout_s``."""


class RequestRejected(ClientError):
    """The service answered with a status other than OK; the message contains the status and the service's message.

    Attributes:
        code: the status code.
        retry_after_s: seconds to wait before a retry, if the service sent ``RetryInfo``; else None.
    """

    def __init__(self, message: str, code: grpc.StatusCode, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.retry_after_s = retry_after_s

    @property
    def may_exceed_limits(self) -> bool:
        """Whether the request may exceed the service's limits; False if the service requested a later retry."""
        return self.retry_after_s is None and self.code in {
            grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED,
        }  # fmt: skip


class Unauthenticated(RequestRejected, AccessDenied):
    """The service did not accept the token, or requires one."""


class Closed(ClientError):
    """The client was closed."""

    def __init__(self) -> None:
        super().__init__("the client was closed; create another one")

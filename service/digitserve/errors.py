"""What can go wrong, whose fault it is, and what is said about it.

    pixels ──check──▶ admitted ──form──▶ batch ──run──▶ answer
           │                 │                 │
           │                 │                 └ any other exception: ours; INTERNAL with a fixed text,
           │                 │                   the detail in the log only
           │                 └ DeadlineUnmeetable: the caller's deadline is nearer than the answer
           ├ InvalidRequest, NotServed, TooLarge: the caller's; the message says got, expected, and which image
           └ Overloaded, Draining: nobody's; come back later, or elsewhere

    BundleError, ProviderError, SettingsError: the operator's; the service refuses to start and says which check failed

    DigitserveError
    ├── RequestError
    │   ├── InvalidRequest
    │   ├── NotServed
    │   ├── TooLarge
    │   ├── Overloaded
    │   ├── DeadlineUnmeetable
    │   └── Draining
    └── RefusalToStart
        ├── BundleError
        ├── ProviderError
        └── SettingsError

The messages of all these classes are written for whoever reads them outside: they name no path of the server to a
caller, no module and no traceback. The one conversion to gRPC status codes is in ``rpc``.
"""


class DigitserveError(Exception):
    """Base of every error that digitserve raises on purpose; its text is fit to be shown."""


class RequestError(DigitserveError):
    """A request that is not answered with predictions.

    Attributes:
        reason: the value of the label ``reason`` of ``digitserve_rejected_total``.
    """

    reason = "invalid"


class InvalidRequest(RequestError):
    """The request contradicts itself or the limits; sending it again will not help."""


class NotServed(RequestError):
    """The request names a model version that this service does not serve."""

    reason = "not_served"


class TooLarge(RequestError):
    """The message is larger than any may be."""

    reason = "too_large"


class Overloaded(RequestError):
    """As much is pending as may be.

    Attributes:
        retry_after_s: seconds after which there should be room again.
    """

    reason = "queue_full"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineUnmeetable(RequestError):
    """The answer cannot be ready by the caller's deadline."""

    reason = "deadline"


class Draining(RequestError):
    """This worker takes no new requests: it is about to stop."""

    reason = "draining"


class RefusalToStart(DigitserveError):
    """The service cannot be what it was asked to be, so it does not start."""


class BundleError(RefusalToStart):
    """A model bundle failed a check.

    Attributes:
        check: which one: ``files``, ``manifest``, ``sha256``, ``signature`` or ``golden``.
    """

    def __init__(self, check: str, message: str) -> None:
        super().__init__(f"check '{check}' failed: {message}")
        self.check = check


class ProviderError(RefusalToStart):
    """The execution provider that was asked for did not load."""


class SettingsError(RefusalToStart):
    """A setting has a value that cannot be served; the message says which and what would do."""

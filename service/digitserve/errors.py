"""The errors of digitserve, and where each is raised.

    request ──decode──▶ admitted ──form batch──▶ batch ──run──▶ answer
                │                    │              │
                │                    │              └ any other exception: a fault of the service; INTERNAL with a fixed
                │                    │                text, details only in the log
                │                    └ DeadlineUnmeetable: the answer cannot be ready by the caller's deadline
                ├ InvalidRequest, NotServed, TooLarge, Unsupported: fault of the caller; the message states what was received, what is
                │ expected, and which image
                └ Overloaded, Draining: temporary; retry later or on another connection

    BundleError, ProviderError, SettingsError: for the operator; the service does not start and names the failed check
    ImageFileError: for the user of an image file
    CredentialsError, AccessDenied: for the user of a client; TLS files or a token that cannot be used, or is rejected
    ClientError and its subclasses: see ``digitserve.client.errors``

    DigitserveError
    ├── RequestError
    │   ├── InvalidRequest
    │   ├── NotServed
    │   ├── TooLarge
    │   ├── Unsupported
    │   ├── Overloaded
    │   ├── DeadlineUnmeetable
    │   └── Draining
    ├── StartupError
    │   ├── BundleError
    │   │   └── NoModelError
    │   ├── ProviderError
    │   └── SettingsError
    ├── ImageFileError
    ├── CredentialsError
    └── AccessDenied

Messages are shown to users. Messages of RequestError go to remote callers: they contain no path of the server, no module
name and no traceback.
"""

import textwrap

MAX_MESSAGE_LENGTH = 500
"""Most characters of an error about a bundle."""


class DigitserveError(Exception):
    """Base class of all errors that digitserve raises deliberately; the message can be shown to users."""


class RequestError(DigitserveError):
    """A request that gets no predictions.

    Attributes:
        reason: value of the label ``reason`` of the metric ``digitserve_rejected_total``.
    """

    reason = "invalid"


class InvalidRequest(RequestError):
    """The request is inconsistent or exceeds a limit; a retry fails again."""


class NotServed(RequestError):
    """The request names something that this service does not serve: a model version, or a service of a health check."""

    reason = "not_served"


class TooLarge(RequestError):
    """The message exceeds the largest allowed size."""

    reason = "too_large"


class Unsupported(RequestError):
    """The method needs another kind of model than the one that is served."""

    reason = "unsupported"


class Overloaded(RequestError):
    """The queue of pending images is full.

    Attributes:
        retry_after_s: seconds after which the queue is expected to have room.
    """

    reason = "queue_full"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineUnmeetable(RequestError):
    """The answer cannot be ready by the caller's deadline."""

    reason = "deadline"


class Draining(RequestError):
    """This worker accepts no new requests because it is shutting down."""

    reason = "draining"


class StartupError(DigitserveError):
    """The service cannot run with the given settings, so it does not start."""


class BundleError(StartupError):
    """A model bundle failed a check.

    Attributes:
        check: the failed check: ``files``, ``manifest``, ``sha256``, ``signature``, ``golden`` or ``warm-up``.
    """

    def __init__(self, check: str, message: str) -> None:
        # One line of limited length, although the message may quote the bundle or onnxruntime.
        text = textwrap.shorten(message, MAX_MESSAGE_LENGTH, placeholder=" ...")
        # Without control characters, which a terminal would interpret.
        text = "".join(character if character.isprintable() else "?" for character in text)
        super().__init__(f"check '{check}' failed: {text}")
        self.check = check


class NoModelError(BundleError):
    """The folder of the models has no version of the model; commands add how to get one."""

    def __init__(self, message: str) -> None:
        super().__init__("files", message)


class ProviderError(StartupError):
    """The requested execution provider could not be loaded."""


class SettingsError(StartupError):
    """A setting has a value that cannot be used; the message names the setting and the accepted values."""


class ImageFileError(DigitserveError):
    """An image file cannot be read; the message names the file, what it contains and what is expected."""


class CredentialsError(DigitserveError):
    """A certificate, key or token of a client cannot be used; the message states what was received and what is expected.

    Attributes:
        argument: field of ``credentials.Credentials`` to correct.
        reason: the message without the argument.
    """

    def __init__(self, argument: str, message: str) -> None:
        super().__init__(f"{argument}: {message}")
        self.argument = argument
        self.reason = message


class AccessDenied(DigitserveError):
    """The TLS handshake failed, or the server did not accept the token; a retry with the same credentials fails again."""

"""Exit codes, the same for all commands."""

from enum import IntEnum

from digitserve.errors import AccessDenied, CredentialsError, DigitserveError


class ExitCode(IntEnum):
    """What a command ends with; ``digitserve --help`` lists them."""

    OK = 0
    NEGATIVE = 1
    USAGE = 2
    UNREACHABLE = 3
    TIMEOUT = 4
    DENIED = 5
    FAULT = 70
    """An internal fault of ``serve``: ``supervision.supervisor.EXIT_FAULT``."""
    INTERRUPTED = 130
    BROKEN_PIPE = 141
    """128 + SIGPIPE, as for other commands when their reader, such as ``head``, has ended."""


def exit_code(error: DigitserveError) -> ExitCode:
    """Return the exit code for an error."""
    if isinstance(error, CredentialsError):
        return ExitCode.USAGE
    if isinstance(error, AccessDenied):
        return ExitCode.DENIED
    # ``client.Unreachable`` and ``client.DeadlineExceeded`` derive from these; commands without a client do not import it.
    if isinstance(error, ConnectionError):
        return ExitCode.UNREACHABLE
    if isinstance(error, TimeoutError):
        return ExitCode.TIMEOUT
    return ExitCode.NEGATIVE

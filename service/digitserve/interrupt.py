"""Ctrl-C while a command starts or ends. ``__main__`` and ``cli`` call it on the main thread.

Imports take most of the time of a short command. A ``KeyboardInterrupt`` during an import would print a traceback. So this
module is imported first, and imports almost nothing itself.
"""

import os
import signal

EXIT_INTERRUPTED = 130
"""As in ``cli.exit_codes``."""


def exit_when_interrupted() -> None:
    """End the process at Ctrl-C without a traceback; the caller has nothing to clean up. No effect if SIGINT is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)


def raise_when_interrupted() -> bool:
    """Undo ``exit_when_interrupted``; return whether that was in effect."""
    if signal.getsignal(signal.SIGINT) is not _exit:
        return False
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return True


def _exit(_signal: int, _frame: object) -> None:
    os._exit(EXIT_INTERRUPTED)

"""Log lines on standard error: text on a terminal, JSON elsewhere. Each process calls ``configure`` once at its start."""

import atexit
import contextlib
import os
import sys
from typing import TextIO, cast

import structlog

# Without the values of local variables: they contain images of callers, and writing them takes milliseconds.
_tracebacks = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


class _BestEffortStream:
    """A stream whose writes never raise: a full disk or a closed pipe loses log lines and must not end the service."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure(log_format: str, **context: object) -> None:
    """Configure the logging of this process.

    Args:
        log_format: ``text``, ``json``, or ``auto``, which writes text to a terminal and JSON elsewhere.
        context: fields that are added to each line.
    """
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if as_text else structlog.processors.JSONRenderer()
    )
    exceptions: list[structlog.typing.Processor] = [] if as_text else [_tracebacks]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
        ],
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _BestEffortStream(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**context)
    atexit.unregister(_discard_unwritten_lines)
    atexit.register(_discard_unwritten_lines)


def _discard_unwritten_lines() -> None:
    """Drop log lines that cannot be written: Python would try again as it exits, and exit with code 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

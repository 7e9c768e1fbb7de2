"""Log lines on standard error: text on a terminal, JSON elsewhere. Each process calls ``configure`` once at its start.

    our modules ──structlog──▶ processors ──▶ LineWriter ──▶ standard error
    libraries   ──logging────▶ _LibraryHandler ─▲

Logging never decides over the service: it neither raises nor waits. Lines that cannot be written are lost, and counted.
"""

import atexit
import contextlib
import fcntl
import logging
import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import TextIO, cast

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

MAX_LIBRARY_LINES = 20
"""Most lines of one library logger in ``LIBRARY_PERIOD_S``: clients cause some of them, such as those about invalid HTTP."""

LIBRARY_PERIOD_S = 10.0

_STDERR = 2

# Without the values of local variables: they contain images of callers, and writing them takes milliseconds.
_tracebacks = structlog.processors.ExceptionRenderer(structlog.tracebacks.ExceptionDictTransformer(show_locals=False))


class LineWriter:
    """Writes log lines to a file descriptor without ever raising or waiting; it lives as long as the process.

    If a disk is full, or the reader of a pipe has ended or does not read, lines are lost. Before the next line that can be
    written, a line with the number of lost lines is written. May be called on any thread.

    Attributes:
        num_lost: lines lost since the last one that was written.
    """

    def __init__(self, fd: int, lost_line: Callable[[int], str]) -> None:
        """Write to a descriptor, which stays open.

        Args:
            fd: of a file, pipe, terminal or socket.
            lost_line: returns the line for a number of lost lines.
        """
        self._write_some, self._opened = _open_nonblocking(fd)
        self._lost_line = lost_line
        self._lock = threading.Lock()
        self._cut = False
        self.num_lost = 0

    def write(self, text: str) -> None:
        """Write one line with its line break."""
        with self._lock:
            if self.num_lost and not self._write_line(self._lost_line(self.num_lost)):
                self.num_lost += 1
                return
            self.num_lost = 0
            if not self._write_line(text):
                self.num_lost = 1

    def flush(self) -> None:
        """Do nothing: lines are not buffered."""

    def close(self) -> None:
        """Close the descriptor that was opened in addition, if any."""
        self._opened.close()

    def lose(self) -> None:
        """Count a line that could not even be rendered."""
        with self._lock:
            self.num_lost += 1

    def _write_line(self, text: str) -> bool:
        """Write a line as a whole, if possible; return whether it was written."""
        line = text.encode(errors="backslashreplace")
        # The rest of a line that was written in part is lost; the next one starts after a line break.
        left = memoryview(b"\n" + line if self._cut else line)
        try:
            while left:
                left = left[self._write_some(left) :]
                self._cut = True
        except (OSError, ValueError):
            return False
        self._cut = False
        return True


def _open_nonblocking(fd: int) -> tuple[Callable[[memoryview], int], contextlib.ExitStack]:
    """Return a function that writes to a descriptor and raises ``BlockingIOError`` instead of waiting, and what it opened.

    O_NONBLOCK on the descriptor itself would also affect the other processes that write to the same terminal or pipe. So a
    pipe or a terminal is opened again. A file is not opened again, because the new descriptor would have another position.
    """
    opened = contextlib.ExitStack()
    mode = os.fstat(fd).st_mode
    if stat.S_ISSOCK(mode):
        end = opened.enter_context(socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0)))
        return lambda left: end.send(left, socket.MSG_DONTWAIT), opened
    if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
        # It may belong to another user. Then writing blocks if its reader does not read.
        with contextlib.suppress(OSError):
            fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
    return lambda left: os.write(fd, left), opened


class _LibraryHandler(logging.Handler):
    """Forwards log lines of libraries, at a limited rate."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(logging.WARNING)
        self._clock = clock
        self._periods: dict[str, tuple[float, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record of the standard library's ``logging``."""
        try:
            self._pass_on(record)
        except Exception:
            self.handleError(record)

    def _pass_on(self, record: logging.LogRecord) -> None:
        now = self._clock()
        start, count = self._periods.get(record.name, (now, 0))
        if now - start >= LIBRARY_PERIOD_S:
            start, count = now, 0
        self._periods[record.name] = (start, count + 1)
        if count >= MAX_LIBRARY_LINES:
            return
        last = count == MAX_LIBRARY_LINES - 1
        fields = {"drops_more_for_s": round(start + LIBRARY_PERIOD_S - now, 1)} if last else {}
        structlog.get_logger(record.name).log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info or None, **fields
        )


def configure(log_format: str, **context: object) -> None:
    """Configure the logging of this process, also for libraries that use the standard library's ``logging``.

    Args:
        log_format: ``text``, ``json``, or ``auto``, which writes text to a terminal and JSON elsewhere.
        context: fields that are added to each line.
    """
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    renderer: Processor = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if as_text else structlog.processors.JSONRenderer()
    )
    exceptions: list[Processor] = [] if as_text else [_tracebacks]
    processors: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        *exceptions,
        renderer,
    ]

    def render(logger: WrappedLogger, name: str, event: EventDict) -> str:
        for processor in processors:
            event = processor(logger, name, event)  # type: ignore[assignment] # the last one returns a string
        return str(event)

    writer = LineWriter(
        _STDERR, lambda count: render(None, "error", {"event": "log lines were lost", "num_lines": count}) + "\n"
    )

    def render_if_possible(logger: WrappedLogger, name: str, event: EventDict) -> str:
        """Render a line; count it as lost if that fails, whatever the reason."""
        try:
            return render(logger, name, event)
        except Exception:
            writer.lose()
            raise structlog.DropEvent from None

    structlog.configure(
        processors=[render_if_possible],
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", writer)),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**context)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _LibraryHandler)]:
        root.removeHandler(handler)
    root.addHandler(_LibraryHandler())
    # A line of a library that cannot be formatted is lost; by default a traceback is printed.
    logging.raiseExceptions = False
    atexit.unregister(_discard_unwritten_lines)
    atexit.register(_discard_unwritten_lines)


def _discard_unwritten_lines() -> None:
    """Drop buffered output of ``sys.stderr`` that cannot be written: Python would try again at its exit, with exit code 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

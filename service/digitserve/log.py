"""Log lines on standard error: text on a terminal, JSON elsewhere. Each process calls ``configure`` once at its start.

    our modules ──structlog──────────────────────▶ _Renderer ──▶ _Output ──▶ LineWriter ──▶ standard error
    libraries ──logging, warnings──▶ _LibraryHandler ──▲
    uncaught exceptions ──hooks of Python──────────────┘

Logging never affects the service: it neither raises nor waits. Lines that cannot be written are lost, and counted. Each
kind of line has a bounded rate. What C++ libraries of a worker write to its standard error is logged by the supervisor
(``supervision.worker_output``).
"""

import atexit
import contextlib
import fcntl
import logging
import os
import select
import socket
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import structlog
from structlog.typing import EventDict

from digitserve.log_format import EXCEPTION, Fields, json_line, text_line

MAX_LINES = 20
"""Most lines of one kind in ``PERIOD_S``: clients cause some of them, such as those about invalid HTTP. A kind is one message of
one of our modules, or one logger of a library."""

PERIOD_S = 10.0

STDERR = 2

LIMITED_BY = "_limited_by"
"""Field that is not written: the kind of a line for its limit. None for lines whose rate their module bounds."""


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
        try:
            fd = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except OSError:  # it belongs to another user, or the pipe has no reader now
            return lambda left: _write_unless_full(fd, left), opened
        opened.callback(os.close, fd)
    return lambda left: os.write(fd, left), opened


def _write_unless_full(fd: int, left: memoryview) -> int:
    """Write to a pipe or terminal whose descriptor may block; return how much was written.

    Raises:
        BlockingIOError: it is full.
    """
    try:
        return os.pwritev(fd, [left], -1, os.RWF_NOWAIT)
    except (BlockingIOError, BrokenPipeError):
        raise
    except OSError:
        """Terminals, and pipes before Linux 6.4, do not support this flag."""
    poller = select.poll()
    poller.register(fd, select.POLLOUT)
    if not poller.poll(0):
        raise BlockingIOError
    # A pipe that is writable has room for this. Another process may take the room meanwhile; then this waits.
    return os.write(fd, left[: select.PIPE_BUF])


class _RateLimit:
    """Bounds the rate of each kind of line."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._periods: dict[object, tuple[float, int]] = {}

    def admit(self, kind: object) -> Fields | None:
        """Count a line; return the fields to add to it, or None if it exceeds the limit."""
        now = self._clock()
        start, count = self._periods.get(kind, (now, 0))
        if now - start >= PERIOD_S:
            start, count = now, 0
        self._periods[kind] = start, count + 1
        if count >= MAX_LINES:
            return None
        last = count == MAX_LINES - 1
        return {"drops_more_for_s": round(start + PERIOD_S - now, 1)} if last else {}


class _Renderer:
    """The processor of structlog: renders an event as a line, or drops it."""

    def __init__(
        self, line: Callable[[Fields], str], context: Fields, limit: _RateLimit, lose: Callable[[], None]
    ) -> None:
        self._line = line
        self._context = context
        self._limit = limit
        self._lose = lose

    def __call__(self, output: "_Output", level: str, event: EventDict) -> str:
        """Return the line.

        Raises:
            DropEvent: the rate of such lines exceeds the limit, or the line cannot be rendered and was counted as lost.
        """
        try:
            line = self._render(output.name, level, event)
        except Exception:
            self._lose()
            raise structlog.DropEvent from None
        if line is None:
            raise structlog.DropEvent
        return line

    def _render(self, logger: str, level: str, event: EventDict) -> str | None:
        fields: Fields = dict(event)
        message = str(fields.pop("event"))
        exception = _traceback(fields.pop("exc_info", None))
        kind = fields.pop(LIMITED_BY, (logger, message))
        added = {} if kind is None else self._limit.admit(kind)
        return (
            None
            if added is None
            else self._line(fixed(level, logger, message) | self._context | fields | added | {EXCEPTION: exception})
        )


def fixed(level: str, logger: str, message: str) -> Fields:
    """Return the first fields of every line."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00")
    return {"time": f"{now}Z", "level": level, "logger": logger, "message": message}


def _traceback(exc_info: Any) -> str | None:
    """Return a traceback, without values of local variables: they contain images of callers."""
    error: BaseException | None
    if isinstance(exc_info, BaseException):
        error = exc_info
    elif isinstance(exc_info, tuple):
        error = exc_info[1]
    else:
        error = sys.exc_info()[1] if exc_info else None
    return None if error is None else "".join(traceback.format_exception(error)).rstrip()


class _Output:
    """The end of structlog's chain for one logger: writes what ``_Renderer`` returned."""

    def __init__(self, writer: LineWriter, name: str = "digitserve") -> None:
        self._writer = writer
        self.name = name

    def msg(self, line: str) -> None:
        """Write a line."""
        self._writer.write(line + "\n")

    debug = info = warning = error = critical = msg


class _LibraryHandler(logging.Handler):
    """Passes log lines of libraries to structlog."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record of the standard library's ``logging``."""
        try:
            structlog.get_logger(record.name).log(
                record.levelno, record.getMessage(), exc_info=record.exc_info or None, **{LIMITED_BY: record.name}
            )
        except Exception:
            self.handleError(record)


def configure(
    log_format: str, fd: int = STDERR, clock: Callable[[], float] = time.monotonic, **context: object
) -> None:
    """Configure the logging of this process, also for libraries, warnings and uncaught exceptions.

    Args:
        log_format: ``text``, ``json``, or ``auto``, which writes text to a terminal and JSON elsewhere.
        fd: the descriptor to write to.
        clock: for the limit of the rate.
        context: fields that are added to each line.
    """
    line = text_line if log_format == "text" or (log_format == "auto" and os.isatty(fd)) else json_line
    writer = LineWriter(
        fd,
        lambda count: line(fixed("error", __name__, "log lines were lost") | context | {"num_lines": count}) + "\n",
    )
    structlog.configure(
        processors=[_Renderer(line, context, _RateLimit(clock), writer.lose)],
        logger_factory=lambda *name: _Output(writer, *name),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _LibraryHandler)]:
        root.removeHandler(handler)
    root.addHandler(_LibraryHandler())
    logging.captureWarnings(capture=True)
    # A line of a library that cannot be formatted is lost; by default a traceback is printed.
    logging.raiseExceptions = False
    sys.excepthook = _on_uncaught
    threading.excepthook = _on_thread_failed
    sys.unraisablehook = _on_unraisable
    atexit.unregister(_discard_unwritten_lines)
    atexit.register(_discard_unwritten_lines)


def _logger() -> Any:
    # Not one for the whole process: it would keep the first configuration, and tests have several.
    return structlog.get_logger(__name__)


def _on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log the exception with which the process ends."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        _logger().critical("uncaught exception", exc_info=error)


def _on_thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Log the exception with which a thread ends."""
    if failure.exc_type is not SystemExit:
        _logger().error("a thread failed", thread=failure.thread and failure.thread.name, exc_info=failure.exc_value)


def _on_unraisable(failure: "sys.UnraisableHookArgs") -> None:
    """Log an exception that cannot be raised, such as one of a finalizer."""
    # Without the object: its representation may contain anything.
    _logger().error("ignored an exception", kind=type(failure.object).__name__, exc_info=failure.exc_value)


def _discard_unwritten_lines() -> None:
    """Drop buffered output of ``sys.stderr`` that cannot be written: Python would try again at its exit, with exit code 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

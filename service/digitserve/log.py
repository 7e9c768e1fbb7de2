"""Log lines on standard error: text on a terminal, JSON elsewhere. Each process calls ``configure`` once at its start.

    our modules ──Logger──────────────┐
    libraries ──logging, warnings──▶ logging ──▶ _Handler ──▶ LineWriter ──▶ standard error
    uncaught exceptions ──hooks───────┘

Our modules log an event and its fields: ``_log = get_logger("digitserve.module")``, ``_log.info("event", field=value)``.

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

from digitserve.log_format import EXCEPTION, Fields, json_line, text_line

MAX_LINES = 20
"""Most lines of one kind in ``PERIOD_S``: clients cause some of them, such as those about invalid HTTP. A kind is one message of
one of our modules, or one logger of a library."""

PERIOD_S = 10.0

STDERR = 2

LIMITED_BY = "_limited_by"
"""Field that is not written: the kind of a line for its limit. None for lines whose rate their module bounds."""

FIELDS = "digitserve_fields"
"""Attribute of the records of our modules: the fields of the event. Those of libraries do not have it."""


class Logger:
    """A logger of one of our modules. Arguments by name are the fields of the event; with ``exc_info``, an exception, there is a traceback."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def info(self, event: str, /, **fields: object) -> None:
        """Log an event of normal operation."""
        self._log(logging.INFO, event, fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """Log an event that may need attention."""
        self._log(logging.WARNING, event, fields)

    def error(self, event: str, /, **fields: object) -> None:
        """Log a failure."""
        self._log(logging.ERROR, event, fields)

    def exception(self, event: str, /, **fields: object) -> None:
        """Log a failure with the exception that is being handled."""
        self._log(logging.ERROR, event, {"exc_info": sys.exception()} | fields)

    def critical(self, event: str, /, **fields: object) -> None:
        """Log the end of the process."""
        self._log(logging.CRITICAL, event, fields)

    def _log(self, level: int, event: str, fields: Fields) -> None:
        error: Any = fields.pop("exc_info", None)
        self._logger.log(level, event, exc_info=error, extra={FIELDS: fields})


def get_logger(name: str = "digitserve") -> Logger:
    """Return a logger; the name is ``digitserve``, or starts with ``digitserve.``. May be called before ``configure``."""
    return Logger(name)


_log = get_logger(__name__)


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


def fixed(level: str, logger: str, message: str) -> Fields:
    """Return the first fields of every line."""
    now = datetime.now(UTC).isoformat(timespec="microseconds").removesuffix("+00:00")
    return {"time": f"{now}Z", "level": level, "logger": logger, "message": message}


class _Handler(logging.Handler):
    """Writes records as lines: all of our modules, warnings and errors of libraries."""

    def __init__(self, line: Callable[[Fields], str], context: Fields, limit: _RateLimit, writer: LineWriter) -> None:
        super().__init__()
        self.addFilter(lambda record: record.levelno >= logging.WARNING or hasattr(record, FIELDS))
        self._line = line
        self._context = context
        self._limit = limit
        self._writer = writer

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line, unless its rate exceeds the limit. If it cannot be rendered, it counts as lost."""
        try:
            line = self._render(record)
        except Exception:
            self._writer.lose()
            return
        if line is not None:
            self._writer.write(line + "\n")

    def _render(self, record: logging.LogRecord) -> str | None:
        message = record.getMessage()
        fields: Fields = {LIMITED_BY: (record.name, message)} | getattr(record, FIELDS, {LIMITED_BY: record.name})
        kind = fields.pop(LIMITED_BY)
        added = {} if kind is None else self._limit.admit(kind)
        if added is None:
            return None
        first = fixed(record.levelname.lower(), record.name, message)
        return self._line(first | self._context | fields | added | {EXCEPTION: _traceback(record)})


def _traceback(record: logging.LogRecord) -> str | None:
    """Return a traceback, without values of local variables: they contain images of callers."""
    error = record.exc_info[1] if record.exc_info else None
    return None if error is None else "".join(traceback.format_exception(error)).rstrip()


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
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Handler)]:
        root.removeHandler(handler)
    root.addHandler(_Handler(line, context, _RateLimit(clock), writer))
    # The level of libraries remains that of the root, WARNING.
    logging.getLogger("digitserve").setLevel(logging.DEBUG)
    logging.captureWarnings(capture=True)
    # A line of a library that a handler of its own cannot format is lost; by default a traceback is printed.
    logging.raiseExceptions = False
    sys.excepthook = _on_uncaught
    threading.excepthook = _on_thread_failed
    sys.unraisablehook = _on_unraisable
    atexit.unregister(_discard_unwritten_lines)
    atexit.register(_discard_unwritten_lines)


def _on_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log the exception with which the process ends."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
    else:
        _log.critical("uncaught exception", exc_info=error)


def _on_thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Log the exception with which a thread ends."""
    if failure.exc_type is not SystemExit:
        _log.error("a thread failed", thread=failure.thread and failure.thread.name, exc_info=failure.exc_value)


def _on_unraisable(failure: "sys.UnraisableHookArgs") -> None:
    """Log an exception that cannot be raised, such as one of a finalizer."""
    # Without the object: its representation may contain anything.
    _log.error("ignored an exception", kind=type(failure.object).__name__, exc_info=failure.exc_value)


def _discard_unwritten_lines() -> None:
    """Drop buffered output of ``sys.stderr`` that cannot be written: Python would try again at its exit, with exit code 120."""
    try:
        sys.stderr.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

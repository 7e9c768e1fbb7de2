"""What a worker process writes to its standard output and error without ``log``: C++ libraries, and Python before its start.

    worker ──own log lines──────────────────────────────▶ standard error of the service
    worker ──standard output and error──▶ WorkerOutput ──▶ a log line of the supervisor

Runs on the supervisor's event loop.
"""

import asyncio
import contextlib
import os
from types import TracebackType
from typing import Self

from digitserve import log
from digitserve.log import get_logger
from digitserve.log_format import OUTPUT

BURST_S = 0.05
"""What arrives within this time is one event: a traceback, or the message of a crash, is written in several parts."""

MAX_BURST_BYTES = 1 << 16
"""Maximum size of one read. Output that has reached this size is logged at once."""

_log = get_logger("digitserve.supervision.worker_output")


class WorkerOutput:
    """A pipe for the output of one worker; a context manager around the life of the process.

    The worker's end does not block: output that the supervisor does not read is lost, as with log lines.

    Attributes:
        fd: standard output and error of the process.
        log_fd: a copy of the supervisor's standard error, for the worker's log lines.
    """

    def __init__(self, worker: int) -> None:
        """Open the pipe; the number of the worker's slot is for log lines.

        Raises:
            OSError: there is no file descriptor left.
        """
        self._worker = worker
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._timer: asyncio.TimerHandle | None = None
        self._read_end, self.fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.log_fd = os.dup(log.STDERR)
        except OSError:
            os.close(self._read_end)
            os.close(self.fd)
            raise
        self._started = False

    def __enter__(self) -> Self:
        """Start to read."""
        self._loop.add_reader(self._read_end, self._read)
        return self

    def started(self) -> None:
        """Close the worker's descriptors here: the process has its own copies."""
        if not self._started:
            self._started = True
            os.close(self.fd)
            os.close(self.log_fd)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Log the rest, and close the pipe: the process has ended, or was not started."""
        self.started()
        self._read()
        self._report()
        self._loop.remove_reader(self._read_end)
        os.close(self._read_end)

    def _read(self) -> None:
        received = b""
        with contextlib.suppress(BlockingIOError):
            received = os.read(self._read_end, MAX_BURST_BYTES)
            if not received:  # the worker has closed its end
                self._loop.remove_reader(self._read_end)
        self._received += received
        if len(self._received) >= MAX_BURST_BYTES:
            self._report()
        elif received and self._timer is None:
            self._timer = self._loop.call_later(BURST_S, self._report)

    def _report(self) -> None:
        """Log what was received."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        received, self._received = self._received, b""
        if text := received.decode(errors="backslashreplace").strip():
            _log.warning("output of a worker", worker=self._worker, **{OUTPUT: text})

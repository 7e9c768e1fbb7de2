"""Values that are read from files, and read again when the files change: certificates and tokens.

    transports, HTTP server ──value──▶ WatchedValue ◀──check, every second── FileWatch :its own thread ──▶ files

The supervisor also checks the active file with a ``FileWatch`` (``supervision.reload``).

Each process reads the files itself, on a separate thread, because a file system may block for long.
"""

import errno
import hashlib
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from digitserve.errors import SettingsError
from digitserve.log import get_logger

INTERVAL_S = 1.0
"""Time between two checks. Reading certificates and tokens takes less than 0.1 ms."""

MAX_FILE_BYTES = 1 << 20
"""Largest file that is read."""

Value = TypeVar("Value")

_log = get_logger("digitserve.file_watch")


class WatchedValue(Generic[Value]):
    """The newest valid value of some files; owned by what uses it. ``check`` is called on one thread, by ``FileWatch``.

    A value is replaced as a whole, so any thread may read it. The old one stays in use while the files are invalid.

    Attributes:
        name: of the value, for log lines and metrics.
        value: the newest valid one.
        num_failures: how often the files were changed to something invalid.
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        read: Callable[[], Value],
        last_valid: Callable[[], Value] | None = None,
        *,
        logs: bool = False,
    ) -> None:
        """Read the files for the first time.

        Args:
            name: see above.
            paths: of the files.
            read: reads the value from the files.
            last_valid: returns the value to start with if the files are not valid.
            logs: whether this process logs changes; one of the processes of a service does.

        Raises:
            SettingsError: the files are not valid, and there is no other value.
        """
        self.name = name
        self.num_failures = 0
        self._paths = paths
        self._read = read
        self._logs = logs
        self._known = self._digest()  # of the content that is in use, or was refused
        self._suspect = b""  # of content that was invalid at the last check
        try:
            self.value = read()
        except SettingsError:
            if last_valid is None:
                raise
            self.value = last_valid()

    def check(self) -> None:
        """Replace the value if the content of the files has changed.

        Content counts as invalid only if it is the same at the next check: it may have been half-written.
        """
        digest = self._digest()
        if digest == self._known:
            return
        try:
            value = self._read()
        except SettingsError as error:
            if digest == self._suspect:
                self._known = digest
                self.num_failures += 1
                if self._logs:
                    _log.error("new files are invalid, the old ones stay in use", files=self.name, reason=str(error))
            self._suspect = digest
            return
        self._known, self._suspect, self.value = digest, b"", value
        if self._logs:
            _log.info("new files are in use", files=self.name)

    def _digest(self) -> bytes:
        """Return a hash of the content, because keys should not be in memory twice. Errors count as content."""
        digest = hashlib.sha256()
        for path in self._paths:
            try:
                content = read_file(path)
            except OSError as error:
                content = repr(error.errno).encode()
            digest.update(b"%d " % len(content) + content)
        return digest.digest()


def read_file(path: Path) -> bytes:
    """Return the content of a file; a pipe that nobody writes is empty.

    Raises:
        OSError: it cannot be read, or has more than ``MAX_FILE_BYTES``.
    """
    with open(path, "rb", opener=_open) as file:
        content = file.read(MAX_FILE_BYTES + 1) or b""
    if len(content) > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"More than {MAX_FILE_BYTES} bytes")
    return content


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


class Watched(Protocol):
    """What ``FileWatch`` checks.

    Attributes:
        name: for log lines.
    """

    name: str

    def check(self) -> None:
        """Handle a change of the files; called on the thread of ``FileWatch``."""


class FileWatch:
    """Checks files on a thread until ``stop``; owned by what uses them."""

    def __init__(self, watched: Iterable[Watched | None]) -> None:
        """Prepare to check these; those that are None have no files."""
        self._watched = [each for each in watched if each is not None]
        self._stop = threading.Event()

    def start(self) -> None:
        """Start the thread, unless there is nothing to check."""
        if self._watched:
            # A daemon, because a file system that blocks must not prevent the end of the process.
            threading.Thread(target=self._run, name="file watch", daemon=True).start()

    def stop(self) -> None:
        """End the thread soon; do not wait for it."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            for watched in self._watched:
                try:
                    watched.check()
                except Exception:  # the thread must continue: it alone sees later changes
                    _log.exception("files could not be checked", files=watched.name)

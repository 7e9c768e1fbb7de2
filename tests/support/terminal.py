"""Commands on a pseudo terminal, as a person would run them."""

import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fcntl import ioctl
from pathlib import Path

from support.serving import PATIENCE_S

ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[()].)")
"""Sequences that move the cursor or set colours."""


class Terminal:
    """A pseudo terminal with a running command.

    Attributes:
        process: the command.
        text: what it has written so far.
    """

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self.text = ""
        self._descriptor = descriptor

    def resize(self, columns: int, lines: int = 24) -> None:
        """Change the size; the command gets SIGWINCH."""
        ioctl(self._descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self._descriptor, keys.encode())

    def modes(self) -> list[object]:
        """Return the modes of the terminal, such as echo."""
        return termios.tcgetattr(self._descriptor)[:4]

    def read_until(self, condition: Callable[[str], bool], what: str) -> str:
        """Read until what was written since the last call, without escape sequences, meets a condition; return it."""
        start, ends = len(self.text), time.monotonic() + PATIENCE_S
        while not condition(new := ESCAPE.sub("", self.text[start:])):
            assert self._read(ends), f"never shown: {what}; {new[-2000:]}"
        return new

    def read_to_end(self) -> str:
        """Read until the command ends; return what it has written since the last call."""
        start, ends = len(self.text), time.monotonic() + PATIENCE_S
        while self._read(ends):
            pass
        assert self.process.wait(PATIENCE_S) is not None
        return self.text[start:]

    def _read(self, ends: float) -> bool:
        """Read more; return false at the end of the command, or when the time is over."""
        if not select.select([self._descriptor], [], [], max(0.0, ends - time.monotonic()))[0]:
            return False
        try:
            piece = os.read(self._descriptor, 1 << 16)
        except OSError:  # all other ends are closed
            return False
        self.text += piece.decode("utf-8", "replace")
        return bool(piece)


@contextmanager
def run_on_terminal(
    arguments: Sequence[str | Path], columns: int = 80, lines: int = 24, **environment: str
) -> Iterator[Terminal]:
    """Run a command on a new terminal of its own session; it is killed at the end of the ``with`` block."""
    parent, child = pty.openpty()
    ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "COLUMNS", "LINES"}}
    terminal = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"}

    process = subprocess.Popen(
        # Ctrl-C and SIGWINCH need a controlling terminal.
        ["setsid", "--ctty", *map(str, arguments)],
        stdin=child, stdout=child, stderr=child, env=inherited | terminal | environment,
    )  # fmt: skip
    os.close(child)
    try:
        yield Terminal(process, parent)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(parent)

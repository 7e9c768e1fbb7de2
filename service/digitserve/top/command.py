"""The command ``digitserve top`` without its flags: reads the page periodically, and shows it. Called by ``cli``.

    Reader thread ──Reading──▶ queue ──▶ main thread: Monitor, screen ◀── keys, SIGWINCH

The page is fetched on a thread, so that keys and changes of the size are handled while the service does not answer.
"""

import json
import os
import queue
import re
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import NoReturn, TextIO

from digitserve.scrape import NotAvailable, Page, Scraper
from digitserve.terminal import Terminal, size
from digitserve.top import screen
from digitserve.top.monitor import Monitor

_QUIT = b"qQ\x04"
"""q and Ctrl-D."""

_ESCAPE = b"\x1b"
_OTHER_KEY = re.compile(rb"\x1b[\[O][0-?]*[ -/]*[@-~]")
"""What a terminal sends for arrows and function keys."""

_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[H", "\x1b[2K", "\r\n\x1b[J"

EXIT_SIGNALS = 128
"""Added to the number of a signal that ends the command."""


@dataclass(frozen=True)
class Options:
    """Options of the command.

    Attributes:
        url: of the page.
        interval_s: from one reading to the next.
        once: whether to end after two readings.
        as_json: whether to print JSON instead of a table.
    """

    url: str
    interval_s: float = 1.0
    once: bool = False
    as_json: bool = False


@dataclass(frozen=True)
class Reading:
    """The outcome of one scrape.

    Attributes:
        time_s: monotonic time of the answer.
        result: the page, or why there is none: ``NotAvailable``, or another exception after a fault of ours.
    """

    time_s: float
    result: Page | Exception


class Reader:
    """Reads the page on a thread of its own, until it is stopped."""

    def __init__(self, scraper: Scraper, interval_s: float, explain: Callable[[str], str]) -> None:
        """Prepare; ``start`` starts the thread. Arguments as for ``run``."""
        self._scraper, self._interval_s, self._explain = scraper, interval_s, explain
        self._stopped = threading.Event()
        self._readings: queue.SimpleQueue[Reading] = queue.SimpleQueue()
        self._read_end, self._write_end = os.pipe()

    @property
    def fd(self) -> int:
        """File descriptor that can be read when there is a reading."""
        return self._read_end

    def start(self) -> None:
        """Start to read. The thread does not keep the process alive: a scrape may wait for seconds."""
        threading.Thread(target=self._run, name="reader", daemon=True).start()

    def stop(self) -> None:
        """Stop after the current scrape."""
        self._stopped.set()

    def get(self) -> Reading:
        """Return the next reading, after waiting for it."""
        os.read(self._read_end, 1)
        return self._readings.get()

    def _run(self) -> None:
        while not self._stopped.is_set():
            started_s = time.monotonic()
            self._readings.put(self._read())
            os.write(self._write_end, b".")
            self._stopped.wait(max(0.0, started_s + self._interval_s - time.monotonic()))

    def _read(self) -> Reading:
        try:
            result: Page | Exception = self._scraper.fetch()
        except NotAvailable as error:
            result = type(error)(self._explain(str(error)))
        except Exception as error:
            # The boundary of the thread: the main thread raises it, after it has restored the terminal.
            result = error
        return Reading(time.monotonic(), result)


def run(scraper: Scraper, options: Options, print_line: Callable[[str], None], explain: Callable[[str], str]) -> None:
    """Show the service until the user ends it.

    Args:
        scraper: of the page.
        options: what to show.
        print_line: prints on standard output.
        explain: converts the reason why the page cannot be read for the user of the command.

    Raises:
        NotAvailable: with ``once``, the page cannot be read.
        KeyboardInterrupt: Ctrl-C; the terminal is as before.
    """
    monitor, reader = Monitor(), Reader(scraper, options.interval_s, explain)
    reader.start()
    try:
        if options.once:
            _print_once(monitor, reader, options, print_line)
        elif options.as_json:
            while True:
                reading = reader.get()
                take(monitor, reading)
                print_line(_json(monitor, options.url))
        else:
            _Screen(monitor, reader, options).run()
    finally:
        reader.stop()


def take(monitor: Monitor, reading: Reading) -> None:
    """Pass a reading to the monitor; raise exceptions that are not failures of the service."""
    result = reading.result
    if isinstance(result, NotAvailable):
        monitor.fail(reading.time_s, str(result))
    elif isinstance(result, Exception):
        raise result
    else:
        monitor.read(reading.time_s, result)


def quits(typed: bytes) -> bool:
    """Return whether one of the keys ends the command: q, Ctrl-D or Escape."""
    keys = _OTHER_KEY.sub(b"", typed)
    return any(key in _QUIT for key in keys) or keys == _ESCAPE


def _print_once(monitor: Monitor, reader: Reader, options: Options, print_line: Callable[[str], None]) -> None:
    # Rates need two readings, and three if the service was restarted after the first one.
    while monitor.figures is None or not monitor.figures.period_s:
        reading = reader.get()
        if isinstance(reading.result, NotAvailable):
            raise reading.result
        take(monitor, reading)
    if options.as_json:
        print_line(_json(monitor, options.url))
        return
    for line in screen.render(monitor, options.url, time.monotonic(), Terminal.of(sys.stdout, os.environ)):
        print_line(line)


def _json(monitor: Monitor, url: str) -> str:
    fields: dict[str, object] = {"time": round(time.time(), 3), "url": url, "failure": monitor.failure or None}
    if monitor.figures is not None and not monitor.failure:
        fields |= monitor.figures.as_json()
    return json.dumps(fields)


class _Screen:
    """The whole terminal, redrawn after each reading, each second, and when its size changes."""

    def __init__(self, monitor: Monitor, reader: Reader, options: Options) -> None:
        self._monitor, self._reader, self._options = monitor, reader, options

    def run(self) -> None:
        """Show the service until the user ends it."""
        with _signals() as resized, _keys(sys.stdin) as keys, _alternate_screen(sys.stdout):
            while True:
                self._draw()
                ready, _, _ = select.select([self._reader.fd, resized, *keys], [], [], 1.0)
                if self._reader.fd in ready:
                    take(self._monitor, self._reader.get())
                if resized in ready:
                    os.read(resized, 1 << 10)
                for terminal in {*keys} & {*ready}:
                    typed = os.read(terminal, 1 << 10)
                    # Nothing: the terminal is gone.
                    if not typed or quits(typed):
                        return

    def _draw(self) -> None:
        terminal = Terminal.of(sys.stdout, os.environ)
        lines = [*screen.render(self._monitor, self._options.url, time.monotonic(), terminal), "", "q: quit"]
        height = size(sys.stdout, os.environ).lines
        # Each line is cleared before it is written: at the last column, clearing afterwards would remove a character.
        sys.stdout.write(
            _HOME + "\r\n".join(_CLEAR_LINE + line for line in lines[:height]) + _CLEAR_BELOW * (len(lines) < height)
        )
        sys.stdout.flush()


@contextmanager
def _alternate_screen(stream: TextIO) -> Iterator[None]:
    """Switch to the second screen of the terminal, without a cursor; the first one comes back as it was."""
    try:
        stream.write(_ENTER)
        yield
    finally:
        stream.write(_LEAVE)
        stream.flush()


@contextmanager
def _keys(stream: TextIO) -> Iterator[list[int]]:
    """Read keys without waiting for a line and without showing them; yield the file descriptor if there is a keyboard."""
    if not stream.isatty():
        yield []
        return
    fd = stream.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        yield [fd]
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


@contextmanager
def _signals() -> Iterator[int]:
    """Yield a file descriptor that can be read when the size of the terminal has changed.

    SIGTERM and SIGHUP raise an exception, so that the terminal is restored. Ctrl-Z is ignored: the shell would get a terminal in
    the state of the screen.
    """

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        sys.exit(EXIT_SIGNALS + number)

    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, end),
        signal.SIGHUP: signal.signal(signal.SIGHUP, end),
        signal.SIGTSTP: signal.signal(signal.SIGTSTP, signal.SIG_IGN),
        signal.SIGWINCH: signal.signal(signal.SIGWINCH, lambda *_: None),
    }
    fd = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield read_end
    finally:
        signal.set_wakeup_fd(fd)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(read_end)
        os.close(write_end)

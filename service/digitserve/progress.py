"""How far a long command is, and how long it will still take.

    bench, digitserve-train ──▶ Progress ──▶ standard error: one line that is redrawn, or a line every LINE_S

Belongs to the process of the command; used on its main thread.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Self, TextIO, TypeVar

from digitserve.terminal import CYAN, Terminal, can_move_cursor, join, printable

REDRAW_S = 0.2
LINE_S = 30.0
"""From one line to the next if standard error is not a terminal: few enough for a log, and none for short commands."""

BAR_COLUMNS = 24

_CLEAR = "\r\x1b[2K"

Item = TypeVar("Item")


class Progress:
    """The line of one command or of one of its phases; lives as long as that."""

    def __init__(
        self,
        stream: TextIO | None = None,
        environment: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        shown: bool = True,
    ) -> None:
        """Start a phase.

        Args:
            stream: by default standard error.
            environment: by default that of the process.
            clock: returns monotonic seconds.
            shown: false to show nothing, for all but one of several processes.
        """
        self._stream = sys.stderr if stream is None else stream
        self._environment = os.environ if environment is None else environment
        self._clock, self._shown = clock, shown
        self._redraws = can_move_cursor(self._stream, self._environment)
        self._next_s = 0.0 if self._redraws else clock() + LINE_S
        self._start: tuple[float, float] | None = None
        self._is_drawn = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def update(self, done: float, total: float, text: Callable[[], str]) -> None:
        """Show how far the phase is, unless that was shown a moment ago.

        Args:
            done: of ``total``, in any unit; the remaining time assumes that each unit takes as long.
            total: positive.
            text: returns what else to show; called only if it is shown.
        """
        now_s = self._clock()
        if self._start is None:
            # The first unit often includes start-up, such as the compilation of a step, so the estimate begins after it.
            self._start = now_s, done
        if not self._shown or now_s < self._next_s:
            return
        self._next_s = now_s + (REDRAW_S if self._redraws else LINE_S)
        share = min(1.0, max(0.0, done / total))
        left = self._left(now_s, done, total)
        if self._redraws:
            self._draw(share, f" {share:4.0%}  {left + '  ' if left else ''}{text()}")
        else:
            self._stream.write("  ".join(filter(None, (f"{share:.0%}", left, text()))) + "\n")
            self._stream.flush()

    def print(self, text: str) -> None:
        """Print a line on standard output, above the progress."""
        self.clear()
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def clear(self) -> None:
        """Remove the line, until the next update."""
        if self._is_drawn:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._is_drawn = False
            self._next_s = 0.0

    def _left(self, now_s: float, done: float, total: float) -> str:
        start_s, start = self._start or (now_s, done)
        return f"{duration((total - done) * (now_s - start_s) / (done - start))} left" if done > start else ""

    def _draw(self, share: float, text: str) -> None:
        terminal = Terminal.of(self._stream, self._environment)
        full, empty = ("━", "─") if terminal.unicode else ("#", "-")
        length = round(share * BAR_COLUMNS)
        parts = [(full * length, CYAN), (empty * (BAR_COLUMNS - length), ""), (printable(text), "")]
        # In the last column some terminals would start a new line.
        self._stream.write(_CLEAR + join(parts, terminal, terminal.width - 1)[1])
        self._stream.flush()
        self._is_drawn = True


def track(items: Sequence[Item], title: str) -> Iterator[Item]:
    """Yield items, and show on standard error how many are done."""
    with Progress() as progress:
        for number, item in enumerate(items):
            progress.update(number, len(items), partial("{} {}/{}".format, title, number + 1, len(items)))
            yield item


def duration(seconds: float) -> str:
    """Return a time in its two largest units: 12 s, 3 min 20 s, 2 h 5 min."""
    minutes, rest_s = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest_s} s" if minutes else f"{rest_s} s"

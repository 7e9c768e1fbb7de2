"""Progress of long commands: on a terminal one line, elsewhere a line from time to time; the clock is passed in."""

import io
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve import progress
from digitserve.progress import LINE_S, Progress, duration, track

XTERM = {"TERM": "xterm", "LANG": "C.UTF-8", "NO_COLOR": "1"}


class Stream(io.TextIOWrapper):
    """A stream that is a terminal or not, and keeps what is written."""

    def __init__(self, *, tty: bool) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty

    @property
    def text(self) -> str:
        return self.buffer.getvalue().decode()  # type: ignore[attr-defined]


class Clock:
    """Shows the time that the test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def run(stream: Stream, times_s: Sequence[float], total: float, columns: int = 70) -> None:
    """Report a unit at each of the times."""
    clock = Clock()
    with Progress(stream, XTERM | {"COLUMNS": str(columns)}, clock) as shown:
        for done, clock.now_s in enumerate(times_s, start=1):
            shown.update(done, total, lambda done=done: f"epoch {done}")  # type: ignore[misc]


def test_a_line_on_a_terminal() -> None:
    """Each redraw clears the line; the remaining time is that of the units after the first; the line is gone at the end."""
    stream = Stream(tty=True)
    run(stream, [100, 102, 102.1, 104], 5)
    first, second, third, last = stream.text.split("\r\x1b[2K")[1:]
    assert first == f"{'━' * 5}{'─' * 19}  20%  epoch 1"
    assert second == f"{'━' * 10}{'─' * 14}  40%  6 s left  epoch 2"
    assert "80%  1 s left  epoch 4" in third
    assert last == "" and "\n" not in stream.text


def test_lines_in_a_log() -> None:
    """A pipe or file gets a line every 30 seconds, without escape sequences, and short commands write nothing."""
    stream = Stream(tty=False)
    run(stream, [0.1 * tick for tick in range(1, 601)], 1200)
    assert stream.text == "25%  1 min 30 s left  epoch 300\n50%  1 min 0 s left  epoch 600\n"
    short = Stream(tty=False)
    run(short, [1, LINE_S - 1], 3)
    assert short.text == ""


def test_one_process_shows_it() -> None:
    """The other processes of a cluster show nothing."""
    stream = Stream(tty=True)
    with Progress(stream, XTERM, shown=False) as hidden:
        hidden.update(1, 2, str)
    assert stream.text == ""


def test_results_are_above_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Results go to standard output, so that a pipe gets only them; on a terminal they do not mix with the line."""
    stream = Stream(tty=True)
    with Progress(stream, XTERM) as shown:
        shown.update(1, 2, str)
        shown.print("loss 0.1")
        assert stream.text.endswith("\r\x1b[2K")
    assert capsys.readouterr().out == "loss 0.1\n"


def test_ctrl_c_clears_the_line() -> None:
    """An exception leaves no line behind."""
    stream = Stream(tty=True)

    def interrupted() -> None:
        with Progress(stream, XTERM) as shown:
            shown.update(1, 2, str)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stream.text.endswith("\r\x1b[2K")


def test_track(monkeypatch: pytest.MonkeyPatch) -> None:
    """All items are yielded, and the line says which one is being worked on."""
    stream = Stream(tty=True)
    monkeypatch.setattr(progress.sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    assert [*track(["a", "b"], "set")] == ["a", "b"]
    assert "set 1/2" in stream.text


@given(
    times_s=st.lists(st.floats(0, 1e6), min_size=1, max_size=20).map(sorted),
    total=st.integers(1, 20),
    width=st.integers(1, 200),
)
def test_the_line_fits(times_s: list[float], total: int, width: int) -> None:
    """Whatever is reported, no line is as wide as the terminal, and no time is negative."""
    stream = Stream(tty=True)
    run(stream, times_s, total, width)
    assert all(len(line) < max(2, width) for line in stream.text.split("\r\x1b[2K"))
    assert "-" not in stream.text.replace("\r\x1b[2K", "")


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, text: str) -> None:
    """Times have at most two units."""
    assert duration(seconds) == text

"""Log lines: their format, and what happens when they cannot be written."""

import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import select
import socket
import sys
import termios
import threading
import time
import warnings
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from digitserve import log
from digitserve.log import LineWriter

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    handlers = logging.root.handlers[:]
    hooks = sys.excepthook, threading.excepthook, sys.unraisablehook
    yield
    logging.root.handlers[:] = handlers
    logging.raiseExceptions = True
    logging.captureWarnings(capture=False)
    sys.excepthook, threading.excepthook, sys.unraisablehook = hooks
    logging.getLogger("digitserve").setLevel(logging.NOTSET)


def lines_of(capfd: Capture) -> list[dict[str, Any]]:
    """Return the JSON lines on standard error."""
    return [json.loads(line) for line in capfd.readouterr().err.splitlines()]


def writer_to(fd: int) -> LineWriter:
    return LineWriter(fd, lambda count: f"{count} lost\n")


def test_json_lines_have_the_fields_of_the_process(capfd: Capture) -> None:
    """A line is a JSON object on standard error with time (RFC 3339, UTC), level, logger, message, its fields and those given to ``configure``."""
    log.configure("json", pid=7)
    log.get_logger("digitserve.module").warning("worker ended", exit_code=9)
    output, errors = capfd.readouterr()
    line = json.loads(errors)
    assert output == ""
    assert [*line] == ["time", "level", "logger", "message", "pid", "exit_code"]
    assert [*line.values()][1:] == ["warning", "digitserve.module", "worker ended", 7, 9]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"])
    assert abs(datetime.fromisoformat(line["time"]).timestamp() - time.time()) < 60


def test_auto_writes_json_unless_on_a_terminal(capfd: Capture) -> None:
    """Standard error of a test is no terminal."""
    log.configure("auto")
    log.get_logger().info("draining")
    assert lines_of(capfd)[0]["message"] == "draining"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_full_disk_loses_lines(log_format: str) -> None:
    """A full disk raises nothing in the code that logs."""
    stderr, full = os.dup(2), os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, 2)
    try:
        log.configure(log_format)
        log.get_logger().error("lost", detail="\udcff")
        logging.getLogger("library").error("lost")
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(full)


class Unprintable:
    """A value that cannot be rendered."""

    def __repr__(self) -> str:
        raise RecursionError


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_that_cannot_be_rendered_is_lost(log_format: str, capfd: Capture) -> None:
    """Whatever fails in a line, nothing is raised in the code that logs, and the next line says that one was lost."""
    log.configure(log_format)
    log.get_logger().info("bad", value=Unprintable())
    logging.getLogger("library").error("%d", "no number")
    log.get_logger().info("good")
    errors = capfd.readouterr().err
    assert "log lines were lost" in errors
    assert "good" in errors
    assert "bad" not in errors
    assert "Traceback" not in errors


def test_a_pipe_whose_reader_has_ended_loses_lines() -> None:
    """Lines are counted, and nothing is raised."""
    reader, writer = os.pipe()
    with contextlib.closing(writer_to(writer)) as lines:
        os.close(reader)
        for _ in range(3):
            lines.write("lost\n")
        assert lines.num_lost == 3
    os.close(writer)


@pytest.mark.parametrize("kind", ["pipe", "named pipe", "named pipe, old kernel", "socket", "terminal"])
def test_a_reader_that_does_not_read_is_not_waited_for(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a pipe, a socket or a terminal takes no more, lines are lost and counted. Once it is read again, the next line
    follows one with that number; each is on a line of its own, also after one that was cut. The descriptor itself still waits, as
    its other users expect. This also holds for a named pipe that has no reader when the process starts, and gets one later.
    """
    path = tmp_path / "pipe"
    if kind == "pipe":
        reader, writer = os.pipe()
    elif kind.startswith("named"):
        os.mkfifo(path)
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        writer = os.open(path, os.O_WRONLY)
        os.close(reader)
    elif kind == "socket":
        reader, writer = (end.detach() for end in socket.socketpair())
    else:
        reader, writer = os.openpty()
        attributes = termios.tcgetattr(writer)
        attributes[1] &= ~termios.OPOST
        termios.tcsetattr(writer, termios.TCSANOW, attributes)
    if kind == "named pipe, old kernel":
        monkeypatch.setattr(os, "pwritev", Mock(side_effect=OSError(errno.EOPNOTSUPP, "not supported")))
    with contextlib.closing(writer_to(writer)) as lines:
        if kind.startswith("named"):
            reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        while not lines.num_lost:
            lines.write("x" * 10_000 + "\n")
        while lines.num_lost < 5:
            lines.write("y\n")
        assert not fcntl.fcntl(writer, fcntl.F_GETFL) & os.O_NONBLOCK
        os.set_blocking(reader, False)
        received = read(reader)
        lines.write("next\n")
        received += read(reader)
    os.close(writer)
    os.close(reader)
    *before, lost, following = received.decode().splitlines()
    assert (lost, following) == ("5 lost", "next")
    assert before.count("x" * 10_000) >= 1
    # At most one line was cut.
    assert len([line for line in before if 1 < len(line) < 10_000 and "lost" not in line]) <= 1


def read(fd: int) -> bytes:
    """Read all that has arrived."""
    received = b""
    while True:
        try:
            received += os.read(fd, 1 << 16)
        except BlockingIOError:
            return received


def test_other_writers_of_a_log_file_are_not_overwritten(tmp_path: Path) -> None:
    """A file that was not opened for appending has one position for all its writers."""
    with (tmp_path / "log").open("wb", buffering=0) as file:
        lines = writer_to(file.fileno())
        lines.write("first\n")
        file.write(b"second\n")
        lines.write("third\n")
    assert (tmp_path / "log").read_text() == "first\nsecond\nthird\n"


def test_lines_of_libraries_have_the_same_format(capfd: Capture) -> None:
    """What a library logs with ``logging`` is a line in the chosen format, with its logger and traceback, once."""
    log.configure("json", pid=7)
    log.configure("json", pid=7)
    try:
        int("not a number")
    except ValueError:
        logging.getLogger("uvicorn.error").exception("failed: %s", "reason")
    (line,) = lines_of(capfd)
    assert (line["message"], line["level"], line["pid"], line["logger"]) == (
        "failed: reason",
        "error",
        7,
        "uvicorn.error",
    )
    assert "not a number" in str(line["exception"])


@pytest.mark.parametrize("of", ["library", "module"])
def test_lines_have_a_bounded_rate(of: str, capfd: Capture) -> None:
    """A logger of a library, and each message of a module, has at most 20 lines in 10 seconds; the last of them states that more
    are dropped. Other loggers and messages are not affected.
    """
    times = iter([0.0] * 16 + [9.0] * 16 + [10.0] * 16)
    log.configure("json", clock=lambda: next(times))
    for _ in range(3):
        for number in range(15):
            if of == "library":
                logging.getLogger("uvicorn.error").warning("number %d", number)
            else:
                log.get_logger("digitserve.module").warning("flood")
        log.get_logger("digitserve.module").warning("another")
    lines = [line for line in lines_of(capfd) if line["message"] != "another"]
    assert len(lines) == 20 + 15
    assert [line.get("drops_more_for_s") for line in lines] == [None] * 19 + [1.0] + [None] * 15


def test_warnings_have_the_same_format(capfd: Capture) -> None:
    """A warning of Python is one line of the logger ``py.warnings``."""
    log.configure("json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)  # ``catch_warnings`` has its own state
        warnings.warn("old\ninterface", UserWarning, stacklevel=1)
    (line,) = lines_of(capfd)
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: old\ninterface" in line["message"]


@pytest.mark.parametrize("where", ["main", "thread", "finalizer", "asyncio"])
def test_uncaught_exceptions_have_the_same_format(where: str, capfd: Capture) -> None:
    """An exception that ends the process, a thread or a callback, or that cannot be raised, is one line with its traceback."""
    log.configure("json", pid=7)
    if where == "main":
        try:
            fail()
        except ValueError as error:
            sys.excepthook(ValueError, error, error.__traceback__)
    elif where == "thread":
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
    elif where == "finalizer":
        owner = type("Owner", (), {"__del__": lambda _: fail()})()
        del owner
    else:

        async def run() -> None:
            asyncio.get_running_loop().call_soon(fail)
            await asyncio.sleep(0)

        asyncio.run(run())
    (line,) = lines_of(capfd)
    assert (line["level"], line["pid"]) == ("critical" if where == "main" else "error", 7)
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: deliberate\nfailure")


def fail() -> None:
    raise ValueError("deliberate\nfailure")


def test_a_line_is_written_at_once_to_a_pipe(capfd: Capture) -> None:
    """A line is never longer than what the kernel writes to a pipe without mixing it with lines of other processes; the middle of
    its longest field is left out.
    """
    log.configure("json")
    log.get_logger().warning("long", output="start" + "x" * 100_000 + "end", more="kept")
    errors = capfd.readouterr().err
    (line,) = map(json.loads, errors.splitlines())
    assert 3_000 < len(errors) <= select.PIPE_BUF
    assert (line["output"][:5], line["output"][-3:], line["more"]) == ("start", "end", "kept")


def test_tracebacks_have_no_local_variables(capfd: Capture) -> None:
    """Local variables may contain images of callers."""
    log.configure("json")
    pixels = "pixels of a caller"
    try:
        int("not a number")
    except ValueError:
        log.get_logger().exception("crashed")
    errors = capfd.readouterr().err
    assert "not a number" in errors
    assert pixels not in errors

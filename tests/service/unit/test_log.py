"""Log lines: their format, and what happens when they cannot be written."""

import errno
import io
import json
import sys
from collections.abc import Iterator

import pytest
import structlog

from digitserve import log


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class FullDisk(io.StringIO):
    """A stream to which nothing can be written."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_json_lines_have_the_fields_of_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    """A line is a JSON object on standard error with the event, its fields and those given to ``configure``."""
    log.configure("json", pid=7)
    structlog.get_logger().warning("worker ended", exit_code=9)
    output, errors = capsys.readouterr()
    line = json.loads(errors)
    assert output == ""
    assert (line["event"], line["level"], line["exit_code"], line["pid"]) == ("worker ended", "warning", 9, 7)


def test_auto_writes_json_unless_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard error of a test is no terminal."""
    log.configure("auto")
    structlog.get_logger().info("draining")
    assert json.loads(capsys.readouterr().err)["event"] == "draining"


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_line_that_cannot_be_written_is_lost(log_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a closed pipe raises nothing in the code that logs."""
    monkeypatch.setattr(sys, "stderr", FullDisk())
    log.configure(log_format)
    structlog.get_logger().error("lost", detail="\udcff")


def test_tracebacks_have_no_local_variables(capsys: pytest.CaptureFixture[str]) -> None:
    """Local variables may contain images of callers."""
    log.configure("json")
    pixels = "pixels of a caller"
    try:
        int("not a number")
    except ValueError:
        structlog.get_logger().exception("crashed")
    errors = capsys.readouterr().err
    assert "not a number" in errors
    assert pixels not in errors

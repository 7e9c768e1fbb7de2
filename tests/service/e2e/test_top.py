"""``digitserve top`` as the real command, on a pseudo terminal and in a pipe, with the real service."""

import json
import signal
import subprocess
from pathlib import Path

import pytest

from digitserve.client import Client
from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, command, run_service
from support.terminal import Terminal, run_on_terminal


def top(url: str, *arguments: str) -> list[str]:
    return command("top", "--metrics", f"{url}/metrics", "--interval-s", "0.2", *arguments)


def run(*line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def shows(terminal: Terminal, text: str) -> None:
    terminal.read_until(lambda shown: text in shown, text)


def test_a_service_that_comes_and_goes(tmp_path: Path) -> None:
    """The screen shows a service that starts, answers, ends and starts again, on terminals of all widths; q ends the command
    and leaves the terminal as it was. ``--once`` prints the same figures, as a table or as JSON.
    """
    write_echo_bundle(tmp_path)
    with (
        run_service(tmp_path, tmp_path / "log", "--workers", "1") as service,
        run_on_terminal(top(service.http_url)) as terminal,
    ):
        shows(terminal, "workers 1/1")
        with Client(service.grpc_address) as client:
            client.classify([echo_image(number) for number in range(20)])
        shows(terminal, "verdicts")
        shows(terminal, "accepted 100.0%")
        terminal.resize(40)
        # Only terminals with 60 columns have room for p90.
        terminal.read_until(
            lambda shown: "last" in shown and "p90" not in shown.rpartition("last")[2], "a narrow screen"
        )

        table = run(*top(service.http_url, "--once"))
        assert (table.returncode, table.stderr) == (0, "")
        assert "\x1b" not in table.stdout and "batch size" in table.stdout
        figures = json.loads(run(*top(service.http_url, "--once", "--json")).stdout)
        assert figures["images"]["total"] == 20 and figures["workers"] == 1 and figures["failure"] is None

        assert service.stop() == 0
        shows(terminal, "no metrics for")
        port = service.http_url.rpartition(":")[2]
        with run_service(tmp_path, tmp_path / "log", "--workers", "1", "--http-port", port):
            shows(terminal, "restarted")
            terminal.press("x\x1b[A")
            terminal.press("q")
            terminal.read_to_end()
    assert terminal.process.returncode == 0
    # The last screen is gone, and the cursor is back.
    assert terminal.text.rindex("\x1b[?1049l") > terminal.text.rindex("restarted")
    assert "\x1b[?25h" in terminal.text
    assert "Traceback" not in terminal.text


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_leave_a_clean_terminal(number: signal.Signals, code: int) -> None:
    """Ctrl-C, SIGTERM and SIGHUP end the command while no service answers; modes and screen of the terminal are as before."""
    with run_on_terminal(top("http://127.0.0.1:1")) as terminal:
        before = terminal.modes()
        shows(terminal, "no metrics for")
        assert terminal.modes() != before
        if number is signal.SIGINT:
            terminal.press("\x03")
        else:
            terminal.process.send_signal(number)
        left = terminal.read_to_end()
        assert terminal.process.returncode == code
        assert terminal.modes() == before
    assert "\x1b[?1049l" in left and "\x1b[?25h" in left and "Traceback" not in left


def test_json_lines_in_a_pipe() -> None:
    """``--json`` prints an object per reading, also while no service answers, and ends silently with its reader."""
    with subprocess.Popen(
        top("http://127.0.0.1:1", "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = [json.loads(process.stdout.readline()) for _ in range(2)]  # type: ignore[union-attr]
        process.stdout.close()  # type: ignore[union-attr]
        assert process.wait(PATIENCE_S) == 141
        assert process.stderr.read() == ""  # type: ignore[union-attr]
    assert all("Connection refused" in line["failure"] for line in lines)

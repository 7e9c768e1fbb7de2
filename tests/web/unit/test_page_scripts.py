"""The JavaScript of the page that needs no browser."""

import subprocess
from pathlib import Path

from support.panel import node
from support.serving import PATIENCE_S


def test_javascript() -> None:
    """The tests in ``page/`` and ``panel/`` pass: which image is sent when; words of a reading; parser, readings, polling, texts and scales."""
    files = sorted(map(str, Path(__file__).parent.glob("*/*.test.mjs")))
    done = subprocess.run([node(), "--test", *files], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {Path(file).parent.name for file in files} == {"page", "panel"} and "# fail 0" in done.stdout

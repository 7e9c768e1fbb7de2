"""The JavaScript of the page that needs no browser."""

import subprocess
from pathlib import Path

from support.panel import node
from support.serving import PATIENCE_S


def test_javascript() -> None:
    """The tests in ``page/`` pass: which image is sent when."""
    files = sorted(map(str, (Path(__file__).parent / "page").glob("*.test.mjs")))
    done = subprocess.run([node(), "--test", *files], capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert files and "# fail 0" in done.stdout

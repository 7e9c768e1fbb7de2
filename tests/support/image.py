"""Names of the image that the tests build, and the commands that build and run it."""

import socket
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE, IMAGE = "localhost/python:3.11", "localhost/digitserve-test"


def run(*arguments: str, check: bool = True) -> str:
    """Run a command and return its standard output and standard error."""
    completed = subprocess.run(arguments, capture_output=True, text=True, timeout=900, check=False, cwd=ROOT)
    assert completed.returncode == 0 or not check, (
        f"{' '.join(arguments)}: {completed.stdout[-2000:]}{completed.stderr[-2000:]}"
    )
    return completed.stdout + completed.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

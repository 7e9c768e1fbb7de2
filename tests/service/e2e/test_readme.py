"""The commands and the client of the README work as written."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from digitserve.v1 import digits_pb2 as pb
from support.digits import MODELS, scanned_digits
from support.serving import PATIENCE_S, command, run_service

README = (MODELS.parent / "README.md").read_text()


def run(cwd: Path, *arguments: str | Path) -> str:
    """Run a command that must succeed, and return its output."""
    ended = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return ended.stdout


def test_the_readmes_commands_and_client_work(tmp_path: Path) -> None:
    """The Python client, ``classify`` and the ``buf curl`` call of the README work unchanged except for the port, on a
    digit that is drawn dark on light.
    """
    images, labels = scanned_digits()
    drawn = Image.fromarray(255 - np.asarray(images[0]), "L").resize((160, 160), Image.Resampling.BICUBIC)
    drawn.save(tmp_path / "your-digit.png")
    client = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]  # type: ignore[index]
    classify = re.search(r"^ +\.venv/bin/digitserve (classify .*)$", README, re.MULTILINE)[1]  # type: ignore[index]
    curl = re.search(r"^ +\.venv/bin/buf (curl .*)$", README, re.MULTILINE)[1]  # type: ignore[index]

    with run_service(MODELS, tmp_path / "log", "--workers", "1") as service:
        program = client.replace("127.0.0.1:50051", service.grpc_address)
        label, _, verdict = run(tmp_path, sys.executable, "-c", program).split()
        assert label == str(labels[0])
        assert verdict in {name.removeprefix("VERDICT_") for name in pb.Verdict.keys()}  # noqa: SIM118 - no dict

        classified = run(tmp_path, *command(*shlex.split(classify), "--address", service.grpc_address))
        assert classified.startswith(f"your-digit.png: {labels[0]}  ")

        buf = Path(sys.executable).with_name("buf")
        described = run(tmp_path, buf, *shlex.split(curl.replace("127.0.0.1:50051", service.grpc_address)))
        assert '"name": "digits"' in described

"""``digitserve serve --tune`` as a command, with real processes and onnxruntime."""

import re
import subprocess
from pathlib import Path

from support.bundles import write_echo_bundle
from support.serving import PATIENCE_S, command


def test_tune_measures_every_layout_and_proposes_a_command(tmp_path: Path) -> None:
    """Each layout and batch size is one line with a positive rate; the last line is a command with measured values."""
    write_echo_bundle(tmp_path)
    finished = subprocess.run(
        command("serve", "--models", str(tmp_path), "--tune"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    header, *trials, proposal = finished.stdout.splitlines()
    measured = {tuple(line.split()[:3]) for line in trials}

    assert "images/s" in header
    assert len(measured) == len(trials) >= 6
    assert all(float(line.split()[3].replace(",", "")) > 0 for line in trials)
    values = re.fullmatch(r"digitserve serve --workers (\d+) --max-batch-size (\d+)", proposal)
    assert values
    assert values.groups() in {(workers, size) for workers, _, size in measured}


def test_tune_without_a_bundle_is_a_refusal_to_start(tmp_path: Path) -> None:
    """Without a bundle the message states this, and the exit code is 1."""
    finished = subprocess.run(
        command("serve", "--models", str(tmp_path), "--tune"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert finished.returncode == 1
    assert "refusing to start" in finished.stderr
    assert "Traceback" not in finished.stderr

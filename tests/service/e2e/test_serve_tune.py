"""``digitserve serve --tune`` as a command: real processes, the real network."""

import re
import subprocess
from pathlib import Path

from support.bundles import write_echo_bundle
from support.serving import PATIENCE_S, command


def test_tuning_tries_every_way_and_proposes_a_command(tmp_path: Path) -> None:
    """Each way and batch size is a line of figures above 0; the last line is a command whose values were tried."""
    write_echo_bundle(tmp_path)
    done = subprocess.run(
        command("serve", "--models", str(tmp_path), "--tune"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=True,
    )
    header, *trials, proposed = done.stdout.splitlines()
    tried = {tuple(line.split()[:3]) for line in trials}

    assert "images/s" in header
    assert len(tried) == len(trials) >= 6
    assert all(float(line.split()[3].replace(",", "")) > 0 for line in trials)
    found = re.fullmatch(r"digitserve serve --workers (\d+) --max-batch-size (\d+)", proposed)
    assert found
    assert found.groups() in {(workers, size) for workers, _, size in tried}


def test_tuning_refuses_as_serving_does(tmp_path: Path) -> None:
    """Without a bundle there is one line that says so, and status 1."""
    done = subprocess.run(
        command("serve", "--models", str(tmp_path), "--tune"),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )

    assert done.returncode == 1
    assert "refusing to start" in done.stderr
    assert "Traceback" not in done.stderr

"""The benchmark's machinery, never its figures: both services start, answer the load, and count what h2load counted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bundles import write_echo_bundle

ROOT = Path(__file__).parents[2]
LIMIT_S = 90.0
SERVERS = {"digitserve", "grpc.aio"}

pytestmark = [
    pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed; Debian: nghttp2-client"),
    pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed; Debian: util-linux"),
]


def test_both_services_answer_and_their_counts_agree(tmp_path: Path) -> None:
    """Each service answers alike, and every answer that h2load saw is one that the service counted as OK."""
    pytest.importorskip("uvloop", reason="the peer needs uvloop: the dependency group 'bench'")
    write_echo_bundle(tmp_path)
    # Whatever cores there are will do: nothing is timed here.
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    command = [
        sys.executable, "-m", "tests.bench.compare", "--models", str(tmp_path), "--seconds", "1", "--rounds", "1",
        "--cores", cores, "--load-cores", cores, "--servers", *SERVERS, "--json",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    runs = json.loads(done.stdout)["runs"]
    assert {run["server"] for run in runs} == SERVERS
    assert all(run["rate"] > 0 for run in runs)

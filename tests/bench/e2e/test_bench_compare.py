"""The benchmark's machinery, never its figures: the servers start, answer the load, and count what it counted."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.bundles import write_echo_bundle

ROOT = Path(__file__).parents[3]
LIMIT_S = 90.0
SERVERS = {"digitserve", "grpc.aio", "empty"}

pytestmark = [
    pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed; Debian: nghttp2-client"),
    pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed; Debian: util-linux"),
]


def test_servers_answer_alike_and_their_counts_agree(tmp_path: Path) -> None:
    """Each service answers alike and counts at least the answers that the load saw; the document has a row for each
    promise whose figures were taken.
    """
    pytest.importorskip("uvloop", reason="the peer needs uvloop: the dependency group 'bench'")
    write_echo_bundle(tmp_path)
    # Whatever cores there are will do: nothing is timed here.
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    command = [
        sys.executable, "-m", "benchmarks.compare", "--models", str(tmp_path), "--seconds", "0.5", "--rounds", "1",
        "--cores", cores, "--load-cores", cores, "--servers", *SERVERS, "--scale", "--json",
        "--write", str(tmp_path / "benchmarks.md"),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads(done.stdout)
    assert {name.split("/")[0] for name in figures if name.endswith("/rate")} == SERVERS
    assert all(value > 0 for value in figures.values())
    document = (tmp_path / "benchmarks.md").read_text()
    assert document.count("| at least ") == 4
    assert document.count("| at most ") == 8

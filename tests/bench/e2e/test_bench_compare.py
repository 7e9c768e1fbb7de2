"""The benchmarks as commands, without their figures: servers start, answer the load, and their counters agree with it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.bundles import write_echo_bundle

ROOT = Path(__file__).parents[3]
LIMIT_S = 180.0
SERVERS = {"native", "grpcio", "grpc.aio", "empty native"}
LOADS = ("single", "stream", "large")

pytestmark = pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed; Debian: util-linux")


def compare(models: Path, document: Path, *arguments: str) -> list[dict[str, float]]:
    """Run the benchmark for a short time on all cores, since no time is asserted; return the figures of each round."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    command = [
        sys.executable, "-m", "benchmarks.compare", "--models", str(models), "--seconds", "0.5", "--rounds", "1", "--overload-seconds", "0",
        "--cores", cores, "--load-cores", cores, "--json", "--write", str(document), *arguments,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=LIMIT_S)
    assert done.returncode == 0, done.stderr
    rounds: list[dict[str, float]] = json.loads(done.stdout)
    return rounds


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed; Debian: nghttp2-client")
def test_floors_and_peer(tmp_path: Path) -> None:
    """All services give the same answers and count what the load generator counted; the document has a row for each
    target whose figures were measured.
    """
    pytest.importorskip("uvloop", reason="the peer needs uvloop: the dependency group 'bench'")
    write_echo_bundle(tmp_path)
    (figures,) = compare(tmp_path, tmp_path / "benchmarks.md", "--servers", *SERVERS, "--scale", "--loads", *LOADS)
    assert {name.split("/")[0] for name in figures if name.endswith("/rate")} == SERVERS
    assert not {name: value for name, value in figures.items() if not value > 0}
    document = (tmp_path / "benchmarks.md").read_text()
    assert document.count("| at least ") == 7
    assert document.count("| at most ") == 9
    assert document.count("per round: median") == 1


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a commit to compare with needs a git checkout")
def test_against_a_commit(tmp_path: Path) -> None:
    """The commit is installed in a separate environment and runs its own code; the document has the ratios and states
    that both sides give the same answers.
    """
    write_echo_bundle(tmp_path)
    (figures,) = compare(
        tmp_path, tmp_path / "ratios.md", "--against", "HEAD", "--loads", "single", "--cache", str(tmp_path / "cache")
    )
    metrics = {"rate", "p50_s", "p99_s", "cpu_us"}
    assert set(figures) == {f"{side}/single/{metric}" for side in ("this", "that") for metric in metrics}
    assert all(value > 0 for value in figures.values())
    document = (tmp_path / "ratios.md").read_text()
    assert "| load | requests/s | p50 | p99 | CPU per request |\n" in document
    assert "Both sides give the same answers" in document
    (environment,) = (tmp_path / "cache").iterdir()
    assert (environment / "source" / "service" / "digitserve" / "__init__.py").is_file()


def test_against_a_commit_that_does_not_exist(tmp_path: Path) -> None:
    """An unknown commit is reported by name, and nothing is measured."""
    command = [sys.executable, "-m", "benchmarks.compare", "--against", "no-such-commit", "--cache", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=LIMIT_S)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no-such-commit" in done.stderr

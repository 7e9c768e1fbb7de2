"""``--device`` and the CUDA check as commands, on a machine whose onnxruntime has no CUDA."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.bundles import write_echo_bundle
from support.digits import MODELS
from support.serving import PATIENCE_S, command, run_service

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_echo_bundle(path)
    return path


@pytest.mark.parametrize("workers", ["0", "1"])
def test_missing_cuda_is_a_refusal_to_start(models: Path, workers: str) -> None:
    """The exit code is 1 and the message states what is missing and what to do, with worker processes and without."""
    refused = subprocess.run(
        command("serve", "--models", str(models), "--grpc-port", "0", "--http-port", "0", "--workers", workers,
                "--device", "cuda"),
        capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert "refusing to start: --device cuda: this onnxruntime has" in refused.stderr
    assert "onnxruntime-gpu" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_auto_falls_back_to_the_cpu_and_logs_the_reason_once(models: Path, tmp_path: Path) -> None:
    """CUDA is checked once for all workers: two workers run on the CPU, and one log line has the reason."""
    with run_service(models, tmp_path / "log", "--device", "auto", "--workers", "2") as service:
        assert "CPUExecutionProvider" in service.banner
        assert service.total("digitserve_model_info", provider="CPUExecutionProvider") == 1
        assert service.stop() == 0
    lines = [json.loads(line) for line in service.log.read_text().splitlines()]
    (reason,) = [line for line in lines if line["message"] == "no CUDA, running on the CPU"]
    assert "CUDAExecutionProvider" in reason["reason"]


def check_cuda(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the check that is meant for a machine with a GPU."""
    program = [sys.executable, "-m", "benchmarks.cuda_check", "--models", str(MODELS), *arguments]
    return subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_cuda_check_without_cuda_fails_with_the_reason() -> None:
    """The exit code is 3 and the reason is printed, so that it cannot be mistaken for a check that passed."""
    checked = check_cuda()
    assert (checked.returncode, checked.stdout) == (3, "")
    assert checked.stderr.startswith(
        "cuda_check: CUDA is not available, nothing was checked: --device cuda: this onnxruntime has"
    )


def test_cuda_check_on_the_cpu_finds_no_difference() -> None:
    """On the CPU the same comparison finds no difference, and each power of two is measured."""
    checked = check_cuda(
        "--device", "cpu", "--num-images", "200", "--largest", "4", "--seconds", "0.01", "--rounds", "1"
    )
    assert checked.stderr == ""
    assert "| images | 200 |" in checked.stdout
    assert "| different labels | 0 |" in checked.stdout
    assert "| largest difference of probabilities | 0.0e+00" in checked.stdout
    assert "Batches of changing sizes, relative to the same sizes without changes:" in checked.stdout
    assert [line.split("|")[1].strip() for line in checked.stdout.splitlines() if line.endswith("% |")] == [
        "1",
        "2",
        "4",
    ]

"""``digitserve bench`` as the real command against the real service: counts, report and exit codes."""

import json
import os
import pty
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.bundles import write_echo_bundle
from support.serving import PATIENCE_S, Service, command, run_service, wait_until

QUICK = ("--connections", "4", "--processes", "2", "--duration-s", "0.5", "--warm-up-s", "0")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    path = tmp_path_factory.mktemp("models")
    write_echo_bundle(path)
    with run_service(path, path / "log", "--workers", "1") as running:
        yield running


def arguments(service: Service, *more: str) -> list[str]:
    return command("bench", "--address", service.grpc_address, "--metrics", service.http_url + "/metrics", *more)


def run(*line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def handled(service: Service) -> float:
    return service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="OK")


def test_the_report_agrees_with_the_service(service: Service, tmp_path: Path) -> None:
    """Over two processes, OK answers equal the RPCs that the service handled; batches and CPU time come from its metrics
    page; the plot is a PNG.
    """
    pytest.importorskip("matplotlib", reason="--plot needs the extra 'plot'")
    before = handled(service)
    done = run(*arguments(service, *QUICK, "--images", "2", "--json", "--plot", str(tmp_path / "plot.png")))
    assert (done.returncode, done.stderr) == (0, "")
    seen = json.loads(done.stdout)
    assert seen["codes"] == {"OK": handled(service) - before}
    assert seen["codes"]["OK"] == seen["sent"] > 10
    assert 0 < seen["latency_s"]["p50"] <= seen["latency_s"]["p99"] <= seen["latency_s"]["max"]
    assert seen["images_per_s"] == 2 * seen["requests_per_s"] > 0
    assert sum(seen["timeline"]["requests"]) <= seen["sent"]
    assert seen["service"]["mean_batch_size"] >= 2 and seen["service"]["cpu_s_per_image"] > 0
    assert len(seen["load_generator"]["busy"]) == 2
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_text_report(service: Service) -> None:
    """Without --json each figure has its line; if the metrics page cannot be read, its URL and the reason are reported."""
    done = run(*arguments(service, *QUICK, "--rate", "40", "--metrics", "http://127.0.0.1:1/metrics"))
    assert done.returncode == 0, done.stderr
    lines = dict(
        line.split(maxsplit=1) for line in done.stdout.splitlines() if not line.startswith(("service", "load CPU"))
    )
    assert "open loop at 40.0 requests/s" in lines["load"]
    assert lines["measured"].startswith("20 requests")
    assert lines["latency"].startswith("p50 ")
    assert lines["errors"] == "none"
    assert lines["batches"].startswith("not available: http://127.0.0.1:1/metrics")


def test_progress_on_a_terminal(service: Service) -> None:
    """On a terminal, standard error shows rate, errors and the remaining time while the load runs."""
    parent, child = pty.openpty()
    done = subprocess.run(
        arguments(service, *QUICK, "--duration-s", "1"), env=os.environ | {"TERM": "xterm"},
        stdout=subprocess.PIPE, stderr=child, timeout=PATIENCE_S, check=True,
    )  # fmt: skip
    os.close(child)
    shown = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert "requests/s" in shown and "errors" in shown and "s left" in shown
    assert b"latency" in done.stdout


def test_a_search_without_success(service: Service) -> None:
    """No rate has a p99 of one microsecond: each probe is reported, and the exit code is 1."""
    done = run(*arguments(service, *QUICK, "--slo-ms", "0.001", "--rate", "4", "--json", "--duration-s", "0.3"))
    assert done.returncode == 1
    seen = json.loads(done.stdout)
    assert seen["highest_rate"] is None
    assert [probe["met"] for probe in seen["probes"]] == [False] * len(seen["probes"])
    assert [probe["rate"] for probe in seen["probes"]] == [4, 2, 1]
    assert done.stderr.count("limit exceeded") == 3


def test_rejected_requests(service: Service) -> None:
    """If no request is answered with OK, the exit code is 1, and the service's message is shown."""
    done = run(*arguments(service, *QUICK, "--sizes", "5000x2", "--images", "1"))
    assert done.returncode == 1
    assert "InvalidArgument" in done.stdout and "5000" in done.stdout


@pytest.mark.parametrize("listening", [False, True])
def test_unreachable(service: Service, listening: bool) -> None:
    """If no server listens at the port, or it does not speak HTTP/2, the exit code is 3, with a hint."""
    address = service.http_url.removeprefix("http://") if listening else "127.0.0.1:1"
    done = run(*command("bench", "--address", address, "--timeout-s", "0.5"))
    assert (done.returncode, done.stdout) == (3, "")
    assert "is 'digitserve serve' running at the address?" in done.stderr


def test_a_report_that_cannot_be_written(service: Service) -> None:
    """A full disk behind standard output is reported in one line, with exit code 1."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            arguments(service, *QUICK), stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "digitserve: cannot write standard output: No space left on device\n"


def test_ctrl_c(service: Service) -> None:
    """SIGINT to the process group, as from a terminal, ends the measured time; the exit code is 130."""
    before = handled(service)
    process = subprocess.Popen(
        arguments(service, *QUICK, "--duration-s", "600", "--json"), stdout=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    wait_until(lambda: handled(service) > before + 50, "answers")
    os.killpg(process.pid, signal.SIGINT)
    out, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    seen = json.loads(out)
    assert seen["stopped"] and 0 < seen["measured_s"] < 600
    assert seen["codes"] == {"OK": handled(service) - before}


def test_a_killed_worker(tmp_path: Path) -> None:
    """Broken connections are counted as failed, their requests as Unavailable, and the load continues on the new worker."""
    write_echo_bundle(tmp_path)
    with run_service(tmp_path, tmp_path / "log", "--workers", "1") as service:
        process = subprocess.Popen(
            arguments(service, *QUICK, "--duration-s", "600", "--json"), stdout=subprocess.PIPE, text=True
        )  # fmt: skip
        wait_until(lambda: handled(service) > 50, "answers")
        (worker,) = service.workers()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: service.workers() not in ([], [worker]), "another worker")
        before = handled(service)
        wait_until(lambda: handled(service) > before + 50, "answers of the new worker")
        process.send_signal(signal.SIGINT)
        seen = json.loads(process.communicate(timeout=PATIENCE_S)[0])
    assert seen["failed_connections"] >= 4
    assert seen["codes"]["Unavailable"] >= 1
    assert sum(seen["codes"].values()) == seen["sent"]


@pytest.mark.parametrize("method", ["unary", "stream"])
def test_a_service_that_ends_meanwhile(tmp_path: Path, method: str) -> None:
    """The report is printed; the exit code is 1 although requests were answered, and standard error says why."""
    write_echo_bundle(tmp_path)
    with run_service(tmp_path, tmp_path / "log", "--workers", "1", "--lame-duck-s", "0") as service:
        load = subprocess.Popen(
            arguments(service, *QUICK, "--duration-s", "2.5", "--timeout-s", "0.5", "--json", "--method", method),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        wait_until(lambda: service.total("digitserve_images_total") > 50, "answers")
        assert service.stop() == 0
    output, errors = load.communicate(timeout=PATIENCE_S)
    assert load.returncode == 1
    assert errors == (
        "digitserve: the service has ended or cannot be reached any more: no connection was left at the end\n"
    )
    seen = json.loads(output)
    assert seen["codes"]["OK"] > 0
    assert seen["disconnected"] == 4


@pytest.mark.parametrize(
    "wrong",
    [
        ("--sizes", "28"), ("--sizes", "28x0"), ("--sizes", "28x28:nan"), ("--poisson",), ("--rate", "0"),
        ("--method", "stream", "--deadline-s", "1"), ("--processes", "5", "--connections", "4"),
    ],
)  # fmt: skip
def test_wrong_usage(wrong: tuple[str, ...]) -> None:
    """Invalid flags are rejected with exit code 2 before any request is sent."""
    done = run(*command("bench", "--address", "127.0.0.1:1", *wrong))
    assert done.returncode == 2
    assert "Error" in done.stderr

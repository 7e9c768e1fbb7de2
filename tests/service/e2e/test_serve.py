"""The real command as processes: start, refuse, survive, drain."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import threading
from collections import Counter
from pathlib import Path
from typing import Self

import grpc
import pytest
from PIL import Image

from digitserve.v1 import digits_pb2 as pb
from support.bundles import echo_image, write_echo_bundle
from support.serving import PATIENCE_S, Service, command, run_service, wait_until

CLASSIFY = "/digitserve.v1.DigitService/Classify"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_echo_bundle(path)
    return path


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a ``digitserve`` command to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def ask(channel: grpc.Channel, number: int, *, patient: bool = True) -> int:
    """Classify one image and return the number that the answer encodes; a patient caller waits for a connection."""
    call = channel.unary_unary(CLASSIFY, pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString)
    request = pb.ClassifyRequest(pixels=echo_image(number).tobytes())
    (prediction,) = call(request, timeout=PATIENCE_S, wait_for_ready=patient).predictions
    return int(prediction.ood_score)


class Load:
    """Callers that keep asking, each on its own connection, and note how each call ended."""

    def __init__(
        self, service: Service, num_callers: int, *, patient: bool = True, reconnect: bool | None = None
    ) -> None:
        self._patient = patient
        self._reconnect = reconnect
        self.outcomes: Counter[str] = Counter()
        self.failures: list[str] = []
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(service, n)) for n in range(num_callers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)

    def _ask(self, service: Service, caller: int) -> None:
        number = caller * 100_000
        channel = service.channel(retries=self._reconnect is not None)
        with contextlib.ExitStack() as stack:
            stack.callback(lambda: channel.close())  # noqa: PLW0108 - the channel of then, not of now
            while not self._stop.is_set():
                number += 1
                if self._reconnect:
                    channel.close()
                    channel = service.channel(retries=True)
                try:
                    outcome = "OK" if ask(channel, number, patient=self._patient) == number else "WRONG"
                except grpc.RpcError as error:
                    outcome = error.code().name
                    self.failures.append(error.debug_error_string())
                with self._lock:
                    self.outcomes[outcome] += 1


def test_serve_says_where_it_is_and_what_it_serves(models: Path, tmp_path: Path) -> None:
    """The banner names addresses, model, version, sha256, provider, workers, CPU budget and a command that works."""
    with run_service(models, tmp_path / "log", "--workers", "2") as service:
        sha256 = json.loads((models / "digits/1/manifest.json").read_text())["sha256"]
        for part in (service.grpc_address, service.http_url, "digits/1", sha256[:12], "CPUExecutionProvider",
                     "workers  2 x", "CPU budget"):  # fmt: skip
            assert part in service.banner

        image = tmp_path / "seven.png"
        Image.fromarray(echo_image(7)).save(image)
        tried = service.banner.split("try")[1].split()
        result = run(*tried[1:-1], str(image))
        assert (result.returncode, result.stdout.split()[1]) == (0, "7")


def test_the_http_side_answers(models: Path, tmp_path: Path) -> None:
    """/ and /readyz say what is served, /livez that the process lives, /metrics what happened."""
    with run_service(models, tmp_path / "log", "--workers", "1") as service:
        assert service.get("/")[1].startswith("digitserve ready: digits/1")
        assert service.get("/livez") == (200, "alive\n")
        assert service.get("/readyz")[0] == 200
        assert service.total("digitserve_ready_workers") == 1
        assert service.total("digitserve_model_info", name="digits", version="1", provider="CPUExecutionProvider") == 1
        assert service.get("/nonesuch")[0] == 404


def test_no_thread_of_a_worker_interrupts_another(models: Path, tmp_path: Path) -> None:
    """All threads of a worker, core's among them, have the policy under which waking does not preempt; the supervisor has not."""
    with run_service(models, tmp_path / "log", "--workers", "1") as service:
        with service.channel() as channel:
            assert ask(channel, 3) == 3
        (worker,) = service.workers()
        threads = [int(thread.name) for thread in Path(f"/proc/{worker}/task").iterdir()]
        assert len(threads) > 1
        assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}
        assert os.sched_getscheduler(service.process.pid) == os.SCHED_OTHER


def test_counters_equal_what_clients_counted(models: Path, tmp_path: Path) -> None:
    """Over several workers, started, handled, images and predictions are exactly what the clients sent and got."""
    with run_service(models, tmp_path / "log", "--workers", "2") as service:
        with Load(service, 8) as load:
            wait_until(lambda: load.outcomes["OK"] >= 400, "400 answers")
        with service.channel() as channel, pytest.raises(grpc.RpcError):
            channel.unary_unary(CLASSIFY)(pb.ClassifyRequest(pixels=b"x").SerializeToString())
        ok = load.outcomes.total()

        assert load.outcomes == {"OK": ok}
        assert service.total("grpc_server_started_total", grpc_method="Classify") == ok + 1
        assert service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="OK") == ok
        assert service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="InvalidArgument") == 1
        assert service.total("grpc_server_handling_seconds_count", grpc_method="Classify") == ok + 1
        assert service.total("digitserve_images_total") == ok
        assert service.total("digitserve_predictions_total", verdict="accepted") == ok
        assert service.total("digitserve_batch_size_sum") == ok
        assert service.total("digitserve_rejected_total", reason="invalid") == 1
        assert service.total("digitserve_pending_images") == 0
        assert "Traceback" not in service.log.read_text()
        assert "ERROR" not in service.log.read_text().upper()


def test_a_killed_worker_is_replaced_and_nothing_lies(models: Path, tmp_path: Path) -> None:
    """A worker killed under load: the other goes on, callers get their own answers or UNAVAILABLE, readiness and
    metrics tell the truth, a new worker takes its place, and nothing counted is forgotten.
    """
    with run_service(models, tmp_path / "log", "--workers", "2") as service:
        with Load(service, 8) as load:
            wait_until(lambda: load.outcomes["OK"] >= 200, "200 answers")
            before = service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="OK")
            victim = service.workers()[0]
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda: victim not in service.workers(), "the victim is gone")
            assert service.get("/readyz")[0] == 200
            assert service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="OK") >= before
            wait_until(lambda: service.total("digitserve_ready_workers") == 2, "the worker is replaced")
            answered = load.outcomes["OK"]
            wait_until(lambda: load.outcomes["OK"] >= answered + 200, "200 more answers")

        assert set(load.outcomes) <= {"OK", "UNAVAILABLE"}
        assert service.total("digitserve_worker_restarts_total") == 1
        started = service.total("grpc_server_started_total", grpc_method="Classify")
        assert service.total("grpc_server_handled_total", grpc_method="Classify") == started
        assert service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="OK") >= load.outcomes["OK"]


def test_a_worker_that_stands_still_is_replaced(models: Path, tmp_path: Path) -> None:
    """A worker whose loop does not turn is found by its heartbeat, killed and replaced."""
    with run_service(models, tmp_path / "log", "--workers", "1", "--stall-s", "1") as service:
        (stopped,) = service.workers()
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: service.workers() not in ([], [stopped]), "another worker is started")
        wait_until(lambda: service.get("/readyz")[0] == 200, "it is ready")
        with service.channel() as channel:
            assert ask(channel, 5) == 5
        assert "stands still" in service.log.read_text()


def test_sigterm_answers_what_was_admitted(models: Path, tmp_path: Path) -> None:
    """After SIGTERM under load no answer is lost or wrong: a call is answered, or told to go elsewhere; exit code 0."""
    with run_service(models, tmp_path / "log", "--workers", "2", "--lame-duck-s", "0.3") as service:
        with Load(service, 8, patient=False) as load:
            wait_until(lambda: load.outcomes["OK"] >= 200, "200 answers")
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: service.process.poll() is not None or service.get("/readyz")[0] == 503, "not ready")
            assert service.process.wait(PATIENCE_S) == 0

        # Core ends with CANCELLED what reaches it between its GOAWAY and the client's reading of it, unseen by us.
        assert set(load.outcomes) <= {"OK", "UNAVAILABLE", "CANCELLED"}
        assert '"drained"' in service.log.read_text()
        assert "crashed" not in service.log.read_text()


def test_a_worker_that_fails_while_it_drains_is_told(models: Path, tmp_path: Path) -> None:
    """A worker that dies in the drain may have owed answers: the log says so, and the service ends with 1."""
    with run_service(models, tmp_path / "log", "--workers", "1", "--lame-duck-s", "30", "--grace-s", "60") as service:
        (worker,) = service.workers()
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: service.get("/readyz")[0] == 503, "not ready")
        os.kill(worker, signal.SIGKILL)

        assert service.process.wait(PATIENCE_S) == 1
        assert "worker failed while it drained" in service.log.read_text()


def test_a_worker_that_drains_alone_loses_no_call(models: Path, tmp_path: Path) -> None:
    """While one worker drains and is replaced, callers that open a connection a call, and callers that keep one, all
    get their answers: what the closing listener had in its backlog, clients with our service config send again.
    """
    with run_service(models, tmp_path / "log", "--workers", "2", "--lame-duck-s", "0") as service:
        with Load(service, 4, reconnect=False) as keeping, Load(service, 4, reconnect=True) as reconnecting:
            wait_until(lambda: reconnecting.outcomes["OK"] >= 100, "100 answers")
            for _ in range(3):
                drained = service.workers()[0]
                os.kill(drained, signal.SIGTERM)
                wait_until(lambda pid=drained: pid not in service.workers(), "the worker has drained")
                wait_until(lambda: service.total("digitserve_ready_workers") == 2, "it is replaced")
            answered = reconnecting.outcomes["OK"]
            wait_until(lambda: reconnecting.outcomes["OK"] >= answered + 100, "100 more answers")

        assert set(keeping.outcomes) == {"OK"}, keeping.failures
        assert set(reconnecting.outcomes) == {"OK"}, reconnecting.failures
        calls = keeping.outcomes.total() + reconnecting.outcomes.total()
        assert service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="OK") >= calls


def test_workers_end_with_their_supervisor(models: Path, tmp_path: Path) -> None:
    """When the supervisor is killed, its workers notice and end: nothing goes on serving unwatched."""
    with run_service(models, tmp_path / "log", "--workers", "2", "--lame-duck-s", "0") as service:
        workers = service.workers()
        service.process.kill()
        service.process.wait()
        wait_until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and
                                   Path(f"/proc/{pid}/cmdline").read_bytes() for pid in workers),
                   "the workers are gone")  # fmt: skip


def test_a_second_service_on_the_same_port_is_refused(models: Path, tmp_path: Path) -> None:
    """Started twice on one port, the second says so and exits with 1; the first is not disturbed."""
    with run_service(models, tmp_path / "log", "--workers", "1") as service:
        for flag, address in (("--grpc-port", service.grpc_address), ("--http-port", service.http_url)):
            port = address.rpartition(":")[2]
            other = "--http-port" if flag == "--grpc-port" else "--grpc-port"
            second = run("serve", "--models", str(models), other, "0", flag, port)
            assert second.returncode == 1
            assert f"cannot use port {port}" in second.stderr
            assert flag in second.stderr
        with service.channel() as channel:
            assert ask(channel, 3) == 3


def _flip_a_byte(bundle: Path) -> None:
    graph = bytearray((bundle / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(graph)


def _drop_golden(bundle: Path) -> None:
    (bundle / "golden.npz").unlink()


def _bend_golden(bundle: Path) -> None:
    import numpy as np  # noqa: PLC0415

    with np.load(bundle / "golden.npz") as stored:
        arrays = dict(stored)
    arrays["probabilities"] = arrays["probabilities"] + np.float32(2e-4)
    np.savez(bundle / "golden.npz", **arrays)


@pytest.mark.parametrize(
    ("damage", "check"), [(_flip_a_byte, "sha256"), (_drop_golden, "files"), (_bend_golden, "golden")]
)
def test_a_damaged_bundle_is_not_served(models: Path, tmp_path: Path, damage, check: str) -> None:  # noqa: ANN001
    """A damaged bundle never becomes ready: the service says which check failed and exits with 1."""
    shutil.copytree(models, tmp_path / "models")
    damage(tmp_path / "models/digits/1")

    result = run("serve", "--models", str(tmp_path / "models"), "--grpc-port", "0", "--http-port", "0")

    assert result.returncode == 1
    assert f"check '{check}' failed" in result.stderr
    assert "Traceback" not in result.stderr
    assert "ready" not in result.stdout


def test_a_bundle_damaged_later_is_reported_and_the_rest_goes_on(models: Path, tmp_path: Path) -> None:
    """A worker that cannot be replaced because the bundle was damaged: the other serves on, /readyz says why."""
    shutil.copytree(models, tmp_path / "models")
    with run_service(tmp_path / "models", tmp_path / "log", "--workers", "2") as service:
        _flip_a_byte(tmp_path / "models/digits/1")
        os.kill(service.workers()[0], signal.SIGKILL)
        wait_until(lambda: "check 'sha256' failed" in service.get("/readyz")[1], "the refusal is shown")
        assert service.get("/readyz")[0] == 200
        assert service.total("digitserve_ready_workers") == 1
        with service.channel() as channel:
            assert ask(channel, 8) == 8


def test_one_process_serves_for_debuggers(models: Path, tmp_path: Path) -> None:
    """``--workers 0`` serves without any child process, and drains as the others do."""
    with run_service(models, tmp_path / "log", "--workers", "0", "--lame-duck-s", "0") as service:
        assert service.workers() == []
        with service.channel() as channel:
            assert ask(channel, 21) == 21
        assert service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="OK") == 1
        assert service.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--workers", "-1"), "--workers"),
        (("--device", "tpu"), "'cpu', 'cuda', 'auto'"),
        (("--max-batch-size", "many"), "not a valid integer"),
        (("--model", "letters"), "no version of model 'letters'"),
        (("--model-version", "7"), "available: 1"),
        (("--device", "cuda"), "CUDAExecutionProvider"),
        (("--host", "nonesuch.invalid"), "no address of this machine"),
    ],
)
def test_a_bad_setting_refuses_to_start(models: Path, arguments: tuple[str, ...], part: str) -> None:
    """A setting that cannot be served is a refusal to start that says what would do, never a silent default."""
    result = run("serve", "--models", str(models), "--grpc-port", "0", "--http-port", "0", *arguments)

    assert result.returncode in {1, 2}
    assert part in result.stderr
    assert "Traceback" not in result.stderr


def test_other_addresses_of_this_machine_serve_too(models: Path, tmp_path: Path) -> None:
    """A host name and an IPv6 address are listened on, and shown so that clients can use them."""
    for host, shown in (("localhost", "localhost:"), ("::1", "[::1]:")):
        with run_service(models, tmp_path / "log", "--workers", "1", "--host", host) as service:
            assert service.grpc_address.startswith(shown)
            assert service.get("/livez")[0] == 200
            with service.channel() as channel:
                assert ask(channel, 6) == 6


def test_asked_twice_to_stop_it_does_not_wait(models: Path, tmp_path: Path) -> None:
    """The second signal ends the service at once, with an exit code that says that it did not drain."""
    with run_service(models, tmp_path / "log", "--workers", "1", "--lame-duck-s", "60", "--grace-s", "60") as service:
        service.process.send_signal(signal.SIGINT)
        wait_until(lambda: service.get("/readyz")[0] == 503, "it drains")
        assert service.stop() == 1


def test_settings_come_from_the_environment(models: Path, tmp_path: Path) -> None:
    """Each flag has its environment twin; a bad value there is refused by its name."""
    with run_service(models, tmp_path / "log", DIGITSERVE_WORKERS="1") as service:
        assert "workers  1 x" in service.banner
    result = subprocess.run(
        command("serve"),
        env=os.environ | {"DIGITSERVE_GRPC_PORT": "99999"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert "DIGITSERVE_GRPC_PORT" in result.stderr


def test_healthcheck_exit_codes(models: Path, tmp_path: Path) -> None:
    """``healthcheck`` exits with 0 for SERVING and 3 when nobody answers."""
    with run_service(models, tmp_path / "log", "--workers", "1") as service:
        healthy = run("healthcheck", "--address", service.grpc_address)
        assert (healthy.returncode, healthy.stdout) == (0, "SERVING\n")
        unknown = run("healthcheck", "--address", service.grpc_address, "--service", "nonesuch")
        assert unknown.returncode == 1
        assert "NOT_FOUND" in unknown.stderr
        address = service.grpc_address
    gone = run("healthcheck", "--address", address)
    assert gone.returncode == 3
    assert "digitserve serve" in gone.stderr


def test_classify_speaks_to_people_and_to_scripts(models: Path, tmp_path: Path) -> None:
    """``classify`` prints a line an image, or JSON; a bad file is named, the good ones are still answered, exit 1."""
    image = tmp_path / "four.png"
    Image.fromarray(echo_image(4)).save(image)
    (tmp_path / "two.raw").write_bytes(echo_image(1).tobytes() + echo_image(2).tobytes())
    with run_service(models, tmp_path / "log", "--workers", "1") as service:
        address = ("--address", service.grpc_address)
        options = (*address, "--json", "--top-k", "2")
        results = (
            run("classify", *options, str(image)),
            run("classify", *options, "--size", "28x28", str(tmp_path / "two.raw")),
        )
        lines = [json.loads(line) for result in results for line in result.stdout.splitlines()]
        assert [result.returncode for result in results] == [0, 0]
        assert [(line["label"], line["image"], line["model"]) for line in lines] == [
            ("4", 0, "digits/1"), ("1", 0, "digits/1"), ("2", 1, "digits/1"),
        ]  # fmt: skip
        assert lines[0]["verdict"] == "VERDICT_ACCEPTED"
        assert [score["label"] for score in lines[0]["top"]][0] == "4"

        mixed = run("classify", *address, str(tmp_path / "none.png"), str(image))
        assert mixed.returncode == 1
        assert "none.png" in mixed.stderr
        assert "four.png: 4" in mixed.stdout
    assert run("classify", *address, str(image)).returncode == 3
    assert run("classify").returncode == 2

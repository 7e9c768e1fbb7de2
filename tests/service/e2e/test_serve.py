"""``digitserve serve`` as a process: start, refusal to start, worker failures, drain."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from PIL import Image

from digitserve.v1 import digits_pb2 as pb
from digitserve.v1 import digits_pb2_grpc
from support.bundles import echo_image, echo_request, write_echo_bundle
from support.load import CLASSIFY, Load, classify
from support.serving import PATIENCE_S, TRANSPORTS, Service, command, run_service, wait_until


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models")
    write_echo_bundle(path)
    return path


@pytest.fixture(scope="module")
def service(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run a service of one worker for the tests that only call it."""
    with run_service(models, tmp_path_factory.mktemp("service") / "log", "--workers", "1") as running:
        yield running


@pytest.fixture
def unused() -> Iterator[str]:
    """Return an address that refuses connections: a socket is bound to it, and does not listen."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a ``digitserve`` command to its end."""
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_banner(models: Path, tmp_path: Path) -> None:
    """The banner shows addresses, model, version, sha256, provider, workers, CPU budget and a command that works."""
    with run_service(models, tmp_path / "log", "--workers", "2") as service:
        sha256 = json.loads((models / "digits/1/manifest.json").read_text())["sha256"]
        for part in (service.grpc_address, service.http_url, "digits/1", sha256[:12], "CPUExecutionProvider",
                     "workers  2 x", "CPU budget"):  # fmt: skip
            assert part in service.banner

        image = tmp_path / "seven.png"
        Image.fromarray(echo_image(7)).save(image)
        arguments = service.banner.split("try")[1].split()
        result = run(*arguments[1:-1], str(image))
        assert (result.returncode, result.stdout.split()[1]) == (0, "7")


def test_http_endpoints(service: Service) -> None:
    """/readyz shows what is served, /livez that the process runs, /metrics the counts."""
    assert service.get("/readyz")[1].startswith("digitserve ready: digits/1")
    assert service.get("/livez") == (200, "alive\n")
    assert service.get("/")[0] == service.get("/readyz")[0] == 200
    assert service.total("digitserve_ready_workers") == 1
    assert service.total("digitserve_model_info", name="digits", version="1", provider="CPUExecutionProvider") == 1
    assert service.get("/nonesuch")[0] == 404


def test_worker_threads_do_not_preempt_each_other(service: Service) -> None:
    """All threads of a worker, including those of gRPC core, run with SCHED_BATCH; the supervisor does not."""
    with service.channel() as channel:
        assert classify(channel, 3) == 3
    (worker,) = service.workers()
    threads = [int(thread.name) for thread in Path(f"/proc/{worker}/task").iterdir()]
    assert len(threads) > 1
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_BATCH}
    assert os.sched_getscheduler(service.process.pid) == os.SCHED_OTHER


def test_counters_equal_the_clients_counts(models: Path, tmp_path: Path) -> None:
    """Summed over several workers, started, handled, images and predictions equal what the clients sent and received."""
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


def test_output_of_a_sitecustomize_does_not_disturb_the_service(models: Path, tmp_path: Path) -> None:
    """A ``sitecustomize`` that prints to standard output in each process does not keep the service from starting,
    serving and draining.
    """
    (tmp_path / "sitecustomize.py").write_text("print('sitecustomize prints', flush=True)\n")
    paths = os.pathsep.join([str(tmp_path), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))])
    with run_service(models, tmp_path / "log", "--workers", "1", PYTHONPATH=paths) as service:
        with service.channel() as channel:
            assert classify(channel, 12) == 12
        assert service.stop() == 0
    assert "sitecustomize prints" in service.log.read_text()


@pytest.mark.parametrize("reader", ["has ended", "does not read"])
def test_a_log_that_cannot_be_written_does_not_end_the_service(models: Path, tmp_path: Path, reader: str) -> None:
    """If the reader of standard error has ended or does not read, log lines are lost; a worker that ends is still replaced, and the
    service still drains with exit code 0.
    """
    read_end, write_end = os.pipe()
    log = Path(f"/proc/self/fd/{write_end}")
    if reader == "does not read":
        os.set_blocking(write_end, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(write_end, bytes(4096))
    # Buffered, as Python's standard error is by default: lines that cannot be written are still there at the exit.
    with run_service(models, log, "--workers", "1", PYTHONUNBUFFERED="") as service:
        os.close(write_end)
        if reader == "has ended":
            os.close(read_end)
        (killed,) = service.workers()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: service.workers() not in ([], [killed]), "another worker is started")
        wait_until(lambda: service.get("/readyz")[0] == 200, "it is ready")
        assert service.stop() == 0
    if reader == "does not read":
        os.close(read_end)


def test_idle_http_connections_leave_descriptors_for_workers(models: Path, tmp_path: Path) -> None:
    """With few file descriptors, and more idle connections of the HTTP port than those, a worker that ends is replaced, probes are
    answered, and the log stays short; it says at the start that there are few.
    """
    limited = ["sh", "-c", 'ulimit -n 64; exec "$@"', "sh"]
    running = run_service(models, tmp_path / "log", "--workers", "1", wrapper=limited)
    with contextlib.ExitStack() as stack, running as service:
        host, _, port = service.http_url.removeprefix("http://").rpartition(":")
        for _ in range(70):
            stack.enter_context(socket.create_connection((host, int(port)))).sendall(b"GET / HTTP/1.1\r\n")
        (killed,) = service.workers()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: service.workers() not in ([], [killed]), "another worker is started")
        wait_until(lambda: service.get("/readyz")[0] == 200, "it is ready")
        log = service.log.read_text()
        assert "too few file descriptors" in log
        assert "Traceback" not in log
        assert len(log) < 5_000


@pytest.mark.parametrize("change", ["replaced", "removed", "damaged"])
def test_a_replacement_worker_serves_the_bundle_that_was_verified(tmp_path: Path, change: str) -> None:
    """When the files of the version change while the service runs, all workers continue to serve those that were verified at its
    start.
    """
    models = tmp_path / "models"
    write_echo_bundle(models)
    with run_service(models, tmp_path / "log", "--workers", "1") as service:
        if change == "damaged":
            _flip_a_byte(models / "digits" / "1")
        else:
            shutil.rmtree(models / "digits" / "1")
        if change == "replaced":
            write_echo_bundle(models, labels=tuple("9876543210"))
        (killed,) = service.workers()
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: service.workers() not in ([], [killed]), "another worker is started")
        wait_until(lambda: service.get("/readyz")[0] == 200, "it is ready")
        with service.channel() as channel:
            stub = digits_pb2_grpc.DigitServiceStub(channel)
            answer = stub.Classify(echo_request(3), timeout=PATIENCE_S, wait_for_ready=True)
            assert answer.predictions[0].label == "3"
            assert "".join(stub.GetModel(pb.GetModelRequest(), timeout=PATIENCE_S).model.labels) == "0123456789"


def test_killed_and_stopped_workers_lose_only_their_calls(models: Path, tmp_path: Path) -> None:
    """One worker is killed and another one stopped under load. The other one continues: the service stays ready, and callers get
    their own answers, or UNAVAILABLE for calls in flight on the worker that failed. A stopped worker is detected by its heartbeat.
    Both are replaced, then all callers get answers again. No count is lost, and each started call is counted as ended.
    """
    with run_service(models, tmp_path / "log", "--workers", "2", "--stall-s", "1") as service:
        with Load(service, 8) as keeping, Load(service, 2, reconnect=True) as reconnecting:
            for number in (signal.SIGKILL, signal.SIGSTOP):
                kept = keeping.outcomes["OK"]
                wait_until(lambda count=kept: keeping.outcomes["OK"] >= count + 100, "100 answers")
                before = service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="OK")
                failing = service.workers()[0]
                os.kill(failing, number)
                wait_until(lambda pid=failing: pid not in service.workers(), "the worker has ended")
                assert service.get("/readyz")[0] == 200
                assert service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="OK") >= before
                wait_until(lambda: service.total("digitserve_ready_workers") == 2, "it is replaced")
            kept, opened = keeping.outcomes["OK"], reconnecting.outcomes["OK"]
            wait_until(lambda: keeping.outcomes["OK"] >= kept + 100, "callers with a connection get answers")
            wait_until(lambda: reconnecting.outcomes["OK"] >= opened + 20, "callers with a new one get answers")

        assert set(keeping.outcomes | reconnecting.outcomes) <= {"OK", "UNAVAILABLE"}
        # Each caller has one call at a time: of a worker's calls, one per caller can fail, and those of its next connection.
        assert keeping.outcomes["UNAVAILABLE"] <= 2 * 2 * 8
        answered = keeping.outcomes["OK"] + reconnecting.outcomes["OK"]
        assert service.total("grpc_server_handled_total", grpc_method="Classify", grpc_code="OK") >= answered
        started = service.total("grpc_server_started_total", grpc_method="Classify")
        assert service.total("grpc_server_handled_total", grpc_method="Classify") == started
        assert service.total("digitserve_worker_restarts_total") == 2
        assert "heartbeat stopped" in service.log.read_text()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_sigterm_answers_admitted_requests(models: Path, tmp_path: Path, transport: str) -> None:
    """After SIGTERM under load no answer is lost or wrong: each call gets its answer or UNAVAILABLE, also those on connections that
    no worker accepted; the exit code is 0. Idle connections are closed, and new ones are refused.
    """
    arguments = ("--workers", "2", "--lame-duck-s", "0.3", "--transport", transport)
    with run_service(models, tmp_path / "log", *arguments) as service:
        host, _, port = service.grpc_address.rpartition(":")
        idle = socket.create_connection((host, int(port)), timeout=PATIENCE_S)
        with (
            Load(service, 8, wait_for_ready=False) as keeping,
            Load(service, 4, wait_for_ready=False, reconnect=True) as reconnecting,
        ):
            wait_until(lambda: keeping.outcomes["OK"] >= 200, "200 answers")
            wait_until(lambda: reconnecting.outcomes["OK"] >= 50, "50 answers to new connections")
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: service.process.poll() is not None or service.get("/readyz")[0] == 503, "not ready")
            assert service.process.wait(PATIENCE_S) == 0
            refused = reconnecting.outcomes["UNAVAILABLE"]
            wait_until(
                lambda: reconnecting.outcomes["UNAVAILABLE"] >= refused + 20, "callers are refused and do not wait"
            )

        # gRPC core ends calls with CANCELLED that arrive after it sent GOAWAY and before the client has read it.
        expected = {"OK", "UNAVAILABLE"} | ({"CANCELLED"} if transport == "grpcio" else set())
        assert set(keeping.outcomes | reconnecting.outcomes) <= expected
        with idle:
            while idle.recv(1 << 16):
                pass
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)))
        assert '"drained"' in service.log.read_text()
        assert "crashed" not in service.log.read_text()


def test_a_worker_that_fails_while_it_drains_is_reported(models: Path, tmp_path: Path) -> None:
    """A worker that dies while it drains may leave requests unanswered: it is logged, and the exit code is 1."""
    with run_service(models, tmp_path / "log", "--workers", "1", "--lame-duck-s", "30", "--grace-s", "60") as service:
        (worker,) = service.workers()
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: service.get("/readyz")[0] == 503, "not ready")
        os.kill(worker, signal.SIGKILL)

        assert service.process.wait(PATIENCE_S) == 1
        assert "worker failed while it drained" in service.log.read_text()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_no_call_is_lost_when_one_worker_drains(models: Path, tmp_path: Path, transport: str) -> None:
    """While one worker drains and is replaced, callers that open a connection per call and callers that keep theirs all
    get their answers. With the native transport they need no retries; with grpcio, clients with our service config retry
    calls in the backlog of the closing listener.
    """
    native = transport == "native"
    arguments = ("--workers", "2", "--transport", transport)
    with run_service(models, tmp_path / "log", *arguments) as service:
        with (
            Load(service, 4, wait_for_ready=not native, retries=not native) as keeping,
            Load(service, 4, wait_for_ready=not native, retries=not native, reconnect=True) as reconnecting,
        ):
            wait_until(lambda: reconnecting.outcomes["OK"] >= 100, "100 answers")
            for _ in range(4 if native else 3):
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


def test_connections_wait_for_the_next_worker(models: Path, tmp_path: Path) -> None:
    """With the native transport, a service of one worker loses no call while that drains and is replaced again and again:
    clients with default channels, whose connections arrive meanwhile, are neither reset nor refused.
    """
    arguments = ("--workers", "1", "--transport", "native")
    with run_service(models, tmp_path / "log", *arguments) as service:
        with (
            Load(service, 4, wait_for_ready=False) as keeping,
            Load(service, 4, wait_for_ready=False, reconnect=True) as reconnecting,
        ):
            for _ in range(4):
                answered = reconnecting.outcomes["OK"]
                wait_until(lambda count=answered: reconnecting.outcomes["OK"] >= count + 20, "20 answers")
                (drained,) = service.workers()
                os.kill(drained, signal.SIGTERM)
                wait_until(lambda pid=drained: pid not in service.workers(), "the worker has drained")
                wait_until(lambda: service.total("digitserve_ready_workers") == 1, "it is replaced")

        assert set(keeping.outcomes) == {"OK"}, keeping.failures
        assert set(reconnecting.outcomes) == {"OK"}, reconnecting.failures
        assert "worker ended unexpectedly" not in service.log.read_text()


def test_a_service_whose_supervisor_was_killed_can_start_again(models: Path, tmp_path: Path) -> None:
    """When the supervisor is killed under load, its workers close their listening sockets at once and end, also one that was
    stopped: a service starts on the same ports immediately, and no worker runs without a supervisor.
    """
    arguments = ("--workers", "2", "--transport", "native", "--grace-s", "60", "--lame-duck-s")
    with contextlib.ExitStack() as services:
        first = services.enter_context(run_service(models, tmp_path / "log", *arguments, "60"))
        with Load(first, 2) as load:
            wait_until(lambda: load.outcomes["OK"] >= 100, "100 answers")
            workers = first.workers()
            os.kill(workers[0], signal.SIGSTOP)
            first.process.kill()
            first.process.wait()
            ports = [address.rpartition(":")[2] for address in (first.grpc_address, first.http_url)]
            on_ports = ("--grpc-port", ports[0], "--http-port", ports[1])
            services.enter_context(run_service(models, tmp_path / "log2", *arguments, "0", *on_ports))
            answered = load.outcomes["OK"]
            wait_until(lambda: load.outcomes["OK"] >= answered + 100, "100 more answers")
            wait_until(lambda: not any(map(runs, workers)), "the workers are gone")
    assert set(load.outcomes) <= {"OK", "UNAVAILABLE"}


def runs(pid: int) -> bool:
    """Return whether a process still runs; one that has ended and was not waited for does not."""
    with contextlib.suppress(FileNotFoundError):
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    return False


def test_a_second_service_on_the_same_port_is_refused(models: Path, service: Service) -> None:
    """A second service on the same port reports it and exits with 1; the first one is not affected."""
    for flag, address in (("--grpc-port", service.grpc_address), ("--http-port", service.http_url)):
        port = address.rpartition(":")[2]
        other = "--http-port" if flag == "--grpc-port" else "--grpc-port"
        second = run("serve", "--models", str(models), other, "0", flag, port)
        assert second.returncode == 1
        assert f"cannot use port {port}" in second.stderr
        assert flag in second.stderr
    with service.channel() as channel:
        assert classify(channel, 3) == 3


def _flip_a_byte(bundle: Path) -> None:
    graph = bytearray((bundle / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(graph)


def _drop_golden(bundle: Path) -> None:
    (bundle / "golden.npz").unlink()


def _change_golden(bundle: Path) -> None:
    import numpy as np  # noqa: PLC0415

    with np.load(bundle / "golden.npz") as stored:
        arrays = dict(stored)
    arrays["probabilities"] = arrays["probabilities"] + np.float32(2e-4)
    np.savez(bundle / "golden.npz", **arrays)


@pytest.mark.parametrize(
    ("damage", "check"), [(_flip_a_byte, "sha256"), (_drop_golden, "files"), (_change_golden, "golden")]
)
def test_a_damaged_bundle_is_not_served(models: Path, tmp_path: Path, damage, check: str) -> None:  # noqa: ANN001
    """A damaged bundle is never served: the message names the failed check, and the exit code is 1."""
    shutil.copytree(models, tmp_path / "models")
    damage(tmp_path / "models/digits/1")

    result = run("serve", "--models", str(tmp_path / "models"), "--grpc-port", "0", "--http-port", "0")

    assert result.returncode == 1
    assert f"check '{check}' failed" in result.stderr
    assert "Traceback" not in result.stderr
    assert "ready" not in result.stdout


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_zero_workers_serve_in_one_process(models: Path, tmp_path: Path, transport: str) -> None:
    """``--workers 0`` serves without any child process, and drains like worker processes."""
    arguments = ("--workers", "0", "--transport", transport)
    with run_service(models, tmp_path / "log", *arguments) as service:
        assert service.workers() == []
        with service.channel() as channel:
            assert classify(channel, 21) == 21
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
        (("--host", "nonesuch.invalid"), "not an address of this machine"),
        (("--tls-key", "nonesuch.key"), "--tls-key without --tls-certificate"),
        (("--token-file", "nonesuch"), "--token-file nonesuch: cannot be read: No such file"),
    ],
)
def test_a_bad_setting_refuses_to_start(models: Path, arguments: tuple[str, ...], part: str) -> None:
    """With a setting that cannot be used the service does not start, and reports the accepted values; it never uses a default silently."""
    result = run("serve", "--models", str(models), "--grpc-port", "0", "--http-port", "0", *arguments)

    assert result.returncode in {1, 2}
    assert part in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_host_names_and_ipv6_addresses(models: Path, tmp_path: Path, transport: str) -> None:
    """The service can listen on a host name and on an IPv6 address, and shows both in a form that clients accept."""
    for host, shown in (("localhost", "localhost:"), ("::1", "[::1]:")):
        with run_service(
            models, tmp_path / "log", "--workers", "1", "--host", host, "--transport", transport
        ) as service:
            assert service.grpc_address.startswith(shown)
            assert service.get("/livez")[0] == 200
            with service.channel() as channel:
                assert classify(channel, 6) == 6


def test_second_signal_ends_the_service_at_once(models: Path, tmp_path: Path) -> None:
    """The second signal ends the service without waiting for answers, with exit code 1."""
    with run_service(models, tmp_path / "log", "--workers", "1", "--lame-duck-s", "60", "--grace-s", "60") as service:
        service.process.send_signal(signal.SIGINT)
        wait_until(lambda: service.get("/readyz")[0] == 503, "it drains")
        assert service.stop() == 1


def test_settings_from_the_environment(models: Path, tmp_path: Path) -> None:
    """Each flag has an environment variable; a bad value is rejected with the name of the variable."""
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


def test_healthcheck_exit_codes(service: Service, unused: str) -> None:
    """``healthcheck`` exits with 0 for SERVING, 1 for an unknown service and 3 if there is no service."""
    healthy = run("healthcheck", "--address", service.grpc_address)
    assert (healthy.returncode, healthy.stdout) == (0, "SERVING\n")
    unknown = run("healthcheck", "--address", service.grpc_address, "--service", "nonesuch")
    assert unknown.returncode == 1
    expected = "expected digitserve.v1.DigitService or inference.GRPCInferenceService, or no --service"
    assert f"no service 'nonesuch'; {expected}" in unknown.stderr
    gone = run("healthcheck", "--address", unused)
    assert gone.returncode == 3
    assert "digitserve serve" in gone.stderr


def test_classify_prints_text_or_json(service: Service, unused: str, tmp_path: Path) -> None:
    """``classify`` prints one line or JSON object per image. A bad file is named and the exit code is 1; the others are
    still classified.
    """
    image = tmp_path / "four.png"
    Image.fromarray(echo_image(4)).save(image)
    (tmp_path / "two.raw").write_bytes(echo_image(1).tobytes() + echo_image(2).tobytes())
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
    assert run("classify", "--address", unused, str(image)).returncode == 3
    assert run("classify").returncode == 2

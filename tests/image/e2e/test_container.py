"""The container image at work: without options, with restricted permissions, with signals, and under load."""

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from grpc import insecure_channel

from digitserve.inference.model_folder import find_bundle
from support.bundles import write_echo_bundle
from support.certificates import make_certificate
from support.containers import RESTRICTED, Container, container
from support.digits import MODELS
from support.image import ROOT, free_port, run
from support.load import Load
from support.serving import command, wait_until

THREE = ("-v", f"{ROOT / 'examples' / 'three.png'}:/three.png:ro")
"""A picture of a 3."""

PROXIES = ("-e", "http_proxy=http://127.0.0.1:1", "-e", "https_proxy=http://127.0.0.1:1")
"""A proxy that does not exist: calls through it fail."""

OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)


HTTP_CALL = """
from urllib.request import urlopen
print(urlopen("http://127.0.0.1:8080/v1/classify", open("/three.png", "rb").read()).read().decode())
"""


def assert_it_reads_a_three(running: Container) -> None:
    """Classify the picture with the command in the container, which finds the service by the environment."""
    answer = json.loads(running.execute("digitserve", "classify", "--json", "/three.png"))
    assert answer["model"] == f"digits/{find_bundle(MODELS, 'digits').name}"
    assert (answer["label"], answer["verdict"]) == ("3", "VERDICT_ACCEPTED")


def test_a_container_without_options(image: str) -> None:
    """``docker run IMAGE`` serves the shipped model, is healthy, and writes no file. SIGINT ends it with exit code 0."""
    with container(image, "--network", "none", *THREE) as running:
        assert_it_reads_a_three(running)
        assert running.is_healthy()

        # Podman itself adds the user to /etc/passwd, and places where it mounts files.
        assert set(running.changes()) <= {"/etc", "/etc/passwd", "/etc/group", "/three.png"}
        assert running.execute("ls", "--almost-all", "/dev/shm") == ""  # noqa: S108 - not written to
        running.signal("SIGINT")
        assert running.exit_code() == 0


def test_a_restricted_container_of_any_user(image: str, tmp_path: Path) -> None:
    """Any user without HOME, a read-only root without writable folders, no capabilities, 512 MiB of memory, one CPU: it runs one
    worker, classifies, also by the HTTP API, and is healthy by its own health check. A worker that is killed is replaced.
    """
    limits = ("--user", "12345:0", "-e", "HOME=/nonexistent", "--memory", "512m", "--cpus", "1")
    with container(image, "--network", "none", *RESTRICTED, *limits, *THREE) as running:
        assert "1 x 1 threads, CPU budget 1" in running.log()
        assert running.execute("id", "-u").strip() == "12345"
        assert_it_reads_a_three(running)
        assert running.is_healthy()

        (worker,) = running.workers()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: worker not in running.workers(), "the worker has ended")
        wait_until(running.is_healthy, "another worker serves")
        assert_it_reads_a_three(running)
        answer = json.loads(running.execute("python3", "-c", HTTP_CALL))
        assert answer["predictions"][0]["label"] == "3"
        assert running.stop() == 0
        assert "Traceback" not in running.log()


def test_update_and_stop_under_load_lose_nothing(image: str, tmp_path: Path) -> None:
    """With the operator's own models, 512 MiB, one CPU and load, the container is healthy and changes to a version that is
    activated on the host. ``docker stop`` ends within its grace: each call gets its own answer, or UNAVAILABLE if it comes too late.
    """
    models = tmp_path / "models"
    write_echo_bundle(models)
    grpc_port, http_port = free_port(), free_port()
    ports = ("-e", f"DIGITSERVE_GRPC_PORT={grpc_port}", "-e", f"DIGITSERVE_HTTP_PORT={http_port}")
    mount = ("-v", f"{models}:/models:ro")
    limits = ("--memory", "512m", "--cpus", "1", "-e", "DIGITSERVE_HOST=127.0.0.1")
    with container(image, "--network", "host", *RESTRICTED, *limits, *ports, *mount) as running:
        service = SimpleNamespace(channel=lambda retries: insecure_channel(f"127.0.0.1:{grpc_port}", OWN_CONNECTION))
        with (
            Load(service, 8, wait_for_ready=False) as keeping,
            Load(service, 2, wait_for_ready=False, reconnect=True) as reconnecting,
        ):
            wait_until(lambda: keeping.outcomes["OK"] >= 500, "500 answers")
            wait_until(lambda: reconnecting.outcomes["OK"] >= 50, "50 answers to new connections")
            write_echo_bundle(models, 2)
            run(*command("models", "activate", "digits/2", "--models", str(models)))
            wait_until(lambda: "digits/2" in running.execute("digitserve", "healthcheck"), "version 2 serves")
            wait_until(running.is_healthy, "its health check succeeds")
            assert set(keeping.outcomes | reconnecting.outcomes) == {"OK"}
            assert running.stop() == 0
        assert set(keeping.outcomes | reconnecting.outcomes) == {"OK", "UNAVAILABLE"}
        assert '"drained"' in running.log()
        assert not running.inspect()["State"]["OOMKilled"]


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
def test_the_health_check_with_any_host_and_a_proxy(image: str, host: str) -> None:
    """The commands in the container find the service whatever its host is, and use no proxy for it."""
    with container(image, "--network", "none", *PROXIES, "-e", f"DIGITSERVE_HOST={host}", *THREE) as running:
        assert running.is_healthy()
        assert_it_reads_a_three(running)


def test_the_health_check_with_secure_access(image: str, tmp_path: Path) -> None:
    """With TLS, client certificates, tokens and a proxy, the health check of the image needs no further configuration."""
    made = make_certificate(tmp_path / "tls")
    (tmp_path / "tokens").write_text("a-token-0123456789\n")
    files = {
        "DIGITSERVE_TLS_CERTIFICATE": made.certificate, "DIGITSERVE_TLS_KEY": made.key,
        "DIGITSERVE_TLS_CLIENT_CA": made.certificate, "DIGITSERVE_TOKEN_FILE": tmp_path / "tokens",
    }  # fmt: skip
    options = [*PROXIES, *RESTRICTED, "--network", "none"]
    for variable, path in files.items():
        path.chmod(0o444)
        options += ["-v", f"{path}:/files/{variable}:ro", "-e", f"{variable}=/files/{variable}"]
    with container(image, *options) as running:
        assert running.is_healthy()
        assert "TLS" in running.log()

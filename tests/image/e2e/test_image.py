"""The container image, built from the Dockerfile on a base of Debian packages and run with restricted permissions."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from digitserve.inference.bundle import find_bundle
from support.bundles import echo_image
from support.certificates import make_certificate
from support.digits import MODELS
from support.image import free_port, run
from support.serving import PATIENCE_S, command, wait_until

CONTAINER = "digitserve-test"


@contextmanager
def container(image: str, *options: str) -> Iterator[tuple[int, int]]:
    """Run the container read-only, without capabilities, with 512 MiB and one CPU; return its gRPC and HTTP ports."""
    grpc_port, http_port = free_port(), free_port()
    run("podman", "rm", "--force", "--ignore", CONTAINER)
    run(
        "podman", "--runtime", "runc", "run", "--detach", "--name", CONTAINER, "--network", "host",
        "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--memory", "512m", "--cpus", "1",
        "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
        "-e", "DIGITSERVE_HOST=127.0.0.1", "-e", f"DIGITSERVE_GRPC_PORT={grpc_port}",
        "-e", f"DIGITSERVE_HTTP_PORT={http_port}", *options, image,
    )  # fmt: skip
    wait_until(lambda: "try" in run("podman", "logs", CONTAINER), "the banner")
    yield grpc_port, http_port
    run("podman", "rm", "--force", CONTAINER)


@pytest.fixture
def ports(image: str) -> Iterator[tuple[int, int]]:
    with container(image) as running:
        yield running


def test_the_image_has_no_training_packages_and_does_not_run_as_root(image: str) -> None:
    """The image runs as a fixed unprivileged user, has a health check, and contains neither TensorFlow nor pip."""
    config = json.loads(run("podman", "inspect", image))[0]
    assert config["Config"]["User"] == "65532:65532"
    assert config["HealthCheck" if "HealthCheck" in config else "Healthcheck"]["Test"][1:] == [
        "digitserve",
        "healthcheck",
    ]
    modules = run("podman", "--runtime", "runc", "run", "--rm", "--ulimit", "nofile=1024:1024", "--ulimit",
                  "nproc=1024:1024", "--entrypoint", "ls", image, "/opt/digitserve/lib/python3.11/site-packages")  # fmt: skip
    assert "onnxruntime" in modules.split()
    assert not {"tensorflow", "keras", "pip", "hatchling"} & set(modules.split())


def test_the_container_serves_within_its_cpu_budget_and_drains(ports: tuple[int, int], tmp_path: Path) -> None:
    """With one CPU it runs one worker; it classifies, is healthy and ready, and stops with exit code 0."""
    grpc_port, http_port = ports
    assert "1 x 1 threads, CPU budget 1" in run("podman", "logs", CONTAINER)
    digit = tmp_path / "seven.png"
    Image.fromarray(echo_image(7)).save(digit)
    output = run(*command("classify", "--json", "--address", f"127.0.0.1:{grpc_port}", str(digit)))
    assert json.loads(output)["model"] == f"digits/{find_bundle(MODELS, 'digits').name}"
    assert "digitserve ready" in run("podman", "exec", CONTAINER, "digitserve", "healthcheck")
    with urllib.request.urlopen(f"http://127.0.0.1:{http_port}/readyz", timeout=PATIENCE_S) as ready:
        assert ready.status == 200

    run("podman", "stop", "--time", "25", CONTAINER)

    assert run("podman", "inspect", "--format", "{{.State.ExitCode}}", CONTAINER).strip().splitlines()[-1] == "0"
    log = run("podman", "logs", CONTAINER)
    assert '"drained"' in log
    assert "Traceback" not in log


def test_the_health_check_works_with_secure_access(image: str, tmp_path: Path) -> None:
    """With TLS, client certificates, tokens and a proxy, the health check of the image needs no further configuration."""
    made = make_certificate(tmp_path / "tls")
    (tmp_path / "tokens").write_text("a-token-0123456789\n")
    files = {
        "DIGITSERVE_TLS_CERTIFICATE": made.certificate, "DIGITSERVE_TLS_KEY": made.key,
        "DIGITSERVE_TLS_CLIENT_CA": made.certificate, "DIGITSERVE_TOKEN_FILE": tmp_path / "tokens",
    }  # fmt: skip
    options = [
        "-e",
        "http_proxy=http://127.0.0.1:1",
        "-e",
        "https_proxy=http://127.0.0.1:1",
        "-e",
        "DIGITSERVE_HOST=0.0.0.0",
    ]
    for variable, path in files.items():
        path.chmod(0o444)
        options += ["-v", f"{path}:/files/{variable}:ro", "-e", f"{variable}=/files/{variable}"]
    with container(image, *options):
        test = json.loads(run("podman", "inspect", image))[0]
        health = test["HealthCheck" if "HealthCheck" in test else "Healthcheck"]["Test"][1:]
        assert "digitserve ready" in run("podman", "exec", CONTAINER, *health)
        assert "TLS" in run("podman", "logs", CONTAINER)

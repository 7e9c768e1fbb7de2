"""The manifests run: podman starts the image as Kubernetes would, from the rendered Deployment and from the runtime of KServe.

podman 4.3 runs a subset of Kubernetes. It applies image, arguments, environment, user, capabilities, read-only root file system,
CPU and memory. It has no probes of gRPC and no preStop: the test calls what the probes call. What is changed for podman is in
``for_podman``.
"""

import copy
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import grpc
import pytest
import yaml
from grpc_health.v1 import health_pb2

from digitserve.client import Client
from digitserve.inference.bundle import read_bundle
from digitserve.inference.model_folder import find_bundle
from digitserve.types import Framing
from support.digits import MODELS
from support.image import ROOT, free_port, run
from support.manifests import Object, find, load, render
from support.serving import PATIENCE_S, wait_until

POD = "digitserve-kube-test"
NUM_IMAGES = 10
"""The first golden images are clear digits; one of the later ones is blank."""

LIMITS = '[containers]\ndefault_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
"""For the container that podman adds to each pod: without it, runc may not be allowed to set its limits."""


def for_podman(pod: Object) -> Object:
    """Return a Pod that podman 4.3 can start, with its ports on free ports of this machine.

    Left out are fields of pods that podman does not know, and the probes, which it would not run without systemd.
    """
    (container,) = copy.deepcopy(pod["containers"])
    for port in container["ports"]:
        port |= {"hostPort": free_port(), "hostIP": "127.0.0.1"}
    container = {name: value for name, value in container.items() if not name.endswith("Probe") and name != "lifecycle"}
    known = {name: pod[name] for name in ("securityContext", "terminationGracePeriodSeconds", "volumes") if name in pod}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": POD, "labels": {"app": POD}},
        "spec": known | {"containers": [container]},
    }


class Running(NamedTuple):
    """A pod that podman runs.

    Attributes:
        name: of its container.
        ports: of this machine, by the name of the port of the container.
        podman: the command and its environment.
    """

    name: str
    ports: dict[str, int]
    podman: list[str]

    def address(self, port: str) -> str:
        """Return the address of a port."""
        return f"127.0.0.1:{self.ports[port]}"

    def inspect(self) -> Object:
        """Return podman's description of the container."""
        described: Object = json.loads(run(*self.podman, "inspect", self.name))[0]
        return described

    def logs(self) -> str:
        """Return what the container printed."""
        return run(*self.podman, "logs", self.name)

    def probe(self, probe: Object, port: str) -> bool:
        """Call health as the kubelet does for a gRPC probe; return whether it succeeds."""
        request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
        with grpc.insecure_channel(self.address(port)) as channel:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                health_pb2.HealthCheckRequest.SerializeToString,
                health_pb2.HealthCheckResponse.FromString,
            )
            try:
                answer = check(request, timeout=probe["timeoutSeconds"])
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def play(pod: Object, folder: Path) -> Iterator[Running]:
    """Run a pod with ``podman kube play``, and remove it."""
    (folder / "containers.conf").write_text(LIMITS)
    manifest = folder / "pod.yaml"
    manifest.write_text(yaml.safe_dump(pod))
    podman = ["env", f"CONTAINERS_CONF={folder / 'containers.conf'}", "podman", "--runtime", "runc"]
    (container,) = pod["spec"]["containers"]
    remove = [*podman, "pod", "rm", "--force", "--ignore", "--time", "0", POD]
    run(*remove)
    try:
        run(*podman, "kube", "play", "--network", "bridge", str(manifest))
        ports = {port["name"]: port["hostPort"] for port in container["ports"]}
        yield Running(f"{POD}-{container['name']}", ports, podman)
    finally:
        run(*remove)


def expected_labels() -> list[str]:
    """Return the labels of the golden outputs of the served bundle."""
    bundle = read_bundle(find_bundle(MODELS, "digits"))
    return [bundle.manifest.labels[row.argmax()] for row in bundle.golden.probabilities[:NUM_IMAGES]]


def classified(address: str) -> list[str]:
    """Return the labels that a service gives to the golden images of the served bundle."""
    images = read_bundle(find_bundle(MODELS, "digits")).golden.images[:NUM_IMAGES]
    with Client(address, timeout_s=PATIENCE_S) as client:
        return [each.label for each in client.classify(images, framing=Framing.AS_IS)]


@pytest.fixture
def deployment(image: str, tmp_path: Path) -> Object:
    """Return the Deployment of the base, rendered by a kustomization of a user, who sets the name of the image."""
    kustomization = {
        "resources": ["kubernetes/base"],
        "images": [{"name": "digitserve", "newName": image, "newTag": "latest"}],
    }
    shutil.copytree(ROOT / "deploy/kubernetes", tmp_path / "user/kubernetes")
    (tmp_path / "user/kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return find(render(tmp_path / "user"), "Deployment")


def test_the_deployment_runs_answers_and_drains(deployment: Object, tmp_path: Path) -> None:
    """The rendered pod starts restricted and within its limits; its probes succeed; it answers Classify; it stops within its grace
    period, with exit code 0 and all requests answered.
    """
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    port = next(port["name"] for port in container["ports"] if port["containerPort"] == 50051)
    with play(for_podman(pod), tmp_path) as running:
        described = running.inspect()
        limits = described["HostConfig"]
        assert limits["ReadonlyRootfs"] and not described["EffectiveCaps"]
        assert (limits["NanoCpus"], limits["Memory"]) == (1_000_000_000, 512 << 20)
        assert described["Config"]["User"].startswith("65532")
        assert "no-new-privileges" in limits["SecurityOpt"]

        wait_until(lambda: running.probe(container["startupProbe"], port), "the startup probe succeeds")
        for name in ("readinessProbe", "livenessProbe"):
            assert running.probe(container[name], port)
        wait_until(lambda: "1 of 1 workers ready" in run(*running.podman, "exec", running.name, "digitserve", "healthcheck"),
                   "the health check of the image agrees")  # fmt: skip
        assert "1 x 1 threads, CPU budget 1" in running.logs()
        assert classified(running.address(port)) == expected_labels()

        grace_s = pod["terminationGracePeriodSeconds"]
        run(*running.podman, "pod", "stop", "--time", str(grace_s), POD)
        assert running.inspect()["State"]["ExitCode"] == 0
        log = running.logs()
        assert '"drained"' in log and "Traceback" not in log


def test_the_runtime_of_kserve_serves_a_mounted_bundle(image: str, tmp_path: Path) -> None:
    """The container of the ServingRuntime, merged into a pod as the controller of KServe does, serves the bundle in /mnt/models by
    the name of the InferenceService; its readiness probe succeeds.
    """
    (runtime,), (service,) = render(ROOT / "deploy/kserve"), load(ROOT / "deploy/kserve/inference-service.yaml")
    (container,) = copy.deepcopy(runtime["spec"]["containers"])
    name = service["metadata"]["name"]
    container["args"] = [each.replace("{{.Name}}", f"my-{name}") for each in container["args"]]
    container["image"] = image
    container["volumeMounts"] = [{"name": "model", "mountPath": "/mnt/models", "readOnly": True}]
    # Not in a folder of pytest, because those are for the user who runs the tests only.
    with TemporaryDirectory(dir="/var/tmp") as folder:
        Path(folder).chmod(0o755)
        shutil.copytree(find_bundle(MODELS, "digits"), folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
        volume = {"name": "model", "hostPath": {"path": folder, "type": "Directory"}}
        with play(for_podman({"containers": [container], "volumes": [volume]}), tmp_path) as running:
            wait_until(lambda: running.probe(container["readinessProbe"], "h2c"), "the readiness probe succeeds")
            assert classified(running.address("h2c")) == expected_labels()
            with Client(running.address("h2c"), timeout_s=PATIENCE_S) as client:
                assert client.model().name == f"my-{name}"

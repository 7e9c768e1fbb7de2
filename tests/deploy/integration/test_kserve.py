"""The runtime for KServe: what its controller expects, and the service with the arguments of the runtime."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from digitserve.inference import bundle
from digitserve.open_inference import open_inference_pb2 as oip
from digitserve.protocol.names import MODEL_INFER
from support.bundles import echo_image, write_echo_bundle
from support.infer_checks import infer_request, tensors
from support.load import classify
from support.manifests import RELEASE, ROOT, Object, load, render
from support.policies import graceful, images, probes, resources, restricted_containers
from support.serving import PATIENCE_S, run_service

FOLDER = ROOT / "deploy/kserve"
MODELS = "/mnt/models"
"""Where the storage initializer of KServe puts the content of ``storageUri``."""


@pytest.fixture
def runtime() -> Object:
    (found,) = render(FOLDER)
    return found


@pytest.fixture
def service() -> Object:
    (found,) = load(FOLDER / "inference-service.yaml")
    return found


def test_the_runtime_is_what_the_controller_expects(runtime: Object) -> None:
    """One container with the name that KServe looks for, one port that it routes HTTP/2 to, and a readiness probe of gRPC, because
    it would otherwise only connect. The image has the version of the package.
    """
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"
    (port,) = container["ports"]
    assert port["name"] == "h2c" and f"--grpc-port={port['containerPort']}" in container["args"]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["grpc"] == {"port": port["containerPort"]}
    metrics = runtime["spec"]["annotations"]
    assert f"--http-port={metrics['prometheus.io/port']}" in container["args"]
    assert (metrics["prometheus.io/scrape"], metrics["prometheus.io/path"]) == ("true", "/metrics")
    assert container["image"] == f"digitserve:{RELEASE}"


def test_the_service_selects_the_runtime(runtime: Object, service: Object) -> None:
    """The example names the runtime, a format and a protocol that the runtime supports. The format's version is that of bundles."""
    model = service["spec"]["predictor"]["model"]
    (supported,) = runtime["spec"]["supportedModelFormats"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] == supported["name"]
    assert supported["version"] == str(bundle.FORMAT)
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_the_runtime_follows_the_policies(runtime: Object, service: Object) -> None:
    """The pod that KServe makes of both is restricted, sized and probed as that of the Deployment, and has time to drain: KServe adds
    no preStop, so the service itself accepts requests for some seconds after SIGTERM.
    """
    pod = service["spec"]["predictor"] | {"containers": runtime["spec"]["containers"]}
    objects = [{"kind": "Deployment", "spec": {"template": {"spec": pod}}}]
    for check in (restricted_containers, images, resources, probes, graceful):
        assert [fault for fault in check(objects) if fault != "preStop is missing"] == []
    (variable,) = runtime["spec"]["containers"][0]["env"]
    assert variable["name"] == "DIGITSERVE_LAME_DUCK_S" and float(variable["value"]) >= 5


@pytest.fixture(params=["bundle", "models"])
def mounted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Return a folder as the storage initializer leaves it: the content of a bundle, or a folder of models."""
    folder = tmp_path / "mnt" / "models"
    if request.param == "models":
        write_echo_bundle(folder)
    else:
        shutil.copytree(write_echo_bundle(tmp_path), folder)
    # Model and storage initializer belong to other users.
    for path in folder.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in (each for each in folder.rglob("*") if each.is_dir()):
        path.chmod(0o755)


def test_the_runtime_serves_a_bundle_by_the_name_of_the_service(
    runtime: Object, service: Object, mounted: Path, tmp_path: Path
) -> None:
    """With the arguments and the environment of the runtime, the service loads a bundle or a folder of models. Clients call
    ModelInfer with the name of the InferenceService, which is also in the answers; Classify works, too.
    """
    (container,) = runtime["spec"]["containers"]
    name = "my-" + service["metadata"]["name"]
    arguments = [each.replace("{{.Name}}", name).replace(MODELS, str(mounted)) for each in container["args"]]
    assert arguments[:2] == ["serve", f"--models={mounted}"]
    # The last flag counts: the test needs free ports, and no time for a load balancer.
    ports = ("--grpc-port", "0", "--http-port", "0", "--workers", "1", "--lame-duck-s", "0")
    environment = {each["name"]: each["value"] for each in container["env"]}
    with run_service(mounted, tmp_path / "log", *arguments[1:], *ports, **environment) as running:
        with grpc.insecure_channel(running.grpc_address) as channel:
            assert classify(channel, 5) == 5
            infer = channel.unary_unary(
                MODEL_INFER.path, oip.ModelInferRequest.SerializeToString, oip.ModelInferResponse.FromString
            )
            request = infer_request(echo_image(7).tobytes(), (1, 28, 28, 1), model_name=name)
            answer = infer(request, timeout=PATIENCE_S)
            assert (answer.model_name, answer.model_version) == (name, "1")
            assert tensors(answer)["ood_score"].tolist() == [7]
            request.model_name = "digits"
            with pytest.raises(grpc.RpcError, match=f"NOT_FOUND.*{name}"):
                infer(request, timeout=PATIENCE_S)
        assert running.stop() == 0

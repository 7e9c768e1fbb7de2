"""Custom resources of the Prometheus operator and of KServe, checked with the definitions in published packages.

The definitions themselves are in no package index. These packages are made from them.
"""

import copy
import json
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest

from support.kserve_models import Fields, read_fields, unknown_fields
from support.manifests import ROOT, Object, load, render, render_example

PROMETHEUS_OPERATOR = ["cloudcoil-models-prometheus-operator==0.80.1.0", "cloudcoil==0.6.0"]
KSERVE = ["--no-deps", "kserve==0.21.0"]

VALIDATE = """
import json, sys
from cloudcoil.models.prometheus_operator import v1

for described in json.load(sys.stdin):
    model = getattr(v1, described["kind"]).model_validate(described)
    print(json.dumps(model.model_dump(mode="json", by_alias=True, exclude_unset=True)))
"""
"""Prints each object after validation by its model, which rejects wrong types and drops unknown fields."""


def install(folder: Path, *requirements: str) -> Path:
    """Install packages into a folder of their own."""
    options = ["--quiet", "--disable-pip-version-check", "--no-compile", "--target", str(folder)]
    installed = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, *requirements],
        capture_output=True, text=True, timeout=170, check=False,
    )  # fmt: skip
    assert installed.returncode == 0, installed.stderr
    return folder


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the models of the Prometheus operator."""
    return install(tmp_path_factory.mktemp("operator"), *PROMETHEUS_OPERATOR)


@pytest.fixture(scope="module")
def kserve(tmp_path_factory: pytest.TempPathFactory) -> Fields:
    """Return the fields of KServe's custom resources."""
    return read_fields(install(tmp_path_factory.mktemp("kserve"), *KSERVE))


def known(operator: Path, objects: list[Object]) -> list[Object]:
    """Return the part of each object that the models of the operator know; fail if a type is wrong."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(operator)!r})\n{VALIDATE}"],
        input=json.dumps(objects), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_custom_resources_of_the_prometheus_operator(operator: Path, tmp_path: Path) -> None:
    """The operator knows all fields and their types, also those in the example of the documentation; a misspelled field would be
    noticed.
    """
    rendered = [*render("overlays/monitoring"), *render_example(tmp_path)]
    objects = [each for each in rendered if each["apiVersion"].startswith("monitoring.coreos.com/")]
    assert [each["kind"] for each in objects] == ["PrometheusRule", "ServiceMonitor"] * 2
    misspelled = copy.deepcopy(objects[1])
    misspelled["spec"]["endpoints"][0]["intervall"] = "15s"
    assert known(operator, [*objects, misspelled]) == [*objects, objects[1]]


def test_custom_resources_of_kserve(kserve: Fields) -> None:
    """KServe knows all fields; Kubernetes knows those of the containers and of the pod, with their types."""
    (runtime,), (service,) = render(ROOT / "deploy/kserve"), load(ROOT / "deploy/kserve/inference-service.yaml")
    assert [*unknown_fields(runtime, "V1alpha1ServingRuntime", kserve)] == []
    assert [*unknown_fields(service, "V1beta1InferenceService", kserve)] == []
    pod = {name: value for name, value in service["spec"]["predictor"].items() if name not in {"model", "minReplicas"}}
    pod["containers"] = runtime["spec"]["containers"]
    for version in ("1.31", "1.37"):
        described = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "digits"}, "spec": pod}
        kubernetes_validate.validate(described, version, strict=True)

    runtime["spec"]["containers"] = runtime["spec"]["supportedModelFormats"][0]["autoselect"] = []
    service["spec"]["predictor"]["model"]["protocol"] = "v2"
    assert [*unknown_fields(runtime, "V1alpha1ServingRuntime", kserve)] == [".spec.supportedModelFormats[0].autoselect"]
    assert [*unknown_fields(service, "V1beta1InferenceService", kserve)] == [".spec.predictor.model.protocol"]

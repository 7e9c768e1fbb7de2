"""The manifests of ``deploy/kubernetes``, rendered by kubectl, against the schemas of Kubernetes and policies of ours."""

import copy
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from support.manifests import FOLDERS, KUBERNETES, RELEASE, ROOT, container, find, load, render, render_example
from support.policies import violations

VERSIONS = ("1.31", "1.37")
"""Oldest and newest version of Kubernetes that the documentation claims."""

CUSTOM = {"ServiceMonitor", "PrometheusRule"}
"""Kinds without a schema in Kubernetes; ``test_custom_resources.py`` checks them."""


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", FOLDERS)
def test_manifests_have_the_schema_of_kubernetes(folder: str, version: str) -> None:
    """Each folder renders without a warning, and the oldest and newest Kubernetes know all fields and their types."""
    objects = render(folder)
    assert {each["kind"] for each in objects} >= {"Deployment", "Service", "PodDisruptionBudget", "NetworkPolicy"}
    for each in objects:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, version, strict=True)


def test_the_schema_rejects_an_unknown_field() -> None:
    """A misspelled field, which Kubernetes would ignore, fails the check of the schema."""
    objects = copy.deepcopy(render("base"))
    container(objects)["readinessProb"] = container(objects).pop("readinessProbe")
    with pytest.raises(kubernetes_validate.ValidationError, match="readinessProb"):
        kubernetes_validate.validate(find(objects, "Deployment"), VERSIONS[0], strict=True)


def test_the_documentation_states_the_versions() -> None:
    """The versions that are validated are those that the documentation claims."""
    for page in ("docs/how-to/kubernetes.md", "docs/ecosystem.md"):
        assert f"{VERSIONS[0]} to {VERSIONS[1]}" in (ROOT / page).read_text(), page


@pytest.mark.parametrize("folder", FOLDERS)
def test_manifests_follow_the_policies(folder: str) -> None:
    """Restricted, isolated, probed, drained in time, spread, and consistent: each folder passes all policies."""
    assert violations(render(folder)) == []


def test_the_tag_of_the_image_is_the_version_of_the_package() -> None:
    """Manifests of a release start the image of this release; the label has the same version."""
    for folder in FOLDERS:
        objects = render(folder)
        tag = "cuda" if folder == "overlays/cuda" else RELEASE
        assert container(objects)["image"] == f"digitserve:{tag}"
        assert find(objects, "Deployment")["metadata"]["labels"]["app.kubernetes.io/version"] == RELEASE


@pytest.mark.parametrize("page", ["install", "kubernetes"])
def test_commands_of_the_guides_use_the_version_of_the_package(page: str) -> None:
    """Names of wheels and tags of images in the guides have the version of the package."""
    text = (ROOT / f"docs/how-to/{page}.md").read_text()
    assert set(re.findall(r"(?:digitserve[-:]|newTag: )(\d+\.\d+\.\d+)", text)) == {RELEASE}


def test_a_gpu_is_used_or_the_service_does_not_start() -> None:
    """The overlay for GPUs sets the device, so that the image for CPUs cannot occupy a GPU without using it."""
    assert {"name": "DIGITSERVE_DEVICE", "value": "cuda"} in container(render("overlays/cuda"))["env"]


def test_the_autoscaler_uses_a_metric_that_is_recorded_and_made_available(tmp_path: Path) -> None:
    """The rule of prometheus-adapter turns a series of the rules into the metric of the autoscaler. With the placeholders of the
    adapter filled in, its query is PromQL.
    """
    objects = render("overlays/monitoring")
    (rule,) = load(KUBERNETES / "components/monitoring/prometheus-adapter.yaml")[0]["rules"]["custom"]
    (metric,) = find(objects, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    series = re.fullmatch(r'\{__name__="(.+)"\}', rule["seriesQuery"])
    groups = find(objects, "PrometheusRule")["spec"]["groups"]
    records = {each["record"]: each["expr"] for group in groups for each in group["rules"] if "record" in each}
    assert series is not None and series[1] in records
    assert {"namespace", "pod"} <= {*re.findall(r"\w+", records[series[1]])}
    filled = {".Series": series[1], ".LabelMatchers": 'namespace="digits",pod=~"a|b"', ".GroupBy": "pod"}
    query = re.sub("<<(.+?)>>", lambda found: filled[found[1]], rule["metricsQuery"])
    promtool = shutil.which("promtool") or pytest.skip("promtool is not installed")
    written = {"groups": [{"name": "adapter", "rules": [{"record": "filled", "expr": query}]}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(written))
    checked = subprocess.run(
        [promtool, "check", "rules", str(tmp_path / "rules.yaml")], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_all_components_can_be_combined(tmp_path: Path) -> None:
    """The example of the documentation, which combines components and sets the name of the image, renders, has the schema of
    Kubernetes, and passes all policies.
    """
    objects = render_example(tmp_path)
    assert violations(objects) == []
    assert container(objects)["image"].startswith("registry.example.com/")
    variables = {each["name"] for each in container(objects)["env"]}
    assert variables >= {"DIGITSERVE_TLS_CERTIFICATE", "DIGITSERVE_TLS_CLIENT_CA", "DIGITSERVE_TOKEN_FILE"}
    for each in objects:
        if each["kind"] not in CUSTOM:
            kubernetes_validate.validate(each, VERSIONS[1], strict=True)

"""What is in the container image, and its commands."""

import json
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from digitserve.inference.model_folder import find_bundle
from support.containers import run_once
from support.digits import MODELS
from support.image import BASE, run

MAX_MB = 160
"""Size without the base image. The image has 146 MB: numpy 54, onnxruntime 31, Pillow 21, grpc 19, the project and its models 6."""

INSTALLED = """
import json
from importlib.metadata import distributions
print(json.dumps({found.name: found.requires or [] for found in distributions()}))
"""


def test_the_image_is_small_and_labelled(image: str) -> None:
    """The image adds at most 160 MB to its base. It runs as a fixed user without privileges, has a health check, and labels with
    version and revision.
    """
    (added,), (base,) = (json.loads(run("podman", "image", "inspect", name)) for name in (image, BASE))
    assert added["Size"] - base["Size"] < MAX_MB * 1_000_000
    assert added["User"] == "65532:65532"
    assert added["HealthCheck" if "HealthCheck" in added else "Healthcheck"]["Test"][1:] == [
        "digitserve",
        "healthcheck",
    ]
    labels = {name.rpartition(".")[2]: text for name, text in added["Labels"].items()}
    assert run_once(image, "--version").stdout.split()[-1] == labels["version"]
    assert labels["revision"].removesuffix("-dirty") == run("git", "rev-parse", "HEAD").strip()


def test_the_image_has_what_the_service_needs_and_nothing_else(image: str) -> None:
    """Each installed distribution is required by digitserve with the extras serve and bench, and each that is required is
    installed: no TensorFlow, no tools to build or install.
    """
    printed = run_once(image, "-c", INSTALLED, options=("--entrypoint", "python")).stdout
    installed = {canonicalize_name(name): requires for name, requires in json.loads(printed).items()}
    needed, found = {"digitserve"}, set()
    while needed - found:
        name = (needed - found).pop()
        found.add(name)
        extras = ("serve", "bench") if name == "digitserve" else ("",)
        for requirement in map(Requirement, installed[name]):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
                needed.add(canonicalize_name(requirement.name))
    assert found == set(installed)


def test_the_image_runs_the_other_commands(image: str) -> None:
    """``docker run IMAGE COMMAND`` runs any command: help, the list of the models, the check of a file."""
    assert "Classify images of handwritten digits" in run_once(image, "--help").stdout
    listed = run_once(image, "models", "list").stdout
    assert all(f"{name}/{find_bundle(MODELS, name).name}" in listed for name in ("digits", "digits-int8"))


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_a_missing_model_is_named(image: str, tmp_path: Path, folder: str) -> None:
    """Without a model the container ends with code 1, and says in which folder it looked."""
    tmp_path.chmod(0o755)
    mounts = ("-v", f"{tmp_path}:/models:ro") if folder == "empty" else ("-e", "DIGITSERVE_MODELS=/elsewhere")
    done = run_once(image, options=mounts)
    assert done.returncode == 1
    assert ("/models" if folder == "empty" else "/elsewhere") in done.stderr
    assert "Traceback" not in done.stderr

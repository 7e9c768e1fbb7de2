"""Kubernetes manifests as objects: rendered by kubectl, or read from files."""

import functools
import re
import shutil
import subprocess
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RELEASE = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
"""Version of the package in the tree, which the installed metadata may not have yet."""

KUBERNETES = ROOT / "deploy/kubernetes"
FOLDERS = ("base", *sorted(f"overlays/{path.parent.name}" for path in KUBERNETES.glob("overlays/*/kustomization.yaml")))
"""Folders that users apply, below ``KUBERNETES``."""

Object = dict[str, Any]


@functools.cache
def _render(folder: Path) -> str:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    rendered = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert rendered.returncode == 0, rendered.stderr
    assert not rendered.stderr, f"kustomize warns: {rendered.stderr}"
    return rendered.stdout


def render(folder: Path | str) -> list[Object]:
    """Return the objects that ``kubectl apply -k`` creates from a folder, or from one below ``KUBERNETES``."""
    return list(yaml.safe_load_all(_render(KUBERNETES / folder)))


def render_example(folder: Path) -> list[Object]:
    """Return the objects of the kustomization in the documentation, which combines all components for CPUs.

    Args:
        folder: an empty one, for a copy of what it refers to.
    """
    text = (ROOT / "docs/how-to/kubernetes.md").read_text()
    (example,) = re.findall(r"    # my-cluster/kustomization.yaml\n((?:    .*\n)+)", text)
    (folder / "my-cluster").mkdir()
    (folder / "my-cluster/kustomization.yaml").write_text(textwrap.dedent(example))
    shutil.copytree(KUBERNETES, folder / "deploy/kubernetes")
    return render(folder / "my-cluster")


def load(path: Path) -> list[Object]:
    """Return the objects of a file."""
    return list(yaml.safe_load_all(path.read_text()))


def find(objects: list[Object], kind: str) -> Object:
    """Return the only object of a kind."""
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


def container(objects: list[Object]) -> Object:
    """Return the only container of the Deployment."""
    (found,) = find(objects, "Deployment")["spec"]["template"]["spec"]["containers"]
    return found

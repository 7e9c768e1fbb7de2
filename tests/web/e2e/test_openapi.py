"""schemathesis sends requests that it derives from the OpenAPI description, in an environment of its own."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest

from support.digits import MODELS
from support.serving import PATIENCE_S, Service, run_service

ROOT = MODELS.parent


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False, cwd=cwd,
        env=os.environ | {"PYTHONPATH": "", "NO_COLOR": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def schemathesis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command, in a new environment with the packages of ``requirements/schemathesis.txt``."""
    folder, uv = tmp_path_factory.mktemp("schemathesis") / "environment", Path(sys.executable).with_name("uv")
    run(uv, "venv", "--quiet", "--no-project", f"--python={sys.executable}", folder, cwd=folder.parent)
    lock = ROOT / "requirements" / "schemathesis.txt"
    run(uv, "pip", "sync", "--quiet", "--require-hashes", f"--python={folder}", lock, cwd=ROOT)
    return folder / "bin" / "schemathesis"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with run_service(MODELS, tmp_path_factory.mktemp("log") / "log", "--workers", "1") as running:
        yield running


def test_answers_are_as_described(service: Service, schemathesis: Path, tmp_path: Path) -> None:
    """Whatever is sent, valid or not, gets one of the described statuses, types and bodies, and none is a fault of the service.

    Without the check that valid data is accepted: the bytes are random, and no images.
    """
    printed = run(
        schemathesis, "run", f"{service.http_url}/v1/openapi.json", "--seed", "1", "--max-examples", "30",
        "--exclude-checks", "positive_data_acceptance", cwd=tmp_path,
    )  # fmt: skip
    counts = re.search(r"(\d+) generated, (\d+) passed", printed)
    assert counts and counts[1] == counts[2] and int(counts[1]) > 50, printed
    levels = {json.loads(line)["level"] for line in service.log.read_text().splitlines()}
    assert levels <= {"info", "warning"}


def test_all_routes_are_described(service: Service) -> None:
    """The description has each path of the API, and is OpenAPI 3.1."""
    description = json.loads(service.get("/v1/openapi.json")[1])
    assert description["openapi"].startswith("3.1.")
    assert set(description["paths"]) == {"/v1/classify", "/v1/read", "/v1/model", "/v1/openapi.json"}


@pytest.mark.parametrize("query", ["", "top_k=10&explain=true", "width=28&height=28"])
def test_answers_with_predictions_are_as_described(service: Service, query: str) -> None:
    """The answer for an image has the described fields, and no others."""
    description = json.loads(service.get("/v1/openapi.json")[1])
    schemas = {
        name: schema | {"additionalProperties": False} for name, schema in description["components"]["schemas"].items()
    }
    body = bytes(28 * 28) if "width" in query else (ROOT / "examples" / "three.png").read_bytes()
    with urllib.request.urlopen(f"{service.http_url}/v1/classify?{query}", body, PATIENCE_S) as response:
        answer = json.loads(response.read())
    schema = {"components": {"schemas": schemas}, "$ref": "#/components/schemas/ClassifyResponse"}
    jsonschema.Draft202012Validator(schema).validate(answer)

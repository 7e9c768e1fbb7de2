"""The commands and programs in README, tutorials, how-to guides and the page of the HTTP API work as written.

Each of them runs against a service with the shipped model, except those in ``NOT_RUN``, which has the reason. So a new command
in these pages is tested without further work.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import click
import numpy as np
import pytest
import yaml
from PIL import Image

from digitserve.cli import main
from digitserve.inference.model_folder import find_bundle
from support.digits import MODELS, scanned_digits
from support.doc_commands import PAGES, ROOT, Step, steps
from support.prometheus import command
from support.serving import PATIENCE_S, Service, run_service

CLUSTER = "needs a cluster; tests/deploy/integration checks the manifests"
CONTAINERS = "needs a container engine; tests/image runs the image, tests/deploy/integration/test_compose.py compose"
TRAINING = "needs TensorFlow; tests/training/e2e trains, evaluates and exports"
SERVES = "runs until it is stopped; tests/service/e2e starts services with these flags"
SECURE = "needs a service with TLS; tests/client/e2e/test_secure_commands.py has one"
NOT_RUN = {
    r"^make (serve|train)|^make test|^make image TAG": "sets up an environment or an image; CI calls these targets",
    r"docker (run|push|compose|exec)": CONTAINERS,
    r"^(kubectl|helm) |^logs": CLUSTER,
    r"^(\.venv/bin/)?digitserve-train |^export DIGITSERVE_(MNIST|STROKES)|DIGITSERVE_TRAIN_COMPLETE": TRAINING,
    r"^(\S*/)?digitserve serve": SERVES,
    r"--ca |https://digits.example|openssl s_client|ca=\"ca.pem\"": SECURE,
    r"digits\.example|localhost:8081 ": "a service on another machine, or behind Envoy; tests/deploy/e2e/test_scale.py has both",
    r"^(\S*/)?digitserve top(?!.*--once)": "runs until it is stopped; tests/service/e2e/test_top.py stops it",
    r"^digitserve bench": "takes 10 s; tests/bench/e2e measures with these flags",
    r"\bpip (install|download|uninstall)|^python3 -m venv": "needs a package index; tests/deploy/e2e/test_packages.py installs",
    r"=(zsh|fish)_source": "needs another shell; tests/service/unit/test_cli.py checks what is printed",
    r"^envoy ": "runs until it is stopped; tests/deploy/e2e/test_scale.py starts Envoy",
    r"^scans/|^file,(label|text)|^(form-1|photos|fields|pages)/": "a list of files",
    r"^client --HTTP|^decode >|^browser, operator --HTTP|^/metrics of": "a diagram",
    r"^python -m benchmarks\.": "takes minutes on an otherwise idle machine",
    r"^package main": "takes 4 s; tests/client/e2e/test_examples.py builds it with the packages that are compiled there",
    r"tritonclient": "needs protobuf 6; tests/client/e2e has an environment with tritonclient",
    r"connectrpc": "needs Envoy; tests/deploy/e2e/test_scale.py",
}
"""By pattern: why the commands and texts that it matches do not run here."""

OUTPUTS = {
    r"classify --top-k 3 your-digit.png": r"your-digit.png: {label}  ",
    r"^curl.*digit.png.*v1/classify": r'"label": ?"{label}"',
    r"(?s:import Image(?!.*client\.read))|urlopen|await fetch": r"{label} [\d.]+ \w+",
    r"GetModel": r'"name": "digits"',
    r"models list": r"digits/\d+",
    r"classify --json": r'"label": ?"',
}
"""By pattern: what these commands print."""


def reason_not_to_run(step: Step) -> str | None:
    """Return why a step does not run here; None if it runs."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, step.text, re.MULTILINE)), None)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run the service with the shipped model."""
    with run_service(MODELS, tmp_path_factory.mktemp("service") / "log", "--workers", "1") as running:
        yield running


@pytest.fixture(scope="module")
def label() -> str:
    """Return the digit in the pictures of ``folder``."""
    return str(scanned_digits()[1][0])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a working directory with what the commands read: a copy of the repository's files, pictures, arrays."""
    for name in ("deploy", "models", "examples"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("node_modules", "active"))
    shutil.copy(ROOT / "examples" / "request.json", tmp_path)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    digit = 255 - np.asarray(scanned_digits()[0][0])
    picture = Image.fromarray(digit, "L").resize((160, 160), Image.Resampling.BICUBIC)
    for name in ("your-digit.png", "digit.png", "scan.jpg", "scan.tif", "page.jpg", "meter.jpg", "form.png", "IMAGE"):
        picture.save(tmp_path / name, format="PNG" if name == "IMAGE" else None)
    np.save(tmp_path / "images.npy", np.asarray(picture))
    for name in ("images.raw", "pixels.bin"):
        (tmp_path / name).write_bytes(bytes(28 * 28))
    return tmp_path


def run_step(step: Step, folder: Path, service: Service) -> subprocess.CompletedProcess[str]:
    """Run a command or program against the service."""
    text = re.sub(r"(127\.0\.0\.1|localhost|digitserve):50051", service.grpc_address, step.text)
    text = re.sub(r"(127\.0\.0\.1|localhost):8080", service.http_url.removeprefix("http://"), text)
    text = re.sub(r"\bdigits/\d+", f"digits/{find_bundle(MODELS, 'digits').name}", text.replace("FOLDER", "models"))
    grpc_port, http_port = (address.rpartition(":")[2] for address in (service.grpc_address, service.http_url))
    environment = os.environ | {
        "DIGITSERVE_GRPC_PORT": grpc_port, "DIGITSERVE_HTTP_PORT": http_port, "HOME": str(folder),
        "PATH": f"{folder / '.venv' / 'bin'}:{os.environ['PATH']}",
    }  # fmt: skip
    if step.language == "python":
        arguments = [sys.executable, "-c", text]
    elif step.language == "js":
        arguments = [shutil.which("node") or pytest.skip("node is not installed"), "--input-type=module", "-e", text]
    else:
        arguments = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )


def check_promql(query: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Parse a query of Prometheus."""
    rules = folder / "rules.yaml"
    rules.write_text(yaml.safe_dump({"groups": [{"name": "page", "rules": [{"record": "a:b", "expr": query}]}]}))
    return subprocess.run([command("promtool"), "check", "rules", rules], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_work(page: Path, folder: Path, service: Service, label: str) -> None:
    """Commands and programs end with exit code 0 and print what is expected; YAML, JSON and queries are valid."""
    for step in steps(page):
        if reason_not_to_run(step):
            continue
        if step.language == "yaml":
            assert yaml.safe_load(step.text)
        elif step.language == "json":
            assert json.loads(step.text)
        else:
            is_query = step.text.startswith("promql: ")
            ended = check_promql(step.text[8:], folder) if is_query else run_step(step, folder, service)
            assert ended.returncode == 0, f"{step}\n{ended.stdout}{ended.stderr}"
            for pattern, expected in OUTPUTS.items():
                assert not re.search(pattern, step.text) or re.search(expected.format(label=label), ended.stdout), step


@pytest.mark.parametrize("pattern", NOT_RUN)
def test_each_reason_not_to_run_applies(pattern: str) -> None:
    """Each pattern of ``NOT_RUN`` matches a command of a page, so that the table is not longer than needed."""
    assert any(re.search(pattern, step.text, re.MULTILINE) for page in PAGES for step in steps(page))


def commands(program: str) -> list[Step]:
    """Return the calls of a command in all pages."""
    return [step for page in PAGES for step in steps(page) if re.match(rf"(\S*/)?{program} ", step.text)]


def parse(command: click.Command, arguments: list[str], parent: click.Context | None = None) -> None:
    """Parse a command line without running it.

    Raises:
        click.UsageError: a command, option or value does not exist.
    """
    context = command.make_context(command.name, list(arguments), parent=parent)
    if isinstance(command, click.Group):
        _, child, rest = command.resolve_command(context, context._protected_args + context.args)
        assert child is not None
        parse(child, rest, context)


@pytest.mark.parametrize("step", commands("digitserve"), ids=str)
def test_options_of_documented_commands_exist(step: Step) -> None:
    """All calls of ``digitserve`` have valid commands, options and values, also those that do not run here."""
    parse(main, shlex.split(step.text.partition(" | ")[0])[1:])


@pytest.mark.skipif(find_spec("keras") is None, reason="needs the extra training")
@pytest.mark.parametrize("step", commands("digitserve-train"), ids=str)
def test_options_of_documented_training_commands_exist(step: Step) -> None:
    """The same for ``digitserve-train``."""
    from digitserve_training.cli import main as train  # noqa: PLC0415 - needs the extra

    parse(train, shlex.split(step.text)[1:])


def test_documented_targets_exist() -> None:
    """Each ``make`` in the pages names a target."""
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {step.text.split()[1] for step in commands("make")} <= targets

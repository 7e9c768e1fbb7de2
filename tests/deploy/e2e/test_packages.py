"""The built package in clean environments: what it contains, the light client, both ends of the dependencies, the service."""

import json
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from PIL import Image

from digitserve.cli.exit_codes import ExitCode
from digitserve.inference.model_folder import find_bundle
from support.bundles import echo_image, write_echo_bundle
from support.digits import MODELS
from support.packages import ROOT, Environment, build
from support.serving import Service, run_service

PACKAGES = {"digitserve": ROOT / "service", "digitserve_training": ROOT / "training"}
LIGHT = {
    "click", "googleapis-common-protos", "grpcio", "grpcio-health-checking", "grpcio-status", "numpy", "pillow", "protobuf",
}  # fmt: skip
INSTALLED = (
    "from importlib.metadata import distributions as d; print(*{one.name.lower().replace('_', '-') for one in d()})"
)
HELP = """
from digitserve.cli import main

for command in ("", "serve", "classify", "bench", "top", "healthcheck", "models list", "models verify", "models activate"):
    try:
        main([*command.split(), "--help"], prog_name="digitserve")
    except SystemExit as ended:
        assert not ended.code
"""
CLIENT = """
import asyncio, json, sys

import numpy as np
{before}
from digitserve import AsyncClient, Client

address = sys.argv[1]
images = np.load(sys.argv[2])

def labels(predictions):
    return [prediction.label for prediction in predictions]

async def call():
    async with AsyncClient(address) as client:
        streamed = [prediction.label async for prediction in client.classify_stream(images)]
        return labels(await client.classify(images)), streamed

with Client(address) as client:
    print(json.dumps({{
        "classify": labels(client.classify(images)), "stream": labels(client.classify_stream(images)), "async": asyncio.run(call()),
        "model": client.model().name, "health": client.health(),
    }}))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the wheel and the sdist of the tree."""
    wheel, sdist = build(ROOT, tmp_path_factory.mktemp("dist"), "wheel", "sdist")
    return wheel, sdist


@pytest.fixture(scope="module")
def wheel(built: tuple[Path, Path]) -> Path:
    return built[0]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Run the service of this environment with the echo network."""
    folder = tmp_path_factory.mktemp("service")
    write_echo_bundle(folder / "models")
    with run_service(folder / "models", folder / "log", "--workers", "1") as running:
        yield running


def tree_files() -> set[str]:
    """Return the files of the packages in the tree, by their path in the wheel."""
    return {
        str(path.relative_to(folder))
        for package, folder in PACKAGES.items()
        for path in (folder / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def metadata(wheel: Path) -> Metadata:
    """Return the metadata of a wheel; invalid metadata raises."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Metadata.from_email(archive.read(name))


def test_the_wheel_contains_the_packages_and_nothing_else(wheel: Path) -> None:
    """Code, type information, templates and the page; no tests, no models, no other top-level module."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        commands = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    info = wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info"
    described = {f"{info}/{name}" for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")}
    assert names == tree_files() | described
    page = {".html", ".css", ".js", ".svg", ".png", ".jpg"}
    assert {Path(name).suffix for name in names - described} <= {".py", ".pyi", ".typed", ".jinja", ".txt"} | page
    assert {"digitserve/py.typed", "digitserve_training/py.typed", "digitserve/web/page/index.html"} <= names
    assert commands.split() == [
        "[console_scripts]",
        *("digitserve", "=", "digitserve.__main__:main"),
        *("digitserve-train", "=", "digitserve_training.cli:main"),
    ]


def test_the_sdist_builds_the_same_wheel(built: tuple[Path, Path], tmp_path: Path) -> None:
    """The sdist contains the packages, the protos, licence, README and changelog; its wheel equals that of the tree byte by byte."""
    wheel, sdist = built
    subprocess.run(["tar", "--extract", "--file", sdist, "--directory", tmp_path], check=True)
    (tree,) = tmp_path.iterdir()
    names = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    packages = {f"{PACKAGES[name.split('/')[0]].name}/{name}" for name in tree_files()}
    protos = {str(path.relative_to(ROOT)) for path in (ROOT / "proto").rglob("*") if path.is_file()}
    others = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "PKG-INFO", ".gitignore"}
    assert names == packages | protos | others
    (rebuilt,) = build(tree, tmp_path / "dist", "wheel")
    assert (rebuilt.name, rebuilt.read_bytes()) == (wheel.name, wheel.read_bytes())


def test_the_metadata_is_valid_and_agrees_with_itself(wheel: Path) -> None:
    """The fields are valid, the classifiers name the supported Python versions, the licence is known, the README is shown."""
    described = metadata(wheel)
    assert described.requires_python is not None
    versions = [f"3.{minor}" for minor in range(8, 20) if described.requires_python.contains(f"3.{minor}")]
    listed = [
        one.rpartition(" ")[2]
        for one in described.classifiers or []
        if one.startswith("Programming Language :: Python :: 3.")
    ]
    assert listed == versions == ["3.11", "3.12", "3.13"]
    assert (described.license_expression, described.license_files) == ("Apache-2.0", ["LICENSE"])
    assert described.description_content_type == "text/markdown"
    assert (described.description or "").startswith("# digitserve")
    assert not described.project_urls


def test_the_dependencies_are_those_of_the_light_client(wheel: Path) -> None:
    """Without extras only the client's packages are installed; cuda is serve with another onnxruntime."""
    by_extra: dict[str, set[str]] = {"": set()}
    for requirement in metadata(wheel).requires_dist or []:
        assert isinstance(requirement, Requirement)
        for extra in ("", "serve", "bench", "plot", "training", "cuda"):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                by_extra.setdefault(extra, set()).add(f"{requirement.name}{requirement.specifier}")
    assert {Requirement(one).name for one in by_extra[""]} == LIGHT
    on_gpu = {one.replace("onnxruntime-gpu", "onnxruntime") for one in by_extra["cuda"]}
    assert on_gpu == by_extra["serve"]
    assert by_extra["serve"] < by_extra["training"]


@pytest.mark.parametrize("lock", ["newest.txt", "oldest.txt", "tritonclient.txt"])
def test_the_client_works_on_all_supported_dependencies(
    lock: str, wheel: Path, service: Service, tmp_path: Path
) -> None:
    """Both clients, streams and the commands get the service's answers, without a warning, on the newest and oldest
    dependencies and in one process with tritonclient.
    """
    environment = Environment.create(tmp_path, lock, wheel)
    np.save(environment.home / "images.npy", np.stack([echo_image(number) for number in range(10)]))
    expected = list("0123456789")
    program = CLIENT.format(before="import tritonclient.grpc" if lock == "tritonclient.txt" else "")
    called = environment.run("python", "-c", program, service.grpc_address, "images.npy")
    assert (called.returncode, called.stderr) == (0, "")
    assert json.loads(called.stdout) == {
        "classify": expected, "stream": expected, "async": [expected, expected], "model": "digits", "health": "SERVING",
    }  # fmt: skip

    address = ("--address", service.grpc_address)
    classified = environment.run("digitserve", "classify", "images.npy", *address)
    assert (classified.returncode, classified.stderr) == (0, "")
    assert [line.split(": ")[1].split()[0] for line in classified.stdout.splitlines()] == expected
    checked = environment.run("digitserve", "healthcheck", *address)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "SERVING\n", "")


def test_the_light_client_explains_what_is_missing(wheel: Path, tmp_path: Path) -> None:
    """Without extras, every command starts. Those of service, load generator and training name the extra to install."""
    environment = Environment.create(tmp_path, "newest.txt", wheel)
    installed = environment.run("python", "-c", INSTALLED).stdout.split()
    assert LIGHT | {"digitserve"} <= {*installed} <= LIGHT | {"digitserve", "typing-extensions"}

    helped = environment.run("python", "-c", HELP)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.count("Usage: digitserve") == 9
    assert (
        environment.run("python", "-m", "digitserve", "--version").stdout == f"digitserve, version {version(wheel)}\n"
    )
    for command, extra in (
        (["serve"], "serve"), (["serve", "--tune"], "serve"), (["models", "verify"], "serve"),
        (["models", "activate", "digits/4"], "serve"), (["bench"], "bench"), (["top"], "bench"),
    ):  # fmt: skip
        refused = environment.run("digitserve", *command)
        assert refused.returncode == ExitCode.NEGATIVE
        assert refused.stderr.startswith(
            f"digitserve: 'digitserve {' '.join(command[: 2 if command[0] == 'models' else 1])}' needs"
        )
        assert refused.stderr.endswith(f": pip install 'digitserve[{extra}]'\n")
    listed = environment.run("digitserve", "models", "list", "--models", MODELS)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert f"digits/{find_bundle(MODELS, 'digits').name}" in listed.stdout

    assert environment.run("digitserve-train", "--help").returncode == 0
    for command in (["train"], ["evaluate", "runs/x"], ["export", "runs/x"]):
        refused = environment.run("digitserve-train", *command)
        assert (refused.returncode, refused.stderr.endswith("pip install 'digitserve[training]'\n")) == (2, True)


@pytest.mark.parametrize("lock", ["serve.txt", "oldest-serve.txt"])
def test_the_service_runs_from_a_clean_environment(lock: str, wheel: Path, tmp_path: Path) -> None:
    """Without a models folder the command says where it looked and how to get a model, and exits with 1. With one it serves,
    answers, and stops cleanly.
    """
    environment = Environment.create(tmp_path, lock, wheel)
    refused = environment.run("digitserve", "serve", "--grpc-port", "0", "--http-port", "0")
    assert (refused.returncode, refused.stdout) == (ExitCode.NEGATIVE, "")
    first, *advice = refused.stderr.splitlines()
    assert "no version of model 'digits' in" in first
    assert str(environment.home / "models") in first
    assert "Traceback" not in refused.stderr
    for part in ("container image", "digitserve-train export", "--models FOLDER"):
        assert part in "".join(advice)

    Image.fromarray(drawn_digit()).save(environment.home / "digit.png")
    with run_service(
        MODELS, tmp_path / "log", "--workers", "1", program=[environment.program("digitserve")],
        PYTHONPATH="", HOME=str(environment.home),
    ) as running:  # fmt: skip
        classified = environment.run("digitserve", "classify", "digit.png", "--address", running.grpc_address)
        assert (classified.returncode, classified.stderr) == (0, "")
        assert classified.stdout.startswith("digit.png: 1 ")
        assert running.get("/readyz")[0] == 200
        assert running.stop() == 0


def drawn_digit() -> NDArray[np.uint8]:
    """Return a one, dark on light: uint8[80,60]."""
    pixels = np.full((80, 60), 255, np.uint8)
    pixels[10:70, 27:34] = 0
    return pixels


def version(wheel: Path) -> str:
    return str(metadata(wheel).version)

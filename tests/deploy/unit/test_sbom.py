"""``scripts/write_sbom.py``: the bills of materials follow CycloneDX and contain what the lock files and bundles contain."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import write_sbom
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parents[3]
FILES = ["serve.txt", "cuda.txt"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the contents of the bills of materials by lock file."""
    paths = write_sbom.write(tmp_path_factory.mktemp("sbom"))
    return dict(zip(FILES, (path.read_text() for path in paths), strict=True))


def components(text: str, kind: str) -> dict[str, dict[str, Any]]:
    return {one["bom-ref"]: one for one in json.loads(text)["components"] if one["type"] == kind}


@pytest.mark.parametrize("lock", FILES)
def test_a_bill_of_materials_follows_the_schema(written: dict[str, str], lock: str) -> None:
    """The strict schema of CycloneDX 1.6 accepts it; a field that it does not know would be rejected."""
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(written[lock]) is None
    assert validator.validate_str(json.dumps(json.loads(written[lock]) | {"surplus": 1})) is not None


@pytest.mark.parametrize("lock", FILES)
def test_each_locked_package_is_listed_with_its_hashes(written: dict[str, str], lock: str) -> None:
    """The packages, versions and hashes are those of the lock file, read here in another way; nothing else is listed."""
    locked: dict[str, set[str]] = {}
    for line in (ROOT / "requirements" / lock).read_text().splitlines():
        if entry := re.match(r"([a-z0-9._-]+)(?:\[.*\])?==([^ ;\\]+)", line):
            hashes = locked.setdefault(f"pkg:pypi/{entry[1]}@{entry[2]}", set())
        elif found := re.search("--hash=sha256:([0-9a-f]{64})", line):
            hashes.add(found[1])
    listed = {
        reference: {one["content"] for one in library["externalReferences"][0]["hashes"]}
        for reference, library in components(written[lock], "library").items()
    }
    assert listed == locked
    assert len(locked) > 20


def test_packages_have_licences_dependencies_and_a_scope(written: dict[str, str]) -> None:
    """Packages that are only needed to build are excluded from the scope; the others have a licence, and a path from the
    service leads to each.
    """
    bill = json.loads(written["serve.txt"])
    libraries = components(written["serve.txt"], "library")
    excluded = {one["name"] for one in libraries.values() if one["scope"] == "excluded"}
    assert excluded == {"hatchling", "pathspec", "pluggy", "tomlkit", "trove-classifiers"}
    # Of two versions for different versions of Python, only one is installed here.
    unlicensed = {one["name"] for one in libraries.values() if "licenses" not in one}
    assert unlicensed <= {one["name"] for one in libraries.values() if "properties" in one}

    needed = {one["ref"]: one.get("dependsOn", []) for one in bill["dependencies"]}
    reached: set[str] = set()
    waiting = ["digitserve"]
    while waiting:
        reference = waiting.pop()
        if reference not in reached:
            reached.add(reference)
            waiting += needed[reference]
    assert reached == {"digitserve", *libraries, *components(written["serve.txt"], "machine-learning-model")}


def test_the_models_are_components(written: dict[str, str]) -> None:
    """Each shipped bundle is a machine-learning model with the checksum of its network."""
    for text in written.values():
        listed = {
            (one["name"], one["version"]): one["hashes"][0]["content"]
            for one in components(text, "machine-learning-model").values()
        }
        assert listed == {
            (path.parents[1].name, path.parent.name): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (ROOT / "models").glob("*/*/model.onnx")
        }


def test_the_same_tree_gives_the_same_bytes(written: dict[str, str], tmp_path: Path) -> None:
    """The files contain neither a time nor a random number, so they change only if the service changes."""
    assert [path.read_text() for path in write_sbom.write(tmp_path)] == list(written.values())

"""Write the software bills of materials (SBOM, CycloneDX 1.6) of the service: ``python scripts/write_sbom.py FOLDER``.

One file for the CPU and one for CUDA. Each has digitserve, all packages of the lock file with their hashes, licences and
dependencies, and the model bundles of ``models/``. It depends only on these files and the metadata of the installed packages, so
that the same tree gives the same bytes.
"""

import importlib.metadata
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.model.license import License
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL

ROOT = Path(__file__).parent.parent
LOCKS = {"": "serve.txt", "-cuda": "cuda.txt"}
"""By suffix of the SBOM: the lock file that is installed."""

PROJECT = "digitserve"
"""How the comments of a lock file name this project, followed by the extra or group."""

BUILD = f"{PROJECT} (pyproject.toml:build)"

_ENTRY = re.compile(r"^([a-z0-9._-]+)(?:\[[a-z0-9,._-]+\])?==(\S+?)(?: ; (.+?))? \\$", re.MULTILINE)


@dataclass(frozen=True)
class Locked:
    """A package of a lock file.

    Attributes:
        name: normalised.
        version: the only one that may be installed, on platforms for which ``marker`` is true.
        marker: environment marker, or None.
        hashes: SHA-256 of its files.
        via: names of the packages that need it; those of this project have the suffix " (pyproject.toml)".
    """

    name: str
    version: str
    marker: str | None
    hashes: tuple[str, ...]
    via: tuple[str, ...]

    @property
    def purl(self) -> PackageURL:
        """Its package URL."""
        return PackageURL("pypi", None, self.name, self.version)


def read_lock(text: str) -> list[Locked]:
    """Parse a lock file of ``uv pip compile``."""
    starts = list(_ENTRY.finditer(text))
    ends = [*(start.start() for start in starts[1:]), len(text)]
    return [
        Locked(
            *start.groups(),
            tuple(sorted(re.findall(r"--hash=sha256:([0-9a-f]{64})", text[start.start() : end]))),
            tuple(re.findall(r"^    # (?:via |  )(\S.*)$", text[start.end() : end], re.MULTILINE)),
        )
        for start, end in zip(starts, ends, strict=True)
    ]


def write(folder: Path) -> list[Path]:
    """Write the SBOMs, and return their paths."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for suffix, lock in LOCKS.items():
        path = folder / f"digitserve-{version}{suffix}.cdx.json"
        text = describe(version, read_lock((ROOT / "requirements" / lock).read_text()))
        if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
            raise ValueError(f"{path} would not follow the schema of CycloneDX 1.6: {error}")
        path.write_text(text + "\n")
        paths.append(path)
    return paths


def describe(version: str, locked: list[Locked]) -> str:
    """Return the SBOM as JSON."""
    service = Component(
        type=ComponentType.APPLICATION, name="digitserve", version=version, bom_ref="digitserve",
        purl=PackageURL("pypi", None, "digitserve", version), licenses=[LicenseFactory().make_from_string("Apache-2.0")],
        description="gRPC service that classifies images of handwritten digits",
    )  # fmt: skip
    components = {one: _package(one, _needed_to_run(one, locked)) for one in locked}
    models = list(_models())
    bom = Bom(components=[*components.values(), *models])
    bom.metadata.component = service
    for needing, component in (("", service), *((one.name, components[one]) for one in locked)):
        needed = [components[other] for other in locked if _needs(other, needing)]
        bom.register_dependency(component, needed)
    bom.register_dependency(service, [*(components[one] for one in locked if _needs(one, "")), *models])
    # Neither time nor a random serial number: the same tree gives the same bytes.
    bom.metadata.timestamp = None  # type: ignore[assignment]
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    document.pop("serialNumber", None)
    return json.dumps(document, indent=2, sort_keys=True)


def _needs(other: Locked, needing: str) -> bool:
    """Return whether a package, or with an empty name this project, needs another one."""
    return needing in other.via if needing else any(name.startswith(f"{PROJECT} (") for name in other.via)


def _needed_to_run(one: Locked, locked: list[Locked]) -> bool:
    """Return whether a package is needed to run the service; the others only build and install it."""
    needing = {name for name in one.via if name.startswith(f"{PROJECT} (")}
    if needing - {BUILD}:
        return True
    return any(_needed_to_run(other, locked) for other in locked if other.name in one.via)


def _package(locked: Locked, needed_to_run: bool) -> Component:
    files = [
        ExternalReference(
            type=ExternalReferenceType.DISTRIBUTION,
            url=XsUri(str(locked.purl)),
            comment="locked files of this version",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=one) for one in locked.hashes],
        )
    ]
    return Component(
        type=ComponentType.LIBRARY, name=locked.name, version=locked.version, purl=locked.purl, bom_ref=str(locked.purl),
        scope=ComponentScope.REQUIRED if needed_to_run else ComponentScope.EXCLUDED,
        external_references=files, licenses=list(_licences(locked)),
        properties=[Property(name="digitserve:marker", value=locked.marker)] if locked.marker else None,
    )  # fmt: skip


def _licences(locked: Locked) -> Iterator[License]:
    """Yield the licence that the installed package states; nothing if another version or none is installed."""
    try:
        metadata = importlib.metadata.metadata(locked.name)
    except importlib.metadata.PackageNotFoundError:
        return
    if metadata["Version"] != locked.version:
        return
    classifiers = [
        text.rpartition(" :: ")[2] for text in metadata.get_all("Classifier", []) if text.startswith("License ::")
    ]
    for text in (metadata.get("License-Expression"), metadata.get("License"), *classifiers):
        if text and "\n" not in text:
            yield LicenseFactory().make_from_string(text)
            return


def _models() -> Iterator[Component]:
    """Yield the bundles of ``models/``; ``bundle`` in the service has checked their manifests."""
    for path in sorted((ROOT / "models").glob("*/*/manifest.json")):
        manifest = json.loads(path.read_text())
        figures = {"format": "ONNX", "preset": manifest["training"]["preset"], **manifest["quality"]}
        name = f"{manifest['name']}/{manifest['version']}"
        yield Component(
            type=ComponentType.MACHINE_LEARNING_MODEL, name=manifest["name"], version=str(manifest["version"]),
            bom_ref=f"model:{name}", description=f"model bundle models/{name}; the hash is that of model.onnx",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=manifest["sha256"])],
            licenses=[LicenseFactory().make_from_string("Apache-2.0")],
            properties=[Property(name=f"digitserve:{key}", value=str(value)) for key, value in sorted(figures.items())],
        )  # fmt: skip


if __name__ == "__main__":
    for written in write(Path(sys.argv[1])):
        print(written)

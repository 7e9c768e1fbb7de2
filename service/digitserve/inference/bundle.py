"""Model bundles: a directory ``<models>/<name>/<version>/`` that says everything about one trained network.

    model.onnx      images uint8[N,28,28,1] -> probabilities float32[N,labels], ood_score float32[N]
    manifest.json   what the graph is, what it was trained on, how well it does
    golden.npz      a few inputs with the outputs that the exporter saw
    report/         what ``digitserve-train evaluate`` drew (optional)

The service reads bundles and the training package writes them, both through this module, so the format is defined once.
A bundle is immutable: a new training is a new version. This module checks files, manifest and sha256; what needs an
execution provider (the graph's signature, the golden outputs) is checked by ``session``.
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from digitserve.errors import BundleError
from digitserve.types import IMAGE_SIZE

FORMAT = 1
GOLDEN_TOLERANCE = 1e-4
"""Largest difference allowed between a golden probability and the one computed here, unless a manifest says otherwise."""

MAX_GOLDEN_TOLERANCE = 1e-2
"""The most that a manifest may allow: beyond it, a damaged graph could pass for another processor's rounding."""

GOLDEN_SCORE_FACTOR = 10
"""By how much more ``ood_score`` may differ, relative where it exceeds 1: it is of the size of a logit, one digit less
exact."""

_VERSION = re.compile("[1-9][0-9]{0,8}")
"""How a version is written, in one way only: no signs, leading zeros or digits of other scripts."""

INPUT_NAME = "images"
OUTPUT_NAMES = ("probabilities", "ood_score")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the graph; a free axis is written as ``None``."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Manifest:
    """What is known about a bundle; ``manifest.json`` is this, field by field.

    Attributes:
        name: the model's name, ``digits`` for the default one.
        version: a positive integer; the highest is served unless told otherwise.
        sha256: of ``model.onnx``, hexadecimal.
        inputs: the graph's inputs.
        outputs: the graph's outputs.
        labels: one for each column of ``probabilities``.
        ink: on which side of the grey scale the network expects strokes; MNIST's side is the only one there is.
        framing: how images of another size are brought to the network's; MNIST's way is the only one there is.
        ood_threshold: ``ood_score`` above which an image is called unfamiliar.
        training: preset, seed, data fingerprint and whatever else makes the training repeatable.
        quality: measured figures, such as ``test_accuracy``.
        golden_tolerance: largest difference allowed between a golden probability and the one that a service computes.
            Wider for int8 graphs, in which a value rounded the other way is a whole step off.
        format: version of this description.
    """

    name: str
    version: int
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    labels: tuple[str, ...]
    ood_threshold: float
    training: Mapping[str, Any]
    quality: Mapping[str, float]
    golden_tolerance: float = GOLDEN_TOLERANCE
    ink: Literal["light_on_dark"] = "light_on_dark"
    framing: Literal["mnist"] = "mnist"
    format: int = FORMAT


@dataclass(frozen=True)
class Golden:
    """Inputs and the outputs that the exporter saw for them.

    Attributes:
        images: uint8[N,28,28,1].
        probabilities: float32[N,labels].
        ood_score: float32[N].
    """

    images: NDArray[np.uint8]
    probabilities: NDArray[np.float32]
    ood_score: NDArray[np.float32]


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read whole and whose files agree with its manifest."""

    path: Path
    manifest: Manifest
    graph: bytes = field(repr=False)
    golden: Golden = field(repr=False)


def signature(num_labels: int) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs that every bundle's graph has."""
    return (
        (TensorSpec(INPUT_NAME, "uint8", (None, IMAGE_SIZE, IMAGE_SIZE, 1)),),
        (
            TensorSpec("probabilities", "float32", (None, num_labels)),
            TensorSpec("ood_score", "float32", (None,)),
        ),
    )


def versions(models: Path, name: str) -> list[int]:
    """List the versions of a model, lowest first; what is no integer (a half-written version) is passed over."""
    if not (models / name).is_dir():
        return []
    entries = (models / name).iterdir()
    return sorted(int(entry.name) for entry in entries if _VERSION.fullmatch(entry.name) and entry.is_dir())


def find(models: Path, name: str, version: int | None = None) -> Path:
    """Return the directory of a version, the highest unless one is named.

    Raises:
        BundleError: there is no such model or version; the message lists those there are.
    """
    available = versions(models, name)
    if not available:
        raise BundleError("files", f"no version of model '{name}' in {models}; expected {models / name}/<integer>/")
    wanted = available[-1] if version is None else version
    if wanted not in available:
        raise BundleError(
            "files", f"model '{name}' has no version {wanted}; available: {', '.join(map(str, available))}"
        )
    return models / name / str(wanted)


def read(path: Path) -> Bundle:
    """Read a bundle and check its files, its manifest and the sha256 of its graph.

    The graph is returned as the very bytes that were hashed, so nothing can change between the check and the use.

    Raises:
        BundleError: says which check failed.
    """
    manifest = _parse_manifest(_read_file(path, "manifest.json"), path)
    graph = _read_file(path, "model.onnx")
    sha256 = hashlib.sha256(graph).hexdigest()
    if sha256 != manifest.sha256:
        raise BundleError("sha256", f"model.onnx in {path} has {sha256}; manifest.json says {manifest.sha256}")
    return Bundle(path, manifest, graph, _read_golden(path, len(manifest.labels)))


def write(models: Path, manifest: Manifest, graph: bytes, golden: Golden, report: Path | None = None) -> Path:
    """Write a bundle atomically: it appears whole under its version, or not at all.

    Args:
        models: the directory that holds all models.
        manifest: its ``sha256`` is set here from ``graph``.
        graph: the ONNX file's bytes.
        golden: inputs with their outputs.
        report: a directory to copy in as ``report/``.

    Returns:
        The new directory.

    Raises:
        FileExistsError: the version exists; bundles are never overwritten.
    """
    final = models / manifest.name / str(manifest.version)
    if final.exists():
        raise FileExistsError(f"{final} exists; a bundle is never overwritten, choose another version")
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=final.parent))
    try:
        described = asdict(manifest) | {"sha256": hashlib.sha256(graph).hexdigest()}
        _write_file(staging / "model.onnx", graph)
        _write_file(staging / "manifest.json", (json.dumps(described, indent=2) + "\n").encode())
        with (staging / "golden.npz").open("wb") as file:
            np.savez_compressed(file, **asdict(golden))
            file.flush()
            os.fsync(file.fileno())
        if report is not None:
            shutil.copytree(report, staging / "report")
        staging.chmod(0o755)
        staging.rename(final)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    return final


def _read_file(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except FileNotFoundError:
        raise BundleError("files", f"{name} is missing in {path}") from None
    except OSError as error:
        raise BundleError("files", f"{name} in {path} cannot be read: {error.strerror}") from None


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _parse_manifest(content: bytes, path: Path) -> Manifest:
    try:
        described = json.loads(content)
        known = {f.name for f in fields(Manifest)}
        manifest = Manifest(**{key: value for key, value in described.items() if key in known})
        manifest = Manifest(
            **{
                **vars(manifest),
                "labels": tuple(map(str, manifest.labels)),
                "inputs": _specs(manifest.inputs),
                "outputs": _specs(manifest.outputs),
                "version": int(manifest.version),
                "ood_threshold": float(manifest.ood_threshold),
                "golden_tolerance": float(manifest.golden_tolerance),
                "quality": {key: float(value) for key, value in manifest.quality.items()},
            }
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        raise BundleError("manifest", f"manifest.json in {path} is not a manifest: {error}") from None
    _check_manifest(manifest, path)
    return manifest


def _specs(described: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in described)


def _check_manifest(manifest: Manifest, path: Path) -> None:
    if manifest.format != FORMAT:
        raise BundleError("manifest", f"format is {manifest.format!r}; this version reads {FORMAT}")
    if str(manifest.version) != path.name or manifest.name != path.parent.name:
        raise BundleError("manifest", f"it describes {manifest.name}/{manifest.version} but stands in {path}")
    if not math.isfinite(manifest.ood_threshold):
        raise BundleError("manifest", f"ood_threshold is {manifest.ood_threshold}; expected a finite number")
    if not 0 < manifest.golden_tolerance <= MAX_GOLDEN_TOLERANCE:
        raise BundleError("manifest", f"golden_tolerance is {manifest.golden_tolerance}; "
                                      f"expected more than 0 and at most {MAX_GOLDEN_TOLERANCE:g}")  # fmt: skip
    if (manifest.ink, manifest.framing) != ("light_on_dark", "mnist"):
        raise BundleError("manifest", f"ink and framing are {manifest.ink!r}, {manifest.framing!r}; "
                                      "expected 'light_on_dark', 'mnist'")  # fmt: skip
    if (manifest.inputs, manifest.outputs) != signature(len(manifest.labels)):
        raise BundleError("manifest", f"inputs and outputs are {manifest.inputs}, {manifest.outputs}; "
                                      f"expected {signature(len(manifest.labels))}")  # fmt: skip


def _read_golden(path: Path, num_labels: int) -> Golden:
    content = _read_file(path, "golden.npz")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            golden = Golden(**{f.name: stored[f.name] for f in fields(Golden)})
            num_images = len(golden.images)
    except Exception as error:
        raise BundleError("golden", f"golden.npz in {path} cannot be read: {error}") from None
    expected = {
        "images": ((num_images, IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8),
        "probabilities": ((num_images, num_labels), np.float32),
        "ood_score": ((num_images,), np.float32),
    }
    for name, (shape, dtype) in expected.items():
        array = getattr(golden, name)
        if array.shape != shape or array.dtype != dtype or num_images == 0:
            raise BundleError(
                "golden", f"{name} is {array.dtype}{list(array.shape)}; expected {np.dtype(dtype)}{list(shape)}"
            )
    return golden

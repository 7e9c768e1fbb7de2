"""Model bundles: a folder ``<models>/<name>/<version>/`` with one trained network and its description.

The folder of the models may also be one bundle itself, as the storage initializer of KServe leaves it in ``/mnt/models``.

    model.onnx      images uint8[N,28,28,1] -> probabilities float32[N,labels], ood_score float32[N]
    manifest.json   the graph's signature and sha256, its training, its measured quality
    golden.npz      a few inputs with the outputs that the exporter computed
    report/         pages and pictures from ``digitserve-train evaluate`` (optional)

The service reads bundles and the training package writes them, both through this module, so that the format is defined once.
A bundle is immutable: each export is a new version. The checks, in this order:

    ``bundle_files``  regular files of limited size
    ``bundle``        manifest, sha256 of the graph, arrays of golden.npz
    ``graph_check``   the graph is self-contained and uses only operators of ONNX
    ``session``       in a worker: onnxruntime loads the graph, and its outputs equal the golden outputs
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
from numpy.typing import NDArray

from digitserve.errors import BundleError
from digitserve.inference.bundle_files import BundleFiles
from digitserve.inference.graph_check import check_graph
from digitserve.npy import view_array
from digitserve.settings import VERSION
from digitserve.types import IMAGE_SIZE

FORMAT = 1
GOLDEN_TOLERANCE = 1e-4
"""Default of the largest allowed difference between a golden probability and the one computed here."""

MAX_GOLDEN_TOLERANCE = 1e-2
"""Largest tolerance that a manifest may set: above it, a damaged graph could pass for another processor's rounding."""

GOLDEN_SCORE_FACTOR = 10
"""Tolerance of ``ood_score`` as a multiple of that of probabilities: a score is as large as a logit, and less exact."""

MAX_LABELS, MAX_LABEL_LENGTH = 1000, 256
"""Each label is a value of a metric label and part of answers."""

NAME_RULE = f"1 to {MAX_LABEL_LENGTH} printable characters without '/'"
"""What ``is_name`` accepts."""

MAX_GOLDEN_BYTES = 1 << 26
"""Largest decompressed size of ``golden.npz``."""

_SHA256 = re.compile("[0-9a-f]{64}")

INPUT_NAME = "images"
OUTPUT_NAMES = ("probabilities", "ood_score")


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of the graph.

    Attributes:
        name: in the graph.
        dtype: of its values, as numpy names it.
        shape: length of each axis; None is a free axis, that of the images.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Manifest:
    """Description of a bundle; ``manifest.json`` has the same fields.

    Attributes:
        name: the model's name, ``digits`` for the default one.
        version: a positive integer; the highest is served by default.
        sha256: of ``model.onnx``, hexadecimal.
        inputs: the graph's inputs.
        outputs: the graph's outputs.
        labels: one per column of ``probabilities``.
        ink: polarity that the network expects; only MNIST's is supported.
        framing: how images of other sizes are converted; only MNIST's way is supported.
        ood_threshold: ``ood_score`` above which an image is reported as unfamiliar.
        training: preset, seed, data fingerprint and all else that is needed to repeat the training.
        quality: measured figures, such as ``test_accuracy``.
        golden_tolerance: largest allowed difference between a golden probability and the one that a service computes.
            Wider for int8 graphs, in which a value that is rounded differently is a whole step off.
        format: version of the bundle format.
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

    @property
    def precision(self) -> str:
        """``float32`` or ``int8``, as ``training`` states it; empty if it does not: the format does not define its contents."""
        precision = self.training.get("precision") if isinstance(self.training, dict) else None
        return str(precision) if is_name(precision) else ""


@dataclass(frozen=True)
class Golden:
    """Golden outputs: a few inputs with the outputs that the exporter computed for them.

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
    """A bundle in memory, whose files agree with its manifest."""

    path: Path
    manifest: Manifest
    graph: bytes = field(repr=False)
    golden: Golden = field(repr=False)

    def served_as(self, name: str | None) -> "Bundle":
        """Return the bundle with the name that clients see; its own with None."""
        return self if name is None else replace(self, manifest=replace(self.manifest, name=name))


def graph_signature(num_labels: int) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and outputs that the graph of every bundle has."""
    return (
        (TensorSpec(INPUT_NAME, "uint8", (None, IMAGE_SIZE, IMAGE_SIZE, 1)),),
        (
            TensorSpec("probabilities", "float32", (None, num_labels)),
            TensorSpec("ood_score", "float32", (None,)),
        ),
    )


def is_name(name: Any) -> bool:
    """Return whether this can be the name of a model: it is part of paths, answers and metrics."""
    return (
        isinstance(name, str) and name.isprintable() and "/" not in name and 0 < len(name.strip()) <= MAX_LABEL_LENGTH
    )


def read_bundle(path: Path) -> Bundle:
    """Read a bundle and check its files, its manifest, and its graph as far as that needs no execution provider.

    The graph is returned as the bytes that were hashed, so that the file cannot change between the check and its use.

    Raises:
        BundleError: with the name of the check that failed.
    """
    return parse_bundle(BundleFiles.read(path))


def parse_bundle(files: BundleFiles) -> Bundle:
    """Check files that were read or unsealed; see ``read_bundle``."""
    path, graph = files.path, files.graph
    manifest = _parse_manifest(files.manifest, path)
    sha256 = hashlib.sha256(graph).hexdigest()
    if sha256 != manifest.sha256:
        raise BundleError(
            "sha256", f"model.onnx in {path} has {sha256}; expected {manifest.sha256}, as in manifest.json"
        )
    check_graph(graph, [INPUT_NAME], OUTPUT_NAMES)
    return Bundle(path, manifest, graph, _parse_golden(files.golden, path, len(manifest.labels)))


def write_bundle(models: Path, manifest: Manifest, graph: bytes, golden: Golden, report: Path | None = None) -> Path:
    """Write a bundle atomically: its folder appears complete or not at all.

    Args:
        models: folder of all models.
        manifest: its ``sha256`` is ignored and computed from ``graph``.
        graph: contents of the ONNX file.
        golden: golden outputs.
        report: folder to copy to ``report/``.

    Returns:
        The new folder.

    Raises:
        FileExistsError: the version exists; a bundle is never overwritten.
        BundleError: a service would reject the manifest.
    """
    final = models / manifest.name / str(manifest.version)
    if final.exists():
        raise FileExistsError(f"{final} exists; a bundle is never overwritten, choose another version")
    described = json.dumps(asdict(manifest) | {"sha256": hashlib.sha256(graph).hexdigest()}, indent=2) + "\n"
    _parse_manifest(described.encode(), final)
    final.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=final.parent))
    try:
        _write_file(staging / "model.onnx", graph)
        _write_file(staging / "manifest.json", described.encode())
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


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _parse_manifest(content: bytes, path: Path) -> Manifest:
    try:
        described = _parse_json(content)
        known = {f.name for f in fields(Manifest)}
        manifest = Manifest(**{key: value for key, value in described.items() if key in known})
        manifest = replace(
            manifest,
            labels=_labels(manifest.labels),
            inputs=_specs(manifest.inputs),
            outputs=_specs(manifest.outputs),
            ood_threshold=_number("ood_threshold", manifest.ood_threshold),
            golden_tolerance=_number("golden_tolerance", manifest.golden_tolerance),
            quality={key: _number(f"quality.{key}", value) for key, value in manifest.quality.items()},
        )
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError("manifest", f"manifest.json in {path} is not a manifest: {error}") from None
    _check_manifest(manifest, path)
    return manifest


def _parse_json(content: bytes) -> Any:
    """Parse JSON as its standard defines it: numbers are finite, names in an object are unique, text is Unicode."""
    described = json.loads(
        content.decode(), object_pairs_hook=_unique, parse_float=_finite_float, parse_constant=_refuse_constant
    )
    # JSON can contain an escaped surrogate without its pair, which cannot be encoded as UTF-8.
    json.dumps(described, ensure_ascii=False).encode()
    return described


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    described = dict(pairs)
    if len(described) < len(pairs):
        raise ValueError("a name occurs twice in an object")
    return described


def _finite_float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; expected a number")
    return float(value)


def _labels(labels: Any) -> tuple[str, ...]:
    if not isinstance(labels, list) or not 0 < len(labels) <= MAX_LABELS:
        raise ValueError(f"labels: expected a list of 1 to {MAX_LABELS} labels")
    for label in labels:
        if not isinstance(label, str) or not label.isprintable() or not 0 < len(label.strip()) <= MAX_LABEL_LENGTH:
            raise ValueError(
                f"label {str(label)[:MAX_LABEL_LENGTH]!r}: expected 1 to {MAX_LABEL_LENGTH} printable characters"
            )
    if len(set(labels)) < len(labels):
        raise ValueError("labels: the same label occurs twice")
    return tuple(labels)


def _specs(described: Any) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(spec["name"], spec["dtype"], tuple(spec["shape"])) for spec in described)


def _check_manifest(manifest: Manifest, path: Path) -> None:
    if manifest.format != FORMAT:
        raise BundleError("manifest", f"format is {manifest.format!r}; this version reads {FORMAT}")
    described = f"{manifest.name}/{manifest.version}"
    # A bundle that a tool has copied may be in a folder of any other name.
    if VERSION.fullmatch(path.name) and (
        type(manifest.version) is not int or described != f"{path.parent.name}/{path.name}"
    ):
        raise BundleError("manifest", f"it describes {described} but is in {path}")
    if type(manifest.version) is not int or not VERSION.fullmatch(str(manifest.version)):
        raise BundleError(
            "manifest", f"version is {manifest.version!r}; expected a positive integer of at most 9 digits"
        )
    if not is_name(manifest.name):
        raise BundleError("manifest", f"name is {str(manifest.name)[:MAX_LABEL_LENGTH]!r}; expected {NAME_RULE}")
    if not isinstance(manifest.sha256, str) or not _SHA256.fullmatch(manifest.sha256):
        raise BundleError("manifest", f"sha256 is {manifest.sha256!r}; expected 64 hexadecimal digits")
    if not 0 < manifest.golden_tolerance <= MAX_GOLDEN_TOLERANCE:
        raise BundleError("manifest", f"golden_tolerance is {manifest.golden_tolerance}; "
                                      f"expected more than 0 and at most {MAX_GOLDEN_TOLERANCE:g}")  # fmt: skip
    if (manifest.ink, manifest.framing) != ("light_on_dark", "mnist"):
        raise BundleError("manifest", f"ink and framing are {manifest.ink!r}, {manifest.framing!r}; "
                                      "expected 'light_on_dark', 'mnist'")  # fmt: skip
    if (manifest.inputs, manifest.outputs) != graph_signature(len(manifest.labels)):
        raise BundleError("manifest", f"inputs and outputs are {manifest.inputs}, {manifest.outputs}; "
                                      f"expected {graph_signature(len(manifest.labels))}")  # fmt: skip


def _parse_golden(content: bytes, path: Path, num_labels: int) -> Golden:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            # zipfile reads at most this size of each file.
            num_bytes = sum(entry.file_size for entry in archive.infolist())
            if num_bytes > MAX_GOLDEN_BYTES:
                raise ValueError(f"it holds {num_bytes:,} bytes; expected at most {MAX_GOLDEN_BYTES:,}")  # noqa: TRY301
            golden = Golden(**{f.name: view_array(archive.read(f"{f.name}.npy")) for f in fields(Golden)})
        num_images = len(golden.images)
    except Exception as error:
        raise BundleError("golden", f"golden.npz in {path} cannot be read: {error}") from None
    if not num_images:
        raise BundleError("golden", f"golden.npz in {path} has no images; expected at least one")
    expected = {
        "images": ((num_images, IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8),
        "probabilities": ((num_images, num_labels), np.float32),
        "ood_score": ((num_images,), np.float32),
    }
    for name, (shape, dtype) in expected.items():
        array = getattr(golden, name)
        if array.shape != shape or array.dtype != dtype:
            raise BundleError(
                "golden", f"{name} is {array.dtype}{list(array.shape)}; expected {np.dtype(dtype)}{list(shape)}"
            )
    return golden

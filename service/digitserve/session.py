"""Running a bundle's graph: the only module that knows onnxruntime.

A worker owns one session and calls it from its one thread; the training package opens one to check parity and to
measure what it exports. A session that exists has passed the checks of its bundle: the graph's signature and the golden
outputs, on the execution provider that was asked for.
"""

import math
import os
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# Before the import: by the time a session exists, onnxruntime has written a device id under the home folder.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort

from digitserve.bundle import (
    GOLDEN_SCORE_FACTOR,
    IMAGE_SIZE,
    INPUT_NAME,
    OUTPUT_NAMES,
    Bundle,
    TensorSpec,
    signature,
)  # fmt: skip
from digitserve.errors import BundleError, ProviderError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


@dataclass(frozen=True)
class Outputs:
    """What the graph says of a batch.

    Attributes:
        probabilities: float32[N,labels], rows sum to 1.
        ood_score: float32[N], higher is stranger.
    """

    probabilities: NDArray[np.float32]
    ood_score: NDArray[np.float32]


class Session:
    """An onnxruntime session over one bundle, verified; lives as long as its worker.

    Attributes:
        provider: onnxruntime's name of the execution provider in use.
    """

    def __init__(self, bundle: Bundle, *, device: str = "cpu", num_threads: int = 1) -> None:
        """Open and verify.

        Args:
            bundle: as ``bundle.read`` gives it.
            device: where to run; ``auto`` takes CUDA where it loads.
            num_threads: onnxruntime's threads within an operator.

        Raises:
            BundleError: the graph does not load, has another signature, or gives other outputs than the golden ones.
            ProviderError: the provider that was asked for did not load.
        """
        self._session = _open(bundle.graph, device, num_threads)
        self._output_names = list(OUTPUT_NAMES)
        self.provider = self._session.get_providers()[0]
        _check_signature(self._session, bundle)
        _check_golden(self, bundle)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Classify images.

        Args:
            images: uint8[N,28,28,1], C-contiguous, N at least 1.
        """
        return Outputs(*self._session.run(self._output_names, {INPUT_NAME: images}))

    def warm_up(self, max_batch_size: int) -> float:
        """Run 1, every power of two, and the maximum, so that no caller pays for first allocations.

        Returns:
            Seconds for an image in a batch of the maximum, the best of three.
        """
        sizes = {1 << power for power in range(max_batch_size.bit_length())} | {max_batch_size}
        for size in sorted(sizes):
            self.run(_zeros(size))
        return min(self._time(max_batch_size) for _ in range(3)) / max_batch_size

    def _time(self, batch_size: int) -> float:
        start = time.perf_counter()
        self.run(_zeros(batch_size))
        return time.perf_counter() - start


def answer_once(graph: bytes, images: NDArray[np.uint8]) -> Outputs:
    """Run a graph that is no bundle yet, and was checked by nobody: for exporters that need its own golden answers.

    Args:
        graph: the ONNX file's bytes.
        images: uint8[N,28,28,1], C-contiguous, N at least 1.

    Raises:
        BundleError: the graph does not load.
    """
    return Outputs(*_open(graph, "cpu", 1).run(list(OUTPUT_NAMES), {INPUT_NAME: images}))


def _zeros(batch_size: int) -> NDArray[np.uint8]:
    return np.zeros((batch_size, IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)


def _open(graph: bytes, device: str, num_threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    # onnxruntime counts the host's cores and knows no quota, so the number is always given.
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    # A spinning thread eats the core that the next worker should have.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    wanted = _choose_provider(device)
    providers = [wanted] if wanted == _PROVIDERS["cpu"] else [wanted, _PROVIDERS["cpu"]]
    try:
        session = ort.InferenceSession(graph, options, providers=providers)
    except Exception as error:
        raise BundleError("signature", f"onnxruntime cannot load model.onnx: {error}") from None
    if session.get_providers()[0] != wanted:
        # onnxruntime falls back in silence when a library is missing; an operator must be told.
        raise ProviderError(f"{wanted} did not load, onnxruntime fell back to {session.get_providers()[0]}; "
                            "install the libraries it needs, or start with --device cpu")  # fmt: skip
    return session


def _choose_provider(device: str) -> str:
    available = ort.get_available_providers()
    if device == "auto":
        return _PROVIDERS["cuda"] if _PROVIDERS["cuda"] in available else _PROVIDERS["cpu"]
    if _PROVIDERS[device] not in available:
        raise ProviderError(f"--device {device}: this onnxruntime has {', '.join(available)}, not {_PROVIDERS[device]}; "
                            "install onnxruntime-gpu in its place, or start with --device cpu")  # fmt: skip
    return _PROVIDERS[device]


def _check_signature(session: ort.InferenceSession, bundle: Bundle) -> None:
    got = tuple(tuple(_spec(node) for node in nodes) for nodes in (session.get_inputs(), session.get_outputs()))
    expected = signature(len(bundle.manifest.labels))
    if (set(got[0]), set(got[1])) != (set(expected[0]), set(expected[1])):
        raise BundleError("signature", f"the graph has {got[0]} -> {got[1]}; expected {expected[0]} -> {expected[1]}")


def _spec(node: ort.NodeArg) -> TensorSpec:
    shape = tuple(axis if isinstance(axis, int) else None for axis in node.shape)
    return TensorSpec(node.name, _DTYPES.get(node.type, node.type), shape)


def _check_golden(session: Session, bundle: Bundle) -> None:
    golden, tolerance = bundle.golden, bundle.manifest.golden_tolerance
    try:
        outputs = session.run(golden.images)
    except Exception as error:
        raise BundleError("golden", f"the graph fails on the images of golden.npz: {error}") from None
    for name, got, expected, allowed in (
        ("probabilities", outputs.probabilities, golden.probabilities, tolerance),
        ("ood_score", outputs.ood_score, golden.ood_score, GOLDEN_SCORE_FACTOR * tolerance),
    ):
        difference = _largest_difference(got, expected)
        # Written so that a NaN fails too.
        if not difference <= allowed:
            raise BundleError("golden", f"{name} differ by {difference:.2g}; allowed is {allowed:g}")


def _largest_difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Absolute for values up to 1, relative beyond: float32 has no more digits for a score of thousands."""
    if got.shape != expected.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(got - expected) / np.maximum(1.0, np.abs(expected))))

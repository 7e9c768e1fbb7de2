"""Inference sessions: open the graph of a bundle, verify it, and run batches.

A worker owns one session and calls it on its event loop's thread; the training package opens one to check parity and to
measure what it exports. A session that exists has passed the checks of its bundle on the requested execution provider: the
graph's signature and the golden outputs. ``providers`` opens the graph, ``io_binding`` moves batches in and out.
"""

import contextlib
import math
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from digitserve.errors import BundleError
from digitserve.inference import providers
from digitserve.inference.bundle import GOLDEN_SCORE_FACTOR, Bundle, TensorSpec, graph_signature
from digitserve.inference.io_binding import BoundRun, DirectRun, Run
from digitserve.inference.memory_limit import limited_memory
from digitserve.types import IMAGE_SIZE

if TYPE_CHECKING:
    import onnxruntime as ort

_DTYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32"}


@dataclass(frozen=True)
class Outputs:
    """The graph's outputs for a batch.

    Attributes:
        probabilities: float32[N,labels], rows sum to 1.
        ood_score: float32[N], out-of-distribution score; higher means less like the training data.
    """

    probabilities: NDArray[np.float32]
    ood_score: NDArray[np.float32]


class Session:
    """A verified onnxruntime session for one bundle; lives as long as its worker.

    Attributes:
        provider: onnxruntime's name for the execution provider in use.
    """

    def __init__(self, bundle: Bundle, *, device: str = "cpu", num_threads: int = 1) -> None:
        """Open and verify.

        Args:
            bundle: from ``read_bundle``.
            device: ``cpu``, ``cuda``, or ``auto``: CUDA if its libraries load and it has a device, otherwise the CPU.
            num_threads: onnxruntime's threads within an operator.

        Raises:
            BundleError: the graph does not load, its signature is wrong, or its outputs differ from the golden outputs.
            ProviderError: the requested provider does not load, or cannot run the whole graph.
        """
        device = providers.resolve_device(device)
        # CUDA maps far more memory than it uses.
        self._limited_memory = partial(limited_memory, num_threads) if device == "cpu" else contextlib.nullcontext
        with self._limited_memory():
            session = providers.open_session(bundle.graph, device, num_threads)
            self.provider = session.get_providers()[0]
            _check_signature(session, bundle)
            self._run: Run = (
                DirectRun(session) if device == "cpu" else BoundRun(session, device, len(bundle.manifest.labels))
            )
            _check_golden(self, bundle)

    def run(self, images: NDArray[np.uint8]) -> Outputs:
        """Classify images.

        Args:
            images: uint8[N,28,28,1], C-contiguous, N at least 1.
        """
        return Outputs(*self._run(images))

    def warm_up(self, max_batch_size: int) -> float:
        """Run batches of the maximum size and of every power of two below it, so that no request pays for allocations.

        The largest runs first: its allocations are large enough for all the others.

        Returns:
            Seconds per image in a batch of the maximum size, the best of three runs.

        Raises:
            BundleError: the graph fails on such a batch, for example because it needs too much memory.
        """
        sizes = {1 << power for power in range(max_batch_size.bit_length())} | {max_batch_size}
        with self._limited_memory():
            for size in sorted(sizes, reverse=True):
                try:
                    self.run(_zeros(size))
                except Exception as error:
                    raise BundleError("warm-up", f"the graph fails on a batch of {size} images: {error}") from None
        return min(self._time(max_batch_size) for _ in range(3)) / max_batch_size

    def _time(self, batch_size: int) -> float:
        start = time.perf_counter()
        self.run(_zeros(batch_size))
        return time.perf_counter() - start


def run_unverified(graph: bytes, images: NDArray[np.uint8]) -> Outputs:
    """Run a graph that has no bundle yet, without checks. Exporters use it to compute golden outputs.

    Args:
        graph: contents of the ONNX file.
        images: uint8[N,28,28,1], C-contiguous, N at least 1.

    Raises:
        BundleError: the graph does not load.
    """
    return Outputs(*DirectRun(providers.open_session(graph, "cpu", 1))(images))


def _zeros(batch_size: int) -> NDArray[np.uint8]:
    return np.zeros((batch_size, IMAGE_SIZE, IMAGE_SIZE, 1), np.uint8)


def _check_signature(session: "ort.InferenceSession", bundle: Bundle) -> None:
    got = tuple(tuple(_spec(node) for node in nodes) for nodes in (session.get_inputs(), session.get_outputs()))
    expected = graph_signature(len(bundle.manifest.labels))
    if (set(got[0]), set(got[1])) != (set(expected[0]), set(expected[1])):
        raise BundleError("signature", f"the graph has {got[0]} -> {got[1]}; expected {expected[0]} -> {expected[1]}")


def _spec(node: "ort.NodeArg") -> TensorSpec:
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
        # Not "difference > allowed": a NaN must fail too.
        if not difference <= allowed:
            raise BundleError("golden", f"{name} differ by {difference:.2g}; the tolerance is {allowed:g}")


def _largest_difference(got: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Return the largest difference: absolute for values up to 1, relative above, because of float32's relative precision."""
    if got.shape != expected.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(got - expected) / np.maximum(1.0, np.abs(expected))))

"""Input and output of a run of the graph: direct, or through buffers bound once per batch size (onnxruntime's IO binding).

``Session`` chooses one of the two when it opens, and calls it on its thread.

    DirectRun   images ──▶ graph ──▶ new arrays                                                       (CPU)
    BoundRun    images ──copy──▶ bucket ──copy──▶ device ──▶ graph ──▶ device ──copy──▶ new arrays    (CUDA)

On CUDA, onnxruntime plans all convolutions again whenever the batch size changes, which takes many times longer than a batch.
Batches are therefore padded to powers of two: eleven shapes up to 1,024. The first run of each records a CUDA graph, which
later runs replay, without planning and with one launch. All of them run during warm-up. ``BoundRun`` works on the CPU
provider too, where the tests check it.
"""

from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from digitserve.inference import providers
from digitserve.inference.bundle import INPUT_NAME, OUTPUT_NAMES
from digitserve.types import IMAGE_SIZE

if TYPE_CHECKING:
    import onnxruntime as ort

OutputArrays: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]
"""``probabilities`` float32[N,labels] and ``ood_score`` float32[N]: new arrays, owned by the caller."""


class Run(Protocol):
    """Runs the graph on images uint8[N,28,28,1], C-contiguous, N at least 1; returns one row per image."""

    def __call__(self, images: NDArray[np.uint8]) -> OutputArrays:
        """Classify images."""


class DirectRun:
    """Runs the graph on the CPU provider, which reads the caller's array without a copy."""

    def __init__(self, session: "ort.InferenceSession") -> None:
        self._run = session.run
        self._output_names = list(OUTPUT_NAMES)

    def __call__(self, images: NDArray[np.uint8]) -> OutputArrays:
        """Classify images."""
        probabilities, ood_score = self._run(self._output_names, {INPUT_NAME: images})
        return probabilities, ood_score


class BoundRun:
    """Runs the graph in power-of-two buckets. A bucket's buffers are allocated on first use and live as long as this object."""

    def __init__(self, session: "ort.InferenceSession", device: str, num_labels: int) -> None:
        """Allocate nothing yet.

        Args:
            session: opened on the provider of ``device``.
            device: ``cpu`` or ``cuda``.
            num_labels: number of columns of ``probabilities``.
        """
        self._session = session
        self._device = device
        self._num_labels = num_labels
        self._buckets: dict[int, _Bucket] = {}

    def __call__(self, images: NDArray[np.uint8]) -> OutputArrays:
        """Classify images."""
        size = bucket_size(len(images))
        bucket = self._buckets.get(size)
        if bucket is None:
            bucket = self._buckets[size] = _Bucket(self._session, self._device, size, self._num_labels)
        return bucket.run(images)


def bucket_size(num_images: int) -> int:
    """Return the smallest power of two that is at least ``num_images``, which is at least 1."""
    return 1 << (num_images - 1).bit_length()


class _Bucket:
    """The bound buffers of one batch size."""

    def __init__(self, session: "ort.InferenceSession", device: str, size: int, num_labels: int) -> None:
        shape = (size, IMAGE_SIZE, IMAGE_SIZE, 1)
        self._session = session
        self._options = providers.graph_options(size)
        self._images = np.zeros(shape, np.uint8)
        # A CUDA graph reads and writes the same tensors on the device at every run. A bound array of the host would be copied to
        # the device once, when it is bound.
        self._input = providers.device_tensor(device, shape, np.uint8)
        self._outputs = [
            providers.device_tensor(device, output_shape, np.float32) for output_shape in ((size, num_labels), (size,))
        ]
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT_NAME, self._input)
        for name, output in zip(OUTPUT_NAMES, self._outputs, strict=True):
            self._binding.bind_ortvalue_output(name, output)

    def run(self, images: NDArray[np.uint8]) -> OutputArrays:
        # Rows beyond the batch keep images of an earlier batch: the output of a row does not depend on other rows.
        num_images = len(images)
        self._images[:num_images] = images
        self._input.update_inplace(self._images)
        self._session.run_with_iobinding(self._binding, self._options)
        # On the CPU provider, numpy() does not copy.
        probabilities, ood_score = (output.numpy()[:num_images].copy() for output in self._outputs)
        return probabilities, ood_score

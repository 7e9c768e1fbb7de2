"""How a batch gets into the graph and out of it: directly, or through buffers that were bound once for each batch size.

``Session`` chooses one of the two when it opens and calls it from its one thread.

    Plain   images ──────────────────────────────────────────▶ graph ──▶ new arrays           (CPU)
    Bound   images ──copy──▶ page-locked ──copy──▶ on device ──▶ graph ──▶ page-locked ──copy──▶ new arrays   (CUDA)

On CUDA each new batch size costs allocations and a choice of convolution algorithms, so batches are padded to powers of
two: eleven shapes up to 1 024, all of which warm-up has seen. ``Bound`` runs on the CPU provider as well, by which tests
prove it.
"""

from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from digitserve.inference import providers
from digitserve.inference.bundle import INPUT_NAME, OUTPUT_NAMES
from digitserve.types import IMAGE_SIZE

if TYPE_CHECKING:
    import onnxruntime as ort

Arrays: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]
"""``probabilities`` float32[N,labels] and ``ood_score`` float32[N]: new arrays, the caller's own."""


class Run(Protocol):
    """One run of the graph: images uint8[N,28,28,1], C-contiguous, N at least 1, in; one row for each out."""

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """Classify images."""


class Plain:
    """Runs on the CPU provider, which reads and writes arrays where they lie."""

    def __init__(self, session: "ort.InferenceSession") -> None:
        self._run = session.run
        self._output_names = list(OUTPUT_NAMES)

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """Classify images."""
        probabilities, ood_score = self._run(self._output_names, {INPUT_NAME: images})
        return probabilities, ood_score


class Bound:
    """Runs in power-of-two buckets; each has its buffers from its first use on, as long as the session lives."""

    def __init__(self, session: "ort.InferenceSession", device: str, num_labels: int) -> None:
        """Prepare; nothing is allocated yet.

        Args:
            session: on the provider of ``device``.
            device: ``cpu`` or ``cuda``.
            num_labels: columns of ``probabilities``.
        """
        self._session = session
        self._device = device
        self._num_labels = num_labels
        self._buckets: dict[int, _Bucket] = {}

    def __call__(self, images: NDArray[np.uint8]) -> Arrays:
        """Classify images."""
        size = bucket_size(len(images))
        bucket = self._buckets.get(size)
        if bucket is None:
            bucket = self._buckets[size] = _Bucket(self._session, self._device, size, self._num_labels)
        return bucket.run(images)


def bucket_size(num_images: int) -> int:
    """Return the least power of two that holds so many images, of which there is at least one."""
    return 1 << (num_images - 1).bit_length()


class _Bucket:
    """The buffers of one batch size, bound."""

    def __init__(self, session: "ort.InferenceSession", device: str, size: int, num_labels: int) -> None:
        shape = (size, IMAGE_SIZE, IMAGE_SIZE, 1)
        self._session = session
        self._images = providers.host_array(device, shape, np.uint8)
        self._probabilities = providers.host_array(device, (size, num_labels), np.float32)
        self._ood_score = providers.host_array(device, (size,), np.float32)
        # A host array that is bound is copied to the device then and there, never again: what it holds later would be
        # ignored. So the tensor on the device is bound, and written to before each run.
        self._input = providers.device_tensor(device, shape)
        self._binding = session.io_binding()
        self._binding.bind_ortvalue_input(INPUT_NAME, self._input)
        for name, array in zip(OUTPUT_NAMES, (self._probabilities, self._ood_score), strict=True):
            self._binding.bind_output(name, "cpu", 0, np.float32, array.shape, array.ctypes.data)

    def run(self, images: NDArray[np.uint8]) -> Arrays:
        # Rows beyond the batch keep the images of an earlier one: a row's answer depends on no other row.
        num_images = len(images)
        self._images[:num_images] = images
        self._input.update_inplace(self._images)
        self._session.run_with_iobinding(self._binding)
        self._binding.synchronize_outputs()
        return self._probabilities[:num_images].copy(), self._ood_score[:num_images].copy()

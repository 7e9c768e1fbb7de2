"""Bound runs give the outputs of direct runs. ``BoundRun``, which is for CUDA, is tested here on the CPU provider."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from digitserve.inference import bundle, model_folder, providers
from digitserve.inference.io_binding import BoundRun, DirectRun, bucket_size
from support.bundles import echo_graph, echo_image
from support.digits import MODELS

MAX_BATCH_SIZE = 64


@dataclass(frozen=True)
class Runs:
    """Direct and bound runs of one graph, and images for it."""

    direct: DirectRun
    bound: BoundRun
    images: NDArray[np.uint8]


@pytest.fixture(scope="module")
def shipped() -> Runs:
    """Open the network that the project ships with."""
    shipped_bundle = bundle.read_bundle(model_folder.find_bundle(MODELS, "digits", None))
    session = providers.open_session(shipped_bundle.graph, "cpu", 1)
    golden = shipped_bundle.golden.images
    shifted = [np.roll(golden, (down, right), (1, 2)) for down in (-1, 0, 2) for right in (-2, 0, 1)]
    return Runs(DirectRun(session), BoundRun(session, "cpu", 10), np.concatenate(shifted))


def open_echo() -> BoundRun:
    """Open the echo network for bound runs."""
    return BoundRun(providers.open_session(echo_graph(), "cpu", 1), "cpu", 10)


def echo_images(numbers: list[int]) -> NDArray[np.uint8]:
    return np.stack([echo_image(number) for number in numbers])[..., None]


@pytest.mark.parametrize(
    ("num_images", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (64, 64), (65, 128), (1000, 1024), (1024, 1024)]
)
def test_a_bucket_is_the_smallest_power_of_two_that_holds_the_batch(num_images: int, size: int) -> None:
    """A batch is never padded to twice its size or more."""
    assert bucket_size(num_images) == size


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, MAX_BATCH_SIZE), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_bound_and_direct_runs_agree(shipped: Runs, sizes: list[int], seed: int) -> None:
    """Batches of all sizes in any order: labels are equal, probabilities and scores within 1e-6 (relative beyond 1)."""
    generator = np.random.default_rng(seed)
    for size in sizes:
        images = np.ascontiguousarray(shipped.images[generator.integers(0, len(shipped.images), size)])
        (direct, direct_score), (bound, bound_score) = shipped.direct(images), shipped.bound(images)
        assert bound.shape == direct.shape == (size, 10)
        assert bound_score.shape == direct_score.shape == (size,)
        assert bound.dtype == bound_score.dtype == np.float32
        assert (bound.argmax(axis=1) == direct.argmax(axis=1)).all()
        assert np.abs(bound - direct).max() <= 1e-6
        assert (np.abs(bound_score - direct_score) <= 1e-6 * np.maximum(1, np.abs(direct_score))).all()


@given(batches=st.lists(st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=MAX_BATCH_SIZE), max_size=6))
def test_each_row_belongs_to_its_own_image_of_the_current_batch(batches: list[list[int]]) -> None:
    """A batch gets exactly its own outputs, without padding, whatever ran before in the same buffers."""
    bound = open_echo()
    for numbers in batches:
        probabilities, ood_score = bound(echo_images(numbers))
        assert ood_score.tolist() == numbers
        assert probabilities.argmax(axis=1).tolist() == [number % 10 for number in numbers]


def test_outputs_are_new_arrays() -> None:
    """The outputs of a batch do not change when the next batch runs in the same buffers."""
    bound = open_echo()
    probabilities, ood_score = bound(echo_images([11, 12, 13]))
    bound(echo_images([24, 25, 26]))
    assert ood_score.tolist() == [11, 12, 13]
    assert probabilities.argmax(axis=1).tolist() == [1, 2, 3]


def test_images_may_be_read_only() -> None:
    """Read-only input works: a worker passes views of the requests' bytes."""
    images = np.frombuffer(echo_images([7, 8, 9]).tobytes(), np.uint8).reshape(3, 28, 28, 1)
    assert open_echo()(images)[1].tolist() == [7, 8, 9]


def test_the_buffers_of_a_bucket_are_allocated_once() -> None:
    """After each power of two has run once, later batches reuse the buffers of their bucket."""
    bound = open_echo()
    for power in range(4):
        bound(echo_images([1] * (1 << power)))
    buckets = {size: (id(bucket), bucket._images.ctypes.data) for size, bucket in bound._buckets.items()}
    for size in range(1, 9):
        bound(echo_images([1] * size))
    assert list(buckets) == [1, 2, 4, 8]
    assert {size: (id(bucket), bucket._images.ctypes.data) for size, bucket in bound._buckets.items()} == buckets

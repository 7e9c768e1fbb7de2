"""Bound power-of-two buckets answer as plain runs do; the class that runs on CUDA is the one tested here on the CPU."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from digitserve.inference import bundle, providers
from digitserve.inference.io_binding import Bound, Plain, bucket_size
from support.bundles import echo_graph, echo_image
from support.digits import MODELS

MAX_BATCH_SIZE = 64


@dataclass(frozen=True)
class Runs:
    """One graph, run both ways, and images for it."""

    plain: Plain
    bound: Bound
    images: NDArray[np.uint8]


@pytest.fixture(scope="module")
def shipped() -> Runs:
    """Open the network that the project ships."""
    read = bundle.read(bundle.find(MODELS, "digits", None))
    session = providers.open_graph(read.graph, "cpu", 1)
    golden = read.golden.images
    shifted = [np.roll(golden, (down, right), (1, 2)) for down in (-1, 0, 2) for right in (-2, 0, 1)]
    return Runs(Plain(session), Bound(session, "cpu", 10), np.concatenate(shifted))


def open_echo() -> Bound:
    """Return the echo network, bound."""
    return Bound(providers.open_graph(echo_graph(), "cpu", 1), "cpu", 10)


def echo_images(numbers: list[int]) -> NDArray[np.uint8]:
    return np.stack([echo_image(number) for number in numbers])[..., None]


@pytest.mark.parametrize(
    ("num_images", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (64, 64), (65, 128), (1000, 1024), (1024, 1024)]
)
def test_a_bucket_is_the_least_power_of_two_that_holds_the_batch(num_images: int, size: int) -> None:
    """No batch is padded to twice its size or more."""
    assert bucket_size(num_images) == size


@settings(max_examples=60)
@given(sizes=st.lists(st.integers(1, MAX_BATCH_SIZE), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_bound_runs_agree_with_plain_ones(shipped: Runs, sizes: list[int], seed: int) -> None:
    """Batches of all sizes in any order: labels are equal, probabilities and scores within 1e-6 (relative beyond 1)."""
    chance = np.random.default_rng(seed)
    for size in sizes:
        images = np.ascontiguousarray(shipped.images[chance.integers(0, len(shipped.images), size)])
        (plain, plain_score), (bound, bound_score) = shipped.plain(images), shipped.bound(images)
        assert bound.shape == plain.shape == (size, 10)
        assert bound_score.shape == plain_score.shape == (size,)
        assert bound.dtype == bound_score.dtype == np.float32
        assert (bound.argmax(axis=1) == plain.argmax(axis=1)).all()
        assert np.abs(bound - plain).max() <= 1e-6
        assert (np.abs(bound_score - plain_score) <= 1e-6 * np.maximum(1, np.abs(plain_score))).all()


@given(batches=st.lists(st.lists(st.integers(0, 2**24 - 1), min_size=1, max_size=MAX_BATCH_SIZE), max_size=6))
def test_each_row_is_the_answer_to_its_own_image_of_this_batch(batches: list[list[int]]) -> None:
    """Whatever ran before in the same buffers, a batch gets its own answers, to the last bit, and none of the padding."""
    bound = open_echo()
    for numbers in batches:
        probabilities, ood_score = bound(echo_images(numbers))
        assert ood_score.tolist() == numbers
        assert probabilities.argmax(axis=1).tolist() == [number % 10 for number in numbers]


def test_answers_are_the_callers_own() -> None:
    """A large request keeps the answers of its first batch while the next one runs in the same buffers."""
    bound = open_echo()
    probabilities, ood_score = bound(echo_images([11, 12, 13]))
    bound(echo_images([24, 25, 26]))
    assert ood_score.tolist() == [11, 12, 13]
    assert probabilities.argmax(axis=1).tolist() == [1, 2, 3]


def test_images_may_be_read_only() -> None:
    """A worker gives views of the requests' own bytes, which nobody may write to."""
    images = np.frombuffer(echo_images([7, 8, 9]).tobytes(), np.uint8).reshape(3, 28, 28, 1)
    assert open_echo()(images)[1].tolist() == [7, 8, 9]


def test_a_bucket_is_allocated_once() -> None:
    """After every power of two was run, no batch allocates: the buffers of each bucket are the same ones for good."""
    bound = open_echo()
    for power in range(4):
        bound(echo_images([1] * (1 << power)))
    buckets = {size: (id(bucket), bucket._images.ctypes.data) for size, bucket in bound._buckets.items()}
    for size in range(1, 9):
        bound(echo_images([1] * size))
    assert list(buckets) == [1, 2, 4, 8]
    assert {size: (id(bucket), bucket._images.ctypes.data) for size, bucket in bound._buckets.items()} == buckets

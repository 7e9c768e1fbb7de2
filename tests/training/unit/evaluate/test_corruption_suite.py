"""The corruption suite: every kind changes images, none destroys them, and results depend only on the seed."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from digitserve_training.evaluate.corruption_suite import CORRUPTIONS, Corruption, corrupt_images
from digitserve_training.model.presets import PRESETS, Augmentation


def strokes(num_images: int = 16) -> NDArray[np.uint8]:
    """Return images of a thick plus sign: uint8[N,28,28,1]."""
    images = np.zeros((num_images, 28, 28, 1), np.uint8)
    images[:, 5:22, 11:15] = 255
    images[:, 11:15, 5:22] = 200
    return images


every_kind = pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)


@every_kind
def test_shape_and_dtype_stay(corruption: Corruption) -> None:
    """The result has the shape and dtype of the input, most images change, and the input is not modified."""
    images = strokes()

    corrupted = corrupt_images(images, corruption, seed=1)

    assert (corrupted.shape, corrupted.dtype) == (images.shape, np.dtype(np.uint8))
    assert np.array_equal(images, strokes())
    changed = (corrupted != images).any(axis=(1, 2, 3))
    assert changed.mean() > 0.7, "some drops of spatter do not touch the ink"


@every_kind
def test_seed_determines_the_result(corruption: Corruption) -> None:
    """Equal seeds give equal bytes, so that all networks are evaluated on the same images."""
    first = corrupt_images(strokes(), corruption, seed=1)

    assert np.array_equal(corrupt_images(strokes(), corruption, seed=1), first)


@every_kind
def test_ink_remains_visible(corruption: Corruption) -> None:
    """No image becomes nearly uniform: ink and background, or the edges of the ink, remain distinguishable."""
    corrupted = corrupt_images(strokes(64), corruption, seed=2)

    assert np.all(corrupted.std(axis=(1, 2, 3)) > 5)


def test_the_suite_is_wide() -> None:
    """The suite has at least 14 kinds with distinct names, and they refer only to existing fields of Augmentation."""
    assert len({corruption.name for corruption in CORRUPTIONS}) == len(CORRUPTIONS) >= 14
    names = {field.name for field in dataclasses.fields(Augmentation)}
    assert all(set(corruption.similar) <= names for corruption in CORRUPTIONS)


@pytest.mark.parametrize(
    ("preset", "seen"),
    [
        ("compact", {corruption.name for corruption in CORRUPTIONS} - {"glass blur", "JPEG"}),
        ("tiny", {"defocus blur", "shear", "scale", "rotate", "translate", "wave", "contrast"}),
        ("lenet5", set()),
    ],
)
def test_augmentation_decides_what_is_in_training(preset: str, seen: set[str]) -> None:
    """A preset's augmentation decides which kinds count as similar to training; without augmentation, none do."""
    augmentation = PRESETS[preset].augmentation

    assert {corruption.name for corruption in CORRUPTIONS if corruption.is_in(augmentation)} == seen


@pytest.mark.parametrize(("name", "low", "high"), [("translate", 2.5, 7.2), ("rotate", 0.0, 0.8), ("scale", 0.0, 0.8)])
def test_geometric_corruptions_move_the_centre_of_mass(name: str, low: float, high: float) -> None:
    """Translation moves the centre of mass by 2 to 5 pixels per axis; rotation and scaling by less than 0.8 pixels."""
    (corruption,) = (one for one in CORRUPTIONS if one.name == name)
    corrupted = corrupt_images(strokes(64), corruption, seed=3)[..., 0].astype(np.float64)
    rows, columns = np.mgrid[:28, :28]
    total = corrupted.sum(axis=(1, 2))
    moved = np.hypot(
        (corrupted * rows).sum(axis=(1, 2)) / total - 12.99, (corrupted * columns).sum(axis=(1, 2)) / total - 12.99
    )

    assert low <= moved.min() <= moved.max() <= high

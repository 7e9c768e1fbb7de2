"""What the suite of corruptions promises: every kind damages, none destroys, and the same seed damages alike."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from digitserve_training.evaluate.corruption_suite import CORRUPTIONS, Corruption, corrupted
from digitserve_training.model.presets import PRESETS, Augmentation


def strokes(num_images: int = 16) -> NDArray[np.uint8]:
    """Return images of a thick plus sign: uint8[N,28,28,1]."""
    images = np.zeros((num_images, 28, 28, 1), np.uint8)
    images[:, 5:22, 11:15] = 255
    images[:, 11:15, 5:22] = 200
    return images


every_kind = pytest.mark.parametrize("corruption", CORRUPTIONS, ids=lambda corruption: corruption.name)


@every_kind
def test_images_stay_images(corruption: Corruption) -> None:
    """What comes out has the shape and dtype of what went in, nearly all is changed, and the original is left as it was."""
    images = strokes()

    damaged = corrupted(images, corruption, seed=1)

    assert (damaged.shape, damaged.dtype) == (images.shape, np.dtype(np.uint8))
    assert np.array_equal(images, strokes())
    changed = (damaged != images).any(axis=(1, 2, 3))
    assert changed.mean() > 0.7, "water falls beside the ink at times"


@every_kind
def test_a_seed_decides(corruption: Corruption) -> None:
    """The same seed gives the same bytes, so that every network is judged by the same images."""
    first = corrupted(strokes(), corruption, seed=1)

    assert np.array_equal(corrupted(strokes(), corruption, seed=1), first)


@every_kind
def test_ink_is_still_there(corruption: Corruption) -> None:
    """No image loses its figure: where ink was and where it was not remain apart, or the edges of it do."""
    damaged = corrupted(strokes(64), corruption, seed=2)

    assert np.all(damaged.std(axis=(1, 2, 3)) > 5)


def test_the_suite_is_wide() -> None:
    """At least 14 kinds, their names unlike, each naming only bounds of augmentations that there are."""
    assert len({corruption.name for corruption in CORRUPTIONS}) == len(CORRUPTIONS) >= 14
    bounds = {field.name for field in dataclasses.fields(Augmentation)}
    assert all(set(corruption.like) <= bounds for corruption in CORRUPTIONS)


@pytest.mark.parametrize(
    ("preset", "seen"),
    [
        ("compact", {corruption.name for corruption in CORRUPTIONS} - {"glass blur", "JPEG"}),
        ("tiny", {"defocus blur", "shear", "scale", "rotate", "translate", "wave", "contrast"}),
        ("lenet5", set()),
    ],
)
def test_what_training_has_seen_the_like_of(preset: str, seen: set[str]) -> None:
    """Each preset's augmentation decides which kinds count as seen in training; without any, none do."""
    augmentation = PRESETS[preset].augmentation

    assert {corruption.name for corruption in CORRUPTIONS if corruption.trained(augmentation)} == seen


@pytest.mark.parametrize(("name", "low", "high"), [("translate", 2.5, 7.2), ("rotate", 0.0, 0.8), ("scale", 0.0, 0.8)])
def test_geometry_moves_what_it_says(name: str, low: float, high: float) -> None:
    """Translation moves the centre of mass by 2 to 5 pixels along each axis; turning and scaling leave it near the centre."""
    (corruption,) = (one for one in CORRUPTIONS if one.name == name)
    damaged = corrupted(strokes(64), corruption, seed=3)[..., 0].astype(np.float64)
    rows, columns = np.mgrid[:28, :28]
    total = damaged.sum(axis=(1, 2))
    moved = np.hypot(
        (damaged * rows).sum(axis=(1, 2)) / total - 12.99, (damaged * columns).sum(axis=(1, 2)) / total - 12.99
    )

    assert low <= moved.min() <= moved.max() <= high

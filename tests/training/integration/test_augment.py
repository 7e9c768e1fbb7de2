"""Augmentation: bounded, reproducible changes; pixels from outside the image are background."""

import numpy as np
import pytest
from numpy.typing import NDArray

from digitserve_training._tensorflow import tf
from digitserve_training.augment.augmentation import augment, mix
from digitserve_training.model.presets import PRESETS, Augmentation

COMPACT = PRESETS["compact"].augmentation


def strokes(num_images: int = 32) -> NDArray[np.uint8]:
    """Return images of a centred plus sign with strokes of three pixels: uint8[N,28,28,1]."""
    images = np.zeros((num_images, 28, 28, 1), np.uint8)
    images[:, 8:20, 13:16] = 255
    images[:, 13:16, 8:20] = 200
    return images


def augmented_images(images: NDArray[np.uint8], bounds: Augmentation, seed: int = 1) -> NDArray[np.uint8]:
    """Augment images and return numpy arrays."""
    augmented: NDArray[np.uint8] = augment(tf.constant(images), tf.constant([seed, 0]), bounds).numpy()
    return augmented


def centre_of_mass(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return (row, column) of each image's centre of mass: float64[N,2]."""
    ink = images[..., 0].astype(np.float64)
    rows, columns = np.arange(28)[:, None], np.arange(28)[None, :]
    total = ink.sum(axis=(1, 2))
    return np.stack([(ink * rows).sum(axis=(1, 2)) / total, (ink * columns).sum(axis=(1, 2)) / total], axis=1)


@pytest.mark.parametrize("num_images", [1, 7])
def test_shape_and_dtype_stay(num_images: int) -> None:
    """The result is uint8[N,28,28,1] like the input, and different from it."""
    images = strokes(num_images)

    augmented = augmented_images(images, COMPACT)

    assert (augmented.shape, augmented.dtype) == (images.shape, np.dtype(np.uint8))
    assert not np.array_equal(augmented, images)


def test_no_bounds_no_change() -> None:
    """With all bounds at zero each pixel stays as it is."""
    assert np.array_equal(augmented_images(strokes(), Augmentation()), strokes())


def test_seed_determines_the_result() -> None:
    """Equal seeds give equal images, compiled or not; different seeds give different images."""
    compiled = tf.function(lambda images, seed: augment(images, seed, COMPACT))

    first = augmented_images(strokes(), COMPACT)

    assert np.array_equal(augmented_images(strokes(), COMPACT), first)
    assert not np.array_equal(augmented_images(strokes(), COMPACT, seed=2), first)
    differing = np.abs(compiled(strokes(), tf.constant([1, 0])).numpy().astype(int) - first)
    assert differing.max() <= 1, "compiled code may round differently"


def test_each_image_is_changed_on_its_own() -> None:
    """Equal images in one batch are changed differently."""
    augmented = augmented_images(strokes(), COMPACT)

    assert len({image.tobytes() for image in augmented}) == len(augmented)


def test_clean_images_are_only_warped() -> None:
    """The share ``clean`` of the images is only warped: without geometric changes these images are unchanged."""
    bounds = Augmentation(thicken=0.7, thin=0.6, noise=0.08, corrupted=0.5, clean=0.25)

    augmented = augmented_images(strokes(), bounds)

    unchanged = np.array([np.array_equal(image, strokes(1)[0]) for image in augmented])
    assert unchanged.mean() == pytest.approx(0.25, abs=1 / 32)


def test_background_comes_in_from_outside() -> None:
    """Pixels that come from outside the image are background, not a reflection of the image."""
    full = np.full((32, 28, 28, 1), 255, np.uint8)

    shifted = augmented_images(full, Augmentation(shift_px=3.0))

    assert np.all(shifted[:, 4:-4, 4:-4] == 255)
    assert np.mean((shifted[:, [0, -1]] < 255).any(axis=(1, 2, 3))) > 0.9
    assert np.array_equal(
        augmented_images(np.zeros_like(full), Augmentation(shift_px=3.0, thin=0.5, thicken=0.5)), full * 0
    )


def test_shift_is_bounded() -> None:
    """The centre of mass moves by at most the bound, along both axes and in both directions."""
    moved = centre_of_mass(augmented_images(strokes(256), Augmentation(shift_px=2.0))) - centre_of_mass(strokes(256))

    assert np.abs(moved).max() <= 2.05
    assert np.all(moved.min(axis=0) < -1)
    assert np.all(moved.max(axis=0) > 1)


@pytest.mark.parametrize("bounds", [Augmentation(rotation_deg=20), Augmentation(scale=0.2), Augmentation(shear=0.3)])
def test_shape_changes_are_about_the_centre(bounds: Augmentation) -> None:
    """Rotation, scaling and shear change the image and keep a centred stroke centred."""
    centred = np.zeros((64, 28, 28, 1), np.uint8)
    centred[:, 8:20, 12:16] = 255

    augmented = augmented_images(centred, bounds)

    assert not np.array_equal(augmented, centred)
    assert np.abs(centre_of_mass(augmented) - 13.5).max() < 0.1


@pytest.mark.parametrize(
    ("bounds", "low", "high"),
    [(Augmentation(thicken=0.6), 1.0, 2.5), (Augmentation(thin=0.6), 0.3, 1.0), (Augmentation(contrast=0.4), 0.6, 1.0)],
)
def test_ink_changes_in_the_right_direction(bounds: Augmentation, low: float, high: float) -> None:
    """Thickening adds ink; thinning and less contrast remove some of it, but never all."""
    ink = augmented_images(strokes(), bounds).sum(axis=(1, 2, 3)) / strokes().sum(axis=(1, 2, 3))

    assert low - 0.01 <= ink.min() < ink.max() <= high + 0.01


def test_blur_keeps_ink_and_lowers_peaks() -> None:
    """Blur spreads the ink of about half of the images; away from the border no ink is lost."""
    blurred = augmented_images(strokes(), Augmentation(blur=1.0))

    assert np.allclose(blurred.sum(axis=(1, 2, 3)) / strokes().sum(axis=(1, 2, 3)), 1, atol=0.01)
    wider = (blurred > 0).sum(axis=(1, 2, 3)) > (strokes() > 0).sum(axis=(1, 2, 3))
    assert 0.25 < wider.mean() < 0.75
    assert np.array_equal(blurred[~wider], strokes()[~wider])


def test_noise_is_bounded() -> None:
    """Noise has at most the given standard deviation and keeps the mean."""
    grey = np.full((64, 28, 28, 1), 128, np.uint8)

    noisy = augmented_images(grey, Augmentation(noise=0.1)).astype(float)

    assert 0.05 * 255 < noisy.std(axis=(1, 2, 3)).max() <= 0.11 * 255
    assert abs(noisy.mean() - 128) < 1


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_mixed_images_lie_between_two_of_the_batch(share: float) -> None:
    """About the given share of the images is blended with the neighbour in the batch; the others are unchanged, and all
    that must not be blended are among them; equal seeds give equal results.
    """
    images = np.random.default_rng(1).integers(0, 256, (250, 28, 28, 1)).astype(np.uint8)
    unmixed = np.arange(250) % 5 == 0

    mixed, chosen = (tensor.numpy() for tensor in mix(tf.constant(images), tf.constant([1, 2]), share, unmixed))

    assert (mixed.shape, mixed.dtype) == (images.shape, np.dtype(np.uint8))
    assert not chosen[unmixed].any()
    assert np.mean(chosen[~unmixed]) == pytest.approx(share, abs=0.15)
    assert np.array_equal(mixed[~chosen], images[~chosen])
    neighbours = np.roll(images, 1, axis=0)
    low, high = np.minimum(images, neighbours), np.maximum(images, neighbours)
    assert np.all((low <= mixed) & (mixed <= high))
    assert (
        share == 0
        or len({round(float(np.mean(one == other)), 1) for one, other in zip(mixed, images, strict=True)}) > 1
    )
    again, _ = mix(tf.constant(images), tf.constant([1, 2]), share, unmixed)
    assert np.array_equal(again.numpy(), mixed)

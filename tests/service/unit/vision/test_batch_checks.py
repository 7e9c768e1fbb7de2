"""Which 28x28 images of unspecified framing are used as they are, and which are framed."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from digitserve.types import Gray, Ink
from digitserve.vision.background import MIN_CONTRAST
from digitserve.vision.batch_checks import FOREGROUND_LEVEL, Treatment, check, decide
from digitserve.vision.components import segment
from digitserve.vision.framing import frame
from support.framing_cases import THREE, draw_strokes


def digit(size: int = 22, top: int = 3, left: int = 3, level: int = 255) -> Gray:
    """Draw a light 3 on black; the ink has about 0.9 of ``size``."""
    image = np.zeros((28, 28), np.float32)
    image[top : top + size, left : left + size] = draw_strokes(size, THREE)
    return (level * image).astype(np.uint8)


LIKE_MNIST = frame(digit(), Ink.LIGHT_ON_DARK).pixels


def undecided(images: Gray) -> np.ndarray:
    """Leave the framing of all images to the service."""
    return np.ones(len(images), np.bool_)


@pytest.mark.parametrize(
    ("image", "treatment"),
    [
        (LIKE_MNIST, Treatment.AS_IS),
        (np.roll(LIKE_MNIST, (1, -1), (0, 1)), Treatment.AS_IS),
        (LIKE_MNIST // 3, Treatment.STRETCH),
        (255 - LIKE_MNIST, Treatment.FRAME),
        (digit(14, 7, 7), Treatment.FRAME),
        (np.roll(LIKE_MNIST, 3, 1), Treatment.FRAME),
        (np.zeros((28, 28), np.uint8), Treatment.AS_IS),
        (np.full((28, 28), 255, np.uint8), Treatment.AS_IS),
    ],
    ids=["like MNIST", "moved by one", "pale", "dark on light", "small", "off-centre", "black", "white"],
)
def test_only_images_that_differ_from_mnist_are_framed(image: Gray, treatment: Treatment) -> None:
    """Each kind of difference from MNIST has its treatment, for an image alone and in a batch."""
    assert decide(image) is treatment
    for number in (1, 2, 5):
        batch = np.stack([image] * number)
        checked = check(batch, undecided(batch))
        if treatment is Treatment.AS_IS:
            assert checked.images is batch or (checked.images == batch).all()
        elif treatment is Treatment.FRAME:
            assert (checked.images == frame(image, Ink.AUTO).pixels).all()
        else:
            assert (checked.images.min(), checked.images.max()) == (0, 255)
            assert ((checked.images > 128) == (LIKE_MNIST > 128)).mean() > 0.98


def test_stripes_are_not_turned_into_paper() -> None:
    """A digit between light stripes at the left and the right is used as it is: two light sides are not paper."""
    striped = LIKE_MNIST.copy()
    striped[:, :6] = striped[:, -6:] = 255
    assert decide(striped) is Treatment.AS_IS


def test_noise_and_ink_at_the_border_leave_an_image_as_it_is() -> None:
    """Without a flat background, or with ink that reaches the border, size and place are not to be trusted."""
    noisy = (
        (np.roll(LIKE_MNIST, 3, 0) + np.random.default_rng(0).uniform(0, 60, (28, 28))).clip(0, 255).astype(np.uint8)
    )
    cut = np.roll(LIKE_MNIST, 5, 0)
    assert decide(noisy) is Treatment.AS_IS
    assert decide(cut) is Treatment.AS_IS


def test_images_that_are_decided_are_not_changed() -> None:
    """Only rows marked as undecided change; the caller's array never does."""
    batch = np.stack([255 - LIKE_MNIST] * 4)
    before = batch.copy()
    flags = np.array([False, True, False, True])
    checked = check(batch, flags)
    assert (batch == before).all()
    assert [(image == row).all() for image, row in zip(checked.images, batch, strict=True)] == [
        True,
        False,
        True,
        False,
    ]
    assert check(batch).images is batch


@settings(max_examples=50)
@given(arrays(np.uint8, st.tuples(st.integers(1, 8), st.just(28), st.just(28))), st.integers(1, 8))
def test_a_batch_is_checked_as_its_images_are(noise: Gray, number: int) -> None:
    """Each image has the same pixels and flags alone and in any batch."""
    batch = np.concatenate([noise, np.stack([LIKE_MNIST, digit(12), 255 - digit(), 0 * LIKE_MNIST])])[-number - 3 :]
    together = check(batch, undecided(batch))
    for index, image in enumerate(batch):
        alone = check(image[None], undecided(image[None]))
        for ours, theirs in zip(together, alone, strict=True):
            assert (ours[index] == theirs[0]).all()


def varied(seed: int) -> Gray:
    """Return images that look like MNIST's, nearly so, or not at all: uint8[N, 28, 28], N from 3 to 12."""
    generator = np.random.default_rng(seed)
    images = []
    for _ in range(generator.integers(3, 13)):
        image = np.roll(LIKE_MNIST, generator.integers(-3, 4, 2), (0, 1)).astype(np.float32)
        if generator.random() < 0.3:  # a second shape, or a speck
            top, left, side = generator.integers((0, 0, 1), (22, 22, 7))
            image[top : top + side, left : left + side] = 255
        if generator.random() < 0.2:
            image[:, generator.integers(0, 28)] = 0  # a cut
        if generator.random() < 0.2:
            image += generator.uniform(0, 60, image.shape)
        image = image * generator.uniform(0.1, 1) + generator.uniform(0, 100) * (generator.random() < 0.3)
        if generator.random() < 0.1:
            image = 255 - image
        images.append(image.clip(0, 255).astype(np.uint8))
    return np.stack(images)


def expected(image: Gray) -> tuple[Gray, bool, bool]:
    """Return the result of the checks of one image without quick tests: its pixels, blank and several."""
    treatment = decide(image)
    if treatment is Treatment.FRAME and not (framed := frame(image, Ink.AUTO)).blank:
        return framed.pixels, False, framed.several
    if treatment is Treatment.STRETCH:
        low, high = int(image.min()), int(image.max())
        image = ((image.astype(np.float32) - low) * (255 / (high - low)) + 0.5).astype(np.uint8)
    blank = int(image.max()) - int(image.min()) < MIN_CONTRAST
    segmentation = segment(image >= FOREGROUND_LEVEL)
    return image, blank, segmentation is not None and segmentation.several and not blank


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_quick_tests_decide_as_the_exact_ones(seed: int) -> None:
    """Each image of a batch has the pixels and flags that ``decide``, framing and segmentation give for it alone."""
    batch = varied(seed)
    checked = check(batch, undecided(batch))
    for index, image in enumerate(batch):
        pixels, blank, several = expected(image)
        assert (checked.images[index] == pixels).all()
        assert (checked.blank[index], checked.several[index]) == (blank, several)


def test_a_framed_image_has_the_flags_of_framing() -> None:
    """Two dark shapes on light paper are several after framing, and a blank sheet stays blank."""
    two = np.full((28, 28), 250, np.uint8)
    two[4:24, 3:9] = two[4:24, 18:24] = 10
    blank = np.full((28, 28), 250, np.uint8)
    checked = check(np.stack([two, blank, LIKE_MNIST]), np.ones(3, np.bool_))
    assert checked.several.tolist() == [True, False, False]
    assert checked.blank.tolist() == [False, True, False]

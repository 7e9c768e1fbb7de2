"""Polarity, framing and verdicts, on generated images and on scikit-learn's digits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from digitserve.batching.prepare import prepare_gray
from digitserve.types import Framing, Gray, Ink
from digitserve.vision.batch_checks import as_is, verdicts
from digitserve.vision.framing import frame
from digitserve.vision.polarity import find_ink

NEGATIVE = {Ink.LIGHT_ON_DARK: Ink.DARK_ON_LIGHT, Ink.DARK_ON_LIGHT: Ink.LIGHT_ON_DARK, Ink.AUTO: Ink.AUTO}
inks = st.sampled_from(Ink)
sides = st.integers(1, 70)
images = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.uint8, shape))
seeds = st.integers(0, 2**32 - 1)


def stroke(height: int, width: int, *, shear: float = 0.0, thickness: float = 0.15) -> Gray:
    """Draw a ring with soft edges, light on dark, that touches all four sides: a 0, with an optional shear."""
    y, x = np.mgrid[0:height, 0:width]
    v, u = (y + 0.5) / height * 2 - 1, (x + 0.5) / width * 2 - 1
    radius = np.hypot(u + shear * v * (1 - np.abs(v)), v)
    edge = (thickness - np.abs(radius - 1 + thickness)) * min(height, width) / 2
    pixels: Gray = (255 * (edge + 0.5).clip(0, 1)).astype(np.uint8)
    return pixels


def on_paper(digit: Gray, seed: int, *, noise: float = 6) -> Gray:
    """Draw a light digit as dark ink on paper that is lit from one side, with sensor noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : digit.shape[0] * 1j, -1 : 1 : digit.shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    paper = 190 + 35 * (np.cos(angle) * x + np.sin(angle) * y) - 15 * (x * x + y * y)
    lit = paper * (1 - digit / 255 * 0.75) + rng.normal(0, noise, digit.shape)
    photo: Gray = lit.clip(0, 255).round().astype(np.uint8)
    return photo


def center_of_mass(pixels: Gray) -> tuple[float, float]:
    """Return y and x, where the centre of the first pixel is at 0.5."""
    weights = pixels.astype(np.float64)
    y, x = np.indices(pixels.shape) + 0.5
    return float((weights * y).sum() / weights.sum()), float((weights * x).sum() / weights.sum())


def difference(ours: Gray, theirs: Gray) -> float:
    """Return the mean difference in grey levels at the best of nine shifts.

    If the centre of mass is on the edge between two pixels, the slightest change of the image moves it by a pixel.
    """
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return min(float(np.abs(np.roll(ours, by, (0, 1)).astype(float) - theirs).mean()) for by in shifts)


class TestAsIs:
    """Images of the network's size are not framed."""

    @given(arrays(np.uint8, (3, 28, 28)))
    def test_light_ink_is_unchanged(self, gray: Gray) -> None:
        """With light ink the network receives exactly the caller's bytes."""
        prepared = prepare_gray(gray, Ink.LIGHT_ON_DARK, Framing.AS_IS)
        assert prepared.images.shape == (3, 28, 28, 1)
        assert prepared.images.tobytes() == gray.tobytes()

    @given(arrays(np.uint8, (3, 28, 28)))
    def test_dark_ink_is_inverted(self, gray: Gray) -> None:
        """With dark ink each pixel becomes 255 minus itself, and nothing else changes."""
        assert (as_is(gray, Ink.DARK_ON_LIGHT) == 255 - gray).all()

    @given(arrays(np.uint8, (2, 28, 28)))
    def test_auto_gives_the_image_or_its_negative(self, gray: Gray) -> None:
        """With AUTO each image is kept or inverted as a whole, according to ``find_ink``."""
        for image, prepared in zip(gray, as_is(gray, Ink.AUTO), strict=True):
            assert (prepared == (image if find_ink(image) is Ink.LIGHT_ON_DARK else 255 - image)).all()


class TestFrame:
    """``frame`` makes an image like MNIST's from any image."""

    @settings(max_examples=50)
    @given(images, inks)
    def test_every_image_is_framed(self, gray: Gray, ink: Ink) -> None:
        """No image of any shape raises; the result is uint8[28, 28], all zero if and only if blank, full ink at 255."""
        framed = frame(gray, ink)
        assert framed.pixels.shape == (28, 28)
        assert framed.pixels.dtype == np.uint8
        assert framed.pixels.max() == (0 if framed.blank else 255)
        assert not (framed.blank and framed.several)

    @settings(max_examples=50)
    @given(images, inks)
    def test_the_negative_is_framed_alike(self, gray: Gray, ink: Ink) -> None:
        """An image, and its negative with the opposite polarity, give the same result."""
        if ink is Ink.AUTO and find_ink(gray) is find_ink(255 - gray):
            return  # a tie: the evidence for both polarities is equal
        ours, theirs = frame(gray, ink), frame(255 - gray, NEGATIVE[ink])
        assert (ours.pixels == theirs.pixels).all()
        assert ours.blank or ours.ink is NEGATIVE[theirs.ink]
        assert ours._replace(ink=theirs.ink)[1:] == theirs[1:]

    @settings(max_examples=50)
    @given(st.integers(8, 90), st.integers(8, 90))
    def test_longest_side_is_20_and_aspect_is_kept(self, height: int, width: int) -> None:
        """Ink is scaled to 20 pixels on its longest side and in proportion on the other, up to rounding."""
        pixels = frame(np.pad(stroke(height, width), 5), Ink.LIGHT_ON_DARK).pixels
        rows, columns = np.flatnonzero(pixels.max(axis=1) > 25), np.flatnonzero(pixels.max(axis=0) > 25)
        spans = np.array([np.ptp(rows) + 1, np.ptp(columns) + 1])
        assert np.abs(spans - np.array([height, width]) * 20 / max(height, width)).max() <= 2.5

    @settings(max_examples=50)
    @given(st.integers(12, 90), st.integers(12, 60), st.floats(-0.5, 0.5))
    def test_centre_of_mass_is_in_pixel_14(self, height: int, width: int, shear: float) -> None:
        """The centre of mass is in pixel 14 of both axes, as in every MNIST image, up to rounding to 8 bits."""
        pixels = frame(np.pad(stroke(height, width, shear=shear), 3), Ink.LIGHT_ON_DARK).pixels
        for center in center_of_mass(pixels):
            assert 13.95 <= center <= 15.05

    @given(st.tuples(*[st.integers(0, 18)] * 4))
    def test_margins_do_not_change_the_result(self, margins: tuple[int, int, int, int]) -> None:
        """Any margins on the four sides of an image give the same bytes."""
        top, bottom, left, right = margins
        digit = np.pad(stroke(24, 18), 1)
        moved = np.pad(digit, ((top, bottom), (left, right)))
        assert (frame(moved, Ink.LIGHT_ON_DARK).pixels == frame(digit, Ink.LIGHT_ON_DARK).pixels).all()

    @settings(max_examples=40)
    @given(st.integers(20, 400), st.floats(-0.5, 0.5))
    def test_size_hardly_changes_the_result(self, size: int, shear: float) -> None:
        """The same shape drawn at 20 to 400 pixels gives nearly the same result: less than 12 grey levels apart on average."""
        ours = frame(np.pad(stroke(size, round(size * 0.7), shear=shear), size // 4), Ink.LIGHT_ON_DARK)
        reference = frame(np.pad(stroke(80, 56, shear=shear), 20), Ink.LIGHT_ON_DARK)
        assert difference(ours.pixels, reference.pixels) < 12

    @settings(max_examples=40)
    @given(st.integers(28, 300), seeds)
    def test_uneven_paper_and_noise_are_removed(self, size: int, seed: int) -> None:
        """Dark ink on unevenly lit, noisy paper gives nearly the result of the clean shape, without the paper."""
        digit = np.pad(stroke(size, round(size * 0.7)), size // 2)
        ours, clean = frame(on_paper(digit, seed), Ink.AUTO), frame(digit, Ink.LIGHT_ON_DARK)
        assert not ours.blank
        assert not ours.several
        assert difference(ours.pixels, clean.pixels) < 16

    def test_specks_do_not_change_the_result(self) -> None:
        """A speck far from the digit is outside its bounding box and not in the result."""
        digit = np.pad(stroke(60, 42), 40)
        specked = digit.copy()
        specked[3:5, 3:5] = 255
        framed = frame(specked, Ink.LIGHT_ON_DARK)
        assert not framed.several
        assert (framed.pixels == frame(digit, Ink.LIGHT_ON_DARK).pixels).all()

    @pytest.mark.parametrize("size", [1000, 4096])
    def test_a_small_digit_in_a_huge_image_keeps_its_detail(self, size: int) -> None:
        """A digit of 60 pixels in an image of 4096 is framed from the original pixels, not from the reduced image."""
        huge = np.zeros((size, size), np.uint8)
        huge[300:360, 700:742] = stroke(60, 42)
        small = frame(np.pad(stroke(60, 42), 10), Ink.LIGHT_ON_DARK)
        assert difference(frame(huge, Ink.LIGHT_ON_DARK).pixels, small.pixels) < 4

    @pytest.mark.parametrize("shape", [(1, 1), (1, 4096), (4096, 1), (2, 3), (3, 4096)])
    def test_extreme_aspect_ratios_are_framed(self, shape: tuple[int, int]) -> None:
        """An image of one row or column of pixels is framed."""
        gray = np.zeros(shape, np.uint8)
        gray[..., shape[1] // 2 :] = 255
        assert frame(gray, Ink.AUTO).pixels.shape == (28, 28)


class TestBlank:
    """An image without ink is blank, framed or not."""

    @given(st.integers(0, 255), sides, sides, inks)
    def test_a_constant_image_is_blank(self, level: int, height: int, width: int, ink: Ink) -> None:
        """An image of a single grey level has no ink, at any level."""
        assert frame(np.full((height, width), level, np.uint8), ink).blank
        assert verdicts(np.full((2, 28, 28), level, np.uint8))[0].all()

    @settings(max_examples=50)
    @given(st.integers(16, 90), seeds, st.floats(0.5, 20), inks)
    def test_noise_alone_is_blank(self, size: int, seed: int, deviation: float, ink: Ink) -> None:
        """Sensor noise of up to 20 grey levels on empty paper is not taken for ink."""
        noise = np.random.default_rng(seed).normal(128, deviation, (size, size))
        assert frame(noise.clip(0, 255).astype(np.uint8), ink).blank

    def test_faint_noise_is_blank_without_framing(self) -> None:
        """A dark 28x28 image with a few grey levels of noise is blank when it is used as it is."""
        noise = np.random.default_rng(7).integers(0, 12, (5, 28, 28)).astype(np.uint8)
        assert verdicts(noise)[0].all()


class TestSeveral:
    """Two separate shapes are several; one digit is not, whole or broken."""

    @settings(max_examples=50)
    @given(st.integers(4, 12), st.booleans(), st.integers(1, 8))
    def test_two_shapes_are_several(self, gap: int, upright: bool, scale: int) -> None:
        """Two shapes of 20 pixels with a gap of 4 or more are several, side by side or stacked, at any scale."""
        pair = np.zeros((20 * scale, (2 * 14 + gap) * scale), np.uint8)
        pair[:, : 14 * scale] = pair[:, -14 * scale :] = stroke(20 * scale, 14 * scale)
        pair = np.pad(pair if upright else pair.T, 4 * scale)
        assert frame(pair, Ink.LIGHT_ON_DARK).several

    @settings(max_examples=50)
    @given(st.integers(16, 300), st.floats(-0.5, 0.5))
    def test_one_shape_is_not_several(self, size: int, shear: float) -> None:
        """A connected shape is not several, at any size."""
        assert not frame(np.pad(stroke(size, round(size * 0.7), shear=shear), 4), Ink.LIGHT_ON_DARK).several

    def test_a_broken_stroke_is_one_shape(self) -> None:
        """A ring with a gap of one pixel, and a body with a detached bar above it, are one digit each."""
        broken = np.pad(stroke(20, 14), ((4, 4), (7, 7)))
        broken[13] = 0
        barred = np.pad(stroke(14, 12), ((10, 4), (8, 8)))
        barred[4:7, 10:20] = 255
        assert not verdicts(np.stack([broken, barred]))[1].any()
        assert not any(frame(image, Ink.LIGHT_ON_DARK).several for image in (broken, barred))

    def test_verdicts_are_in_the_order_of_the_images(self) -> None:
        """Each image of a batch has its own verdict, at its own index."""
        one, two = np.pad(stroke(20, 14), ((4, 4), (7, 7))), np.zeros((28, 28), np.uint8)
        two[6:20, 2:12] = two[6:20, 16:26] = stroke(14, 10)
        blank, several = verdicts(np.stack([one, two, 0 * one, two, one]))
        assert blank.tolist() == [False, False, True, False, False]
        assert several.tolist() == [False, True, False, True, False]

    def test_an_empty_batch_has_no_verdicts(self) -> None:
        """A batch without images gives empty arrays."""
        assert [len(verdict) for verdict in verdicts(np.zeros((0, 28, 28), np.uint8))] == [0, 0]


class TestPrepare:
    """A request's images are prepared together."""

    @settings(max_examples=50)
    @given(arrays(np.uint8, st.tuples(st.integers(1, 3), sides, sides)), inks)
    def test_each_image_is_framed_by_itself(self, gray: Gray, ink: Ink) -> None:
        """Preparing many images is framing each, in order."""
        prepared = prepare_gray(gray, ink, Framing.MNIST)
        for index, image in enumerate(gray):
            framed = frame(image, ink)
            assert (prepared.images[index, :, :, 0] == framed.pixels).all()
            assert (prepared.blank[index], prepared.several[index]) == (framed.blank, framed.several)


class TestRealDigits:
    """Handwritten digits that scikit-learn contains: 1 797 images of 8x8 pixels."""

    def test_small_real_digits(self) -> None:
        """None is blank, at most 0.1 % are several, and the polarity of 99 % is right, of their negatives too."""
        datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
        gray = (datasets.load_digits().images * (255 / 16)).round().astype(np.uint8)
        prepared = prepare_gray(gray, Ink.LIGHT_ON_DARK, Framing.MNIST)
        assert not prepared.blank.any()
        assert prepared.several.mean() <= 0.001
        assert np.mean([find_ink(image) is Ink.LIGHT_ON_DARK for image in gray]) >= 0.99
        assert np.mean([find_ink(255 - image) is Ink.DARK_ON_LIGHT for image in gray]) >= 0.99

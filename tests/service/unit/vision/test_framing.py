"""Preparing pixels: colour, ink, framing, verdicts, on generated images and scikit-learn's digits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from digitserve.batching.prepare import prepare_gray
from digitserve.types import Framing, Ink
from digitserve.vision.framing import as_is, find_ink, frame, to_gray, verdicts

Gray = NDArray[np.uint8]

NEGATIVE = {Ink.LIGHT_ON_DARK: Ink.DARK_ON_LIGHT, Ink.DARK_ON_LIGHT: Ink.LIGHT_ON_DARK, Ink.AUTO: Ink.AUTO}
inks = st.sampled_from(Ink)
sides = st.integers(1, 70)
images = st.tuples(sides, sides).flatmap(lambda shape: arrays(np.uint8, shape))
seeds = st.integers(0, 2**32 - 1)


def stroke(height: int, width: int, *, shear: float = 0.0, thickness: float = 0.15) -> Gray:
    """Draw a soft-edged ring, light on dark, that touches all four sides: a 0, sheared if wanted."""
    y, x = np.mgrid[0:height, 0:width]
    v, u = (y + 0.5) / height * 2 - 1, (x + 0.5) / width * 2 - 1
    radius = np.hypot(u + shear * v * (1 - np.abs(v)), v)
    edge = (thickness - np.abs(radius - 1 + thickness)) * min(height, width) / 2
    drawn: Gray = (255 * (edge + 0.5).clip(0, 1)).astype(np.uint8)
    return drawn


def on_paper(digit: Gray, seed: int, *, noise: float = 6) -> Gray:
    """Lay a light digit as dark ink on paper that is lit from one side, with sensor noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : digit.shape[0] * 1j, -1 : 1 : digit.shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    paper = 190 + 35 * (np.cos(angle) * x + np.sin(angle) * y) - 15 * (x * x + y * y)
    lit = paper * (1 - digit / 255 * 0.75) + rng.normal(0, noise, digit.shape)
    shot: Gray = lit.clip(0, 255).round().astype(np.uint8)
    return shot


def center_of_mass(pixels: Gray) -> tuple[float, float]:
    """Return y and x, where the centre of the first pixel is at 0.5."""
    weights = pixels.astype(np.float64)
    y, x = np.indices(pixels.shape) + 0.5
    return float((weights * y).sum() / weights.sum()), float((weights * x).sum() / weights.sum())


def apart(ours: Gray, theirs: Gray) -> float:
    """Return the mean difference in grey levels at the best of nine shifts.

    Where the centre of mass lies between two pixels, the slightest difference decides to which it goes.
    """
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return min(float(np.abs(np.roll(ours, by, (0, 1)).astype(float) - theirs).mean()) for by in shifts)


class TestColour:
    """Grey values come from colours as the protocol says."""

    @given(arrays(np.uint8, (2, 5, 7, 3)))
    def test_rgb_is_bt601_luma(self, rgb: Gray) -> None:
        """RGB becomes 0.299 R + 0.587 G + 0.114 B, rounded to nearest."""
        reference = rgb @ np.array([0.299, 0.587, 0.114])
        gray = to_gray(rgb.tobytes(), 2, 5, 7, 3)
        assert gray.dtype == np.uint8
        assert np.abs(gray - reference).max() <= 0.5 + 1e-9

    @given(arrays(np.uint8, (2, 5, 7, 4)))
    def test_rgba_is_laid_on_white(self, rgba: Gray) -> None:
        """Straight alpha mixes the colour with white before luma is taken, at most one grey level off by rounding."""
        alpha = rgba[..., 3:] / 255
        reference = (rgba[..., :3] * alpha + 255 * (1 - alpha)) @ np.array([0.299, 0.587, 0.114])
        assert np.abs(to_gray(rgba.tobytes(), 2, 5, 7, 4) - reference).max() <= 0.502

    def test_extremes_are_kept(self) -> None:
        """White stays 255, black 0, and what is transparent is white, whatever its colour."""
        colours = np.array([[255, 255, 255, 255], [0, 0, 0, 255], [9, 99, 199, 0]], np.uint8)
        assert to_gray(colours.tobytes(), 1, 1, 3, 4).tolist() == [[[255, 0, 255]]]

    @pytest.mark.parametrize("channels", [3, 4])
    def test_every_colour_of_a_large_image_is_its_own(self, channels: int) -> None:
        """However many colours there are, each comes out as it does by itself."""
        colours = np.random.default_rng(0).integers(0, 256, (123, 157, channels), np.uint8)
        gray = to_gray(colours.tobytes(), 1, 123, 157, channels)[0]
        for y, x in ((0, 0), (52, 28), (122, 156)):
            assert gray[y, x] == to_gray(colours[y, x].tobytes(), 1, 1, 1, channels)
        tall = to_gray(colours.tobytes(), 123, 1, 157, channels)
        assert (tall[:, 0] == gray).all()
        assert (to_gray(colours[100:].tobytes(), 1, 23, 157, channels)[0] == gray[100:]).all()

    def test_gray_is_not_copied(self) -> None:
        """Grey pixels are the caller's bytes themselves."""
        pixels = bytes(range(24))
        gray = to_gray(memoryview(pixels), 2, 3, 4, 1)
        assert np.shares_memory(gray, np.frombuffer(pixels, np.uint8))
        assert gray.tobytes() == pixels


class TestAsIs:
    """Images of the network's size are not touched."""

    @given(arrays(np.uint8, (3, 28, 28)))
    def test_light_ink_is_byte_for_byte(self, gray: Gray) -> None:
        """With light ink the network gets the caller's very bytes."""
        prepared = prepare_gray(gray, Ink.LIGHT_ON_DARK, Framing.AS_IS)
        assert prepared.images.shape == (3, 28, 28, 1)
        assert prepared.images.tobytes() == gray.tobytes()

    @given(arrays(np.uint8, (3, 28, 28)))
    def test_dark_ink_is_turned_over(self, gray: Gray) -> None:
        """With dark ink each pixel is 255 minus itself, and nothing else changes."""
        assert (as_is(gray, Ink.DARK_ON_LIGHT) == 255 - gray).all()

    @given(arrays(np.uint8, (2, 28, 28)))
    def test_unknown_ink_gives_the_image_or_its_negative(self, gray: Gray) -> None:
        """When ink is found out, each image is kept or turned over as a whole, as ``find_ink`` says."""
        for image, prepared in zip(gray, as_is(gray, Ink.AUTO), strict=True):
            assert (prepared == (image if find_ink(image) is Ink.LIGHT_ON_DARK else 255 - image)).all()


class TestFrame:
    """Any image becomes one like MNIST's."""

    @settings(max_examples=50)
    @given(images, inks)
    def test_any_image_has_an_answer(self, gray: Gray, ink: Ink) -> None:
        """No image of any shape raises; the answer is uint8[28, 28], all zero just when blank, full ink at 255."""
        framed = frame(gray, ink)
        assert framed.pixels.shape == (28, 28)
        assert framed.pixels.dtype == np.uint8
        assert framed.pixels.max() == (0 if framed.blank else 255)
        assert not (framed.blank and framed.several)

    @settings(max_examples=50)
    @given(images, inks)
    def test_the_negative_gets_the_same_answer(self, gray: Gray, ink: Ink) -> None:
        """An image and its negative, with ink on the other side, are framed alike."""
        if ink is Ink.AUTO and find_ink(gray) is find_ink(255 - gray):
            return  # undecided: as much speaks for one side as for the other
        ours, theirs = frame(gray, ink), frame(255 - gray, NEGATIVE[ink])
        assert (ours.pixels == theirs.pixels).all()
        assert ours[1:] == theirs[1:]

    @settings(max_examples=50)
    @given(st.integers(8, 90), st.integers(8, 90))
    def test_longest_side_is_20_and_aspect_is_kept(self, height: int, width: int) -> None:
        """Ink is scaled to 20 pixels on its longest side, the other in proportion, but for rounding."""
        pixels = frame(np.pad(stroke(height, width), 5), Ink.LIGHT_ON_DARK).pixels
        rows, columns = np.flatnonzero(pixels.max(axis=1) > 25), np.flatnonzero(pixels.max(axis=0) > 25)
        spans = np.array([np.ptp(rows) + 1, np.ptp(columns) + 1])
        assert np.abs(spans - np.array([height, width]) * 20 / max(height, width)).max() <= 2.5

    @settings(max_examples=50)
    @given(st.integers(12, 90), st.integers(12, 60), st.floats(-0.5, 0.5))
    def test_centre_of_mass_is_in_the_centre_pixel(self, height: int, width: int, shear: float) -> None:
        """The centre of mass lies in pixel 14 of both axes, as in every MNIST image, up to rounding to 8 bits."""
        pixels = frame(np.pad(stroke(height, width, shear=shear), 3), Ink.LIGHT_ON_DARK).pixels
        for center in center_of_mass(pixels):
            assert 13.95 <= center <= 15.05

    @given(st.tuples(*[st.integers(0, 18)] * 4))
    def test_margins_do_not_matter(self, margins: tuple[int, int, int, int]) -> None:
        """An image framed with any margins on its four sides is the same, to the byte."""
        top, bottom, left, right = margins
        digit = np.pad(stroke(24, 18), 1)
        moved = np.pad(digit, ((top, bottom), (left, right)))
        assert (frame(moved, Ink.LIGHT_ON_DARK).pixels == frame(digit, Ink.LIGHT_ON_DARK).pixels).all()

    @settings(max_examples=40)
    @given(st.integers(20, 400), st.floats(-0.5, 0.5))
    def test_size_hardly_matters(self, size: int, shear: float) -> None:
        """The same figure drawn at 20 to 400 pixels is framed nearly the same: 12 grey levels apart on average."""
        ours = frame(np.pad(stroke(size, round(size * 0.7), shear=shear), size // 4), Ink.LIGHT_ON_DARK)
        reference = frame(np.pad(stroke(80, 56, shear=shear), 20), Ink.LIGHT_ON_DARK)
        assert apart(ours.pixels, reference.pixels) < 12

    @settings(max_examples=40)
    @given(st.integers(28, 300), seeds)
    def test_uneven_paper_and_noise_vanish(self, size: int, seed: int) -> None:
        """Dark ink on unevenly lit, noisy paper comes out as the clean figure does, the paper as nothing."""
        digit = np.pad(stroke(size, round(size * 0.7)), size // 2)
        ours, clean = frame(on_paper(digit, seed), Ink.AUTO), frame(digit, Ink.LIGHT_ON_DARK)
        assert not ours.blank
        assert not ours.several
        assert apart(ours.pixels, clean.pixels) < 16

    def test_specks_do_not_widen_the_box(self) -> None:
        """A speck far from the digit is left out of the box and of the picture."""
        digit = np.pad(stroke(60, 42), 40)
        specked = digit.copy()
        specked[3:5, 3:5] = 255
        framed = frame(specked, Ink.LIGHT_ON_DARK)
        assert not framed.several
        assert (framed.pixels == frame(digit, Ink.LIGHT_ON_DARK).pixels).all()

    @pytest.mark.parametrize("size", [1000, 4096])
    def test_a_small_digit_in_a_huge_image_keeps_its_detail(self, size: int) -> None:
        """A digit of 60 pixels in an image of 4096 is looked at closely, not through a reduction."""
        huge = np.zeros((size, size), np.uint8)
        huge[300:360, 700:742] = stroke(60, 42)
        small = frame(np.pad(stroke(60, 42), 10), Ink.LIGHT_ON_DARK)
        assert apart(frame(huge, Ink.LIGHT_ON_DARK).pixels, small.pixels) < 4

    @pytest.mark.parametrize("shape", [(1, 1), (1, 4096), (4096, 1), (2, 3), (3, 4096)])
    def test_extreme_shapes(self, shape: tuple[int, int]) -> None:
        """A line of pixels is an image too."""
        gray = np.zeros(shape, np.uint8)
        gray[..., shape[1] // 2 :] = 255
        assert frame(gray, Ink.AUTO).pixels.shape == (28, 28)


class TestBlank:
    """An image without ink is blank, framed or not."""

    @given(st.integers(0, 255), sides, sides, inks)
    def test_a_constant_image_is_blank(self, level: int, height: int, width: int, ink: Ink) -> None:
        """One grey all over is no ink, whichever grey."""
        assert frame(np.full((height, width), level, np.uint8), ink).blank
        assert verdicts(np.full((2, 28, 28), level, np.uint8))[0].all()

    @settings(max_examples=50)
    @given(st.integers(16, 90), seeds, st.floats(0.5, 20), inks)
    def test_noise_alone_is_blank(self, size: int, seed: int, deviation: float, ink: Ink) -> None:
        """Sensor noise of up to 20 grey levels on empty paper is no ink."""
        noise = np.random.default_rng(seed).normal(128, deviation, (size, size))
        assert frame(noise.clip(0, 255).astype(np.uint8), ink).blank

    def test_faint_noise_as_it_is_is_blank(self) -> None:
        """A dark 28x28 image with a few grey levels of noise is blank though nothing is framed."""
        noise = np.random.default_rng(7).integers(0, 12, (5, 28, 28)).astype(np.uint8)
        assert verdicts(noise)[0].all()


class TestSeveral:
    """Two separate figures are several; one digit never is, whole or broken."""

    @settings(max_examples=50)
    @given(st.integers(4, 12), st.booleans(), st.integers(1, 8))
    def test_two_figures_are_several(self, gap: int, upright: bool, scale: int) -> None:
        """Two figures of 20 pixels with 4 or more between them are several, side by side or stacked, at any scale."""
        pair = np.zeros((20 * scale, (2 * 14 + gap) * scale), np.uint8)
        pair[:, : 14 * scale] = pair[:, -14 * scale :] = stroke(20 * scale, 14 * scale)
        pair = np.pad(pair if upright else pair.T, 4 * scale)
        assert frame(pair, Ink.LIGHT_ON_DARK).several

    @settings(max_examples=50)
    @given(st.integers(16, 300), st.floats(-0.5, 0.5))
    def test_one_figure_is_not(self, size: int, shear: float) -> None:
        """A figure in one piece is one, at any size."""
        assert not frame(np.pad(stroke(size, round(size * 0.7), shear=shear), 4), Ink.LIGHT_ON_DARK).several

    def test_a_broken_stroke_is_one_figure(self) -> None:
        """A ring cut through by a pixel, and a body with a loose bar above it, are one digit each."""
        broken = np.pad(stroke(20, 14), ((4, 4), (7, 7)))
        broken[13] = 0
        barred = np.pad(stroke(14, 12), ((10, 4), (8, 8)))
        barred[4:7, 10:20] = 255
        assert not verdicts(np.stack([broken, barred]))[1].any()
        assert not any(frame(image, Ink.LIGHT_ON_DARK).several for image in (broken, barred))

    def test_verdicts_stay_with_their_images(self) -> None:
        """In a batch each image has its own verdict, at its own place."""
        one, two = np.pad(stroke(20, 14), ((4, 4), (7, 7))), np.zeros((28, 28), np.uint8)
        two[6:20, 2:12] = two[6:20, 16:26] = stroke(14, 10)
        blank, several = verdicts(np.stack([one, two, 0 * one, two, one]))
        assert blank.tolist() == [False, False, True, False, False]
        assert several.tolist() == [False, True, False, True, False]

    def test_an_empty_batch(self) -> None:
        """No images have no verdicts."""
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
            assert (prepared.blank[index], prepared.several[index]) == framed[1:]


class TestRealDigits:
    """What people wrote, from scikit-learn: 1 797 digits of 8x8 pixels, always at hand."""

    def test_small_real_digits(self) -> None:
        """None is blank, 0.1 % at most are several, and ink is found in 99 %, negatives too."""
        datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
        gray = (datasets.load_digits().images * (255 / 16)).round().astype(np.uint8)
        prepared = prepare_gray(gray, Ink.LIGHT_ON_DARK, Framing.MNIST)
        assert not prepared.blank.any()
        assert prepared.several.mean() <= 0.001
        assert np.mean([find_ink(image) is Ink.LIGHT_ON_DARK for image in gray]) >= 0.99
        assert np.mean([find_ink(255 - image) is Ink.DARK_ON_LIGHT for image in gray]) >= 0.99

"""Framing of a digit among lines, frames, edges, shadows and colours, on generated images."""

import numpy as np
import pytest
from PIL import Image

from digitserve.types import Gray, Ink
from digitserve.vision.batch_checks import Treatment, decide
from digitserve.vision.framing import frame, frame_colors
from digitserve.vision.polarity import find_ink
from digitserve.vision.views import BLANK, Framed, Removed
from support.framing_cases import CASES, SEVEN, THREE, bands, draw_strokes, framed, gray, page_edge, plot, sheet

REFERENCE = frame(gray(sheet())[..., 0], Ink.AUTO)


def difference(ours: Gray, theirs: Gray) -> float:
    """Return the mean difference in grey levels at the best of nine shifts by a pixel."""
    shifts = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    return min(float(np.abs(np.roll(ours, by, (0, 1)).astype(float) - theirs).mean()) for by in shifts)


@pytest.mark.parametrize("name", CASES)
def test_the_digit_is_framed_without_its_surroundings(name: str) -> None:
    """Whatever surrounds the digit, the network sees about the same as of a clean sheet."""
    seen = frame_colors(CASES[name](), Ink.AUTO)

    assert not seen.blank
    assert not seen.several
    assert not seen.spans_image
    # Thinner strokes, and strokes half in the shadow, differ from those of the reference.
    assert difference(seen.pixels, REFERENCE.pixels) < (25 if name in {"thin strokes", "hard shadow"} else 10)


@pytest.mark.parametrize("thickness", [1, 2, 4, 8])
@pytest.mark.parametrize("side", [40, 64, 200, 282])
def test_a_frame_at_the_edge_is_left_out(side: int, thickness: int) -> None:
    """A frame of any thickness in an image of any size is not read, with the polarity found or given."""
    thickness = min(thickness, side // 16)
    for ink in (Ink.AUTO, Ink.DARK_ON_LIGHT):
        seen = frame(framed(thickness, side)[..., 0], ink)
        assert difference(seen.pixels, REFERENCE.pixels) < 15
        assert seen.ink is Ink.DARK_ON_LIGHT


@pytest.mark.parametrize("size", [34, 44, 70])
@pytest.mark.parametrize("band", [slice(0, 18), slice(14, 20), slice(180, 186)], ids=["edge", "left", "right"])
def test_a_small_digit_beside_a_band_is_read_alone(band: slice, size: int) -> None:
    """A digit of an eighth of the image's side is read without the page edge or the band that it stands beside."""
    image = sheet(210, 210, size, stroke=0.12)
    image[:, band] = 40
    seen = frame(gray(image)[..., 0], Ink.AUTO)
    assert difference(seen.pixels, frame(gray(sheet(stroke=0.12))[..., 0], Ink.AUTO).pixels) < 12


@pytest.mark.parametrize("image", bands())
def test_a_band_from_border_to_border_spans_the_image(image: Gray) -> None:
    """A straight band that is all there is gets a label, but it is reported as no digit."""
    seen = frame(image[..., 0], Ink.AUTO)
    assert seen.blank or seen.spans_image


def test_a_stroke_in_a_tight_crop_does_not_span_the_image() -> None:
    """A 1 and a 7 that are cropped to their ink reach the border and are digits all the same."""
    one = draw_strokes(64, ((0.1, 0.5), (0.9, 0.45)), 0.12)
    for ink in (one, draw_strokes(64)):
        rows, columns = np.flatnonzero(ink.max(axis=1) > 0.1), np.flatnonzero(ink.max(axis=0) > 0.1)
        tight = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        for image in (tight, np.pad(tight, ((0, 0), (12, 12)))):
            seen = frame((255 * image).astype(np.uint8), Ink.AUTO)
            whole = frame((255 * np.pad(ink, 10)).astype(np.uint8), Ink.AUTO)
            assert not seen.spans_image
            assert difference(seen.pixels, whole.pixels) < 4


TWO = ((0.25, 0.15), (0.08, 0.4), (0.12, 0.7), (0.35, 0.75), (0.9, 0.1), (0.9, 0.9))
FOUR = ((0.1, 0.7), (0.6, 0.1), (0.6, 0.9), (0.6, 0.62), (0.4, 0.62), (0.95, 0.6))
FIVE = ((0.1, 0.85), (0.1, 0.2), (0.45, 0.2), (0.42, 0.75), (0.7, 0.8), (0.9, 0.55), (0.9, 0.1))
NINE = ((0.3, 0.85), (0.08, 0.5), (0.3, 0.15), (0.5, 0.45), (0.3, 0.85), (0.95, 0.75))
ONE = ((0.45, 0.15), (0.08, 0.6), (0.95, 0.55))


@pytest.mark.parametrize("width", [0.1, 0.16, 0.22])
@pytest.mark.parametrize("side", [12, 16, 19, 24])
@pytest.mark.parametrize("corners", [ONE, TWO, THREE, FOUR, FIVE, SEVEN, NINE])
def test_the_polarity_of_a_bitmap_stretched_to_a_square_is_found(
    corners: tuple[tuple[float, float], ...], side: int, width: float
) -> None:
    """Ink that reaches all four sides of a small bitmap, as old scanners stored digits, is found."""
    ink = draw_strokes(120, corners, width) > 0.5
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    tight = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    squeezed = Image.fromarray(tight).resize((side, side), Image.Resampling.BOX)
    bitmap = np.where(np.asarray(squeezed) > 0.4, 255, 0).astype(np.uint8)

    light, dark = frame(bitmap, Ink.AUTO), frame(255 - bitmap, Ink.AUTO)

    assert (light.ink, dark.ink) == (Ink.LIGHT_ON_DARK, Ink.DARK_ON_LIGHT)
    assert np.array_equal(light.pixels, dark.pixels)


@pytest.mark.parametrize("side", [16, 18, 19, 20, 24])
def test_a_frame_around_a_small_image_is_left_out(side: int) -> None:
    """A frame of one pixel is not read with the digit, also in images that are otherwise only cropped to their digit."""
    image = np.zeros((side, side), np.uint8)
    image[2:-2, 2:-2] = 255 * (draw_strokes(side - 4, width=0.16) > 0.5)
    image[0] = image[-1] = image[:, 0] = image[:, -1] = 255
    for ink, pixels in ((Ink.LIGHT_ON_DARK, image), (Ink.DARK_ON_LIGHT, 255 - image)):
        seen = frame(pixels, ink)
        assert seen.box is not None
        assert min(seen.box.top, seen.box.left, side - seen.box.bottom, side - seen.box.right) >= 1


def test_a_digit_as_high_as_the_image_is_not_dropped_for_a_mark() -> None:
    """A mark beside a digit that reaches the border from top to bottom does not make the digit an artefact."""
    image = np.full((100, 120), 245.0)
    image[:, 10:90] -= 220 * draw_strokes(100, FIVE, 0.14)[:, :80]
    image[:3, 20:60] = image[-3:, 20:70] = 25
    image[40:56, 104:108] = 25
    seen = frame(gray(image)[..., 0], Ink.AUTO)
    assert seen.box is not None
    assert seen.box.height > 80


@pytest.mark.parametrize("side", [24, 40, 64])
def test_texture_says_nothing_about_the_polarity(side: int) -> None:
    """Many light dots beside light ink on a dark background are no evidence for dark ink."""
    image = np.zeros((side, side), np.uint8)
    image[2::4, 2::4] = 255
    image[:, side // 2 - 2 : side // 2 + 2] = 255
    image[0] = 0
    assert find_ink(image) is Ink.LIGHT_ON_DARK


def test_no_stroke_of_a_broken_digit_in_a_small_bitmap_is_cut_off() -> None:
    """In a bitmap of 16x16 cropped to its ink a stroke along a side belongs to the digit, though it hangs on nothing."""
    bitmap = np.zeros((16, 16), np.uint8)
    bitmap[:2] = bitmap[:8, :2] = bitmap[7:9, :9] = 255
    bitmap[8:, 14:] = bitmap[14:, 4:] = 255
    seen = frame(bitmap, Ink.LIGHT_ON_DARK)
    assert seen.removed == ()
    assert seen.box == (0, 16, 0, 16)


def test_a_pale_photo_with_a_dark_corner_is_dark_on_light() -> None:
    """Where a corner is darker than faint ink, the border alone says nothing; the many light pixels do."""
    image = np.full((28, 28), 246.0)
    image -= 18 * draw_strokes(28)
    image[:3, :9] = image[:9, :3] = 215
    assert find_ink(gray(image)[..., 0]) is Ink.DARK_ON_LIGHT
    assert decide(gray(image)[..., 0]) is Treatment.FRAME


def test_the_bar_of_a_tight_seven_is_kept() -> None:
    """A 7 whose bar fills the top row of the image keeps its bar."""
    image = np.full((60, 44), 250, np.uint8)
    image[:7] = 20
    for row in range(7, 60):
        left = 36 - (row - 7) // 2
        image[row, left : left + 8] = 20
    pixels = frame(image, Ink.AUTO).pixels
    assert np.count_nonzero(pixels[6:11].max(axis=0) > 128) >= 12


def test_what_framing_did_is_reported() -> None:
    """The result names the polarity, what was cut off, and the box of the ink in pixels of the image."""
    seen = frame(plot()[..., 0], Ink.AUTO)
    assert (seen.ink, seen.removed) == (Ink.LIGHT_ON_DARK, (Removed.RECTANGLE,))
    edge = frame(page_edge()[..., 0], Ink.AUTO)
    assert Removed.PAGE_EDGE in edge.removed
    clean = frame(gray(sheet())[..., 0], Ink.AUTO)
    assert clean.removed == ()
    for one, top, left in ((seen, 88, 137), (edge, 91, 63), (clean, 52, 56)):
        assert one.box is not None
        assert abs(one.box.top - top) <= 8
        assert abs(one.box.left - left) <= 8
    assert BLANK.box is None


def test_a_solid_rectangle_is_not_opened_if_the_polarity_is_given() -> None:
    """With dark ink a black square is the ink; what it holds is not read as light ink."""
    assert frame(plot()[..., 0], Ink.DARK_ON_LIGHT).ink is Ink.DARK_ON_LIGHT


def test_an_empty_sheet_with_surroundings_has_no_digit() -> None:
    """Page edges and shadows of an empty sheet are not accepted as a digit."""
    empty = np.full((200, 200), 240.0)
    edge = empty.copy()
    edge[:, :20] = 30
    for image in (empty, edge):
        seen = frame(gray(image)[..., 0], Ink.AUTO)
        assert seen.blank or seen.spans_image


def test_two_digits_in_a_frame_are_several() -> None:
    """Leaving a frame out does not leave a second digit out."""
    image = np.full((120, 200), 245.0)
    image[30:90, 25:85] -= 220 * draw_strokes(60)
    image[30:90, 115:175] -= 220 * draw_strokes(60, THREE)
    image[:2] = image[-2:] = image[:, :2] = image[:, -2:] = 0
    seen: Framed = frame(gray(image)[..., 0], Ink.AUTO)
    assert seen.several

"""Synthetic numbers show the digits that they claim to show, in the boxes that they claim."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from digitserve.types import Box, FloatImage, Gray
from digitserve_training.synth import number_pages, numbers, pen_ink
from digitserve_training.synth.digit_lines import (
    GAP_LEVEL,
    SEPARATORS,
    TOUCH_LEVEL,
    Piece,
    compose,
    draw_digit,
    draw_separator,
)
from digitserve_training.synth.numbers import FieldStyle, Number
from digitserve_training.synth.paper import Paper, draw_on
from digitserve_training.synth.strokes import DIGIT_STROKES

DIGITS: Gray = pen_ink.draw_plain(
    [[np.array(stroke, np.float32) for stroke in styles[0]] for styles in DIGIT_STROKES.values()]
)
LABELS = np.arange(10)
CLEAN = FieldStyle(clean_share=1.0, light_ink_share=0.0)

DRAWINGS: dict[str, Callable[..., Number]] = {
    "field": numbers.field,
    "ruled field": partial(numbers.field, style=FieldStyle(0.5, 0.5, 0.5, 0.5, 0.5)),
    "page": partial(number_pages.page, num_digits=20),
    "cells": number_pages.cells,
}


def draw(kind: str, seed: int) -> Number:
    return DRAWINGS[kind](np.random.default_rng(seed), DIGITS, LABELS)


def of_digits(text: str) -> str:
    return "".join(character for character in text if character.isdigit())


@pytest.mark.parametrize("kind", DRAWINGS)
def test_images_come_from_the_generator(kind: str) -> None:
    """Equal seeds give equal images and texts, other seeds give others."""
    first, again, other = draw(kind, 1), draw(kind, 1), draw(kind, 2)

    assert np.array_equal(first.pixels, again.pixels)
    assert (first.lines, first.boxes, first.labels) == (again.lines, again.boxes, again.labels)
    assert first.pixels.dtype == np.uint8
    assert not np.array_equal(first.pixels, other.pixels)


@pytest.mark.parametrize("kind", DRAWINGS)
@pytest.mark.parametrize("seed", range(5))
def test_text_labels_and_boxes_agree(kind: str, seed: int) -> None:
    """The digits of the text are the labels, in order; each has a box within the image."""
    drawn = draw(kind, seed)
    height, width = drawn.pixels.shape

    assert of_digits(drawn.text) == "".join(map(str, drawn.labels))
    assert len(drawn.boxes) == len(drawn.labels)
    for box in drawn.boxes:
        assert 0 <= box.top < box.bottom <= height
        assert 0 <= box.left < box.right <= width


def test_boxes_of_a_field_hold_all_ink() -> None:
    """On a clean background, ink is inside the boxes and reaches all four sides of each."""
    for seed in range(10):
        drawn = numbers.field(np.random.default_rng(seed), DIGITS, LABELS, style=CLEAN)
        ink = drawn.pixels < 255

        outside = ink.copy()
        for box in drawn.boxes:
            shown = ink[box.top : box.bottom, box.left : box.right]
            assert shown[0].any()
            assert shown[-1].any()
            assert shown[:, 0].any()
            assert shown[:, -1].any()
            outside[box.top : box.bottom, box.left : box.right] = False
        assert not outside.any()


def draw_pair(seed: int, *, touches: bool) -> list[FloatImage]:
    """Return the ink of two neighbours, each in an image of the whole line."""
    generator = np.random.default_rng(seed)
    pieces = [
        draw_digit(str(label), DIGITS[label], generator.uniform(20, 60), generator.uniform(-0.3, 0.3), int(lowest))
        for label, lowest in zip(generator.integers(10, size=2), generator.integers(-3, 4, 2), strict=True)
    ]
    line = compose(pieces, [generator.uniform(0, 3)], [touches])
    return [_ink_of(line.boxes[index], piece, line.ink.shape) for index, piece in enumerate(pieces)]


@given(seed=st.integers(0, 2**32 - 1))
def test_digits_keep_a_distance(seed: int) -> None:
    """Digits that do not touch have 2 empty pixels between them in all directions."""
    left, right = draw_pair(seed, touches=False)
    assert not (_grow(left >= GAP_LEVEL, 2) & (right >= GAP_LEVEL)).any()


def test_digits_touch() -> None:
    """Of 300 pairs that shall touch, at least 98 % share a pixel or are neighbours: a few pairs of odd shapes do not meet."""
    pairs = [draw_pair(seed, touches=True) for seed in range(300)]
    touching = [(_grow(left >= TOUCH_LEVEL, 1) & (right >= TOUCH_LEVEL)).any() for left, right in pairs]
    assert np.mean(touching) >= 0.98


def _ink_of(box: Box, piece: Piece, shape: tuple[int, ...]) -> np.ndarray:
    ink = np.zeros(shape, np.float32)
    assert (box.height, box.width) == piece.ink.shape
    ink[box.top : box.bottom, box.left : box.right] = piece.ink
    return ink


def _grow(mask: np.ndarray, pixels: int) -> np.ndarray:
    image = Image.fromarray(mask.astype(np.uint8)).filter(ImageFilter.MaxFilter(2 * pixels + 1))
    return np.asarray(image) > 0


def test_touching_share() -> None:
    """With share 1, all digits of a field form one run of columns; with 0 and upright gaps most do not."""

    def num_runs(share: float) -> int:
        drawn = numbers.field(np.random.default_rng(3), DIGITS, LABELS, touching_share=share, style=CLEAN)
        inked = np.concatenate([[False], (drawn.pixels < 255).any(axis=0)])
        return int((inked[1:] & ~inked[:-1]).sum())

    assert num_runs(1.0) == 1
    assert num_runs(0.0) >= 3


@pytest.mark.parametrize("separator", SEPARATORS)
def test_separators(separator: str) -> None:
    """A point and a comma are low and small, a hyphen is at half height and wide, a slash is about as high as a digit."""
    drawn = draw_separator(separator, 40, 4, 0.0, np.random.default_rng(1))
    height, width = drawn.ink.shape
    above = height - drawn.lowest

    assert drawn.text == separator
    match separator:
        case ".":
            assert max(height, width) <= 10
            assert above <= 6
        case ",":
            assert height > width
            assert drawn.lowest > 3
        case "-":
            assert width > 2 * height
            assert 10 < above < 30
        case _:
            assert height > 35
            assert above >= 35


def test_unknown_separator_is_rejected() -> None:
    """Another character raises an error that names the known ones."""
    with pytest.raises(ValueError, match="got ':' as a separator; expected one of"):
        draw_separator(":", 40, 4, 0.0, np.random.default_rng(1))


def test_separators_are_in_the_text_and_have_no_box() -> None:
    """With separators between all digits, the text has them; boxes are those of the digits."""
    style = FieldStyle(separator_share=1.0)
    drawn = numbers.field(np.random.default_rng(1), DIGITS, LABELS, style=style)

    assert len(drawn.text) == 9
    assert all(character in SEPARATORS for character in drawn.text[1::2])
    assert len(drawn.boxes) == 5


def test_rulings_are_outside_the_digits() -> None:
    """A box around a number adds ink left of the first digit and below the last one."""
    style = FieldStyle(clean_share=1.0, light_ink_share=0.0, frame_share=1.0)
    drawn = numbers.field(np.random.default_rng(4), DIGITS, LABELS, style=style)
    ink = drawn.pixels < 255

    assert ink[:, : drawn.boxes[0].left].any()
    assert ink[max(box.bottom for box in drawn.boxes) :].any()


def test_page_has_the_asked_digits_and_lines_in_order() -> None:
    """A page without a number of digits has 20 to 100 of them; each line is below the one before."""
    drawn = number_pages.page(np.random.default_rng(2), DIGITS, LABELS, max_rotation=0.0)

    assert 20 <= len(drawn.labels) <= 100
    assert len(drawn.lines) > 1
    starts = np.cumsum([0, *map(len, drawn.lines)])[:-1]
    tops = [drawn.boxes[start].bottom for start in starts]
    assert tops == sorted(tops)


def test_cells_have_a_text_per_row() -> None:
    """Each row has one character per cell, a space for an empty one; digits have boxes in different cells."""
    drawn = number_pages.cells(np.random.default_rng(2), DIGITS, LABELS, num_rows=3, num_columns=6, empty_share=0.4)

    assert [len(line) for line in drawn.lines] == [6, 6, 6]
    assert 0 < len(drawn.boxes) < 18
    assert drawn.text.count(number_pages.EMPTY) == 18 - len(drawn.boxes)


@pytest.mark.parametrize("paper", Paper)
def test_ink_is_darker_than_paper_unless_light(paper: Paper) -> None:
    """Every background keeps ink and paper apart, in both polarities."""
    ink = np.zeros((40, 80), np.float32)
    ink[10:30, 30:50] = 1

    for light_ink in (False, True):
        pixels = draw_on(paper, ink, np.random.default_rng(5), light_ink=light_ink).astype(int)
        difference = np.median(pixels[ink == 1]) - np.median(pixels[ink == 0])
        assert difference > 40 if light_ink else difference < -40


def test_pen_inks_of_any_size_can_be_used() -> None:
    """Digits may be a list of images of any size, such as drawn pen strokes."""
    generator = np.random.default_rng(1)
    inks = [
        pen_ink.draw_ink([np.array(stroke, np.float32) for stroke in styles[0]], generator)
        for styles in DIGIT_STROKES.values()
    ]
    drawn = numbers.field(generator, inks, LABELS, num_digits=8)

    assert len(drawn.text) == 8
    assert all(box.height <= 100 for box in drawn.boxes)

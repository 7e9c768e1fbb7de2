"""Comparison of what was read with what an image shows, on readings written by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from digitserve.protocol.names import MarkKind
from digitserve.protocol.readings import Line, Mark, Reading
from digitserve.types import Box
from digitserve_training.evaluate.numbers.samples import Digits
from digitserve_training.evaluate.numbers.scoring import DigitScore, edit_distance, score_digits, score_text, text_of

TEXTS = st.text("0123456789./-, \n", max_size=12)


def box(left: int, top: int = 0, side: int = 10) -> Box:
    return Box(top, top + side, left, left + side)


def reading(*marks: tuple[str, MarkKind, Box]) -> Reading:
    """Return one line with these marks."""
    made = [Mark(text, kind, where) for text, kind, where in marks]
    text = "".join(mark.text for mark in made)
    return Reading([Line(text, 0.9, box(0), made)])


@pytest.mark.parametrize(
    ("shown", "read", "exact", "num_exact_lines", "num_edits"),
    [
        ("12345/67890", "12345\n67890", True, 2, 0),
        ("12345/67890", "12345/67890", True, 2, 0),
        ("1234 567", "12 34\u2009567", True, 1, 0),
        ("12345/67890", "12345\n67899", False, 1, 1),
        ("12345/67890", "67890", False, 1, 5),
        ("12/34", "34/12", False, 1, 4),
        ("12345", "1234567", False, 0, 2),
        ("12345", "?2345", False, 0, 1),
        ("3.14", "3,14", False, 0, 1),
        ("12", "", False, 0, 2),
        ("", "", True, 0, 0),
        ("", "7", False, 0, 1),
    ],
)
def test_texts(shown: str, read: str, exact: bool, num_exact_lines: int, num_edits: int) -> None:
    """Spaces do not count, slashes are line breaks, lines count in order, and mistakes are counted as edits."""
    score = score_text(shown, read)

    assert (score.exact, score.num_exact_lines, score.num_edits) == (exact, num_exact_lines, num_edits)
    assert score.num_lines == len([line for line in shown.split("/") if line])


@given(TEXTS, TEXTS, TEXTS)
def test_edit_distance_is_a_distance(first: str, second: str, third: str) -> None:
    """It is symmetric, 0 only for equal texts, satisfies the triangle inequality, and is bounded by the lengths."""
    distance = edit_distance(first, second)

    assert distance == edit_distance(second, first)
    assert (distance == 0) == (first == second)
    assert distance <= edit_distance(first, third) + edit_distance(third, second)
    assert abs(len(first) - len(second)) <= distance <= max(len(first), len(second))


@given(TEXTS)
def test_a_text_is_exactly_itself(text: str) -> None:
    """A text that was read as it is has no mistake, whatever its spaces and separators."""
    score = score_text(text, text)

    assert score.exact
    assert (score.num_exact_lines, score.num_edits) == (score.num_lines, 0)


def test_digits_are_matched_by_their_boxes() -> None:
    """Of three digits one is right, one has another label, one is missed; ink elsewhere is a false digit."""
    shown = Digits((box(0), box(20), box(40)), ("1", "2", "3"))
    read = reading(
        ("1", MarkKind.DIGIT, box(1)), ("7", MarkKind.DIGIT, box(20)), ("3", MarkKind.DIGIT, box(80)),
    )  # fmt: skip

    assert score_digits(shown, read) == DigitScore(num_digits=3, num_right=1, num_wrong=1, num_false=1)


def test_only_digits_count() -> None:
    """Marks that were not read, separators and empty cells are neither found nor false digits."""
    shown = Digits((box(0),), ("1",))
    read = reading(
        ("?", MarkKind.UNREAD, box(0)), (".", MarkKind.SEPARATOR, box(20)), (" ", MarkKind.EMPTY, box(40)),
    )  # fmt: skip

    assert score_digits(shown, read) == DigitScore(1, 0, 0, 0)


def test_each_digit_is_found_once() -> None:
    """A digit that was cut in two is found once at most: the better half counts, the other is false."""
    shown = Digits((Box(0, 10, 0, 20),), ("8",))
    read = reading(("8", MarkKind.DIGIT, Box(0, 10, 0, 13)), ("1", MarkKind.DIGIT, Box(0, 10, 13, 20)))

    assert score_digits(shown, read) == DigitScore(1, 1, 0, 1)


def test_nothing_shown_and_nothing_read() -> None:
    """Empty images and empty readings have scores, too."""
    shown = Digits((box(0),), ("1",))

    assert score_digits(Digits((), ()), Reading([])) == DigitScore(0, 0, 0, 0)
    assert score_digits(shown, Reading([])) == DigitScore(1, 0, 0, 0)
    assert score_digits(Digits((), ()), reading(("1", MarkKind.DIGIT, box(0)))) == DigitScore(0, 0, 0, 1)
    assert text_of(Reading([])) == ""

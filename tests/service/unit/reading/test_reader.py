"""The steps that read an image, with a network that knows shapes by their ink."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from digitserve.batching.stepwise import Scores
from digitserve.errors import InvalidRequest
from digitserve.protocol.names import Layout, MarkKind
from digitserve.protocol.readings import Reading, ReadOptions
from digitserve.reading.reader import Reader, read_now
from digitserve.types import Box, Gray

LABELS = tuple("0123456789")
THRESHOLD = -1.85


def _network(images: Gray) -> Scores:
    """Call narrow ink a sure 1, wide ink with a hole a sure 0, and all other ink nothing that is known."""
    probabilities = np.full((len(images), 10), 0.001, np.float32)
    scores = np.full(len(images), 3, np.float32)
    for row, image in enumerate(images[..., 0]):
        columns = np.flatnonzero((image > 90).any(axis=0))
        if not len(columns):
            continue
        if np.ptp(columns) < 8:
            probabilities[row, 1], scores[row] = 0.991, -8
        elif not image[12:16, 12:16].any() and np.ptp(columns) < 22:
            probabilities[row, 0], scores[row] = 0.991, -8
    return Scores(probabilities, scores)


def _draw(text: str, gap: int = 12) -> Gray:
    """Draw ones as bars and zeros as frames, 40 pixels high, dark on light: uint8[H, W, 1]."""
    parts = [np.zeros((40, 20), bool)]
    for character in text:
        shape = np.ones((40, 6 if character == "1" else 30), bool)
        if character == "0":
            shape[6:-6, 6:-6] = False
        parts += (
            [shape, np.zeros((40, gap if character != " " else 60), bool)]
            if character != " "
            else [np.zeros((40, 90), bool)]
        )
    ink = np.pad(np.concatenate([*parts, np.zeros((40, 20), bool)], axis=1), ((20, 20), (0, 0)))
    return np.where(ink, 20, 235).astype(np.uint8)[..., np.newaxis]


def _read(pixels: Gray, **options: object) -> Reading:
    return read_now(Reader(LABELS, THRESHOLD), pixels, ReadOptions(**options), _network)


def test_line_is_read_from_left_to_right() -> None:
    """Separate digits become marks in order, with boxes of their ink and the confidence of the network."""
    pixels = _draw("1001")
    (line,) = _read(pixels).lines
    assert line.text == "1001"
    assert line.matches
    assert line.confidence > 0.8
    assert [mark.kind for mark in line.marks] == [MarkKind.DIGIT] * 4
    lefts = [mark.box.left for mark in line.marks]
    assert lefts == sorted(lefts)
    for mark in line.marks:
        inside = pixels[mark.box.top : mark.box.bottom, mark.box.left : mark.box.right, 0]
        assert (inside < 128).any()


def test_wide_gap_is_a_space() -> None:
    """A gap wider than a digit is a space in the text, and no mark."""
    (line,) = _read(_draw("101 01")).lines
    assert line.text == "101 01"
    assert len(line.marks) == 5


def test_line_that_cannot_match_is_read_without_the_pattern() -> None:
    """A pattern or number of digits that the ink cannot have leaves the text as it is, and ``matches`` false."""
    for options in ({"pattern": r"\d/\d"}, {"pattern": r"\d{4}"}, {"num_digits": 4}, {"num_digits": 9}):
        (line,) = _read(_draw("101"), **options).lines
        assert (line.text, line.matches) == ("101", False)
    (line,) = _read(_draw("101"), pattern=r"\d{3}", num_digits=3).lines
    assert (line.text, line.matches) == ("101", True)


def test_clear_digit_is_never_changed_to_fit() -> None:
    """A pattern that a clear digit does not have leaves the digit as it is, and ``matches`` false."""
    (line,) = _read(_draw("1"), pattern="[7]").lines
    assert (line.text, line.matches) == ("1", False)


def test_speck_is_never_a_digit() -> None:
    """A speck is no digit, however the number of digits is counted."""
    pixels = _draw("101")
    pixels[40:45, 110:115] = 20
    (line,) = _read(pixels, num_digits=4).lines
    assert (line.text.replace(".", "").replace("-", ""), line.matches) == ("101", False)


def _doubtful_zeros(images: Gray) -> Scores:
    """Call ones sure and zeros doubtful: over the threshold, but less than one clear digit beside it makes up for."""
    probabilities, scores = _network(images)
    scores[probabilities[:, 0] > 0.9] = THRESHOLD + 0.5
    return Scores(probabilities, scores)


@pytest.mark.parametrize(("text", "read"), [("0", "?"), ("11011", "11011"), ("000", "???")])
def test_doubtful_digit_is_judged_beside_the_others(text: str, read: str) -> None:
    """A digit that is unread alone, or among others like it, is read beside clear ones."""
    (line,) = read_now(Reader(LABELS, THRESHOLD), _draw(text), ReadOptions(layout=Layout.LINE), _doubtful_zeros).lines
    assert line.text == read


def test_unknown_ink_is_a_placeholder() -> None:
    """Ink that the network does not know is unread: a placeholder in the text, and no confidence in the line."""
    pixels = _draw("101")
    pixels[36:44, 38:68] = 20  # a bar through the 0
    (line,) = _read(pixels, placeholder="#").lines
    assert "#" in line.text
    assert line.confidence == 0
    assert MarkKind.UNREAD in [mark.kind for mark in line.marks]


def test_low_confidence_is_a_placeholder() -> None:
    """A digit below the minimum confidence is unread, and keeps its label."""
    (line,) = _read(_draw("1"), min_confidence=0.999).lines
    assert (line.text, line.marks[0].kind, line.marks[0].class_index) == ("?", MarkKind.UNREAD, 1)


def test_alternatives_are_listed_from_the_most_probable() -> None:
    """``top_k`` lists labels with the network's probabilities, highest first."""
    (line,) = _read(_draw("0"), top_k=3).lines
    indices, probabilities = zip(*line.marks[0].probabilities, strict=True)
    assert indices[0] == 0
    assert list(probabilities) == sorted(probabilities, reverse=True)
    assert len(probabilities) == 3


def test_blank_image_has_no_lines() -> None:
    """Paper without ink is an empty reading, and the network is not asked."""
    assert read_now(Reader(LABELS, THRESHOLD), np.full((90, 200, 1), 230, np.uint8), ReadOptions(), None) == Reading(
        (), ()
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"pattern": "x"}, {"pattern": "1{9999}"}])
def test_check_refuses_wrong_patterns(options: dict[str, str]) -> None:
    """A pattern that cannot be used is an invalid request before anything is read."""
    with pytest.raises(InvalidRequest, match="pattern"):
        Reader(LABELS, THRESHOLD).check(ReadOptions(**options))


def test_other_labels_are_refused() -> None:
    """A model that does not classify the ten digits reads no numbers."""
    with pytest.raises(InvalidRequest, match="expected a model with the labels 0 to 9"):
        Reader(("cat", "dog"), THRESHOLD).check(ReadOptions())


@settings(max_examples=25)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 80), st.integers(1, 120), st.sampled_from([1, 3, 4]))),
    st.sampled_from(list(Layout)),
    st.sampled_from(["", r"\d{2,3}"]),
)
def test_any_image_is_read_or_invalid(pixels: Gray, layout: Layout, pattern: str) -> None:
    """Any pixels give a reading with boxes inside the image, the same one each time, or an invalid request."""
    try:
        reading = _read(pixels, layout=layout, pattern=pattern)
    except InvalidRequest:
        return
    assert reading == _read(pixels, layout=layout, pattern=pattern)
    boxes = [line.box for line in reading.lines] + [ignored.box for ignored in reading.ignored]
    boxes += [mark.box for line in reading.lines for mark in line.marks]
    for box in boxes:
        _assert_inside(box, pixels.shape)


def _assert_inside(box: Box, shape: tuple[int, ...]) -> None:
    assert 0 <= box.top < box.bottom <= shape[0]
    assert 0 <= box.left < box.right <= shape[1]

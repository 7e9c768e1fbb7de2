"""Drawing on a terminal: what it can show, pictures, bars and sheets of exact width."""

import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from digitserve.cli.drawing import COLUMNS, Drawing, is_sheet
from digitserve.cli.picture import bars, picture
from digitserve.client import ClassScore, Prediction, Verdict
from digitserve.terminal import Terminal, flow, num_columns, printable, shorten, text_block

COLOURS = re.compile(r"\x1b\[[0-9;]*m")

XTERM = {"TERM": "xterm-256color", "LANG": "en_GB.UTF-8"}


class Stream(io.TextIOWrapper):
    """A stream that is a terminal or not."""

    def __init__(self, *, tty: bool = True, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self._tty = tty

    def isatty(self) -> bool:
        return self._tty


def visible(lines: list[str]) -> list[str]:
    """Return lines without colours."""
    return [COLOURS.sub("", line) for line in lines]


def prediction(verdict: Verdict = Verdict.ACCEPTED, labels: str = "0123456789") -> Prediction:
    """Return an answer of 7, with all classes."""
    scores = sorted(
        (ClassScore(label, index, 0.91 if label == "7" else 0.01) for index, label in enumerate(labels)),
        key=lambda score: -score.confidence,
    )
    return Prediction("7", 7, 0.91, verdict, 0.0, tuple(scores))


@pytest.mark.parametrize(
    ("environment", "tty"),
    [({}, True), ({"TERM": "dumb"}, True), (XTERM | {"NO_COLOR": "1"}, True), (XTERM, False)],
)
def test_plain_text(environment: dict[str, str], tty: bool) -> None:
    """A file or pipe, ``NO_COLOR`` and a dumb terminal get plain text."""
    assert not Terminal.of(Stream(tty=tty), environment).colours


@pytest.mark.parametrize(
    ("changes", "encoding", "unicode"),
    [
        ({}, "utf-8", True),
        ({"LANG": ""}, "utf-8", True),
        ({"LC_ALL": "C"}, "utf-8", False),
        ({"LC_ALL": "", "LC_CTYPE": "de_DE.utf8", "LANG": "C"}, "UTF8", True),
        ({"LANG": "de_DE.ISO-8859-1"}, "iso8859-1", False),
    ],
)
def test_block_elements_need_utf8(changes: dict[str, str], encoding: str, unicode: bool) -> None:
    """The first of LC_ALL, LC_CTYPE and LANG decides, as in the C library; Python's own choice counts without a locale."""
    terminal = Terminal.of(Stream(encoding=encoding), XTERM | changes)
    assert terminal.unicode is unicode and terminal.colours


@given(
    pixels=st.tuples(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3, 4])).flatmap(
        lambda shape: arrays(np.uint8, shape)
    ),
    columns=st.integers(1, 30),
    terminal=st.builds(Terminal, st.just(80), unicode=st.booleans(), true_colour=st.booleans()),
)
def test_pictures_have_the_promised_width(pixels: np.ndarray, columns: int, terminal: Terminal) -> None:
    """Each line of a picture is as wide as the block says, ends with the colours of the terminal, and is ASCII if it must be."""
    block = picture(pixels, terminal, columns)
    assert 1 <= len(block.lines) <= (columns + 1) // 2
    for width, text in block.lines:
        assert num_columns(COLOURS.sub("", text)) == width <= block.width == columns
        assert text.endswith("\x1b[0m")
        assert terminal.unicode or text.isascii()


def test_a_picture_keeps_pixels_that_fit() -> None:
    """Two rows of pixels are the upper and lower halves of one line, in their own colours; fewer colours take the nearest."""
    pixels = np.array([[0, 255], [100, 30]], np.uint8)
    (one,) = picture(pixels, Terminal(80), 28).lines
    assert one == (2, "\x1b[38;2;0;0;0;48;2;100;100;100m▀\x1b[38;2;255;255;255;48;2;30;30;30m▀\x1b[0m")
    (two,) = picture(pixels, Terminal(80, true_colour=False), 28).lines
    assert two == (2, "\x1b[38;5;16;48;5;241m▀\x1b[38;5;231;48;5;234m▀\x1b[0m")


def test_ink_on_transparent_is_visible() -> None:
    """Black and white ink both differ from what is shown for transparent pixels."""
    pixels = np.zeros((2, 3, 4), np.uint8)
    pixels[:, 0], pixels[:, 1] = (0, 0, 0, 255), (255, 255, 255, 255)
    ((_, text),) = picture(pixels, Terminal(80), 28).lines
    assert len(set(re.findall(r"48;2;(\d+)", text))) == 3


@given(st.text(), st.integers(0, 20))
def test_names_are_shortened(name: str, width: int) -> None:
    """A name is never wider than its place, also with wide characters, and has no control characters."""
    shown = shorten(printable(name), width)
    assert num_columns(shown) <= width
    assert shown.isprintable()


@given(
    scores=st.lists(st.tuples(st.text(max_size=12), st.floats(0, 1)), min_size=1, max_size=12),
    width=st.integers(14, 60),
    unicode=st.booleans(),
)
def test_bars_fit(scores: list[tuple[str, float]], width: int, unicode: bool) -> None:
    """Every line of the bars has the same width, which fits, and a larger probability never has a shorter bar."""
    block = bars(scores, scores[0][0], "1;32", Terminal(80, unicode=unicode), width)
    texts = [COLOURS.sub("", text) for _, text in block.lines]
    assert {num_columns(text) for text in texts} == {columns for columns, _ in block.lines}
    assert max(columns for columns, _ in block.lines) <= width
    lengths = [sum(map(text[:-7].count, "█▏▎▍▌▋▊▉#")) for text in texts]
    if not any(set("█▏▎▍▌▋▊▉#") & {*label} for label, _ in scores):
        ordered = sorted(zip(scores, lengths, strict=True), key=lambda one: one[0][1])
        assert [length for _, length in ordered] == sorted(lengths)


@pytest.mark.parametrize("width", [10, 28, 40, 50, 80, 200])
@pytest.mark.parametrize("verdict", Verdict)
def test_drawings_fit_the_terminal(width: int, verdict: Verdict) -> None:
    """No line of a drawing or sheet is wider than the terminal; blocks that do not fit side by side go below."""
    drawing = Drawing(Terminal(width))
    pixels = np.zeros((50, 20, 1), np.uint8)
    lines = list(drawing.large(pixels, prediction(verdict)))
    for number in range(7):
        lines += drawing.add_to_sheet(f"a long name of a file [{number}]", pixels, prediction(verdict))
    lines += drawing.finish_row()
    assert max(map(num_columns, visible(lines))) <= width
    assert not list(drawing.finish_row())


def test_all_classes_are_in_their_order() -> None:
    """Ten digits are drawn from 0 to 9; the most probable of more classes start with the most probable."""
    pixels = np.zeros((28, 28, 1), np.uint8)

    def labels(answer: Prediction) -> str:
        drawn = visible(list(Drawing(Terminal(80)).large(pixels, answer)))
        return "".join(line[COLUMNS + 2] for line in drawn if line[COLUMNS + 2 :].strip())

    assert labels(prediction()) == "0123456789"
    letters = prediction()
    assert labels(Prediction("7", 7, 0.9, Verdict.ACCEPTED, 0.0, letters.top[:3])) == "701"


def test_blocks_below_each_other() -> None:
    """Blocks share a row while they fit."""
    blocks = [text_block(text, Terminal(80), 5) for text in ("one", "two", "three")]
    assert [*flow(blocks, 12)] == ["one    two", "three"]
    assert [*flow([], 12)] == []


def test_many_images_go_on_a_sheet() -> None:
    """Up to three images are drawn large; details that were requested are never left out."""
    assert [is_sheet(["a"], number, detailed=False) for number in (1, 3, 4)] == [False, False, True]
    assert is_sheet(["a"] * 4, 1, detailed=False)
    assert not is_sheet(["a"] * 4, 9, detailed=True)

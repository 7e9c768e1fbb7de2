"""Samples, figures, table, page and results of an evaluation of the reader, with a reader written by hand."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digitserve.errors import InvalidRequest
from digitserve.protocol.names import Layout, MarkKind
from digitserve.protocol.readings import Line, Mark, Reading, ReadOptions
from digitserve.types import Box
from digitserve_training.data.splits import Labelled
from digitserve_training.errors import DataError, RunError
from digitserve_training.evaluate.numbers import gallery, listing, report, results, simulated, table
from digitserve_training.evaluate.numbers.figures import as_json
from digitserve_training.evaluate.numbers.samples import Digits, Pixels, Sample, Shown


def line(text: str, box: Box = Box(0, 10, 0, 10)) -> Line:  # noqa: B008 - immutable
    return Line(text, 0.75, box, [Mark(character, MarkKind.DIGIT, box) for character in text])


class FakeReader:
    """Reads from an image's first pixel which of the prepared texts it shows."""

    name = "digits/9"

    def __init__(self, *texts: str) -> None:
        self._texts = texts

    def read(self, pixels: Pixels, options: ReadOptions) -> Reading:
        """Return the text; an empty one is too much for this reader."""
        assert options.layout is Layout.PAGE
        text = self._texts[pixels[0, 0, 0]]
        if not text:
            raise InvalidRequest("got too many components; expected at most 2")
        return Reading([line(one) for one in text.split("/")])


def sample(index: int, text: str, group: str = "", digits: Digits | None = None) -> Sample:
    pixels = np.full((30, 60, 1), index, np.uint8)
    return Sample(f"{index}.png", group, ReadOptions(), lambda: Shown(pixels, text, digits))


def test_figures_of_groups() -> None:
    """Exact images, lines and characters are counted per set; boxes only where they are known; refusals are in no figure."""
    digits = Digits((Box(0, 10, 0, 10),), ("7",))
    samples = [sample(0, "12/34", "b"), sample(1, "12/34", "b"), sample(2, "7", "a", digits), sample(3, "1", "a")]
    evaluation = report.evaluate(FakeReader("12/34", "12/3", "7", ""), "mine", samples)

    written = as_json(evaluation)
    assert [*written["groups"]] == ["b", "a"]
    assert written["groups"]["b"] == {
        "num_images": 2,
        "num_exact": 1,
        "exact": 0.5,
        "num_lines": 4,
        "exact_lines": 0.75,
        "num_characters": 8,
        "num_edits": 1,
        "characters_right": 0.875,
    }
    assert written["groups"]["a"]["digits_right"] == 1.0
    assert written["groups"]["a"]["digits_false"] == 0.0
    assert written["mistakes"] == [
        {"image": "1.png", "group": "b", "shown": "12/34", "read": "12\n3", "confidence": 0.75}
    ]
    assert written["not_measured"] == [{"image": "3.png", "reason": "got too many components; expected at most 2"}]


def test_table_names_mistakes_and_refusals() -> None:
    """The terminal shows a row per set, the mistakes with both texts, and why an image was not read."""
    evaluation = report.evaluate(
        FakeReader("12", "13", ""), "mine", [sample(0, "12", "a"), sample(1, "12", "b"), sample(2, "12")]
    )
    text = table.render(evaluation)

    assert "digits/9 on mine" in text
    assert [row.split()[:3] for row in text.splitlines()[3:6]] == [
        ["all", "2", "50.00"],
        ["a", "1", "100.00"],
        ["b", "1", "0.00"],
    ]
    assert "1.png: 12  read as  13" in text
    assert "2.png: got too many components" in text


def test_page_shows_the_mistakes() -> None:
    """The page has an image per mistake, both texts, escaped, and nothing of other images."""
    evaluation = report.evaluate(FakeReader("1<2", "5"), "mine", [sample(0, "12"), sample(1, "5")])
    mistakes = [*gallery.read_mistakes(evaluation.mistakes)]
    html = gallery.render(evaluation, mistakes)

    assert html.count("<img") == 1
    assert "12 → <strong>1&lt;2</strong> 75.00 %" in html
    assert gallery.render(evaluation, mistakes) == html


def test_no_image_is_read() -> None:
    """If the reader refuses all images, the first reason is the error."""
    with pytest.raises(
        DataError, match=r"none of the 1 images of mine was read, the first because: 0.png: got too many"
    ):
        report.evaluate(FakeReader(""), "mine", [sample(0, "1")])


def test_results_are_replaced_per_model_and_set(tmp_path: Path) -> None:
    """Each set has one row per model; the last evaluation counts, and rows of others stay."""
    path = tmp_path / "reading.json"
    for texts in (("1", "2"), ("1", "1")):
        results.add(path, report.evaluate(FakeReader(*texts), "mine", [sample(0, "1", "a"), sample(1, "1")]), "mine")

    rows = results.read(path)
    assert [(row["model"], row["group"], row["exact"]) for row in rows] == [
        ("digits/9", "a", 1.0),
        ("digits/9", "mine", 1.0),
    ]
    shown = results.table(rows).splitlines()
    assert shown[2] == "| digits/9 | a | 1 | 100.00 % | 100.00 % | 100.00 % | - | - |"


@pytest.mark.parametrize("content", ["{}x", "[1]", '[{"preset": "tiny"}]', '{"a": 1}'])
def test_other_files_are_no_results(tmp_path: Path, content: str) -> None:
    """A file of another kind, such as results of training, is not changed."""
    path = tmp_path / "results.json"
    path.write_text(content)
    evaluation = report.evaluate(FakeReader("1"), "mine", [sample(0, "1")])

    with pytest.raises(RunError, match="is not a table of what was read"):
        results.add(path, evaluation)
    assert path.read_text() == content


def write_table(path: Path, rows: Sequence[Sequence[str]]) -> None:
    """Write a table and the images that it lists."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    for name, *_ in rows[1:]:
        Image.fromarray(np.zeros((20, 40), np.uint8)).save(path.parent / name)


def test_table_of_files(tmp_path: Path) -> None:
    """numbers.csv of a folder, or any table, gives files with their text and set; sets can be selected."""
    write_table(tmp_path / "numbers.csv", [("file", "text", "set"), ("1.png", " 12/34 ", "a"), ("2.png", "", "b")])

    samples = listing.list_samples(tmp_path)
    assert [(one.name, one.group, one.load().text) for one in samples] == [("1.png", "a", "12/34"), ("2.png", "b", "")]
    assert samples[0].load().pixels.shape == (20, 40, 1)
    assert [one.name for one in listing.list_samples(tmp_path / "numbers.csv", ["b"])] == ["2.png"]


@pytest.mark.parametrize(
    ("rows", "sets", "message"),
    [
        (
            None,
            [],
            "numbers.csv does not exist; expected a folder with numbers.csv, or a table with the columns file and",
        ),
        ([("file", "label")], [], "has the columns file, label; expected file and text"),
        ([("file", "text")], [], "lists no file"),
        (
            [("file", "text"), ("1.png", "1")],
            ["x"],
            "has no set x; its sets are: none, because numbers.csv has no column",
        ),
    ],
)
def test_tables_that_cannot_be_used(
    tmp_path: Path, rows: Sequence[Sequence[str]] | None, sets: Sequence[str], message: str
) -> None:
    """Errors say what is wrong with the table."""
    if rows is not None:
        write_table(tmp_path / "numbers.csv", rows)

    with pytest.raises(DataError, match=message):
        listing.list_samples(tmp_path, sets)


def test_simulated_samples_are_fixed() -> None:
    """Each image is the same every time, whatever the number of images per kind, and shows its text."""
    images = np.zeros((10, 28, 28, 1), np.uint8)
    images[:, 4:24, 8:20] = 255
    test = Labelled(images, np.arange(10), tuple("0123456789"))
    few, many = (simulated.list_samples(test, number) for number in (1, 3))

    assert [one.name for one in few] == [one.name for one in many[::3]]
    for one, other in zip(few, many[::3], strict=True):
        first, second = one.load(), other.load()
        assert np.array_equal(first.pixels, second.pixels)
        assert first.text == second.text
        assert first.digits is not None
        assert len(first.digits.labels) == sum(character.isdigit() for character in first.text)

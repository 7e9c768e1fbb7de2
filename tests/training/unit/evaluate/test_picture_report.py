"""Figures, table, page and contact sheet of an evaluation on image files, on answers written by hand."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digitserve.errors import ImageFileError
from digitserve.protocol.names import Verdict
from digitserve_training.errors import DataError, RunError
from digitserve_training.evaluate.pictures import gallery, report, sheet, table, thumbnails
from digitserve_training.evaluate.pictures.classifier import Answer, Pixels
from digitserve_training.evaluate.pictures.figures import Failure, Judged, PictureEvaluation, as_json
from digitserve_training.evaluate.pictures.listing import Picture, list_pictures
from digitserve_training.evaluate.pictures.thumbnails import Mistake

LABELS = ("1", "2", "7")
ACCEPTED, UNFAMILIAR, BLANK, SEVERAL = Verdict.ACCEPTED, Verdict.UNFAMILIAR, Verdict.BLANK, Verdict.SEVERAL


def judged(file: str, label: str, of_set: str, answer: str, verdict: Verdict, confidence: float) -> Judged:
    """Return a file with its answer."""
    return Judged(Picture(file, label, of_set), Answer(answer, confidence, verdict, -3.5))


JUDGED = (
    judged("a.png", "1", "scans", "1", ACCEPTED, 0.9),
    judged("b.png", "1", "scans", "7", ACCEPTED, 0.6),
    judged("c.png", "1", "photos", "7", ACCEPTED, 0.8),
    judged("d.png", "2", "photos", "2", UNFAMILIAR, 0.5),
    judged("e.png", "2", "photos", "", BLANK, 0.0),
    judged("f.png", "2", "scans", "2", ACCEPTED, 1.0),
    judged("g.png", "7", "scans", "1", UNFAMILIAR, 0.95),
    judged("h.png", "7", "scans", "7", SEVERAL, 0.45),
    judged("x.png", "", "letters", "2", ACCEPTED, 0.7),
    judged("y.png", "", "letters", "2", UNFAMILIAR, 0.99),
    judged("z.png", "", "pages", "", BLANK, 0.0),
)
EVALUATION = PictureEvaluation(
    "digits/9",
    LABELS,
    "my/scans",
    JUDGED,
    (Failure(Picture("broken.png", "1", "scans"), "is empty; expected an image"),),
)


def mistakes() -> list[Mistake]:
    """Return the mistakes with generated images."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    seen = Image.fromarray(noise[:28, :28, 0])
    return [Mistake(one, thumbnails.reduce(noise), seen) for one in EVALUATION.mistakes]


def test_overall_figures() -> None:
    """Of 8 digits 4 are right, 2 of these ACCEPTED; of the 4 wrong ones 2 are ACCEPTED. The mean confidence is 0.65."""
    assert as_json(EVALUATION)["overall"] == {
        "num_images": 8,
        "num_right": 4,
        "accuracy": 0.5,
        "right_and_accepted": 0.25,
        "wrong_and_accepted": 0.25,
        "accepted_among_right": 0.5,
        "accepted_among_wrong": 0.5,
        "confidence_minus_accuracy": pytest.approx(0.15),
        "verdicts": {"ACCEPTED": 4, "UNFAMILIAR": 2, "BLANK": 1, "SEVERAL": 1},
    }


def test_figures_by_set_and_label() -> None:
    """Sets are sorted by name, labels are in the order of the model; images that are no digit are in neither."""
    written = as_json(EVALUATION)

    assert {name: (one["num_images"], one["accuracy"]) for name, one in written["sets"].items()} == {
        "photos": (3, pytest.approx(1 / 3)),
        "scans": (5, pytest.approx(3 / 5)),
    }
    assert {name: (one["num_images"], one["num_right"]) for name, one in written["by_label"].items()} == {
        "1": (3, 1), "2": (3, 2), "7": (2, 1),
    }  # fmt: skip
    assert written["by_label"]["1"]["wrong_and_accepted"] == pytest.approx(2 / 3)
    assert written["by_label"]["1"]["accepted_among_wrong"] == 1
    assert list(written["sets"]) == ["photos", "scans"]


def test_images_that_are_no_digit() -> None:
    """Files without a label are counted by verdict, and by set."""
    assert as_json(EVALUATION)["not_a_single_digit"] == {
        "overall": {"num_images": 3, "verdicts": {"ACCEPTED": 1, "UNFAMILIAR": 1, "BLANK": 1, "SEVERAL": 0}},
        "sets": {
            "letters": {"num_images": 2, "verdicts": {"ACCEPTED": 1, "UNFAMILIAR": 1, "BLANK": 0, "SEVERAL": 0}},
            "pages": {"num_images": 1, "verdicts": {"ACCEPTED": 0, "UNFAMILIAR": 0, "BLANK": 1, "SEVERAL": 0}},
        },
    }


def test_confusion() -> None:
    """Rows are labels, columns answers whatever the verdict; the last column counts blank images."""
    assert EVALUATION.confusion == [[1, 0, 2, 0], [0, 2, 0, 1], [1, 0, 1, 0]]


def test_accepted_mistakes_come_first() -> None:
    """Mistakes are wrong answers and accepted non-digits: first the accepted ones, both parts by falling confidence."""
    assert [one.picture.file for one in EVALUATION.mistakes] == ["c.png", "x.png", "b.png", "g.png", "e.png"]


def test_table() -> None:
    """The text for the terminal has the figures of all images, of sets and labels, and names the files without an answer."""
    text = table.render(EVALUATION)
    lines = [" ".join(line.split()) for line in text.splitlines()]

    assert "all 8 50.00 % 25.00 % 25.00 % 50.00 % 50.00 % +15.00 2 1 1" in lines
    assert "photos 3 33.33 % 0.00 % 33.33 % 0.00 % 50.00 % +10.00 1 1 0" in lines
    assert "2 3 66.67 % 33.33 % 0.00 % 50.00 % 0.00 % -16.67 1 1 0" in lines
    assert "label \\ answer 1 2 7 blank" in lines
    assert "2 · 2 · 1" in lines
    assert "letters 2 1 1 0 0" in lines
    assert "1 files got no answer and are in no figure:\n  broken.png: is empty" in text


def test_columns_are_aligned() -> None:
    """All rows of a table have the same width."""
    sections = table.render(EVALUATION).split("\n\n")

    widths = [{len(line) for line in section.splitlines()} for section in sections if "images" in section]
    assert widths[:3] == [widths[0]] * 3
    assert all(len(of_section) == 1 for of_section in widths[:3])


def test_nothing_but_digits_without_sets() -> None:
    """Without sets, other images and failures, their parts are left out."""
    text = table.render(PictureEvaluation("m", LABELS, "f", (judged("a", "1", "", "1", ACCEPTED, 1.0),)))

    assert "set" not in text.replace("ACC", "").split()
    assert "not a single digit" not in text
    assert "no answer" not in text


def test_only_images_that_are_no_digit() -> None:
    """Without any digit there are no shares, and nothing is divided by zero."""
    evaluation = PictureEvaluation("m", LABELS, "f", JUDGED[-3:])

    assert "right" not in table.render(evaluation)
    assert as_json(evaluation)["overall"]["accuracy"] == 0
    assert "ACCEPTED without a digit" in gallery.render(evaluation, [])


class Texts(HTMLParser):
    """The text of a page, its tags and the sources of its images."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.words += data.split()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.images.append(dict(attrs))

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_page() -> None:
    """The page is self-contained and shows the figures, and each mistake with label, answer, verdict, confidence, file."""
    html = gallery.render(EVALUATION, mistakes())
    page = Texts(html)

    assert "Accuracy 50.00 % The label is right for 4 of 8 images" in page.text
    assert "ACCEPTED without a digit 1 of 3" in page.text
    assert "5 of 5 mistakes" in page.text
    assert "1 → 7 ACCEPTED 80.00 % c.png no digit → 2 ACCEPTED 70.00 % x.png" in page.text
    assert "2 → blank BLANK 0.00 % e.png" in page.text
    assert "broken.png: is empty; expected an image" in page.text
    assert len(page.images) == 10
    assert all((image["src"] or "").startswith("data:image/png;base64,") and image["alt"] for image in page.images)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert not re.search(r"https?:|url\(|@import", html)
    assert html.count('class="accepted"') == 3


def test_page_escapes_names() -> None:
    """Names of files are text, never markup."""
    evil = judged("<b>&.png", "1", "<i>", "7", ACCEPTED, 0.6)
    shown = [Mistake(evil, Image.new("RGB", (9, 9)), Image.new("L", (28, 28)))]
    page = Texts(gallery.render(PictureEvaluation("m", LABELS, "f", (evil,)), shown))

    assert "<b>&.png" in page.text
    assert not {"b", "i"} & set(page.tags)


def test_contact_sheets() -> None:
    """40 mistakes fill a page, the rest has a smaller one; equal mistakes give equal bytes."""
    many = (mistakes() * 9)[:43]
    pages = [*sheet.draw_pages(many)]

    sizes = [Image.open(io.BytesIO(page)).size for page in pages]
    assert len(sizes) == 2
    assert (sizes[0][0] // 5, sizes[0][1] // 8) == (sizes[1][0] // 3, sizes[1][1])
    assert [*sheet.draw_pages(many)] == pages
    assert [*sheet.draw_pages([])] == []


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((28, 28, 1), (112, 112)),
        ((30, 20, 3), (60, 90)),
        ((448, 224, 1), (56, 112)),
        ((112, 1, 1), (1, 112)),
        ((4000, 2, 3), (1, 112)),
        ((1, 1, 4), (112, 112)),
    ],
)
def test_thumbnails_fit(shape: tuple[int, int, int], size: tuple[int, int]) -> None:
    """Small images are enlarged by a whole factor, large ones reduced; the longest side never exceeds 112 pixels."""
    assert thumbnails.reduce(np.zeros(shape, np.uint8)).size == size


def test_transparent_ink_is_visible() -> None:
    """Black ink and white ink on a transparent background both differ from the colour behind them."""
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0] = [0, 0, 0, 255], [255, 255, 255, 255]
    thumbnail = thumbnails.reduce(pixels)

    colours = {thumbnail.getpixel((x, y)) for x in (0, 111) for y in (0, 111)}
    assert colours == {(0, 0, 0), (255, 255, 255), thumbnails.BEHIND}


class FakeClassifier:
    """Answers 7 for every image, but rejects images that are wider than high."""

    name, labels = "fake", LABELS

    def classify(self, pixels: Pixels) -> Answer:
        if pixels.shape[1] > pixels.shape[0]:
            raise ImageFileError("too wide")
        return Answer("7", 0.9, ACCEPTED, 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write two images that can be classified, one that is rejected and one file that is no image."""
    images = tmp_path / "images"
    for name, size in (("1/a.png", (9, 9)), ("7/b.png", (9, 9)), ("7/wide.png", (12, 9))):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", size, 255).save(images / name)
    (images / "7" / "text.png").write_text("no image")
    return images


def test_files_without_an_answer_are_counted_and_named(folder: Path) -> None:
    """Files that cannot be read, or that the model rejects, are in no figure; each is named with the reason."""
    evaluation = report.evaluate(FakeClassifier(), folder, list_pictures(folder, LABELS))

    assert [(one.picture.file, one.answer.label) for one in evaluation.judged] == [("1/a.png", "7"), ("7/b.png", "7")]
    assert [(one.picture.file, one.reason.split(";")[0]) for one in evaluation.failures] == [
        ("7/text.png", "got 8 bytes in an unknown format"),
        ("7/wide.png", "too wide"),
    ]
    assert evaluation.overall.accuracy == 0.5


def test_no_answer_at_all_is_an_error(folder: Path) -> None:
    """If no file gets an answer, the error names the first one and its reason."""
    pictures = [picture for picture in list_pictures(folder, LABELS) if picture.file in {"7/text.png", "7/wide.png"}]

    with pytest.raises(
        DataError, match=r"none of the 2 files in .* got an answer, the first because: 7/text.png: got 8"
    ):
        report.evaluate(FakeClassifier(), folder, pictures)


def test_written_files(folder: Path, tmp_path: Path) -> None:
    """The report replaces an earlier one with its contact sheets, and leaves all other files alone."""
    output = tmp_path / "a" / "b"
    output.mkdir(parents=True)
    for name in ("mistakes-01.png", "mistakes-02.png", "mine.png"):
        (output / name).touch()
    evaluation = report.evaluate(FakeClassifier(), folder, list_pictures(folder, LABELS))

    assert report._write(output, folder, evaluation) == output / "index.html"
    assert sorted(path.name for path in output.iterdir()) == [
        "index.html", "mine.png", "mistakes-01.png", "pictures.json",
    ]  # fmt: skip
    written = {path.name: path.read_bytes() for path in output.iterdir()}
    assert [one["file"] for one in json.loads(written["pictures.json"])["mistakes"]] == ["1/a.png"]
    with Image.open(output / "mistakes-01.png") as image:
        assert image.width > 200

    report._write(output, folder, evaluation)
    assert {path.name: path.read_bytes() for path in output.iterdir()} == written


def test_report_that_cannot_be_written(folder: Path) -> None:
    """The error says what to do."""
    evaluation = report.evaluate(FakeClassifier(), folder, list_pictures(folder, LABELS))

    with pytest.raises(RunError, match=r"cannot be written to .*text.png.*: give another folder with --output"):
        report._write(folder / "7" / "text.png", folder, evaluation)

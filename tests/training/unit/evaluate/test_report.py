"""The report page: complete, self-contained, accessible, reproducible, and written atomically."""

import os
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from digitserve.inference.session import Outputs
from digitserve_training.data.splits import LABELS, Labelled
from digitserve_training.errors import RunError
from digitserve_training.evaluate import charts, page, scores
from digitserve_training.evaluate.evaluation import Evaluation, Measurement, OodResult, SetResult
from digitserve_training.evaluate.page import Page, ReportedRun
from digitserve_training.fit import settings
from digitserve_training.fit.settings import Options
from support.result_rows import ROW, SECOND, SMALL

VOID_TAGS = {"meta", "img", "br"}
HISTORY = tuple(
    {"epoch": epoch, "training_loss": 1 / epoch, "validation_loss": 0.5 / epoch, "validation_accuracy": 1 - 0.1 / epoch}
    for epoch in range(1, 6)
)
RUN = ReportedRun(ROW, settings.resolve(Options(seed=1), LABELS, "0123456789abcdef" * 4), HISTORY)
ROWS = (ROW, SECOND, SMALL)


def measurement(names: tuple[str, ...] = LABELS, num_images: int = 300, num_wrong: int = 45) -> Measurement:
    """Return predictions for noise images, ``num_wrong`` of them wrong, most of them confident."""
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (num_images, 28, 28, 1), np.uint8)
    labels = np.arange(num_images) % len(names)
    predicted = np.where(np.arange(num_images) < num_wrong, (labels + 1) % len(names), labels)
    logits = np.eye(len(names))[predicted] * generator.uniform(4, 12, (num_images, 1))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    outputs = Outputs(probabilities.astype(np.float32), generator.normal(-8, 1, num_images).astype(np.float32))
    return Measurement(Labelled(images, labels, names), outputs)


def evaluation(names: tuple[str, ...] = LABELS) -> Evaluation:
    """Return an evaluation with something in every section."""
    test = measurement(names)
    examples, ood_score = test.labelled.images[:10], np.linspace(-7, 3, 40, dtype=np.float32)
    return Evaluation(
        validation=test,
        test=test,
        threshold=-5.0,
        corruptions=(SetResult("fog", 0.8125, examples, True), SetResult("zigzag", 0.6225, examples, False)),
        corrupted_reliability=scores.reliability(test.outputs.probabilities, test.labelled.labels),
        framed=(SetResult("simulated scans", 0.9337, examples), SetResult("load_digits", 0.9111, examples)),
        non_digits=tuple(
            OodResult(name, 0.9876, 0.8421, test.labelled.images[:40], ood_score)
            for name in ("all kinds", "letters", "textures")
        ),
        mistaken_verdicts=0.0042,
        temperature=0.93,
        graph_sha256="0" * 64,
    )


def minimal(names: tuple[str, ...] = LABELS) -> Evaluation:
    """Return an evaluation of a dataset without digits and without a corruption suite."""
    return replace(evaluation(names), corruptions=(), corrupted_reliability=None, framed=(), non_digits=())


class ParsedPage(HTMLParser):
    """A parsed page: its sections, its tags with their attributes, and its text with single spaces."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "unclosed tags"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]

    @property
    def sections(self) -> list[str | None]:
        return [attributes["id"] for attributes in self.all("section")]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def full_page() -> Page:
    """Render a page with all sections once."""
    return page.render(RUN, evaluation(), ROWS)


@pytest.fixture(scope="module")
def small_page() -> Page:
    """Render a page without the optional sections once."""
    return page.render(replace(RUN, history=()), minimal())


@pytest.fixture(scope="module")
def parsed(full_page: Page) -> ParsedPage:
    """Parse the page with all sections once."""
    return ParsedPage(full_page.html)


def test_all_sections_in_order(parsed: ParsedPage) -> None:
    """The page is well-formed and has all sections, from the key figures to the comparison with other networks."""
    assert parsed.sections == [
        "key-figures",
        "training",
        "confusion",
        "mistakes",
        "calibration",
        "corruptions",
        "framed-digits",
        "rejection",
        "non-digits",
        "comparison",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "compact, seed 1",
        ROW.command,
        "335 658 parameters, 3 586 432 multiply-adds",
        "mnist: 55 000 training images, 5 000 validation images, 300 test images",
        "0123456789ab",
        "Test accuracy 85.00 %",
        "right for 255 of 300 images",
        "95 % confidence interval (Wilson): 80.52 % to 88.60 %",
        "Temperature 0.930",
        "Accuracy on corrupted images 71.75 %",
        "Kinds without a similar one in the augmentation: 1.",
        "simulated scans 93.37 %",
        "AUROC 0.9876",
        "84.21 % of the images without a digit are rejected",
        "Mistaken verdicts 0.42 %",
        "40 of 45 wrong predictions for test images",
        "zigzag no 62.25 %",
        "fog yes 81.25 %",
        "textures 40 0.9876 84.21 %",
        "tiny 1 900 000",
    ],
)
def test_figures_are_in_the_text(parsed: ParsedPage, text: str) -> None:
    """Heading, key figures and tables contain the measurements as text."""
    assert text in parsed.text


def test_page_is_self_contained(full_page: Page, parsed: ParsedPage) -> None:
    """The page has no external references and no scripts, and contains every chart that is also written as a file."""
    sources = [image["src"] or "" for image in parsed.all("img")]

    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in parsed.tags}
    assert not [attributes for _, attributes in parsed.tags if "href" in attributes]
    assert not re.search(r"https?:|url\(|@import", full_page.html)
    assert {page.data_url(content) for content in full_page.charts.values()} <= set(sources)


def test_page_is_accessible(parsed: ParsedPage) -> None:
    """Each image has an alternative text, each table a caption and headers with a scope; the page declares its
    language, a viewport for phones, and both colour schemes.
    """
    assert all(len(image["alt"] or "") > 10 for image in parsed.all("img"))
    assert len(parsed.all("caption")) == len(parsed.all("table")) > 3
    assert all(header.get("scope") in {"row", "col"} for header in parsed.all("th"))
    assert parsed.all("html") == [{"lang": "en"}]
    assert {"viewport", "color-scheme"} <= {meta.get("name") for meta in parsed.all("meta")}


def test_most_confident_mistakes_come_first(parsed: ParsedPage) -> None:
    """Only wrong predictions are shown, sorted by descending confidence, with true and predicted label."""
    matches = [
        re.fullmatch(r"(\d), predicted as (\d) with confidence (.*) %", image["alt"] or "")
        for image in parsed.all("img")
    ]
    shown = [(match[1], match[2], float(match[3])) for match in matches if match]

    assert len(shown) == page.MAX_MISTAKES
    assert all(label != predicted for label, predicted, _ in shown)
    assert [confidence for *_, confidence in shown] == sorted((confidence for *_, confidence in shown), reverse=True)


def test_equal_figures_give_equal_bytes(full_page: Page) -> None:
    """The output depends only on the figures: it contains no date, version or path, and nothing random."""
    again = page.render(RUN, evaluation(), ROWS)

    assert again == full_page
    assert not [name for name, content in full_page.charts.items() if b"matplotlib" in content or b"tEXt" in content]


def test_empty_sections_are_left_out(small_page: Page) -> None:
    """For a dataset without digits, a run without history and no other runs, empty sections and their charts are left
    out.
    """
    assert ParsedPage(small_page.html).sections == ["key-figures", "confusion", "mistakes", "calibration", "rejection"]
    assert sorted(small_page.charts) == ["confusion.png", "rejection.png", "reliability.png"]


def test_perfect_predictions() -> None:
    """Without mistakes the page states this, and charts with logarithmic scales are drawn, although these have no zero."""
    perfect = measurement(num_wrong=0)
    certain = replace(
        perfect, outputs=Outputs(np.eye(10, dtype=np.float32)[perfect.labelled.labels], perfect.ood_score)
    )
    history = ({"training_loss": 0.5, "validation_loss": 0.1, "validation_accuracy": 1.0},)

    rendered = page.render(replace(RUN, history=history), replace(minimal(), test=certain))

    assert "None: the predicted label of every test image is right." in rendered.html
    assert "Test accuracy 100.00 %" in ParsedPage(rendered.html).text


def test_labels_are_plain_text() -> None:
    """Names of labels, even many and long ones, are never interpreted as markup by the page or the charts."""
    names = ("<b>&", "$x$", "Ankle boot", *(f"letter {letter}" for letter in "abcdefghijklmnopqrstuvw"))
    assert len(names) == 26

    rendered = page.render(RUN, minimal(names))

    assert "<b>" not in rendered.html
    assert any("<b>&, predicted as $x$" in (image["alt"] or "") for image in ParsedPage(rendered.html).all("img"))


def test_report_is_small(full_page: Page, tmp_path: Path) -> None:
    """A report is smaller than 700 kB even with incompressible noise images: it becomes part of bundles."""
    folder = page.write(tmp_path / "report", evaluation(), full_page).parent

    assert sum(path.stat().st_size for path in folder.iterdir()) < 700_000


def test_new_report_replaces_the_old_one(full_page: Page, small_page: Page, tmp_path: Path) -> None:
    """A new report removes the charts of the old one and leaves no temporary files."""
    folder = page.write(tmp_path / "report", evaluation(), full_page).parent

    page.write(folder, evaluation(), small_page)

    assert {path.name for path in folder.iterdir()} == {"index.html", "evaluation.json", *small_page.charts}
    assert (folder / "index.html").read_text() == small_page.html


@pytest.mark.parametrize("num_written", [0, 1, 4])
def test_failed_write_keeps_the_old_report(
    full_page: Page, small_page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_written: int
) -> None:
    """If the disk is full after any number of files, the old report stays complete; the error states what to do."""
    folder = page.write(tmp_path / "report", evaluation(), full_page).parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    fsync = _full_disk(num_written)
    monkeypatch.setattr(os, "fsync", lambda _: next(fsync))
    with pytest.raises(
        RunError, match=r"the report cannot be written to .*: No space left on device; .* free some space"
    ):
        page.write(folder, evaluation(), small_page)

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def _full_disk(num_written: int) -> Iterator[None]:
    yield from [None] * num_written
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "names",
    [tuple("おきすつなはまやれを"), ("$a$b$", "x" * 200), tuple(f"class {number}" for number in range(60))],
    ids=["hiragana", "odd names", "many"],
)
def test_any_names_are_drawn(names: tuple[str, ...]) -> None:
    """The chart of the confusion matrix accepts names of any script, length and number without a warning."""
    assert charts.confusion(7 * np.eye(len(names), dtype=np.int64), names).startswith(b"\x89PNG")

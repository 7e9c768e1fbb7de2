"""What the page of a report promises: complete, self-contained, accessible, the same each time, written whole or not."""

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
from digitserve_training.evaluate.evaluation import Evaluation, Measurement, Robustness, Strangers
from digitserve_training.evaluate.page import Page, Subject
from digitserve_training.fit import settings
from digitserve_training.fit.settings import Options
from support.result_rows import ROW, SECOND, SMALL

VOID = {"meta", "img", "br"}
HISTORY = tuple(
    {"epoch": epoch, "training_loss": 1 / epoch, "validation_loss": 0.5 / epoch, "validation_accuracy": 1 - 0.1 / epoch}
    for epoch in range(1, 6)
)
SUBJECT = Subject(ROW, settings.resolve(Options(seed=1), LABELS, "0123456789abcdef" * 4), HISTORY, 0.93)
ROWS = (ROW, SECOND, SMALL)


def measurement(names: tuple[str, ...] = LABELS, num_images: int = 300, num_wrong: int = 45) -> Measurement:
    """Return answers to noise: so many wrong, most of them confident."""
    generator = np.random.default_rng(3)
    images = generator.integers(0, 256, (num_images, 28, 28, 1), np.uint8)
    labels = np.arange(num_images) % len(names)
    answers = np.where(np.arange(num_images) < num_wrong, (labels + 1) % len(names), labels)
    logits = np.eye(len(names))[answers] * generator.uniform(4, 12, (num_images, 1))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    outputs = Outputs(probabilities.astype(np.float32), generator.normal(-8, 1, num_images).astype(np.float32))
    return Measurement(Labelled(images, labels, names), outputs)


def evaluation(names: tuple[str, ...] = LABELS) -> Evaluation:
    """Return an evaluation with something in every section."""
    test = measurement(names)
    examples, strange = test.labelled.images[:10], np.linspace(-7, 3, 40, dtype=np.float32)
    return Evaluation(
        validation=test,
        test=test,
        threshold=-5.0,
        corruptions=(Robustness("fog", 0.8125, examples, True), Robustness("zigzag", 0.6225, examples, False)),
        corrupted_reliability=scores.reliability(test.outputs.probabilities, test.labelled.labels),
        ink=(Robustness("test images drawn on paper", 0.9337, examples), Robustness("load_digits", 0.9111, examples)),
        strangers=tuple(
            Strangers(name, 0.9876, 0.8421, test.labelled.images[:40], strange)
            for name in ("all together", "letters", "textures")
        ),
        mistaken_verdicts=0.0042,
        graph_sha256="0" * 64,
    )


def bare(names: tuple[str, ...] = LABELS) -> Evaluation:
    """Return what is left for sets that are no digits, and without a suite."""
    return replace(evaluation(names), corruptions=(), corrupted_reliability=None, ink=(), strangers=())


class Reading(HTMLParser):
    """A page as a browser takes it apart: sections, tags with their attributes, and text with single spaces."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == [], "tags that nothing closes"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

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
def made() -> Page:
    """Render the full page once."""
    return page.render(SUBJECT, evaluation(), ROWS)


@pytest.fixture(scope="module")
def smaller() -> Page:
    """Render the page of which most is left out once."""
    return page.render(replace(SUBJECT, history=()), bare())


@pytest.fixture(scope="module")
def full(made: Page) -> Reading:
    """Read the full page once."""
    return Reading(made.html)


def test_every_section_is_there_in_order(full: Reading) -> None:
    """The page is well-formed and goes from the key figures to the comparison with other networks."""
    assert full.sections == [
        "findings",
        "learning",
        "confusion",
        "mistakes",
        "reliability",
        "corruptions",
        "ink",
        "rejection",
        "strangers",
        "costs",
    ]


@pytest.mark.parametrize(
    "told",
    [
        "compact, seed 1",
        ROW.command,
        "335 658 parameters, 3 586 432 multiply-adds",
        "mnist: 55 000 images to train, 5 000 to validate, 300 to test",
        "0123456789ab",
        "Test accuracy 85.00 %",
        "255 of 300 images",
        "80.52 % to 88.60 % (95 % interval, Wilson)",
        "Temperature 0.930",
        "Accuracy on damaged images 71.75 %",
        "augmentation has nothing like 1 of them",
        "test images drawn on paper 93.37 %",
        "AUROC 0.9876",
        "84.21 % of such pictures are refused",
        "Mistaken verdicts 0.42 %",
        "40 of 45 test images answered wrongly",
        "zigzag no 62.25 %",
        "fog yes 81.25 %",
        "textures 40 0.9876 84.21 %",
        "tiny 1 900 000",
    ],
)
def test_figures_are_told(full: Reading, told: str) -> None:
    """Heading, key figures and tables say what was measured, in text."""
    assert told in full.text


def test_page_is_self_contained(made: Page, full: Reading) -> None:
    """The page refers to nothing outside, runs nothing, and holds every chart that lies beside it."""
    sources = [image["src"] or "" for image in full.all("img")]

    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert not {"script", "link", "iframe", "object", "base"} & {tag for tag, _ in full.tags}
    assert not [attributes for _, attributes in full.tags if "href" in attributes]
    assert not re.search(r"https?:|url\(|@import", made.html)
    assert {page._source(content) for content in made.charts.values()} <= set(sources)


def test_page_is_accessible(full: Reading) -> None:
    """Each image says what is to be seen, each table has a caption and headers with their scope, and the language, the
    width of phones and both colour schemes are declared.
    """
    assert all(len(image["alt"] or "") > 10 for image in full.all("img"))
    assert len(full.all("caption")) == len(full.all("table")) > 3
    assert all(header.get("scope") in {"row", "col"} for header in full.all("th"))
    assert full.all("html") == [{"lang": "en"}]
    assert {"viewport", "color-scheme"} <= {meta.get("name") for meta in full.all("meta")}


def test_worst_mistakes_come_first(full: Reading) -> None:
    """Wrong answers are shown by falling confidence, with true and given label; right ones are not shown."""
    said = [
        re.fullmatch(r"(\d), taken for (\d) with confidence (.*) %", image["alt"] or "") for image in full.all("img")
    ]
    shown = [(match[1], match[2], float(match[3])) for match in said if match]

    assert len(shown) == page.NUM_MISTAKES
    assert all(label != answer for label, answer, _ in shown)
    assert [confidence for *_, confidence in shown] == sorted((confidence for *_, confidence in shown), reverse=True)


def test_equal_figures_are_equal_bytes(made: Page) -> None:
    """Nothing but the figures decides what is written: no date, no version, no path, no chance."""
    again = page.render(SUBJECT, evaluation(), ROWS)

    assert again == made
    assert not [name for name, content in made.charts.items() if b"matplotlib" in content or b"tEXt" in content]


def test_empty_sections_are_left_out(smaller: Page) -> None:
    """Sets that are no digits, first epochs under way and a lone run make a page without the sections that would be
    empty; no chart is drawn for them.
    """
    assert Reading(smaller.html).sections == ["findings", "confusion", "mistakes", "reliability", "rejection"]
    assert sorted(smaller.charts) == ["confusion.png", "rejection.png", "reliability.png"]


def test_no_mistake_at_all() -> None:
    """A network that makes no mistake has a page that says so, with charts on scales that have no zero."""
    perfect = measurement(num_wrong=0)
    certain = replace(
        perfect, outputs=Outputs(np.eye(10, dtype=np.float32)[perfect.labelled.labels], perfect.ood_score)
    )
    history = ({"training_loss": 0.5, "validation_loss": 0.1, "validation_accuracy": 1.0},)

    made = page.render(replace(SUBJECT, history=history), replace(bare(), test=certain))

    assert "None: every test image got its true label." in made.html
    assert "Test accuracy 100.00 %" in Reading(made.html).text


def test_labels_are_text() -> None:
    """Names of labels, many and long ones, are never taken for markup, by the page or by the charts."""
    names = ("<b>&", "$x$", "Ankle boot", *(f"letter {letter}" for letter in "abcdefghijklmnopqrstuvw"))
    assert len(names) == 26

    made = page.render(SUBJECT, bare(names))

    assert "<b>" not in made.html
    assert any("<b>&, taken for $x$" in (image["alt"] or "") for image in Reading(made.html).all("img"))


def test_report_is_small(made: Page, tmp_path: Path) -> None:
    """Noise, which no packing makes smaller, included, a report stays below 700 kB: bundles carry it."""
    folder = page.write(tmp_path / "report", evaluation(), made).parent

    assert sum(path.stat().st_size for path in folder.iterdir()) < 700_000


def test_report_replaces_the_one_before(made: Page, smaller: Page, tmp_path: Path) -> None:
    """A new report leaves no chart of the last one behind, nor anything half-written."""
    folder = page.write(tmp_path / "report", evaluation(), made).parent

    page.write(folder, evaluation(), smaller)

    assert {path.name for path in folder.iterdir()} == {"index.html", "evaluation.json", *smaller.charts}
    assert (folder / "index.html").read_text() == smaller.html


@pytest.mark.parametrize("num_written", [0, 1, 4])
def test_failed_write_keeps_the_old_report(
    made: Page, smaller: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_written: int
) -> None:
    """A disk that is full sooner or later leaves the report before it as it was, whole, and says what to do."""
    folder = page.write(tmp_path / "report", evaluation(), made).parent
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    written = _filling_up(num_written)
    monkeypatch.setattr(os, "fsync", lambda _: next(written))
    with pytest.raises(RunError, match=r"no report was written to .*: No space left on device; .* make room"):
        page.write(folder, evaluation(), smaller)

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def _filling_up(num_written: int) -> Iterator[None]:
    yield from [None] * num_written
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "names",
    [tuple("おきすつなはまやれを"), ("$a$b$", "x" * 200), tuple(f"class {number}" for number in range(60))],
    ids=["hiragana", "odd names", "many"],
)
def test_any_names_are_drawn(names: tuple[str, ...]) -> None:
    """The picture of the confusion matrix takes names of any script, length and number, without a warning."""
    assert charts.confusion(7 * np.eye(len(names), dtype=np.int64), names).startswith(b"\x89PNG")

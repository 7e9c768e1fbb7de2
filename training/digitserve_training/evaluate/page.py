"""The page of a report: an evaluation in, one self-contained HTML file and its charts as PNG files out.

``report`` calls ``render`` and ``write``. What the page says is gathered here, how it looks stands in
``report.html.jinja``. Sections that have nothing to show are left out. Needs no TensorFlow.
"""

import io
import json
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from digitserve_training.atomic import replace_file
from digitserve_training.errors import RunError
from digitserve_training.evaluate import charts, scores
from digitserve_training.evaluate.evaluation import Evaluation, Measurement, Strangers, described
from digitserve_training.evaluate.results import Row
from digitserve_training.fit.settings import Settings

EVALUATION_NAME = "evaluation.json"
PAGE_NAME = "index.html"

NUM_MISTAKES = 40
"""Wrong answers that are shown; a good network makes hardly more."""

NUM_STRANGERS = 10
"""Pictures of each kind that are shown."""


@dataclass(frozen=True)
class Subject:
    """The run that a report is about.

    Attributes:
        row: it in figures.
        settings: what decided its training.
        history: one record of metrics an epoch.
        temperature: that probabilities were divided by.
    """

    row: Row
    settings: Settings
    history: Sequence[Mapping[str, float]]
    temperature: float


@dataclass(frozen=True)
class Finding:
    """A key figure.

    Attributes:
        name: what was measured.
        value: as it is shown.
        meaning: in one plain sentence.
    """

    name: str
    value: str
    meaning: str


@dataclass(frozen=True)
class Tile:
    """A small image of the network's size.

    Attributes:
        source: as HTML's ``src`` takes it.
        says: what is to be seen, for those who cannot.
        above: short text over it.
        below: short text under it.
        marked: whether it stands out among its neighbours.
    """

    source: str
    says: str
    above: str = ""
    below: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Page:
    """A report as files.

    Attributes:
        html: the page, which needs none of the others.
        charts: PNG bytes by file name.
    """

    html: str
    charts: Mapping[str, bytes]


def render(subject: Subject, evaluation: Evaluation, rows: Sequence[Row] = ()) -> Page:
    """Make the page and its charts; equal figures make equal bytes.

    Args:
        subject: what was evaluated.
        evaluation: all that was measured.
        rows: of all runs, to compare with; none for no comparison.
    """
    drawn = _charts(subject, evaluation, rows)
    environment = Environment(
        loader=PackageLoader("digitserve_training.evaluate", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": _percent, "grouped": _grouped, "source": _source, "tile": tile}
    html = environment.get_template("report.html.jinja").render(
        subject=subject,
        evaluation=evaluation,
        findings=_findings(subject, evaluation),
        charts=drawn,
        confusions=_confusions(evaluation.test),
        mistakes=_mistakes(evaluation.test),
        num_mistakes=_num_wrong(evaluation.test),
        strangers=[(one, _shown_strangers(one, evaluation.threshold)) for one in evaluation.strangers[1:]],
        original=evaluation.test.labelled.images[0],
        rows=sorted(rows, key=lambda row: (row.multiply_adds, row.preset, row.seed)),
    )
    return Page(html, {f"{name}.png": content for name, content in drawn.items()})


def reported(folder: Path) -> str | None:
    """Return the sha256 of the graph that a folder's report is of, None where there is no report."""
    try:
        told: str | None = json.loads((folder / EVALUATION_NAME).read_text()).get("graph_sha256")
    except (OSError, ValueError, AttributeError):
        return None
    return told


def write(folder: Path, evaluation: Evaluation, page: Page) -> Path:
    """Write ``evaluation.json``, the page and its charts into a folder, all or none of them.

    Returns:
        The path of the page.

    Raises:
        RunError: they cannot be written, for want of space for example; the report before, if any, is as it was.
    """
    files = {
        PAGE_NAME: page.html.encode(),
        EVALUATION_NAME: (json.dumps(described(evaluation), indent=2) + "\n").encode(),
        **page.charts,
    }
    try:
        folder.mkdir(exist_ok=True)
        with ExitStack() as stack:
            for name, content in files.items():
                file = stack.enter_context(replace_file(folder / name))
                file.write(content)
                # All are on disk before the first takes its place, so that a full disk leaves the old ones.
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        raise RunError(
            f"no report was written to {folder}: {error.strerror or error}; one that was there is as it was: "
            "make room, then evaluate again"
        ) from None
    for path in folder.glob("*.png"):
        if path.name not in files:
            path.unlink()
    return folder / PAGE_NAME


def tile(image: NDArray[np.uint8], says: str) -> Tile:
    """Turn an image into a tile.

    Args:
        image: uint8[28,28,1].
        says: what is to be seen.
    """
    packed = io.BytesIO()
    Image.fromarray(image[..., 0]).save(packed, "PNG", optimize=True)
    return Tile(_source(packed.getvalue()), says)


def _charts(subject: Subject, evaluation: Evaluation, rows: Sequence[Row]) -> dict[str, bytes]:
    test = evaluation.test
    curves = {"test images": test.reliability}
    if evaluation.corrupted_reliability is not None:
        curves["corruption suite"] = evaluation.corrupted_reliability
    drawn = {
        "confusion": charts.confusion(test.confusion, test.labelled.names),
        "reliability": charts.reliability(curves),
        "rejection": charts.rejection(*scores.rejection_curve(test.outputs.probabilities, test.labelled.labels)),
    }
    if subject.history:
        drawn |= {"losses": charts.losses(subject.history), "accuracy": charts.accuracy(subject.history)}
    if evaluation.strangers:
        by_kind = {one.name: one.ood_score for one in evaluation.strangers[1:]}
        drawn["strangers"] = charts.strangeness({"test digits": test.ood_score} | by_kind, evaluation.threshold)
    if rows:
        drawn["costs"] = charts.costs(rows)
    return drawn


def _findings(subject: Subject, evaluation: Evaluation) -> list[Finding]:
    return [
        *_test_findings(evaluation.test),
        *_calibration_findings(evaluation, subject.temperature),
        *_corruption_findings(evaluation),
        *_ink_findings(evaluation),
        *_stranger_findings(evaluation),
    ]


def _test_findings(test: Measurement) -> list[Finding]:
    num_images = len(test.labelled)
    num_right = num_images - _num_wrong(test)
    low, high = scores.interval(num_right, num_images)
    return [
        Finding(
            "Test accuracy",
            _percent(test.accuracy),
            f"{_grouped(num_right)} of {_grouped(num_images)} images that training never saw got their true label; "
            f"chance alone leaves room for {_percent(low)} to {_percent(high)} (95 % interval, Wilson).",
        ),
        Finding(
            "Test loss",
            f"{test.loss:.4f}",
            "Mean surprise at the true label, in nats: 0 is certain and right every time, "
            f"{np.log(len(test.labelled.names)):.2f} is guessing.",
        ),
    ]


def _calibration_findings(evaluation: Evaluation, temperature: float) -> list[Finding]:
    nature = "too cautious" if temperature < 1 else "too sure of itself"
    findings = [
        Finding(
            "Calibration error",
            _percent(evaluation.test.reliability.error),
            "How far the confidence of an answer is from its chance to be right, on average over the test images.",
        )
    ]
    if evaluation.corrupted_reliability is not None:
        findings.append(
            Finding(
                "Calibration error, damaged images",
                _percent(evaluation.corrupted_reliability.error),
                "The same over the whole corruption suite, where it is harder to know how sure to be.",
            )
        )
    return [
        *findings,
        Finding(
            "Temperature",
            f"{temperature:.3f}",
            f"Logits are divided by this, fitted on validation images: by itself the network was {nature}; "
            "1 would change nothing.",
        ),
    ]


def _corruption_findings(evaluation: Evaluation) -> list[Finding]:
    if not evaluation.corruptions:
        return []
    num_new = sum(not one.trained for one in evaluation.corruptions)
    return [
        Finding(
            "Accuracy on damaged images",
            _percent(evaluation.corruption_accuracy),
            f"Mean over {len(evaluation.corruptions)} kinds of damage to the test images; "
            f"augmentation has nothing like {num_new} of them.",
        )
    ]


def _ink_findings(evaluation: Evaluation) -> list[Finding]:
    return [
        Finding(
            one.name,
            _percent(one.accuracy),
            "Accuracy on digits from elsewhere, each found and framed as the service does it.",
        )
        for one in evaluation.ink
    ]


def _stranger_findings(evaluation: Evaluation) -> list[Finding]:
    if not evaluation.strangers:
        return []
    everything = evaluation.strangers[0]
    return [
        Finding(
            "Strangers told from digits",
            f"AUROC {everything.auroc:.4f}",
            "Chance that a picture of no digit looks stranger to the network than a digit does: 1 is always, 0.5 is "
            f"guessing; {_percent(everything.rejected)} of such pictures are refused.",
        ),
        Finding(
            "Mistaken verdicts",
            _percent(evaluation.mistaken_verdicts),
            "Share of test digits that the service would call blank or several digits.",
        ),
    ]


def _confusions(test: Measurement) -> list[tuple[str, str, int]]:
    """Return the most frequent mistakes as true label, answer and number: the matrix for those who cannot see it."""
    names, wrong = test.labelled.names, test.confusion - np.diag(np.diag(test.confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:10]
    pairs = [divmod(int(place), len(names)) for place in order]
    return [(names[line], names[column], int(wrong[line, column])) for line, column in pairs if wrong[line, column]]


def _mistakes(test: Measurement) -> list[Tile]:
    """Show the wrong answers, the most confident first."""
    confidence, names = test.outputs.probabilities.max(axis=1), test.labelled.names
    wrong = np.flatnonzero(test.predicted != test.labelled.labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:NUM_MISTAKES]
    return [
        _mistake(
            test.labelled.images[place],
            names[test.labelled.labels[place]],
            names[test.predicted[place]],
            float(confidence[place]),
        )
        for place in order
    ]


def _mistake(image: NDArray[np.uint8], label: str, answer: str, confidence: float) -> Tile:
    said = f"{label}, taken for {answer} with confidence {_percent(confidence)}"
    return Tile(tile(image, said).source, said, f"{label} → {answer}", _percent(confidence))


def _shown_strangers(strangers: Strangers, threshold: float) -> list[Tile]:
    """Show the first pictures of a kind, as they come, and whether they were refused."""
    shown = zip(strangers.images[:NUM_STRANGERS], strangers.ood_score, strict=False)
    return [_stranger(image, strangers.name, refused=bool(score > threshold)) for image, score in shown]


def _stranger(image: NDArray[np.uint8], kind: str, *, refused: bool) -> Tile:
    verdict = "refused" if refused else "accepted"
    said = f"one of: {kind}; {verdict}"
    return Tile(tile(image, said).source, said, below=verdict, marked=not refused)


def _num_wrong(measurement: Measurement) -> int:
    return int(np.sum(measurement.predicted != measurement.labelled.labels))


def _percent(share: float) -> str:
    return f"{share * 100:.2f} %"


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _source(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"

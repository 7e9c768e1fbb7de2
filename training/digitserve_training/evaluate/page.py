"""Renders the report of one run: a self-contained HTML page and its charts as PNG files.

``report`` calls ``render`` and ``write``; ``export`` calls ``reported_sha256``; ``pictures`` renders its own page with the
same style. This module collects the content;
``report.html.jinja`` defines the layout. Sections without content are left out. Does not import TensorFlow.
"""

import io
import json
import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from digitserve.types import Gray
from digitserve_training.atomic import replace_file
from digitserve_training.data import unipen
from digitserve_training.errors import RunError
from digitserve_training.evaluate import charts, scores
from digitserve_training.evaluate.evaluation import Evaluation, Measurement, OodResult, as_json
from digitserve_training.evaluate.formatting import percent
from digitserve_training.evaluate.key_figures import grouped, key_figures
from digitserve_training.evaluate.results import Row
from digitserve_training.fit.settings import Settings

FOLDER = "report"
"""Name of a report's folder within the folder of its run."""

EVALUATION_NAME = "evaluation.json"
PAGE_NAME = "index.html"

MAX_MISTAKES = 40
"""Largest number of wrong predictions that are shown; a good network makes hardly more."""

MAX_NON_DIGITS = 10
"""Images of each kind of non-digit that are shown."""

MAX_CONFUSIONS = 10
"""Rows in the table of the most frequent mistakes."""


@dataclass(frozen=True)
class ReportedRun:
    """The run that a report describes.

    Attributes:
        row: its row in the table of results.
        settings: settings of its training.
        history: metrics of each epoch.
    """

    row: Row
    settings: Settings
    history: Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Calibration:
    """What ``evaluate`` fitted on the validation images, as a report stores it.

    Attributes:
        temperature: divisor of the logits.
        threshold: OOD score above which an image is unfamiliar.
        graph_sha256: sha256 of the graph with this temperature, hexadecimal.
    """

    temperature: float
    threshold: float
    graph_sha256: str


@dataclass(frozen=True)
class Thumbnail:
    """An image of 28x28 pixels in the report.

    Attributes:
        source: value of HTML's ``src`` attribute.
        alt: alternative text.
        above: short text above the image.
        below: short text below the image.
        marked: whether the image is highlighted.
    """

    source: str
    alt: str
    above: str = ""
    below: str = ""
    marked: bool = False


@dataclass(frozen=True)
class Page:
    """A rendered report.

    Attributes:
        html: the page; it contains its charts and needs no other file.
        charts: PNG bytes by file name.
    """

    html: str
    charts: Mapping[str, bytes]


def render(run: ReportedRun, evaluation: Evaluation, rows: Sequence[Row] = ()) -> Page:
    """Render the page and its charts; equal arguments give equal bytes.

    Args:
        run: the run that was evaluated.
        evaluation: all measurements.
        rows: rows of all runs, for the comparison; without rows there is no comparison.
    """
    drawn = _charts(run, evaluation, rows)
    environment = make_environment()
    html = environment.get_template("report.html.jinja").render(
        run=run,
        evaluation=evaluation,
        key_figures=key_figures(evaluation),
        charts=drawn,
        confusions=_confusions(evaluation.test),
        mistakes=_mistakes(evaluation.test),
        non_digits=[(one, _non_digit_thumbnails(one, evaluation.threshold)) for one in evaluation.non_digits[1:]],
        original=evaluation.test.labelled.images[0],
        credit=unipen.CREDIT,
        rows=sorted(rows, key=lambda row: (row.multiply_adds, row.preset, row.seed)),
    )
    return Page(html, {f"{name}.png": content for name, content in drawn.items()})


def make_environment() -> Environment:
    """Return an environment for the templates in this package's folder, with the filters that they use."""
    environment = Environment(
        loader=PackageLoader("digitserve_training.evaluate", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "grouped": grouped, "source": data_url, "thumbnail": thumbnail}
    return environment


def reported_sha256(folder: Path) -> str | None:
    """Return the sha256 of the graph that the report in a folder describes; None if there is no report."""
    sha256: str | None = _read_evaluation(folder).get("graph_sha256")
    return sha256


def reported_calibration(folder: Path) -> Calibration | None:
    """Return the calibration in the report in a folder; None if there is no report, or one without a temperature."""
    stored = _read_evaluation(folder)
    try:
        return Calibration(float(stored["temperature"]), float(stored["ood_threshold"]), str(stored["graph_sha256"]))
    except (KeyError, TypeError, ValueError):
        return None


def write(folder: Path, evaluation: Evaluation, page: Page) -> Path:
    """Write ``evaluation.json``, the page and its charts into a folder: either all of them or none.

    Returns:
        The path of the page.

    Raises:
        RunError: the files cannot be written, for example because the disk is full; an earlier report is intact.
    """
    files = {
        PAGE_NAME: page.html.encode(),
        EVALUATION_NAME: (json.dumps(as_json(evaluation), indent=2) + "\n").encode(),
        **page.charts,
    }
    try:
        replace_files(folder, files, "*.png")
    except OSError as error:
        raise RunError(
            f"the report cannot be written to {folder}: {error.strerror or error}; an earlier report is unchanged: "
            "free some space, then evaluate again"
        ) from None
    return folder / PAGE_NAME


def replace_files(folder: Path, files: Mapping[str, bytes], outdated: str) -> None:
    """Write files into a folder, which is created if it is missing: either all of them or none.

    Args:
        folder: of the files.
        files: content by name.
        outdated: pattern of names; other files in the folder that match it are deleted.

    Raises:
        OSError: the files cannot be written; earlier ones are unchanged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        for name, content in files.items():
            file = stack.enter_context(replace_file(folder / name))
            file.write(content)
            # All files are on disk before the first one replaces an old one, so a full disk keeps the old files.
            file.flush()
            os.fsync(file.fileno())
    for path in folder.glob(outdated):
        if path.name not in files:
            path.unlink()


def thumbnail(image: Gray, alt: str) -> Thumbnail:
    """Encode an image for the page.

    Args:
        image: uint8[28,28,1].
        alt: alternative text.
    """
    png = io.BytesIO()
    Image.fromarray(image[..., 0]).save(png, "PNG", optimize=True)
    return Thumbnail(data_url(png.getvalue()), alt)


def _charts(run: ReportedRun, evaluation: Evaluation, rows: Sequence[Row]) -> dict[str, bytes]:
    test = evaluation.test
    curves = {"test images": test.reliability}
    if evaluation.corrupted_reliability is not None:
        curves["corruption suite"] = evaluation.corrupted_reliability
    drawn = {
        "confusion": charts.confusion(test.confusion, test.labelled.names),
        "reliability": charts.reliability(curves),
        "rejection": charts.rejection(*scores.rejection_curve(test.outputs.probabilities, test.labelled.labels)),
    }
    if run.history:
        drawn |= {"losses": charts.losses(run.history), "accuracy": charts.accuracy(run.history)}
    if evaluation.non_digits:
        kinds = {one.name: one.ood_score for one in evaluation.non_digits[1:]}
        drawn["ood_scores"] = charts.ood_scores({"test digits": test.ood_score} | kinds, evaluation.threshold)
    if rows:
        drawn["accuracy_by_cost"] = charts.accuracy_by_cost(rows)
    return drawn


def _confusions(test: Measurement) -> list[tuple[str, str, int]]:
    """Return the most frequent mistakes as (true label, predicted label, number of images).

    This table makes the confusion matrix accessible to readers who cannot see the chart.
    """
    names, wrong = test.labelled.names, test.confusion - np.diag(np.diag(test.confusion))
    order = np.argsort(-wrong, axis=None, kind="stable")[:MAX_CONFUSIONS]
    pairs = [divmod(int(index), len(names)) for index in order]
    return [(names[row], names[column], int(wrong[row, column])) for row, column in pairs if wrong[row, column]]


def _mistakes(test: Measurement) -> list[Thumbnail]:
    """Return the wrong predictions, the most confident first."""
    confidence, names = test.outputs.probabilities.max(axis=1), test.labelled.names
    wrong = np.flatnonzero(test.predicted != test.labelled.labels)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:MAX_MISTAKES]
    return [
        _mistake(
            test.labelled.images[index],
            names[test.labelled.labels[index]],
            names[test.predicted[index]],
            float(confidence[index]),
        )
        for index in order
    ]


def _mistake(image: Gray, label: str, predicted: str, confidence: float) -> Thumbnail:
    alt = f"{label}, predicted as {predicted} with confidence {percent(confidence)}"
    return Thumbnail(thumbnail(image, alt).source, alt, f"{label} → {predicted}", percent(confidence))


def _non_digit_thumbnails(result: OodResult, threshold: float) -> list[Thumbnail]:
    """Return the first images of a kind, and whether they are rejected."""
    shown = zip(result.images[:MAX_NON_DIGITS], result.ood_score, strict=False)
    return [_non_digit(image, result.name, rejected=bool(score > threshold)) for image, score in shown]


def _non_digit(image: Gray, kind: str, *, rejected: bool) -> Thumbnail:
    verdict = "rejected" if rejected else "accepted"
    alt = f"example of {kind}; {verdict}"
    return Thumbnail(thumbnail(image, alt).source, alt, below=verdict, marked=not rejected)


def data_url(png: bytes) -> str:
    """Return the bytes of a PNG file as a value of HTML's ``src`` attribute."""
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _read_evaluation(folder: Path) -> dict[str, Any]:
    """Return the content of ``evaluation.json``; empty if it is missing or damaged."""
    try:
        stored = json.loads((folder / EVALUATION_NAME).read_text())
    except (OSError, ValueError):
        return {}
    return stored if isinstance(stored, dict) else {}

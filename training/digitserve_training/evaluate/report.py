"""Reports: what ``evaluate`` shows in the terminal, and writes into a run's folder for people and programs."""

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from digitserve_training.data import splits
from digitserve_training.evaluate import page, results
from digitserve_training.evaluate.candidate import Candidate, open_candidate
from digitserve_training.evaluate.evaluation import Evaluation, Exam, Measurement, evaluate
from digitserve_training.evaluate.page import Subject
from digitserve_training.evaluate.results import Row
from digitserve_training.model.layers import count_multiply_adds, count_parameters

FOLDER = "report"


MAX_HEAD, MAX_NAME = 8, 24
"""Characters that are shown of a label's name at the head of a column, and elsewhere."""


def report(run_dirs: Sequence[Path], data_path: Path | None, results_path: Path | None) -> Iterator[str]:
    """Evaluate runs one after the other and write each one's report.

    Args:
        run_dirs: folders of runs.
        data_path: as ``splits.read_training`` takes it.
        results_path: JSON file of rows that each run's row is added to, None for no such file.

    Yields:
        Text for the terminal.
    """
    # All that is cheap to know comes before minutes of measuring.
    if results_path is not None:
        results.read(results_path)
    exams: dict[str, Exam] = {}
    for run_dir in run_dirs:
        candidate = open_candidate(run_dir, data_path)
        settings = candidate.state.settings
        if settings.dataset not in exams:
            exams[settings.dataset] = Exam(splits.read_test(data_path, settings.dataset), digits=settings.digits)
        augmentation = settings.preset.augmentation
        evaluation = evaluate(
            candidate.session, candidate.split.validation, exams[settings.dataset], augmentation, candidate.sha256
        )
        yield f"{settings.preset.name} after {candidate.state.epoch} of {settings.epochs} epochs\n"
        yield render(evaluation)
        summary = row(candidate, evaluation)
        if results_path is not None and candidate.state.finished:
            results.add(results_path, [summary])
        rows = () if results_path is None else results.read(results_path)
        subject = Subject(summary, settings, candidate.state.history, candidate.temperature)
        yield f"report: {page.write(run_dir / FOLDER, evaluation, page.render(subject, evaluation, rows))}"


def row(candidate: Candidate, evaluation: Evaluation) -> Row:
    """Sum up a run in one row."""
    settings = candidate.state.settings
    layers = settings.layers
    return Row(
        preset=settings.preset.name,
        seed=settings.seed,
        command=settings.command,
        parameters=count_parameters(layers),
        multiply_adds=count_multiply_adds(layers),
        epochs=candidate.state.epoch,
        training_images=len(candidate.split.training),
        validation_images=len(candidate.split.validation),
        duration_s=round(sum(record["duration_s"] for record in candidate.state.history), 1),
        validation_accuracy=evaluation.validation.accuracy,
        test_accuracy=evaluation.test.accuracy,
        test_loss=evaluation.test.loss,
        corruption_accuracy=evaluation.corruption_accuracy,
    )


def render(evaluation: Evaluation) -> str:
    """Return an evaluation as text: figures of each part, and the confusion matrix of the test images."""
    parts = [
        _line("validation", evaluation.validation),
        _line("test", evaluation.test),
        _confusion(evaluation.test),
        f"corruption suite: mean accuracy {evaluation.corruption_accuracy:.2%}"
        + (
            f", calibration error {evaluation.corrupted_reliability.error:.2%}"
            if evaluation.corrupted_reliability
            else ""
        ),
        *(
            f"  {one.name:<16} {one.accuracy:7.2%}  {'trained on the like' if one.trained else 'never trained on'}"
            for one in evaluation.corruptions
        ),
        *(f"{one.name}: accuracy {one.accuracy:.2%}" for one in evaluation.ink),
        *(f"strangers, {one.name}: AUROC {one.auroc:.4f}, {one.rejected:.1%} refused" for one in evaluation.strangers),
        f"test digits called blank or several: {evaluation.mistaken_verdicts:.2%}",
    ]
    return "\n".join(parts)


def _line(name: str, measurement: Measurement) -> str:
    num_images, num_wrong = len(measurement.labelled), int(np.sum(measurement.predicted != measurement.labelled.labels))
    return (
        f"{name}: accuracy {measurement.accuracy:.2%} ({num_wrong} of {num_images} wrong), "
        f"loss {measurement.loss:.4f}, calibration error {measurement.reliability.error:.3%}"
    )


def _confusion(measurement: Measurement) -> str:
    """Return a confusion matrix as text, zeros as dots."""
    confusion, title = measurement.confusion, "true \\ predicted"
    names, heads = ([name[:length] for name in measurement.labelled.names] for length in (MAX_NAME, MAX_HEAD))
    margin = max(map(_columns, (title, *names)))
    width = max(len(str(confusion.max())), *map(_columns, heads)) + 2
    header = _right(title, margin) + "".join(_right(head, width) for head in heads)
    rows = [
        _right(name, margin) + "".join((str(count) if count else "·").rjust(width) for count in line)
        for name, line in zip(names, confusion.tolist(), strict=True)
    ]
    return "\n".join((header, *rows))


def _right(text: str, width: int) -> str:
    return " " * (width - _columns(text)) + text


def _columns(text: str) -> int:
    """Count the columns of a terminal that a text takes: characters of East Asian scripts take two."""
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)

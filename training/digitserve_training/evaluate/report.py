"""The command ``digitserve-train evaluate``: evaluates runs, prints a summary, writes reports and rows of results.

``cli`` calls ``report``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from digitserve_training.data import splits
from digitserve_training.evaluate import evaluation_sets, page, results
from digitserve_training.evaluate.converted_model import ConvertedModel, convert_run
from digitserve_training.evaluate.evaluation import Evaluation, Measurement, evaluate
from digitserve_training.evaluate.formatting import align_right, num_columns
from digitserve_training.evaluate.page import ReportedRun
from digitserve_training.evaluate.results import Row
from digitserve_training.model.layers import count_multiply_adds, count_parameters

MAX_HEADER_LENGTH, MAX_NAME_LENGTH = 8, 24
"""Longer names of labels are cut, in the header of a column and elsewhere."""


def report(run_dirs: Sequence[Path], data_path: Path | None, results_path: Path | None) -> Iterator[str]:
    """Evaluate runs one after the other and write a report for each.

    Args:
        run_dirs: folders of runs.
        data_path: path of the dataset, see ``splits.read_training``.
        results_path: JSON file to which the row of each finished run is added; None for no file.

    Yields:
        Text for the terminal.

    Raises:
        TrainingError: a run, the images or the results file cannot be used, or a report cannot be written.
    """
    # A damaged results file is reported now, not after minutes of evaluation.
    if results_path is not None:
        results.read(results_path)
    sets: dict[str, evaluation_sets.EvaluationSets] = {}
    for run_dir in run_dirs:
        model = convert_run(run_dir, data_path)
        settings = model.state.settings
        if settings.dataset not in sets:
            test = splits.read_test(data_path, settings.dataset)
            sets[settings.dataset] = evaluation_sets.build(test, digits=settings.digits)
        evaluation = evaluate(
            model.session,
            model.split.validation,
            sets[settings.dataset],
            settings.preset.augmentation,
            model.temperature,
            model.sha256,
        )
        yield f"{settings.preset.name} after {model.state.epoch} of {settings.epochs} epochs\n"
        yield render(evaluation)
        summary = summary_row(model, evaluation)
        if results_path is not None and model.state.finished:
            results.add(results_path, [summary])
        rows = () if results_path is None else results.read(results_path)
        reported_run = ReportedRun(summary, settings, model.state.history)
        yield f"report: {page.write(run_dir / page.FOLDER, evaluation, page.render(reported_run, evaluation, rows))}"


def summary_row(model: ConvertedModel, evaluation: Evaluation) -> Row:
    """Return the row of a run in the table of results."""
    settings = model.state.settings
    layers = settings.layers
    return Row(
        preset=settings.preset.name,
        seed=settings.seed,
        command=settings.command,
        parameters=count_parameters(layers),
        multiply_adds=count_multiply_adds(layers),
        epochs=model.state.epoch,
        training_images=len(model.split.training),
        validation_images=len(model.split.validation),
        duration_s=round(sum(record["duration_s"] for record in model.state.history), 1),
        validation_accuracy=evaluation.validation.accuracy,
        test_accuracy=evaluation.test.accuracy,
        test_loss=evaluation.test.loss,
        corruption_accuracy=evaluation.corruption_accuracy,
    )


def render(evaluation: Evaluation) -> str:
    """Return an evaluation as text: the figures of all sets, and the confusion matrix of the test images."""
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
            f"  {one.name:<16} {one.accuracy:7.2%}  {'similar in training' if one.trained else 'not in training'}"
            for one in evaluation.corruptions
        ),
        *(f"{one.name}: accuracy {one.accuracy:.2%}" for one in evaluation.framed),
        *(
            f"non-digits, {one.name}: AUROC {one.auroc:.4f}, {one.rejected:.1%} rejected"
            for one in evaluation.non_digits
        ),
        f"test digits reported as blank or several shapes: {evaluation.mistaken_verdicts:.2%}",
    ]
    return "\n".join(parts)


def _line(name: str, measurement: Measurement) -> str:
    return (
        f"{name}: accuracy {measurement.accuracy:.2%} "
        f"({measurement.num_wrong} of {len(measurement.labelled)} wrong), "
        f"loss {measurement.loss:.4f}, calibration error {measurement.reliability.error:.3%}"
    )


def _confusion(measurement: Measurement) -> str:
    """Return a confusion matrix as text, with dots for zeros."""
    confusion, title = measurement.confusion, "true \\ predicted"
    names = [name[:MAX_NAME_LENGTH] for name in measurement.labelled.names]
    headers = [name[:MAX_HEADER_LENGTH] for name in measurement.labelled.names]
    margin = max(map(num_columns, (title, *names)))
    width = max(len(str(confusion.max())), *map(num_columns, headers)) + 2
    header = align_right(title, margin) + "".join(align_right(name, width) for name in headers)
    rows = [
        align_right(name, margin) + "".join((str(count) if count else "·").rjust(width) for count in line)
        for name, line in zip(names, confusion.tolist(), strict=True)
    ]
    return "\n".join((header, *rows))

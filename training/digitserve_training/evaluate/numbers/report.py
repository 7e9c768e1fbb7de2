"""The commands ``digitserve-train evaluate --numbers`` and ``--simulated``: read images, print figures, write a report.

``cli`` calls ``report``. Images are loaded or drawn one after the other and kept only as long as they are read.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from digitserve.errors import ImageFileError, InvalidRequest
from digitserve.progress import track
from digitserve_training.data import splits
from digitserve_training.errors import DataError, RunError
from digitserve_training.evaluate.numbers import gallery, listing, results, simulated, table
from digitserve_training.evaluate.numbers.figures import Failure, Judged, NumberEvaluation, as_json
from digitserve_training.evaluate.numbers.local_reader import NumberReader, open_reader
from digitserve_training.evaluate.numbers.samples import Sample
from digitserve_training.evaluate.numbers.scoring import score_digits, score_text, text_of
from digitserve_training.evaluate.page import PAGE_NAME
from digitserve_training.evaluate.pictures.report import default_output, write_files

FOLDER = "numbers"
"""Default folder of the report: within the folder of a run, or else in the working directory."""

FIGURES_NAME = "numbers.json"

MAX_SHOWN = 200
"""Most mistakes with images; numbers.json has all."""


def report_files(
    model: Path, path: Path, sets: Sequence[str], data_path: Path | None, output: Path | None, rows: Path | None
) -> Iterator[str]:
    """Read the image files of a table, and write a report.

    Args:
        model: folder of a run or of a bundle.
        path: of the table or of its folder, see ``listing``.
        sets: names of the sets to read; all if there are none.
        data_path: path of the dataset, see ``pictures.classifier.open_network``.
        output: folder of the report; None for the default.
        rows: table of results to add rows to; None for none.

    Yields:
        Text for the terminal.

    Raises:
        TrainingError: the model or the images cannot be used, or the report cannot be written.
    """
    reader = open_reader(model, data_path)
    evaluation = evaluate(reader, str(path), listing.list_samples(path, sets))
    yield from _report(evaluation, output or default_output(model, FOLDER), rows)


def report_simulated(
    model: Path, number: int, data_path: Path | None, output: Path | None, rows: Path | None
) -> Iterator[str]:
    """Read synthetic images made from the test images of MNIST, and write a report.

    Args:
        model: folder of a run or of a bundle.
        number: of images of each kind.
        data_path: path of MNIST.
        output: folder of the report; None for the default.
        rows: table of results to add rows to; None for none.

    Yields:
        Text for the terminal.

    Raises:
        TrainingError: the model or the dataset cannot be used, or the report cannot be written.
    """
    reader = open_reader(model, data_path)
    samples = simulated.list_samples(splits.read_test(data_path), number)
    evaluation = evaluate(reader, f"{number} synthetic images of each kind", samples)
    yield from _report(evaluation, output or default_output(model, FOLDER), rows)


def evaluate(reader: NumberReader, source: str, samples: Sequence[Sample]) -> NumberEvaluation:
    """Read images.

    Raises:
        DataError: no image can be read.
    """
    judged: list[Judged] = []
    failures: list[Failure] = []
    for sample in track(samples, "image"):
        try:
            judged.append(_judge(reader, sample))
        except (ImageFileError, InvalidRequest) as error:
            failures.append(Failure(sample, str(error).removeprefix(f"{sample.name}: ")))
    if not judged:
        raise DataError(
            f"none of the {len(failures)} images of {source} was read, the first because: {failures[0].sample.name}: "
            f"{failures[0].reason}"
        )
    return NumberEvaluation(reader.name, source, tuple(judged), tuple(failures))


def _judge(reader: NumberReader, sample: Sample) -> Judged:
    shown = sample.load()
    reading = reader.read(shown.pixels, sample.options)
    text = text_of(reading)
    return Judged(
        sample,
        shown.text,
        text,
        min((line.confidence for line in reading.lines), default=1.0),
        score_text(shown.text, text),
        score_digits(shown.digits, reading) if shown.digits else None,
    )


def _report(evaluation: NumberEvaluation, output: Path, rows: Path | None) -> Iterator[str]:
    yield table.render(evaluation)
    mistakes = [*gallery.read_mistakes(evaluation.mistakes[:MAX_SHOWN])]
    files = {
        PAGE_NAME: gallery.render(evaluation, mistakes).encode(),
        FIGURES_NAME: (json.dumps(as_json(evaluation), indent=2) + "\n").encode(),
    }
    # An earlier report has no other files, so none is outdated.
    yield f"report: {write_files(output, files, FIGURES_NAME)}"
    if rows is not None:
        try:
            results.add(rows, evaluation, evaluation.source)
        except OSError as error:
            raise RunError(f"{rows} cannot be written: {error.strerror or error}") from None
        yield f"results: {rows}"
